"""Find images that look like parts of the same strip.

A line camera cuts an endless strip into frames. Two profiles across the strip are compared. They run along the longer
side of the image in 400 cells, without the light and whatever many strips have in common (see `descriptors`):

- seam: the bottom rows of one image (1/16 of the height) against the top rows of the other. Consecutive frames show the
  same streaks there, or even the same rows if the frames overlap.
- profile: the mean of all rows. Streaks that run along both images agree.

The test is conservative: it accepts only agreement far beyond chance, and misses frames further along a strip whose
streaks have changed. Images that are shorter than 400 px or mostly dark match no other.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import Descriptors

# Correlations of unlike strips have a standard deviation of 0.055; among 12,000 images, chance brings a pair to 0.33.
_LEAST_SEAM_CORRELATION = 0.40
_LEAST_PROFILE_CORRELATION = 0.45
_BLOCK = 2048  # images


def find_neighbours(descriptors: Descriptors) -> dict[tuple[int, int], float]:
    """Find the pairs of images that look like the same strip.

    Returns:
        the indices of two images, the smaller one first -> their correlation, sorted.
    """
    top, bottom, whole = (descriptors.strip[:, number] for number in range(3))
    score_of: dict[tuple[int, int], float] = {}
    for one, other, least in ((bottom, top, _LEAST_SEAM_CORRELATION), (whole, whole, _LEAST_PROFILE_CORRELATION)):
        for first, second, score in _alike(one, other, least):
            pair = (min(first, second), max(first, second))
            score_of[pair] = max(score_of.get(pair, 0.0), score)
    return dict(sorted(score_of.items()))


def _alike(one: NDArray[Any], other: NDArray[Any], least: float) -> Iterator[tuple[int, int, float]]:
    """Differing indices in `one` and `other`, float (n, 400), whose profiles correlate by `least` or more.

    If both are the same array, some pairs come twice and others once.
    """
    firsts, seconds = (np.flatnonzero(part.any(axis=1)) for part in (one, other))
    for start, left in itertools.product(range(0, len(firsts), _BLOCK), range(0, len(seconds), _BLOCK)):
        if one is not other or left >= start:
            rows, columns = firsts[start : start + _BLOCK], seconds[left : left + _BLOCK]
            alike = np.asarray(one[rows], np.float32) @ np.asarray(other[columns], np.float32).T
            i, j = np.nonzero((alike >= least) & (rows[:, None] != columns))
            yield from zip(rows[i].tolist(), columns[j].tolist(), alike[i, j].tolist(), strict=True)
