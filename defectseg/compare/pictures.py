"""A, the label and B, side by side."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle
from defectseg.image.overlay import paint_prediction, shortened

Picture = NDArray[np.uint8]

_GAP_PX, _TEXT_PX, _FONT_SCALE = 10, 22, 0.5
_PAPER_GREY, _TEXT_BGR = 28, (235, 235, 235)


def decode_masks(masks: Mapping[int, str], size_hw: tuple[int, int], classes: int, *, where: str) -> NDArray[np.bool_]:
    """Decode run-lengths by ClassId to masks, bool (C, H, W). Raises LabelError, whose message begins with `where`."""
    decoded = np.zeros((classes, *size_hw), np.bool_)
    for class_id, encoded in masks.items():
        decoded[class_id - 1] = rle.decode(encoded, size_hw, where=f"{where}, class {class_id}")
    return decoded


def paint_answer(
    pixels: NDArray[np.uint8], masks: Mapping[int, str], class_names: Sequence[str], *, where: str
) -> tuple[Picture, str]:
    """An image, grey uint8 (H, W), with the answer in red, BGR uint8 (H, W, 3), and the names of the classes found."""
    decoded = decode_masks(masks, (pixels.shape[0], pixels.shape[1]), len(class_names), where=where)
    found = ", ".join(class_names[class_id - 1] for class_id in sorted(masks)) or "sound"
    return paint_prediction(pixels, decoded, class_names)[: len(pixels)], found


def place_beside(panels: Sequence[tuple[Picture, str]]) -> Picture:
    """Pictures of one size with a line of text below each: side by side, or where they are wide, one above the other."""
    height, width = panels[0][0].shape[:2]
    tiles = []
    for picture, text in panels:
        tile = np.full((height + _TEXT_PX + _GAP_PX, width + _GAP_PX, 3), _PAPER_GREY, np.uint8)
        tile[:height, :width] = picture
        plain = shortened(text.encode("ascii", "replace").decode(), width, _FONT_SCALE)
        baseline = (2, height + _TEXT_PX - 6)
        cv2.putText(tile, plain, baseline, cv2.FONT_HERSHEY_SIMPLEX, _FONT_SCALE, _TEXT_BGR, 1, cv2.LINE_AA)
        tiles.append(tile)
    return np.concatenate(tiles, axis=0 if width >= 2 * height else 1)
