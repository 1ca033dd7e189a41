"""A data folder as a YOLO segmentation data set."""

from pathlib import Path

import yaml

from defectseg import files
from defectseg.data.split import read_split
from defectseg.errors import DataError, UsageError
from defectseg.formats.common import ExportReport, LabelledImage, Source, check_is_free, new_folder, place_image
from defectseg.formats.polygons import count_hole_px, cut_pieces, pixel_outline
from defectseg.formats.yolo.labels import format_line, label_path
from defectseg.progress import Progress

SPLIT_NAME = "split.csv"


def export_yolo(
    root: Path, out: Path, *, val_fold: int = 0, link: bool = False, report: Progress | None = None
) -> ExportReport:
    """Write a data folder as `images/`, `labels/` and `data.yaml`, each of the first two with `train/` and `val/`.

    A line stands for a connected region. Masks stay exact but for holes. Without a split.csv, everything is in
    `train/`, and data.yaml has no `val`.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        val_fold: the fold of split.csv that becomes `val`; the others become `train`.
        link: make links to the images instead of copies.
        report: called with the number of images done and of all images.

    Raises:
        DataError, LabelError: the data folder cannot be used, split.csv leaves out an image, or two images differ by
            their suffix alone.
        UsageError: split.csv has no such fold.
        ImageError: an image is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    source = Source(root, kept=(SPLIT_NAME,))
    source.check_stems("labels")
    val = _val_images(source, val_fold)
    with new_folder(out, last="data.yaml") as building:
        for image in source.labelled_images(report):
            relative = f"images/{'val' if image.image_id in val else 'train'}/{image.image_id}"
            place_image(image.path, building / relative, link=link)
            labels = building / label_path(relative)
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(_lines(image, source)), encoding="utf-8")
        # Without `path`, Ultralytics looks beside the file itself; "." would mean the folder that it was started in.
        parts = {"train": "images/train", **({"val": "images/val"} if val else {})}
        content = {**parts, "names": dict(enumerate(source.folder.class_names))}
        files.write_text(building / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return source.report()


def _val_images(source: Source, val_fold: int) -> frozenset[str]:
    path = source.folder.root / SPLIT_NAME
    if not path.is_file():
        source.tally.add("folds", example=f"There is no {SPLIT_NAME}, so everything is in train and nothing in val.")
        return frozenset()
    folds = read_split(path)
    if unlisted := [image_id for image_id in source.folder.image_ids if image_id not in folds]:
        raise DataError(
            f"{path}: gives no fold for {len(unlisted)} images (first: {unlisted[0]}). "
            f"Run: defectseg data split {source.folder.root}"
        )
    present = {folds[image_id] for image_id in source.folder.image_ids}
    if val_fold not in present:
        raise UsageError(f"--fold {val_fold}: {path} has the folds {', '.join(map(str, sorted(present)))}.")
    if len(present) == 1:
        raise DataError(f"{path}: puts every image into fold {val_fold}, which leaves nothing to train on.")
    if len(present) > 2:
        text = f"Of {len(present)} folds, {val_fold} became val and the others train."
        source.tally.add("folds", len(present) - 2, example=text)
    return frozenset(image_id for image_id in source.folder.image_ids if folds[image_id] == val_fold)


def _lines(image: LabelledImage, source: Source) -> list[str]:
    lines: list[str] = []
    for index, mask in enumerate(image.masks):
        lines += [format_line(index, pixel_outline(piece), image.size_hw) + "\n" for piece in cut_pieces(mask)]
        source.tally.add("hole_px", count_hole_px(mask), example=image.image_id)
    source.tally.add("ignore_px", int(image.ignore.sum()), example=image.image_id)
    return lines
