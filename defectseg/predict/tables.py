"""The outputs of a prediction run, and the rows of its tables."""

import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from defectseg.data.names import match_groups
from defectseg.errors import UsageError
from defectseg.image.appearance import Readable

OVERLAYS, MASKS, RLE, REGIONS, PAGE = "overlays", "masks", "rle", "regions", "page"
OUTPUTS = (OVERLAYS, MASKS, RLE, REGIONS, PAGE)
PICTURES = {OVERLAYS: ".jpg", MASKS: ".png"}


@dataclass(frozen=True)
class OutputChoice:
    """The outputs to write besides images.csv, errors.csv and run.json.

    Attributes:
        names: some of OUTPUTS, in that order.
        overlays: images that get an overlay: "all" or "defects"; "all" if `names` has no overlays.
        mm_per_px: width and height of a pixel, for the columns in mm of regions.csv; None: without them.
        group: regular expression that finds the group of an image in its ImageId, for the column `group` of images.csv
            and for by_group.csv; None: without them.
    """

    names: tuple[str, ...] = OUTPUTS
    overlays: str = "all"
    mm_per_px: tuple[float, float] | None = None
    group: str | None = None

    @property
    def pictures(self) -> list[str]:
        """Those of PICTURES that are written."""
        return [kind for kind in PICTURES if kind in self.names]

    @property
    def stored(self) -> dict[str, Any]:
        """What stored rows and pictures depend on: all but the page, which every run makes anew from them."""
        return asdict(replace(self, names=tuple(name for name in self.names if name != PAGE)))

    def has_overlay(self, *, with_defect: bool) -> bool:
        """Whether an image gets an overlay."""
        return OVERLAYS in self.names and (with_defect or self.overlays == "all")


ALL_OUTPUTS = OutputChoice()


def choose_outputs(
    outputs: Sequence[str] | None,
    overlays: str | None,
    mm_per_px: tuple[float, float] | None = None,
    group: str | None = None,
) -> OutputChoice:
    """The choice according to options of the command line; None: not given.

    Args:
        outputs: some of OUTPUTS; None: all.
        overlays: images that get an overlay: all, defects or none; None: all, if `outputs` includes overlays.
        mm_per_px, group: see OutputChoice.

    Raises:
        UsageError: an unknown name, no name, a size that is not above 0, or two arguments that contradict each other.
    """
    expected = f"expected some of {', '.join(OUTPUTS)}"
    if outputs is not None and not outputs:
        raise UsageError(f"names nothing; {expected}. Leave it out for all.", argument="outputs")
    if unknown := [name for name in outputs or () if name not in OUTPUTS]:
        raise UsageError(f"{expected}, found {unknown[0]}.", argument="outputs")
    if outputs is not None and overlays is not None and (OVERLAYS in outputs) == (overlays == "none"):
        raise UsageError(f"{overlays} contradicts the outputs {','.join(outputs)}. Leave one out.", argument="overlays")
    unwanted = OVERLAYS if overlays == "none" else ""
    names = tuple(name for name in OUTPUTS if name in (outputs or OUTPUTS) and name != unwanted)
    if mm_per_px is not None and not all(0 < side < math.inf for side in mm_per_px):
        raise UsageError(f"expected sizes above 0, found {mm_per_px}.", argument="mm_per_px")
    if group is not None:
        match_groups(group, ())
    for argument, value in {"mm_per_px": mm_per_px, "group": group}.items():
        if value is not None and REGIONS not in names:
            raise UsageError(f"needs regions.csv. Add {REGIONS} to the outputs {','.join(names)}.", argument=argument)
    return OutputChoice(names, (overlays or "all") if OVERLAYS in names else "all", mm_per_px, group)


PREDICTIONS, IMAGES, REGION_ROWS, ERRORS = "predictions.csv", "images.csv", "regions.csv", "errors.csv"
IMAGE_COLUMNS = (
    *("ImageId", "status", "height", "width", "classes", "regions", "defect_area_px", "defect_area_percent"),
    *("top_score", "sheet_score", "notes", "size_bytes", "modified_ns"),
    *("unlike", "differs", *Readable._fields),
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
INDEX = "index.html"  # the page
BY_GROUP, GROUP_COLUMNS = "by_group.csv", ("group", "images", "unreadable", "defective")  # then regions of each class
MM_COLUMNS = ("length_mm", "width_mm", "area_mm2", "direction_deg")  # of regions.csv, at its end, if asked for
STATUS_DEFECT, STATUS_CLEAN, STATUS_BLANK, STATUS_UNREADABLE = "defect", "clean", "blank", "unreadable"
STATUSES = (STATUS_DEFECT, STATUS_CLEAN, STATUS_BLANK, STATUS_UNREADABLE)


def counts_of(statuses: Counter[str]) -> dict[str, int]:
    """Entries of run.json: the numbers of images processed, among these with a defect and blank, and unreadable."""
    return {
        "processed": statuses.total() - statuses[STATUS_UNREADABLE],
        "with_defect": statuses[STATUS_DEFECT],
        STATUS_BLANK: statuses[STATUS_BLANK],
        STATUS_UNREADABLE: statuses[STATUS_UNREADABLE],
    }


_OPTIONAL = {PREDICTIONS: RLE, REGION_ROWS: REGIONS}


@dataclass(frozen=True)
class Record:
    """The rows of one image in the tables.

    `image` maps IMAGE_COLUMNS to values, without columns that were added after the record was written. `predictions` is
    empty for an unreadable image. `predictions` and `regions` are empty if that table is not written. `appearance`
    describes the image, see `appearance_of`; it is empty for one that is blank or unreadable.
    """

    image: dict[str, Any]
    predictions: list[list[Any]]
    regions: list[list[Any]]
    errors: list[list[Any]]
    appearance: list[float] = field(default_factory=list)

    @property
    def image_id(self) -> str:
        """ImageId of the image."""
        return str(self.image["ImageId"])

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in px, if it is readable. Raises TypeError where they are no numbers."""
        return operator.index(self.image["height"]), operator.index(self.image["width"])

    @property
    def status(self) -> str:
        """One of STATUSES; an empty image in which nothing was found is `blank`."""
        return str(self.image["status"])

    def rows(self, table: str) -> list[list[Any]]:
        """Its rows in one of TABLES; the cell of a column that was added later is empty."""
        if table == IMAGES:
            return [[self.image.get(column, "") for column in IMAGE_COLUMNS]]
        rows = {PREDICTIONS: self.predictions, REGION_ROWS: self.regions, ERRORS: self.errors}[table]
        return [[*row, *[""] * (len(TABLES[table]) - len(row))] for row in rows]

    @property
    def younger_columns(self) -> list[str]:
        """The columns of images.csv and regions.csv that were added after the record was written."""
        of_image = [column for column in IMAGE_COLUMNS if column not in self.image]
        return of_image + [column for row in self.regions[:1] for column in TABLES[REGION_ROWS][len(row) :]]


def tables_of(choice: OutputChoice) -> dict[str, tuple[str, ...]]:
    """The tables of a choice of outputs, with their columns."""
    image_columns = IMAGE_COLUMNS if choice.group is None else (*IMAGE_COLUMNS, "group")
    columns = {**TABLES, IMAGES: image_columns, REGION_ROWS: region_columns(choice)}
    return {name: columns[name] for name in TABLES if _OPTIONAL.get(name) in (None, *choice.names)}


def region_columns(choice: OutputChoice) -> tuple[str, ...]:
    """The columns of regions.csv, if it is written."""
    return TABLES[REGION_ROWS] if choice.mm_per_px is None else TABLES[REGION_ROWS] + MM_COLUMNS
