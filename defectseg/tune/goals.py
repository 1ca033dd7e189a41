"""What thresholds are chosen for: the best masks, or what matters in a plant.

A few dozen validation images, of which two or ten have a class, make the score of a setting jump from one image to
the next, and the highest value is often a spike of chance. Two things are done against it (measured on simulated
sets of 17 to 88 images, each choice scored on several hundred others; together they gained 0.002 to 0.009 of Kaggle
plus positive Dice over taking the highest value, while one standard error, resampling and keeping nearer to the
defaults gained less or lost):

- the score of a setting is averaged with those of its neighbours in the grid, so that a plateau wins over a spike;
- a class leans on all classes together, as if 2 more images of it had scored as those did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from defectseg.tune.grid import Grid, Places, Totals

INDIFFERENCE = 0.002
"""Scores that lie this close are alike: of such settings the one nearest to the defaults is taken."""
LEANING_IMAGES = 2
"""How many images of a class the choice for all classes together counts for."""
_ROUNDING = 1e-9

_Scores = NDArray[np.float64]


class Goal(Protocol):
    """How to choose one setting for each class."""

    @property
    def text(self) -> str:
        """For people: what is sought."""

    def choose(self, totals: Totals, grid: Grid) -> list[Places]:
        """One setting for each class, from a totals over all settings."""

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """Warnings where the chosen settings, whose totals this is, miss the goal."""


@dataclass(frozen=True)
class BestDice:
    """The highest mean Dice of all pairs plus mean Dice of the pairs with a defect."""

    text = "best Dice"

    def choose(self, totals: Totals, grid: Grid) -> list[Places]:
        """See Goal."""
        return [_pick(scores, grid, np.ones(scores.shape, np.bool_)) for scores in robust_scores(totals)]

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """None: the best there is falls short of nothing."""
        return []


@dataclass(frozen=True)
class TargetRecall:
    """The fewest false alarms with which some of the defect is found in at least `share` of the images that have it."""

    share: float

    @property
    def text(self) -> str:
        """See Goal."""
        return f"fewest false alarms at a recall of {self.share:g}"

    def choose(self, totals: Totals, grid: Grid) -> list[Places]:
        """See Goal; where nothing reaches the recall, among the settings that reach the highest."""
        chosen = []
        for index, scores in enumerate(robust_scores(totals)):
            hits, wanted = totals.hits[index], self.share * totals.positives[index]
            allowed = hits >= min(wanted, hits.max()) - _ROUNDING
            if totals.positives[index]:
                allowed = _least(totals.alarms[index], allowed)
            chosen.append(_pick(scores, grid, allowed))
        return chosen

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """See Goal."""
        return [
            f"{name}: no setting finds it in {self.share:g} of the {positives} images that have it; "
            f"the best finds it in {hits:.0f}"
            for name, positives, hits in zip(class_names, totals.positives, totals.hits, strict=True)
            if hits < self.share * positives - _ROUNDING
        ]


@dataclass(frozen=True)
class MaxFalseAlarms:
    """The highest recall with which at most `share` of the images without the class raise an alarm."""

    share: float

    @property
    def text(self) -> str:
        """See Goal."""
        return f"highest recall with false alarms in at most {self.share:g} of the images"

    def choose(self, totals: Totals, grid: Grid) -> list[Places]:
        """See Goal; where nothing is quiet enough, among the quietest settings."""
        chosen = []
        for index, scores in enumerate(robust_scores(totals)):
            alarms, most = totals.alarms[index], self.share * (totals.images - totals.positives)[index]
            allowed = alarms <= max(most, alarms.min()) + _ROUNDING
            chosen.append(_pick(scores, grid, _least(-totals.hits[index], allowed)))
        return chosen

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """See Goal."""
        clean = totals.images - totals.positives
        return [
            f"{name}: no setting raises an alarm in at most {self.share:g} of the {number} images without it; "
            f"the quietest does in {alarms:.0f}"
            for name, number, alarms in zip(class_names, clean, totals.alarms, strict=True)
            if alarms > self.share * number + _ROUNDING
        ]


@dataclass(frozen=True)
class LeastCost:
    """The lowest cost, where each image with an unseen defect costs `miss`, each false alarm `false_alarm`."""

    miss: float
    false_alarm: float

    @property
    def text(self) -> str:
        """See Goal."""
        return f"least cost at {self.miss:g} for a miss and {self.false_alarm:g} for a false alarm"

    def choose(self, totals: Totals, grid: Grid) -> list[Places]:
        """See Goal."""
        chosen = []
        for index, scores in enumerate(robust_scores(totals)):
            allowed = np.ones(scores.shape, np.bool_)
            if totals.positives[index]:
                misses = totals.positives[index] - totals.hits[index]
                allowed = _least(self.miss * misses + self.false_alarm * totals.alarms[index], allowed)
            chosen.append(_pick(scores, grid, allowed))
        return chosen

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """None: the cheapest there is falls short of nothing."""
        return []


def pair_weights(images: NDArray[np.int64], positives: NDArray[np.int64]) -> tuple[float, float]:
    """What one pair counts for in its class's score, and what a pair with a defect counts for in addition.

    They are such that the mean of the classes' scores is the Kaggle Dice plus the positive Dice of the data set: a
    miss weighs the same in a rare class as in a common one.

    Args:
        images: int (C,), images of which it is known whether they have the class.
        positives: int (C,), images that have it.
    """
    known, total = int(images.sum()), int(positives.sum())
    return len(images) / known if known else 0.0, len(positives) / total if total else 0.0


def robust_scores(totals: Totals) -> _Scores:
    """The scores (C, P, A, G) that settings are chosen by; see the module."""
    each, positive = pair_weights(totals.images, totals.positives)
    scores = each * totals.dice + positive * totals.positive_dice
    share = (LEANING_IMAGES / (LEANING_IMAGES + totals.positives))[:, None, None, None]
    return _smoothed((1 - share) * scores + share * scores.mean(axis=0))


def _smoothed(scores: _Scores) -> _Scores:
    """The mean with both neighbours along each axis of the grid, the setting itself counting twice.

    At a border the setting stands in for the neighbour that is not there.
    """
    for axis in range(1, scores.ndim):
        size = scores.shape[axis]
        padding = [(1, 1) if one == axis else (0, 0) for one in range(scores.ndim)]
        padded = np.pad(scores, padding, mode="edge")
        before, itself, after = (padded.take(range(start, start + size), axis) for start in range(3))
        scores = (before + 2 * itself + after) / 4
    return scores


def _least(values: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The allowed settings with the smallest value."""
    return np.asarray(allowed & (values <= values[allowed].min() + _ROUNDING))


def _pick(scores: _Scores, grid: Grid, allowed: NDArray[np.bool_]) -> Places:
    """Of the allowed settings that are as good as the best, the nearest to the defaults; of those, the best."""
    alike = allowed & (scores >= scores[allowed].max() - INDIFFERENCE)
    nearest = alike & (grid.steps == grid.steps[alike].min())
    chosen = np.argmax(np.where(nearest, scores, -np.inf))
    pixel, area, gate = (int(place) for place in np.unravel_index(chosen, scores.shape))
    return pixel, area, gate
