"""Many labelled images on one picture, small, the labelled pixels blue."""

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.overlay import paint_truth

Image = NDArray[np.uint8]

SHEET_WIDTH_PX = 1640
_GAP_PX = 10
_TEXT_PX = 18
_WIDE = 3.0  # width / height from which on a tile takes half of the sheet's width
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
_PAPER_BGR, _TEXT_BGR = (28, 28, 28), (225, 225, 225)


def make_contact_sheet(
    names: Sequence[str], load: Callable[[str], tuple[Image, NDArray[np.bool_], str] | None]
) -> Image:
    """Lay out images in rows, each with a line of text below it.

    Args:
        names: ImageIds, in the order to show.
        load: gives an image, grey uint8 (H, W), its labelled pixels, bool (H, W), and its text; None where it cannot be
            read, and then it is left out.

    Returns:
        uint8 (h, 1640, 3), BGR.
    """
    shown = [(paint_truth(image, truth), text) for image, truth, text in filter(None, map(load, names))]
    aspects = [picture.shape[1] / picture.shape[0] for picture, _ in shown]
    wide = bool(aspects) and float(np.median(aspects)) >= _WIDE
    columns = 2 if wide else 6
    tile_px = (SHEET_WIDTH_PX - (columns + 1) * _GAP_PX) // columns
    rows = [
        _row([(_fit(picture, tile_px), text) for picture, text in shown[start : start + columns]], tile_px)
        for start in range(0, len(shown), columns)
    ]
    return np.vstack([*rows, _paper(_GAP_PX)])


def choose_evenly(strata: Sequence[Sequence[str]], most: int) -> list[str]:
    """Take names from each stratum in turn until there are `most`; short strata are used up, long ones spread out."""
    waiting = [_spread(names, most) for names in strata if names]
    chosen: list[str] = []
    while waiting and len(chosen) < most:
        for names in list(waiting):
            name = next(names, None)
            if name is None:
                waiting.remove(names)
            elif len(chosen) < most:
                chosen.append(name)
    return chosen


def _spread(names: Sequence[str], most: int) -> Iterator[str]:
    step = max(1, len(names) // most)
    return iter(names[::step])


def _paper(height_px: int) -> Image:
    return np.full((height_px, SHEET_WIDTH_PX, 3), _PAPER_BGR, np.uint8)


def _fit(picture: Image, width_px: int) -> Image:
    """Shrink to a width, and to that height at most."""
    height, width = picture.shape[:2]
    scale = min(width_px / width, width_px / height)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size_wh, interpolation=way), np.uint8)


def _row(tiles: Sequence[tuple[Image, str]], tile_px: int) -> Image:
    height = max(picture.shape[0] for picture, _ in tiles)
    row = _paper(_GAP_PX + height + _TEXT_PX)
    for number, (picture, text) in enumerate(tiles):
        left = _GAP_PX + number * (tile_px + _GAP_PX)
        row[_GAP_PX : _GAP_PX + picture.shape[0], left : left + picture.shape[1]] = picture
        baseline = (left, _GAP_PX + picture.shape[0] + _TEXT_PX - 5)
        cv2.putText(row, _shorten(text, tile_px), baseline, _FONT, _FONT_SCALE, _TEXT_BGR, 1, cv2.LINE_AA)
    return row


def _shorten(text: str, width_px: int) -> str:
    """ASCII text that fits; of what is too long, the start is cut, since names differ at their ends."""
    plain = text.encode("ascii", "replace").decode()
    needed_px = cv2.getTextSize(plain, _FONT, _FONT_SCALE, 1)[0][0]
    if needed_px <= width_px:
        return plain
    kept = max(1, math.floor(len(plain) * width_px / needed_px) - 3)
    return f"..{plain[-kept:]}"
