"""Polygons around masks, and masks from polygons.

Two conventions are in use, and half a pixel lies between them. In COCO, the pixel in column x covers x to x + 1, and
belongs to a polygon that holds its centre. In YOLO's world, outlines run through the pixels at the border, as
`cv2.findContours` gives them, and these pixels belong to the shape. Each is drawn here so that reading it by the rule
of its own world gives the mask again, pixel by pixel, but for holes, which a polygon cannot have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """One connected region, cut out.

    Attributes:
        box_xywh: where it was cut: left, top, width, height in pixels.
        area_px: number of its pixels.
        mask: bool (height, width) of the box.
    """

    box_xywh: tuple[int, int, int, int]
    area_px: int
    mask: NDArray[np.bool_]

    def place(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """The region alone in an image of that size, bool (H, W)."""
        left, top, width, height = self.box_xywh
        whole = np.zeros(size_hw, np.bool_)
        whole[top : top + height, left : left + width] = self.mask
        return whole


def cut_pieces(mask: NDArray[np.bool_]) -> Iterator[Piece]:
    """The 8-connected regions of a mask, bool (H, W), by top, then left edge."""
    if not mask.any():
        return
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    numbered = enumerate(np.asarray(stats).tolist()[1:], start=1)  # 0 is the background
    for number, (left, top, width, height, area_px) in sorted(numbered, key=lambda one: (one[1][1], one[1][0])):
        box = np.asarray(labels)[top : top + height, left : left + width]
        yield Piece((left, top, width, height), area_px, box == number)


def outline(piece: Piece, *, tolerance_px: float = 0.0) -> NDArray[np.float64]:
    """The outer border of a region in COCO's convention, float64 (N, 2): x and y in the image, at least three points.

    It runs a quarter of a pixel inside the region's edge, so that every centre of its pixels lies within and none of
    others', whatever the rounding of the reader. Holes are not seen.

    Args:
        piece: the region.
        tolerance_px: leave out points as long as the line moves by no more than this. 0 keeps the region exact.
    """
    doubled = np.repeat(np.repeat(piece.mask.view(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    (contour,) = contours
    if tolerance_px:
        simpler = cv2.approxPolyDP(contour, 2 * tolerance_px, closed=True)
        contour = simpler if len(simpler) >= 3 else contour
    return (np.asarray(contour).reshape(-1, 2) + 0.5) / 2 + piece.box_xywh[:2]


def pixel_outline(piece: Piece) -> NDArray[np.intp]:
    """The border pixels of a region in order, int (N, 2): x and y in the image. Holes are not seen."""
    contours, _ = cv2.findContours(piece.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    (contour,) = contours
    return np.asarray(contour, np.intp).reshape(-1, 2) + piece.box_xywh[:2]


def paint_pixel_outlines(outlines: Sequence[NDArray[np.intp]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill shapes given by the pixels on their border, which belong to them; bool (H, W)."""
    canvas = np.zeros(size_hw, np.uint8)
    for points in outlines:
        cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    return canvas.view(np.bool_)


def count_hole_px(mask: NDArray[np.bool_]) -> int:
    """Number of pixels that the outlines of a mask's regions, bool (H, W), enclose without their being part of it."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    filled = paint_pixel_outlines([np.asarray(contour, np.intp).reshape(-1, 2) for contour in contours], mask.shape)
    return int(np.count_nonzero(filled)) - int(np.count_nonzero(mask))
