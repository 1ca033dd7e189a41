"""Polygons, and COCO's run-lengths."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as pycocotools_mask

from defectseg.errors import LabelError
from defectseg.formats.polygons import (
    cut_pieces,
    decode_rle,
    encode_rle,
    outline,
    paint_outlines,
    pixel_outline,
)


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_outlines_run_a_quarter_pixel_inside_the_edge_or_through_the_border_pixels() -> None:
    (piece,) = cut_pieces(mask_of(".....", ".###.", ".###.", ".###."))
    inside = [(1.25, 1.25), (1.25, 3.75), (3.75, 1.25), (3.75, 3.75)]
    assert sorted(map(tuple, outline(piece).tolist())) == inside
    assert sorted(map(tuple, pixel_outline(piece).tolist())) == [(1, 1), (1, 3), (3, 1), (3, 3)]


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


def test_polygons_hold_the_pixels_whose_centre_lies_inside_and_are_united_and_cut_at_the_border() -> None:
    square, corner, beyond = [1.0, 1, 3, 1, 3, 2, 1, 2], [0.0, 0, 1, 0, 1, 1, 0, 1], [4.0, 3, 9, 3, 9, 8, 4, 8]
    expected = mask_of("#....", ".##..", ".....", "....#")
    np.testing.assert_array_equal(paint_outlines([square, corner, beyond], (4, 5), where=""), expected)


@pytest.mark.parametrize("polygon", [[], [1, 1], [0, 0, 4, 4]])
def test_polygon_of_fewer_than_three_points_is_empty_and_not_taken_for_a_box(polygon: list[float]) -> None:
    assert not paint_outlines([polygon], (5, 5), where="").any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, 1e9, 0, 1, 1], r"from 0 to 1e\+09, far outside its image of 5 x 4"),
        ([0, 0, float("nan"), 0, 1, 1], "points from nan"),
        ([0, 0, -6, 0, 1, 1], "from -6 to 1"),
        ([0, 0, 10, 9, 1, 1], "from 0 to 10"),
    ],
)
def test_points_far_outside_never_reach_pycocotools(polygon: list[float], message: str) -> None:
    with pytest.raises(LabelError, match=r"annotation 7: .*" + message):
        paint_outlines([polygon], (4, 5), where="annotation 7")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
def test_run_lengths_give_the_mask_again_and_are_read_as_pycocotools_reads_them() -> None:
    rng = np.random.default_rng(4)
    for size_hw in ((1, 1), (3, 40), (150, 130), (150, 130)):
        for density in (0.0, 0.001, 0.5, 1.0):
            mask = rng.random(size_hw) < density
            encoded = encode_rle(mask)
            np.testing.assert_array_equal(decode_rle(encoded, size_hw, where=""), mask)
            theirs = pycocotools_mask.decode({"size": encoded["size"], "counts": encoded["counts"].encode()})
            np.testing.assert_array_equal(theirs, mask)


@pytest.mark.parametrize(
    ("run_lengths", "message"),
    [
        ({"size": [3, 2], "counts": [6]}, r"size \[3, 2\], \[6\]; expected \[2, 3\]"),
        ({"counts": [6]}, r"size None"),
        ({"size": [2, 3], "counts": [2, 1]}, r"size \[2, 3\], \[2, 1\]; expected .*that add up to 6 px"),
        ({"size": [2, 3], "counts": [8, -2]}, r"size \[2, 3\], \[8, -2\]"),
        ({"size": [2, 3], "counts": [2.5, 3.5]}, r"size \[2, 3\], \[2.5, 3.5\]"),
        ({"size": [2, 3]}, r"3\], None"),
        ({"size": [2, 3], "counts": "04"}, r"3\], '04'"),
        ({"size": [2, 3], "counts": "6o"}, r"3\], '6o'"),
        ({"size": [2, 3], "counts": "6" + "o" * 100_000}, r"3\], '6ooo"),
        ({"size": [2, 3], "counts": "6 é"}, r"3\], '6 é'"),
        ({"size": [2, 3], "counts": "O"}, r"3\], 'O'"),  # -1
    ],
)
def test_faulty_run_lengths_are_refused_and_never_reach_pycocotools(run_lengths: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=r"annotation 7: .*" + message):
        decode_rle(run_lengths, (2, 3), where="annotation 7")
