"""How far a figure can be trusted: 95 % percentile intervals over images resampled with replacement.

Images, not pairs, are resampled, since the classes of one image stand or fall together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_DRAWS_AT_ONCE = 1_000_000  # keeps the weights in memory at some 16 MB, however many images there are


@dataclass(frozen=True)
class Interval:
    """The bounds that hold 95 % of the resampled figures, and always the figure itself."""

    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """What each image adds to the figures: arrays (N, C) over images and classes.

    `dice` float64 in [0, 1], NaN for pairs in which ignored pixels may hide the class; `true_px`, `predicted_px`
    and `both_px` int64.
    """

    dice: NDArray[np.float64]
    true_px: NDArray[np.int64]
    predicted_px: NDArray[np.int64]
    both_px: NDArray[np.int64]

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Bool (N, C): the pairs that have a labelled pixel."""
        return self.true_px > 0

    @property
    def known(self) -> NDArray[np.bool_]:
        """Bool (N, C): the pairs that have a Dice."""
        return ~np.isnan(self.dice)


@dataclass(frozen=True)
class Figures:
    """Headline figures, float64 (R,), one of each for every row of weights; NaN where nought by nought."""

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
    occurs = true_px > 0
    iou = both_px / np.maximum(union_px, 1)  # 0 for a class that does not occur
    return Figures(
        kaggle_dice=_divide(dice, pairs),
        gain_over_empty=_divide(dice - (pairs - positives), pairs),
        positive_dice=_divide(positive_dice, positives),
        miou=_divide(iou.sum(axis=1), occurs.sum(axis=1)),
    )


def bootstrap(tally: Tally, *, seed: int) -> Figures:
    """The figures of 1,000 resamples of the images: the same for the same tally and seed."""
    parts = [figures_of(tally, weights) for weights in _resample(len(tally.dice), np.random.default_rng(seed))]
    return Figures(*(np.concatenate([getattr(part, name) for part in parts]) for name in Figures.__dataclass_fields__))


def interval_of(values: NDArray[np.float64], point: float) -> Interval:
    """The 95 % interval of resampled `values`, widened where need be so that it holds `point`.

    Widening matters where a few images decide a figure. Bounds are rounded to 12 places, beyond which the order of
    summation in a matrix product shows. Resamples in which the figure does not exist (no pair with a defect) are
    left out.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(point, point)
    low, high = np.quantile(values, [0.025, 0.975]).round(12).tolist()
    return Interval(min(low, point), max(high, point))


def _resample(images: int, generator: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Weights float64 (R, N), in blocks that make 1,000 rows together: how often each draw of N took each image."""
    at_once = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = generator.integers(images, size=(rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def _divide(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient = np.full(len(total), np.nan)
    np.divide(total, count, out=quotient, where=count > 0)
    return quotient
