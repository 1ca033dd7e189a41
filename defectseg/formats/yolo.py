"""YOLO segmentation data sets, in both directions: data.yaml, images, and a text file of labels for each image.

A line of labels is `class x1 y1 x2 y2 ...` in fractions of the image's width and height; classes count from 0. Outlines
run through the border pixels, which belong to the shape. A point lies in the pixel that its coordinates, in pixels, are
cut down to. Ultralytics' own tools make masks for training by this rule (polygon2mask).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME
from defectseg.data.split import SPLIT_NAME, read_split
from defectseg.data.table import Labels
from defectseg.errors import DataError, LabelError, UsageError
from defectseg.files import check_is_free, new_folder, write_text
from defectseg.formats.common import (
    Canvas,
    ExportReport,
    ImportReport,
    Source,
    Tally,
    index_unique,
    number_classes,
    place_image,
    read_size,
    read_text,
    write_data_folder,
)
from defectseg.formats.polygons import count_hole_px, cut_pieces, paint_pixel_outline, pixel_outline
from defectseg.image.find import FoundImage, find_images
from defectseg.progress import Progress, silent

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_VAL_FOLD, _TRAIN_FOLD = 0, 1
_BEYOND = 0.1  # tools let points stray over the border of the image
_ROUNDING_PX = 0.01  # 333 of 1000 px written as 0.333000 must not become pixel 332; five digits do for 2000 px
# Corners within a pixel, so that a shape of one or two pixels still has three different points.
_WITHIN_PX = np.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]])


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
    clean. Where the set has both train and val, split.csv makes val fold 0, which `train` holds out by default, and
    train fold 1. ImageIds are paths below the folders of images.

    Args:
        src: the folder with data.yaml, or the file itself.
        out: the data folder to make; it must be absent or empty.
        classes: the classes of data.yaml in the wanted order.
        part: "train", "val" or "test" to import that part alone, without a split; None for train and val.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError: data.yaml is missing or wrong, images share a name, or no image has labels.
        LabelError: a line is not valid; names the file and the line.
        ImageError: an image is not whole.
        UsageError: the set has no such part.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    path = _find_yaml(src)
    document = _read_yaml(path)
    own = _names(document, path)
    names, class_ids = number_classes(own, classes, own, where=f"{path}: names")
    root, folders = _image_folders(document, path)
    tally = Tally()
    found, folds = _images(path, folders, part, tally)
    label_files = _label_files(found, root, path, tally)
    labels: Labels = {}
    for done, image in enumerate(found, start=1):
        height, width = read_size(image)
        canvas = Canvas((height, width), tally)
        for class_index, points in _read_lines(label_files[image.image_id], len(own)):
            if len(points) == 2:
                (x, y), (box_width, box_height) = points * (width, height)
                canvas.add_box(x - box_width / 2, y - box_height / 2, box_width, box_height, example=image.image_id)
            else:
                pixels = np.floor(points * (width, height) + _ROUNDING_PX).astype(np.intp)
                mask = paint_pixel_outline(pixels, canvas.size_hw)
                canvas.add_mask(class_ids[own[class_index]], mask, example=image.image_id)
        labels[image.image_id] = canvas.labels()
        progress(done, len(found))
    return write_data_folder(out, found, names, labels, link=link, folds=folds, lost=tally.losses())


def _find_yaml(src: Path) -> Path:
    if src.is_file() and src.suffix.lower() in (".yaml", ".yml"):
        return src
    if not src.is_dir():
        raise DataError(f"{src}: no such folder; expected a YOLO data set with {_YAML_NAMES[0]}.")
    path = next((src / name for name in _YAML_NAMES if (src / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{src}: has no {_YAML_NAMES[0]}; expected it beside images/ and labels/, with train, val and names. "
            "If it has another name, give the file itself."
        )
    return path


def _read_yaml(path: Path) -> Mapping[str, Any]:
    expected = "expected the keys train, val and names"
    try:
        document = yaml.safe_load(read_text(path, expected))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())}); {expected}.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds no mapping; {expected}.")
    if "kpt_shape" in document:
        raise DataError(f"{path}: describes key points ('kpt_shape'), not outlines. Export as YOLO segmentation.")
    return document


def _names(document: Mapping[str, Any], path: Path) -> list[str]:
    names = document.get("names")
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        expected = [str(number) for number in range(len(names))]
        if by_number.keys() != set(expected):
            raise DataError(f"{path}: names has the keys {', '.join(by_number)}; expected 0 to {len(names) - 1}.")
        names = [by_number[number] for number in expected]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' is {names!r}; expected a list of class names, or a mapping from 0 on.")
    count = document.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: nc is {count}, but names has {len(names)}. Mend the one that is wrong.")
    return list(map(str, names))


def _image_folders(document: Mapping[str, Any], path: Path) -> tuple[Path, dict[str, list[Path]]]:
    """The root of the data set, and "train", "val" and "test", as far as data.yaml names them -> folders of images."""
    root = _below(path.parent, document.get("path")) or path.parent
    folders: dict[str, list[Path]] = {}
    for part in ("train", "val", "test"):
        entries = document.get(part) or (document.get("valid") if part == "val" else None) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            folder = _below(root, entry)
            if folder is None:
                raise DataError(
                    f"{path}: {part} is {entry!r}, which is no folder below {root}. Expected a folder of images, "
                    "written relative to the data set (a list of files in a .txt is not read)."
                )
            folders.setdefault(part, []).append(folder)
    if not folders:
        raise DataError(f"{path}: has neither 'train', 'val' nor 'test'; expected folders of images there.")
    return root, folders


def _below(root: Path, entry: Any) -> Path | None:
    """The folder below `root` that an entry names; None where there is none.

    Roboflow writes ../train/images for train/images, and other tools the absolute path on the machine that wrote the
    set. So leading parts are left off until a folder is found. Nothing above `root` is ever looked at.
    """
    if not isinstance(entry, str):
        return None
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    if not parts:
        return root
    candidates = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((folder for folder in candidates if folder.is_dir()), None)


def _images(
    path: Path, folders: Mapping[str, Sequence[Path]], part: str | None, tally: Tally
) -> tuple[list[FoundImage], dict[str, int] | None]:
    """The images to import, and their folds where train and val are both among them."""
    if part is not None:
        if part not in folders:
            raise UsageError(f"{path} has {', '.join(folders)}, but no {part}.", argument="part")
        return find_images(folders[part]), None
    if "test" in folders:
        tally.add("test_images", len(find_images(folders["test"])))
    val, train = folders.get("val", ()), folders.get("train", ())
    if not val and not train:
        raise UsageError(f"{path}: has a test part alone.", go_on={"part": "test"})
    found = find_images([*val, *train])
    in_val = [any(image.path.is_relative_to(folder) for folder in val) for image in found]
    if not train or all(in_val) or not any(in_val):
        return found, None
    folds = [_VAL_FOLD if held_out else _TRAIN_FOLD for held_out in in_val]
    return found, {image.image_id: fold for image, fold in zip(found, folds, strict=True)}


def _label_files(found: Sequence[FoundImage], root: Path, path: Path, tally: Tally) -> dict[str, Path]:
    """ImageId -> label file, which may be absent. Refuses a set without any labels, and counts what does not pair."""
    files = {image.image_id: root / label_path(image.path.relative_to(root).as_posix()) for image in found}
    index_unique(((str(files[image.image_id]), image.path) for image in found), "images")
    without = [image_id for image_id, file in files.items() if not file.is_file()]
    if len(without) == len(found):
        raise DataError(
            f"{path}: none of the {len(found)} images has labels; expected those of {found[0].path} in "
            f"{files[found[0].image_id]}."
        )
    for image_id in without:
        tally.add("no_label_file", example=image_id)
    known = set(files.values())
    for folder in sorted({file.parent for file in known}):
        for file in sorted(folder.glob("*.txt")):
            if file not in known and file.name != CLASSES_NAME:
                tally.add("no_image", example=file.name)
    return files


def label_path(image_path: str) -> str:
    """The label file of an image, both relative to the data set: the last folder `images` becomes `labels`."""
    before, found, after = f"/{image_path}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else after
    return path.lstrip("/").rpartition(".")[0] + ".txt"


def _read_lines(file: Path, num_classes: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """What `parse_line` makes of each line of a label file; nothing where there is no file."""
    lines = read_text(file, "expected a class and x, y pairs on each line").splitlines() if file.is_file() else ()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_line(line, num_classes=num_classes, where=f"{file}, line {number}")


def parse_line(text: str, *, num_classes: int, where: str) -> tuple[int, NDArray[np.float64]]:
    """Read one line of a label file.

    Returns:
        the class, from 0, and the points, float64 (N, 2): x and y in fractions of the image. An outline has three
        points or more; a box has two, its centre and its size.

    Raises:
        LabelError: it is no outline and no box, its class is unknown, or its numbers are no fractions; names `where`.
    """
    words = text.split()
    try:
        numbers = np.array(words, np.float64)
    except ValueError:
        raise LabelError(f"{where}: {text[:60]!r}; expected a class and x, y pairs, all numbers.") from None
    points = numbers[1:]
    if numbers[0] not in range(num_classes):
        raise LabelError(f"{where}: class {words[0]}; data.yaml names {num_classes}, counted from 0.")
    if len(points) % 2 or len(points) < 4:
        raise LabelError(
            f"{where}: has {len(points)} numbers after the class; expected x, y pairs of three points or more, or the "
            "four of a box. Where the last one is a confidence, write the labels again without it."
        )
    beyond = ~((points >= -_BEYOND) & (points <= 1 + _BEYOND))  # nan too
    if beyond.any():
        raise LabelError(
            f"{where}: holds {points[beyond][0]:g}; expected fractions of width and height, 0 to 1, not pixels."
        )
    return int(numbers[0]), points.reshape(-1, 2)


def format_line(class_index: int, outline: NDArray[np.intp], size_hw: tuple[int, ...]) -> str:
    """The line of a shape whose border pixels are `outline`, int (N, 2), x and y."""
    if len(outline) < len(_WITHIN_PX):
        last = np.repeat(outline[-1:], len(_WITHIN_PX) - len(outline), axis=0)
        points = np.concatenate([outline, last]) + _WITHIN_PX
    else:
        points = outline + 0.5
    return f"{class_index} " + " ".join(f"{number:.6f}" for number in (points / size_hw[::-1]).ravel().tolist())


def export_yolo(
    root: Path, out: Path, *, fold: int = 0, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `labels/` and `data.yaml`; the first two have `train/` and `val/`.

    Each connected region becomes a line. Masks stay exact except for holes. Without a split.csv, everything is in
    `train/`, and data.yaml has no `val`.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        fold: the fold of split.csv that becomes `val`; the others become `train`.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, split.csv leaves out an image, or two images differ only
            by their suffix.
        UsageError: split.csv has no such fold.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root, kept=(SPLIT_NAME,), by_stem=True)
    val = _val_images(source, fold)
    with new_folder(out, last="data.yaml") as building:
        for image in source.images(progress):
            relative = f"images/{'val' if image.image_id in val else 'train'}/{image.image_id}"
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
            f"there is no fold {fold}; {path} has {', '.join(sorted(map(str, present)))}.", argument="fold"
        )
    if len(present) == 1:
        raise DataError(f"{path}: puts every image into fold {fold}, which leaves nothing to train on.")
    if len(present) > 2:
        text = f"Of {len(present)} folds, {fold} became val and the others train."
        source.tally.add("folds", len(present) - 2, example=text)
    return frozenset(image_id for image_id in source.folder.image_ids if folds[image_id] == fold)
