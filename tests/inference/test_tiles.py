import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image, tile_starts
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer

sides = st.integers(1, 40)


class OneClassRuntime:
    """A Runtime with one class, whose probabilities (h, w) and gate a function makes of the tile and its number."""

    class_names = ("pits",)
    name = "test"
    parallel = 1

    def __init__(
        self, answer: Callable[[NDArray[np.uint8], int], Any], *, tile_hw: tuple[int, int], overlap_px: int
    ) -> None:
        self.settings = Settings(Thresholds.default(1), tile_hw, overlap_px)
        self.answer = answer
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        self.shapes.append(images.shape)
        probabilities = np.broadcast_to(self.answer(images[0, 0], len(self.shapes)), images.shape).astype(np.float32)
        return Answer(probabilities, probabilities.max(axis=(2, 3)))


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Size of an image, of a tile that may be larger, and an overlap that the recipe allows."""
    tile_hw = draw(st.tuples(sides, sides))
    return draw(st.tuples(sides, sides)), tile_hw, draw(st.integers(0, min(tile_hw) - 1))


@st.composite
def rows_of_tiles(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length of an image, of a tile and of their overlap along one axis."""
    tile = draw(st.integers(1, 60) | st.integers(60, 400))
    return draw(st.integers(1, 200) | st.integers(200, 2000)), tile, draw(st.integers(0, tile - 1))


@given(rows_of_tiles())
def test_tiles_cover_every_pixel_and_neighbours_share_at_least_the_overlap(row: tuple[int, int, int]) -> None:
    length, tile, overlap_px = row

    starts = tile_starts(length, tile, overlap_px)

    assert starts[0] == 0
    assert all(before < after <= before + tile - overlap_px for before, after in itertools.pairwise(starts))
    assert starts[-1] < length <= starts[-1] + tile
    assert all(start + tile < length for start in starts[:-1])


@given(rows_of_tiles())
def test_tiles_begin_on_a_grid_where_they_are_long_enough_for_it(row: tuple[int, int, int]) -> None:
    length, tile, overlap_px = row

    starts = tile_starts(length, tile, overlap_px)

    if tile - overlap_px >= 64:
        assert all(start % 64 == 0 for start in starts)
        assert starts[-1] + tile - max(length, tile) < 64
    else:
        assert starts[-1] == max(0, length - tile)


def test_tiles_of_a_strip_worked_by_hand() -> None:
    # 10 columns, tiles of 4 that share at least 1: 0-3, 3-6, then 6-9 ends with the image.
    assert tile_starts(10, 4, 1) == [0, 3, 6]
    # 11 columns: the last is moved back to end with the image and shares more.
    assert tile_starts(11, 4, 1) == [0, 3, 6, 7]
    # Steps of 200 - 20 are cut to 128. The third tile would end at 456 of 460 columns, so that a fourth is needed.
    assert tile_starts(456, 200, 20) == [0, 128, 256]
    assert tile_starts(460, 200, 20) == [0, 128, 256, 320]


@given(tilings(), st.randoms(use_true_random=False))
def test_tiles_of_an_answer_that_does_not_depend_on_the_tile_blend_to_the_direct_answer(
    tiling: tuple[tuple[int, int], tuple[int, int], int], random: Any
) -> None:
    size_hw, tile_hw, overlap_px = tiling
    image = np.frombuffer(random.randbytes(size_hw[0] * size_hw[1]), np.uint8).reshape(size_hw)
    runtime = OneClassRuntime(lambda tile, _: tile / np.float32(255), tile_hw=tile_hw, overlap_px=overlap_px)

    prediction = predict_image(runtime, image, runtime.settings)

    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_allclose(prediction.probabilities[0], image / 255, atol=1e-6)
    np.testing.assert_allclose(prediction.gate, [image.max() / 255], atol=1e-6)
    expected = (1, 1, min(tile_hw[0], size_hw[0]), min(tile_hw[1], size_hw[1]))
    assert set(runtime.shapes) == {expected}


@pytest.mark.parametrize("size_hw", [(300, 500), (500, 300), (257, 400), (400, 129)])
def test_all_tiles_of_an_image_have_one_shape_and_repeat_its_last_row_and_column(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, size_hw, dtype=np.uint8)
    seen: list[NDArray[np.uint8]] = []

    def answer(tile: NDArray[np.uint8], _: int) -> NDArray[np.float32]:
        seen.append(tile.copy())
        return np.asarray(tile / np.float32(255), np.float32)

    runtime = OneClassRuntime(answer, tile_hw=(192, 256), overlap_px=32)

    prediction = predict_image(runtime, image, runtime.settings)

    assert {tile.shape for tile in seen} == {(min(192, size_hw[0]), min(256, size_hw[1]))}
    np.testing.assert_allclose(prediction.probabilities[0], image / 255, atol=1e-6)
    last = seen[-1]  # the lower right
    inside_hw = [length - tile_starts(length, tile, 32)[-1] for length, tile in zip(size_hw, last.shape, strict=True)]
    assert (last[inside_hw[0] :] == last[inside_hw[0] - 1]).all()
    assert (last[:, inside_hw[1] :] == last[:, [inside_hw[1] - 1]]).all()


def test_overlapping_answers_are_blended_linearly() -> None:
    # Tiles of 4 columns at 0 and 2; the first says 0, the second 1. In the two columns that they share the weights are
    # 2/3 and 1/3, then 1/3 and 2/3.
    runtime = OneClassRuntime(lambda _, call: np.float32(call - 1), tile_hw=(4, 4), overlap_px=2)

    prediction = predict_image(runtime, np.zeros((1, 6), np.uint8), runtime.settings)

    np.testing.assert_allclose(prediction.probabilities[0, 0], [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-6)
    assert prediction.gate.tolist() == [1.0]


def test_no_seam_is_steeper_than_the_overlap_allows_even_where_tiles_contradict_each_other() -> None:
    overlap_px = 7
    runtime = OneClassRuntime(lambda _, call: np.float32(call % 2), tile_hw=(16, 16), overlap_px=overlap_px)

    probabilities = predict_image(runtime, np.zeros((16, 34), np.uint8), runtime.settings).probabilities[0]

    assert {probabilities.min(), probabilities.max()} == {0.0, 1.0}
    assert np.abs(np.diff(probabilities, axis=1)).max() <= 1 / (overlap_px + 1) + 1e-6


def test_an_answer_spoilt_at_the_borders_of_a_tile_hardly_shows_at_seams() -> None:
    def spoilt(tile: NDArray[np.uint8], _: int) -> NDArray[np.float32]:
        answer = np.ones(tile.shape, np.float32)
        answer[:, [0, -1]] = 0.0  # the outermost columns, which a network sees least of
        return answer

    runtime = OneClassRuntime(spoilt, tile_hw=(8, 16), overlap_px=7)

    probabilities = predict_image(runtime, np.zeros((8, 25), np.uint8), runtime.settings).probabilities[0]

    # Tiles at 0 and 9; at column 9 the second tile's border weighs 1/8 against 7/8 of the first.
    np.testing.assert_allclose(probabilities[:, 9], 7 / 8, atol=1e-6)
    assert probabilities[:, 1:-1].min() > 0.87


def test_the_gate_is_the_largest_over_the_tiles(grey_runtime: Callable[..., Any]) -> None:
    runtime = grey_runtime(tile_hw=(8, 8), tile_overlap_px=2)
    image = np.full((8, 20), 60, np.uint8)
    image[3, 2] = 120  # a pit in the first tile
    image[3, 18] = 160  # a crack in the last

    prediction = predict_image(runtime, image, runtime.settings)

    np.testing.assert_allclose(prediction.gate, [0.9, 0.8])
    assert len(runtime.calls) == 3


def test_an_image_of_the_size_of_a_tile_goes_through_whole(grey_runtime: Callable[..., Any]) -> None:
    runtime = grey_runtime(tile_hw=(8, 8), tile_overlap_px=2)

    for size_hw in ((8, 8), (1, 1), (3, 8)):
        image = np.zeros(size_hw, np.uint8)
        assert predict_image(runtime, image, runtime.settings).probabilities.shape == (2, *size_hw)

    assert runtime.calls == [(1, 1, 8, 8), (1, 1, 1, 1), (1, 1, 3, 8)]


@pytest.mark.parametrize("tile_hw", [(8, 8), (4, 4)], ids=["whole", "in tiles"])
def test_an_answer_that_is_not_a_number_is_refused_rather_than_taken_for_clean_steel(tile_hw: tuple[int, int]) -> None:
    def broken(tile: NDArray[np.uint8], _: int) -> NDArray[np.float32]:
        answer = np.zeros(tile.shape, np.float32)
        answer[0, 0] = np.nan
        return answer

    runtime = OneClassRuntime(broken, tile_hw=tile_hw, overlap_px=1)
    with pytest.raises(ModelError, match="not a number"):
        predict_image(runtime, np.zeros((8, 8), np.uint8), runtime.settings)
