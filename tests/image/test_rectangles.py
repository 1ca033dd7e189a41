"""Lengths, widths and directions of drawn shapes."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defectseg.image.rectangles import rectangles_by_box
from defectseg.image.regions import find_regions

MM = (0.5, 0.8)  # a pixel along the rows and across them


def _drawn(length_mm: float, width_mm: float, direction_deg: float, shift_px: Iterable[float]) -> NDArray[np.bool_]:
    """A rectangle on pixels of MM: those whose centre it holds. It is turned counter-clockwise as seen, so y is up."""
    height, width = 140, 200
    x_px, y_px = np.arange(width)[None], np.arange(height)[:, None]
    shift_x, shift_y = shift_px
    right_mm, up_mm = (x_px - width / 2 - shift_x) * MM[0], (height / 2 + shift_y - y_px) * MM[1]
    turn = math.radians(direction_deg)
    along = right_mm * math.cos(turn) + up_mm * math.sin(turn)
    across = up_mm * math.cos(turn) - right_mm * math.sin(turn)
    return np.asarray((abs(along) <= length_mm / 2) & (abs(across) <= width_mm / 2))


@pytest.mark.parametrize("size_mm", [(60, 12), (60, 1.5), (40, 24)])
def test_drawn_rectangles_have_their_length_width_and_direction_however_they_are_turned(
    size_mm: tuple[float, float],
) -> None:
    random = np.random.default_rng(3)
    for wanted_deg in range(180):
        mask = _drawn(*size_mm, wanted_deg, random.uniform(-0.5, 0.5, 2))

        ((length_mm, width_mm, direction_deg),) = rectangles_by_box(mask, MM).values()

        assert (length_mm, width_mm) == pytest.approx(size_mm, abs=max(MM) + 1e-9), wanted_deg
        assert 0 <= direction_deg < 180
        assert abs((direction_deg - wanted_deg + 90) % 180 - 90) <= 2, "179 is near 1"


DIAGONAL = np.eye(5)
SHAPES = {
    "a pixel is as long as its longer side": (np.ones((1, 1)), MM, (0.8, 0.5, 90)),
    "along the rows": (np.ones((1, 4)), MM, (2, 0.8, 0)),
    "across the rows": (np.ones((4, 1)), MM, (3.2, 0.5, 90)),
    "equal sides have the smaller direction": (np.ones((5, 8)), MM, (4, 4, 0)),
    # Four diagonals from centre to centre, and a quarter at each end; what falls to the right is beyond 90 degrees.
    "falling": (DIAGONAL, (1, 1), (4.5 * math.sqrt(2), math.sqrt(0.5), 135)),
    "rising": (DIAGONAL[::-1], (1, 1), (4.5 * math.sqrt(2), math.sqrt(0.5), 45)),
    "rising, scaled first": (DIAGONAL[::-1], (3, 4), (20 + 2.5, 2.4, math.degrees(math.atan2(4, 3)))),
}


@pytest.mark.parametrize(("mask", "mm_per_px", "rectangle"), SHAPES.values(), ids=SHAPES)
def test_shapes_worked_by_hand(
    mask: NDArray[np.float64], mm_per_px: tuple[float, float], rectangle: tuple[float, ...]
) -> None:
    height, width = mask.shape
    wide = np.zeros((height + 1, 90_000), np.bool_)
    wide[1:, -width:] = mask

    ((box, found),) = rectangles_by_box(wide, mm_per_px).items()

    assert box == (90_000 - width, 1, width, height)
    assert found == pytest.approx(rectangle, abs=1e-6)


def _slow(pixels: NDArray[np.int64], mm_per_px: tuple[float, float]) -> float:
    """Least area of a rectangle around pixels (rows, columns) with a side along the rows, or along a line through two
    of them that has all others on one side."""
    x_mm, y_mm = mm_per_px
    centres = [(column * x_mm, row * y_mm) for row, column in pixels.tolist()]
    ways = [(1.0, 0.0)]
    for x0, y0 in centres:
        for x1, y1 in centres:
            sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in centres]
            if (x0, y0) != (x1, y1) and min(sides) >= -1e-9:
                distance = math.dist((x0, y0), (x1, y1))
                ways.append(((x1 - x0) / distance, (y1 - y0) / distance))

    def side(right: float, down: float) -> float:
        places = [float(right * x + down * y) for x, y in centres]
        return max(places) - min(places) + 1 / (abs(right) / x_mm + abs(down) / y_mm)

    return min(side(right, down) * side(-down, right) for right, down in ways)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)))
def test_each_region_has_its_own_rectangle_whatever_lies_in_its_box(mask: NDArray[np.bool_]) -> None:
    _, regions = find_regions(mask, class_id=1)

    found = rectangles_by_box(mask, MM)

    assert sorted(found) == sorted(region.box_xywh for region in regions)
    for region in regions:
        left, top, width, height = region.box_xywh
        here = np.argwhere(mask[top : top + height, left : left + width])
        if len(here) == region.area_px:  # nothing else in its box
            length_mm, width_mm, _ = found[region.box_xywh]
            assert length_mm * width_mm == pytest.approx(_slow(here, MM))


def test_regions_in_a_hole_and_in_the_box_of_another_are_measured_alone() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[[0, -1], :] = mask[:, [0, -1]] = True  # a ring
    mask[2:7, 2] = mask[6, 2:7] = True  # an L in it
    mask[2, 4:7] = True  # a line in the box of the L

    assert rectangles_by_box(mask, (1, 1)) == {
        (0, 0, 9, 9): pytest.approx((9, 9, 0)),
        (4, 2, 3, 1): pytest.approx((3, 1, 0)),
        # The L: its ends are four diagonals apart, and its corner is two away from the line between them.
        (2, 2, 5, 5): pytest.approx((4.5 * math.sqrt(2), 2.5 * math.sqrt(2), 135)),
    }
