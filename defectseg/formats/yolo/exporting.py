"""A data folder as a YOLO segmentation data set."""

from pathlib import Path

import yaml

from defectseg.data.split import SPLIT_NAME, read_split
from defectseg.errors import DataError, UsageError
from defectseg.files import check_is_free, new_folder, write_text
from defectseg.formats.common import ExportReport, LabelledImage, Source, place_image
from defectseg.formats.polygons import count_hole_px, cut_pieces, pixel_outline
from defectseg.formats.yolo.labels import format_line, label_path
from defectseg.progress import Progress, silent


def export_yolo(
    root: Path, out: Path, *, fold: int = 0, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `labels/` and `data.yaml`, each of the first two with `train/` and `val/`.

    A line stands for a connected region. Masks stay exact but for holes. Without a split.csv, everything is in
    `train/`, and data.yaml has no `val`.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        fold: the fold of split.csv that becomes `val`; the others become `train`.
        link: make links to the images instead of copies.
        progress: counts the images.

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
    val = _val_images(source, fold)
    with new_folder(out, last="data.yaml") as building:
        for image in source.labelled_images(progress):
            relative = f"images/{'val' if image.image_id in val else 'train'}/{image.image_id}"
            place_image(image.path, building / relative, link=link)
            labels = building / label_path(relative)
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(_lines(image, source)), encoding="utf-8")
        # Without `path`, Ultralytics looks beside the file itself; "." would mean the folder that it was started in.
        parts = {"train": "images/train", **({"val": "images/val"} if val else {})}
        content = {**parts, "names": dict(enumerate(source.folder.class_names))}
        write_text(building / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return source.report()


def _val_images(source: Source, fold: int) -> frozenset[str]:
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
    if fold not in present:
        raise UsageError(
            f"there is no fold {fold}; {path} has {', '.join(map(str, sorted(present)))}.", argument="fold"
        )
    if len(present) == 1:
        raise DataError(f"{path}: puts every image into fold {fold}, which leaves nothing to train on.")
    if len(present) > 2:
        text = f"Of {len(present)} folds, {fold} became val and the others train."
        source.tally.add("folds", len(present) - 2, example=text)
    return frozenset(image_id for image_id in source.folder.image_ids if folds[image_id] == fold)


def _lines(image: LabelledImage, source: Source) -> list[str]:
    lines: list[str] = []
    for index, mask in enumerate(image.masks):
        lines += [format_line(index, pixel_outline(piece), image.size_hw) + "\n" for piece in cut_pieces(mask)]
        source.tally.add("hole_px", count_hole_px(mask), example=image.image_id)
    source.tally.add("ignore_px", int(image.ignore.sum()), example=image.image_id)
    return lines
