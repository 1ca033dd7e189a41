"""Find everything that is wrong with a data folder; `open_data_folder` stops at the first fault."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from defectseg.check.image import MOSTLY_DARK, Inspection, inspect_image
from defectseg.check.pairs import LabelledImages, RowsByImage, disagreements, find_labels, name_pairs, rows_by_image
from defectseg.check.report import CheckReport, by_count, summarise
from defectseg.check.split import check_groups_and_split
from defectseg.copies.descriptors import Descriptors, describe_all
from defectseg.copies.find import find_copies
from defectseg.copies.strips import find_neighbours
from defectseg.data.classes import CLASSES_NAME, are_grey_values, check_class_names, read_class_names
from defectseg.data.folder import IMAGES_NAME, NOT_LABELLED_NAME, find_table, read_not_labelled
from defectseg.data.table import IGNORE_CLASS_ID, Fault, LabelRow, LabelScan, error, scan_label_rows, warning
from defectseg.errors import DataError, UsageError
from defectseg.image.find import find_images
from defectseg.image.read import bit_depth_warnings
from defectseg.machine import cores
from defectseg.progress import Progress, silent

_MOST_SINGLE_WARNINGS = 20  # beyond this, one line says that such images are usual in this folder


def check_data_folder(
    root: Path, *, against: Path | None = None, bit_depth: int | None = None, progress: Progress = silent
) -> CheckReport:
    """Decode every image and every mask of a data folder, compare the images, and list what is wrong.

    Args:
        root: the folder that holds train_images/ and train.csv or train.csv.gz.
        against: another data folder, or a folder of images, none of which should be a copy of one in `root`.
        bit_depth: of the 16-bit files of both, 9 to 16; None takes what the files state.
        progress: counts the images.

    Raises:
        DataError: there is no such folder, image or label table, or the table's header is unknown.
        UsageError: `against` is the same folder.
    """
    table_path = find_table(root)
    every = find_images([root / IMAGES_NAME], keep_faulty=True)
    image_ids = {image.image_id for image in every}
    not_labelled = read_not_labelled(root, image_ids) & image_ids
    found = [image for image in every if image.image_id not in not_labelled]
    others, other_faults = (None, []) if against is None else _find_others(root, against)
    scan = scan_label_rows(table_path, image_ids=image_ids)
    names, name_faults = _class_names(root, scan.rows)
    rows_of = rows_by_image(scan.rows)
    missing = _missing_images(rows_of, image_ids)
    total = len(found) + (0 if others is None else len(others.found))
    inspections: list[Inspection] = []
    descriptors = Descriptors(len(found))
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        arguments = ((image, rows_of.get(image.image_id, ()), names, table_path, bit_depth) for image in found)
        for index, (one, descriptor) in enumerate(pool.map(lambda given: inspect_image(*given), arguments)):
            inspections.append(one)
            if descriptor is not None:
                descriptors[index] = descriptor
            progress(index + 1, total)
    labelled = LabelledImages(found, rows_of)
    duplicates = name_pairs(find_copies(descriptors), labelled, labelled)
    split_faults, leaks = check_groups_and_split(root, found, duplicates, find_neighbours(descriptors))
    faults = [*scan.faults, *name_faults, *missing, *split_faults, *disagreements(duplicates)]
    for image_id in rows_of.keys() & not_labelled:
        message, line = f"{image_id} has a row, but {NOT_LABELLED_NAME} lists it, too.", rows_of[image_id][0].line
        faults.append(error("not-labelled", message, "Take it out of one of the two.", image=image_id, row=line))
    if others is not None:
        other_descriptors, unread = describe_all(
            [image.path for image in others.found],
            reduced=False,
            bit_depth=bit_depth,
            progress=lambda done, _total, text="": progress(len(found) + done, total),
        )
        leaks = name_pairs(find_copies(descriptors, other_descriptors), labelled, others)
        faults += disagreements(leaks, f"{against}: ")
        uncompared = [*other_faults, *unread.values()]
        remedy = "Replace the file, or take it out."
        faults += [warning("against", f"Not compared: {message}", remedy) for message in uncompared]
    faults += [fault for one in inspections for fault in one.faults]
    faults += [*_notes(inspections), *_odd_sizes(inspections), *_dark_images(inspections)]
    faults += _odd_labels(inspections, scan, names)
    for message in bit_depth_warnings(Counter(one.brightest16 for one in inspections)):
        faults.append(warning("bit-depth", message, "Give it to train, too."))
    return summarise(
        inspections,
        names,
        scan,
        not_labelled_images=len(not_labelled),
        faults=faults,
        duplicates=duplicates,
        leaks=leaks,
    )


def _odd_labels(inspections: Sequence[Inspection], scan: LabelScan, names: Sequence[str]) -> Iterator[Fault]:
    """Warnings about labels that are probably not meant so; an import would have refused them."""
    masks = [mask for one in inspections for mask in one.masks]
    labelled_px = sum(mask.area_px for mask in masks)
    ignored_px = sum(mask.area_px for mask in masks if mask.class_id == IGNORE_CLASS_ID)
    if 2 * ignored_px > labelled_px:
        share = f"{100 * ignored_px / labelled_px:.0f} % of the labelled pixels are to be ignored (255)"
        remedy = "Leave it if they come from boxes; to learn from these, draw outlines. Else import the labels again."
        yield warning("labels", share + (", and no class has a mask." if ignored_px == labelled_px else "."), remedy)
    elif not scan.faults and not any(row.encoded for row in scan.rows):
        remedy = "Leave it if all of this steel is sound. Else label the images, or import their labels again."
        yield warning("labels", "No image has a mask: all count as clean.", remedy)
    if are_grey_values(names):
        remedy = f"Name them in {CLASSES_NAME}. If they are grey values, import the masks again."
        yield warning("classes", f"{len(names)} classes, which nobody has named.", remedy)


def _find_others(root: Path, against: Path) -> tuple[LabelledImages, list[str]]:
    """The images of another data folder or of a plain folder, and what is wrong with the faulty ones."""
    if not against.is_dir():
        raise DataError(f"{against}: no such folder; expected a data folder or a folder of images.", argument="against")
    own = (root / IMAGES_NAME).resolve()
    if against.resolve() == root.resolve() or against.resolve().is_relative_to(own):
        raise UsageError(f"{against} is the folder itself, whose own copies are listed anyway.", argument="against")
    folder, rows_of = find_labels(against)
    # A folder around `root` holds its images too; a link to one elsewhere is a copy like any other.
    found = find_images([folder], keep_faulty=True)
    found = [image for image in found if not image.path.parent.resolve().is_relative_to(own)]
    unlabelled = read_not_labelled(against) if rows_of is not None else frozenset()
    sound = [image for image in found if not image.fault and image.image_id not in unlabelled]
    return LabelledImages(sound, rows_of), [image.fault for image in found if image.fault]


def _class_names(root: Path, rows: Sequence[LabelRow]) -> tuple[tuple[str, ...], list[Fault]]:
    largest = max((row.class_id for row in rows if row.has_mask), default=0)
    try:
        names = read_class_names(root, largest)
        check_class_names(names, where=str(root / CLASSES_NAME))
    except DataError as problem:
        remedy = "Write one name on each line of classes.txt; line n names ClassId n."
        return tuple(f"class {number}" for number in range(1, largest + 1)), [error("classes", str(problem), remedy)]
    return names, []


def _missing_images(rows_of: RowsByImage, present: set[str]) -> list[Fault]:
    """A fault for each image that has a row and no file; case, suffix, blanks and folder are what people get wrong."""
    alike = {PurePosixPath(image_id).stem.lower(): image_id for image_id in present}
    missing = []
    for image_id in rows_of.keys() - present:
        other = alike.get(PurePosixPath(image_id.strip()).stem.lower())
        remedy = f"The folder has {other!r}: write it so." if other else "Add the image, or take its rows out."
        message = f"{image_id!r} is not below train_images/."
        missing.append(error("missing-image", message, remedy, image=image_id, row=rows_of[image_id][0].line))
    return missing


def _notes(inspections: Sequence[Inspection]) -> Iterator[Fault]:
    """One warning for each kind of note that decoding made."""
    ids_of: dict[str, list[str]] = defaultdict(list)
    for one in inspections:
        for note in one.notes:
            ids_of[note.partition(";")[0]].append(one.image_id)
    for note, image_ids in sorted(ids_of.items()):
        message = f"{note}: {len(image_ids)} images, the first {image_ids[0]}."
        remedy = "Make sure that the masks were drawn on the picture as it is read here; see docs/formats.md."
        yield warning("image-note", message, remedy, image=image_ids[0])


def _odd_sizes(inspections: Sequence[Inspection]) -> list[Fault]:
    readable = [one for one in inspections if one.size_hw is not None]
    counts = by_count(Counter((one.size_hw, one.size_text) for one in readable))
    usual = counts[0][0][1] if counts else ""
    odd = {one.image_id: f"{one.size_text} px, where most have {usual}." for one in readable if one.size_text != usual}
    remedy = "Leave it if the line makes several sizes; else look for a stray picture."
    summary = f"Images have {len(counts)} sizes: {len(odd)} are not {usual}."
    return _one_or_each("size", odd, summary, remedy)


def _dark_images(inspections: Sequence[Inspection]) -> list[Fault]:
    share = {one.image_id: one.dark_share for one in inspections if one.dark_share > MOSTLY_DARK}
    dark = {image_id: f"{100 * black:.0f} % of it is black." for image_id, black in share.items()}
    summary = f"{len(dark)} images are mostly black, the first {min(dark, default='')}."
    remedy = "Leave it if it shows an end of the sheet; else take it out, for there is nothing to learn from it."
    return _one_or_each("dark", dark, summary, remedy)


def _one_or_each(kind: str, messages: Mapping[str, str], summary: str, remedy: str) -> list[Fault]:
    """A warning for each image, or one in all where the images are many."""
    if len(messages) > _MOST_SINGLE_WARNINGS:
        return [warning(kind, summary, remedy)]
    return [warning(kind, f"{image_id}: {message}", remedy, image=image_id) for image_id, message in messages.items()]
