"""Labels as a YOLO segmentation data set: data.yaml, images, and a text file of labels for each image.

A line of labels is `class x1 y1 x2 y2 ...` in fractions of the image's width and height; classes count from 0. Outlines
run through the border pixels, which belong to the shape. A point lies in the pixel that its coordinates, in pixels, are
cut down to. Ultralytics' own tools make masks for training by this rule (polygon2mask).
"""

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from defectseg.data.split import SPLIT_NAME, read_split
from defectseg.errors import DataError, UsageError
from defectseg.files import new_folder, write_text
from defectseg.formats.common import place_image
from defectseg.formats.exporting import ExportReport, Source
from defectseg.formats.polygons import count_hole_px, cut_pieces, pixel_outline
from defectseg.progress import Progress, silent, some

OWN_LINE = "# written by defectseg: every image has been labelled\n"
# Corners within a pixel, so that a shape of one or two pixels still has three different points.
_WITHIN_PX = np.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]])


def label_path(image_path: str) -> str:
    """The label file of an image, both relative to the data set: the last folder `images` becomes `labels`."""
    before, found, after = f"/{image_path.rpartition('.')[0]}.txt".rpartition("/images/")
    return (f"{before}/labels/{after}" if found else after).lstrip("/")


def format_line(class_index: int, outline: NDArray[np.intp], size_hw: tuple[int, ...]) -> str:
    """The line of a shape whose border pixels are `outline`, int (N, 2), x and y."""
    points = outline + 0.5 if len(outline) >= 3 else outline[[0, -1, -1]] + _WITHIN_PX
    return f"{class_index} " + " ".join(f"{number:.6f}" for number in (points / size_hw[::-1]).ravel().tolist())


def export_yolo(
    root: Path, out: Path, *, fold: int | None = None, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `labels/` and `data.yaml`; the first two have `train/`, `val/` and `test/`.

    Each connected region becomes a line. Masks stay exact except for holes. An image without a defect gets an empty
    label file. Without a split.csv, everything is in `train/`.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        fold: the fold of split.csv that becomes `val`, if no image is in `val` already; None for 0. The other folds
            become `train`, and `test` stays `test`.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, split.csv leaves out an image, or two images differ only
            by their suffix.
        UsageError: split.csv has no such fold, or none beside it, or has `val` and a fold is given.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root, kept=(SPLIT_NAME,), by_stem=True)
    part_of = _parts(source, fold)
    with new_folder(out, last="data.yaml") as building:
        for image in source.images(progress):
            relative = f"images/{part_of[image.image_id]}/{image.image_id}"
            place_image(image.path, building / relative, link=link)
            lines = []
            for index, mask in enumerate(image.masks):
                lines += [format_line(index, pixel_outline(piece), mask.shape) + "\n" for piece in cut_pieces(mask)]
                source.tally.add("hole_px", count_hole_px(mask), example=image.image_id)
            source.tally.add("ignore_px", int(image.ignore.sum()), example=image.image_id)
            labels = building / label_path(relative)
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(lines), encoding="utf-8")
        # Without `path`, Ultralytics looks beside the file itself; "." would mean the folder that it was started in.
        parts = {part: f"images/{part}" for part in ("train", "val", "test") if part in part_of.values()}
        content = {**parts, "names": dict(enumerate(source.folder.class_names))}
        write_text(building / "data.yaml", OWN_LINE + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return source.report()


def _parts(source: Source, fold: int | None) -> dict[str, str]:
    """ImageId -> "train", "val" or "test"."""
    image_ids, path = source.folder.image_ids, source.folder.root / SPLIT_NAME
    if not path.is_file():
        source.tally.add("folds", example=f"There is no {SPLIT_NAME}, so everything is in train and nothing in val.")
        return dict.fromkeys(image_ids, "train")
    folds = read_split(path, image_ids)
    if unlisted := [image_id for image_id in image_ids if image_id not in folds]:
        raise DataError(f"{path}: gives no fold for {some(unlisted)}. Run: defectseg data split {source.folder.root}")
    fold_of = {image_id: str(folds[image_id]) for image_id in image_ids}
    present = set(fold_of.values())
    val = "val" if fold is None and ("val" in present or present <= {"train", "test"}) else str(fold or 0)
    if present == {val} or (val != "val" and (val not in present or "val" in present)):
        what = f"has {', '.join(sorted(present))}; {val} cannot become val, and the rest train"
        raise UsageError(f"{path} {what}.", argument="fold")
    if len(others := present - {val, "train", "test"}) > 1:
        source.tally.add("folds", len(others) - 1, example=f"{val} became val, and {len(others)} folds became train.")
    return {image_id: {val: "val", "test": "test"}.get(name, "train") for image_id, name in fold_of.items()}
