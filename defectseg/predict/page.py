"""The page of an output folder, index.html, on which people look through the results."""

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from defectseg.files import resource_errors, write_text
from defectseg.pages.plain import plain_page
from defectseg.predict import tables
from defectseg.predict.names import without_suffix
from defectseg.predict.tables import OutputChoice, Record

MOST_ROWS = 20_000
MOST_BYTES = 7_000_000  # of the rows, whose names may be long
MOST_UNREADABLE = 500
PARTS = 60  # bars of the chart over the order of files
# From the best to the worst. Of a blank image, nobody knows whether it has a defect.
_RANKS = (tables.STATUS_CLEAN, tables.STATUS_BLANK, tables.STATUS_DEFECT)
_LONGEST_NAME = 300  # of an image without a row, in characters
_CALLED_ALIKE = 1  # in a row: the overlay has the name of the image


class ResultsPage:
    """Collects what the page shows, in bounded memory: counts of all images, and the rows of the worst.

    Args:
        choice: the outputs that are written; without the page, nothing is collected, and an older page is deleted.
        class_names: ClassId -> name of the classes that are reported.
        images: how many will be added, in the order of their names.
        overlay_of: the path of an image's overlay within the folder; "" if it has none.
    """

    def __init__(
        self, choice: OutputChoice, class_names: Mapping[int, str], images: int, overlay_of: Callable[[Record], str]
    ) -> None:
        self._choice = choice
        self._class_names = class_names
        self._images = max(1, images)
        self._overlay_of = overlay_of
        self._seen = self._regions = 0
        self._classes: Counter[int] = Counter()  # images with the class
        self._defects: Counter[int] = Counter()
        self._parts = [[0, 0, 0] for _ in range(min(PARTS, self._images))]  # first image, images, those with a defect
        self._worst: list[tuple[Any, str]] = []  # a heap
        self._unreadable: list[tuple[str, str]] = []

    def add(self, record: Record, group: str | None) -> None:
        """Count an image of a group (None: there are no groups), and keep its row if it is among the worst so far."""
        if tables.PAGE not in self._choice.names:
            return
        number, self._seen, status = self._seen, self._seen + 1, record.status
        part = self._parts[min(number * len(self._parts) // self._images, len(self._parts) - 1)]
        if not part[1]:
            part[0] = number
        part[1] += 1
        part[2] += status == tables.STATUS_DEFECT
        if status == tables.STATUS_UNREADABLE:
            if len(self._unreadable) < MOST_UNREADABLE:
                self._unreadable.append((record.image_id[:_LONGEST_NAME], str(record.image["notes"])))
            return
        defects = self._defects_of(record) if status == tables.STATUS_DEFECT else {}
        for class_id, count in defects.items():
            self._classes[class_id] += 1
            self._defects[class_id] += count
        first_region, self._regions = self._regions, self._regions + len(record.regions)
        # The last number makes all keys differ.
        key = _RANKS.index(status), _score(record, "sheet_score") or 0.0, _area_px(record), -number
        if len(self._worst) < MOST_ROWS or key > self._worst[0][0]:
            keep = heapq.heappush if len(self._worst) < MOST_ROWS else heapq.heappushpop
            row = _row(record, number, first_region, defects, self._overlay_of(record), group)
            keep(self._worst, (key, _compact(row)))

    def _defects_of(self, record: Record) -> dict[int, int]:
        """ClassId -> number of defects, which is 0 where regions are not written."""
        if record.regions:
            return Counter(row[1] for row in record.regions)
        names = str(record.image.get("classes")).split("; ")
        return {class_id: 0 for class_id, name in self._class_names.items() if name in names}

    def write(self, root: Path, run: Mapping[str, Any]) -> None:
        """Write the page into the folder, given the content of run.json. Raises ResourceError."""
        if tables.PAGE not in self._choice.names:
            with resource_errors(root):
                (root / tables.INDEX).unlink(missing_ok=True)
            return
        self._worst.sort(reverse=True)
        rows, left = [], MOST_BYTES
        for _, row in self._worst:
            left -= len(row.encode(errors="replace"))
            if left < 0:
                break
            rows.append(row)
        choice = self._choice
        about = {
            "statuses": run["images_in_folder"],
            "classes": [[*one, self._classes[one[0]], self._defects[one[0]]] for one in self._class_names.items()],
            "parts": self._parts,
            "unreadable": self._unreadable,
            "files": [*tables.tables_of(choice), *([] if choice.group is None else [tables.BY_GROUP]), "run.json"],
            "has_regions": tables.REGIONS in choice.names,
            "mm2_per_px": None if choice.mm_per_px is None else math.prod(choice.mm_per_px),
            "unlike": run["unlike"],
            "warnings": run.get("warnings", []),
            "rules": run.get("fail_on"),
            "facts": {"Model": run.get("model"), "Computed by": run.get("runtime")},
        }
        lines = ",\n".join(rows)
        content = f'{{"about":{_compact(about)},"rows":[\n{lines}\n]}}'
        here = Path(__file__)
        html, style, script = (here.with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".css", ".js"))
        html += f'<script id="data" type="application/json">{content}</script>'
        write_text(root / tables.INDEX, plain_page("Results", style=style, content=html, script=script))


def _row(
    record: Record, number: int, first_region: int, defects: Mapping[int, int], overlay: str, group: str | None
) -> list[Any]:
    """The row of an image, as page.js reads it."""
    beside = f"{tables.OVERLAYS}/{without_suffix(record.image_id)}{tables.PICTURES[tables.OVERLAYS]}"
    place = number, record.image_id, _CALLED_ALIKE if overlay == beside else overlay
    scores = _score(record, "sheet_score"), _score(record, "top_score")
    areas_px = _area_px(record), max((row[3] for row in record.regions), default=0)
    found = first_region, [figure for pair in defects.items() for figure in pair]
    unlike = _score(record, "unlike"), record.image.get("differs", "")
    return [
        *(*place, _RANKS.index(record.status), *record.size_hw, *scores, *areas_px, *found),
        *(*unlike, group, record.image["notes"]),
    ]


def _area_px(record: Record) -> int:
    area_px = record.image.get("defect_area_px")
    return area_px if isinstance(area_px, int) else 0


def _score(record: Record, column: str) -> float | None:
    """A number of images.csv from 0; None where the cell has none."""
    cell = str(record.image.get(column, ""))
    return float(cell) if cell.replace(".", "", 1).isdecimal() else None


def _compact(content: Any) -> str:
    """JSON in which no tag or comment of HTML begins, and that has one line."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")
