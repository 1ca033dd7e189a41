"""Other label formats, turned into the data folder."""

import csv
import io
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg import files
from defectseg.data import images, rle
from defectseg.data.class_maps import MASK_SUFFIXES, read_class_map
from defectseg.data.images import FoundImage, find_images
from defectseg.data.label_rows import IGNORE_CLASS_ID
from defectseg.data.labels import IMAGES_NAME, check_class_names
from defectseg.errors import DataError, OutputExistsError, ResourceError

_NAMES_SHOWN = 5

# ImageId -> number in the mask -> run-lengths; in per-class folders the number is the ClassId.
_Numbers = dict[str, dict[int, str]]


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Attributes:
        images: number of images.
        clean_images: how many of them have no mask.
        class_names: name n-1 belongs to ClassId n.
        masks_per_class: images that have the class, in the order of `class_names`.
        ignored_px: pixels marked to be ignored, over all images.
    """

    images: int
    clean_images: int
    class_names: tuple[str, ...]
    masks_per_class: tuple[int, ...]
    ignored_px: int


def import_masks(
    src: Path,
    out: Path,
    *,
    class_names: Sequence[str] | None = None,
    link: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Make a data folder from SRC/images and SRC/masks, paired by the path without its suffix.

    Masks are class maps (0 sound, n for ClassId n; 0 and 255 alone over all masks mean one class, else 255 means
    ignore), one for every image, or masks/<class name>/<stem>.png with 0 and one other value, where a missing file
    means that the class does not occur. File names stay; nothing is left at `out` unless all of it succeeds.

    Args:
        src: the folder with images/ and masks/.
        out: the data folder to make; it must be absent or empty.
        class_names: names of ClassId 1, 2 and so on; for masks in folders, the order of the folders (else by name).
        link: make links to the images instead of copies.
        report: called with the number of images done and of all images.

    Raises:
        DataError: images and masks do not pair, differ in size, or hold numbers that are no class.
        ImageError: an image or a mask that is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    if out.exists() and not (out.is_dir() and files.is_empty_folder(out)):
        raise OutputExistsError(f"{out}: exists and is not empty. Choose another --out, or remove it first.")
    found = find_images([_subfolder(src, "images")])
    masks = _find_masks(_subfolder(src, "masks"))
    stems = _by_stem(found)
    if _are_class_maps(masks, stems):
        _check_pairs(stems, masks, src)
        numbers = _read_all(found, lambda image: {0: masks[_stem(image.image_id)]}, _split_class_map, report)
        names, labels = _classes_of_maps(numbers, class_names, masks)
    else:
        folders, names = _class_folders(masks, stems, class_names, src)
        numbers = _read_all(found, lambda image: folders.get(_stem(image.image_id), {}), _split_binary, report)
        labels = numbers
    _write_data_folder(out, found, names, labels, link=link)
    return _report(found, names, labels)


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


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMES_SHOWN
    return ", ".join(ordered[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _check_pairs(stems: Mapping[str, FoundImage], masks: Mapping[str, Path], src: Path) -> None:
    if without := stems.keys() - masks.keys():
        raise DataError(
            f"{src}: {len(without)} images have no mask: {_some(stems[stem].image_id for stem in without)}. "
            "Add masks/<stem>.png for each (all zero where the image is clean), or take the images out."
        )
    _check_that_masks_have_images(masks.keys() - stems.keys(), masks, src)


def _check_that_masks_have_images(without: Iterable[str], masks: Mapping[str, Path], src: Path) -> None:
    if lonely := [masks[stem].relative_to(src / "masks").as_posix() for stem in without]:
        raise DataError(
            f"{src}: {len(lonely)} masks have no image: {_some(lonely)}. Add the images, or take the masks out."
        )


def _class_folders(
    masks: Mapping[str, Path], stems: Mapping[str, FoundImage], class_names: Sequence[str] | None, src: Path
) -> tuple[dict[str, dict[int, Path]], tuple[str, ...]]:
    """Stem -> ClassId -> mask, and the names of the classes, of masks/<class name>/<stem>.png."""
    if loose := [stem for stem in masks if "/" not in stem]:
        _check_that_masks_have_images(loose, masks, src)
    present = sorted({stem.partition("/")[0] for stem in masks})
    names = tuple(present if class_names is None else class_names)
    check_class_names(names, where="--classes" if class_names is not None else str(src / "masks"))
    if unknown := set(present) - set(names):
        raise DataError(f"{src / 'masks'}: has {_some(unknown)}, which --classes ({', '.join(names)}) does not name.")
    folders: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in masks.items():
        name, _, image_stem = stem.partition("/")
        folders[image_stem][names.index(name) + 1] = path
    lonely = folders.keys() - stems.keys()
    _check_that_masks_have_images([stem for stem in masks if stem.partition("/")[2] in lonely], masks, src)
    return folders, names


def _read_all(
    found: Sequence[FoundImage],
    masks_of: Callable[[FoundImage], Mapping[int, Path]],
    split: Callable[[NDArray[np.uint8], int, Path], dict[int, str]],
    report: Callable[[int, int], None] | None,
) -> _Numbers:
    """The masks of every image, as run-lengths by number; images are decoded for their size and soundness."""
    numbers: _Numbers = {}
    for done, image in enumerate(found, start=1):
        size_hw = images.decode(image.path).pixels.shape
        numbers[image.image_id] = {}
        for class_id, path in masks_of(image).items():
            mask = read_class_map(path)
            if mask.shape != size_hw:
                raise DataError(
                    f"{path}: {mask.shape[1]}x{mask.shape[0]} px, but its image {image.path.name} has "
                    f"{size_hw[1]}x{size_hw[0]}. A mask must have the size of its image."
                )
            numbers[image.image_id].update(split(mask, class_id, path))
        if report:
            report(done, len(found))
    return numbers


def _split_class_map(mask: NDArray[np.uint8], _class_id: int, _path: Path) -> dict[int, str]:
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=1)[1:]) + 1
    return {number: rle.encode(mask == number) for number in present.tolist()}


def _split_binary(mask: NDArray[np.uint8], class_id: int, path: Path) -> dict[int, str]:
    present = [number for number in np.unique(mask).tolist() if number]
    if len(present) > 1:
        raise DataError(f"{path}: holds {_some(map(str, present))} beside 0; expected 0 and one other value.")
    return {class_id: rle.encode(mask != 0)} if present else {}


def _classes_of_maps(
    numbers: _Numbers, class_names: Sequence[str] | None, masks: Mapping[str, Path]
) -> tuple[tuple[str, ...], _Numbers]:
    """Names of the classes, and labels by ClassId, of class maps whose numbers have been read."""
    present = {number for by_number in numbers.values() for number in by_number}
    if present == {IGNORE_CLASS_ID}:
        numbers = {image_id: {1: by[IGNORE_CLASS_ID]} if by else {} for image_id, by in numbers.items()}
        present = {1}
        if class_names is not None and len(class_names) != 1:
            raise DataError(f"The masks hold 0 and 255 alone, which is one class; --classes names {len(class_names)}.")
    largest = max(present - {IGNORE_CLASS_ID}, default=1)
    names = tuple(class_names) if class_names is not None else tuple(f"class {n}" for n in range(1, largest + 1))
    check_class_names(names, where="--classes")
    for image_id, by_number in numbers.items():
        if unknown := [number for number in by_number if len(names) < number != IGNORE_CLASS_ID]:
            raise DataError(
                f"{masks[_stem(image_id)]}: holds {unknown[0]}, but --classes names {len(names)} ({', '.join(names)}). "
                f"Expected 0 (sound), 1 to {len(names)}, or {IGNORE_CLASS_ID} (ignore)."
            )
    return names, numbers


def _write_data_folder(
    out: Path, found: Sequence[FoundImage], names: Sequence[str], labels: _Numbers, *, link: bool
) -> None:
    """Build the folder beside `out` and move it there once it is whole."""
    out = out.absolute()
    building = out.with_name(f"{files.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{out.name}")
    try:
        for image in found:
            target = building / IMAGES_NAME / image.image_id
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(image.path.resolve())
            else:
                shutil.copyfile(image.path, target)
        files.write_text(building / "classes.txt", "".join(f"{name}\n" for name in names))
        files.write_text(building / "train.csv", _table_text(labels))
        if out.exists():  # empty, but perhaps somebody's working folder: fill it, the label table last
            for name in (IMAGES_NAME, "classes.txt", "train.csv"):
                (building / name).rename(out / name)
        else:
            building.rename(out)
    except OSError as error:
        raise ResourceError(
            f"{out}: cannot be written ({error.strerror or error}). Check the disk and the path."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _table_text(labels: _Numbers) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageId", "ClassId", "EncodedPixels"])
    for image_id, by_class in sorted(labels.items()):
        writer.writerows((image_id, class_id, encoded) for class_id, encoded in sorted(by_class.items()))
    return text.getvalue()


def _report(found: Sequence[FoundImage], names: tuple[str, ...], labels: _Numbers) -> ImportReport:
    images_of_class = Counter(class_id for by_class in labels.values() for class_id in by_class)
    ignored = [by_class[IGNORE_CLASS_ID] for by_class in labels.values() if IGNORE_CLASS_ID in by_class]
    return ImportReport(
        images=len(found),
        clean_images=sum(not by_class.keys() - {IGNORE_CLASS_ID} for by_class in labels.values()),
        class_names=names,
        masks_per_class=tuple(images_of_class[class_id] for class_id in range(1, len(names) + 1)),
        ignored_px=sum(int(rle.parse_pairs(encoded)[:, 1].sum()) for encoded in ignored),
    )
