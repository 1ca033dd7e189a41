import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from defectseg.formats.polygons import (
    count_hole_px,
    cut_pieces,
    outline,
    paint_outlines,
    paint_pixel_outline,
    pixel_outline,
)
from defectseg.formats.yolo import format_line, parse_line

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size_hw: arrays(np.bool_, size_hw))


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flood the sound pixels from outside, sideways and up and down; what stays dry is the mask and its holes."""
    dry = np.pad(np.ones_like(mask), 1, constant_values=False)
    waiting = [(0, 0)]
    wet = {(0, 0)}
    solid = np.pad(mask, 1)
    while waiting:
        y, x = waiting.pop()
        dry[y, x] = False
        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= at[0] < solid.shape[0] and 0 <= at[1] < solid.shape[1]
            if inside and at not in wet and not solid[at]:
                wet.add(at)
                waiting.append(at)
    return np.asarray(dry[1:-1, 1:-1], np.bool_)


def test_pieces_are_8_connected_and_know_where_they_were() -> None:
    mask = mask_of("##..", "..#.", "....", "#..#")
    pieces = list(cut_pieces(mask))
    assert [(piece.box_xywh, piece.area_px) for piece in pieces] == [
        ((0, 0, 3, 2), 3),
        ((0, 3, 1, 1), 1),
        ((3, 3, 1, 1), 1),
    ]
    np.testing.assert_array_equal(sum(piece.place((4, 4)).astype(int) for piece in pieces), mask)
    assert list(cut_pieces(np.zeros((2, 2), np.bool_))) == []


def test_outline_runs_a_quarter_of_a_pixel_inside_the_edge() -> None:
    (piece,) = cut_pieces(mask_of("....", ".##.", "...."))
    assert {tuple(point) for point in outline(piece).tolist()} == {
        (1.25, 1.25),
        (2.75, 1.25),
        (2.75, 1.75),
        (1.25, 1.75),
    }


def test_pixel_outline_runs_through_the_border_pixels() -> None:
    (piece,) = cut_pieces(mask_of(".....", ".###.", ".###.", ".###."))
    assert {tuple(point) for point in pixel_outline(piece).tolist()} == {(1, 1), (3, 1), (3, 3), (1, 3)}


@given(MASKS)
def test_coco_outlines_give_the_mask_again_but_for_holes(mask: NDArray[np.bool_]) -> None:
    polygons = [outline(piece).ravel().tolist() for piece in cut_pieces(mask)]
    np.testing.assert_array_equal(paint_outlines(polygons, mask.shape, where=""), without_holes(mask))


@given(MASKS)
def test_yolo_lines_give_the_mask_again_but_for_holes(mask: NDArray[np.bool_]) -> None:
    lines = [format_line(0, pixel_outline(piece), mask.shape) for piece in cut_pieces(mask)]
    painted = np.zeros_like(mask)
    for line in lines:
        _, points = parse_line(line, num_classes=1, where="")
        assert len(points) > 2
        painted |= paint_pixel_outline(np.floor(points * mask.shape[::-1] + 0.01).astype(np.intp), mask.shape)
    np.testing.assert_array_equal(painted, without_holes(mask))


@given(MASKS)
def test_hole_pixels_are_counted(mask: NDArray[np.bool_]) -> None:
    assert count_hole_px(mask) == np.count_nonzero(without_holes(mask) & ~mask)


def test_island_in_a_hole_is_no_hole() -> None:
    mask = mask_of("#####", "#...#", "#.#.#", "#...#", "#####")
    assert count_hole_px(mask) == 8


def test_simplified_outline_has_fewer_points_and_stays_close() -> None:
    y, x = np.mgrid[:80, :80]
    disc = (y - 40) ** 2 + (x - 40) ** 2 < 30**2
    (piece,) = cut_pieces(disc)
    exact, simpler = outline(piece), outline(piece, tolerance_px=1.0)
    assert 6 <= len(simpler) < len(exact) / 4
    painted = paint_outlines([simpler.ravel().tolist()], disc.shape, where="")
    assert (painted & disc).sum() / (painted | disc).sum() > 0.97


@pytest.mark.parametrize("rows", [("#",), ("##",), ("#.", ".#"), ("###",)])
def test_simplified_outline_of_a_tiny_region_does_not_vanish(rows: tuple[str, ...]) -> None:
    mask = mask_of(*rows)
    (piece,) = cut_pieces(mask)
    polygon = outline(piece, tolerance_px=1.0)
    assert len(polygon) >= 3
    assert paint_outlines([polygon.ravel().tolist()], mask.shape, where="").any()
