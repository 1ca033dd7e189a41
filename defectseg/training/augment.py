"""Random changes of a training crop. The only user of albumentations."""

import os
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version on import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of its own deprecations on import
    import albumentations

from defectseg.config import AugmentConfig

Augment = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def build_augment(config: AugmentConfig) -> Augment:
    """A function (image uint8 (H, W), layers uint8 (H, W, L), seed) -> changed image and layers.

    Geometry changes both; brightness, blur and noise the image alone. Equal seeds give equal results.
    """
    steps = [
        albumentations.HorizontalFlip(p=config.horizontal_flip),
        albumentations.VerticalFlip(p=config.vertical_flip),
        albumentations.RandomRotate90(p=config.quarter_turns),
        albumentations.RandomBrightnessContrast(
            brightness_limit=config.brightness_limit,
            contrast_limit=config.contrast_limit,
            p=config.brightness_contrast,
        ),
        albumentations.GaussianBlur(p=config.blur),
        albumentations.GaussNoise(std_range=(0.0, config.noise_std), p=config.noise),
    ]
    compose = albumentations.Compose([step for step in steps if step.p > 0])

    def augment(
        image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        # Compose.set_random_seed would give every step the same seed: both flips or none, the same chance throughout.
        for step, own in zip(compose.transforms, np.random.SeedSequence(seed).generate_state(len(steps)), strict=False):
            step.set_random_seed(int(own))
        changed = compose(image=image, mask=layers)
        return changed["image"], changed["mask"]

    return augment
