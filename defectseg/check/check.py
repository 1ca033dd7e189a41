"""What is wrong with a data folder: everything at once, where `open_data_folder` stops at the first fault."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.check.image import MOSTLY_DARK, Inspection, inspect_image, unreadable
from defectseg.check.pairs import CopyPair, LabelledImages, disagreements, name_pairs
from defectseg.check.report import CheckReport, by_count, summarise
from defectseg.check.split import check_groups_and_split
from defectseg.copies.descriptors import Descriptors, describe_all
from defectseg.copies.find import find_copies
from defectseg.copies.strips import find_neighbours
from defectseg.data.classes import CLASSES_NAME, check_class_names, read_class_names
from defectseg.data.folder import (
    IMAGES_NAME,
    find_table,
    images_folder,
)
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES, Fault, LabelRow, error, scan_label_rows, warning
from defectseg.errors import DataError, ImageError, UsageError
from defectseg.image import read
from defectseg.image.find import IMAGE_SUFFIXES, FoundImage, find_images
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.machine import cores
from defectseg.progress import Progress, silent

_MOST_SINGLE_WARNINGS = 20  # beyond this a kind of warning is the rule in this folder, and one line says so


def check_data_folder(
    root: Path, *, against: Path | None = None, bit_depth: int | None = None, progress: Progress = silent
) -> CheckReport:
    """Decode every image and every mask of a data folder, compare the images, and list what is wrong.

    Args:
        root: the folder that holds train_images/ and train.csv or train.csv.gz.
        against: another data folder, or a folder of images, none of which should be a copy of one in `root`.
        bit_depth: of the 16-bit files of both, 9 to 16; None: as they say themselves.
        progress: counts the images.

    Raises:
        DataError: there is no such folder, image or label table, or the table's header is unknown.
        UsageError: `against` is the same folder.
    """
    table_path = find_table(root)
    found, faulty = _find(images_folder(root))
    others = None if against is None else _find_others(root, against)
    scan = scan_label_rows(table_path)
    names, name_faults = _class_names(root, scan.rows)
    rows_of = _by_image(scan.rows)
    missing = _missing_images(rows_of, found)
    own = len(found)
    total = own + (0 if others is None else len(others.found))

    def inspect(image: FoundImage) -> Inspection:
        return inspect_image(image, rows_of.get(image.image_id, ()), names, table_path, bit_depth)

    inspections, descriptors, levels = _inspect_all(found, inspect, lambda done: progress(done, total))
    inspections += [Inspection(image.image_id, faults=(unreadable(image, image.fault),)) for image in faulty]
    size_of = {one.image_id: one.size_hw for one in inspections if one.size_hw is not None}
    labelled = LabelledImages([image.image_id for image in found], size_of, rows_of)
    duplicates = name_pairs(find_copies(descriptors), labelled, labelled)
    split_faults, leaks = check_groups_and_split(root, labelled.ids, duplicates, find_neighbours(descriptors))
    faults = [*scan.faults, *name_faults, *missing.values(), *split_faults, *disagreements(duplicates)]
    if others is not None:
        leaks, other_faults = _compare(
            descriptors, labelled, others, bit_depth, lambda done: progress(own + done, total)
        )
        faults += other_faults
    faults += [fault for one in inspections for fault in one.faults]
    low = find_low_bit_depth(Counter(one.brightest16 for one in inspections))
    faults += [*_notes(inspections), *_odd_sizes(size_of), *_dark_images(inspections), *_low_bit_depth(low)]
    return summarise(
        inspections,
        names,
        scan,
        levels,
        missing_images=len(missing),
        faults=faults,
        duplicates=duplicates,
        leaks=leaks,
        low_bit_depth=low,
    )


@dataclass(frozen=True)
class _Others:
    """The images to compare with, and the faulty ones; `rows_of` is None where they have no labels."""

    root: Path
    found: Sequence[FoundImage]
    faulty: Sequence[FoundImage]
    rows_of: Mapping[str, Sequence[LabelRow]] | None


def _find_others(root: Path, against: Path) -> _Others:
    """The images of another data folder, or of a plain folder."""
    if not against.is_dir():
        raise DataError(f"{against}: no such folder; expected a data folder or a folder of images.", argument="against")
    own = (root / IMAGES_NAME).resolve()
    if against.resolve() == root.resolve() or against.resolve().is_relative_to(own):
        raise UsageError(f"{against} is the folder itself, whose own copies are listed anyway.", argument="against")
    folder = against / IMAGES_NAME if (against / IMAGES_NAME).is_dir() else against
    tables = [against / name for name in TABLE_NAMES if (against / name).is_file()]
    rows_of = None
    if folder != against and tables:
        rows_of = _by_image(scan_label_rows(tables[0]).rows)
    # A folder around `root` holds its images too; a link to one elsewhere is a copy like any other.
    found, faulty = (
        [image for image in images if not image.path.parent.resolve().is_relative_to(own)] for images in _find(folder)
    )
    return _Others(against, found, faulty, rows_of)


def _find(folder: Path) -> tuple[list[FoundImage], list[FoundImage]]:
    """The images below a folder, and the faulty ones."""
    found = find_images([folder], keep_faulty=True)
    return [image for image in found if not image.fault], [image for image in found if image.fault]


def _compare(
    descriptors: Descriptors,
    labelled: LabelledImages,
    others: _Others,
    bit_depth: int | None,
    advance: Callable[[int], None],
) -> tuple[list[CopyPair], list[Fault]]:
    """Leaks into or from the other images, and what is wrong with those or with the masks of copies."""
    paths = [image.path for image in others.found]
    other_descriptors, unread = describe_all(
        paths, reduced=False, bit_depth=bit_depth, progress=lambda done, total, text="": advance(done)
    )
    copies = find_copies(descriptors, other_descriptors)
    ids = [image.image_id for image in others.found]
    sizes = {}
    if others.rows_of is not None:  # the size is needed for their masks only
        for index in {copy.second for copy in copies}:
            with suppress(ImageError):
                sizes[ids[index]] = read.decode(paths[index], bit_depth=bit_depth).pixels.shape
    leaks = name_pairs(copies, labelled, LabelledImages(ids, sizes, others.rows_of))
    faults = [
        warning("against", f"Not compared: {message}", "Replace the file, or take it out.")
        for message in [*(image.fault for image in others.faulty), *unread.values()]
    ]
    return leaks, faults + disagreements(leaks, f"{others.root}: ")


def _by_image(rows: Sequence[LabelRow]) -> dict[str, list[LabelRow]]:
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    for row in rows:
        rows_of[row.image_id].append(row)
    return dict(rows_of)


def _inspect_all(
    found: Sequence[FoundImage], inspect: Callable[[FoundImage], Inspection], advance: Callable[[int], None]
) -> tuple[list[Inspection], Descriptors, NDArray[np.int64]]:
    """Inspect the images on all cores; their inspections, descriptors, and the sum of their grey levels, int64 (256,).

    The large arrays of an inspection are taken out of it.
    """
    inspections: list[Inspection] = []
    descriptors = Descriptors(len(found))
    levels = np.zeros(256, np.int64)
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        for index, one in enumerate(pool.map(inspect, found)):
            if one.descriptor is not None and one.levels is not None:
                descriptors[index] = one.descriptor
                levels += one.levels
            inspections.append(replace(one, descriptor=None, levels=None))
            advance(index + 1)
    return inspections, descriptors, levels


def _class_names(root: Path, rows: Sequence[LabelRow]) -> tuple[tuple[str, ...], list[Fault]]:
    largest = max((row.class_id for row in rows if row.encoded and row.class_id != IGNORE_CLASS_ID), default=0)
    try:
        names = read_class_names(root, largest)
        check_class_names(names, where=str(root / CLASSES_NAME))
    except DataError as problem:
        remedy = "Write one name on each line of classes.txt; line n names ClassId n."
        return tuple(f"class {number}" for number in range(1, largest + 1)), [error("classes", str(problem), remedy)]
    return names, []


def _missing_images(rows_of: Mapping[str, Sequence[LabelRow]], found: Sequence[FoundImage]) -> dict[str, Fault]:
    """ImageId -> fault, of the images that have a row and no file."""
    present = {image.image_id for image in found}
    alike = {_loose(image_id): image_id for image_id in present}
    missing = {}
    for image_id in rows_of.keys() - present:
        other = alike.get(_loose(image_id))
        remedy = f"The folder has {other!r}: write it so." if other else "Add the image, or take its rows out."
        message = f"{image_id!r} is not below train_images/."
        missing[image_id] = error("missing-image", message, remedy, image=image_id, row=rows_of[image_id][0].line)
    return missing


def _loose(image_id: str) -> str:
    """An ImageId without what people get wrong: case, suffix, blanks, folder."""
    name = image_id.strip().lower().rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix}" in IMAGE_SUFFIXES else name


def _notes(inspections: Sequence[Inspection]) -> Iterator[Fault]:
    """One warning for each kind of note that decoding made."""
    ids_of: dict[str, list[str]] = defaultdict(list)
    for one in inspections:
        for note in one.notes:
            ids_of[note.partition(";")[0]].append(one.image_id)
    for note, image_ids in sorted(ids_of.items()):
        yield warning(
            "image-note",
            f"{note}: {len(image_ids)} images, the first {image_ids[0]}.",
            "Make sure that the masks were drawn on the picture as it is read here; see docs/formats.md.",
            image=image_ids[0],
        )


def _low_bit_depth(low: LowBitDepth | None) -> Iterator[Fault]:
    if low is not None:
        yield warning("bit-depth", str(low), f"Say that they have {low.bit_depth} bits, or all 16.")


def _odd_sizes(size_of: Mapping[str, tuple[int, int]]) -> Iterator[Fault]:
    counts = Counter(size_of.values())
    if len(counts) < 2:
        return
    usual, _ = by_count(counts)[0]
    usual_text = f"{usual[0]}x{usual[1]}"
    odd = [image_id for image_id, size_hw in size_of.items() if size_hw != usual]
    remedy = "Leave it if the line makes several sizes; else look for a stray picture."
    if len(odd) > _MOST_SINGLE_WARNINGS:
        yield warning("size", f"Images have {len(counts)} sizes: {len(odd)} are not {usual_text}.", remedy)
        return
    for image_id in odd:
        height, width = size_of[image_id]
        message = f"{image_id}: {height}x{width} px, where most images have {usual_text}."
        yield warning("size", message, remedy, image=image_id)


def _dark_images(inspections: Sequence[Inspection]) -> Iterator[Fault]:
    dark = [one for one in inspections if one.dark_share > MOSTLY_DARK]
    remedy = "Leave it if it shows an end of the sheet; else take it out, for there is nothing to learn from it."
    if len(dark) > _MOST_SINGLE_WARNINGS:
        yield warning("dark", f"{len(dark)} images are mostly black, the first {dark[0].image_id}.", remedy)
        return
    for one in dark:
        message = f"{one.image_id}: {100 * one.dark_share:.0f} % of it is black."
        yield warning("dark", message, remedy, image=one.image_id)
