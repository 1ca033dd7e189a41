from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as pycocotools_mask

from defectseg.errors import LabelError
from defectseg.formats import coco_rle
from defectseg.formats.polygons import paint_outlines

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size_hw: arrays(np.bool_, size_hw))
# Pixels run down the columns: 0 1 1 / 0 0 1 -> counts 2, 1, 1, 2.
MASK = np.array([[False, True, True], [False, False, True]])


@given(MASKS)
def test_run_lengths_give_the_mask_again(mask: NDArray[np.bool_]) -> None:
    decoded = coco_rle.decode(coco_rle.encode(mask), mask.shape, where="")
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
@given(arrays(np.bool_, (150, 130), elements=st.booleans(), fill=st.just(False)))
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(mask: NDArray[np.bool_]) -> None:
    encoded = coco_rle.encode(mask)
    theirs = pycocotools_mask.decode({"size": encoded["size"], "counts": encoded["counts"].encode()})
    np.testing.assert_array_equal(coco_rle.decode(encoded, mask.shape, where=""), theirs)


def test_uncompressed_run_lengths_count_down_the_columns() -> None:
    run_lengths = {"size": [2, 3], "counts": [2, 1, 1, 2]}
    np.testing.assert_array_equal(coco_rle.decode(run_lengths, (2, 3), where=""), MASK)
    inverted = {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    np.testing.assert_array_equal(coco_rle.decode(inverted, (2, 3), where=""), ~MASK)


@pytest.mark.parametrize(
    ("run_lengths", "message"),
    [
        ({"size": [3, 2], "counts": [6]}, r"size \[3, 2\]; its image has \[2, 3\]"),
        ({"counts": [6]}, r"size None"),
        ({"size": [2, 3], "counts": [2, 1]}, r"add up to 3 px; an image of 2 x 3 has 6"),
        ({"size": [2, 3], "counts": [7]}, r"add up to 7 px"),
        ({"size": [2, 3], "counts": [8, -2]}, r"neither a text nor a list of whole numbers"),
        ({"size": [2, 3], "counts": [2.5, 3.5]}, r"neither a text nor a list"),
        ({"size": [2, 3], "counts": ["6"]}, r"neither a text nor a list"),
        ({"size": [2, 3]}, r"neither a text nor a list"),
        ({"size": [2, 3], "counts": "04"}, r"add up to 4 px"),
        ({"size": [2, 3], "counts": "o"}, r"cut short"),
        ({"size": [2, 3], "counts": "ooooooooooooooo"}, r"'o' in compressed run-lengths"),
        ({"size": [2, 3], "counts": "6 é"}, r"' ' in compressed run-lengths"),
        ({"size": [2, 3], "counts": "O"}, r"neither a text"),  # -1
    ],
)
def test_faulty_run_lengths_are_refused_and_never_reach_pycocotools(run_lengths: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=r"file: annotation 7: .*" + message):
        coco_rle.decode(run_lengths, (2, 3), where="file: annotation 7")


def test_polygon_holds_the_pixels_whose_centre_lies_inside() -> None:
    square = [1, 1, 3, 1, 3, 2, 1, 2]  # columns 1 to 3, row 1 to 2: two pixels
    expected = np.zeros((4, 5), np.bool_)
    expected[1, 1:3] = True
    np.testing.assert_array_equal(paint_outlines([square], (4, 5), where=""), expected)


def test_polygons_of_one_annotation_are_united_and_cut_at_the_border() -> None:
    corner, beyond = [0, 0, 1, 0, 1, 1, 0, 1], [4, 3, 9, 3, 9, 8, 4, 8]
    expected = np.zeros((4, 5), np.bool_)
    expected[0, 0] = expected[3, 4] = True
    np.testing.assert_array_equal(paint_outlines([corner, beyond], (4, 5), where=""), expected)


@pytest.mark.parametrize("polygon", [[], [1, 1], [0, 0, 4, 4]])
def test_polygon_of_fewer_than_three_points_is_empty_and_not_taken_for_a_box(polygon: list[int]) -> None:
    assert not paint_outlines([polygon], (5, 5), where="").any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, 1], "not a list of numbers"),
        ([0, 0, 1, "2", 3, 3], "not a list of numbers"),
        ([0, 0, 1, None, 3, 3], "not a list of numbers"),
        ("0 0 1 1 2 2", "not a list of numbers"),
        ([0, 0, 1e9, 0, 1, 1], r"a point at 1000000000\.0, far outside its image of 5 x 4"),
        ([0, 0, float("nan"), 0, 1, 1], "a point at nan"),
        ([0, 0, 10**400, 0, 1, 1], "far outside"),
        ([0, 0, -6, 0, 1, 1], "a point at -6"),
    ],
)
def test_faulty_polygons_are_refused_and_never_reach_pycocotools(polygon: Any, message: str) -> None:
    with pytest.raises(LabelError, match=r"annotation 7: .*" + message):
        paint_outlines([polygon], (4, 5), where="annotation 7")
