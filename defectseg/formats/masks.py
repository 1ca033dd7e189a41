"""Masks as images, in both directions: class maps, or one binary picture for each class."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME, check_class_names, read_class_names, write_class_names
from defectseg.data.folder import DataFolder
from defectseg.data.table import IGNORE_CLASS_ID, Labels
from defectseg.errors import DataError
from defectseg.files import check_is_free, new_folder
from defectseg.formats.common import (
    GIVEN_CLASSES,
    IGNORE_NAME,
    ExportReport,
    ImportReport,
    LabelledImage,
    Source,
    Tally,
    index_unique,
    number_classes,
    place_image,
    read_size,
    stem_of,
    write_data_folder,
)
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import MASK_SUFFIXES, read_class_map
from defectseg.progress import Progress, silent, some


def import_masks(
    src: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from SRC/images and SRC/masks, paired by the path without its suffix.

    Masks are class maps, one for every image: 0 sound, n for ClassId n. If all masks together hold only 0 and 255, 255
    is the one class; otherwise 255 means ignore. Or masks are masks/<class name>/<stem>.png with 0 and one other value;
    a missing file means that the class does not occur, and masks/ignore/ marks pixels to ignore. Class names come from
    SRC/classes.txt unless they are given.

    Args:
        src: the folder with images/ and masks/.
        out: the data folder to make; it must be absent or empty.
        classes: names of ClassId 1, 2 and so on; for masks in folders, the order of the folders (else by name).
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError: images and masks do not pair, differ in size, or hold numbers that are no class.
        ImageError: an image or a mask is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    for name in ("images", "masks"):
        if not (src / name).is_dir():
            raise DataError(f"{src}: has no {name}/; expected the images in images/ and the masks in masks/.")
    found = find_images([src / "images"])
    images = index_unique(((stem_of(image.image_id), image.path) for image in found), "images")
    masks, are_class_maps = _find_masks(src / "masks", images.keys())
    given, given_by = classes, GIVEN_CLASSES
    if given is None and (src / CLASSES_NAME).is_file():
        given, given_by = read_class_names(src, 0), str(src / CLASSES_NAME)
    if given is not None:
        check_class_names(given, where=given_by)
    names: Sequence[str] = ()
    class_ids: Mapping[str, int] = {}
    if not are_class_maps:
        present = sorted({name for by_class in masks.values() for name in by_class})
        names, class_ids = number_classes(present, given, present, where=str(src / "masks"), given_by=given_by)
    elif without := [image.image_id for image in found if stem_of(image.image_id) not in masks]:
        raise DataError(
            f"{src}: {len(without)} images have no mask: {some(without)}. "
            "Add masks/<stem>.png for each (all zero where the image is clean), or take the images out."
        )
    labels: Labels = {}
    for done, image in enumerate(found, start=1):
        size_hw = read_size(image)
        by_class = labels[image.image_id] = {}
        for name, path in masks[stem_of(image.image_id)].items():
            mask = read_class_map(path)
            if mask.shape != size_hw:
                raise DataError(
                    f"{path}: {mask.shape[1]}x{mask.shape[0]} px, but its image {image.path.name} has "
                    f"{size_hw[1]}x{size_hw[0]}. A mask must have the size of its image."
                )
            numbers = (np.flatnonzero(np.bincount(mask.ravel(), minlength=1)[1:]) + 1).tolist()
            if not are_class_maps and len(numbers) > 1:
                raise DataError(f"{path}: holds {some(map(str, numbers))} beside 0; expected 0 and one other value.")
            by_class |= {class_ids.get(name, number): rle.encode(mask == number) for number in numbers}
        progress(done, len(found))
    if are_class_maps:
        names, labels = _name_numbers(labels, given, given_by, {stem: one[""] for stem, one in masks.items()})
    return write_data_folder(out, found, names, labels, link=link)


def _find_masks(folder: Path, stems: Collection[str]) -> tuple[dict[str, dict[str, Path]], bool]:
    """Stem of an image -> class name -> mask, with "" for the class name of a class map; whether masks are class maps.

    Class maps lie as the images do, other masks one folder deeper, in a folder for each class.
    """
    found = find_images([folder])
    if unfit := [image.path for image in found if image.path.suffix.lower() not in MASK_SUFFIXES]:
        raise DataError(f"{unfit[0]}: a mask in a format that may smear numbers. Save masks as PNG.")
    files = index_unique(((stem_of(image.image_id), image.path) for image in found), "masks")
    are_class_maps = not files.keys().isdisjoint(stems) or not any("/" in stem for stem in files)
    masks: dict[str, dict[str, Path]] = defaultdict(dict)
    lonely = []
    for stem, path in files.items():
        name, _, image_stem = ("", "", stem) if are_class_maps or "/" not in stem else stem.partition("/")
        masks[image_stem][name] = path
        if image_stem not in stems:
            lonely.append(path.relative_to(folder).as_posix())
    if lonely:
        raise DataError(
            f"{folder.parent}: {len(lonely)} masks have no image: {some(lonely)}. Add the images, or take the masks "
            "out."
        )
    return masks, are_class_maps


def _name_numbers(
    labels: Labels, given: Sequence[str] | None, given_by: str, masks: Mapping[str, Path]
) -> tuple[Sequence[str], Labels]:
    """Names of the classes, and labels by ClassId, of class maps whose numbers have been read."""
    present = {number for by_number in labels.values() for number in by_number}
    if present == {IGNORE_CLASS_ID} and (given is None or len(given) == 1):
        labels = {image_id: {1: by[IGNORE_CLASS_ID]} if by else {} for image_id, by in labels.items()}
        present = {1}
    elif present == {IGNORE_CLASS_ID} and given is not None and given_by == GIVEN_CLASSES:
        raise DataError(
            f"{len(given)} names, but the masks hold only 0 and 255, which is one class.", argument="classes"
        )
    if given is None:
        largest = max(present - {IGNORE_CLASS_ID}, default=1)
        return tuple(f"class {n}" for n in range(1, largest + 1)), labels
    for image_id, by_number in labels.items():
        if unknown := [number for number in by_number if len(given) < number != IGNORE_CLASS_ID]:
            raise DataError(
                f"{masks[stem_of(image_id)]}: holds {unknown[0]}, but {given_by} names {len(given)} "
                f"({', '.join(given)}). Expected 0 (sound), 1 to {len(given)}, or {IGNORE_CLASS_ID} (ignore)."
            )
    return given, labels


_UNFIT_FOR_A_FOLDER = re.compile(r'^\.|[<>:"/\\|?*\x00-\x1f]|[. ]$')


def export_masks(
    root: Path, out: Path, *, per_class: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `masks/` and `classes.txt`, which `import_masks` reads.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        per_class: write `masks/<class name>/<stem>.png` with 0 and 255, and `masks/ignore/`, instead of
            `masks/<stem>.png` with the ClassId of each pixel, 0 for sound and 255 for pixels to ignore.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, two images differ only by their suffix, or a class
            cannot give a folder its name.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root, by_stem=True)
    class_names = source.folder.class_names
    if per_class:
        _check_folder_names(source.folder)
    with new_folder(out, last=CLASSES_NAME) as building:
        for image in source.images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            if per_class:
                layers = zip((*class_names, IGNORE_NAME), (*image.masks, image.ignore), strict=True)
                pictures = {name: mask.view(np.uint8) * np.uint8(255) for name, mask in layers if mask.any()}
            else:
                pictures = {"": _class_map(image, source.tally)}
            for name, pixels in pictures.items():
                _write_png(building / "masks" / name / f"{stem_of(image.image_id)}.png", pixels)
        if not (building / "masks").exists():  # nothing is labelled, but the import expects a mask
            path = building / "masks" / class_names[0] / f"{stem_of(image.image_id)}.png"
            _write_png(path, np.zeros(image.ignore.shape, np.uint8))
        write_class_names(building, class_names)
    return source.report()


def _class_map(image: LabelledImage, tally: Tally) -> NDArray[np.uint8]:
    """The ClassId of each pixel, uint8 (H, W). Where masks overlap, the smaller one wins; counts what that loses."""
    class_map = np.zeros(image.ignore.shape, np.uint8)
    for index in np.argsort(-image.masks.sum(axis=(1, 2)), kind="stable"):
        class_map[image.masks[index]] = index + 1
    class_map[image.ignore] = IGNORE_CLASS_ID
    layers = image.masks.sum(axis=0)
    tally.add("overlap_px", int(np.count_nonzero(layers > 1)), example=image.image_id)
    tally.add("under_ignore_px", int(np.count_nonzero((layers > 0) & image.ignore)), example=image.image_id)
    return class_map


def _check_folder_names(folder: DataFolder) -> None:
    taken = {IGNORE_NAME: IGNORE_NAME}
    for name in folder.class_names:
        other = taken.setdefault(name.casefold(), name)
        if other != name or _UNFIT_FOR_A_FOLDER.search(name):
            why = "cannot be" if other == name else f"differs by case alone from '{other}', and both cannot be"
            raise DataError(
                f"{folder.root}: the class '{name}' {why} the name of a folder on every system. Rename it in "
                "classes.txt, or export class maps."
            )
    stems = set(map(stem_of, folder.image_ids))
    for stem in stems:
        first, _, rest = stem.partition("/")
        if first in folder.class_names and rest in stems:
            raise DataError(
                f"{folder.root}: the folder '{first}' of images has the name of a class, so that masks/{stem}.png "
                "would be ambiguous. Rename one of them, or export class maps."
            )


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    path.write_bytes(content.tobytes())
