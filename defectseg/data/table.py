"""Read the rows of a label table in every common layout, with all their faults, and write them.

`read_label_table` stops at the first fault; `data check` lists all of them.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from defectseg.data.classes import CLASSES_NAME, MAX_CLASSES, read_class_names
from defectseg.data.names import respellings
from defectseg.errors import LabelError
from defectseg.files import atomic_csv, check_image_id
from defectseg.image import rle
from defectseg.text import CsvTable, read_csv

log = logging.getLogger(__name__)

TABLE_NAMES = ("train.csv", "train.csv.gz")
IGNORE_CLASS_ID = MAX_CLASSES + 1

Labels = dict[str, dict[int, str]]  # ImageId -> ClassId -> run-lengths
Names = Sequence[str] | None

# An image without any row counts as clean.
NOT_CLEAN = "take the image and all its rows out: with this row alone gone, the defect would count as sound steel"
_REMEDIES = {
    "fields": "Give the row as many fields as the header has.",
    "image-id": "Name the image by its path below train_images/.",
    "class": f"Mend the ClassId, or {NOT_CLEAN}.",
    "rle": f"Export this mask again, or {NOT_CLEAN}.",
    "duplicate": "Unite the two masks in one row; where they are the same, keep one.",
}
_UNITE = "`defectseg data import DIR --unite --out NEW` unites them all, and nothing is lost"
_BLANKS = frozenset({"", "nan", "none", "null", "<na>", "-1", "0 0"})
_WHOLE_IMAGE = re.compile(r"1 [0-9]+")  # with ClassId 0: the placeholder of Severstal's sample_submission.csv
WHOLE_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 3.0 once a column has had a gap
_RUNS = re.compile(r"\s*[0-9]+\s+[0-9]+(?:\s+[0-9]+\s+[0-9]+)*\s*")
_NUMBERED = re.compile(r"(.*\D)([1-9][0-9]{0,2})")  # e1, e2 or defect 1, defect 2


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

    @property
    def has_mask(self) -> bool:
        """Whether it is the mask of a class, not blank and not pixels to ignore."""
        return bool(self.encoded) and self.class_id != IGNORE_CLASS_ID


@dataclass(frozen=True)
class LabelTable:
    """The content of a label table.

    Attributes:
        rles: ImageId -> ClassId (1..254, or 255 for pixels to ignore) -> run-lengths, never blank.
        listed: every ImageId that has a row, including blank rows.
    """

    rles: Mapping[str, Mapping[int, str]]
    listed: frozenset[str]


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
    """All valid rows of a label table, and all faults, by line; `united` rows were added to an earlier one."""

    rows: list[LabelRow]
    faults: list[Fault]
    united: int = 0

    def sound(self) -> list[LabelRow]:
        """The rows. Raises LabelError if there are faults, with the message of the first."""
        if self.faults:
            more = len(self.faults) - 1
            others = f" ({more} more faulty row{'s' * (more > 1)}.)" if more else ""
            raise LabelError(self.faults[0].message + others)
        return self.rows


class _FaultyRowError(Exception):
    """Its arguments are the kind of the fault and the message."""


def scan_label_rows(
    path: Path, class_names: Names = None, *, image_ids: Collection[str] = (), unite: bool = False
) -> LabelScan:
    """Read a label table and separate its valid rows from its faults.

    Args:
        path: the file, .csv or .csv.gz.
        class_names: names of ClassId 1, 2 and so on, which columns may have; None takes those of classes.txt beside it.
        image_ids: images; names that differ from one of these only by their Unicode form are read as that image.
        unite: unite overlapping runs, and the masks of rows for the same ImageId and ClassId; else both are faults.

    Raises:
        LabelError: the file cannot be read, or its header is not one of the known layouts.
        DataError: classes.txt is needed and cannot be read.
    """
    table = read_csv(path)
    rows: dict[tuple[str, int], LabelRow] = {}
    repeated: list[LabelRow] = []
    faults: list[Fault] = []

    def add_fault(kind: str, line: int, message: str, image_id: str = "") -> None:
        faults.append(error(kind, f"{path}, line {line}: {message}", _REMEDIES[kind], image=image_id, row=line))

    for line, count in table.ragged:
        add_fault("fields", line, f"has {count} fields; expected {len(table.header)}.")
    for line, image_id, class_text, encoded in _cells(table, class_names):
        try:
            row = _parse_row(line, image_id, class_text, encoded.strip(), unite=unite)
        except _FaultyRowError as fault:
            kind, message = fault.args
            add_fault(kind, line, message, image_id)
            continue
        key = row.image_id, row.class_id
        if rows.setdefault(key, row) is row:
            continue
        repeated.append(row)
        if unite:
            rows[key] = replace(rows[key], encoded=rle.unite(rows[key].encoded, row.encoded))
    images = len({row.image_id for row in repeated})
    for row in () if unite else repeated:
        first = rows[row.image_id, row.class_id].line
        told = f"stands in line {first} already; {images} images have such rows. Where each is an instance, {_UNITE}."
        add_fault("duplicate", row.line, f"{row.image_id}, ClassId {row.class_id} {told}", row.image_id)
    spelled = respellings({row.image_id for row in rows.values()}, image_ids, where=path)
    valid = [replace(row, image_id=spelled[row.image_id]) for row in rows.values()]
    return LabelScan(valid, sorted(faults, key=lambda fault: fault.row or 0), len(repeated) if unite else 0)


def _cells(table: CsvTable, class_names: Names) -> Iterator[tuple[int, str, str, str]]:
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
        image, class_columns = _wide_columns(table, class_names)
        for line, fields in table.rows:
            for column, class_text in class_columns:
                yield line, fields[image], class_text, fields[column]


def _wide_columns(table: CsvTable, class_names: Names) -> tuple[int, list[tuple[int, str]]]:
    """The column of the ImageId, and the columns of the classes with their ClassIds, in a table with one for each.

    Raises:
        LabelError: it is not certain which columns these are.
    """
    # pandas writes its row numbers into a first column without a name.
    named = [(name, place) for place, name in enumerate(table.header) if name not in ("", "Unnamed: 0")]
    place_of, image = dict(named), next((name for name, _ in named if name.lower() == "imageid"), None)
    cells = {name: [fields[place].strip() for _, fields in table.rows] for name, place in named if name != image}
    filled = {name: [text for text in texts if text.lower() not in _BLANKS] for name, texts in cells.items()}
    class_ids = _class_ids(table, filled, class_names)
    others = [name for name in filled if name not in class_ids]
    overlooked = any(_RUNS.fullmatch(text) for name in others for text in filled[name])
    if not class_ids or overlooked or len(place_of) < len(named) or (image is None and len(others) != 1):
        raise LabelError(
            f"{table.path}: the header '{','.join(table.header)[:200]}' is not known; expected "
            "'ImageId,ClassId,EncodedPixels', 'ImageId_ClassId,EncodedPixels', or one column for each class "
            "('ImageId,1,2,3,4'), separated by commas. Where columns have other names, rename that of each class to "
            "its ClassId, that of the images to ImageId, and delete others that hold run-lengths."
        )
    return place_of[image or others[0]], [(place_of[name], class_id) for name, class_id in class_ids.items()]


def _class_ids(table: CsvTable, filled: Mapping[str, Sequence[str]], class_names: Names) -> dict[str, str]:
    """Name of a column -> ClassId, of columns named by number, by class, by a word and a number (e1), or by content.

    Args:
        table: the table.
        filled: its cells that are not blank, by column, without the column ImageId.
        class_names: as in `scan_label_rows`.

    Returns:
        nothing if it is not certain.
    """
    if numbers := {name: name for name in filled if name.isdecimal()}:
        return numbers
    if class_names is None and (table.path.parent / CLASSES_NAME).exists():
        class_names = read_class_names(table.path.parent, 0)
    if by_name := {name: str(number) for number, name in enumerate(class_names or (), start=1) if name in filled}:
        return by_name
    runs = [name for name, texts in filled.items() if any(map(_RUNS.fullmatch, texts))]
    numbered = {name: match for name in filled if (match := _NUMBERED.fullmatch(name))}
    words = {numbered[name][1] if name in numbered else "" for name in runs}
    found: dict[str, str] = {}
    if len(words) == 1 and "" not in words:
        found = {name: match[2] for name, match in numbered.items() if match[1] in words}
    # A blank column may belong to a class, and a column of many classes has no name of one.
    elif all(filled.values()) and all(_RUNS.fullmatch(text) for name in runs for text in filled[name]):
        found = {name: str(number) for number, name in enumerate(runs, start=1) if name.lower() != "encodedpixels"}
    log.info("%s: ClassIds of the columns: %s", table.path, found)
    return found


def _parse_row(line: int, image_id: str, class_text: str, encoded: str, *, unite: bool) -> LabelRow:
    kind = "image-id"
    try:
        check_image_id(image_id, where="")
        kind = "class"
        encoded = "" if encoded.lower() in _BLANKS else encoded
        class_id = _parse_class_id(class_text.strip(), encoded)
        kind = "rle"
        encoded = encoded if class_id else ""
        encoded = rle.unite(encoded) if unite else encoded
        rle.parse_pairs(encoded, where=f"{image_id}, ClassId {class_id}")
    except LabelError as error:
        hint = ""
        if kind == "rle" and not unite:
            with suppress(LabelError):
                hint = f" United, its runs are '{rle.unite(encoded)[:40]}'; {_UNITE}."
        raise _FaultyRowError(kind, str(error).removeprefix(": ") + hint) from None
    return LabelRow(line, image_id, class_id, encoded)


def _parse_class_id(text: str, encoded: str) -> int:
    """ClassId 1..255, or 0 if the row only lists its image."""
    if not encoded and text.lower() in _BLANKS:
        return 0
    number = WHOLE_NUMBER.fullmatch(text)
    class_id = int(number[1]) if number else -1
    if class_id == 0 and (not encoded or _WHOLE_IMAGE.fullmatch(encoded)):
        return 0
    if not 1 <= class_id <= IGNORE_CLASS_ID:
        expected = f"a whole number, 1 to {MAX_CLASSES} ({IGNORE_CLASS_ID} for pixels to ignore)"
        raise LabelError(f"ClassId {text!r}; expected {expected}.")
    return class_id


def read_label_table(path: Path, image_ids: Collection[str] = (), *, class_names: Names = None) -> LabelTable:
    """Read a label table, .csv or .csv.gz, in any of the layouts of docs/formats.md.

    Args:
        path: the file.
        image_ids, class_names: as in `scan_label_rows`.

    Raises:
        LabelError: the file cannot be read, its header is unknown, or a row is faulty (an ImageId that leaves its
            folder, an invalid ClassId, invalid run-lengths, a duplicate pair of ImageId and ClassId); the message names
            the first such row.
    """
    rows = scan_label_rows(path, class_names, image_ids=image_ids).sound()
    rles: Labels = {}
    for row in rows:
        if row.encoded:
            rles.setdefault(row.image_id, {})[row.class_id] = row.encoded
    return LabelTable(rles, frozenset(row.image_id for row in rows))


def write_label_table(root: Path, labels: Labels) -> None:
    """Write train.csv, sorted by ImageId, then by ClassId. Raises ResourceError."""
    with atomic_csv(root / TABLE_NAMES[0], ["ImageId", "ClassId", "EncodedPixels"]) as write:
        for image_id, by_class in sorted(labels.items()):
            write((image_id, class_id, encoded) for class_id, encoded in sorted(by_class.items()))
