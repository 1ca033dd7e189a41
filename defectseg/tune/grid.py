"""The settings that a search tries, and the scores of images under each of them.

A setting is a pixel threshold, a minimum area and a gate. The totals of disjoint sets of images can be added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.metrics import dice_of
from defectseg.tune.sums import ImageSums

DEFAULT_SETTING = (0.5, 0, 0.5)
"""Pixel threshold, minimum area in px, gate."""

Places = tuple[int, int, int]
"""Indices of a setting in the grid: of P pixel thresholds, A minimum areas, G gates."""


@dataclass(frozen=True)
class Grid:
    """The settings to try: each pixel threshold with each minimum area and each gate, all rising."""

    pixel: tuple[float, ...]
    area_px: tuple[int, ...]
    gate: tuple[float, ...]

    @cached_property
    def default(self) -> Places:
        """The setting nearest to the defaults."""
        axes = zip((self.pixel, self.area_px, self.gate), DEFAULT_SETTING, strict=True)
        pixel, area, gate = (int(np.argmin(np.abs(np.asarray(values) - value))) for values, value in axes)
        return pixel, area, gate

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """The number of grid steps between each setting and the default one: int (P, A, G)."""
        sizes = (len(self.pixel), len(self.area_px), len(self.gate))
        return np.asarray(
            sum(np.ix_(*(np.abs(np.arange(size) - place) for size, place in zip(sizes, self.default, strict=True))))
        )


GRID = Grid(
    pixel=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    area_px=(0, 50, 100, 200, 400, 600, 900, 1400, 2000),
    gate=(0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98),
)


class Totals(NamedTuple):
    """The summed scores of some images, by class.

    Attributes:
        images: int (C,), number of images where it is known whether they have the class; only these count.
        positives: int (C,), number of images that have the class.
        dice: float (C, P, A, G) over all settings, or (C,) under one setting; sum of the Dice.
        positive_dice: sum of the Dice of the images that have the class.
        hits: number of images that have the class and in which a predicted pixel is true.
        alarms: number of images without the class in which a pixel is predicted.
    """

    images: NDArray[np.int64]
    positives: NDArray[np.int64]
    dice: NDArray[np.float64]
    positive_dice: NDArray[np.float64]
    hits: NDArray[np.float64]
    alarms: NDArray[np.float64]

    def at(self, places: Sequence[Places]) -> "Totals":
        """The totals under one setting for each class: arrays (C,)."""
        index = (np.arange(len(places)), *np.array(places).T)
        return Totals(self.images, self.positives, *(array[index] for array in self[2:]))


class Table:
    """Each image under each pixel threshold and minimum area, in the order of `images`.

    Args:
        images: at least one.
        grid: the settings, whose minimum areas are the first ones of the images' sums.

    Attributes:
        images, grid: as given.
        true_px: int (N, C).
        positive: bool (N, C), whether the image has the class.
        known: bool (N, C), False where ignored pixels may hide the class.
        passes: bool (C, N, G), whether the gate lets the class pass.
    """

    def __init__(self, images: Sequence[ImageSums], grid: Grid) -> None:
        self.images, self.grid = images, grid
        areas = len(grid.area_px)
        self._kept_px = np.stack([image.kept_px[..., :areas] for image in images], axis=1)  # (C, N, 2, P, A)
        self.true_px = np.stack([image.true_px for image in images])
        self.positive = self.true_px > 0
        self.known = np.stack([image.known for image in images])
        gates = np.stack([image.gate for image in images])
        self.passes = gates.T[:, :, None] >= np.asarray(grid.gate, np.float32)
        self._dice = np.stack([self._dice_of_class(index) for index in range(len(self._kept_px))])

    def _dice_of_class(self, index: int) -> NDArray[np.float64]:
        """Dice (N, P, A) of one class where it passes; 0 where it is unknown."""
        predicted_px, both_px = self._kept_px[index].astype(np.int64).swapaxes(0, 1)
        dice = dice_of(self.true_px[:, index, None, None], predicted_px, both_px)
        dice[~self.known[:, index]] = 0
        return dice

    def totals(self, rows: NDArray[np.int64]) -> Totals:
        """The totals of some of the images under every setting; arrays (C, P, A, G)."""
        passes, positive, dice = self.passes[:, rows], self.positive[rows].T, self._dice[:, rows]
        absent = self.known[rows].T & ~positive
        kept = self._kept_px[:, rows] > 0

        def total(values: NDArray[np.generic]) -> NDArray[np.float64]:
            return np.asarray(np.einsum("cnpa,cng->cpag", values.astype(np.float64), passes, optimize=True))

        stopped = np.einsum("cn,cng->cg", absent, ~passes, dtype=np.float64)
        held = positive[:, :, None, None]
        return Totals(
            images=self.known[rows].sum(axis=0),
            positives=positive.sum(axis=1),
            dice=total(dice) + stopped[:, None, None, :],
            positive_dice=total(dice * held),
            hits=total(kept[:, :, 1]),
            alarms=total(kept[:, :, 0] & absent[:, :, None, None]),
        )

    def dice(self, places: Sequence[Places]) -> NDArray[np.float64]:
        """Dice (N, C) under one setting for each class, NaN where the class is unknown."""
        kept = [
            np.where(self.passes[index, :, None, gate], self._kept_px[index, :, :, pixel, area], 0)
            for index, (pixel, area, gate) in enumerate(places)
        ]
        predicted_px, both_px = np.stack(kept, axis=1, dtype=np.int64).transpose(2, 0, 1)
        return np.where(self.known, dice_of(self.true_px, predicted_px, both_px), np.nan)
