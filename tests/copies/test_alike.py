import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.copies import find
from defectseg.copies.alike import find_alike, parts_of
from defectseg.copies.descriptors import TURNS, Descriptors, describe, turned, turned_back
from defectseg.copies.find import find_copies
from defectseg.data.synthetic import make_sheet


def thumbs_of(count: int, seed: int) -> NDArray[np.float16]:
    """Thumbnails of noise."""
    found = np.random.default_rng(seed).standard_normal((count, 32, 32))
    return np.asarray(found / np.linalg.norm(found, axis=(1, 2), keepdims=True), np.float16)


def test_the_alike_thumbnails_are_those_whose_correlation_after_the_turn_reaches_the_limit() -> None:
    thumbs, others = thumbs_of(50, 1), thumbs_of(40, 2)
    for number, turn in enumerate(TURNS):
        others[3 * number] = 0.4 * turned(thumbs[5 * number], turned_back(turn)) + 0.9 * others[3 * number]
    chosen, among = np.arange(49, -1, -2), np.arange(40)
    seen, limit = [], 0.06
    for is_quarter in (False, True):
        parts, other_parts = parts_of(thumbs, chosen), parts_of(others, among)
        for turn, hits, alike in find_alike(parts, other_parts, limit, is_quarter=is_quarter):
            wide = np.asarray(turned(others, turn), np.float32).reshape(40, -1)
            expected = thumbs[chosen].astype(np.float32).reshape(25, -1) @ wide.T
            assert hits.tolist() == np.flatnonzero(expected >= limit).tolist()
            assert alike == pytest.approx(expected.ravel()[hits], abs=1e-6)
            assert 10 < len(hits) < 100
            seen.append(turn)
    assert sorted(seen) == sorted(TURNS)


@pytest.mark.parametrize("apart", [False, True])
def test_every_block_of_pairs_is_searched_in_every_turn(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    sheets = [make_sheet(4, number, (160, 160)).image for number in range(24)]
    pictures = [*sheets, *(turned(sheet, turned_back(TURNS[number % 8])) for number, sheet in enumerate(sheets))]
    described = Descriptors(len(pictures))
    for number, picture in enumerate(pictures):
        described[number] = describe(picture)
    others = described if apart else None
    at_once = find_copies(described, others)
    monkeypatch.setattr(find, "_ROWS", 5)
    monkeypatch.setattr(find, "_COLUMNS", 7)
    steps: list[tuple[int, int]] = []
    assert find_copies(described, others, progress=lambda done, of, text="": steps.append((done, of))) == at_once
    assert {(n, n + 24, TURNS[n % 8]) for n in range(24)} <= {(one.first, one.second, one.turn) for one in at_once}
    assert steps[-1][0] == steps[-1][1] == len(steps) > 30
