"""Read the rows of a label table in every common layout, with all their faults, and write them.

`read_label_table` stops at the first fault; `data check` lists all of them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
_UNITE = "unite them all by `defectseg data import DIR --unite --out NEW`: nothing is lost"
_BLANKS = frozenset({"", "nan", "none", "null", "<na>", "-1", "0 0"})
_WHOLE_IMAGE = re.compile(r"1 [0-9]+")  # with ClassId 0: the placeholder of Severstal's sample_submission.csv
WHOLE_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 3.0 once a column has had a gap
_RUNS = re.compile(r"\s*[1-9][0-9]*\s+[0-9]+(?:\s+[0-9]+\s+[0-9]+)*\s*")
_NUMBERED = re.compile(r"(|.*\D)([1-9][0-9]{0,2})")  # 1, 2 or e1, e2 or defect 1, defect 2


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
    """All valid rows of a label table, and all faults, by line."""

    rows: list[LabelRow]
    faults: list[Fault]

    def sound(self) -> list[LabelRow]:
        """The rows. Raises LabelError if there are faults, with the message of the first."""
        if self.faults:
            others = f" ({len(self.faults) - 1} more faulty rows.)" if len(self.faults) > 1 else ""
            raise LabelError(self.faults[0].message + others)
        return self.rows


def scan_label_rows(
    path: Path, class_names: Names = None, *, image_ids: Collection[str] = (), unite: bool = False
) -> LabelScan:
    """Read a label table and separate its valid rows from its faults.

    Args:
        path: the file, .csv or .csv.gz.
        class_names: names of ClassId 1, 2 and so on, which columns may have; None takes those of classes.txt beside it.
        image_ids: images; names that differ from one of these only by their Unicode form are read as that image.
        unite: unite overlapping runs, and take several rows for the same ImageId and ClassId; else both are faults.

    Raises:
        LabelError: the file cannot be read, or its header is not one of the known layouts.
        DataError: classes.txt is needed and cannot be read.
    """
    table = read_csv(path)
    faults = [
        _fault(path, line, "fields", f"has {count} fields, not {len(table.header)}.") for line, count in table.ragged
    ]
    rows: list[LabelRow] = []
    line_of: dict[tuple[str, int], int] = {}
    for cells in label_cells(table, class_names):
        row = _parse_row(path, *cells, unite=unite)
        if isinstance(row, Fault):
            faults.append(row)
        elif unite or line_of.setdefault((row.image_id, row.class_id), row.line) == row.line:
            rows.append(row)
        else:
            told = f"stands in line {line_of[row.image_id, row.class_id]} already. Where each is an instance, {_UNITE}."
            message = f"{row.image_id}, ClassId {row.class_id} {told}"
            faults.append(_fault(path, row.line, "duplicate", message, row.image_id))
    spelled = respellings({row.image_id for row in rows}, image_ids, where=path)
    valid = [replace(row, image_id=spelled[row.image_id]) for row in rows]
    return LabelScan(valid, sorted(faults, key=lambda fault: fault.row or 0))


def _fault(path: Path, line: int, kind: str, message: str, image_id: str = "") -> Fault:
    return error(kind, f"{path}, line {line}: {message}", _REMEDIES[kind], image=image_id, row=line)


def label_cells(table: CsvTable, class_names: Names = None) -> Iterator[tuple[int, str, str, str]]:
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
    columns = [name for name in place_of if name != image]
    with_runs = {one for one in columns if any(_RUNS.fullmatch(fields[place_of[one]]) for _, fields in table.rows)}
    if class_names is None and (table.path.parent / CLASSES_NAME).exists():
        class_names = read_class_names(table.path.parent, 0)
    class_ids = {name: str(number) for number, name in enumerate(class_names or (), start=1) if name in columns}
    class_ids = class_ids or _numbered(columns, with_runs)
    others = [name for name in columns if name not in class_ids]
    is_certain = class_ids and with_runs <= class_ids.keys() and len(place_of) == len(named)
    if not is_certain or (image is None and len(others) != 1):
        raise LabelError(
            f"{table.path}: the header '{','.join(table.header)[:200]}' is not known; expected, separated by commas, "
            "'ImageId,ClassId,EncodedPixels', 'ImageId_ClassId,EncodedPixels', or a column for each class "
            f"('ImageId,1,2,3,4'). If these are called otherwise, write all their names into {CLASSES_NAME} beside the "
            "table, one a line. Rename the column of the images to ImageId; delete others that hold run-lengths."
        )
    return place_of[image or others[0]], [(place_of[name], class_id) for name, class_id in class_ids.items()]


def _numbered(columns: Sequence[str], with_runs: Collection[str]) -> dict[str, str]:
    """Name of a column -> ClassId, of columns named by number, or by one word and a number (e1); else nothing.

    Of several words, that of the columns `with_runs` counts; a table without runs has numbers alone.
    """
    numbered = {name: match for name in columns if (match := _NUMBERED.fullmatch(name))}
    words = {match[1] for name, match in numbered.items() if name in with_runs} or {""}
    return {name: match[2] for name, match in numbered.items() if words == {match[1]}}


def _parse_row(path: Path, line: int, image_id: str, class_text: str, encoded: str, *, unite: bool) -> LabelRow | Fault:
    kind, encoded = "image-id", encoded.strip()
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
        hint = f" Overlapping runs: {_UNITE}." if "pair ahead" in str(error) else ""
        return _fault(path, line, kind, str(error).removeprefix(": ") + hint, image_id)
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
        raise LabelError(
            f"ClassId {text!r}; expected a whole number, 1 to {MAX_CLASSES} ({IGNORE_CLASS_ID} to ignore)."
        )
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
