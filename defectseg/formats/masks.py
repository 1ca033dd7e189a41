"""Masks as images: class maps, or one binary picture for each class."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME, check_class_names, read_class_names, write_class_names
from defectseg.data.table import IGNORE_CLASS_ID, Labels
from defectseg.errors import DataError
from defectseg.files import check_is_free, new_folder
from defectseg.formats.common import (
    IGNORE_NAME,
    ExportReport,
    ImportReport,
    LabelledImage,
    Source,
    Tally,
    place_image,
    read_size,
    write_data_folder,
)
from defectseg.image import rle
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import MASK_SUFFIXES, read_class_map
from defectseg.progress import Progress, silent, some

_GIVEN = "the given list of classes"


def import_masks(
    src: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from SRC/images and SRC/masks, paired by the path without its suffix.

    Masks are class maps (0 sound, n for ClassId n; 0 and 255 alone over all masks mean one class, else 255 means
    ignore), one for every image, or masks/<class name>/<stem>.png with 0 and one other value, where a missing file
    means that the class does not occur; masks/ignore/ holds pixels to ignore. Names of classes come from
    SRC/classes.txt where they are not given. File names stay; nothing is left at `out` unless all of it succeeds.

    Args:
        src: the folder with images/ and masks/.
        out: the data folder to make; it must be absent or empty.
        classes: names of ClassId 1, 2 and so on; for masks in folders, the order of the folders (else by name).
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError: images and masks do not pair, differ in size, or hold numbers that are no class.
        ImageError: an image or a mask that is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    found = find_images([_subfolder(src, "images")])
    masks = _find_masks(_subfolder(src, "masks"))
    stems = _by_stem(found)
    given = _given_names(src, classes)
    if _are_class_maps(masks, stems):
        _check_pairs(stems, masks, src)
        numbers = _read_all(found, lambda image: {0: masks[_stem(image.image_id)]}, _split_class_map, progress)
        names, labels = _classes_of_maps(numbers, given, masks)
    else:
        folders, names = _class_folders(masks, stems, given, src)
        numbers = _read_all(found, lambda image: folders.get(_stem(image.image_id), {}), _split_binary, progress)
        labels = numbers
    return write_data_folder(out, found, names, labels, link=link)


@dataclass(frozen=True)
class _GivenNames:
    """Class names in order, and what gave them."""

    names: tuple[str, ...]
    where: str


def _given_names(src: Path, classes: Sequence[str] | None) -> _GivenNames | None:
    if classes is not None:
        given = _GivenNames(tuple(classes), _GIVEN)
    elif (src / CLASSES_NAME).is_file():
        given = _GivenNames(read_class_names(src, 0), str(src / CLASSES_NAME))
    else:
        return None
    check_class_names(given.names, where=given.where)
    return given


def _subfolder(src: Path, name: str) -> Path:
    if not (src / name).is_dir():
        raise DataError(f"{src}: has no {name}/; expected the images in images/ and the masks in masks/.")
    return src / name


def _find_masks(folder: Path) -> dict[str, Path]:
    """Path below masks/ without its suffix -> mask."""
    masks: dict[str, Path] = {}
    for image in find_images([folder]):
        if image.path.suffix.lower() not in MASK_SUFFIXES:
            raise DataError(f"{image.path}: a mask in a format that may smear numbers. Save masks as PNG.")
        other = masks.setdefault(_stem(image.image_id), image.path)
        if other != image.path:
            raise DataError(f"{other} and {image.path.name}: two masks of one name. Keep the one that is right.")
    return masks


def _stem(image_id: str) -> str:
    return image_id.rpartition(".")[0]


def _by_stem(found: Iterable[FoundImage]) -> dict[str, FoundImage]:
    stems: dict[str, FoundImage] = {}
    for image in found:
        other = stems.setdefault(_stem(image.image_id), image)
        if other != image:
            raise DataError(
                f"{other.path} and {image.path.name}: two images of one name; masks cannot tell them apart."
            )
    return stems


def _are_class_maps(masks: Mapping[str, Path], stems: Mapping[str, FoundImage]) -> bool:
    """Masks lie as the images do, or else one folder deeper, in a folder for each class."""
    return not masks.keys().isdisjoint(stems) or not any("/" in stem for stem in masks)


def _check_pairs(stems: Mapping[str, FoundImage], masks: Mapping[str, Path], src: Path) -> None:
    if without := stems.keys() - masks.keys():
        raise DataError(
            f"{src}: {len(without)} images have no mask: {some(stems[stem].image_id for stem in without)}. "
            "Add masks/<stem>.png for each (all zero where the image is clean), or take the images out."
        )
    _check_that_masks_have_images(masks.keys() - stems.keys(), masks, src)


def _check_that_masks_have_images(without: Iterable[str], masks: Mapping[str, Path], src: Path) -> None:
    if lonely := [masks[stem].relative_to(src / "masks").as_posix() for stem in without]:
        raise DataError(
            f"{src}: {len(lonely)} masks have no image: {some(lonely)}. Add the images, or take the masks out."
        )


def _class_folders(
    masks: Mapping[str, Path], stems: Mapping[str, FoundImage], given: _GivenNames | None, src: Path
) -> tuple[dict[str, dict[int, Path]], tuple[str, ...]]:
    """Stem -> ClassId -> mask, and the names of the classes, of masks/<class name>/<stem>.png."""
    if loose := [stem for stem in masks if "/" not in stem]:
        _check_that_masks_have_images(loose, masks, src)
    present = {stem.partition("/")[0] for stem in masks}
    names = tuple(sorted(present - {IGNORE_NAME})) if given is None else given.names
    where = str(src / "masks") if given is None else given.where
    check_class_names(names, where=where)
    if unknown := present - {*names, IGNORE_NAME}:
        raise DataError(f"{src / 'masks'}: has {some(unknown)}, which {where} ({', '.join(names)}) does not name.")
    class_ids = {IGNORE_NAME: IGNORE_CLASS_ID} | {name: number for number, name in enumerate(names, start=1)}
    folders: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in masks.items():
        name, _, image_stem = stem.partition("/")
        folders[image_stem][class_ids[name]] = path
    lonely = folders.keys() - stems.keys()
    _check_that_masks_have_images([stem for stem in masks if stem.partition("/")[2] in lonely], masks, src)
    return folders, names


def _read_all(
    found: Sequence[FoundImage],
    masks_of: Callable[[FoundImage], Mapping[int, Path]],
    split: Callable[[NDArray[np.uint8], int, Path], dict[int, str]],
    progress: Progress,
) -> Labels:
    """The masks of every image, as run-lengths by number; images are decoded for their size and soundness."""
    numbers: Labels = {}
    for done, image in enumerate(found, start=1):
        size_hw = read_size(image)
        numbers[image.image_id] = {}
        for class_id, path in masks_of(image).items():
            mask = read_class_map(path)
            if mask.shape != size_hw:
                raise DataError(
                    f"{path}: {mask.shape[1]}x{mask.shape[0]} px, but its image {image.path.name} has "
                    f"{size_hw[1]}x{size_hw[0]}. A mask must have the size of its image."
                )
            numbers[image.image_id].update(split(mask, class_id, path))
        progress(done, len(found))
    return numbers


def _split_class_map(mask: NDArray[np.uint8], _class_id: int, _path: Path) -> dict[int, str]:
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=1)[1:]) + 1
    return {number: rle.encode(mask == number) for number in present.tolist()}


def _split_binary(mask: NDArray[np.uint8], class_id: int, path: Path) -> dict[int, str]:
    present = [number for number in np.unique(mask).tolist() if number]
    if len(present) > 1:
        raise DataError(f"{path}: holds {some(map(str, present))} beside 0; expected 0 and one other value.")
    return {class_id: rle.encode(mask != 0)} if present else {}


def _classes_of_maps(
    numbers: Labels, given: _GivenNames | None, masks: Mapping[str, Path]
) -> tuple[tuple[str, ...], Labels]:
    """Names of the classes, and labels by ClassId, of class maps whose numbers have been read."""
    present = {number for by_number in numbers.values() for number in by_number}
    if present == {IGNORE_CLASS_ID} and (given is None or len(given.names) == 1):
        numbers = {image_id: {1: by[IGNORE_CLASS_ID]} if by else {} for image_id, by in numbers.items()}
        present = {1}
    elif present == {IGNORE_CLASS_ID} and given is not None and given.where == _GIVEN:
        raise DataError(
            f"{len(given.names)} names, but the masks hold 0 and 255 alone, which is one class.", argument="classes"
        )
    largest = max(present - {IGNORE_CLASS_ID}, default=1)
    if given is None:
        given = _GivenNames(tuple(f"class {n}" for n in range(1, largest + 1)), "")
    names = given.names
    for image_id, by_number in numbers.items():
        if unknown := [number for number in by_number if len(names) < number != IGNORE_CLASS_ID]:
            raise DataError(
                f"{masks[_stem(image_id)]}: holds {unknown[0]}, but {given.where} names {len(names)} "
                f"({', '.join(names)}). Expected 0 (sound), 1 to {len(names)}, or {IGNORE_CLASS_ID} (ignore)."
            )
    return names, numbers


_UNFIT_FOR_A_FOLDER = re.compile(r'^\.|[<>:"/\\|?*\x00-\x1f]|[. ]$')


def export_masks(
    root: Path, out: Path, *, per_class: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `masks/` and `classes.txt`, which `import_masks` reads.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        per_class: `masks/<class name>/<stem>.png` with 0 and 255, and `masks/ignore/`; else `masks/<stem>.png` with
            the ClassId of each pixel, 0 for sound and 255 for pixels to ignore.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, two images differ by their suffix alone, or a class
            cannot give a folder its name.
        ImageError: an image is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    source = Source(root)
    source.check_stems("masks")
    if per_class:
        _check_folder_names(source)
    with new_folder(out, last=CLASSES_NAME) as building:
        for image in source.labelled_images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            pictures = (
                _binary_masks(image, source.folder.class_names)
                if per_class
                else {"": make_class_map(image, source.tally)}
            )
            for folder, pixels in pictures.items():
                _write_png(building / "masks" / folder / f"{image.image_id.rpartition('.')[0]}.png", pixels)
        if not (building / "masks").exists():  # per class, and nothing anywhere: import wants to see a mask
            first = source.folder.image_ids[0].rpartition(".")[0]
            _write_png(building / "masks" / source.folder.class_names[0] / f"{first}.png", np.zeros_like(image.ignore))
        write_class_names(building, source.folder.class_names)
    return source.report()


def make_class_map(image: LabelledImage, tally: Tally) -> NDArray[np.uint8]:
    """The ClassId of each pixel, uint8 (H, W); where masks overlap, that of the smaller one. Counts what that loses."""
    areas_px = image.masks.sum(axis=(1, 2))
    class_map = np.zeros(image.size_hw, np.uint8)
    for index in np.argsort(-areas_px, kind="stable"):
        class_map[image.masks[index]] = index + 1
    class_map[image.ignore] = IGNORE_CLASS_ID
    layers = image.masks.sum(axis=0)
    tally.add("overlap_px", int(np.count_nonzero(layers > 1)), example=image.image_id)
    tally.add("under_ignore_px", int(np.count_nonzero((layers > 0) & image.ignore)), example=image.image_id)
    return class_map


def _binary_masks(image: LabelledImage, class_names: tuple[str, ...]) -> Mapping[str, NDArray[np.uint8]]:
    layers = zip((*class_names, IGNORE_NAME), (*image.masks, image.ignore), strict=True)
    return {name: mask.view(np.uint8) * np.uint8(255) for name, mask in layers if mask.any()}


def _check_folder_names(source: Source) -> None:
    folder = source.folder
    taken = {IGNORE_NAME: IGNORE_NAME}
    for name in folder.class_names:
        other = taken.setdefault(name.casefold(), name)
        if other != name or _UNFIT_FOR_A_FOLDER.search(name):
            why = "cannot be" if other == name else f"differs by case alone from '{other}', and both cannot be"
            raise DataError(
                f"{folder.root}: the class '{name}' {why} the name of a folder on every system. Rename it in "
                "classes.txt, or export class maps."
            )
    stems = {image_id.rpartition(".")[0] for image_id in folder.image_ids}
    for stem in stems:
        first, _, rest = stem.partition("/")
        if first in folder.class_names and rest in stems:
            raise DataError(
                f"{folder.root}: the folder '{first}' of images has the name of a class, so that masks/{stem}.png "
                "would be ambiguous. Rename one of them, or export class maps."
            )


def _write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels.astype(np.uint8))
    assert encoded
    path.write_bytes(content.tobytes())
