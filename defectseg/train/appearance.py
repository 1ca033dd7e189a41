"""From the descriptions of training images to their statistics, see Appearance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectseg.image.appearance import NUMBERS
from defectseg.model.appearance import LEAST_GROUPS, Appearance, Floats

_EXACT_GROUPS, _PARTS = 500, 100  # each group is left out alone; of more groups, a hundredth at once
_CONTENT, _CONFIDENCE = 0.99, 0.90  # of the tolerance limit


def fit_appearance(
    appearances: Sequence[NDArray[np.float32]], groups: Sequence[str], has_defect: NDArray[np.bool_]
) -> Appearance | None:
    """The statistics of training images; None if they are of one group only.

    The covariances are shrunk as by Ledoit and Wolf (2004), with groups as the independent samples. Each group counts
    the same, however many images it has. The threshold is a one-sided tolerance limit of a normal distribution on the
    logarithm of distances: with a confidence of 90 %, 99 % of the images of new groups stay below. It is no smaller
    than the 99 % quantile of the distances, each from the other groups.

    Args:
        appearances: float32 (45,) of N images, see `appearance_of`.
        groups: the group of each image.
        has_defect: bool (N,), whether it has a mask.
    """
    names, group = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        return None
    values = np.array(appearances, np.float64)
    mean, shift, between, within = _statistics(values, group, has_defect)
    distances = np.zeros(len(values))
    parts = len(names) if len(names) <= _EXACT_GROUPS else _PARTS
    for part in range(parts):
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
        threshold=_threshold(distances, group) if len(names) >= LEAST_GROUPS else None,
        defective=float(shares.mean()),
        defective_spread=float(shares.std(ddof=1)),
    )


def _statistics(
    values: Floats, group: NDArray[np.intp], has_defect: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean (45,), shift of defects (45,), covariances (45, 45) between and within groups."""
    _, group, images_of = np.unique(group, return_inverse=True, return_counts=True)
    groups = len(images_of)
    shift = np.zeros(NUMBERS)
    if has_defect.any() and not has_defect.all():
        shift = values[has_defect].mean(axis=0) - values[~has_defect].mean(axis=0)
    clean = values - has_defect[:, None] * shift
    means = np.stack([np.bincount(group, column) for column in clean.T], axis=1) / images_of[:, None]
    deviations, within_deviations = clean - means.mean(axis=0), clean - means[group]
    weights = np.sqrt(1 / images_of[group, None] / (groups - 1))
    total = (weights * deviations).T @ (weights * deviations)
    within = within_deviations.T @ within_deviations / max(1, len(clean) - groups)
    strengths, directions = np.linalg.eigh(total - within)
    between = (directions * np.maximum(strengths, 0)) @ directions.T
    share = _shrinkage(deviations, group, total)
    floor = 1e-6 * np.eye(NUMBERS)
    between, within = (
        (1 - share) * covariance + share * np.diag(np.diag(covariance)) for covariance in (between, within)
    )
    return means.mean(axis=0), shift, np.asarray(between + floor), np.asarray(within)


def _shrinkage(deviations: Floats, group: NDArray[np.intp], total: Floats) -> float:
    """How much of the diagonal to mix into `total`, the sum of one scatter matrix a group over (groups - 1), 0..1."""
    scale = np.sqrt(np.diag(total) + 1e-12)
    order = np.argsort(group, kind="stable")
    scaled, correlation = (deviations / scale)[order], total / np.outer(scale, scale)
    images_of = np.bincount(group)
    squares = np.square(scaled).sum(axis=1) ** 2  # the squared norms of the scatter matrices, for groups of one image
    starts = np.cumsum(images_of) - images_of
    norms = float(squares[starts[images_of == 1]].sum())
    for start, images in zip(starts[images_of > 1].tolist(), images_of[images_of > 1].tolist(), strict=True):
        own = scaled[start : start + images]
        norms += float(np.square(own.T @ own / images).sum())
    spread = float(np.square(correlation).sum() - np.square(np.diag(correlation)).sum())
    error = norms - (len(images_of) - 2) * float(np.square(correlation).sum())
    return min(1.0, max(0.0, error) / len(images_of) ** 2 / max(spread, 1e-12))


def _threshold(distances: Floats, group: NDArray[np.intp]) -> float:
    """The tolerance limit, or the quantile of the training images' own distances where their tail is heavier."""
    from scipy.stats import nct, norm

    groups = int(group.max()) + 1
    logs = np.log(np.maximum(distances, 1e-9))
    factor = nct.ppf(_CONFIDENCE, groups - 1, np.sqrt(groups) * norm.ppf(_CONTENT)) / np.sqrt(groups)
    return float(max(np.exp(logs.mean() + factor * logs.std(ddof=1)), np.quantile(distances, _CONTENT)))
