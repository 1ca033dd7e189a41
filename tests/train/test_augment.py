"""Random changes of crops: seeded, the same geometry for image and masks, grey levels of the image alone."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.config import AugmentConfig
from defectseg.train.augment import build_augment

STILL = AugmentConfig(horizontal_flip=0, vertical_flip=0, brightness_contrast=0)
GEOMETRY = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=0.5, brightness_contrast=0)
GREYS = AugmentConfig(horizontal_flip=0, vertical_flip=0, brightness_contrast=1)
EVERYTHING = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=0.5, brightness_contrast=1)


def _crop(
    seed: int = 0, size_hw: tuple[int, int] = (24, 24), layers: int = 5
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image whose level tells the place, and layers of 0 and 1 that follow from the image."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size_hw, dtype=np.uint8)
    bits = [(image >> bit) & 1 for bit in range(layers)]
    return image, np.stack(bits)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), layers=st.integers(2, 8))
def test_image_and_layers_move_together(seed: int, layers: int) -> None:
    image, bits = _crop(layers=layers)
    moved, moved_bits = build_augment(GEOMETRY)(image, bits, seed)
    assert moved_bits.shape == bits.shape
    for bit in range(layers):
        np.testing.assert_array_equal(moved_bits[bit], (moved >> bit) & 1)


def test_every_flip_and_turn_occurs() -> None:
    image, bits = _crop()
    augment = build_augment(GEOMETRY)
    seen = {augment(image, bits, seed)[0].tobytes() for seed in range(100)}
    turned = [np.rot90(image, turns) for turns in range(4)]
    expected = {np.ascontiguousarray(way).tobytes() for turn in turned for way in (turn, turn[:, ::-1])}
    assert seen == expected


def test_flips_are_independent() -> None:
    image, bits = _crop()
    augment = build_augment(GEOMETRY.model_copy(update={"quarter_turns": 0.0}))
    ways = [augment(image, bits, seed)[0].tobytes() for seed in range(400)]
    for flipped in (image, image[:, ::-1], image[::-1], image[::-1, ::-1]):
        assert 70 < ways.count(np.ascontiguousarray(flipped).tobytes()) < 130


def test_the_result_depends_on_the_seed_alone_also_after_pickling() -> None:
    image, bits = _crop()
    first = build_augment(EVERYTHING)
    second = pickle.loads(pickle.dumps(first))
    np.random.seed(1)
    changes = [first(image, bits, seed) for seed in range(10)]
    np.random.seed(2)
    for seed in reversed(range(10)):
        for ours, theirs in zip(second(image, bits, seed), changes[seed], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len({changed.tobytes() for changed, _ in changes}) == 10


@pytest.mark.parametrize(("config", "changes"), [(STILL, False), (GREYS, True)], ids=["nothing", "grey levels"])
def test_without_flips_only_grey_levels_change(config: AugmentConfig, changes: bool) -> None:
    image, bits = _crop(size_hw=(10, 30), layers=3)
    for seed in range(5):
        changed, layers = build_augment(config)(image, bits, seed)
        assert (changed != image).any() == changes
        assert changed.dtype == np.uint8
        assert changed.shape == (10, 30)
        np.testing.assert_array_equal(layers, bits)


def test_a_step_does_not_depend_on_the_others() -> None:
    image, bits = _crop(size_hw=(64, 64))
    alone = build_augment(STILL.model_copy(update={"brightness_contrast": 0.5}))
    flipped = build_augment(STILL.model_copy(update={"horizontal_flip": 1.0, "brightness_contrast": 0.5}))
    for seed in range(10):
        expected = alone(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(bits[..., ::-1]), seed)[0]
        np.testing.assert_array_equal(flipped(image, bits, seed)[0], expected)
