"""Many pictures on one sheet, small, each with a line of text."""

from collections.abc import Sequence
from itertools import zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.overlay import shortened

Image = NDArray[np.uint8]

SHEET_WIDTH_PX = 1640
_GAP_PX = 10
_TEXT_PX = 18
_WIDE = 3.0  # width / height from which on a tile takes half of the sheet's width
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
_PAPER_BGR, _TEXT_BGR = (28, 28, 28), (225, 225, 225)


def make_contact_sheet(shown: Sequence[tuple[Image, str]], heading: str = "") -> Image:
    """Lay out pictures in rows, each with a line of text below it.

    Args:
        shown: pictures, BGR uint8 (H, W, 3), and their texts, in the order to show.
        heading: a line above all; "": none.

    Returns:
        uint8 (h, 1640, 3), BGR.
    """
    aspects = [picture.shape[1] / picture.shape[0] for picture, _ in shown]
    columns = 2 if aspects and float(np.median(aspects)) >= _WIDE else 6
    tile_px = (SHEET_WIDTH_PX - (columns + 1) * _GAP_PX) // columns
    rows = [_row(shown[start : start + columns], tile_px) for start in range(0, len(shown), columns)]
    if heading:
        rows.insert(0, _paper(3 * _GAP_PX))
        _write(rows[0], heading, (_GAP_PX, 3 * _GAP_PX - 6), SHEET_WIDTH_PX - 2 * _GAP_PX, 0.7)
    return np.vstack([*rows, _paper(_GAP_PX)])


def choose_evenly(strata: Sequence[Sequence[str]], most: int) -> list[str]:
    """Take names from each stratum in turn until there are `most`; short strata are used up, long ones spread out."""
    spread = [names[:: max(1, len(names) // most)] for names in strata]
    return [name for names in zip_longest(*spread) for name in names if name is not None][:most]


def _paper(height_px: int) -> Image:
    return np.full((height_px, SHEET_WIDTH_PX, 3), _PAPER_BGR, np.uint8)


def _row(shown: Sequence[tuple[Image, str]], tile_px: int) -> Image:
    tiles = [_fit(picture, tile_px) for picture, _ in shown]
    row = _paper(_GAP_PX + max(len(tile) for tile in tiles) + _TEXT_PX)
    for number, (tile, (_, text)) in enumerate(zip(tiles, shown, strict=True)):
        left = _GAP_PX + number * (tile_px + _GAP_PX)
        row[_GAP_PX : _GAP_PX + len(tile), left : left + tile.shape[1]] = tile
        _write(row, text, (left, _GAP_PX + len(tile) + _TEXT_PX - 5), tile_px, _FONT_SCALE)
    return row


def _write(paper: Image, text: str, baseline: tuple[int, int], width_px: int, scale: float) -> None:
    """Write a line. The start of a text that is too long is cut, since names differ at their ends."""
    plain = shortened(text.encode("ascii", "replace").decode(), width_px, scale, keep_end=True)
    cv2.putText(paper, plain, baseline, _FONT, scale, _TEXT_BGR, 1, cv2.LINE_AA)


def _fit(picture: Image, width_px: int) -> Image:
    """Scale to a width, and to that height at most."""
    height, width = picture.shape[:2]
    scale = width_px / max(width, height)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size_wh, interpolation=way), np.uint8)
