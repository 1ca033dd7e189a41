from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.image.regions import Region, find_regions
from defectseg.inference.segment import Segmentation, segment, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer


def _thresholds(
    pixel: tuple[float, ...], *, gate: tuple[float, ...] | None = None, min_area_px: tuple[int, ...] | None = None
) -> Thresholds:
    count = len(pixel)
    return Thresholds(gate=gate or (0.0,) * count, pixel=pixel, min_area_px=min_area_px or (0,) * count)


def _prediction(*planes: list[list[float]], gate: list[float] | None = None) -> ImageAnswer:
    probabilities = np.array(planes, np.float32)
    gates = probabilities.max(axis=(1, 2)) if gate is None else np.array(gate, np.float32)
    return ImageAnswer(probabilities, gates)


def test_a_pixel_at_the_threshold_counts() -> None:
    # 0.3 is not a float32; the threshold must be rounded as the probability was.
    result = segment(_prediction([[0.3, 0.29999]]), _thresholds((0.3,)))

    assert result.masks.tolist() == [[[True, False]]]


@pytest.mark.parametrize(("gate", "found"), [(0.61, True), (0.6, True), (0.59, False)])
def test_a_class_counts_from_its_gate_on(gate: float, found: bool) -> None:
    result = segment(_prediction([[0.9, 0.9]], gate=[gate]), _thresholds((0.5,), gate=(0.6,)))

    assert result.masks.any() == found
    assert bool(result.regions) == found
    assert result.class_map.tolist() == [[int(found)] * 2]


def test_gates_and_thresholds_are_those_of_each_class() -> None:
    planes = [[0.4, 0.6]], [[0.4, 0.6]], [[0.9, 0.9]]
    thresholds = _thresholds((0.3, 0.5, 0.5), gate=(0.5, 0.5, 0.95))

    result = segment(_prediction(*planes), thresholds)

    assert result.masks.tolist() == [[[True, True]], [[False, True]], [[False, False]]]


def test_regions_smaller_than_the_minimum_area_are_dropped_from_masks_and_class_map() -> None:
    plane = [
        [0.9, 0.9, 0.1, 0.9],
        [0.9, 0.1, 0.1, 0.9],
        [0.1, 0.1, 0.1, 0.1],
        [0.9, 0.1, 0.1, 0.1],
    ]

    result = segment(_prediction(plane), _thresholds((0.5,), min_area_px=(2,)))

    assert [region.area_px for region in result.regions] == [3, 2]
    assert result.class_map.tolist() == [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(result.masks[0], result.class_map == 1)


def test_regions_come_by_class_then_size_with_their_own_figures() -> None:
    pits = [[0.6, 0.1, 0.8, 0.7], [0.1, 0.1, 0.1, 0.1]]
    cracks = [[0.1, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]]

    result = segment(_prediction(pits, cracks), _thresholds((0.5, 0.5)))

    figures = [(one.class_id, one.area_px, one.box_xywh, one.centroid_xy) for one in result.regions]
    assert figures == [(1, 2, (2, 0, 2, 1), (2.5, 0.0)), (1, 1, (0, 0, 1, 1), (0.0, 0.0)), (2, 1, (0, 1, 1, 1), (0, 1))]
    np.testing.assert_allclose([one.score for one in result.regions], [0.75, 0.6, 0.9], atol=1e-6)


def test_only_wanted_classes_are_reported_and_keep_their_numbers() -> None:
    result = segment(_prediction([[0.9]], [[0.8]]), _thresholds((0.5, 0.5)), only_classes=(2,))

    assert result.masks.tolist() == [[[False]], [[True]]]
    assert result.class_map.tolist() == [[2]]
    assert [one.class_id for one in result.regions] == [2]


def test_the_class_map_names_the_most_probable_class_whose_final_mask_holds_the_pixel() -> None:
    # Column 0: both, the second is more probable. Column 1: as probable, the first is named.
    # Column 3: a crack of one pixel is dropped, so the less probable pit is named.
    pits = [[0.6, 0.7, 0.1, 0.6, 0.6]]
    cracks = [[0.9, 0.7, 0.1, 0.9, 0.1]]

    result = segment(_prediction(pits, cracks), _thresholds((0.5, 0.5), min_area_px=(0, 2)))

    assert result.class_map.tolist() == [[2, 1, 0, 1, 1]]
    assert result.class_map.dtype == np.uint8
    assert result.masks.tolist() == [[[True, True, False, True, True]], [[True, True, False, False, False]]]


def test_a_clean_image_has_nothing() -> None:
    result = segment(_prediction([[0.1, 0.2]], [[0.1, 0.1]]), _thresholds((0.5, 0.5)))

    assert not result.masks.any()
    assert result.regions == ()
    assert result.class_map.tolist() == [[0, 0]]


probabilities_of_three_classes = hnp.arrays(
    np.float32,
    st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)),
    elements=st.sampled_from([np.float32(value) for value in (0.0, 0.4, 0.5, 0.6, 0.8)]),
)


@given(
    probabilities_of_three_classes, st.tuples(*[st.integers(0, 4)] * 3), st.tuples(*[st.sampled_from([0.5, 0.7])] * 3)
)
def test_class_map_agrees_with_a_slow_literal_one(
    probabilities: NDArray[np.float32], min_area_px: tuple[int, ...], gate: tuple[float, ...]
) -> None:
    before = probabilities.copy()
    prediction = ImageAnswer(probabilities, probabilities.max(axis=(1, 2)))

    result = segment(prediction, _thresholds((0.5, 0.5, 0.5), gate=gate, min_area_px=min_area_px))

    for y, x in np.ndindex(result.class_map.shape):
        holders = [(-probabilities[c, y, x], c + 1) for c in range(3) if result.masks[c, y, x]]
        assert result.class_map[y, x] == (min(holders)[1] if holders else 0)
    for index in range(3):
        areas = [region.area_px for region in result.regions if region.class_id == index + 1]
        assert sum(areas) == np.count_nonzero(result.masks[index])
        assert min(areas, default=min_area_px[index]) >= min_area_px[index]
        if prediction.gate[index] < gate[index]:
            assert areas == []
    np.testing.assert_array_equal(probabilities, before)


def slow_segment(
    prediction: ImageAnswer, thresholds: Thresholds, only_classes: tuple[int, ...] | None = None
) -> Segmentation:
    """The same in whole passes over all classes, without a short cut."""
    masks = np.zeros(prediction.probabilities.shape, np.bool_)
    regions: list[Region] = []
    for index, probabilities in enumerate(prediction.probabilities):
        wanted = only_classes is None or index + 1 in only_classes
        if not wanted or prediction.gate[index] < np.float32(thresholds.gate[index]):
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
    return Segmentation(masks, tuple(regions), class_map)


@given(
    probabilities_of_three_classes,
    st.tuples(*[st.integers(0, 4)] * 3),
    st.tuples(*[st.sampled_from([0.0, 0.4, 0.5, 0.7, 1.0])] * 3),
    st.tuples(*[st.sampled_from([0.0, 0.5, 0.7])] * 3),
    st.sampled_from([None, (2,), (1, 3)]),
)
def test_short_cuts_change_nothing(
    probabilities: NDArray[np.float32],
    min_area_px: tuple[int, ...],
    pixel: tuple[float, ...],
    gate: tuple[float, ...],
    only_classes: tuple[int, ...] | None,
) -> None:
    prediction = ImageAnswer(probabilities, probabilities.max(axis=(1, 2)))
    thresholds = _thresholds(pixel, gate=gate, min_area_px=min_area_px)

    result = segment(prediction, thresholds, only_classes=only_classes)

    expected = slow_segment(prediction, thresholds, only_classes)
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_array_equal(result.class_map, expected.class_map)
    assert result.class_map.dtype == np.uint8
    assert result.regions == expected.regions


@dataclass
class AnsweringRuntime:
    """A Runtime that gives one prediction, whatever the image."""

    prediction: ImageAnswer
    class_names: tuple[str, ...] = ("pits", "cracks")
    name: str = "test"
    parallel: int = 1

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        return Answer(self.prediction.probabilities[None], self.prediction.gate[None])


def test_segmenting_an_image_is_segmenting_what_the_network_says_of_it() -> None:
    prediction = _prediction([[0.9, 0.2, 0.6]], [[0.1, 0.8, 0.7]])

    settings = Settings(_thresholds((0.5, 0.5)), (1024, 2048), 128, classes=(1,))
    result = segment_image(AnsweringRuntime(prediction), np.zeros((1, 3), np.uint8), settings)

    assert result.masks.tolist() == [[[True, False, True]], [[False, False, False]]]
    assert result.class_map.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("pixel", [(0, 0), (3, 5), (16, 36)])
def test_one_pixel_that_is_not_a_number_never_passes_for_clean_steel(index: int, pixel: tuple[int, int]) -> None:
    # Neither a comparison nor cv2.minMaxLoc notices it, and the gate is shut.
    probabilities = np.full((2, 17, 37), 0.1, np.float32)
    probabilities[index][pixel] = np.nan
    runtime = AnsweringRuntime(ImageAnswer(probabilities, np.zeros(2, np.float32)))

    with pytest.raises(ModelError, match="not a number"):
        segment_image(runtime, np.zeros((17, 37), np.uint8), Settings(Thresholds.default(2), (1024, 2048), 128))


@pytest.mark.parametrize("index", [0, 1])
def test_a_gate_that_is_not_a_number_never_passes_for_clean_steel(index: int) -> None:
    gate = np.zeros(2, np.float32)
    gate[index] = np.nan
    runtime = AnsweringRuntime(ImageAnswer(np.zeros((2, 3, 3), np.float32), gate))

    with pytest.raises(ModelError, match="not a number"):
        segment_image(runtime, np.zeros((3, 3), np.uint8), Settings(Thresholds.default(2), (1024, 2048), 128))
