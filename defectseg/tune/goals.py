"""The goals of a choice of thresholds: the best masks, or a limit on misses or false alarms.

With a few dozen validation images, of which two or ten have a class, the score of a setting varies much from one image
to the next, and the highest score is often due to chance. Each score is therefore averaged with its neighbours in the
grid, so that a plateau wins over a spike. The score of a class is also averaged with the mean of all classes, as if 2
more images of the class had scored that mean. This gains 0.017 (standard error 0.005) of Kaggle plus positive Dice on
simulated sets of 17 images, and nothing measurable from 88 images on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from defectseg.tune.grid import Grid, Places, Totals

INDIFFERENCE = 0.002
"""Scores that differ by no more than this count as equal; the setting nearest to the defaults is taken."""
LEANING_IMAGES = 2
"""The weight, in images of the class, of the score of all classes together."""
_ROUNDING = 1e-9

_Allowed = NDArray[np.bool_]


@dataclass(frozen=True)
class Goal:
    """The highest mean Dice of all pairs plus mean Dice of the pairs with a defect.

    A subclass restricts the settings; among those it allows, `choose` takes the one with the best Dice.
    """

    words: ClassVar[str] = "best Dice"

    @property
    def text(self) -> str:
        """The goal in words, with its numbers."""
        return self.words.format(self)

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """The settings that meet the goal best for one class: bool (P, A, G), from totals over all settings."""
        return np.ones(totals.dice.shape[1:], np.bool_)

    def shortfalls(self, totals: Totals, class_names: Sequence[str]) -> list[str]:
        """Warnings of the classes whose chosen setting misses the goal, from totals under the chosen settings."""
        return []


BEST_DICE = Goal()


@dataclass(frozen=True)
class TargetRecall(Goal):
    """The fewest false alarms with which some of the defect is found in at least `share` of the images that have it."""

    words = "fewest false alarms at a recall of {0.share:g}"
    share: float

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; settings with the highest recall where none reaches `share`; all for a class without images.

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
class MaxFalseAlarms(Goal):
    """The highest recall with which at most `share` of the images without the class raise an alarm."""

    words = "highest recall with false alarms in at most {0.share:g} of the images"
    share: float

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; where every setting raises too many alarms, the settings that raise the fewest."""
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
class LeastCost(Goal):
    """The lowest cost, where each image with a missed defect costs `miss`, each false alarm `false_alarm`."""

    words = "least cost at {0.miss:g} for a miss and {0.false_alarm:g} for a false alarm"
    miss: float
    false_alarm: float

    def allowed(self, totals: Totals, index: int) -> _Allowed:
        """See Goal; all for a class without images, see TargetRecall."""
        everything = super().allowed(totals, index)
        misses = totals.positives[index] - totals.hits[index]
        costs = self.miss * misses + self.false_alarm * totals.alarms[index]
        return _least(costs, everything) if totals.positives[index] else everything


def choose(goal: Goal, totals: Totals, grid: Grid) -> list[Places]:
    """The best setting for each class, from totals over all settings.

    Among the allowed settings whose score counts as equal to the best, the nearest to the defaults is taken; among
    equally near ones, the best. A class that no image has keeps the defaults as far as the goal allows.
    """
    places: list[Places] = []
    for index, scores in enumerate(smooth_scores(totals)):
        allowed = goal.allowed(totals, index)
        alike = allowed & (scores >= scores[allowed].max() - INDIFFERENCE)
        nearest = alike & (grid.steps == grid.steps[alike].min())
        pixel, area, gate = np.unravel_index(np.argmax(np.where(nearest, scores, -np.inf)), scores.shape)
        places.append((int(pixel), int(area), int(gate)))
    return places


def smooth_scores(totals: Totals) -> NDArray[np.float64]:
    """The scores (C, P, A, G) that settings are chosen by; 0 for a class that no image has.

    Pairs are weighted so that the mean of the classes' scores is the Kaggle Dice plus the positive Dice of the data
    set: a miss weighs the same in a rare class as in a common one. The score of a class leans on that of all classes.
    Then each score is averaged with its neighbours along each axis of the grid, itself counting twice; at a border it
    takes the place of the missing neighbour.
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
