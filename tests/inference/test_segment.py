import itertools
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defectseg.config import Recipe
from defectseg.image.regions import Region, find_regions
from defectseg.inference.segment import Segmentation, segment, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import ImageAnswer, predict_image
from defectseg.model.info import Thresholds


def _thresholds(
    pixel: tuple[float, ...], *, gate: tuple[float, ...] | None = None, min_area_px: tuple[int, ...] | None = None
) -> Thresholds:
    count = len(pixel)
    return Thresholds(gate=gate or (0.0,) * count, pixel=pixel, min_area_px=min_area_px or (0,) * count)


def _settings(thresholds: Thresholds, only_classes: tuple[int, ...] | None) -> Settings:
    info: Any = SimpleNamespace(thresholds=thresholds, recipe=Recipe(), appearance=None)
    return Settings.of(info, classes=only_classes)


def _assert_equal(result: Segmentation, expected: Segmentation) -> None:
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_array_equal(result.class_map, expected.class_map)
    assert result.regions == expected.regions
    assert result.sheet_score == expected.sheet_score
    assert result.masks.dtype == np.bool_
    assert result.class_map.dtype == np.uint8


def test_a_pixel_at_the_threshold_counts() -> None:
    # 0.3 is not a float32; the threshold must be rounded as the probability was.
    answer = ImageAnswer(np.array([[[0.3, 0.29999]]], np.float32), np.ones(1, np.float32))
    result = segment(answer, _thresholds((0.3,)))

    assert result.masks.tolist() == [[[True, False]]]


def slow_segment(
    prediction: ImageAnswer, thresholds: Thresholds, only_classes: tuple[int, ...] | None = None
) -> Segmentation:
    """The same in whole passes over all classes, without a short cut."""
    masks = np.zeros(prediction.probabilities.shape, np.bool_)
    regions: list[Region] = []
    score = 0.0
    for index, probabilities in enumerate(prediction.probabilities):
        if only_classes is not None and index + 1 not in only_classes:
            continue
        sinking = sorted(probabilities.ravel().tolist(), reverse=True)
        kth_largest = sinking[min(max(1, thresholds.min_area_px[index]), len(sinking)) - 1]
        score = max(score, min(float(prediction.gate[index]), kth_largest))
        if prediction.gate[index] < np.float32(thresholds.gate[index]):
            continue
        masks[index], found = find_regions(
            probabilities >= np.float32(thresholds.pixel[index]),
            class_id=index + 1,
            probabilities=probabilities,
            min_area_px=thresholds.min_area_px[index],
        )
        regions += found
    held = np.where(masks, prediction.probabilities, np.float32(-1.0))
    class_map = np.where(masks.any(axis=0), held.argmax(axis=0) + 1, 0).astype(np.uint8)
    return Segmentation(masks, tuple(regions), class_map, score)


@st.composite
def thresholds_of_three(draw: st.DrawFn) -> Thresholds:
    values = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.97, 1.0])
    three = st.tuples(values, values, values)
    return Thresholds(gate=draw(three), pixel=draw(three), min_area_px=draw(st.tuples(*[st.integers(0, 9)] * 3)))


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)),
        elements=st.sampled_from([np.float32(value) for value in (0.0, 0.3, 0.5, 0.6, 0.8)]),
    ),
    thresholds_of_three(),
    st.sampled_from([None, (2,), (1, 3)]),
)
def test_short_cuts_change_nothing(
    probabilities: NDArray[np.float32], thresholds: Thresholds, only_classes: tuple[int, ...] | None
) -> None:
    prediction, before = ImageAnswer(probabilities, probabilities.max(axis=(1, 2))), probabilities.copy()

    result = segment(prediction, _settings(thresholds, only_classes).thresholds)

    _assert_equal(result, slow_segment(prediction, thresholds, only_classes))
    np.testing.assert_array_equal(probabilities, before)


@example((150, 523), (96, 160), 0.17, Thresholds.default(3), None, 1, 3)
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.floats(0, 0.99),
    thresholds_of_three(),
    st.sampled_from([None, (1,), (2, 3)]),
    st.integers(0, 99),
    st.sampled_from([1, 3]),
)
@hypothesis_settings(max_examples=40)
def test_segmenting_in_bands_equals_segmenting_the_whole_answer(
    contradicting_runtime: Any,
    few_levels: Any,
    size_hw: tuple[int, int],
    tile_hw: tuple[int, int],
    overlap: float,
    thresholds: Thresholds,
    only_classes: tuple[int, ...] | None,
    seed: int,
    parallel: int,
) -> None:
    image = few_levels(size_hw, seed)
    runtime = contradicting_runtime(tile_hw=tile_hw, overlap_px=int(overlap * min(tile_hw)), parallel=parallel)
    settings = replace(runtime.settings, thresholds=_settings(thresholds, only_classes).thresholds)

    result = segment_image(runtime, image, settings)

    answer = predict_image(runtime, image, settings)
    _assert_equal(result, slow_segment(answer, thresholds, only_classes))
    assert result.answer is None
    kept = segment_image(runtime, image, settings, keep_answer=True)
    _assert_equal(kept, result)
    assert kept.answer is not None
    np.testing.assert_array_equal(kept.answer.probabilities, answer.probabilities)


def _pits(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(tile / np.float32(255), np.float32)[None]


def test_a_scratch_through_many_tiles_is_one_region_whose_minimum_area_is_that_of_the_whole(fake_runtime: Any) -> None:
    image = np.zeros((8, 100), np.uint8)
    image[3, 5:95] = 255
    runtime = fake_runtime(_pits, tile_hw=(8, 10), overlap_px=3)
    settings = replace(runtime.settings, thresholds=_thresholds((0.5,), min_area_px=(90,)))

    result = segment_image(runtime, image, settings)

    assert [(region.area_px, region.box_xywh, region.score) for region in result.regions] == [(90, (5, 3, 90, 1), 1.0)]
    np.testing.assert_array_equal(result.masks[0], image > 0)


def test_a_gate_that_opens_in_the_last_tile_lets_the_first_pass(fake_runtime: Any) -> None:
    image = np.zeros((4, 40), np.uint8)
    image[1, 1], image[1, 38] = 153, 255  # 0.6 alone would not open a gate of 0.9
    runtime = fake_runtime(_pits, tile_hw=(4, 10), overlap_px=2)
    settings = replace(runtime.settings, thresholds=_thresholds((0.5,), gate=(0.9,)))

    assert np.argwhere(segment_image(runtime, image, settings).class_map).tolist() == [[1, 1], [1, 38]]
    assert not segment_image(runtime, image[:, :30].copy(), settings).masks.any()


@pytest.mark.parametrize(("size_hw", "spotted"), [((128, 20_000), True), ((10_000, 256), False)])
def test_a_large_image_takes_less_memory_than_its_probabilities(
    fake_runtime: Any, size_hw: tuple[int, int], spotted: bool
) -> None:
    def answer(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        level = tile / np.float32(255)
        return np.stack([level, level * np.float32(0.9), 1 - level, level])

    image = np.full(size_hw, 128, np.uint8)
    if spotted:
        for level, first in ((255, 10), (0, 50)):  # blobs of 6 x 6 px, 4.5 % of the image for three of the classes
            for y, x in itertools.product(range(6), range(6)):
                image[first + y :: 80, 10 + x :: 20] = level
    runtime = fake_runtime(answer, 4, tile_hw=(256, 256), overlap_px=16)
    settings = replace(runtime.settings, thresholds=_thresholds((0.8,) * 4, min_area_px=(1,) * 4))

    tracemalloc.start()
    result = segment_image(runtime, image, settings)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    # The fixed part: sums, weights, a tile's answer and temporaries, each float32 (4, 256, 256), which is 1 MiB.
    assert bool(result.regions) == spotted
    assert peak_bytes < 9 * image.size + 8 * 2**20
