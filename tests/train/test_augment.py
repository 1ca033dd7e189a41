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
GREYS = AugmentConfig(
    horizontal_flip=0, vertical_flip=0, brightness_contrast=1, brightness_limit=0.3, blur=1, noise=1, noise_std=0.2
)
EVERYTHING = AugmentConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    quarter_turns=0.5,
    brightness_contrast=1,
    gamma=1,
    blur=1,
    noise=1,
    noise_std=0.1,
    sheet_end=0.5,
    black_out=0.5,
)


def _crop(
    seed: int = 0, size_hw: tuple[int, int] = (24, 24), layers: int = 5
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image whose level tells the place, and layers of 0 and 1 that follow from the image."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size_hw, dtype=np.uint8)
    bits = [(image >> bit) & 1 for bit in range(layers)]
    return image, np.ascontiguousarray(np.stack(bits, axis=-1))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), layers=st.integers(2, 8))
def test_image_and_layers_move_together(seed: int, layers: int) -> None:
    image, bits = _crop(layers=layers)
    moved, moved_bits = build_augment(GEOMETRY)(image, bits, seed)
    assert moved_bits.shape == bits.shape
    for bit in range(layers):
        np.testing.assert_array_equal(moved_bits[..., bit], (moved >> bit) & 1)


def test_every_flip_and_turn_comes_about() -> None:
    image, bits = _crop()
    augment = build_augment(GEOMETRY)
    seen = {augment(image, bits, seed)[0].tobytes() for seed in range(100)}
    turned = [np.rot90(image, turns) for turns in range(4)]
    expected = {np.ascontiguousarray(way).tobytes() for turn in turned for way in (turn, turn[:, ::-1])}
    assert seen == expected


@pytest.mark.parametrize(
    "config", [GREYS, STILL.model_copy(update={"noise": 1}), STILL.model_copy(update={"gamma": 1})]
)
def test_grey_levels_change_in_the_image_alone(config: AugmentConfig) -> None:
    image, bits = _crop()
    changed, layers = build_augment(config)(image, bits, 3)
    assert (changed != image).any()
    np.testing.assert_array_equal(layers, bits)


def test_flips_come_independently_of_each_other() -> None:
    image, bits = _crop()
    augment = build_augment(GEOMETRY.model_copy(update={"quarter_turns": 0.0}))
    ways = [augment(image, bits, seed)[0].tobytes() for seed in range(400)]
    for flipped in (image, image[:, ::-1], image[::-1], image[::-1, ::-1]):
        assert 70 < ways.count(np.ascontiguousarray(flipped).tobytes()) < 130


def test_noise_stays_within_its_strength() -> None:
    image = np.full((200, 200), 128, np.uint8)
    config = AugmentConfig(horizontal_flip=0, vertical_flip=0, brightness_contrast=0, noise=1, noise_std=0.02)
    spreads = [float(build_augment(config)(image, image[..., None], seed)[0].std()) for seed in range(8)]
    assert 0 < max(spreads) <= 0.02 * 255 * 1.1


def test_a_seed_repeats_its_change_whatever_came_before() -> None:
    image, bits = _crop()
    first, second = build_augment(EVERYTHING), build_augment(EVERYTHING)
    for seed in range(7):
        second(image, bits, 100 + seed)
    for ours, theirs in zip(first(image, bits, 42), second(image, bits, 42), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_seeds_make_other_changes() -> None:
    image, bits = _crop()
    augment = build_augment(EVERYTHING)
    assert len({augment(image, bits, seed)[0].tobytes() for seed in range(10)}) == 10


def test_numpys_global_chance_plays_no_part() -> None:
    image, bits = _crop()
    augment = build_augment(EVERYTHING)
    np.random.seed(1)
    first = augment(image, bits, 5)[0]
    np.random.seed(2)
    np.testing.assert_array_equal(augment(image, bits, 5)[0], first)


def test_with_every_chance_at_zero_nothing_changes() -> None:
    image, bits = _crop(size_hw=(10, 30))
    changed, layers = build_augment(STILL)(image, bits, 1)
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(layers, bits)


def test_types_and_shapes_are_kept() -> None:
    image, bits = _crop(size_hw=(16, 40), layers=3)
    config = EVERYTHING.model_copy(update={"quarter_turns": 0.0})
    for seed in range(5):
        changed, layers = build_augment(config)(image, bits, seed)
        assert changed.dtype == np.uint8
        assert changed.shape == (16, 40)
        assert layers.dtype == np.uint8
        assert layers.shape == (16, 40, 3)
        assert set(np.unique(layers)) <= {0, 1}


def test_gamma_stays_within_its_limits() -> None:
    image = np.full((2, 2), 128, np.uint8)
    augment = build_augment(STILL.model_copy(update={"gamma": 1.0, "gamma_limit": 0.5}))
    levels = {int(augment(image, image[..., None], seed)[0][0, 0]) for seed in range(200)}
    # 255 * (128 / 255) ** 1.5 = 90.7 and 255 * (128 / 255) ** 0.5 = 180.7
    assert 90 <= min(levels) < 100
    assert 170 < max(levels) <= 181


def test_gamma_takes_the_ends_of_its_range() -> None:
    image, bits = _crop()
    least, most = (
        build_augment(STILL.model_copy(update={"gamma": 1.0, "gamma_limit": limit}))(image, bits, 0)[0].astype(int)
        for limit in (0.0, 1.0)
    )
    assert np.abs(least - image).max() <= 1  # rounded down
    assert np.abs(most - image).max() > 1


def test_what_a_step_does_does_not_depend_on_the_others() -> None:
    image, bits = _crop(size_hw=(64, 64))
    alone = build_augment(STILL.model_copy(update={"noise": 0.5}))
    flipped = build_augment(STILL.model_copy(update={"horizontal_flip": 1.0, "noise": 0.5}))
    for seed in range(10):
        expected = alone(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(bits[:, ::-1]), seed)[0]
        np.testing.assert_array_equal(flipped(image, bits, seed)[0], expected)


def test_a_sheet_end_stays_dark_however_bright_the_steel() -> None:
    image = np.full((40, 200), 120, np.uint8)
    brighter = {"brightness_contrast": 1.0, "brightness_limit": 1.0, "sheet_end": 1.0}
    augment = build_augment(STILL.model_copy(update=brighter))
    layers = np.zeros((40, 200, 2), np.uint8)
    for seed in range(20):
        image_changed, _ = augment(image, layers, seed)
        # At least 5 % of 200 columns, less the lean, the wave and the soft edge.
        assert (image_changed <= 16).all(axis=0).sum() >= 3


def test_covered_defects_are_no_longer_labelled() -> None:
    image = np.full((40, 60), 120, np.uint8)
    layers = np.zeros((40, 60, 3), np.uint8)
    layers[10:20, 15:25, 1] = 1
    layers[30:, :, 2] = 1
    changed, left = build_augment(STILL.model_copy(update={"black_out": 1.0}))(image, layers, 0)
    assert (changed[10:20, 15:25] <= 16).all()
    assert not left[..., :2].any()
    np.testing.assert_array_equal(left[..., 2], layers[..., 2])


def test_it_can_be_sent_to_a_worker_that_is_not_forked() -> None:
    augment = build_augment(EVERYTHING)
    sent = pickle.loads(pickle.dumps(augment))
    image, layers = _crop()
    for seed in range(8):
        for ours, theirs in zip(augment(image, layers, seed), sent(image, layers, seed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
