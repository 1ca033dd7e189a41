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
from defectseg.train import steel

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Augment = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], Crop]
Change = Callable[[NDArray[np.uint8], NDArray[np.uint8], np.random.Generator], Crop]


def build_augment(config: AugmentConfig) -> Augment:
    """A function (image uint8 (H, W), layers uint8 (H, W, L), seed) -> changed image and layers.

    Geometry changes both, and so do the steps of `steel`; brightness, gamma, blur and noise the image alone. Equal
    seeds give equal results, and what a step does does not depend on which others there are.
    """
    gamma = (max(1, 100 * (1 - config.gamma_limit)), 100 * (1 + config.gamma_limit))  # in percent, at least 1
    steps: list[tuple[float, Change]] = [
        (config.horizontal_flip, _of(albumentations.HorizontalFlip(p=1))),
        (config.vertical_flip, _of(albumentations.VerticalFlip(p=1))),
        (config.quarter_turns, _of(albumentations.RandomRotate90(p=1))),
        (config.black_out, steel.black_out),
        (
            config.brightness_contrast,
            _of(
                albumentations.RandomBrightnessContrast(
                    brightness_limit=config.brightness_limit, contrast_limit=config.contrast_limit, p=1
                )
            ),
        ),
        (config.gamma, _of(albumentations.RandomGamma(gamma_limit=gamma, p=1))),
        # Past the end of a sheet it is dark however bright the steel: hence after brightness, before optics and sensor.
        (config.sheet_end, steel.sheet_end),
        (config.blur, _of(albumentations.GaussianBlur(p=1))),
        (config.noise, _of(albumentations.GaussNoise(std_range=(0.0, config.noise_std), p=1))),
    ]

    return partial(_apply, steps)


# Partials of functions of the module, not closures: where workers are not forked they are pickled.
def _apply(
    steps: Sequence[tuple[float, Change]], image: NDArray[np.uint8], layers: NDArray[np.uint8], seed: int
) -> Crop:
    # One seed for all, as in Compose, would give every step the same chance: both flips or none.
    for (chance, change), own in zip(steps, np.random.SeedSequence(seed).spawn(len(steps)), strict=True):
        rng = np.random.default_rng(own)
        if rng.random() < chance:
            image, layers = change(image, layers, rng)
    return image, layers


def _of(transform: Any) -> Change:
    """An albumentations transform as one that takes its chance from a generator."""
    return partial(_transform, transform)


def _transform(transform: Any, image: NDArray[np.uint8], layers: NDArray[np.uint8], rng: np.random.Generator) -> Crop:
    transform.set_random_seed(int(rng.integers(2**31)))
    changed = transform(image=image, mask=layers)
    return changed["image"], changed["mask"]
