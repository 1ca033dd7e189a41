"""Find similar vectors among very many without comparing all pairs.

The index has tables. For each, four random sets of 32 places are drawn, and a vector is put into a cell according to
where its strongest value lies in each set, with its sign. Similar vectors often share a cell and unlike ones rarely, so
only vectors that share one are compared. How many similar pairs share a cell in none of the tables, and are missed,
depends on the tables and on what the vectors are like. Figures: docs/benchmarks.md.

This is the cross-polytope hash of Andoni et al., "Practical and optimal LSH for angular distance" (2015), without the
random rotation before it, since the vectors are whitened.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from defectseg.machine import cores

_SETS, _PLACES = 4, 32
_PLACE_BITS, _STRENGTH_BITS = 5, 10
_CELL_BITS = _PLACE_BITS + 1  # and a sign, for each set
_CELLS = 1_048_573  # a prime: the (2 * 32) ** 4 combinations share this many cells
_MOST_IN_CELL = 32  # with which a vector is compared: a pattern that more vectors share says little
_SIGNS = 512  # of a vector that are compared before a pair counts
_BLOCK = 4096

Vectors = NDArray[np.floating]
Indices = NDArray[np.intp]
Pairs = tuple[Indices, Indices, Indices]


class Index:
    """Finds pairs of a vector and another one, seen in one of several views, that are probably similar.

    Args:
        vectors: float (n, d), with norm 1.
        others: float (m, d); None: the pairs within `vectors`.
        views: intp (v, d): in view k, the values of the other vector are taken in the order `views[k]`. One of the
            views undoes it.
        most_unequal: largest share of values whose signs differ in a pair; half do so in unlike vectors.
    """

    def __init__(self, vectors: Vectors, others: Vectors | None, views: Indices, most_unequal: float) -> None:
        self._within = others is None
        self._codes = _codes_of(vectors)
        self._other_codes = self._codes if others is None else _codes_of(others)
        self._views = views
        self._inverse = [int((views == np.argsort(view)).all(axis=1).argmax()) for view in views]
        self._rng = np.random.default_rng(0)
        shown = self._rng.permutation(views.shape[1])[:_SIGNS]
        self._most_unequal = most_unequal * len(shown)
        self._signs = _signs_of(self._codes, shown)
        self._other_signs = [_signs_of(self._other_codes, view[shown]) for view in views]

    def pairs(self, tables: int) -> Iterator[Pairs]:
        """For each of so many tables, the pairs that it finds: indices of both vectors, and the view.

        A pair may come again. Within one set, the first index is the smaller one.
        """
        with ThreadPoolExecutor(cores()) as pool:
            for _ in range(tables):
                places = self._rng.permutation(self._views.shape[1])[: _SETS * _PLACES].reshape(_SETS, _PLACES)
                shuffled = self._rng.permutation(self._codes.shape[1])
                cells = _cells_of(self._codes, places)
                order = shuffled[np.argsort(cells[shuffled], kind="stable")]
                starts = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=_CELLS))])
                found = pool.map(lambda view: self._pairs_in_view(view, places, order, starts), range(len(self._views)))  # noqa: B023
                first, second, views = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
                yield first, second, views

    def _pairs_in_view(self, view: int, places: Indices, order: Indices, starts: Indices) -> Pairs:
        """The pairs that share a cell of a table and have enough equal signs.

        Args:
            view: number of the view.
            places: intp (4, 32), of the table.
            order: the vectors, sorted by their cells; within a cell at random.
            starts: where each cell begins in `order`.
        """
        cells = _cells_of(self._other_codes, self._views[view][places])
        counts = np.minimum(starts[cells + 1] - starts[cells], _MOST_IN_CELL)
        second = np.repeat(np.arange(len(cells)), counts)
        within_cell = np.arange(len(second)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = order[starts[cells[second]] + within_cell]
        unequal = np.bitwise_count(self._signs[first] ^ self._other_signs[view][second]).sum(axis=1, dtype=np.intp)
        alike = (unequal <= self._most_unequal) & ~(self._within & (first == second))
        first, second = first[alike], second[alike]
        swapped = self._within & (first > second)
        views = np.where(swapped, self._inverse[view], view)
        return np.where(swapped, second, first), np.where(swapped, first, second), views


def _codes_of(vectors: Vectors) -> NDArray[np.uint16]:
    """Strength and sign of each value, uint16 (d, n): ten bits and one, then room for a place."""
    codes = np.empty(vectors.shape[::-1], np.uint16)
    for start in range(0, len(vectors), _BLOCK):
        values = np.asarray(vectors[start : start + _BLOCK], np.float32).T
        # A single value above one half of the norm is too rare to matter.
        strengths = np.minimum(np.abs(values) * 2 ** (_STRENGTH_BITS + 1), 2**_STRENGTH_BITS - 1).astype(np.uint16)
        codes[:, start : start + _BLOCK] = (strengths << _CELL_BITS) | ((values < 0).astype(np.uint16) << _PLACE_BITS)
    return codes


def _cells_of(codes: NDArray[np.uint16], places: Indices) -> Indices:
    """The cells of n vectors, intp (n,), in the table with these places, intp (4, 32)."""
    cells = np.zeros(codes.shape[1], np.intp)
    for chosen in places:
        strongest = (codes[chosen] | np.arange(_PLACES, dtype=np.uint16)[:, None]).max(axis=0)
        cells = (cells << _CELL_BITS) | (strongest & (2**_CELL_BITS - 1))
    return cells % _CELLS


def _signs_of(codes: NDArray[np.uint16], places: Indices) -> NDArray[np.uint64]:
    """The signs of n vectors at up to 512 places, packed: uint64 (n, 8)."""
    packed = np.zeros((codes.shape[1], _SIGNS // 8), np.uint8)
    signs = np.packbits((codes[places] >> _PLACE_BITS).astype(np.uint8) & 1, axis=0)
    packed[:, : len(signs)] = signs.T
    return packed.view(np.uint64)
