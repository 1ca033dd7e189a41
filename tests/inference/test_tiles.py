import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.tiles import predict_image, tile_starts
from defectseg.runtime.base import Answer


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Size of an image, of a tile that may be larger, and an overlap that the recipe allows."""
    tile_hw = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    return draw(st.tuples(st.integers(1, 50), st.integers(1, 50))), tile_hw, draw(st.integers(0, min(tile_hw) - 1))


@st.composite
def rows_of_tiles(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length of an image, of a tile and of their overlap along one axis."""
    tile = draw(st.integers(1, 60) | st.integers(60, 400))
    return draw(st.integers(1, 200) | st.integers(200, 2000)), tile, draw(st.integers(0, tile - 1))


@given(rows_of_tiles())
def test_tiles_cover_every_pixel_share_the_overlap_and_begin_on_a_grid(row: tuple[int, int, int]) -> None:
    length, tile, overlap_px = row

    starts = tile_starts(length, tile, overlap_px)

    assert starts[0] == 0
    assert all(before < after <= before + tile - overlap_px for before, after in itertools.pairwise(starts))
    assert starts[-1] < length <= starts[-1] + tile
    assert all(start + tile < length for start in starts[:-1])
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


@given(tilings(), st.integers(0, 99))
@example(((150, 523), (96, 160), 16), 1)
@example(((523, 150), (140, 100), 30), 2)
@settings(max_examples=40)
def test_blending_agrees_with_a_literal_one(
    contradicting_runtime: Any, few_levels: Any, tiling: tuple[tuple[int, int], tuple[int, int], int], seed: int
) -> None:
    size_hw, tile_hw, overlap_px = tiling
    image = few_levels(size_hw, seed)
    runtime = contradicting_runtime(tile_hw=tile_hw, overlap_px=overlap_px)

    prediction = predict_image(runtime, image, runtime.settings)

    total, weights, gate = np.zeros((3, *size_hw)), np.zeros(size_hw), np.zeros(3)
    (height, width), (tile_h, tile_w) = size_hw, tile_hw
    shape = min(height, tile_h), min(width, tile_w)  # of every tile; one beyond the image repeats its last pixels
    assert {tile.shape for tile in runtime.tiles} == {shape}
    for top in tile_starts(height, tile_h, overlap_px):
        for left in tile_starts(width, tile_w, overlap_px):
            box = np.s_[top : top + tile_h, left : left + tile_w]
            part = image[box]
            missing = [(0, tile - length) for tile, length in zip(shape, part.shape, strict=True)]
            whole = runtime.answer(np.pad(part, missing, mode="edge"))
            gate = np.maximum(gate, whole.max(axis=(1, 2)))
            answer = whole[:, : part.shape[0], : part.shape[1]]
            down = _literal_weights(top, tile_h, height, overlap_px)
            weight = np.array(down)[:, None] * np.array(_literal_weights(left, tile_w, width, overlap_px))
            total[(slice(None), *box)] += weight * answer
            weights[box] += weight
    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_allclose(prediction.probabilities, total / weights, atol=1e-6)
    np.testing.assert_allclose(prediction.gate, gate, atol=1e-6)


def _literal_weights(start: int, tile: int, length: int, overlap_px: int) -> list[int]:
    end = min(start + tile, length)
    return [
        min(
            overlap_px + 1,
            position - start + 1 if start > 0 else overlap_px + 1,
            end - position if end < length else overlap_px + 1,
        )
        for position in range(start, end)
    ]


def test_an_image_of_the_size_of_a_tile_goes_through_whole(grey_runtime: Callable[..., Any]) -> None:
    runtime = grey_runtime(tile_hw=(8, 8), tile_overlap_px=2)

    for size_hw in ((8, 8), (1, 1), (3, 8)):
        image = np.zeros(size_hw, np.uint8)
        assert predict_image(runtime, image, runtime.settings).probabilities.shape == (2, *size_hw)

    assert runtime.calls == [(1, 1, 8, 8), (1, 1, 1, 1), (1, 1, 3, 8)]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("tile_hw", [(8, 90), (8, 10)], ids=["whole", "in tiles"])
@pytest.mark.parametrize("where", ["pixel", "gate"])
def test_not_a_number_never_passes_for_clean_steel(
    fake_runtime: Any, where: str, tile_hw: tuple[int, int], parallel: int
) -> None:
    def broken(tile: NDArray[np.uint8]) -> Answer:
        # Neither a comparison nor cv2.minMaxLoc notices it.
        probabilities, gate = np.full((1, 1, *tile.shape), 0.1, np.float32), np.zeros((1, 1), np.float32)
        if where == "pixel":
            probabilities[0, 0, tile == 255] = np.nan
        elif 255 in tile:
            gate[:] = np.nan
        return Answer(probabilities, gate)

    image = np.zeros((8, 90), np.uint8)
    image[2, 70] = 255
    runtime = fake_runtime(broken, tile_hw=tile_hw, overlap_px=2, parallel=parallel)

    with pytest.raises(ModelError, match="not a number"):
        predict_image(runtime, image, runtime.settings)


def test_as_many_tiles_are_in_work_at_once_as_the_runtime_has_use_for(fake_runtime: Any) -> None:
    together = threading.Barrier(3, timeout=20)

    def answer(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        together.wait()  # passes only where three tiles wait at the same time
        return tile[None]

    runtime = fake_runtime(answer, tile_hw=(4, 10), parallel=3)

    assert (predict_image(runtime, np.full((4, 60), 1, np.uint8), runtime.settings).probabilities == 1.0).all()
