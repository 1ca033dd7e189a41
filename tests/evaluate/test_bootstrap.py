import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import (
    RESAMPLES,
    Interval,
    Tally,
    bootstrap,
    figures_of,
    interval_of,
    number_groups,
)
from defectseg.evaluate.metrics import PairCounts, dice_of, summarise


def _tally(seed: int, images: int, unknown_share: float = 0.0, group: NDArray[np.int64] | None = None) -> Tally:
    generator = np.random.default_rng(seed)
    true_px, predicted_px = generator.integers(0, 3, (2, images, 2)) * 10
    both_px = np.minimum(true_px, predicted_px) // 2
    dice = dice_of(true_px, predicted_px, both_px)
    dice[(true_px == 0) & (generator.random(dice.shape) < unknown_share)] = np.nan
    return Tally(dice, true_px, predicted_px, both_px, np.arange(images) if group is None else group)


@pytest.mark.parametrize("unknown_share", [0.0, 0.5])
def test_weights_say_how_often_an_image_occurs(unknown_share: float) -> None:
    tally = _tally(seed=3, images=30, unknown_share=unknown_share)
    occurrences = np.random.default_rng(0).integers(0, 3, 30)
    counts = {
        (f"{row:02}-{copy}.jpg", column + 1): PairCounts(
            true_px=int(tally.true_px[row, column]),
            predicted_px=int(tally.predicted_px[row, column]),
            both_px=int(tally.both_px[row, column]),
            unknown=not tally.known[row, column],
        )
        for row in range(30)
        for copy in range(occurrences[row])
        for column in range(2)
    }

    metrics = summarise(counts, ["x", "y"])
    figures = figures_of(tally, np.stack([occurrences, np.ones(30)]).astype(np.float64))

    for name, values in figures._asdict().items():
        assert values[0] == pytest.approx(getattr(metrics, name))
        assert values[1] != values[0]


def test_a_class_that_is_predicted_and_never_labelled_is_left_out_of_the_mean_iou() -> None:
    # Class 1: 6 px of 12 in both; class 2: only false alarms.
    true_px, predicted_px, both_px = np.array([[9, 0], [0, 0]]), np.array([[9, 4], [0, 4]]), np.array([[6, 0], [0, 0]])
    tally = Tally(dice_of(true_px, predicted_px, both_px), true_px, predicted_px, both_px, np.arange(2))

    assert figures_of(tally, np.ones((1, 2))).miou.tolist() == [0.5]


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    # 400 images, half of them with Dice 1 and half with 0: standard error 0.5 / 20 = 0.025.
    true_px = np.full((400, 1), 8)
    both_px = np.repeat([0, 8], 200)[:, None]

    interval = interval_of(bootstrap(Tally(both_px / 8, true_px, both_px, both_px, np.arange(400))).kaggle_dice, 0.5)

    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_resamples_without_a_defect_are_left_out() -> None:
    # One image of three has a defect: 8 of 27 resamples have none, so their positive Dice does not exist.
    true_px = np.array([[5], [0], [0]])
    tally = Tally(np.array([[0.4], [1.0], [1.0]]), true_px, true_px, np.array([[2], [0], [0]]), np.arange(3))

    positive_dice = bootstrap(tally).positive_dice

    assert np.isnan(positive_dice).mean() == pytest.approx(8 / 27, abs=0.06)
    assert interval_of(positive_dice, 0.4) == Interval(0.4, 0.4)
    assert interval_of(np.full(10, math.nan), 0.25) == Interval(0.25, 0.25)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 40))
def test_intervals_hold_the_figure_and_stay_in_range(seed: int, images: int) -> None:
    tally = _tally(seed, images)
    point = figures_of(tally, np.ones((1, images)))

    resampled = bootstrap(tally)

    for name, lowest in (("kaggle_dice", 0), ("gain_over_empty", -1), ("positive_dice", 0), ("miou", 0)):
        value = float(getattr(point, name)[0])
        if math.isfinite(value):
            interval = interval_of(getattr(resampled, name), value)
            assert lowest - 1e-9 <= interval.low <= value <= interval.high <= 1 + 1e-9


def test_many_images_are_resampled_in_blocks() -> None:
    tally = _tally(seed=2, images=3000)  # 333 rows a block, so the last block is a short one

    resampled = bootstrap(tally).miou

    assert len(resampled) == RESAMPLES == len(set(resampled.tolist()))


def test_groups_are_drawn_as_a_slow_literal_bootstrap_draws_them() -> None:
    group = np.random.default_rng(5).integers(0, 9, 40)
    group = number_groups(group.tolist())
    tally = _tally(seed=7, images=40, unknown_share=0.3, group=group)
    groups = int(group.max()) + 1
    drawn = np.random.default_rng(0).integers(groups, size=(RESAMPLES, groups))

    resampled = bootstrap(tally)

    for number in range(0, RESAMPLES, 20):
        rows = [row for one in drawn[number].tolist() for row in range(40) if group[row] == one]
        counts = {
            (f"{place:04}.jpg", column + 1): PairCounts(
                int(tally.true_px[row, column]),
                int(tally.predicted_px[row, column]),
                int(tally.both_px[row, column]),
                unknown=not tally.known[row, column],
            )
            for place, row in enumerate(rows)
            for column in range(2)
        }
        dice = [pair.dice for pair in counts.values() if not pair.unknown]
        empty = [float(pair.true_px == 0) for pair in counts.values() if not pair.unknown]
        positive = [pair.dice for pair in counts.values() if pair.true_px]
        iou = []
        for column in (1, 2):
            pairs = [pair for (_, class_id), pair in counts.items() if class_id == column]
            union_px = sum(pair.true_px + pair.predicted_px - pair.both_px for pair in pairs)
            if any(pair.true_px for pair in pairs):
                iou.append(sum(pair.both_px for pair in pairs) / union_px)
        expected = [
            sum(dice) / len(dice),
            (sum(dice) - sum(empty)) / len(dice),
            sum(positive) / len(positive),
            sum(iou) / len(iou),
        ]
        assert [float(values[number]) for values in resampled] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("images", [1, 37, 3000])
def test_images_that_are_their_own_groups_are_drawn_bit_for_bit_as_images(images: int) -> None:
    tally = _tally(seed=11, images=images)
    generator, expected = np.random.default_rng(0), []
    at_once = 1_000_000 // images
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(images, size=(min(at_once, RESAMPLES - start), images))
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn])
        expected.append(figures_of(tally, weights.astype(np.float64)))

    assert np.array_equal(bootstrap(tally), np.concatenate(expected, axis=1), equal_nan=True)


def test_pictures_of_one_coil_are_no_more_witnesses_than_one() -> None:
    single = _tally(seed=3, images=30)
    columns = (np.repeat(values, 4, axis=0) for values in vars(single).values())
    pictures = Tally(*columns)

    for once, often in zip(bootstrap(single), bootstrap(pictures), strict=True):
        assert often == pytest.approx(once, abs=1e-12)
    alone = bootstrap(replace(pictures, group=np.arange(120)))
    assert np.ptp(alone.kaggle_dice) < 0.7 * np.ptp(bootstrap(pictures).kaggle_dice)


def test_one_group_gives_figures_without_intervals() -> None:
    counts = {(name, 1): PairCounts(4, 4, both_px) for name, both_px in (("a.jpg", 2), ("b.jpg", 4), ("c.jpg", 1))}
    alone, two = (
        summarise(counts, ["pits"], groups)
        for groups in (dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "coil"), {"a.jpg": "coil", "b.jpg": "coil"})
    )

    assert (alone.groups, alone.kaggle_dice) == (1, two.kaggle_dice)
    intervals = (alone.kaggle_dice_interval, alone.gain_over_empty_interval, alone.positive_dice_interval)
    assert {*intervals, alone.miou_interval} == {None}
    assert two.groups == 2
    assert two.kaggle_dice_interval == Interval(0.25, 0.75)
