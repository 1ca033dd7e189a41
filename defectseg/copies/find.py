"""Find copies among images, even if they are turned, mirrored, re-encoded, slightly resized, relit or blended.

Candidates come from thumbnails: `alike` compares all pairs in all eight turns. Each candidate is then verified on the
128 x 128 grain of `descriptors`. The whitened correlation of the two pictures is computed at every
shift by FFT. They are copies if it has a single peak, at a shift of a few cells at most, far above all other shifts.
Unlike images have no such peak. The patterns of chequer plates and streaks repeat, so that their peak has rivals.
Figures: docs/benchmarks.md.
"""

import hashlib
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.copies.alike import find_alike, parts_of
from defectseg.copies.descriptors import DETAIL_CELLS, TURNS, Descriptors, Floats, turned, turned_back, whitened
from defectseg.machine import cores
from defectseg.progress import Progress, silent

_LEAST_THUMB_CORRELATION = 0.3  # nearly every copy reaches it, and one in some ten thousand pairs of unlike steel
_LEAST_PEAK_DEVIATIONS = 12.0  # unlike images stay below 9; copies in JPEG quality 30 have 17, others above 25
_LEAST_PEAK_TO_RIVAL = 1.8  # unlike images stay below 1.5, chequer plates in phase too; copies have 2.3 and more
_LARGEST_SHIFT_CELLS = 3
_PEAK_FOOT_CELLS = 5  # the slopes of the peak do not count as rivals
_ASPECT_TOLERANCE = 0.12  # of the logarithm of height / width
_ROWS, _COLUMNS = 1024, 2048  # of images that are compared at a time
_MOST_CANDIDATES = 16_384  # in one block and turn; the most alike are kept
_MOST_MEMBERS = 64  # of a group of copies; in larger groups, pairs that are connected already are left out
_LEAST_UNSATURATED = 0.25
_CACHED_PICTURES = 2048  # 128 MiB

Pair = tuple[int, int]


@dataclass(frozen=True, order=True)
class Copy:
    """Two images that show the same piece of steel.

    Attributes:
        first, second: indices of the images; `second` refers to the other set if two sets were compared.
        turn: the turn that makes the first from the second, one of `descriptors.TURNS`.
        score: correlation of the grain: 1 for an exact copy, less where only part of one image shows in the other.
        shift: how far the turned second image has to move (down, right) to lie on the first, in 128ths of the height
            and width.
    """

    first: int
    second: int
    turn: str
    score: float
    shift: tuple[int, int] = (0, 0)


def find_copies(
    descriptors: Descriptors, others: Descriptors | None = None, *, progress: Progress = silent
) -> list[Copy]:
    """Find the copies within one set of images (`first` < `second`), or between two sets.

    All pairs are listed, except in groups of more than 64 copies, where enough pairs are listed to connect the group.
    Images without structure (black, blank) have no copies.

    Args:
        descriptors: the images.
        others: the other set; None for copies within `descriptors`.
        progress: counts blocks of pairs.

    Returns:
        copies, sorted by their indices.
    """
    groups = _identical(descriptors)
    other_groups = groups if others is None else _identical(others)
    firsts = {members[0]: members for members in groups.values()}
    seconds = {members[0]: members for members in other_groups.values()}
    copies = {
        pair: Copy(*pair, one.turn, one.score, one.shift)
        for one in _Search(descriptors, others, sorted(firsts), sorted(seconds)).run(progress)
        for pair in _pairs_between(firsts[one.first], seconds[one.second])
    }
    for key in groups.keys() & other_groups.keys():
        copies |= {pair: Copy(*pair, "0", 1.0) for pair in _pairs_between(groups[key], other_groups[key])}
    if others is None:
        ordered = map(_ordered, (one for one in copies.values() if one.first != one.second))
        copies = {(one.first, one.second): one for one in ordered}
    return sorted(copies.values())


def _ordered(copy: Copy) -> Copy:
    if copy.first < copy.second:
        return copy
    turn = turned_back(copy.turn)
    return Copy(copy.second, copy.first, turn, copy.score, _shift_back(copy.shift, turn))


def _shift_back(shift: tuple[int, int], turn: str) -> tuple[int, int]:
    """The inverse of a shift, in the coordinates of the picture that `turn` makes."""
    most = _LARGEST_SHIFT_CELLS
    place = np.zeros((2 * most + 1, 2 * most + 1), np.bool_)
    place[most - shift[0], most - shift[1]] = True
    down, right = np.argwhere(turned(place, turn))[0].tolist()
    return down - most, right - most


def _identical(descriptors: Descriptors) -> dict[bytes, list[int]]:
    """Digest of the grain -> images with exactly this grain. Images without grain are groups of one."""
    groups: dict[bytes, list[int]] = {}
    for index, detail in enumerate(descriptors.detail):
        structured = detail.min() < 0 < detail.max()
        key = hashlib.blake2b(detail.tobytes(), digest_size=16).digest()
        groups.setdefault(key if structured else str((id(descriptors), index)).encode(), []).append(index)
    return groups


def _pairs_between(members: Sequence[int], others: Sequence[int]) -> Iterator[Pair]:
    if len(members) * len(others) <= _MOST_MEMBERS**2:
        yield from itertools.product(members, others)
    else:
        yield from ((member, others[0]) for member in members)
        yield from ((members[0], other) for other in others[1:])


class _Search:
    """A comparison of chosen images of a set with one another, or with chosen images of another set."""

    def __init__(
        self, descriptors: Descriptors, others: Descriptors | None, firsts: Sequence[int], seconds: Sequence[int]
    ) -> None:
        self.within = others is None
        self.descriptors = descriptors
        self.others = descriptors if others is None else others
        # Sorted by aspect, so that a block has few aspects and turns that cannot fit are skipped for the whole block.
        self.rows = _comparable(self.descriptors, firsts)
        self.columns = self.rows if self.within else _comparable(self.others, seconds)
        self.row_parts = parts_of(self.descriptors.thumb, self.rows)
        self.column_parts = self.row_parts if self.within else parts_of(self.others.thumb, self.columns)
        self.groups: DisjointSets[Pair] = DisjointSets()
        self.row_picture = lru_cache(_CACHED_PICTURES)(lambda index: whitened(self.descriptors.detail[index]))
        self.column_picture = lru_cache(_CACHED_PICTURES)(lambda index: whitened(self.others.detail[index]))

    def run(self, progress: Progress) -> list[Copy]:
        """The copies, each pair once; within one set, either image may come first."""
        blocks = [
            (row, column)
            for row in range(0, len(self.rows), _ROWS)
            for column in range(0, len(self.columns), _COLUMNS)
            if not self.within or column + _COLUMNS > row
        ]
        found: dict[Pair, Copy] = {}
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            for done, block in enumerate(blocks, start=1):
                candidates = [one for one in self._candidates(*block) if not self._is_connected(one)]
                for copy in filter(None, pool.map(self._verify, candidates, chunksize=64)):
                    best = found.get((copy.first, copy.second))
                    if best is None or copy.score > best.score:
                        found[copy.first, copy.second] = copy
                    self.groups.join((0, copy.first), (0 if self.within else 1, copy.second))
                progress(done, len(blocks))
        return list(found.values())

    def _candidates(self, row: int, column: int) -> list[tuple[int, int, str]]:
        """Pairs in a block of the correlation matrix whose thumbnails are alike, and the turn that makes them so."""
        rows, columns = self.rows[row : row + _ROWS], self.columns[column : column + _COLUMNS]
        parts, other_parts = self.row_parts[:, row : row + _ROWS], self.column_parts[:, column : column + _COLUMNS]
        aspects, other_aspects = self.descriptors.log_aspect[rows], self.others.log_aspect[columns]
        candidates = []
        for is_quarter in (False, True):
            fitting = -other_aspects if is_quarter else other_aspects  # a quarter turn makes a lying image stand
            if not _may_fit(aspects, fitting):
                continue
            for turn, hits, alike in find_alike(parts, other_parts, _LEAST_THUMB_CORRELATION, is_quarter=is_quarter):
                if len(hits) > _MOST_CANDIDATES:
                    hits = hits[np.argpartition(-alike, _MOST_CANDIDATES)[:_MOST_CANDIDATES]]
                i, j = np.divmod(hits, len(columns))
                wanted = np.abs(aspects[i] - fitting[j]) <= _ASPECT_TOLERANCE
                if self.within:
                    wanted &= column + j > row + i
                pairs = zip(rows[i[wanted]].tolist(), columns[j[wanted]].tolist(), strict=True)
                candidates += [(*pair, turn) for pair in pairs]
        return sorted(candidates, key=lambda one: TURNS.index(one[2]))

    def _is_connected(self, candidate: tuple[int, int, str]) -> bool:
        """Whether both images are in one group that is large enough to need no further pair."""
        one, other = (0, candidate[0]), (0 if self.within else 1, candidate[1])
        return self.groups.size(one) > _MOST_MEMBERS and self.groups.joined(one, other)

    def _verify(self, candidate: tuple[int, int, str]) -> Copy | None:
        first, second, turn = candidate
        peak = find_peak(self.row_picture(first), turned(self.column_picture(second), turn))
        if peak.deviations < _LEAST_PEAK_DEVIATIONS or peak.to_rival < _LEAST_PEAK_TO_RIVAL:
            return None
        score = _correlation(self.descriptors.detail[first], turned(self.others.detail[second], turn), peak.shift)
        return Copy(first, second, turn, score, peak.shift)


def _comparable(descriptors: Descriptors, indices: Sequence[int]) -> NDArray[np.intp]:
    """The indices of images that have structure, sorted by aspect."""
    chosen = np.array([index for index in indices if descriptors.thumb[index].any()], np.intp)
    return chosen[np.argsort(descriptors.log_aspect[chosen], kind="stable")]


def _may_fit(aspects: Floats, others: Floats) -> bool:
    return float(max(aspects.min() - others.max(), others.min() - aspects.max())) <= _ASPECT_TOLERANCE


@dataclass(frozen=True)
class Peak:
    """The highest correlation of two pictures near no shift.

    Attributes:
        deviations: its height in standard deviations of the correlation at all other shifts.
        to_rival: its height divided by the highest correlation at other shifts.
        shift: its place in cells (down, right), each from -3 to 3.
    """

    deviations: float
    to_rival: float
    shift: tuple[int, int]


def find_peak(one: Floats, other: Floats) -> Peak:
    """Correlate two whitened pictures, float32 (128, 128), at every shift, and find the peak near no shift."""
    spectrum = cv2.mulSpectrums(cv2.dft(one), cv2.dft(other), 0, conjB=True)
    surface = np.roll(cv2.idft(spectrum), (_PEAK_FOOT_CELLS, _PEAK_FOOT_CELLS), axis=(0, 1))
    foot = 2 * _PEAK_FOOT_CELLS + 1
    inner = slice(_PEAK_FOOT_CELLS - _LARGEST_SHIFT_CELLS, _PEAK_FOOT_CELLS + _LARGEST_SHIFT_CELLS + 1)
    near = surface[inner, inner].copy()
    surface[:foot, :foot] = 0
    deviation = float(np.sqrt(np.vdot(surface, surface) / (surface.size - foot**2)))
    rival = max(float(surface.max()), -float(surface.min()))
    height = float(near.max())
    down, right = np.unravel_index(int(near.argmax()), near.shape)
    shift = (int(down) - _LARGEST_SHIFT_CELLS, int(right) - _LARGEST_SHIFT_CELLS)
    return Peak(height / max(deviation, 1e-12), height / max(rival, 1e-12), shift)


def _correlation(one: NDArray[np.int8], other: NDArray[np.int8], shift: tuple[int, int]) -> float:
    """Correlation of two detail pictures at a shift, in blocks of 2 x 2 cells, without saturated cells."""
    (down, right), last = shift, DETAIL_CELLS
    one = one[max(down, 0) : last + min(down, 0), max(right, 0) : last + min(right, 0)]
    other = other[max(-down, 0) : last + min(-down, 0), max(-right, 0) : last + min(-right, 0)]
    both = (one != 0) & (other != 0)
    if both.mean() >= _LEAST_UNSATURATED:
        one, other = one * both, other * both
    a, b = _halved(one), _halved(other)
    return float(np.vdot(a, b) / max(float(np.sqrt(np.vdot(a, a) * np.vdot(b, b))), 1e-12))


def _halved(picture: NDArray[np.int8]) -> Floats:
    height, width = (side // 2 * 2 for side in picture.shape)
    even = picture[:height, :width].astype(np.float32)
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


Thing = TypeVar("Thing", bound=Hashable)


class DisjointSets(Generic[Thing]):
    """Disjoint groups of things. A thing that has not been joined is a group of its own."""

    def __init__(self) -> None:
        self._members: dict[Thing, list[Thing]] = {}  # the things of one group share one list

    def _group(self, thing: Thing) -> list[Thing]:
        return self._members.setdefault(thing, [thing])

    def join(self, one: Thing, other: Thing) -> None:
        """Unite the groups of both."""
        small, large = sorted((self._group(one), self._group(other)), key=len)
        if small is not large:
            large += small
            self._members.update(dict.fromkeys(small, large))

    def joined(self, one: Thing, other: Thing) -> bool:
        """Whether both are in one group."""
        return self._group(one) is self._group(other)

    def size(self, thing: Thing) -> int:
        """Number of things in its group."""
        return len(self._group(thing))

    def groups(self, things: Iterable[Thing]) -> list[list[Thing]]:
        """The things sorted into their groups, both in the order of `things`."""
        groups: dict[int, list[Thing]] = {}
        for thing in things:
            groups.setdefault(id(self._group(thing)), []).append(thing)
        return list(groups.values())
