"""Whether model B is better than model A: paired differences with intervals, a verdict, and vetoes.

Everything is counted by groups of images, because two images of one coil are not two witnesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import Interval, draw_groups
from defectseg.evaluate.metrics import PairCounts
from defectseg.evaluate.sheets import Sheet

MARGIN = 0.01
LEAST_GROUPS = 20
VETO_P = 0.01
BETTER, WORSE, NOT_WORSE, CANNOT_TELL = "better", "worse", "not worse", "cannot tell"
KAGGLE_DICE, POSITIVE_DICE, MISSED, STOPPED, REGION_RECALL = FIGURES = (
    *("kaggle_dice", "positive_dice", "missed_sheets", "stopped_sheets", "region_recall"),
)
_PROBABLY = 0.8
_CONFIDENCE = 0.975


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

    def to_json(self) -> dict[str, object]:
        """Plain containers, numbers and None."""
        return asdict(self)


def contributions(
    pairs: Sequence[PairCounts], sheet: Sheet
) -> tuple[tuple[float, float, int, int, int], tuple[int, int, int, int, int]]:
    """What one image, with its pairs of all classes, adds to the FIGURES: numerators and denominators."""
    known, positive = [one for one in pairs if not one.unknown], [one for one in pairs if one.true_px]
    reported = any(one.predicted_px for one in pairs)
    sound = not positive and len(known) == len(pairs)
    found = sum(is_found for _, _, is_found in sheet.labelled)
    faults = bool(positive) and not reported, sound and reported
    dice = sum(one.dice for one in known), sum(one.dice for one in positive)
    return (*dice, *faults, found), (len(known), len(positive), bool(positive), sound, len(sheet.labelled))


def judge(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    of: NDArray[np.float64],
    group: NDArray[np.int64],
    margin: float = MARGIN,
) -> Verdict:
    """Compare two models on the same images.

    Args:
        a, b, of: float64 (N, 5), `contributions` of each image to FIGURES: numerators of A and of B, denominators.
        group: int64 (N,), the group of each image, numbered from 0.
        margin: the loss of Kaggle Dice that counts as none.
    """
    groups = int(group.max()) + 1
    a, b, of = (np.array([np.bincount(group, column, groups) for column in one.T]).T for one in (a, b, of))
    weights = np.concatenate([*draw_groups(np.arange(groups))])
    differences = {
        figure: _difference(a[:, index], b[:, index], of[:, index], weights) for index, figure in enumerate(FIGURES)
    }
    votes = {figure: _votes(a[:, index], b[:, index]) for index, figure in enumerate(FIGURES) if figure in _FAULTS}
    vetoes = tuple(figure for figure, one in votes.items() if one.p <= VETO_P)
    dice, on_dice, more = differences[KAGGLE_DICE], CANNOT_TELL, None
    if dice.interval is not None and dice.difference is not None:
        on_dice = _on_dice(dice.interval, margin) if groups >= LEAST_GROUPS else CANNOT_TELL
        if on_dice == CANNOT_TELL:
            more = _more_groups(dice.difference, dice.interval, groups, margin)
    verdict = WORSE if vetoes and groups >= LEAST_GROUPS else on_dice
    return Verdict(verdict, on_dice, margin, groups, more, vetoes, votes, differences)


_FAULTS = (MISSED, STOPPED)


def _difference(
    a: NDArray[np.float64], b: NDArray[np.float64], of: NDArray[np.float64], weights: NDArray[np.float64]
) -> Difference:
    """The difference of one figure, from sums over groups (G,) and the weights of the groups in resamples (R, G).

    The interval is the percentile interval of the paired cluster bootstrap, widened to the t interval of the sums of
    groups. With 20 to 40 groups, whose differences often are few and large, the percentile interval alone misses a
    difference of 0 in 10 to 11 of 100 data sets. The t interval alone is too short on the side of rare large losses.
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


def _votes(a: NDArray[np.float64], b: NDArray[np.float64]) -> Votes:
    """An exact one-sided sign test on the number of faults in each group, float64 (G,)."""
    from scipy.stats import binomtest

    for_a, for_b = int((a < b).sum()), int((b < a).sum())
    decided = for_a + for_b
    return Votes(for_a, for_b, float(binomtest(for_a, decided, alternative="greater").pvalue) if decided else 1.0)


def _on_dice(interval: Interval, margin: float) -> str:
    if interval.low > 0:
        return BETTER
    if interval.high < 0:
        return WORSE
    return NOT_WORSE if interval.low > -margin else CANNOT_TELL


def _more_groups(difference: float, interval: Interval, groups: int, margin: float) -> int | None:
    """How many more groups will probably tell, so that a bound of the interval comes to lie beyond the nearest goal."""
    from scipy.stats import norm

    error = (interval.high - interval.low) / (2 * norm.ppf(_CONFIDENCE))
    way = max(difference + margin, -difference)  # to `not worse`, which is nearer than `better`; or to `worse`
    if way <= 0:
        return None
    needed = groups * ((norm.ppf(_CONFIDENCE) + norm.ppf(_PROBABLY)) * error / way) ** 2
    return int(max(ceil(needed), LEAST_GROUPS, groups + 1)) - groups
