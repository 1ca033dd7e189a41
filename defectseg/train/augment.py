"""Augmentation of training crops. Only this module imports albumentations."""

import os
import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it checks for updates online on import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it emits deprecation warnings on import
    import albumentations

from defectseg.config import AugmentConfig

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Augment = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], Crop]

_LIGHT = albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=1)


def build_augment(config: AugmentConfig) -> Augment:
    """A function (image uint8 (H, W), layers uint8 (L, H, W), seed) -> augmented image and layers, maybe as views.

    Flips and turns apply to both, brightness and contrast to the image only. The result depends only on the input and
    the seed, and each transform is independent of which others are enabled.
    """
    return partial(
        _apply,
        [
            (config.horizontal_flip, 0, _flip_columns),
            (config.vertical_flip, 1, _flip_rows),
            (config.quarter_turns, 2, _turn),
            (config.brightness_contrast, 4, _change_light),
        ],
    )


# Module-level functions, not closures: data-loader workers that are not forked receive them pickled.
def _apply(
    steps: Sequence[tuple[float, int, Augment]], image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int
) -> Crop:
    """Apply each step in turn. A step is (probability, number of its random stream, what it does).

    With one common seed, as in albumentations' Compose, both flips would always occur together. The stream numbers are
    fixed, so the same seed gives the same crops even if steps are added or removed.
    """
    for probability, stream, change in steps:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
        if rng.random() < probability:
            image, layers = change(image, layers, int(rng.integers(2**31)))
    return image, layers


def _flip_columns(image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int) -> Crop:
    # Unlike a view with columns in reverse, which takes long to copy.
    flipped = cv2.flip(layers.reshape(-1, layers.shape[-1]), 1).reshape(layers.shape)
    return np.asarray(cv2.flip(image, 1), np.uint8), np.asarray(flipped, np.uint8)


def _flip_rows(image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int) -> Crop:
    return image[::-1], layers[:, ::-1]


def _turn(image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int) -> Crop:
    turns = random.Random(seed).randint(0, 3)  # noqa: S311
    # Not as views: stacked, turned views would give a batch in another memory order.
    turned, turned_layers = np.rot90(image, turns), np.rot90(layers, turns, axes=(1, 2))
    return np.ascontiguousarray(turned), np.ascontiguousarray(turned_layers)


def _change_light(image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int) -> Crop:
    _LIGHT.set_random_seed(seed)
    return _LIGHT(image=np.ascontiguousarray(image))["image"], layers
