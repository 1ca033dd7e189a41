"""The tables that a prediction run writes, and how they are read back."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from defectseg.errors import CannotContinueError
from defectseg.inference.choice import EVERYTHING, REGIONS, RLE, OutputChoice

PREDICTIONS, IMAGES, REGION_ROWS, ERRORS = "predictions.csv", "images.csv", "regions.csv", "errors.csv"
IMAGE_COLUMNS = (
    *("ImageId", "status", "height", "width", "classes", "regions", "defect_area_px", "defect_area_percent"),
    *("top_score", "notes", "size_bytes", "modified_ns"),
)
TABLES: dict[str, tuple[str, ...]] = {
    PREDICTIONS: ("ImageId", "ClassId", "EncodedPixels"),
    IMAGES: IMAGE_COLUMNS,
    REGION_ROWS: (
        *("ImageId", "ClassId", "class_name", "area_px", "x", "y", "width", "height", "centroid_x", "centroid_y"),
        "score",
    ),
    ERRORS: ("ImageId", "path", "error"),
}
STATUS_DEFECT, STATUS_CLEAN, STATUS_FAILED = "defect", "clean", "failed"
STATUSES = (STATUS_DEFECT, STATUS_CLEAN, STATUS_FAILED)

_OPTIONAL = {PREDICTIONS: RLE, REGION_ROWS: REGIONS}
_MEND_TABLES = "Put the files back as predict wrote them, or redo everything with --overwrite."
_LONGEST_FIELD = 2**31 - 1  # csv stops at 131,072 letters, which the run-lengths of one large mask exceed


@dataclass(frozen=True)
class Record:
    """The rows of one image, as they will stand in the tables.

    `predictions` is empty for a failed image, and, as `regions`, where that table is not wanted.
    """

    image: dict[str, Any]
    predictions: list[list[Any]]
    regions: list[list[Any]]
    errors: list[list[Any]]

    @property
    def image_id(self) -> str:
        """ImageId of the image."""
        return str(self.image["ImageId"])

    @property
    def status(self) -> str:
        """defect, clean or failed."""
        return str(self.image["status"])

    def rows(self, table: str) -> list[list[Any]]:
        """Its rows in one of TABLES."""
        if table == IMAGES:
            return [[self.image[column] for column in IMAGE_COLUMNS]]
        return {PREDICTIONS: self.predictions, REGION_ROWS: self.regions, ERRORS: self.errors}[table]


def tables_of(choice: OutputChoice) -> dict[str, tuple[str, ...]]:
    """The tables that a choice of outputs implies, with their columns."""
    return {
        name: columns for name, columns in TABLES.items() if name not in _OPTIONAL or _OPTIONAL[name] in choice.names
    }


def read_records(root: Path, choice: OutputChoice = EVERYTHING) -> Iterator[Record]:
    """The results in a finished output folder, image by image, in the order of its tables.

    Args:
        root: the folder.
        choice: what was written there; of tables that were not, records hold no rows.

    Raises:
        CannotContinueError: a table is missing, was changed, or does not fit the others.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    with ExitStack() as stack:
        rows = {}
        for name, columns in tables_of(choice).items():
            rows[name] = groupby(_read_table(root / name, columns, stack), key=lambda row: row["ImageId"])
        waiting = {name: next(groups, None) for name, groups in rows.items() if name != IMAGES}
        for image_id, images in rows[IMAGES]:
            found: dict[str, list[list[Any]]] = {name: [] for name in TABLES}
            for name, group in waiting.items():
                if group is not None and group[0] == image_id:
                    found[name] = [list(row.values()) for row in group[1]]
                    waiting[name] = next(rows[name], None)
            yield Record(next(images), found[PREDICTIONS], found[REGION_ROWS], found[ERRORS])
        if any(group is not None for group in waiting.values()):
            raise CannotContinueError(f"{root}: its tables do not list the same images. {_MEND_TABLES}")


def _read_table(path: Path, columns: Sequence[str], stack: ExitStack) -> Iterator[dict[str, str]]:
    """The rows of a table that an earlier run wrote; spreadsheet programs save such files with other separators."""
    try:
        rows = csv.DictReader(stack.enter_context(path.open(encoding="utf-8", newline="")))
        if tuple(rows.fieldnames or ()) != tuple(columns):
            raise CannotContinueError(f"{path}: was changed; expected the columns {', '.join(columns)}. {_MEND_TABLES}")
        for row in rows:
            if len(row) != len(columns) or None in row.values() or row.get("status", STATUS_CLEAN) not in STATUSES:
                raise CannotContinueError(f"{path}, line {rows.line_num}: was changed. {_MEND_TABLES}")
            yield row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise CannotContinueError(f"{path}: cannot be read ({error}). {_MEND_TABLES}") from error
