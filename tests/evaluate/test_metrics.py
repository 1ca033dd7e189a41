import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, Detection, PairCounts, count_pairs, dice_of, merge, summarise

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


def test_classes_are_numbered_from_one_and_counted_apart() -> None:
    predicted = np.concatenate([_mask("##"), _mask("..")])
    truth = np.concatenate([_mask("#."), _mask(".#")])

    assert count_pairs("a.jpg", predicted, truth) == {
        ("a.jpg", 1): PairCounts(1, 2, 1),
        ("a.jpg", 2): PairCounts(1, 0, 0),
    }


def test_a_pair_is_unknown_where_ignored_pixels_may_hide_the_class() -> None:
    predicted, truth = (
        np.concatenate([_mask(first), _mask(second)]) for first, second in [("####", "...#"), ("####", "....")]
    )

    counts = count_pairs("a.jpg", predicted, truth, _mask("###.")[0])

    assert counts["a.jpg", 1] == PairCounts(1, 1, 1)
    assert counts["a.jpg", 2] == PairCounts(0, 1, 0)  # the ignored pixels are the border of class 1
    counts = count_pairs("a.jpg", predicted, truth, _mask("####")[0])
    assert list(counts.values()) == [PairCounts(0, 0, 0, unknown=True)] * 2


@pytest.mark.parametrize(("truth", "ignore"), [("###", None), ("##", "###")])
def test_masks_of_unequal_shape_are_refused(truth: str, ignore: str | None) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg: predicted, truth and ignore differ in shape"):
        count_pairs("a.jpg", _mask("##"), _mask(truth), None if ignore is None else _mask(ignore)[0])


def test_dice_of_arrays_is_the_dice_of_each_pair() -> None:
    counts = list(_many_counts(seed=4, images=50).values())
    columns = np.array([(one.true_px, one.predicted_px, one.both_px) for one in counts]).T

    assert dice_of(*columns).tolist() == [one.dice for one in counts]


def test_pairs_counted_twice_must_agree() -> None:
    part = {("a.jpg", 1): PairCounts(3, 2, 1)}

    assert merge(part, part) == part
    with pytest.raises(ValueError, match=r"a\.jpg, class 1: counted as .*predicted_px=2.* and as .*predicted_px=4"):
        merge(part, {("a.jpg", 1): PairCounts(3, 4, 1)})


@given(seed=st.integers(0, 1000), owners=st.lists(st.integers(0, 3), min_size=12, max_size=12), order=st.randoms())
def test_figures_do_not_depend_on_how_images_are_parted_repeated_and_ordered(
    seed: int, owners: list[int], order: random.Random
) -> None:
    counts = _many_counts(seed, images=12)
    parts: list[Counts] = [{}, {}, {}, {}]
    items = list(counts.items())
    order.shuffle(items)
    for key, pair in items:
        parts[owners[int(key[0].removesuffix(".jpg"))]][key] = pair
    parts.append(dict(items[:3]))  # as a padded last batch repeats images

    merged = merge(*parts)

    assert merged == counts
    assert summarise(merged, ["x", "y"]) == summarise(counts, ["x", "y"])


def test_figures_worked_out_by_hand() -> None:
    # Class 1: Dice 1, 0.5, 0 (missed); class 2: 1, 0 (false alarm), 1.
    counts = {
        ("a.jpg", 1): PairCounts(10, 10, 10), ("a.jpg", 2): CLEAN,
        ("b.jpg", 1): PairCounts(6, 2, 2), ("b.jpg", 2): PairCounts(0, 5, 0),
        ("c.jpg", 1): PairCounts(4, 0, 0), ("c.jpg", 2): CLEAN,
    }  # fmt: skip

    metrics = summarise(counts, ["pits", "cracks"])

    assert (metrics.images, metrics.pairs, metrics.positive_pairs) == (3, 6, 3)
    assert metrics.kaggle_dice == pytest.approx((1 + 0.5 + 0 + 1 + 0 + 1) / 6)
    assert metrics.all_empty == pytest.approx(3 / 6)
    assert metrics.gain_over_empty == pytest.approx(3.5 / 6 - 3 / 6)
    assert metrics.positive_dice == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics.miou == pytest.approx(12 / 20)
    any_class = metrics.detection
    assert (any_class.true_positives, any_class.false_positives) == (2, 0)
    assert (any_class.false_negatives, any_class.true_negatives) == (1, 0)
    pits, cracks = metrics.classes
    assert (pits.class_id, pits.name, pits.positive_pairs) == (1, "pits", 3)
    assert (pits.kaggle_dice, pits.all_empty, pits.positive_dice) == pytest.approx((0.5, 0.0, 0.5))
    assert (pits.iou, pits.precision, pits.recall) == (12 / 20, 12 / 12, 12 / 20)
    assert (pits.detection.precision, pits.detection.recall) == pytest.approx((1.0, 2 / 3))
    assert (cracks.positive_dice, cracks.iou, cracks.precision, cracks.recall) == (None, 0.0, 0.0, None)
    assert (cracks.detection.false_positives, cracks.detection.true_negatives) == (1, 2)
    assert (cracks.detection.precision, cracks.detection.recall) == (0.0, None)


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
    assert metrics.detection == Detection(1, 1, 0, 0)  # c.jpg may or may not have a pit
    pits, cracks = metrics.classes
    assert (pits.unknown_pairs, pits.kaggle_dice, pits.all_empty, pits.precision) == (1, 1, 0.5, 10 / 12)
    assert (cracks.unknown_pairs, cracks.kaggle_dice, cracks.all_empty, cracks.iou) == (1, 0.5, 1, 0)
    assert (pits.detection, cracks.detection) == (Detection(1, 0, 0, 1), Detection(0, 1, 0, 1))


def test_a_class_that_is_unknown_everywhere_has_no_dice_and_where_all_are_nothing_can_be_scored() -> None:
    hidden = PairCounts(0, 0, 0, unknown=True)

    content = summarise({("a.jpg", 1): CLEAN, ("a.jpg", 2): hidden}, ["x", "y"]).to_json()

    classes = json.loads(json.dumps(content, allow_nan=False))["classes"]
    assert [(one["kaggle_dice"], one["all_empty"]) for one in classes] == [(1, 1), (None, None)]
    with pytest.raises(DataError, match="ignored pixels"):
        summarise({("a.jpg", 1): hidden}, ["x"])


def test_predicting_nothing_scores_the_all_empty_baseline() -> None:
    counts = {key: PairCounts(pair.true_px, 0, 0) for key, pair in _many_counts(seed=1, images=40).items()}

    metrics = summarise(counts, ["x", "y"])

    assert metrics.kaggle_dice == metrics.all_empty == sum(not pair.true_px for pair in counts.values()) / 80
    assert metrics.gain_over_empty == 0.0
    assert metrics.positive_dice == 0.0


def test_a_class_that_never_occurs_is_left_out_of_the_mean_iou() -> None:
    counts = {("a.jpg", 1): PairCounts(4, 2, 2), ("a.jpg", 2): PairCounts(0, 7, 0), ("a.jpg", 3): CLEAN}

    metrics = summarise(counts, ["x", "y", "z"])

    assert [one.iou for one in metrics.classes] == [0.5, 0.0, None]
    assert metrics.miou == 0.5


def test_without_any_defect_the_figures_of_defects_are_null_in_json() -> None:
    content = summarise({("a.jpg", 1): CLEAN}, ["x"]).to_json()

    read_back = json.loads(json.dumps(content, allow_nan=False))
    assert read_back["kaggle_dice"] == 1.0
    for name in ("positive_dice", "positive_dice_interval", "miou", "miou_interval"):
        assert read_back[name] is None
    assert read_back["classes"][0]["detection"] == {
        "true_positives": 0, "false_positives": 0, "false_negatives": 0, "true_negatives": 1,
        "precision": None, "recall": None,
    }  # fmt: skip


def test_no_image_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no image to score"):
        summarise({}, ["x"])


@pytest.mark.parametrize("counts", [{("a.jpg", 1): CLEAN}, {("a.jpg", 1): CLEAN, ("a.jpg", 3): CLEAN}])
def test_counts_that_lack_a_class_are_refused(counts: Counts) -> None:
    with pytest.raises(ValueError, match="1 images x 2 classes expected"):
        summarise(counts, ["x", "y"])
