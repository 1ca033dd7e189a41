"""What `data check --out` leaves on disk: check.json, a contact sheet, and a page of figures and of the worst pairs."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg import files
from defectseg.check.pairs import CopyPair
from defectseg.check.report import CheckReport
from defectseg.copies.descriptors import turned
from defectseg.data.folder import IMAGES_NAME
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES, LabelRow, scan_label_rows
from defectseg.errors import ImageError, LabelError
from defectseg.image import read, rle
from defectseg.image.overlay import encode_jpeg, paint_truth
from defectseg.pages.contact_sheet import choose_evenly, make_contact_sheet
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri

JSON_NAME, SHEET_NAME, PAGE_NAME = "check.json", "contact_sheet.jpg", "report.html"
SHEET_IMAGES = 60
PAGE_PAIRS = 40
PAGE_FAULTS = 300
_PAIR_PX = 800


def output_folder(out: Path, *, overwrite: bool = False) -> AbstractContextManager[None]:
    """Hold the folder for the results of a check. Raises as `files.result_folder` does."""
    own = (JSON_NAME, SHEET_NAME, PAGE_NAME)
    return files.result_folder(out, own, writer="data check", overwrite=overwrite)


def write_check(
    out: Path, root: Path, report: CheckReport, *, against: Path | None = None, bit_depth: int | None = None
) -> None:
    """Write check.json, contact_sheet.jpg and report.html, each whole or not at all.

    Args:
        out: the folder, held by `output_folder`.
        root: the data folder that was checked.
        report: what was found.
        against: the folder that it was compared with, if any.
        bit_depth: that it was checked with.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    own = _Pictures(root, bit_depth)
    other = own if against is None else _Pictures(against, bit_depth)
    sheet = make_contact_sheet(choose_evenly(own.strata(report.image_ids), SHEET_IMAGES), own.load)
    files.write_text(out / JSON_NAME, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    files.write_bytes(out / SHEET_NAME, encode_jpeg(sheet))
    files.write_bytes(out / PAGE_NAME, _page(root, report, own, other, against).encode("utf-8", "backslashreplace"))


class _Pictures:
    """The images of a data folder, or of a plain folder, with their labelled pixels."""

    def __init__(self, root: Path, bit_depth: int | None) -> None:
        self.bit_depth = bit_depth
        labelled = (root / IMAGES_NAME).is_dir()
        self.folder = root / IMAGES_NAME if labelled else root
        table = next((root / name for name in TABLE_NAMES if (root / name).is_file()), None) if labelled else None
        self.rows_of: dict[str, list[LabelRow]] = defaultdict(list)
        for row in scan_label_rows(table).rows if table is not None else ():
            if row.encoded and row.class_id != IGNORE_CLASS_ID:
                self.rows_of[row.image_id].append(row)

    def strata(self, image_ids: Sequence[str]) -> list[list[str]]:
        """ImageIds by set of classes, the fullest sets first."""
        ids_of: dict[frozenset[int], list[str]] = defaultdict(list)
        for image_id in image_ids:
            ids_of[frozenset(row.class_id for row in self.rows_of.get(image_id, ()))].append(image_id)
        return sorted(ids_of.values(), key=lambda ids: (-len(ids), ids))

    def load(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_], str] | None:
        """An image, its labelled pixels, bool (H, W), and its name with its classes; None where it cannot be read."""
        try:
            pixels = read.decode(self.folder / image_id, bit_depth=self.bit_depth).pixels
        except ImageError:
            return None
        truth = np.zeros(pixels.shape, np.bool_)
        found = []
        for row in self.rows_of.get(image_id, ()):
            try:
                truth |= rle.decode(row.encoded, pixels.shape)
            except LabelError:
                continue
            found.append(row.class_id)
        classes = f"class {', '.join(map(str, sorted(found)))}" if found else "clean"
        return pixels, truth, f"{image_id}  {classes}"


@dataclass(frozen=True)
class _ShownPair:
    pair: CopyPair
    leak: bool
    image_uri: str | None
    other_uri: str | None
    wide: bool


def _page(root: Path, report: CheckReport, own: _Pictures, other: _Pictures, against: Path | None) -> str:
    worst = _worst(report)
    return render_page(
        "defectseg.check",
        {"bars": _bars},
        title=f"Check of {root.name or root.resolve().name}",
        report=report,
        against=None if against is None else str(against),
        faults=report.faults[:PAGE_FAULTS],
        pairs=[_show(pair, leak, own, other if leak else own) for pair, leak in worst[:PAGE_PAIRS]],
        all_pairs=len(worst),
    )


def _worst(report: CheckReport) -> list[tuple[CopyPair, bool]]:
    """Leaks, then duplicates, each once; first those whose masks differ, then the most alike."""
    leaks = {(pair.image, pair.other) for pair in report.leaks}
    within = [pair for pair in report.duplicates if (pair.image, pair.other) not in leaks]

    def badness(pair: CopyPair) -> tuple[bool, float, str, str]:
        return pair.masks_agree is not False, -pair.score, pair.image, pair.other

    return [(pair, True) for pair in sorted(report.leaks, key=badness)] + [
        (pair, False) for pair in sorted(within, key=badness)
    ]


def _show(pair: CopyPair, leak: bool, own: _Pictures, other: _Pictures) -> _ShownPair:
    """Both pictures with their labels, the other one turned as the image is."""
    first, second = own.load(pair.image), other.load(pair.other)
    image_uri = other_uri = None
    wide = False
    if first is not None:
        image_uri = data_uri(paint_truth(first[0], first[1]), largest_px=_PAIR_PX)
        wide = first[0].shape[1] > 2 * first[0].shape[0]
    if second is not None:
        other_uri = data_uri(
            paint_truth(turned(second[0], pair.turn), turned(second[1], pair.turn)), largest_px=_PAIR_PX
        )
    return _ShownPair(pair, leak, image_uri, other_uri, wide)


def _bars(histogram: Mapping[str, int]) -> Sequence[tuple[str, int, float]]:
    """Label, count and height in % of the tallest bar."""
    tallest = max(histogram.values(), default=0) or 1
    return [(label, count, 100 * count / tallest) for label, count in histogram.items()]
