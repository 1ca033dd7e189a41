"""Find similar vectors among very many without comparing all pairs.

In a set of places, drawn at random, a vector has an outcome: where its strongest value lies, and its sign. A table is
made of three sets, and puts a vector into the cell that belongs to its three outcomes. Similar vectors often share a
cell, unlike ones rarely. In each table, a vector is compared with only one of those that share its cell, drawn at
random, and there are about three times as many cells as vectors. The time therefore grows as the number of vectors,
whatever they are like. How many similar pairs meet in no table, and are missed, depends mostly on how similar they are
and on the number of tables. Figures: docs/benchmarks.md.

This is the cross-polytope hash of Andoni et al., "Practical and optimal LSH for angular distance" (2015), without the
random rotation before it, since the vectors are whitened.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from defectseg.machine import cores

_SETS_OF_TABLE = 3
_SETS, _TABLES = 64, 200  # of a round: each set serves about nine tables, which saves most of the time
_CELLS_PER_VECTOR = 3
_PLACE_BITS, _STRENGTH_BITS = 6, 9
_MOST_PLACES = 2**_PLACE_BITS  # of a set
_STRONG = 0.845  # times the mean of a vector: half of normally distributed values are as strong
# Deviations above the expected number of unequal signs that are allowed after the first 64 signs, and after all.
_LEAST_DEVIATIONS, _MOST_DEVIATIONS = 1.0, 1.75
_BLOCK = 4096

Vectors = NDArray[np.floating]
Indices = NDArray[np.intp]
Outcomes = NDArray[np.uint8]
Pairs = tuple[Indices, Indices, Indices, NDArray[np.float32]]


class Index:
    """Finds pairs of a vector and another one, seen in one of several views, that are similar.

    Args:
        vectors: float (n, d), with norm 1 and d at least 64.
        others: float (m, d); None: the pairs within `vectors`.
        views: intp (v, d): in view k, the values of the other vector are taken in the order `views[k]`. One of the
            views undoes it.
        least: correlation of a pair.
    """

    def __init__(self, vectors: Vectors, others: Vectors | None, views: Indices, least: float) -> None:
        self._within = others is None
        self._vectors = vectors
        self._others = vectors if others is None else others
        self._codes = _codes_of(vectors)
        self._other_codes = self._codes if others is None else _codes_of(others)
        self._views = views
        self._inverse = np.array([(views == np.argsort(view)).all(axis=1).argmax() for view in views], np.intp)
        self._least = least
        self._unequal = np.float32(
            1 / (1 + np.exp(3 * least / (1 - least**2)))
        )  # share of strong values whose signs differ
        self._shape = len(views), len(vectors), len(self._others)
        self._rng = np.random.default_rng(0)
        shuffled = self._rng.permutation(views.shape[1])[: views.shape[1] // 64 * 64]
        self._bits = _bits_of(self._codes, shuffled)
        self._other_bits = [_bits_of(self._other_codes, view[shuffled]) for view in views]
        self._places = min(round((_CELLS_PER_VECTOR * len(vectors)) ** (1 / _SETS_OF_TABLE) / 2) + 1, _MOST_PLACES)

    def pairs(self, rounds: int) -> Iterator[Pairs]:
        """For each of so many rounds of 200 tables, the new pairs: indices of both vectors, view, and correlation.

        Within one set, the first index is the smaller one.
        """
        seen = np.empty(0, np.intp)
        with ThreadPoolExecutor(cores()) as pool:
            for _ in range(rounds):
                sets = [self._rng.permutation(self._views.shape[1])[: self._places] for _ in range(_SETS)]
                order = self._rng.permutation(self._shape[1])
                own = _outcomes(self._codes, sets, pool)[:, order]
                theirs = [_outcomes(self._other_codes, [view[places] for places in sets], pool) for view in self._views]
                tables = [self._rng.choice(_SETS, _SETS_OF_TABLE, replace=False) for _ in range(_TABLES)]
                found = pool.map(lambda table: self._pairs_in_table(own, order, theirs, table), tables)  # noqa: B023
                new = np.setdiff1d(np.concatenate([*found]), seen)
                blocks = np.split(new, range(_BLOCK, len(new), _BLOCK))
                correlations = np.concatenate([*pool.map(self._correlations, blocks)])
                alike = np.flatnonzero(correlations >= self._least)
                seen = np.concatenate([seen, new[alike]])
                view, first, second = np.unravel_index(new[alike], self._shape)
                yield first, second, view, correlations[alike]

    def _pairs_in_table(self, own: Outcomes, order: Indices, theirs: list[Outcomes], table: Indices) -> Indices:
        """The pairs that share a cell of a table and have enough equal signs.

        Args:
            own: outcomes of the vectors in an order, uint8 (sets, n); the last one in a cell is compared.
            order: this order.
            theirs: outcomes of the others in each view.
            table: numbers of its sets.

        Returns:
            view, first index and second index as one number, see `np.ravel_multi_index`.
        """
        in_cell = np.full((2 * self._places) ** _SETS_OF_TABLE, -1, np.int32)
        in_cell[self._cells_of(own[table])] = order
        found = []
        for view, outcomes in enumerate(theirs):
            first = in_cell.take(self._cells_of(outcomes[table]))
            if self._within:
                first[first == np.arange(len(first))] = -1  # itself
            second = np.flatnonzero(first >= 0)
            first, second = self._with_equal_signs(view, first.take(second), second, int(table[0]))
            swapped = self._within & (first > second)
            pair = np.where(swapped, second, first), np.where(swapped, first, second)
            found.append(np.ravel_multi_index((np.where(swapped, self._inverse[view], view), *pair), self._shape))
        return np.concatenate(found)

    def _with_equal_signs(self, view: int, first: Indices, second: Indices, start: int) -> tuple[Indices, Indices]:
        """The pairs whose strong values have equal signs often enough; `start`: the word of signs to begin with."""
        words = len(self._bits)
        signs, unequal = np.zeros((2, len(first)), np.float32)
        for number, deviations in enumerate(np.linspace(_LEAST_DEVIATIONS, _MOST_DEVIATIONS, words, dtype=np.float32)):
            word = (start + number) % words
            bits, other_bits = self._bits[word].take(first, axis=0), self._other_bits[view][word].take(second, axis=0)
            strong = bits[:, 1] & other_bits[:, 1]
            signs = signs + np.bitwise_count(strong)
            unequal = unequal + np.bitwise_count((bits[:, 0] ^ other_bits[:, 0]) & strong)
            kept = np.flatnonzero(unequal < self._unequal * signs + deviations / 2 * np.sqrt(signs))
            first, second = first.take(kept), second.take(kept)
            signs, unequal = signs.take(kept), unequal.take(kept)
        return first, second

    def _cells_of(self, outcomes: Outcomes) -> NDArray[np.int32]:
        """The cells of n vectors, int32 (n,), from their outcomes in the sets of a table, uint8 (3, n)."""
        return reduce(lambda cells, outcome: cells * np.int32(2 * self._places) + outcome, outcomes.astype(np.int32))

    def _correlations(self, pairs: Indices) -> NDArray[np.float32]:
        view, first, second = np.unravel_index(pairs, self._shape)
        correlations = np.empty(len(pairs), np.float32)
        for number in np.unique(view):
            chosen = np.flatnonzero(view == number)
            own = self._vectors[first[chosen]].astype(np.float32)
            other = self._others[second[chosen]].astype(np.float32).take(self._views[number], axis=1)
            correlations[chosen] = np.einsum("nd,nd->n", own, other)
        return correlations


def _codes_of(vectors: Vectors) -> NDArray[np.uint16]:
    """Strength and sign of each value, uint16 (d, n): nine bits of strength, room for a place, one bit of sign."""
    codes = np.empty(vectors.shape[::-1], np.uint16)
    for start in range(0, len(vectors), _BLOCK):
        values = np.asarray(vectors[start : start + _BLOCK], np.float32).T
        # A single value above one half of the norm is too rare to matter.
        strengths = np.minimum(np.abs(values) * 2 ** (_STRENGTH_BITS + 1), 2**_STRENGTH_BITS - 1).astype(np.uint16)
        codes[:, start : start + _BLOCK] = (strengths << (_PLACE_BITS + 1)) | (values < 0)
    return codes


def _outcomes(codes: NDArray[np.uint16], sets: Sequence[Indices], pool: Executor) -> Outcomes:
    """Where the strongest value of n vectors lies in each set of places, times two, plus its sign: uint8 (sets, n)."""

    def strongest(places: Indices) -> NDArray[np.uint16]:
        return reduce(np.maximum, (codes[place] | np.uint16(2 * number) for number, place in enumerate(places)))

    outcomes = np.empty((len(sets), codes.shape[1]), np.uint8)
    for number, one in enumerate(pool.map(strongest, sets)):
        outcomes[number] = one & (2 * _MOST_PLACES - 1)
    return outcomes


def _bits_of(codes: NDArray[np.uint16], places: Indices) -> NDArray[np.uint64]:
    """Of n vectors, the signs at a multiple of 64 places, and whether the values are strong: uint64 (words, n, 2)."""
    bits = np.empty((len(places) // 64, codes.shape[1], 2), np.uint64)
    for start in range(0, codes.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        chosen = codes[:, block][places]
        strengths = chosen >> (_PLACE_BITS + 1)
        for number, flags in enumerate((chosen & 1, strengths > _STRONG * strengths.mean(axis=0))):
            bits[:, block, number] = np.ascontiguousarray(np.packbits(flags, axis=0).T).view(np.uint64).T
    return bits
