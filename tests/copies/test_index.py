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


def found_by(index: Index, rounds: int = 2) -> dict[tuple[int, int, int], float]:
    """First index, second index and view -> correlation. No pair comes twice."""
    found = [pair for one in index.pairs(rounds) for pair in zip(*(array.tolist() for array in one), strict=True)]
    assert len({pair[:3] for pair in found}) == len(found)
    return {(first, second, view): correlation for first, second, view, correlation in found}


ORDER = np.arange(1024)
VIEWS = np.stack([ORDER, np.roll(ORDER, 5), np.roll(ORDER, -5)])


def test_the_index_finds_the_alike_vectors_that_brute_force_finds_in_every_view() -> None:
    one = vectors(300, 1)
    other = mixed(one[:, VIEWS[1]], vectors(300, 2), 0.7)
    alike = [one @ other[:, view].T for view in VIEWS]
    expected = {
        (int(i), int(j), view): float(by[i, j]) for view, by in enumerate(alike) for i, j in np.argwhere(by > 0.5)
    }
    assert expected.keys() == {(n, n, 2) for n in range(300)}
    assert found_by(Index(one, other, VIEWS, 0.5)) == pytest.approx(expected, abs=1e-4)


def test_faint_pairs_are_found_in_more_rounds() -> None:
    one = vectors(200, 1)
    other = mixed(one, vectors(200, 2), 0.45)
    few, many = (len(found_by(Index(one, other, ORDER[None], 0.35), rounds)) for rounds in (1, 10))
    assert few < many
    assert many >= 195


def test_within_one_set_the_smaller_index_comes_first_and_no_vector_is_its_own_copy() -> None:
    one = vectors(100, 1)
    both = np.concatenate([one[:, VIEWS[1]], one])
    assert found_by(Index(both, None, VIEWS, 0.5)).keys() == {(n, 100 + n, 1) for n in range(100)}


def test_flat_places_do_not_hide_what_the_others_share() -> None:
    """Half of each vector is next to nothing, as where an image is saturated, and its signs are chance."""
    one = vectors(200, 1)
    one[:, ::2] *= 0.02
    other = one.copy()
    other[:, ::2] = 0.02 * vectors(200, 2)[:, ::2]
    one, other = (vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in (one, other))
    assert {(n, n, 0) for n in range(200)} <= found_by(Index(one, other, ORDER[None], 0.9)).keys()


def test_vectors_that_very_many_share_cost_one_pair_each_in_a_table_and_empty_ones_none() -> None:
    alike = np.repeat(vectors(1, 1), 2000, axis=0)
    assert len(next(Index(alike, None, ORDER[None], 0.4).pairs(1))[0]) <= 200 * 2000
    assert found_by(Index(np.zeros((2000, 1024), np.float32), None, ORDER[None], 0.4)) == {}


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
    monkeypatch.setattr(find, "_ROUNDS", 2)
    indexed = find_copies(described, others, progress=lambda done, of, text="": steps.append((done, of)))
    assert indexed == compared
    assert {(n, n + 24, TURNS[n % 8]) for n in range(24)} <= {(one.first, one.second, one.turn) for one in indexed}
    assert steps[-1][0] == steps[-1][1] == len(steps)
