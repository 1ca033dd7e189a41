"""The smallest rectangles around the regions of a mask, in mm."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.regions import box_of

_EQUAL = 1e-9  # sizes that differ by less, in proportion, do so by rounding


class Rectangle(NamedTuple):
    """A rectangle that may be turned.

    Attributes:
        length_mm: the longer side.
        width_mm: the shorter side.
        direction_deg: of the longer side, from the rows, counter-clockwise as seen in the image; from 0, below 180.
            The smaller one if the sides are equal.
    """

    length_mm: float
    width_mm: float
    direction_deg: float


def rectangles_by_box(
    mask: NDArray[np.bool_], mm_per_px: tuple[float, float]
) -> dict[tuple[int, int, int, int], Rectangle]:
    """The rectangle of each 8-connected region of a mask.

    Args:
        mask: bool (H, W).
        mm_per_px: width and height of a pixel.

    Returns:
        `box_xywh` of a region -> its rectangle. No two regions of a mask have the same box: what reaches from its left
        to its right edge, and what reaches from its top to its bottom, would touch.
    """
    box = box_of(mask)
    pixels = np.ascontiguousarray(mask[box]).view(np.uint8)
    corner_xy = box[1].start, box[0].start
    outlines, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=corner_xy)
    found = {}
    for index, outline in enumerate(outlines):
        if tree[0, index, 3] < 0:  # the others are outlines of holes
            left, top, width, height = cv2.boundingRect(outline)
            found[left, top, width, height] = _smallest(cv2.convexHull(outline)[:, 0], mm_per_px)
    return found


def _smallest(hull: NDArray[Any], mm_per_px: tuple[float, float]) -> Rectangle:
    """The rectangle of least area around the pixels of a hull (N, 2), x and y; the one of least direction of several.

    One side of it lies along an edge of the hull, or along the rows or the columns. It goes beyond the centres of the
    outer pixels by half a pixel along the rows and the columns, and by less between them (by half the way through the
    rhombus of the middles of a pixel's sides): slanted edges are stairs, whose tips lie outside of what is depicted.
    """
    x_mm, y_mm = mm_per_px
    points = (hull - hull[0]) @ np.array((x_mm, -1j * y_mm))  # complex numbers, the imaginary axis upwards
    edges = np.concatenate([points[1:] - points[:-1], points[:1] - points[-1:], (1, 1j)])
    along = edges[edges != 0]
    along /= np.abs(along)
    turned = points[:, None] * along.conj()
    right, up = np.abs(along.real), np.abs(along.imag)
    lengths = np.ptp(turned.real, axis=0) + x_mm * y_mm / (right * y_mm + up * x_mm)
    widths = np.ptp(turned.imag, axis=0) + x_mm * y_mm / (up * y_mm + right * x_mm)
    areas = lengths * widths
    degrees = np.round(np.angle(along, deg=True) + 90 * (lengths < widths * (1 - _EQUAL)), 6) % 180
    best = np.where(areas <= areas.min() * (1 + _EQUAL), degrees, np.inf).argmin()
    width_mm, length_mm = sorted((float(lengths[best]), float(widths[best])))
    return Rectangle(length_mm, width_mm, float(degrees[best]))
