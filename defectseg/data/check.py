"""What is wrong with a data folder: everything at once, where `open_data_folder` stops at the first fault."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from defectseg.data import images, rle
from defectseg.data.images import FoundImage, find_images
from defectseg.data.label_rows import IGNORE_CLASS_ID, LabelRow, LabelScan, scan_label_rows
from defectseg.data.labels import check_class_names, find_table, images_folder, read_class_names, read_groups
from defectseg.data.splits import read_split
from defectseg.errors import DataError, ImageError, LabelError

_MOST_SINGLE_WARNINGS = 20  # beyond this a kind of warning is the rule in this folder, and one line says so

_REMEDIES = {
    "fields": "Give the row as many fields as the header has.",
    "image-id": "Name the image by its path below train_images/.",
    "class": "Mend the ClassId, or take the row out.",
    "rle": "Export this mask again, or take the row out.",
    "duplicate": "Keep one row of the two.",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        severity: "error" where training or scoring would stop or be wrong, "warning" where it may be meant so.
        kind: "image", "image-note", "size", "missing-image", "fields", "image-id", "class", "rle", "duplicate",
            "overlap", "classes", "groups" or "split".
        image: ImageId, "" where none is concerned.
        row: line in the label table, groups.csv or split.csv, the header being 1; None where none is concerned.
        message: what is wrong, with its place.
        remedy: what to do.
    """

    severity: Literal["error", "warning"]
    kind: str
    image: str
    row: int | None
    message: str
    remedy: str


@dataclass(frozen=True)
class ClassSummary:
    """The sound masks of one class: in how many images, and their areas in pixels (0 where there is none)."""

    class_id: int
    name: str
    images: int
    smallest_px: int
    median_px: float
    largest_px: int


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `check_data_folder`.

    Attributes:
        images: files below train_images/, whether they can be read or not.
        clean_images: those that have no mask, and no faulty row that may have been one.
        missing_images: ImageIds with a row and no file.
        sizes: "HxW" in pixels -> number of images, the commonest first.
        classes: one summary for each class.
        ignored_px: pixels marked to be ignored, over all images.
        faults: errors first; then by image and row.
    """

    images: int
    clean_images: int
    missing_images: int
    sizes: Mapping[str, int]
    classes: tuple[ClassSummary, ...]
    ignored_px: int
    faults: tuple[Fault, ...]

    @property
    def errors(self) -> int:
        """Number of faults that are errors."""
        return sum(fault.severity == "error" for fault in self.faults)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {**asdict(self), "errors": self.errors}


@dataclass
class _Findings:
    """What the walk over the images gathers."""

    faults: list[Fault] = field(default_factory=list)
    size_of: dict[str, tuple[int, int]] = field(default_factory=dict)
    images_of_note: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    areas_px: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def error(self, kind: str, message: str, remedy: str, *, image: str = "", row: int | None = None) -> None:
        self.faults.append(Fault("error", kind, image, row, message, remedy))

    def warning(self, kind: str, message: str, remedy: str, *, image: str = "", row: int | None = None) -> None:
        self.faults.append(Fault("warning", kind, image, row, message, remedy))


def check_data_folder(root: Path, *, report: Callable[[int, int], None] | None = None) -> CheckReport:
    """Decode every image and every mask of a data folder and list what is wrong.

    Args:
        root: the folder that holds train_images/ and train.csv or train.csv.gz.
        report: called with the number of images done and of all images.

    Raises:
        DataError: there is no such folder, image or label table, or the table's header is unknown.
    """
    table_path = find_table(root)
    found = find_images([images_folder(root)])
    scan = scan_label_rows(table_path)
    findings = _Findings()
    for fault in scan.faults:
        findings.error(fault.kind, fault.message, _REMEDIES[fault.kind], image=fault.image_id, row=fault.line)
    names = _class_names(root, scan.rows, findings)
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    for row in scan.rows:
        rows_of[row.image_id].append(row)
    missing = _missing_images(rows_of, found, findings)
    for done, image in enumerate(found, start=1):
        _check_image(image, rows_of.get(image.image_id, []), names, table_path, findings)
        if report:
            report(done, len(found))
    _tell_notes(findings)
    sizes = _tell_odd_sizes(findings)
    _check_groups_and_split(root, [image.image_id for image in found], findings)
    return CheckReport(
        images=len(found),
        clean_images=len({image.image_id for image in found} - _perhaps_defective(scan)),
        missing_images=len(missing),
        sizes=sizes,
        classes=tuple(_summary(class_id, name, findings) for class_id, name in enumerate(names, start=1)),
        ignored_px=sum(findings.areas_px[IGNORE_CLASS_ID]),
        faults=tuple(
            sorted(findings.faults, key=lambda fault: (fault.severity, fault.image, fault.row or 0, fault.kind))
        ),
    )


def _class_names(root: Path, rows: Sequence[LabelRow], findings: _Findings) -> tuple[str, ...]:
    largest = max((row.class_id for row in rows if row.encoded and row.class_id != IGNORE_CLASS_ID), default=0)
    try:
        names = read_class_names(root, largest)
        check_class_names(names, where=str(root / "classes.txt"))
    except DataError as error:
        findings.error("classes", str(error), "Write one name on each line of classes.txt; line n names ClassId n.")
        return tuple(f"class {number}" for number in range(1, largest + 1))
    return names


def _perhaps_defective(scan: LabelScan) -> set[str]:
    marked = {row.image_id for row in scan.rows if row.encoded and row.class_id != IGNORE_CLASS_ID}
    return marked | {fault.image_id for fault in scan.faults}


def _missing_images(
    rows_of: Mapping[str, Sequence[LabelRow]], found: Sequence[FoundImage], findings: _Findings
) -> set[str]:
    present = {image.image_id for image in found}
    alike = {_loose(image_id): image_id for image_id in present}
    missing = rows_of.keys() - present
    for image_id in missing:
        other = alike.get(_loose(image_id))
        remedy = f"The folder has {other!r}: write it so." if other else "Add the image, or take its rows out."
        line = rows_of[image_id][0].line
        findings.error("missing-image", f"{image_id!r} is not below train_images/.", remedy, image=image_id, row=line)
    return missing


def _loose(image_id: str) -> str:
    """An ImageId without what people get wrong: case, suffix, blanks, folder."""
    name = image_id.strip().lower().rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix}" in images.IMAGE_SUFFIXES else name


def _check_image(
    image: FoundImage, rows: Sequence[LabelRow], names: Sequence[str], table_path: Path, findings: _Findings
) -> None:
    try:
        decoded = images.decode(image.path)
    except ImageError as error:
        findings.error("image", str(error), "Replace the file, or take it out.", image=image.image_id)
        return
    for note in decoded.notes:
        findings.images_of_note[note.partition(";")[0]].append(image.image_id)
    height, width = decoded.pixels.shape
    findings.size_of[image.image_id] = (height, width)
    taken = np.zeros((height, width), np.bool_)
    for row, mask in _sound_masks(rows, (height, width), names, table_path, findings):
        findings.areas_px[row.class_id].append(int(np.count_nonzero(mask)))
        if row.class_id == IGNORE_CLASS_ID:
            continue
        if shared_px := int(np.count_nonzero(mask & taken)):
            findings.warning(
                "overlap",
                f"{image.image_id}: {shared_px} px of '{names[row.class_id - 1]}' belong to another class too.",
                "Leave it if one spot can be of two classes; else mend the masks.",
                image=image.image_id,
                row=row.line,
            )
        taken |= mask


def _sound_masks(
    rows: Sequence[LabelRow], size_hw: tuple[int, int], names: Sequence[str], table_path: Path, findings: _Findings
) -> Iterator[tuple[LabelRow, NDArray[np.bool_]]]:
    """The rows whose masks fit the image and the classes; faults of the others are recorded."""
    for row in rows:
        where = f"{table_path}, line {row.line}: {row.image_id}, ClassId {row.class_id}"
        if not row.encoded:
            continue
        if len(names) < row.class_id != IGNORE_CLASS_ID:
            message = f"{where}: there are {len(names)} classes ({', '.join(names)})."
            findings.error(
                "class", message, "Mend the ClassId, or add its name to classes.txt.", image=row.image_id, row=row.line
            )
            continue
        try:
            yield row, rle.decode(row.encoded, size_hw, where=where)
        except LabelError as error:
            findings.error("rle", str(error), _REMEDIES["rle"], image=row.image_id, row=row.line)


def _tell_notes(findings: _Findings) -> None:
    for note, image_ids in sorted(findings.images_of_note.items()):
        findings.warning(
            "image-note",
            f"{note}: {len(image_ids)} images, the first {image_ids[0]}.",
            "Make sure that the masks were drawn on the picture as it is read here; see docs/formats.md.",
            image=image_ids[0],
        )


def _tell_odd_sizes(findings: _Findings) -> dict[str, int]:
    """Images per size, the commonest first; images of another size are warned about."""
    counts = Counter(findings.size_of.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    sizes = {f"{height}x{width}": count for (height, width), count in ordered}
    if len(ordered) > 1:
        usual = ordered[0][0]
        odd = [image_id for image_id, size_hw in findings.size_of.items() if size_hw != usual]
        remedy = "Leave it if the line makes several sizes; else look for a stray picture."
        if len(odd) > _MOST_SINGLE_WARNINGS:
            findings.warning("size", f"Images have {len(sizes)} sizes: {len(odd)} are not {next(iter(sizes))}.", remedy)
        else:
            for image_id in odd:
                height, width = findings.size_of[image_id]
                message = f"{image_id}: {height}x{width} px, where most images have {next(iter(sizes))}."
                findings.warning("size", message, remedy, image=image_id)
    return sizes


def _check_groups_and_split(root: Path, image_ids: Sequence[str], findings: _Findings) -> None:
    """Both files are optional; where both are there, no group may lie in two folds."""
    groups: dict[str, str] = {}
    try:
        groups = read_groups(root)
        _tell_strangers("groups", groups, image_ids, findings)
    except LabelError as error:
        findings.error("groups", str(error), "Write groups.csv as 'ImageId,Group', one row for each image.")
    path = root / "split.csv"
    if not path.exists():
        return
    try:
        fold_of = read_split(path)
    except LabelError as error:
        findings.error("split", str(error), "Make it again with `defectseg data split`.")
        return
    _tell_strangers("split", fold_of, image_ids, findings)
    if left_out := [image_id for image_id in image_ids if image_id not in fold_of]:
        message = f"{path}: has no fold for {len(left_out)} images, the first {left_out[0]}."
        findings.error("split", message, "Make it again with `defectseg data split`.", image=left_out[0])
    folds_of_group: dict[str, set[int]] = defaultdict(set)
    for image_id, group in groups.items():
        if image_id in fold_of:
            folds_of_group[group].add(fold_of[image_id])
    for group, folds in sorted(folds_of_group.items()):
        if len(folds) > 1:
            message = (
                f"{path}: group '{group}' lies in folds {', '.join(map(str, sorted(folds)))}; scores would flatter."
            )
            findings.error("split", message, "Make it again with `defectseg data split`, which keeps groups together.")


def _tell_strangers(kind: str, listed: Mapping[str, object], image_ids: Sequence[str], findings: _Findings) -> None:
    if strangers := sorted(set(listed) - set(image_ids)):
        message = f"{kind}.csv names {len(strangers)} images that are not there, the first {strangers[0]!r}."
        findings.warning(kind, message, "Leave it if you took them out on purpose.", image=strangers[0])


def _summary(class_id: int, name: str, findings: _Findings) -> ClassSummary:
    areas_px = findings.areas_px.get(class_id) or [0]
    count = len(findings.areas_px.get(class_id, []))
    return ClassSummary(class_id, name, count, min(areas_px), float(median(areas_px)), max(areas_px))
