from typing import Any

import numpy as np
import pytest

from defectseg.evaluate.gallery import find_faults
from defectseg.evaluate.metrics import Counts, count_pairs
from defectseg.evaluate.rates import Rate, Rates, rates_of
from defectseg.evaluate.sheets import Sheet, sheet_of
from defectseg.evaluate.summary import certainty, look_first, neighbours, operating_points

NAMES = {1: "pits", 2: "cracks"}


def _evaluated(rows: dict[str, tuple[Any, ...]]) -> tuple[Rates, Counts, dict[str, Sheet]]:
    """Images of 100 x 10 px, each with the rows labelled and predicted as pits and as cracks, and its score."""
    counts: Counts = {}
    sheets = {}
    for image_id, (*heights, score) in rows.items():
        masks = np.zeros((4, 100, 10), np.bool_)
        for mask, height in zip(masks, heights, strict=True):
            mask[:height] = True
        counts |= count_pairs(image_id, masks[1::2], masks[::2])
        sheets[image_id] = sheet_of(masks[1::2], masks[::2], np.zeros((100, 10), np.bool_), score)
    return rates_of(counts, sheets, list(NAMES.values())), counts, sheets


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (Rate(3, 54, 3 / 54, 0.0116, 0.1539),
         "5.6 %. With 95 % confidence, the true share is between 1.2 % and 15.4 %: 12 to 154 of 1,000 sheets."),
        (Rate(1, 2, 0.5, None, None), "50.0 %; how sure that is cannot be told from so few."),
        (Rate(0, 0, None, None, None), "There is none."),
    ],
)  # fmt: skip
def test_a_rate_is_told_with_what_it_means_for_a_thousand_sheets(rate: Rate, told: str) -> None:
    assert certainty(rate) == told


def test_the_first_look_is_at_the_largest_miss_and_alarm_and_at_the_worst_classes() -> None:
    rates, counts, sheets = _evaluated({
        "small.png": (0, 0, 4, 0, 0.1),
        "large.png": (0, 0, 9, 0, 0.1),
        "flagged.png": (90, 0, 0, 5, 0.9),  # pits are missed, but the sheet does not slip through
        "alarm.png": (0, 30, 0, 0, 0.9),
        "other.png": (0, 20, 0, 0, 0.9),
    })  # fmt: skip
    assert look_first(rates, counts, find_faults(counts, sheets, [1, 2]), NAMES) == [
        ("large.png", "the largest defect that slipped through: 90 px of cracks"),
        ("alarm.png", "the largest false alarm: 300 px of pits"),
        ("cracks", "missed on 2 of the 2 sheets that have it"),
        ("pits", "reported on 2 of the 4 sheets without it"),
    ]


def test_nothing_is_to_be_looked_at_if_all_is_right() -> None:
    rates, counts, sheets = _evaluated({"a.png": (5, 5, 0, 0, 0.9), "b.png": (0, 0, 0, 0, 0.1)})
    assert look_first(rates, counts, find_faults(counts, sheets, [1, 2]), NAMES) == []


def test_the_neighbours_of_the_shipped_point_are_three_on_either_side_by_missed_sheets() -> None:
    rows: dict[str, tuple[Any, ...]] = {
        f"d{number}.png": (5, 5 * (number > 4), 0, 0, number / 10) for number in range(10)
    }
    rows |= {f"s{number}.png": (0, 0, 0, 0, number / 10 + 0.05) for number in range(10)}
    rates, *_ = _evaluated(rows)
    near = neighbours(rates)
    assert [point.missed for point in near] == [3, 4, 5, 5, 6, 7, 8]
    assert [point for point in near if point.threshold is None] == [rates.shipped] == [near[3]]


def test_the_chart_shows_the_curve_and_the_shipped_point_with_its_intervals() -> None:
    rows: dict[str, tuple[Any, ...]] = {
        f"d{number}.png": (5, 5 * (number > 1), 0, 0, number / 9) for number in range(9)
    }
    rows |= {f"s{number}.png": (0, 0, 0, 0, number / 20) for number in range(9)}
    rates, *_ = _evaluated(rows)
    svg = operating_points(rates)
    for text in ("sound sheets stopped, %", "defective sheets missed, %", "other thresholds", "shipped thresholds"):
        assert text in svg
    assert svg.count("var(--second)") > 3, "marker and intervals have a colour of their own"
