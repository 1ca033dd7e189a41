"""Where crops lie in their image, and what a cut beyond it gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.train.crops import BLACK_LEVEL, Place, cut, place_crop

sizes = st.integers(1, 40)


def _grey(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image without any black."""
    return np.full(masks.shape[1:], 100, np.uint8)


def _by_class(masks: NDArray[np.bool_]) -> dict[int, NDArray[np.bool_]]:
    """As in a label table: the last class first, and none without a pixel but the first."""
    return {
        class_id: masks[class_id - 1]
        for class_id in range(len(masks), 0, -1)
        if class_id == 1 or masks[class_id - 1].any()
    }


# Where a crop lies


@settings(max_examples=200, deadline=None)
@given(data=st.data(), height=sizes, width=sizes, crop_h=sizes, crop_w=sizes, seed=st.integers(0, 2**32))
def test_a_crop_lies_inside_the_image_or_around_it_and_on_a_defect_holds_a_pixel_of_it(
    data: st.DataObject, height: int, width: int, crop_h: int, crop_w: int, seed: int
) -> None:
    masks = np.zeros((3, height, width), np.bool_)
    class_id = data.draw(st.sampled_from([None, 1, 3]))
    for index in data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1)) | ({class_id - 1} if class_id else set()):
        masks[index, data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    place: Place = data.draw(st.sampled_from(["defect", "anywhere"]))
    rng = np.random.default_rng(seed)
    top, left = place_crop(_grey(masks), _by_class(masks), (crop_h, crop_w), place=place, rng=rng, class_id=class_id)
    _, layers = cut(
        np.zeros((height, width), np.uint8),
        dict(enumerate(masks.view(np.uint8))),
        (top, left),
        (crop_h, crop_w),
        num_layers=4,
    )
    wanted = layers[:3] if class_id is None else layers[class_id - 1]
    assert wanted.any() or place == "anywhere"
    _check_place(top, height, crop_h)
    _check_place(left, width, crop_w)


def _check_place(start: int, length: int, crop: int) -> None:
    """A crop lies inside its image, or the image inside its crop."""
    if crop <= length:
        assert 0 <= start <= length - crop
    else:
        assert length - crop <= start <= 0


def test_a_class_is_drawn_before_its_pixels_so_that_small_defects_count_too() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 100, 100), np.bool_)
    masks[0, :50] = True
    masks[1, 99, 99] = True
    corners = [place_crop(_grey(masks), _by_class(masks), (1, 1), place="defect", rng=rng) for _ in range(400)]
    assert 150 < corners.count((99, 99)) < 250


@pytest.mark.parametrize(
    ("crop_hw", "tops", "lefts"), [((3, 2), (8, 9, 10), (9, 10)), ((20, 19), (0,), (0, 1)), ((18, 20), (0, 1, 2), (0,))]
)
def test_the_defect_lies_anywhere_in_its_crop(
    crop_hw: tuple[int, int], tops: tuple[int, ...], lefts: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((1, 20, 20), np.bool_)
    masks[0, 10, 10] = True
    corners = {place_crop(_grey(masks), _by_class(masks), crop_hw, place="defect", rng=rng) for _ in range(200)}
    assert corners == {(top, left) for top in tops for left in lefts}


# Black places


def _corners(
    pixels: NDArray[np.uint8], masks: NDArray[np.bool_], place: Place, black_limit: float = 1.0
) -> set[tuple[int, int]]:
    """Where 300 crops of 10 x 10 px lie."""
    rng = np.random.default_rng(0)
    return {
        place_crop(pixels, _by_class(masks), (10, 10), place=place, rng=rng, black_limit=black_limit)
        for _ in range(300)
    }


def test_a_black_place_is_drawn_again() -> None:
    masks = np.zeros((1, 10, 40), np.bool_)
    pixels = _grey(masks)
    pixels[:, 20:] = BLACK_LEVEL
    # At column 17 the crop has 7 black columns of 10, at column 18 it has 8.
    assert _corners(pixels, masks, "anywhere", 0.7) == {(0, left) for left in range(18)}
    assert _corners(pixels, masks, "anywhere") == {(0, left) for left in range(31)}
    pixels[:, 20:] = BLACK_LEVEL + 1
    assert len(_corners(pixels, masks, "anywhere", 0.0)) == 31, "just brighter than the end of a sheet"


def test_a_crop_on_a_defect_is_not_too_black_either_and_still_holds_it() -> None:
    masks = np.zeros((1, 10, 40), np.bool_)
    masks[0, 5, 19] = True
    pixels = _grey(masks)
    pixels[:, 20:] = 0
    assert _corners(pixels, masks, "defect", 0.5) == {(0, left) for left in range(10, 16)}


def test_where_all_is_black_the_least_black_place_is_taken() -> None:
    masks = np.zeros((1, 10, 14), np.bool_)
    pixels = np.zeros((10, 14), np.uint8)
    pixels[:, :4] = 100  # 60 black pixels at column 0, 100 at column 4
    corners = [
        place_crop(
            pixels, _by_class(masks), (10, 10), place="anywhere", rng=np.random.default_rng(seed), black_limit=0.2
        )
        for seed in range(50)
    ]
    assert corners.count((0, 0)) > 35
    assert (0, 4) not in corners


def test_black_beyond_the_image_does_not_count() -> None:
    masks = np.zeros((1, 4, 40), np.bool_)  # crops of 10 x 10 px are black for 6 rows of 10
    pixels = _grey(masks)
    pixels[:, 30:] = 0
    lefts = {left for _, left in _corners(pixels, masks, "anywhere", 0.3)}
    assert lefts == set(range(24))


def test_classes_on_black_ground_are_drawn_as_often() -> None:
    masks = np.zeros((2, 10, 100), np.bool_)
    masks[0, :, :40] = True
    masks[1, :, 60:] = True
    pixels = _grey(masks)
    pixels[:, 50:] = 0
    rng = np.random.default_rng(0)
    lefts = [
        place_crop(pixels, _by_class(masks), (10, 10), place="defect", rng=rng, black_limit=0.3)[1] for _ in range(200)
    ]
    assert 70 < sum(left > 50 for left in lefts) < 130


# Cutting


def test_a_cut_inside_the_image_copies_it() -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    image, cut_layers = cut(pixels, {0: pixels % 2}, (1, 2), (2, 3), num_layers=2)
    pixels[:] = 0
    assert image.tolist() == [[7, 8, 9], [12, 13, 14]]
    assert cut_layers.tolist() == [[[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_a_cut_beyond_the_image_is_black_and_ignored_there() -> None:
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    layers = {0: np.ones((2, 2), np.uint8), 1: np.array([[0, 0], [0, 1]], np.uint8)}
    image, cut_layers = cut(pixels, layers, (-1, -2), (4, 5), num_layers=2)
    assert image.tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 2, 0], [0, 0, 3, 4, 0], [0, 0, 0, 0, 0]]
    assert cut_layers[0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert cut_layers[1].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]
