"""From the descriptions of training images to their statistics, see Appearance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectseg.image.appearance import NUMBERS
from defectseg.model.appearance import LEAST_GROUPS, Appearance, Floats

_MOST_PARTS = 500  # of the groups, each left out once
_CONTENT, _CONFIDENCE = 0.99, 0.90  # of the tolerance limit


def fit_appearance(
    appearances: Sequence[NDArray[np.float32]], groups: Sequence[str], has_defect: NDArray[np.bool_]
) -> Appearance | None:
    """The statistics of training images; None if they are of one group only.

    The covariances are shrunk as by Ledoit and Wolf (2004), with groups as the independent samples. The threshold is a
    one-sided tolerance limit of a normal distribution on the logarithm of distances: with a confidence of 90 %, 99 % of
    the images of new groups stay below.

    Args:
        appearances: float32 (36,) of N images, see `appearance_of`.
        groups: the group of each image.
        has_defect: bool (N,), whether it has a mask.
    """
    names, group = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        return None
    values = np.array(appearances, np.float64)
    mean, shift, between, within = _statistics(values, group, has_defect)
    distances = np.zeros(len(values))
    for part in range(parts := min(len(names), _MOST_PARTS)):
        out = group % parts == part
        if len(np.unique(group[~out])) < 2:
            return None
        its_mean, its_shift, its_between, its_within = _statistics(values[~out], group[~out], has_defect[~out])
        residuals = values[out] - its_mean - has_defect[out, None] * its_shift
        factor = np.linalg.cholesky(its_between + its_within)
        distances[out] = np.linalg.norm(np.linalg.solve(factor, residuals.T), axis=0)
    images_of = np.bincount(group)
    shares = np.bincount(group, has_defect) / images_of
    return Appearance(
        images=len(values),
        groups=len(names),
        mean=tuple(mean),
        defect_shift=tuple(shift),
        between=tuple(between.ravel()),
        within=tuple(within.ravel()),
        distances=tuple(np.quantile(distances, np.linspace(0, 1, 101))),
        threshold=_tolerance_limit(distances, len(names)) if len(names) >= LEAST_GROUPS else None,
        defective=float(shares.mean()),
        defective_spread=float(shares.std(ddof=1)),
    )


def _statistics(
    values: Floats, group: NDArray[np.intp], has_defect: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean (36,), shift of defects (36,), covariances (36, 36) between and within groups."""
    _, group = np.unique(group, return_inverse=True)
    shift = np.zeros(NUMBERS)
    if has_defect.any() and not has_defect.all():
        shift = values[has_defect].mean(axis=0) - values[~has_defect].mean(axis=0)
    clean = values - has_defect[:, None] * shift
    images_of = np.bincount(group)
    means = np.stack([np.bincount(group, column) for column in clean.T], axis=1) / images_of[:, None]
    mean = means.mean(axis=0)
    deviations = clean - means[group]
    within = deviations.T @ deviations / max(1, len(clean) - len(means))
    between = np.cov(means.T) - within * (1 / images_of).mean()
    strengths, directions = np.linalg.eigh(between)
    between = (directions * np.maximum(strengths, 0)) @ directions.T
    share = _shrinkage(clean - mean, group, between + within)
    floor = 1e-6 * np.eye(NUMBERS)
    between, within = (
        (1 - share) * covariance + share * np.diag(np.diag(covariance)) for covariance in (between, within)
    )
    return mean, shift, np.asarray(between + floor), np.asarray(within)


def _shrinkage(deviations: Floats, group: NDArray[np.intp], covariance: Floats) -> float:
    """How much of the diagonal to mix into a covariance, 0..1."""
    scale = np.sqrt(np.diag(covariance) + 1e-12)
    scaled, correlation = deviations / scale, covariance / np.outer(scale, scale)
    spread = float(((correlation - np.diag(np.diag(correlation))) ** 2).sum())
    error = 0.0
    for number, images in enumerate(np.bincount(group)):
        own = scaled[group == number]
        error += float(((own.T @ own - images * correlation) ** 2).sum())
    return min(1.0, error / len(scaled) ** 2 / max(spread, 1e-12))


def _tolerance_limit(distances: Floats, groups: int) -> float:
    from scipy.stats import nct, norm

    logs = np.log(np.maximum(distances, 1e-9))
    factor = nct.ppf(_CONFIDENCE, groups - 1, np.sqrt(groups) * norm.ppf(_CONTENT)) / np.sqrt(groups)
    return float(np.exp(logs.mean() + factor * logs.std(ddof=1)))
