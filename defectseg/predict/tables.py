"""The tables that a prediction run writes, and how they are read back."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from defectseg.errors import CannotContinueError, UsageError

OVERLAYS, MASKS, RLE, REGIONS = "overlays", "masks", "rle", "regions"
OUTPUTS = (OVERLAYS, MASKS, RLE, REGIONS)
OVERLAYS_OF = ("all", "defects", "none")


@dataclass(frozen=True)
class OutputChoice:
    """What is written besides images.csv, errors.csv and run.json.

    Attributes:
        names: some of OUTPUTS, in their order.
        overlays: which images get an overlay, all or those with defects; all where none gets one.
    """

    names: tuple[str, ...] = OUTPUTS
    overlays: str = "all"

    def has_overlay(self, *, with_defect: bool) -> bool:
        """Whether an image gets an overlay."""
        return OVERLAYS in self.names and (with_defect or self.overlays == "all")

    def as_json(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def from_run(cls, run: dict[str, Any]) -> "OutputChoice":
        """What the content of a run.json says; everything, where nothing else was asked for.

        Raises:
            KeyError, TypeError: it was not written by `predict`.
        """
        stored = run["key"].get("outputs")
        return cls() if stored is None else cls(tuple(map(str, stored["names"])), str(stored["overlays"]))


EVERYTHING = OutputChoice()


def choose_outputs(outputs: Sequence[str] | None, overlays: str | None) -> OutputChoice:
    """What the flags --outputs and --overlays ask for; None stands for a flag that is not given.

    Raises:
        UsageError: a name that there is not, no name at all, or two flags that contradict each other.
    """
    if outputs is not None and not outputs:
        raise UsageError(f"--outputs names nothing; expected some of {', '.join(OUTPUTS)}. Leave it out for all.")
    for name in outputs or ():
        if name not in OUTPUTS:
            raise UsageError(f"--outputs {name}: expected some of {', '.join(OUTPUTS)}, with commas between them.")
    if overlays is not None and overlays not in OVERLAYS_OF:
        raise UsageError(f"--overlays {overlays}: expected {', '.join(OVERLAYS_OF)}.")
    if outputs is not None and overlays is not None and (OVERLAYS in outputs) == (overlays == "none"):
        raise UsageError(
            f"--outputs {','.join(outputs)} and --overlays {overlays} contradict each other. Leave one of them out."
        )
    names = tuple(
        name for name in OUTPUTS if name in (outputs or OUTPUTS) and not (name == OVERLAYS and overlays == "none")
    )
    return OutputChoice(names, (overlays or "all") if OVERLAYS in names else "all")


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
STATUS_DEFECT, STATUS_CLEAN, STATUS_BLANK, STATUS_FAILED = "defect", "clean", "blank", "failed"
STATUSES = (STATUS_DEFECT, STATUS_CLEAN, STATUS_BLANK, STATUS_FAILED)

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
        """One of STATUSES; blank is an image without a finding that shows nothing."""
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
