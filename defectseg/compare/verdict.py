"""Whether model B is better than model A: paired differences with intervals, a verdict, and vetoes.

Everything is counted by groups of images, because two images of one coil are not two witnesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import Interval, draw_groups
from defectseg.evaluate.metrics import tabulate
from defectseg.evaluate.score import Score

MARGIN = 0.01
LEAST_GROUPS = 20
VETO_P = 0.01
BETTER, WORSE, NOT_WORSE, CANNOT_TELL = "better", "worse", "not worse", "cannot tell"
KAGGLE_DICE, MISSED, STOPPED = "kaggle_dice", "missed_sheets", "stopped_sheets"
FIGURES = (KAGGLE_DICE, "positive_dice", MISSED, STOPPED, "region_recall")
PROBABLY = 0.8
_CONFIDENCE = 0.975

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One figure of A and B, each in [0, 1], and B minus A; None where a figure would be 0 / 0, or of one group."""

    a: float | None
    b: float | None
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Votes:
    """Groups with fewer faults under A, and under B. `p`: how likely so few for B are if A and B are equally good."""

    for_a: int
    for_b: int
    p: float


@dataclass(frozen=True)
class Verdict:
    """What the images say about B.

    Attributes:
        verdict: better, worse, not worse or cannot tell; with a veto worse.
        on_dice: the same without the vetoes.
        margin: the loss of Kaggle Dice that counts as none.
        groups: number of groups.
        more_groups: how many more would tell with a probability of 80 %, if the difference is as it seems; None where
            the verdict is known, or nothing tells the spread.
        vetoes: the faults, missed_sheets or stopped_sheets, that B makes in too many more groups than A.
        votes: by fault.
        differences: by FIGURES.
    """

    verdict: str
    on_dice: str
    margin: float
    groups: int
    more_groups: int | None
    vetoes: tuple[str, ...]
    votes: Mapping[str, Votes]
    differences: Mapping[str, Difference]

    def meets(self, required: str) -> bool:
        """Whether B is `better`, or `not-worse`: no veto, and the loss of Kaggle Dice is certainly below the margin."""
        interval = self.differences[KAGGLE_DICE].interval
        if self.groups < LEAST_GROUPS or self.vetoes or interval is None:
            return False
        return interval.low > (0 if required == BETTER else -self.margin)


def contributions_of(score: Score, image_ids: Sequence[str], classes: int) -> Array:
    """What each of N images adds to the FIGURES, float64 (2, N, 5): the numerators and the denominators."""
    tally = tabulate(score.counts, image_ids, classes)
    dice, defective, sound = np.nan_to_num(tally.dice), tally.defective, tally.sound
    found = [[is_found for _, _, is_found in score.sheets[image_id].labelled] for image_id in image_ids]
    # Of FIGURES. Classes are added in their order, so that sums are the same whatever numpy does with their number.
    columns = (
        (sum(dice.T), sum(tally.known.T)),
        (sum((dice * tally.positive).T), sum(tally.positive.T)),
        (defective & ~tally.flagged, defective),
        (sound & tally.flagged, sound),
        (list(map(sum, found)), list(map(len, found))),
    )
    return np.array(columns, np.float64).transpose(1, 2, 0)


def judge(a: Array, b: Array, of: Array, group: NDArray[np.int64], margin: float = MARGIN) -> Verdict:
    """Compare two models on the same images.

    Args:
        a, b, of: float64 (N, 5), `contributions_of` each image: numerators of A and of B, denominators.
        group: int64 (N,), the group of each image, numbered from 0.
        margin: the loss of Kaggle Dice that counts as none.
    """
    groups = int(group.max()) + 1
    a, b, of = (np.array([np.bincount(group, column, groups) for column in one.T]) for one in (a, b, of))
    of_group = dict(zip(FIGURES, zip(a, b, of, strict=True), strict=True))
    weights = np.concatenate([*draw_groups(np.arange(groups))])
    differences = {figure: _difference(*columns, weights) for figure, columns in of_group.items()}
    votes = {fault: _votes(*of_group[fault][:2]) for fault in (MISSED, STOPPED)}
    vetoes = tuple(fault for fault, one in votes.items() if one.p <= VETO_P)
    dice, on_dice, more = differences[KAGGLE_DICE], CANNOT_TELL, None
    if dice.interval is not None and dice.difference is not None:
        low, high = dice.interval.low, dice.interval.high
        if groups >= LEAST_GROUPS:
            on_dice = BETTER if low > 0 else WORSE if high < 0 else NOT_WORSE if low > -margin else CANNOT_TELL
        if on_dice == CANNOT_TELL:
            more = _more_groups(dice.difference, high - low, groups, margin)
    verdict = WORSE if vetoes and groups >= LEAST_GROUPS else on_dice
    return Verdict(verdict, on_dice, margin, groups, more, vetoes, votes, differences)


def groups_needed(spread: float, way: float) -> float:
    """How many groups, each of a difference with this standard deviation, show with a probability of 80 % that the
    mean does not lie `way` below or above.
    """
    from scipy.stats import norm

    return float(((norm.ppf(_CONFIDENCE) + norm.ppf(PROBABLY)) * spread / way) ** 2)


def _difference(a: Array, b: Array, of: Array, weights: Array) -> Difference:
    """The difference of one figure, from sums over groups (G,) and the weights of the groups in resamples (R, G).

    The interval is the percentile interval of the paired cluster bootstrap, widened to the t interval of the sums of
    groups. With 20 to 40 groups, whose differences often are few and large, the percentile interval alone misses a
    difference of 0 in 8 to 11 of 100 data sets. The t interval alone is too short on the side of rare large losses.
    """
    from scipy.stats import t as student

    whole, groups = of.sum(), len(of)
    if not whole:
        return Difference(None, None, None, None)
    figures = float(a.sum() / whole), float(b.sum() / whole)
    difference = figures[1] - figures[0]
    if groups < 2:
        return Difference(*figures, difference, None)
    resampled = weights @ of
    drawn = (weights @ (b - a))[resampled > 0] / resampled[resampled > 0]
    residuals = b - a - difference * of
    error = student.ppf(_CONFIDENCE, groups - 1) * np.sqrt(groups / (groups - 1) * (residuals**2).sum()) / whole
    low, high = np.quantile(drawn, [1 - _CONFIDENCE, _CONFIDENCE])
    bounds = (min(low, difference - error), max(high, difference + error))
    return Difference(*figures, difference, Interval(*(round(float(bound), 12) for bound in bounds)))


def _votes(a: Array, b: Array) -> Votes:
    """An exact one-sided sign test on the number of faults in each group, float64 (G,)."""
    from scipy.stats import binomtest

    for_a, for_b = int((a < b).sum()), int((b < a).sum())
    test = binomtest(for_a, for_a + for_b, alternative="greater") if for_a + for_b else None
    return Votes(for_a, for_b, float(test.pvalue) if test else 1.0)


def _more_groups(difference: float, width: float, groups: int, margin: float) -> int | None:
    """How many more groups will probably tell, so that a bound of the interval comes to lie beyond the nearest goal."""
    from scipy.stats import norm

    way = max(difference + margin, -difference)  # to `not worse`, which is nearer than `better`; or to `worse`
    if way <= 0:
        return None
    spread = width / (2 * norm.ppf(_CONFIDENCE)) * groups**0.5
    return max(ceil(groups_needed(spread, way)), LEAST_GROUPS, groups + 1) - groups
