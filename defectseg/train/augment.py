"""Random changes of a training crop. The only user of albumentations."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version on import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of its own deprecations on import
    import albumentations

from defectseg.config import AugmentConfig

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Augment = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], Crop]


def build_augment(config: AugmentConfig) -> Augment:
    """A function (image uint8 (H, W), layers uint8 (H, W, L), seed) -> changed image and layers.

    Geometry changes both, brightness and contrast the image alone. Equal seeds give equal results, and what a step does
    does not depend on which others there are.
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


# A partial of a function of the module, not a closure: where workers are not forked it is pickled.
def _apply(
    steps: Sequence[tuple[float, int, Any]], image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int
) -> Crop:
    """Take each step (its probability, the number of its random stream, an albumentations transform) in turn.

    One seed for all, as in Compose, would give every step the same chance: both flips or none. The numbers never
    change, so that a seed gives the same crops whatever steps come and go.
    """
    for probability, stream, transform in steps:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
        if rng.random() < probability:
            transform.set_random_seed(int(rng.integers(2**31)))
            changed = transform(image=image, mask=layers)
            image, layers = changed["image"], changed["mask"]
    return image, layers
