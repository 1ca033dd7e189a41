"""Read the rows of a label table in every common layout, with all their faults, and write them.

`read_label_table` stops at the first fault; `data check` lists all of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from defectseg.errors import LabelError
from defectseg.files import CsvTable, atomic_csv, check_image_id, read_csv
from defectseg.image import rle

TABLE_NAMES = ("train.csv", "train.csv.gz")
IGNORE_CLASS_ID = 255
MAX_CLASSES = IGNORE_CLASS_ID - 1

Labels = dict[str, dict[int, str]]  # ImageId -> ClassId -> run-lengths

# An image without any row counts as clean.
NOT_CLEAN = "take the image and all its rows out: with this row alone gone, the defect would count as sound steel"
_REMEDIES = {
    "fields": "Give the row as many fields as the header has.",
    "image-id": "Name the image by its path below train_images/.",
    "class": f"Mend the ClassId, or {NOT_CLEAN}.",
    "rle": f"Export this mask again, or {NOT_CLEAN}.",
    "duplicate": "Unite the two masks in one row; where they are the same, keep one.",
}
_BLANKS = frozenset({"", "nan", "none", "null", "<na>", "-1", "0 0"})
_WHOLE_IMAGE = re.compile(r"1 [0-9]+")  # with ClassId 0: the placeholder of Severstal's sample_submission.csv
_CLASS_ID = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 3.0 once a column has had a gap


@dataclass(frozen=True)
class LabelRow:
    """A label of one image and one class.

    Attributes:
        line: line number in the file; the header is line 1.
        image_id: ImageId.
        class_id: 1..255; 0 if the row only lists the image.
        encoded: run-lengths; "" if the class does not occur.
    """

    line: int
    image_id: str
    class_id: int
    encoded: str


@dataclass(frozen=True)
class Fault:
    """A fault of a data folder.

    Attributes:
        severity: "error" if training or scoring would stop or be wrong, "warning" if it may be intended.
        kind: "image", "image-note", "size", "dark", "missing-image", "fields", "image-id", "class", "rle", "duplicate",
            "overlap", "mask-size", "mask-disagreement", "classes", "groups", "split" or "against".
        image: ImageId, or "".
        row: line in the label table, groups.csv or split.csv (the header is line 1), or None.
        message: the fault and its place.
        remedy: how to correct it.
    """

    severity: Literal["error", "warning"]
    kind: str
    image: str = field(default="", kw_only=True)
    row: int | None = field(default=None, kw_only=True)
    message: str
    remedy: str


error = partial(Fault, "error")
warning = partial(Fault, "warning")


@dataclass(frozen=True)
class LabelScan:
    """All valid rows of a label table, and all faults, by line."""

    rows: list[LabelRow]
    faults: list[Fault]


class _FaultyRowError(Exception):
    """Its arguments are the kind of the fault and the message."""


def scan_label_rows(path: Path) -> LabelScan:
    """Read a label table and separate its valid rows from its faults.

    Raises:
        LabelError: the file cannot be read, or its header is not one of the known layouts.
    """
    table = read_csv(path)
    rows: list[LabelRow] = []
    faults: list[Fault] = []

    def add_fault(kind: str, line: int, message: str, image_id: str = "") -> None:
        faults.append(error(kind, f"{path}, line {line}: {message}", _REMEDIES[kind], image=image_id, row=line))

    for line, count in table.ragged:
        add_fault("fields", line, f"has {count} fields; expected {len(table.header)}.")
    line_of: dict[tuple[str, int], int] = {}
    for line, image_id, class_text, encoded in _cells(table):
        try:
            row = _parse_row(line, image_id, class_text, encoded.strip())
            first = line_of.setdefault((row.image_id, row.class_id), line)
            if first != line:
                what = f"{image_id}, ClassId {row.class_id}"
                raise _FaultyRowError("duplicate", f"{what} stands in line {first} already. {_REMEDIES['duplicate']}")
        except _FaultyRowError as fault:
            kind, message = fault.args
            add_fault(kind, line, message, image_id)
        else:
            rows.append(row)
    return LabelScan(rows, sorted(faults, key=lambda fault: fault.row or 0))


def _cells(table: CsvTable) -> Iterator[tuple[int, str, str, str]]:
    """Line, ImageId, ClassId as text, and EncodedPixels of each label in the table.

    Raises:
        LabelError: the header is not one of the known layouts.
    """
    if places := table.columns("ImageId", "ClassId", "EncodedPixels"):
        image, class_, encoded = places
        for line, fields in table.rows:
            yield line, fields[image], fields[class_], fields[encoded]
    elif places := table.columns("ImageId_ClassId", "EncodedPixels"):
        both, encoded = places
        for line, fields in table.rows:
            image_id, _, class_text = fields[both].rpartition("_")
            yield line, image_id, class_text, fields[encoded]
    else:
        image, class_columns = _wide_columns(table)
        for line, fields in table.rows:
            for column, class_text in class_columns:
                yield line, fields[image], class_text, fields[column]


def _wide_columns(table: CsvTable) -> tuple[int, list[tuple[int, str]]]:
    """The column of the ImageId and the columns of the classes, in a table with one column for each class."""
    classes = [(place, name) for place, name in enumerate(table.header) if name.isdecimal()]
    # pandas writes its row numbers into a first column without a name.
    others = [
        place for place, name in enumerate(table.header) if not name.isdecimal() and name not in ("", "Unnamed: 0")
    ]
    if not classes or len(others) != 1 or len(set(classes)) != len({name for _, name in classes}):
        raise LabelError(
            f"{table.path}: the header '{','.join(table.header)[:200]}' is not known; expected "
            "'ImageId,ClassId,EncodedPixels', 'ImageId_ClassId,EncodedPixels', or one column for each class "
            "('ImageId,1,2,3,4'), separated by commas."
        )
    return others[0], classes


def _parse_row(line: int, image_id: str, class_text: str, encoded: str) -> LabelRow:
    try:
        check_image_id(image_id, where="")
    except LabelError as error:
        raise _FaultyRowError("image-id", str(error).removeprefix(": ")) from None
    if encoded.lower() in _BLANKS:
        encoded = ""
    class_id = _parse_class_id(class_text.strip(), encoded)
    if class_id == 0:
        encoded = ""
    if encoded:
        try:
            rle.parse_pairs(encoded, where=f"{image_id}, ClassId {class_id}")
        except LabelError as error:
            raise _FaultyRowError("rle", str(error)) from None
    return LabelRow(line, image_id, class_id, encoded)


def _parse_class_id(text: str, encoded: str) -> int:
    """ClassId 1..255, or 0 if the row only lists its image."""
    if not encoded and text.lower() in _BLANKS:
        return 0
    number = _CLASS_ID.fullmatch(text)
    class_id = int(number[1]) if number else -1
    if class_id == 0 and (not encoded or _WHOLE_IMAGE.fullmatch(encoded)):
        return 0
    if not 1 <= class_id <= IGNORE_CLASS_ID:
        raise _FaultyRowError(
            "class",
            f"ClassId {text!r}; expected a whole number, 1 to {MAX_CLASSES} ({IGNORE_CLASS_ID} for pixels to ignore).",
        )
    return class_id


def write_label_table(root: Path, labels: Labels) -> None:
    """Write train.csv, sorted by ImageId, then by ClassId. Raises ResourceError."""
    with atomic_csv(root / TABLE_NAMES[0], ["ImageId", "ClassId", "EncodedPixels"]) as write:
        for image_id, by_class in sorted(labels.items()):
            write((image_id, class_id, encoded) for class_id, encoded in sorted(by_class.items()))
