"""Augmentation of training crops. Only this module imports albumentations."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it checks for updates online on import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it emits deprecation warnings on import
    import albumentations

from defectseg.config import AugmentConfig

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Augment = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], Crop]


def build_augment(config: AugmentConfig) -> Augment:
    """A function (image uint8 (H, W), layers uint8 (H, W, L), seed) -> augmented image and layers.

    Flips and turns apply to both, brightness and contrast to the image only. The result depends only on the input and
    the seed, and each transform is independent of which others are enabled.
    """
    light = albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=1)
    return partial(
        _apply,
        [
            (config.horizontal_flip, 0, albumentations.HorizontalFlip(p=1)),
            (config.vertical_flip, 1, albumentations.VerticalFlip(p=1)),
            (config.quarter_turns, 2, albumentations.RandomRotate90(p=1)),
            (config.brightness_contrast, 4, light),
        ],
    )


# A module-level function, not a closure: data-loader workers that are not forked receive it pickled.
def _apply(
    steps: Sequence[tuple[float, int, Any]], image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int
) -> Crop:
    """Apply each step in turn. A step is (probability, number of its random stream, albumentations transform).

    With one common seed, as in albumentations' Compose, both flips would always occur together. The stream numbers are
    fixed, so the same seed gives the same crops even if steps are added or removed.
    """
    for probability, stream, transform in steps:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
        if rng.random() < probability:
            transform.set_random_seed(int(rng.integers(2**31)))
            changed = transform(image=image, mask=layers)
            image, layers = changed["image"], changed["mask"]
    return image, layers
