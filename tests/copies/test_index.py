import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.copies import find
from defectseg.copies.descriptors import TURNS, Descriptors, describe, turned, turned_back
from defectseg.copies.find import find_copies
from defectseg.copies.index import Index
from defectseg.data.synthetic import make_sheet


def vectors(count: int, seed: int, length: int = 1024) -> NDArray[np.float32]:
    """Random directions."""
    found = np.random.default_rng(seed).standard_normal((count, length), np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def mixed(one: NDArray[np.float32], other: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Vectors that correlate with `one` by `share`."""
    return np.asarray(share * one + np.sqrt(1 - share**2) * other, np.float32)


def pairs(index: Index) -> list[tuple[int, int, int]]:
    return [pair for table in index.pairs(120) for pair in zip(*(one.tolist() for one in table), strict=True)]


ORDER = np.arange(1024)
VIEWS = np.stack([ORDER, np.roll(ORDER, 5), np.roll(ORDER, -5)])


def test_the_index_finds_the_alike_vectors_that_brute_force_finds_in_every_view() -> None:
    one = vectors(300, 1)
    other = mixed(one[:, VIEWS[1]], vectors(300, 2), 0.95)
    alike = [np.argwhere(one @ other[:, view].T > 0.7) for view in VIEWS]
    expected = {(int(i), int(j), number) for number, found in enumerate(alike) for i, j in found}
    assert expected == {(n, n, 2) for n in range(300)}
    found = pairs(Index(one, other, VIEWS, 0.4))
    assert expected <= set(found)
    assert len(set(found)) < 0.05 * 3 * 300**2, "few unlike ones are looked at"


def test_within_one_set_the_smaller_index_comes_first_and_no_vector_is_its_own_copy() -> None:
    one = vectors(100, 1)
    both = np.concatenate([one[:, VIEWS[1]], one])
    found = pairs(Index(both, None, VIEWS, 0.4))
    assert all(first < second for first, second, _ in found)
    assert {(n, 100 + n, 1) for n in range(100)} <= set(found)


def test_vectors_that_very_many_share_cost_no_more_than_a_few_pairs_each() -> None:
    alike = np.repeat(vectors(1, 1), 2000, axis=0)
    assert len(next(Index(alike, None, ORDER[None], 0.4).pairs(1))[0]) <= 2000 * 32


@pytest.mark.parametrize("apart", [False, True])
def test_a_large_set_has_the_copies_of_a_small_one(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    sheets = [make_sheet(4, number, (160, 160)).image for number in range(24)]
    pictures = [*sheets, *(turned(sheet, turned_back(TURNS[number % 8])) for number, sheet in enumerate(sheets))]
    described = Descriptors(len(pictures))
    for number, picture in enumerate(pictures):
        described[number] = describe(picture)
    others = described if apart else None
    compared = find_copies(described, others)
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(find, "_MOST_PAIRS", 0)
    indexed = find_copies(described, others, progress=lambda done, of, text="": steps.append((done, of)))
    assert indexed == compared
    assert {(n, n + 24, TURNS[n % 8]) for n in range(24)} <= {(one.first, one.second, one.turn) for one in indexed}
    assert steps[-1][0] == steps[-1][1] == len(steps)
