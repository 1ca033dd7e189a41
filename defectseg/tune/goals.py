"""What thresholds are chosen for: the best masks, or what matters in a plant.

With a few dozen validation images, of which two or ten have a class, the score of a setting jumps from one image to
the next, and the highest value is often a spike of chance. Each score is therefore averaged with those of its
neighbours in the grid, so that a plateau wins over a spike; and a class leans on all classes together, as if 2 more
images of it had scored as those did. Leaning gains 0.017 (standard error 0.005) of Kaggle plus positive Dice on
simulated sets of 17 images, and nothing measurable from 88 images on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from defectseg.tune.grid import Grid, Places, Totals

INDIFFERENCE = 0.002
"""Scores that differ by no more than this count as equal: of such settings the one nearest to the defaults is taken."""
LEANING_IMAGES = 2
"""How many images of a class the score of all classes together counts for."""
_ROUNDING = 1e-9

_Scores = NDArray[np.float64]
_Allowed = NDArray[np.bool_]


class Goal(Protocol):
    """Which settings of a class may be chosen; of these, `choose` takes the one with the best Dice."""

    @property
    def text(self) -> str:
        """For people: what is sought."""

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """The settings that meet the goal best for one class: bool (P, A, G), from totals over all settings."""

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """Warnings where the chosen settings, whose totals these are, miss the goal."""


@dataclass(frozen=True)
class BestDice:
    """The highest mean Dice of all pairs plus mean Dice of the pairs with a defect."""

    text = "best Dice"

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal: every setting."""
        return np.ones(totals.dice.shape[1:], np.bool_)

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """See Goal: none."""
        return []


BEST_DICE = BestDice()


@dataclass(frozen=True)
class TargetRecall:
    """The fewest false alarms with which some of the defect is found in at least `share` of the images that have it."""

    share: float

    @property
    def text(self) -> str:
        """See Goal."""
        return f"fewest false alarms at a recall of {self.share:g}"

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; where nothing reaches the recall, settings that reach the highest; all for a class without images.

        Such a class would otherwise be silenced, to save false alarms.
        """
        hits, wanted = totals.hits[index], self.share * totals.positives[index]
        enough = hits >= min(wanted, hits.max()) - _ROUNDING
        return _least(totals.alarms[index], enough) if totals.positives[index] else enough

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

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; where every setting raises too many alarms, those that raise the fewest."""
        alarms, most = totals.alarms[index], self.share * (totals.images - totals.positives)[index]
        return _least(-totals.hits[index], alarms <= max(most, alarms.min()) + _ROUNDING)

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

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; all for a class without images, see TargetRecall."""
        everything = np.ones(totals.dice.shape[1:], np.bool_)
        if not totals.positives[index]:
            return everything
        misses = totals.positives[index] - totals.hits[index]
        return _least(self.miss * misses + self.false_alarm * totals.alarms[index], everything)

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """See Goal: none."""
        return []


def choose(goal: Goal, totals: Totals, grid: Grid) -> list[Places]:
    """The best setting for each class, from totals over all settings.

    Of the allowed settings that score as well as the best one, the nearest to the defaults is taken; of several, the
    best. A class that no image has keeps the defaults as far as the goal allows.
    """
    places: list[Places] = []
    for index, scores in enumerate(smooth_scores(totals)):
        allowed = goal.allowed(totals, index)
        alike = allowed & (scores >= scores[allowed].max() - INDIFFERENCE)
        nearest = alike & (grid.steps == grid.steps[alike].min())
        pixel, area, gate = np.unravel_index(np.argmax(np.where(nearest, scores, -np.inf)), scores.shape)
        places.append((int(pixel), int(area), int(gate)))
    return places


def smooth_scores(totals: Totals) -> _Scores:
    """The scores (C, P, A, G) that settings are chosen by; 0 for a class that no image has.

    Pairs are weighted so that the mean of the classes' scores is the Kaggle Dice plus the positive Dice of the data
    set: a miss weighs the same in a rare class as in a common one. A class leans on all. Then each score is averaged
    with its neighbours along each axis of the grid, itself counting twice; at a border it takes the place of the
    missing neighbour.
    """
    classes = len(totals.images)
    known, positives = max(int(totals.images.sum()), 1), max(int(totals.positives.sum()), 1)
    scores = classes * (totals.dice / known + totals.positive_dice / positives)
    seen = totals.positives > 0
    share = (LEANING_IMAGES / (LEANING_IMAGES + totals.positives[seen]))[:, None, None, None]
    if seen.any():
        scores[seen] = (1 - share) * scores[seen] + share * scores[seen].mean(axis=0)
    scores[~seen] = 0
    for axis in range(1, scores.ndim):
        size = scores.shape[axis]
        padded = np.pad(scores, [(int(one == axis),) * 2 for one in range(scores.ndim)], mode="edge")
        before, itself, after = (padded.take(range(start, start + size), axis) for start in range(3))
        scores = (before + 2 * itself + after) / 4
    return scores


def _least(values: NDArray[np.float64], allowed: _Allowed) -> _Allowed:
    """The allowed settings with the smallest value."""
    return np.asarray(allowed & (values <= values[allowed].min() + _ROUNDING))
