"""YOLO segmentation labels into a data folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from defectseg.data.classes import CLASSES_NAME
from defectseg.data.table import Labels
from defectseg.errors import DataError, LabelError, UsageError
from defectseg.files import check_is_free
from defectseg.formats.common import (
    Canvas,
    ImportReport,
    Tally,
    read_size,
    tidy_names,
    write_data_folder,
)
from defectseg.formats.polygons import paint_pixel_outlines
from defectseg.formats.yolo.dataset import YoloSet, read_yolo_set
from defectseg.formats.yolo.labels import YoloShape, label_path, parse_lines
from defectseg.image.find import FoundImage, find_images
from defectseg.progress import Progress, silent, some

VAL_FOLD, TRAIN_FOLD = 0, 1

LOSSES = {
    "boxes": "{count} lines have a box and no outline; the pixels in these boxes are marked to be ignored, where no "
    "mask explains them (for example {examples}).",
    "no_pixel": "{count} outlines lie outside their image (for example {examples}).",
    "united": "{count} outlines were united with others of their class in their image, since a label table has one "
    "mask for each class.",
    "no_label_file": "{count} images have no label file and count as clean (for example {examples}).",
    "no_image": "{count} label files have no image and were left out (for example {examples}).",
    "test_images": "{count} images of the test part were left out; import them into a folder of their own, "
    "as the part test.",
}


def import_yolo(
    src: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    part: str | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from a YOLO segmentation data set.

    ClassId is YOLO's class plus 1, or follows `classes`. An image without a label file, or with an empty one, is
    clean. Where the set has both train and val, split.csv makes val fold 0, which `train` holds back unless told
    otherwise, and train fold 1. ImageIds are paths below the folders of images.

    Args:
        src: the folder with data.yaml, or the file itself.
        out: the data folder to make; it must be absent or empty.
        classes: the classes of data.yaml in the order that they are to have.
        part: "train", "val" or "test" to import that alone, without a split; None for train and val.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError: data.yaml is missing or wrong, images share a name, or no image has labels.
        LabelError: a line is not valid; names the file and the line.
        ImageError: an image is not whole.
        UsageError: the set has no such part.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    yolo_set = read_yolo_set(src)
    names, class_ids = _classes(yolo_set, classes)
    tally = Tally()
    found, folds = _images(yolo_set, part, tally)
    files = {image.image_id: _label_file(image, yolo_set) for image in found}
    _check_label_files(files, found, yolo_set, tally)
    labels: Labels = {}
    for done, image in enumerate(found, start=1):
        canvas = Canvas(read_size(image))
        for shape in _read_shapes(files[image.image_id], len(yolo_set.names)):
            _paint(canvas, class_ids[shape.class_index], shape, tally, image.image_id)
        labels[image.image_id] = canvas.labels()
        progress(done, len(found))
    return write_data_folder(out, found, names, labels, link=link, folds=folds, lost=tally.losses(LOSSES))


def _classes(yolo_set: YoloSet, classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """Names of ClassId 1, 2 and so on, and the ClassId of each class of the set."""
    if classes is None:
        return yolo_set.names, list(range(1, len(yolo_set.names) + 1))
    names = tidy_names(classes, where="the given list of classes")
    if unknown := set(yolo_set.names) - set(names):
        raise DataError(
            f"{yolo_set.yaml_path}: has {some(unknown)}, but only {', '.join(names)} are given.", argument="classes"
        )
    return names, [names.index(name) + 1 for name in yolo_set.names]


def _images(yolo_set: YoloSet, part: str | None, tally: Tally) -> tuple[list[FoundImage], Mapping[str, int] | None]:
    """The images to import, and their folds where train and val are both among them."""
    folders = yolo_set.folders
    if part is not None:
        if part not in folders:
            raise UsageError(f"{yolo_set.yaml_path} has {', '.join(folders)}, but no {part}.", argument="part")
        return find_images(folders[part]), None
    if "test" in folders:
        tally.add("test_images", len(find_images(folders["test"])))
    val, train = folders.get("val", ()), folders.get("train", ())
    if not val and not train:
        raise UsageError(f"{yolo_set.yaml_path}: has a test part alone.", go_on={"part": "test"})
    found = find_images([*val, *train])
    in_val = {image.image_id for image in found if any(image.path.is_relative_to(folder) for folder in val)}
    if not train or not in_val or len(in_val) == len(found):
        return found, None
    return found, {image.image_id: VAL_FOLD if image.image_id in in_val else TRAIN_FOLD for image in found}


def _label_file(image: FoundImage, yolo_set: YoloSet) -> Path:
    return yolo_set.root / label_path(image.path.relative_to(yolo_set.root).as_posix())


def _check_label_files(files: Mapping[str, Path], found: Sequence[FoundImage], yolo_set: YoloSet, tally: Tally) -> None:
    """Refuse images that share a label file, and a set without any; count what does not pair."""
    image_of: dict[Path, FoundImage] = {}
    for image in found:
        other = image_of.setdefault(files[image.image_id], image)
        if other is not image:
            raise DataError(
                f"{other.path} and {image.path.name}: two images of one name; {files[image.image_id].name} cannot tell "
                "them apart. Rename one image and its labels."
            )
    without = [image_id for image_id, file in files.items() if not file.is_file()]
    if len(without) == len(found):
        raise DataError(
            f"{yolo_set.yaml_path}: none of the {len(found)} images has labels; expected those of {found[0].path} in "
            f"{files[found[0].image_id]}."
        )
    for image_id in without:
        tally.add("no_label_file", example=image_id)
    for folder in sorted({file.parent for file in files.values() if file.parent.is_dir()}):
        for file in sorted(folder.glob("*.txt")):
            if file not in image_of and file.name != CLASSES_NAME:
                tally.add("no_image", example=file.name)


def _read_shapes(file: Path, num_classes: int) -> list[YoloShape]:
    if not file.is_file():
        return []
    try:
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise LabelError(f"{file}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{file}: not text; expected a class and x, y pairs on each line.") from error
    return parse_lines(lines, num_classes=num_classes, where=str(file))


def _paint(canvas: Canvas, class_id: int, shape: YoloShape, tally: Tally, image_id: str) -> None:
    height, width = canvas.size_hw
    if shape.is_box:
        tally.add("boxes", example=image_id)
        (x, y), (box_width, box_height) = shape.points * (width, height)
        canvas.add_box(x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2)
        return
    mask = paint_pixel_outlines([shape.pixels(canvas.size_hw)], canvas.size_hw)
    if not mask.any():
        tally.add("no_pixel", example=image_id)
    elif not canvas.add(class_id, mask):
        tally.add("united")
