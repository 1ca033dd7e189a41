"""95 % percentile intervals of the figures, from groups of images resampled with replacement.

Groups rather than images or pairs are resampled, because images of one coil and classes of one image are not
independent.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory of the weights to about 16 MB


@dataclass(frozen=True)
class Interval:
    """Bounds that hold 95 % of the resampled figures, and always the figure itself."""

    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """The contribution of each image to the figures: arrays (N, C) over images and classes.

    `dice` float64 in [0, 1], NaN for pairs in which ignored pixels may hide the class; `true_px`, `predicted_px`
    and `both_px` int64. `group` int64 (N,): the group of each image, numbered from 0.
    """

    dice: NDArray[np.float64]
    true_px: NDArray[np.int64]
    predicted_px: NDArray[np.int64]
    both_px: NDArray[np.int64]
    group: NDArray[np.int64]

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Bool (N, C): the pairs that have a labelled pixel."""
        return self.true_px > 0

    @property
    def known(self) -> NDArray[np.bool_]:
        """Bool (N, C): the pairs that have a Dice."""
        return ~np.isnan(self.dice)

    @property
    def defective(self) -> NDArray[np.bool_]:
        """Bool (N,): a pixel of any class is labelled. Such a sheet is missed if it is not flagged."""
        return np.asarray(self.positive.any(axis=1))

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Bool (N,): a pixel of any class is predicted."""
        return np.asarray((self.predicted_px > 0).any(axis=1))

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Bool (N,): certainly without a defect of any class. Such a sheet is stopped in vain if it is flagged."""
        return ~self.defective & self.known.all(axis=1)


class Figures(NamedTuple):
    """The headline figures of R data sets, float64 (R,) each; NaN where a figure would be 0 / 0."""

    kaggle_dice: NDArray[np.float64]
    gain_over_empty: NDArray[np.float64]
    positive_dice: NDArray[np.float64]
    miou: NDArray[np.float64]


def figures_of(tally: Tally, weights: NDArray[np.float64]) -> Figures:
    """The figures of R data sets in which image n occurs weights[r, n] times, weights float64 (R, N)."""
    positive, every_dice = tally.positive, np.nan_to_num(tally.dice)
    per_image = np.column_stack([
        every_dice.sum(axis=1), (every_dice * positive).sum(axis=1), positive.sum(axis=1),
        tally.true_px, tally.both_px, tally.true_px + tally.predicted_px - tally.both_px,
    ])  # fmt: skip
    sums = weights @ per_image
    dice, positive_dice, positives = sums[:, :3].T
    true_px, both_px, union_px = np.split(sums[:, 3:], 3, axis=1)
    pairs = weights @ tally.known.sum(axis=1, dtype=np.float64)
    iou = both_px / np.maximum(union_px, 1)  # 0 for a class that does not occur
    with np.errstate(invalid="ignore"):
        return Figures(
            kaggle_dice=dice / pairs,
            gain_over_empty=(dice - (pairs - positives)) / pairs,
            positive_dice=positive_dice / positives,
            miou=iou.sum(axis=1) / (true_px > 0).sum(axis=1),
        )


def number_groups(names: Iterable[Hashable]) -> NDArray[np.int64]:
    """The group of each image as a number, int64 (N,), from the names of their groups: the first is 0, and so on."""
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names], np.int64)


def draw_groups(group: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """How often each image occurs in 1,000 resamples of the groups: blocks of weights, float64 (R, N).

    Each resample draws as many groups as there are, with all of their images. The same groups give the same weights.

    Args:
        group: int64 (N,), the group of each image, numbered from 0.
    """
    generator, images, groups = np.random.default_rng(0), len(group), int(group.max()) + 1
    at_once = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = generator.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        times = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        yield times.take(group, axis=1).astype(np.float64)


def bootstrap(tally: Tally) -> Figures:
    """The figures of 1,000 resamples of the groups, see `draw_groups`."""
    return Figures(*np.concatenate([figures_of(tally, weights) for weights in draw_groups(tally.group)], axis=1))


def interval_of(values: NDArray[np.float64], point: float) -> Interval:
    """The 95 % interval of resampled `values`, widened where necessary so that it holds `point`.

    Widening matters where a few images decide a figure. Bounds are rounded to 12 places, because later digits depend
    on the order of summation in a matrix product. Resamples without the figure (no pair with a defect) are left out.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(point, point)
    low, high = np.quantile(values, [0.025, 0.975]).round(12).tolist()
    return Interval(min(low, point), max(high, point))
