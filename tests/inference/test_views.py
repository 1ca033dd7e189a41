from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import UsageError
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image
from defectseg.inference.views import VIEWS, answer_views
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer, Runtime

MIRRORS: dict[str, Callable[[Any], Any]] = {
    "left to right": lambda image: image[..., ::-1],
    "upside down": lambda image: image[..., ::-1, :],
    "half turn": lambda image: image[..., ::-1, ::-1],
}
TURNS = MIRRORS | {
    "quarter turn": lambda image: np.rot90(image, axes=(-2, -1)),
    "quarter turn back": lambda image: np.rot90(image, -1, axes=(-2, -1)),
    "transposed": lambda image: image.swapaxes(-2, -1),
    "transposed the other way": lambda image: image[..., ::-1, ::-1].swapaxes(-2, -1),
}
sides = st.integers(1, 12)


class LopsidedRuntime:
    """A Runtime that answers otherwise for every view: each pixel counts with a weight of its place."""

    name = "lopsided"
    parallel = 1
    class_names = ("pits", "cracks")

    def __init__(self, batch_px: int = 0) -> None:
        self.batch_px = batch_px
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        self.shapes.append(images.shape)
        rows, columns = np.indices(images.shape[-2:])
        weights = np.stack([1 / (1 + rows + 3 * columns), 1 / (2 + columns + rows**2)])
        probabilities = (images / 255 * weights).astype(np.float32)
        probabilities.flags.writeable = False
        gate = probabilities.max(axis=(2, 3)) * np.float32(0.7)
        gate.flags.writeable = False
        return Answer(probabilities, gate)


def _images(number: int, size_hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (number, 1, *size_hw), dtype=np.uint8)


def _answer(runtime: Runtime, images: NDArray[np.uint8], tta: str) -> Answer:
    answers = list(answer_views(runtime, list(images[:, 0]), tta))
    return Answer(*(np.concatenate([getattr(one, name) for one in answers]) for name in ("probabilities", "gate")))


def _slow_mean(images: NDArray[np.uint8], tta: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean over the views, written with turns by 90 degrees and one mirror only."""
    probabilities, gates = [], []
    square = images.shape[-1] == images.shape[-2]
    for mirrored in (False, True):
        for turns in range(4) if tta == "turns" and square else (0, 2):
            view = np.rot90(images[..., ::-1] if mirrored else images, turns, axes=(-2, -1))
            answer = LopsidedRuntime()(np.ascontiguousarray(view))
            upright = np.rot90(answer.probabilities, -turns, axes=(-2, -1))
            probabilities.append((upright[..., ::-1] if mirrored else upright).astype(np.float64))
            gates.append(answer.gate.astype(np.float64))
    return np.mean(probabilities, axis=0), np.mean(gates, axis=0)


@given(
    number=st.integers(1, 3),
    size_hw=st.tuples(sides, sides),
    tta=st.sampled_from(["flips", "turns"]),
    batch_px=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_the_answer_is_the_mean_over_all_views(number: int, size_hw: tuple[int, int], tta: str, batch_px: int) -> None:
    images = _images(number, size_hw, seed=sum(size_hw))

    answer = _answer(LopsidedRuntime(batch_px), images, tta)

    probabilities, gate = _slow_mean(images, tta)
    assert answer.probabilities.dtype == answer.gate.dtype == np.float32
    assert answer.probabilities.flags.c_contiguous
    np.testing.assert_allclose(answer.probabilities, probabilities, rtol=1e-6)
    np.testing.assert_allclose(answer.gate, gate, rtol=1e-6)


@pytest.mark.parametrize(
    ("tta", "name"), [*(("flips", name) for name in MIRRORS), *(("turns", name) for name in TURNS)]
)
def test_a_mirrored_or_turned_image_has_the_answer_mirrored_or_turned_to_the_last_bit(tta: str, name: str) -> None:
    for height in range(1, 13):
        images = _images(1, (height, height if tta == "turns" else 7), seed=height)

        answer = _answer(LopsidedRuntime(), images, tta)
        turned = _answer(LopsidedRuntime(), TURNS[name](images), tta)

        np.testing.assert_array_equal(turned.probabilities, TURNS[name](answer.probabilities))
        np.testing.assert_array_equal(turned.gate, answer.gate)


@pytest.mark.parametrize(
    ("tta", "size_hw", "calls"),
    [("none", (6, 6), 1), ("flips", (6, 6), 4), ("flips", (4, 6), 4), ("turns", (6, 6), 8), ("turns", (4, 6), 4)],
)
@pytest.mark.parametrize("tiles", [1, 2])
def test_each_view_is_answered_once_and_turned_only_if_square(
    tta: str, size_hw: tuple[int, int], calls: int, tiles: int
) -> None:
    runtime = LopsidedRuntime()
    tile = _images(1, size_hw, seed=3)
    image = np.tile(tile[0, 0], (1, tiles))

    prediction = predict_image(runtime, image, Settings(Thresholds.default(2), size_hw, 0, tta=tta))

    assert runtime.shapes == [(1, 1, *size_hw)] * calls * tiles
    expected = _answer(LopsidedRuntime(), tile, tta)
    np.testing.assert_array_equal(prediction.probabilities, np.tile(expected.probabilities[0], (1, 1, tiles)))
    np.testing.assert_array_equal(prediction.gate, expected.gate[0])


@pytest.mark.parametrize("tta", list(VIEWS))
def test_an_answer_that_is_equal_in_every_view_stays_equal(grey_runtime: Callable[..., Any], tta: str) -> None:
    images = _images(1, (9, 9), seed=2)
    runtime = grey_runtime()

    answer, direct = _answer(runtime, images, tta), runtime(images)

    np.testing.assert_array_equal(answer.probabilities, direct.probabilities)
    np.testing.assert_array_equal(answer.gate, direct.gate)


def test_settings_are_those_of_the_model_unless_told_otherwise(grey_runtime: Callable[..., Any]) -> None:
    info = grey_runtime(tile_hw=(64, 96), tile_overlap_px=16).info
    other = Thresholds.default(2)
    recipe = info.recipe.model_copy(update={"inference": info.recipe.inference.model_copy(update={"tta": "flips"})})
    flipping = info.model_copy(update={"recipe": recipe})

    assert Settings.of(flipping) == Settings(info.thresholds, (64, 96), 16, "flips")
    chosen = Settings.of(flipping, tta="none", thresholds=other, classes=(2,), bit_depth=9)
    only_second = other.model_copy(update={"pixel": (np.inf, 0.5)})
    assert chosen == Settings(only_second, (64, 96), 16, "none", 9)
    assert Settings.of(info, bit_depth=16).bit_depth == 16
    refused: dict[str, dict[str, Any]] = {
        "tta: expected none, flips, turns, found FLIPS": {"tta": "FLIPS"},
        "tta: expected none, flips, turns": {"tta": ""},
        "bit_depth: expected 9 to 16, found 8": {"bit_depth": 8},
        "bit_depth: expected 9 to 16, found 17": {"bit_depth": 17},
    }
    for told, options in refused.items():
        with pytest.raises(UsageError, match=told):
            Settings.of(info, **options)
