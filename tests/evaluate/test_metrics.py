import json
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.metrics import (
    COLUMNS,
    ClassMetrics,
    Counts,
    Metrics,
    PairCounts,
    count_pairs,
    decimals,
    dice_of,
    signed,
    summarise,
)

CLEAN = PairCounts(0, 0, 0)


def _mask(*rows: str) -> NDArray[np.bool_]:
    """(1, H, W) from rows of dots and signs: "#" is a pixel of the mask."""
    return np.array([[[sign == "#" for sign in row] for row in rows]])


def _many_counts(seed: int, images: int) -> Counts:
    generator = np.random.default_rng(seed)
    counts: Counts = {}
    for index in range(images):
        for class_id in (1, 2):
            true_px, predicted_px = (int(px) for px in generator.integers(0, 4, 2) * generator.integers(1, 50, 2))
            both_px = int(generator.integers(0, min(true_px, predicted_px) + 1))
            counts[f"{index}.jpg", class_id] = PairCounts(true_px, predicted_px, both_px)
    return counts


@pytest.mark.parametrize(
    ("predicted", "truth", "ignore", "counts", "dice"),
    [
        ("...", "...", "...", CLEAN, 1.0),
        ("..#", "...", "...", PairCounts(0, 1, 0), 0.0),
        ("##..#.", ".##.#.", "......", PairCounts(3, 3, 2), 4 / 6),
        ("##..", ".##.", "#.#.", PairCounts(1, 1, 1), 1.0),
        ("##..", "...#", "##..", PairCounts(1, 0, 0), 0.0),
    ],
    ids=["clean and nothing predicted", "one stray pixel", "partial overlap", "ignored", "predicted in ignored only"],
)
def test_pixels_and_dice_of_a_pair(predicted: str, truth: str, ignore: str, counts: PairCounts, dice: float) -> None:
    counted = count_pairs("a.jpg", _mask(predicted), _mask(truth), _mask(ignore)[0])

    assert counted == {("a.jpg", 1): counts}
    assert counted["a.jpg", 1].dice == pytest.approx(dice)


def test_classes_are_counted_apart_and_a_pair_is_unknown_where_ignored_pixels_may_hide_the_class() -> None:
    predicted, truth = np.concatenate([_mask("####"), _mask("...#")]), np.concatenate([_mask("####"), _mask("....")])

    assert list(count_pairs("a.jpg", predicted, truth).values()) == [PairCounts(4, 4, 4), PairCounts(0, 1, 0)]
    counts = count_pairs("a.jpg", predicted, truth, _mask("###.")[0])
    assert counts["a.jpg", 1] == PairCounts(1, 1, 1)
    assert counts["a.jpg", 2] == PairCounts(0, 1, 0)  # the ignored pixels are the border of class 1
    counts = count_pairs("a.jpg", predicted, truth, _mask("####")[0])
    assert list(counts.values()) == [PairCounts(0, 0, 0, unknown=True)] * 2


def test_dice_of_arrays_is_the_dice_of_each_pair() -> None:
    counts = list(_many_counts(seed=4, images=50).values())
    columns = np.array([(one.true_px, one.predicted_px, one.both_px) for one in counts]).T

    assert dice_of(*columns).tolist() == [one.dice for one in counts]


def test_figures_do_not_depend_on_the_order_of_the_counts() -> None:
    counts = _many_counts(seed=0, images=12)

    assert summarise(dict(reversed(counts.items())), ["x", "y"]) == summarise(counts, ["x", "y"])


def test_figures_worked_out_by_hand() -> None:
    # Class 1: Dice 1, 0.5, 0 (missed); class 2: 1, 0 (false alarm), 1.
    counts = {
        ("a.jpg", 1): PairCounts(10, 10, 10), ("a.jpg", 2): CLEAN,
        ("b.jpg", 1): PairCounts(6, 2, 2), ("b.jpg", 2): PairCounts(0, 5, 0),
        ("c.jpg", 1): PairCounts(4, 0, 0), ("c.jpg", 2): CLEAN,
    }  # fmt: skip

    content = json.loads(json.dumps(summarise(counts, ["pits", "cracks"]).to_json(), allow_nan=False))

    pits, cracks = content.pop("classes")
    assert [one.pop("detection") for one in (content, pits, cracks)] == [
        _detection(2, 0, 1, 0), _detection(2, 0, 1, 0), _detection(0, 1, 0, 2)
    ]  # fmt: skip
    for name in ("kaggle_dice", "gain_over_empty", "positive_dice", "miou"):
        interval = content.pop(f"{name}_interval")
        assert interval["low"] <= content[name] <= interval["high"]
    assert content == pytest.approx({
        "images": 3, "groups": 3, "pairs": 6, "positive_pairs": 3, "unknown_pairs": 0, "kaggle_dice": 3.5 / 6,
        "all_empty": 3 / 6, "gain_over_empty": 0.5 / 6, "positive_dice": 1.5 / 3, "miou": 12 / 20,
    })  # fmt: skip
    assert pits == pytest.approx({
        "class_id": 1, "name": "pits", "positive_pairs": 3, "unknown_pairs": 0, "kaggle_dice": 0.5, "all_empty": 0,
        "positive_dice": 0.5, "iou": 12 / 20, "precision": 1, "recall": 12 / 20,
    })  # fmt: skip
    assert cracks == pytest.approx({
        "class_id": 2, "name": "cracks", "positive_pairs": 0, "unknown_pairs": 0, "kaggle_dice": 2 / 3, "all_empty": 1,
        "positive_dice": None, "iou": 0, "precision": 0, "recall": None,
    })  # fmt: skip


def _detection(found: int, false: int, missed: int, clear: int) -> dict[str, object]:
    return {
        "true_positives": found, "false_positives": false, "false_negatives": missed, "true_negatives": clear,
        "precision": found / (found + false) if found + false else None,
        "recall": found / (found + missed) if found + missed else None,
    }  # fmt: skip


def test_unknown_pairs_count_in_sums_of_pixels_alone() -> None:
    counts = {
        ("a.jpg", 1): PairCounts(10, 10, 10), ("a.jpg", 2): PairCounts(0, 5, 0, unknown=True),
        ("b.jpg", 1): CLEAN, ("b.jpg", 2): PairCounts(0, 3, 0),
        ("c.jpg", 1): PairCounts(0, 2, 0, unknown=True), ("c.jpg", 2): CLEAN,
    }  # fmt: skip

    metrics = summarise(counts, ["pits", "cracks"])

    assert (metrics.images, metrics.pairs, metrics.positive_pairs, metrics.unknown_pairs) == (3, 6, 1, 2)
    assert metrics.kaggle_dice == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert metrics.all_empty == pytest.approx(3 / 4)
    assert (metrics.gain_over_empty, metrics.positive_dice) == (0, 1)
    assert vars(metrics.detection) == _detection(1, 1, 0, 0)  # c.jpg may or may not have a pit
    pits, cracks = metrics.classes
    assert (pits.unknown_pairs, pits.kaggle_dice, pits.all_empty, pits.precision) == (1, 1, 0.5, 10 / 12)
    assert (cracks.unknown_pairs, cracks.kaggle_dice, cracks.all_empty, cracks.iou) == (1, 0.5, 1, 0)
    assert vars(pits.detection) == _detection(1, 0, 0, 1)
    assert vars(cracks.detection) == _detection(0, 1, 0, 1)


def test_a_class_that_never_occurs_is_left_out_of_the_mean_iou() -> None:
    counts = {("a.jpg", 1): PairCounts(4, 2, 2), ("a.jpg", 2): PairCounts(0, 7, 0), ("a.jpg", 3): CLEAN}

    metrics = summarise(counts, ["x", "y", "z"])

    assert [one.iou for one in metrics.classes] == [0.5, 0.0, None]
    assert metrics.miou == 0.5


def test_figures_that_do_not_exist_are_null() -> None:
    hidden = PairCounts(0, 0, 0, unknown=True)

    content = json.loads(json.dumps(summarise({("a.jpg", 1): CLEAN, ("a.jpg", 2): hidden}, "xy").to_json()))

    assert content["kaggle_dice"] == 1.0
    for name in ("positive_dice", "positive_dice_interval", "miou", "miou_interval"):
        assert content[name] is None
    assert [(one["kaggle_dice"], one["all_empty"]) for one in content["classes"]] == [(1, 1), (None, None)]
    with pytest.raises(DataError, match="ignored pixels"):
        summarise({("a.jpg", 1): hidden}, ["x"])
    with pytest.raises(DataError, match="no image to score"):
        summarise({}, ["x"])


def test_figures_have_four_decimals_and_a_sign_where_they_are_differences() -> None:
    assert (decimals(None), decimals(0.12345), signed(0.5), signed(-0.5)) == ("–", "0.1235", "+0.5000", "−0.5000")


def test_every_figure_of_a_class_has_a_column() -> None:
    figures = [field.name for field in fields(ClassMetrics) if field.type == float | None]

    assert [column.name for column in COLUMNS] == figures
    assert {column.of_all for column in COLUMNS} <= {"", *(field.name for field in fields(Metrics))}
