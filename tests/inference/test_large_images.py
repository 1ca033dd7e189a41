"""Images larger than a tile: the same result as in one piece, in less memory, whatever the size of the tiles."""

import itertools
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.segment import Segmentation, segment, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_bands, predict_image, tile_starts
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer

Answering = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class FakeRuntime:
    """A Runtime whose probabilities (C, h, w) a function makes of a tile uint8 (h, w); the gate is their maximum."""

    name = "test"

    def __init__(
        self, answer: Answering, num_classes: int, *, tile_hw: tuple[int, int], overlap_px: int, parallel: int = 1
    ) -> None:
        self.class_names = tuple(f"class {index + 1}" for index in range(num_classes))
        self.settings = Settings(Thresholds.default(num_classes), tile_hw, overlap_px)
        self.answer = answer
        self.parallel = parallel

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        assert images.flags.c_contiguous
        probabilities = self.answer(images[0, 0])[None].astype(np.float32)
        return Answer(probabilities, probabilities.max(axis=(2, 3)))


def contradicting(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Three classes that follow the grey level and the tile as a whole, so that tiles contradict each other."""
    mood = np.float32(int(tile.astype(np.int64).sum()) % 7 / 7)
    level = tile.astype(np.float32) / 255
    return np.stack([level, 1 - level, np.maximum(level, mood)])


def assert_equal(result: Segmentation, expected: Segmentation) -> None:
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_array_equal(result.class_map, expected.class_map)
    assert result.regions == expected.regions
    assert result.masks.dtype == np.bool_
    assert result.class_map.dtype == np.uint8


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Size of an image, of a tile, and an overlap that the recipe allows."""
    sides = st.integers(1, 30)
    tile_hw = draw(st.tuples(sides, sides))
    return draw(st.tuples(st.integers(1, 50), st.integers(1, 50))), tile_hw, draw(st.integers(0, min(tile_hw) - 1))


@st.composite
def thresholds_of_three(draw: st.DrawFn) -> Thresholds:
    values = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.97])
    three = st.tuples(values, values, values)
    return Thresholds(gate=draw(three), pixel=draw(three), min_area_px=draw(st.tuples(*[st.integers(0, 9)] * 3)))


def images(size_hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Few grey levels, so that classes tie and regions have some size."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 30, 128, 200, 255], np.uint8), size=size_hw, p=[0.1, 0.3, 0.3, 0.2, 0.1])


@example(((150, 523), (96, 160), 16), Thresholds.default(3), None, 1, 3)
@given(
    tilings(), thresholds_of_three(), st.sampled_from([None, (1,), (2, 3)]), st.integers(0, 99), st.sampled_from([1, 3])
)
def test_segmenting_in_bands_equals_segmenting_the_whole_answer(
    tiling: tuple[tuple[int, int], tuple[int, int], int],
    thresholds: Thresholds,
    only_classes: tuple[int, ...] | None,
    seed: int,
    parallel: int,
) -> None:
    size_hw, tile_hw, overlap_px = tiling
    image = images(size_hw, seed)
    runtime = FakeRuntime(contradicting, 3, tile_hw=tile_hw, overlap_px=overlap_px, parallel=parallel)

    settings = replace(runtime.settings, thresholds=thresholds, classes=only_classes)

    result = segment_image(runtime, image, settings)

    assert_equal(result, segment(predict_image(runtime, image, settings), thresholds, only_classes=only_classes))


@given(tilings(), st.integers(0, 99))
@example(((150, 523), (96, 160), 16), 1)
@example(((523, 150), (140, 100), 30), 2)
def test_blending_agrees_with_a_literal_one(tiling: tuple[tuple[int, int], tuple[int, int], int], seed: int) -> None:
    size_hw, tile_hw, overlap_px = tiling
    image = images(size_hw, seed)
    runtime = FakeRuntime(contradicting, 3, tile_hw=tile_hw, overlap_px=overlap_px)

    prediction = predict_image(runtime, image, runtime.settings)

    total, weights, gate = np.zeros((3, *size_hw)), np.zeros(size_hw), np.zeros(3)
    (height, width), (tile_h, tile_w) = size_hw, tile_hw
    shape = min(height, tile_h), min(width, tile_w)  # of every tile; one beyond the image repeats its last pixels
    for top in tile_starts(height, tile_h, overlap_px):
        for left in tile_starts(width, tile_w, overlap_px):
            box = np.s_[top : top + tile_h, left : left + tile_w]
            part = image[box]
            missing = [(0, tile - length) for tile, length in zip(shape, part.shape, strict=True)]
            whole = contradicting(np.pad(part, missing, mode="edge"))
            gate = np.maximum(gate, whole.max(axis=(1, 2)))
            answer = whole[:, : part.shape[0], : part.shape[1]]
            down = _literal_weights(top, tile_h, height, overlap_px)
            weight = np.array(down)[:, None] * np.array(_literal_weights(left, tile_w, width, overlap_px))
            total[(slice(None), *box)] += weight * answer
            weights[box] += weight
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


@pytest.mark.parametrize("size_hw", [(20, 70), (70, 20)])
def test_bands_cover_the_image_once_along_its_longer_side(size_hw: tuple[int, int]) -> None:
    runtime = FakeRuntime(contradicting, 3, tile_hw=(16, 16), overlap_px=4)
    covered = np.zeros(size_hw, np.int64)

    for box, answer in predict_bands(runtime, np.zeros(size_hw, np.uint8), runtime.settings):
        covered[box] += 1
        assert answer.probabilities.shape[1:] == covered[box].shape
        assert min(answer.probabilities.shape[1:]) <= 16
        assert answer.probabilities.flags.c_contiguous

    assert (covered == 1).all()


def pits(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(tile / np.float32(255), np.float32)[None]


def test_a_scratch_through_many_tiles_is_one_region_whose_minimum_area_is_that_of_the_whole() -> None:
    image = np.zeros((8, 100), np.uint8)
    image[3, 5:95] = 255
    runtime = FakeRuntime(pits, 1, tile_hw=(8, 10), overlap_px=3)

    thresholds = Thresholds(gate=(0.5,), pixel=(0.5,), min_area_px=(90,))

    result = segment_image(runtime, image, replace(runtime.settings, thresholds=thresholds))

    assert [(region.area_px, region.box_xywh, region.score) for region in result.regions] == [(90, (5, 3, 90, 1), 1.0)]
    np.testing.assert_array_equal(result.masks[0], image > 0)


def test_a_gate_that_opens_in_the_last_tile_lets_the_first_pass() -> None:
    image = np.zeros((4, 40), np.uint8)
    image[1, 1], image[1, 38] = 153, 255  # 0.6 alone would not open a gate of 0.9
    runtime = FakeRuntime(pits, 1, tile_hw=(4, 10), overlap_px=2)
    settings = replace(runtime.settings, thresholds=Thresholds(gate=(0.9,), pixel=(0.5,), min_area_px=(0,)))

    assert np.argwhere(segment_image(runtime, image, settings).class_map).tolist() == [[1, 1], [1, 38]]
    assert not segment_image(runtime, image[:, :30].copy(), settings).masks.any()


@pytest.mark.parametrize("parallel", [1, 3])
def test_not_a_number_in_one_tile_of_many_is_refused(parallel: int) -> None:
    def broken(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = pits(tile)
        answer[answer == 1.0] = np.nan
        return answer

    image = np.zeros((4, 90), np.uint8)
    image[2, 70] = 255
    runtime = FakeRuntime(broken, 1, tile_hw=(4, 10), overlap_px=2, parallel=parallel)

    with pytest.raises(ModelError, match="not a number"):
        segment_image(runtime, image, runtime.settings)


def test_as_many_tiles_are_in_work_at_once_as_the_runtime_has_use_for() -> None:
    together = threading.Barrier(3, timeout=20)

    def answer(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        together.wait()  # passes only where three tiles wait at the same time
        return pits(tile)

    runtime = FakeRuntime(answer, 1, tile_hw=(4, 10), overlap_px=0, parallel=3)

    assert segment_image(runtime, np.full((4, 60), 255, np.uint8), runtime.settings).masks.all()


@pytest.mark.parametrize("size_hw", [(128, 20_000), (10_000, 256)])
@pytest.mark.parametrize("spotted", [False, True], ids=["clean", "spotted"])
def test_a_large_image_of_four_classes_takes_less_memory_than_its_probabilities(
    size_hw: tuple[int, int], spotted: bool
) -> None:
    def answer(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        level = tile / np.float32(255)
        return np.stack([level, level * np.float32(0.9), 1 - level, level])

    image = np.full(size_hw, 128, np.uint8)
    if spotted:
        for level, first in ((255, 10), (0, 50)):  # blobs of 6 x 6 px, 4.5 % of the image for three of the classes
            for y, x in itertools.product(range(6), range(6)):
                image[first + y :: 80, 10 + x :: 20] = level
    runtime = FakeRuntime(answer, 4, tile_hw=(256, 256), overlap_px=16)
    thresholds = Thresholds(gate=(0.0,) * 4, pixel=(0.8,) * 4, min_area_px=(1,) * 4)
    settings = replace(runtime.settings, thresholds=thresholds)

    tracemalloc.start()
    result = segment_image(runtime, image, settings)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    # The fixed part: sums, weights, a tile's answer and temporaries, each float32 (4, 256, 256), which is 1 MiB.
    assert bool(result.regions) == spotted
    assert peak_bytes < 9 * image.size + 8 * 2**20


def local_filter(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A network that sees 4 px far and takes what lies outside its picture for more of its last row and column."""
    mean = cv2.blur(tile.astype(np.float32) / 255, (9, 9), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(np.clip((mean - 0.3) * 2.5, 0, 1), np.float32)[None]


REACH_PX = 4
TILES = [((32, 48), 16), ((40, 40), 16), ((64, 96), 24), ((96, 64), 16), ((96, 300), 16)]


@pytest.mark.parametrize(("tile_hw", "overlap_px"), TILES)
def test_results_depend_on_the_tile_size_no_more_than_the_documented_tolerance(
    tile_hw: tuple[int, int], overlap_px: int
) -> None:
    rng = np.random.default_rng(4)
    noise = cv2.GaussianBlur(rng.standard_normal((96, 300)), (0, 0), 2)
    image = np.asarray(np.clip(128 + 500 * noise, 0, 255), np.uint8)

    runtime = FakeRuntime(local_filter, 1, tile_hw=tile_hw, overlap_px=overlap_px)
    probabilities = predict_image(runtime, image, runtime.settings).probabilities

    whole = local_filter(image)
    # A pixel closer than the reach to an inner border of its tile is answered wrongly by as much as 1. Such a pixel has
    # at most reach / (overlap + 1) of the weight along each axis.
    difference = np.abs(probabilities - whole)
    assert difference.max() <= 2 * REACH_PX / (overlap_px + 1)
    # Elsewhere nothing differs but the rounding.
    near = np.zeros(image.shape, np.bool_)
    for turned, length, tile in ((near, 96, tile_hw[0]), (near.T, 300, tile_hw[1])):
        for start in tile_starts(length, tile, overlap_px):
            end = start + tile
            turned[start : start + REACH_PX] |= start > 0
            turned[end - REACH_PX : end] |= end < length
    assert difference[0][~near].max() <= 1e-6
    assert np.count_nonzero(~near) > near.size / 3


def test_views_of_a_tile_are_averaged_in_large_images_too() -> None:
    def upper_half(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = np.zeros((1, *tile.shape), np.float32)
        answer[:, : tile.shape[0] // 2] = 1.0
        return answer

    runtime = FakeRuntime(upper_half, 1, tile_hw=(4, 8), overlap_px=2)
    prediction = predict_image(runtime, np.zeros((4, 30), np.uint8), replace(runtime.settings, tta="flips"))

    np.testing.assert_allclose(prediction.probabilities, 0.5, atol=1e-6)
