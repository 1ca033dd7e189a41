"""Polygons around masks, and masks from polygons.

Two conventions exist, half a pixel apart. In COCO, the pixel in column x covers x to x + 1, and it belongs to a polygon
that contains its centre. In YOLO data sets, outlines run through the border pixels, as `cv2.findContours` gives them,
and these pixels belong to the shape. An outline that is drawn here and read by the rule of its own convention gives the
mask again, pixel by pixel, except for holes, which a polygon cannot have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats import coco_rle
from defectseg.formats.common import Tally


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

    It runs a quarter of a pixel inside the region's edge. So it contains the centres of the region's pixels and of no
    others, however a reader rounds. Holes are ignored.

    Args:
        piece: the region.
        tolerance_px: leave out points as long as the line moves by no more than this. 0 keeps the region exact.
    """
    doubled = np.repeat(np.repeat(piece.mask.view(np.uint8), 2, axis=0), 2, axis=1)
    (contour,), _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if tolerance_px:
        simpler = cv2.approxPolyDP(contour, 2 * tolerance_px, closed=True)
        contour = simpler if len(simpler) >= 3 else contour
    return (np.asarray(contour).reshape(-1, 2) + 0.5) / 2 + piece.box_xywh[:2]


def paint_outlines(
    polygons: Sequence[list[float]], size_hw: tuple[int, int], *, where: str, tally: Tally | None = None
) -> NDArray[np.bool_]:
    """The union of polygons in COCO's convention, bool (H, W), filled by pycocotools.

    Args:
        polygons: each a list x1, y1, x2, y2 and so on, in pixels. Polygons of fewer than three points are skipped.
        size_hw: height and width of the image in pixels.
        where: names the annotation in messages.
        tally: told if a polygon reaches beyond the image.

    Raises:
        LabelError: a point is not a number, or lies far outside the image. pycocotools would crash.
    """
    from pycocotools import mask as coco

    filled = [polygon for polygon in polygons if len(polygon) >= 6]
    if not filled:
        return np.zeros(size_hw, np.bool_)
    points = np.reshape(np.concatenate(filled), (-1, 2))
    if not lies_within(points, size_hw, beyond_px=size_hw[::-1]):
        raise LabelError(
            f"{where}: has points from {points.min():g} to {points.max():g}, far outside its image of {size_hw[1]} x "
            f"{size_hw[0]}. Export the labels again at the images' own size."
        )
    if tally is not None and not lies_within(points, size_hw):
        tally.add("clipped", example=where.rpartition(": ")[2])
    counts = coco.merge(coco.frPyObjects(filled, *size_hw))["counts"].decode("ascii")
    return coco_rle.decode({"size": list(size_hw), "counts": counts}, size_hw, where=where)


def lies_within(
    points: NDArray[np.float64], size_hw: tuple[int, int], *, beyond_px: tuple[float, float] = (0.5, 0.5)
) -> bool:
    """Whether points, (N, 2), x and y in px, lie in an image or no more than `beyond_px`, x and y, beyond it."""
    return bool(((points >= np.negative(beyond_px)) & (points <= np.add(size_hw[::-1], beyond_px))).all())


def pixel_outline(piece: Piece) -> NDArray[np.intp]:
    """The border pixels of a region in order, int (N, 2): x and y in the image. Holes are ignored."""
    (contour,), _ = cv2.findContours(piece.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contour, np.intp).reshape(-1, 2) + piece.box_xywh[:2]


def count_hole_px(mask: NDArray[np.bool_]) -> int:
    """Number of pixels outside a mask, bool (H, W), that the outlines of its regions enclose."""
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = cv2.drawContours(np.zeros_like(pixels), contours, -1, 1, cv2.FILLED)
    return int(np.count_nonzero(filled)) - int(np.count_nonzero(mask))
