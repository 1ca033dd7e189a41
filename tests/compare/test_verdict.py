from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from defectseg.compare.verdict import FIGURES, KAGGLE_DICE, MISSED, STOPPED, Verdict, contributions_of, judge
from defectseg.evaluate.metrics import PairCounts
from defectseg.evaluate.score import Score
from defectseg.evaluate.sheets import Sheet

Table = NDArray[np.float64]


def _sheet(*found: bool) -> Sheet:
    return Sheet(None, tuple((1, 9, one) for one in found), (), np.zeros((3, 3), np.int64))


def _judge(difference: Any, **changes: Any) -> Verdict:
    """B minus A of the Kaggle Dice of images that are groups of their own, all sound, and neither side makes faults."""
    difference = np.asarray(difference, np.float64)
    a, b, of = np.zeros((3, len(difference), len(FIGURES)))
    of[:, [0, 3]] = 1
    b[:, 0] = difference
    for column, (of_a, of_b) in changes.pop("faults", {}).items():
        index = FIGURES.index(column)
        of[:, index], a[:, index], b[:, index] = 1, of_a, of_b
    return judge(a, b, of, np.arange(len(difference)), **changes)


def _noise(groups: int, mean: float, spread: float = 0.02, seed: int = 0) -> Table:
    noise = np.random.default_rng(seed).normal(size=groups)
    return np.asarray(mean + spread * (noise - noise.mean()) / noise.std(ddof=1))


def test_an_image_adds_what_is_worked_by_hand() -> None:
    half, false, clear = PairCounts(4, 4, 2), PairCounts(0, 5, 0), PairCounts(0, 0, 0)
    hidden = PairCounts(0, 3, 0, unknown=True)

    pairs = {"half": half, "lost": PairCounts(4, 0, 0), "false": false, "hidden": hidden}
    sheets = {"half": _sheet(True, False), "lost": _sheet(False), "false": _sheet(), "hidden": _sheet()}
    counts = {(name, class_id): pair for name in pairs for class_id, pair in ((1, pairs[name]), (2, clear))}

    adds, of = contributions_of(Score(counts, sheets), list(pairs), 2).tolist()

    assert [adds[0], of[0]] == [[1.5, 0.5, 0, 0, 1], [2, 1, 1, 0, 2]]
    assert [adds[1], of[1]] == [[1, 0, 1, 0, 0], [2, 1, 1, 0, 1]]
    assert [adds[2], of[2]] == [[1, 0, 0, 1, 0], [2, 0, 0, 1, 0]]
    assert [adds[3], of[3]] == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]], "neither sound nor defective"


def test_intervals_are_the_wider_of_a_literal_cluster_bootstrap_and_the_t_interval() -> None:
    generator = np.random.default_rng(4)
    group = np.sort(generator.integers(25, size=70))
    group = np.unique(group, return_inverse=True)[1]
    of = generator.integers(1, 4, size=(70, len(FIGURES))).astype(float)
    a, b = (generator.random((70, len(FIGURES))) ** 3 * of for _ in range(2))
    groups = int(group.max()) + 1
    members = [np.flatnonzero(group == number) for number in range(groups)]
    drawn = np.random.default_rng(0).integers(groups, size=(1000, groups))

    verdict = judge(a, b, of, group)

    for index, figure in enumerate(FIGURES):
        resampled = []
        for draw in drawn:
            rows = np.concatenate([members[number] for number in draw])
            resampled.append((b[rows, index].sum() - a[rows, index].sum()) / of[rows, index].sum())
        whole = of[:, index].sum()
        point = b[:, index].sum() / whole - a[:, index].sum() / whole
        residuals = [
            sum(b[row, index] - a[row, index] - point * of[row, index] for row in rows_of) for rows_of in members
        ]
        error = stats.t(groups - 1).ppf(0.975) * np.std(residuals, ddof=1) * groups**0.5 / whole
        one = verdict.differences[figure]
        assert one.difference == pytest.approx(point, abs=1e-9)
        assert one.interval is not None
        assert one.interval.low == pytest.approx(min(np.quantile(resampled, 0.025), point - error), abs=1e-6)
        assert one.interval.high == pytest.approx(max(np.quantile(resampled, 0.975), point + error), abs=1e-6)


def test_with_one_image_a_group_the_interval_holds_that_of_a_paired_t_test() -> None:
    difference = _noise(40, 0.003)
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    interval = _judge(difference).differences[KAGGLE_DICE].interval
    assert interval is not None
    assert interval.low <= expected.low + 1e-9
    assert interval.high >= expected.high - 1e-9
    assert interval.high - interval.low < 1.2 * (expected.high - expected.low)


@pytest.mark.parametrize(
    ("mean", "margin", "verdict", "not_worse"),
    [
        (0.05, 0.01, "better", True), (-0.05, 0.01, "worse", False), (-0.012, 0.03, "worse", True),
        (0.0, 0.01, "not worse", True), (0.0, 0.001, "cannot tell", False), (-0.008, 0.01, "worse", False),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_bounds(mean: float, margin: float, verdict: str, not_worse: bool) -> None:
    done = _judge(_noise(100, mean), margin=margin)  # half of the interval is about 0.004
    assert (done.verdict, done.on_dice) == (verdict, verdict)
    assert done.meets("not-worse") == not_worse
    assert done.meets("better") == (verdict == "better")
    assert (done.more_groups is None) == (verdict != "cannot tell")


def test_fewer_than_20_groups_tell_nothing_however_plain_the_difference() -> None:
    few, enough = _judge(_noise(19, 0.5)), _judge(_noise(20, 0.5))
    assert (few.verdict, few.more_groups, few.meets("better"), few.meets("not-worse")) == (
        "cannot tell",
        1,
        False,
        False,
    )
    assert (enough.verdict, enough.meets("better")) == ("better", True)


@pytest.mark.parametrize("fault", [MISSED, STOPPED])
def test_more_faults_in_too_many_groups_are_a_veto_by_an_exact_sign_test(fault: str) -> None:
    a, b = np.zeros(60), np.zeros(60)
    a[:2], b[2:11] = 1, 1  # fewer under B in 2 groups, under A in 9
    p = sum(comb(11, k) for k in range(9, 12)) / 2**11
    assert 0.01 < p < 0.05

    done = _judge(_noise(60, 0.1), faults={fault: (a, b)})

    assert done.votes[fault].p == pytest.approx(p, abs=1e-9)
    assert (done.votes[fault].for_a, done.votes[fault].for_b, done.vetoes, done.verdict) == (9, 2, (), "better")
    b[11:15] = 1
    vetoed = _judge(_noise(60, 0.1), faults={fault: (a, b)})
    assert (vetoed.vetoes, vetoed.verdict, vetoed.on_dice) == ((fault,), "worse", "better")
    assert not vetoed.meets("better")
    assert not vetoed.meets("not-worse")


def test_a_group_speaks_once_and_only_for_the_model_with_fewer_faults_in_it() -> None:
    a, b, of = np.zeros((3, 12, len(FIGURES)))
    of[:, [0, 2]] = 1
    b[:9, 2] = 1  # in group 0; in group 1, A has one fault and B none
    a[9, 2] = 1
    votes = judge(a, b, of, np.repeat([0, 1], [9, 3])).votes[MISSED]
    assert (votes.for_a, votes.for_b, votes.p) == (1, 1, 0.75)


def test_equal_answers_are_not_worse_and_without_a_label_a_figure_is_none() -> None:
    done = _judge(np.zeros(30))
    assert (done.verdict, done.meets("not-worse"), done.meets("better")) == ("not worse", True, False)
    assert done.differences[KAGGLE_DICE].interval is not None
    assert done.differences[MISSED].difference is None
    assert done.votes[MISSED].p == 1
    ones = np.ones((5, len(FIGURES)))
    alone = judge(ones, ones, ones, np.zeros(5, np.int64))
    assert alone.differences[KAGGLE_DICE].interval is None


def test_so_many_more_groups_do_tell_in_about_four_of_five_data_sets() -> None:
    more = _judge(_noise(100, 0, spread=0.1)).more_groups
    assert more is not None
    generator = np.random.default_rng(1)
    told = [_judge(generator.normal(0, 0.1, 100 + more)).on_dice != "cannot tell" for _ in range(120)]
    assert 0.68 < np.mean(told) < 0.92
