from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.evaluate.sheets import sheet_of

Mask = NDArray[np.bool_]


def _literal_regions(mask: Mask) -> Iterator[set[tuple[int, int]]]:
    """The 8-connected regions, grown pixel by pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        region, edge = set[tuple[int, int]](), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.discard((y, x))
                region.add((y, x))
                edge += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        yield region


@given(st.integers(0, 10**6), st.booleans())
@hypothesis_settings(max_examples=150)
def test_regions_and_confusion_are_those_of_a_literal_count(seed: int, with_ignored: bool) -> None:
    generator = np.random.default_rng(seed)
    size_hw = tuple(generator.integers(1, 14, 2))
    predicted, truth = generator.random((2, 3, *size_hw)) < generator.choice([0, 0.05, 0.4], (2, 3, 1, 1))
    ignore = generator.random(size_hw) < (0.2 if with_ignored else 0)

    sheet = sheet_of(predicted, truth, ignore, 0.5)

    labelled, found = [], []
    for class_id, (ours, true) in enumerate(zip(predicted, truth, strict=True), start=1):
        for region in _literal_regions(true):
            seen = [at for at in region if not ignore[at]]
            if seen:
                labelled.append((class_id, len(seen), sum(ours[at] for at in seen) >= 0.1 * len(seen)))
        for region in _literal_regions(ours):
            seen = [at for at in region if not ignore[at]]
            touches = any(true[at] for at in seen)
            if seen and (touches or len(seen) == len(region)):
                found.append((class_id, len(seen), touches))
    assert sorted(sheet.labelled) == sorted(labelled)
    assert sorted(sheet.predicted) == sorted(found)
    assert sheet.score == 0.5
    expected = np.zeros((4, 4), np.int64)
    for at in zip(*np.nonzero(~ignore), strict=True):
        classes = [[number for number in (1, 2, 3) if masks[number - 1][at]] for masks in (truth, predicted)]
        both = sorted(set(classes[0]) & set(classes[1]))
        expected[tuple((both or own or [0])[0] for own in classes)] += 1
    np.testing.assert_array_equal(sheet.confusion, expected)


def test_a_tenth_of_a_region_is_enough_and_less_is_not() -> None:
    truth, predicted, ignore = (
        np.zeros((1, 4, 40), np.bool_),
        np.zeros((1, 4, 40), np.bool_),
        np.zeros((4, 40), np.bool_),
    )
    truth[0, 0, :20] = truth[0, 2, :20] = True
    predicted[0, 0, :2] = predicted[0, 2, :1] = True

    assert [found for _, _, found in sheet_of(predicted, truth, ignore).labelled] == [True, False]
