"""Whether groups of images differ from the training images: in what they look like, or in how many have a defect."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from defectseg.image.appearance import LIGHT, NUMBERS
from defectseg.model.appearance import Appearance, Floats

LEAST_GROUPS = 10  # fewer tell nothing
LIGHT_LEVEL, OTHER_LEVEL, DEFECTS_LEVEL = 0.02, 0.001, 0.005  # of a false alarm, were the variance known
_TRIMMED = 20  # of so many groups, the first and the last along a direction do not count: one coil decides nothing
LEAST_SHIFT = 0.75  # standard deviations between training groups
LEAST_RISE = 0.05  # of the share of images with a defect
_SURE, _LEAST_VARIANCE = 0.9, 0.25  # of the first group of a change


@dataclass(frozen=True)
class Shift:
    """A difference of the last groups from what is usual.

    Attributes:
        groups: how many they are.
        size: standard deviations between groups of training images; or the share of images with a defect.
        p: probability of so clear a difference by chance, over all that was tried.
        direction: (45,), along which it is clearest; empty for a share.
    """

    groups: int
    size: float
    p: float
    direction: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Usual:
    """Shares of images with a defect: the number of groups, their mean and standard deviation, where they are from."""

    groups: int
    mean: float
    spread: float
    source: str


def camera_shift(residuals: Floats, images: Floats, trained: Appearance) -> Shift | None:
    """The clearest difference from the training images, if it is no chance and not small.

    Yuen's t (1974) of the group means, without a twentieth of them at each end, along what more or less light does, and
    along the axes and principal axes of the training groups. The variance of a direction is that between the new
    groups, or of the training groups if that is larger: coils that differ among each other raise no alarm. The levels
    are divided by the number of tries.

    Args:
        residuals: float64 (G, 45), the groups' means minus the expected ones, in the order of time.
        images: how many images each has.
        trained: the training images.
    """
    from scipy.special import stdtr  # of Student's t: scipy.stats takes a second to load

    axes = _directions(trained.covariance(len(images) / float((1 / images).sum())))
    tries = np.array([1 / LIGHT_LEVEL, *[(len(axes) - 1) / OTHER_LEVEL] * (len(axes) - 1)])
    found = []
    for last, parts in _endings(len(residuals)):
        ends = last // _TRIMMED
        kept, along = last - 2 * ends, np.sort(residuals[-last:] @ axes.T, axis=0)
        mean, winsorized = along[ends : last - ends].mean(axis=0), along.clip(along[ends], along[last - 1 - ends])
        variance = np.maximum(1, winsorized.var(axis=0, ddof=1) * (last - 1) / (kept - 1))
        t = np.abs(mean) / np.sqrt(variance * (1 / kept + 1 / trained.groups))
        p = 2 * stdtr(kept - 1, -t) * parts * tries  # in units of the level
        best = int(np.argmin(np.where(np.abs(mean) >= LEAST_SHIFT, p, np.inf)))
        if abs(mean[best]) >= LEAST_SHIFT and p[best] < 1:
            chance = min(1.0, float(p[best]) * (LIGHT_LEVEL + OTHER_LEVEL))
            found.append(Shift(last, abs(float(mean[best])), chance, axes[best] * np.sign(mean[best])))
    return min(found, key=lambda shift: shift.p, default=None)


def _directions(covariance: Floats) -> Floats:
    """Directions (91, 45), along which a group of training images has a variance of 1; that of light first."""
    spread = np.sqrt(np.diag(covariance))
    strengths, principal = np.linalg.eigh(covariance / np.outer(spread, spread))
    light = np.linalg.solve(covariance, np.arange(NUMBERS) < LIGHT)  # the mix that tells most of a change of light
    light /= np.sqrt(light @ covariance @ light)
    return np.concatenate([light[None], (principal / np.sqrt(strengths)).T / spread, np.diag(1 / spread)])


def _endings(groups: int) -> Iterator[tuple[int, int]]:
    """The numbers of last groups to look at: all, and for late changes, a quarter and so on; how many these are."""
    sizes = [groups // 4**part for part in range(30) if part == 0 or groups // 4**part >= LEAST_GROUPS]
    yield from ((size, len(sizes)) for size in sizes)


def in_words(means: Floats, shares: Floats, images: Floats, trained: Appearance) -> str:
    """What is different about groups, compared with how much their mean varies if nothing has changed.

    Args:
        means: float64 (G, 45), of each group.
        shares: of images with a defect.
        images: how many images each has.
        trained: the training images.
    """
    count = 1 / (1 / len(means) + 1 / trained.groups)
    between = tuple(number / count for number in trained.between)
    of_means = trained.model_copy(update={"between": between})
    each = len(images) / float((1 / images).sum())
    return of_means.in_words(means.mean(axis=0), has_defect=float(shares.mean()), images=count * each)


def more_defects(shares: Floats, earlier: Floats, trained: Appearance) -> tuple[Shift | None, Usual]:
    """Whether more images have a defect than usual, by Welch's t, and what is usual.

    Usual are the earlier groups, or if they are fewer than 10, the training groups. Training sets often have more
    defects than the line, so that these raise no alarm too early.

    Args:
        shares: float64 (G,), of images with a defect, by group, in the order of time.
        earlier: of other groups before these.
        trained: the training images.
    """
    from scipy.special import stdtr

    found, compared = None, None
    for last, parts in _endings(len(shares)):
        before = np.concatenate([earlier, shares[:-last]])
        usual = Usual(trained.groups, trained.defective, trained.defective_spread, "in the training images")
        if len(before) >= LEAST_GROUPS:
            usual = Usual(len(before), float(before.mean()), float(before.std(ddof=1)), "in the groups before")
        share = float(shares[-last:].mean())
        error = np.sqrt(shares[-last:].var(ddof=1) / last + usual.spread**2 / usual.groups)
        p = parts * float(stdtr(min(last, usual.groups) - 1, (usual.mean - share) / max(error, 1e-9)))
        is_more = p < DEFECTS_LEVEL and share - usual.mean >= LEAST_RISE and (found is None or p < found.p)
        found, compared = (Shift(last, share, p), usual) if is_more else (found, compared or usual)
    assert compared is not None
    return found, compared


def began(along: Floats) -> int | None:
    """The index of the first group of a shift that lasts until the last one; None if it may well be another.

    If each index is as likely as any other at first, this one, or one beside it, has a probability of at least 90 %.

    Args:
        along: float64 (G,), the residuals of the groups along the direction of the shift, in the order of time. They
            are around 0 before it began.
    """
    sums, counts = np.cumsum(along[::-1])[::-1], np.arange(len(along), 0, -1)
    scores = np.maximum(sums, 0) ** 2 / counts
    first = int(np.argmax(scores))
    variance = max(_LEAST_VARIANCE, float(along[first:].var(ddof=1))) if first < len(along) - 1 else 1.0
    likelihood = np.exp((scores - scores[first]) / (2 * variance))
    near = likelihood[max(0, first - 1) : first + 2].sum()
    return first if near >= _SURE * likelihood.sum() else None
