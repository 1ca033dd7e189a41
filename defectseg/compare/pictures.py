"""A, the label and B, side by side."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle
from defectseg.image.overlay import paint_prediction, shortened

_GAP_PX, _TEXT_PX, _FONT_SCALE = 10, 22, 0.5  # of a picture 800 px wide; wider ones are shown smaller
_PAPER_GREY, _TEXT_BGR = 28, (235, 235, 235)

Panel = tuple[NDArray[np.uint8], str]
"""A picture, BGR uint8 (H, W, 3), and the line of text below it."""


def paint_answer(side: str, pixels: NDArray[np.uint8], masks: Mapping[int, str], class_names: Sequence[str]) -> Panel:
    """An image, grey uint8 (H, W), with the run-lengths by ClassId that one side answers. Raises LabelError."""
    found = sorted(masks)
    decoded = [rle.decode(masks[class_id], (pixels.shape[0], pixels.shape[1]), where=side) for class_id in found]
    names = [class_names[class_id - 1] for class_id in found]
    painted = paint_prediction(pixels, np.array(decoded, np.bool_).reshape(-1, *pixels.shape), names)[: len(pixels)]
    return painted, f"{side}: {', '.join(names) or 'sound'}"


def place_beside(panels: Sequence[Panel]) -> NDArray[np.uint8]:
    """Pictures of one size in one, BGR uint8 (H, W, 3): side by side, or if they are wide, one above the other."""
    height, width = panels[0][0].shape[:2]
    stacked = width >= 2 * height
    grown = min(max(width / 800, 1.0), 3.0)
    text_px, scale = round(_TEXT_PX * grown), _FONT_SCALE * grown
    tiles = []
    for picture, text in panels:
        size_hw = height + text_px + _GAP_PX * stacked, width + _GAP_PX * (not stacked)
        tile = np.full((*size_hw, 3), _PAPER_GREY, np.uint8)
        tile[:height, :width] = picture
        plain = shortened(text.encode("ascii", "replace").decode(), width - _GAP_PX, scale)
        where = (_GAP_PX, height + round(16 * grown))
        cv2.putText(tile, plain, where, cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT_BGR, round(grown), cv2.LINE_AA)
        tiles.append(tile)
    return np.concatenate(tiles, axis=0 if stacked else 1)
