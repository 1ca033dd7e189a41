"""Find thumbnails that are alike in some turn among all pairs.

A thumbnail is the sum of four parts, each even or odd from top to bottom and from left to right. Flips only change the
signs of odd parts, and a quarter turn is a transposition and a flip. The products of the parts of two thumbnails
therefore give their correlations in four turns at the price of one, and no similar pair is missed, as an index of the
thumbnails would. Figures: docs/benchmarks.md.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import THUMB_CELLS, Floats

# The turns that leave a thumbnail as it is, swap left and right, top and bottom, and both; after transposing it, if so.
_FLIPS = {False: ("0", "mirror", "mirror+180", "180"), True: ("mirror+90", "270", "90", "mirror+270")}

_HALF = THUMB_CELLS // 2
_BLOCK = 1024
_ROWS = 16  # of the correlation matrix at a time, so that they fit into the cache


def parts_of(thumbs: NDArray[np.float16], chosen: NDArray[np.intp]) -> Floats:
    """The parts of chosen thumbnails, float16 (n, 32, 32).

    Returns:
        float32 (4, chosen, 256), one quarter of each part: even both ways, odd from left to right, odd from top to
        bottom, odd both ways.
    """
    parts = np.empty((2, 2, len(chosen), _HALF, _HALF), np.float32)
    for start in range(0, len(chosen), _BLOCK):
        block = slice(start, start + _BLOCK)
        whole = thumbs[chosen[block]].astype(np.float32) / 2
        upper, lower = whole[:, :_HALF], whole[:, : _HALF - 1 : -1]
        for number, half in enumerate((upper + lower, upper - lower)):
            left, right = half[..., :_HALF], half[..., : _HALF - 1 : -1]
            parts[number, 0, block], parts[number, 1, block] = left + right, left - right
    return parts.reshape(4, len(chosen), _HALF**2)


def find_alike(
    parts: Floats, others: Floats, least: float, *, is_quarter: bool
) -> Iterator[tuple[str, NDArray[np.intp], Floats]]:
    """Find the pairs of thumbnails whose correlation reaches `least`.

    Args:
        parts, others: of n and m thumbnails, see `parts_of`.
        least: the correlation.
        is_quarter: turn the others by a quarter; otherwise by none or a half. Each mirrored, too.

    Yields:
        for each of four turns of the other thumbnail: the turn, the pairs as indices into the flattened matrix of n
        rows and m columns, and their correlations.
    """
    columns = _transposed(others) if is_quarter else others
    products = parts @ columns.transpose(0, 2, 1)
    found: list[list[tuple[NDArray[np.intp], Floats]]] = [[] for _ in range(4)]
    for start in range(0, parts.shape[1], _ROWS):
        even, odd_across, odd_down, odd = products[:, start : start + _ROWS]
        upright, swapped, down, down_swapped = even + odd_across, even - odd_across, odd_down + odd, odd_down - odd
        correlations = upright + down, swapped + down_swapped, upright - down, swapped - down_swapped
        for one, correlation in zip(found, correlations, strict=True):
            hits = np.flatnonzero(correlation >= least)
            one.append((hits + start * columns.shape[1], correlation.ravel()[hits]))
    for turn, one in zip(_FLIPS[is_quarter], found, strict=True):
        hits, alike = (np.concatenate(arrays) for arrays in zip(*one, strict=True))
        yield turn, hits, alike


def _transposed(parts: Floats) -> Floats:
    pictures = parts.reshape(4, -1, _HALF, _HALF)[[0, 2, 1, 3]]
    return pictures.swapaxes(2, 3).reshape(parts.shape)
