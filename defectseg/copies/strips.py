"""Find images that look like parts of the same strip.

A line camera cuts an endless strip into frames. Two profiles across the strip are compared. They run along the longer
side of the image in 400 cells, without the light and whatever many strips have in common (see `descriptors`):

- seam: the bottom rows of one image (1/16 of the height) against the top rows of the other. Consecutive frames show the
  same streaks there, or even the same rows if the frames overlap.
- profile: the mean of all rows. Streaks that run along both images agree.

The test is conservative: it accepts only agreement far beyond chance, and misses frames further along a strip whose
streaks have changed. Images that are shorter than 400 px or mostly dark match no other. If images are many, only pairs
that an index finds are compared, so that the time grows about linearly with their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import STRIP_CELLS, Descriptors
from defectseg.copies.index import Index

# Correlations of unlike strips have a standard deviation of 0.055; among 12,000 images, chance brings a pair to 0.33.
_LEAST_SEAM_CORRELATION = 0.40
_LEAST_PROFILE_CORRELATION = 0.45
_MOST_COMPARED = 16_384  # images, all pairs of which are compared
_ROUNDS = 40  # of the index beyond
_ROWS = 2048


@dataclass(frozen=True)
class Neighbours:
    """Two images that look like the same strip: their indices, `first` < `second`, and their correlation."""

    first: int
    second: int
    score: float


def find_neighbours(descriptors: Descriptors) -> list[Neighbours]:
    """Find the pairs of images that look like the same strip, sorted by their indices."""
    top, bottom, whole = (descriptors.strip[:, number] for number in range(3))
    alike_in = _alike if len(top) <= _MOST_COMPARED else _indexed
    score_of: dict[tuple[int, int], float] = {}
    for one, other, least in ((bottom, top, _LEAST_SEAM_CORRELATION), (whole, whole, _LEAST_PROFILE_CORRELATION)):
        for first, second, score in alike_in(one, other, least):
            pair = (min(first, second), max(first, second))
            score_of[pair] = max(score_of.get(pair, 0.0), score)
    return [Neighbours(*pair, score) for pair, score in sorted(score_of.items())]


def _alike(one: NDArray[Any], other: NDArray[Any], least: float) -> Iterator[tuple[int, int, float]]:
    """Differing indices in `one` and `other`, float (n, 400), whose profiles correlate by `least` or more."""
    columns = np.asarray(other, np.float32).reshape(-1, STRIP_CELLS)
    for start in range(0, len(one), _ROWS):
        alike = np.asarray(one[start : start + _ROWS], np.float32) @ columns.T
        for row, column in zip(*np.nonzero(alike >= least), strict=True):
            if start + row != column:
                yield int(start + row), int(column), float(alike[row, column])


def _indexed(one: NDArray[Any], other: NDArray[Any], least: float) -> Iterator[tuple[int, int, float]]:
    """The same, as far as an index finds them."""
    index = Index(one, None if other is one else other, np.arange(STRIP_CELLS)[None], least)
    for first, second, _, alike in index.pairs(_ROUNDS):
        apart = first != second
        yield from zip(first[apart].tolist(), second[apart].tolist(), alike[apart].tolist(), strict=True)
