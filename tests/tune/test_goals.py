"""Ways to choose a setting, on totals written by hand: 10 images, one class unless said otherwise."""

import numpy as np
import pytest

from defectseg.tune.goals import (
    BEST_DICE,
    Goal,
    LeastCost,
    MaxFalseAlarms,
    TargetRecall,
    choose,
    smooth_scores,
)
from defectseg.tune.grid import Grid, Totals

# The places 0..3 of the gates are those of the defaults (0), and 1, 2, 3 steps away.
GRID = Grid(pixel=(0.5,), area_px=(0,), gate=(0.5, 0.65, 0.8, 0.9))


def _totals(positives: list[int], **sums: list[list[float]]) -> Totals:
    """The sums over the gates for each class, by name; zero where they are not given."""
    nothing = [[0.0] * 4] * len(positives)
    names = ("dice", "positive_dice", "hits", "alarms")
    arrays = [np.array(sums.get(name, nothing), np.float64)[:, None, None, :] for name in names]
    return Totals(np.full(len(positives), 10), np.array(positives), *arrays)


def _gates(goal: Goal, totals: Totals) -> list[float]:
    return [GRID.gate[gate] for _, _, gate in choose(goal, totals, GRID)]


def test_a_plateau_wins_over_a_spike() -> None:
    # Smoothed: 5.00, 6.50, 7.75, 8.00 of the spike at the first against the plateau of the last two.
    totals = _totals([4], dice=[[9.0, 3.0, 8.5, 8.5]])

    assert _gates(BEST_DICE, totals) == [0.9]
    assert smooth_scores(totals)[0, 0, 0] == pytest.approx([0.75, 0.5875, 0.7125, 0.85])


def test_pairs_with_a_defect_weigh_as_much_in_a_rare_class_which_leans_on_all() -> None:
    # Two classes with 1 and 4 such pairs: each counts 2 / 5. Alone they score 1.2 and 1.8; to each, 1.5 is added twice.
    totals = _totals([1, 4], positive_dice=[[1.0] * 4, [3.0] * 4], dice=[[8.0] * 4, [6.0] * 4])

    assert smooth_scores(totals)[:, 0, 0, 0] == pytest.approx([(1.2 + 2 * 1.5) / 3, (4 * 1.8 + 2 * 1.5) / 6])


def test_a_pair_weighs_as_much_in_a_class_that_is_known_of_fewer_images() -> None:
    # 10 and 6 pairs, 4 and 4 with a defect: a pair counts 2 / 16, one with a defect 2 / 8 more.
    totals = _totals([4, 4], dice=[[8.0] * 4, [3.0] * 4])._replace(images=np.array([10, 6]))

    assert smooth_scores(totals).mean() == pytest.approx(11 / 16)
    assert MaxFalseAlarms(0.5).shortfalls(totals.at([(0, 0, 0)] * 2)._replace(alarms=np.array([3.0, 2.0])), "xy") == [
        "y: no setting raises an alarm in at most 0.5 of the 2 images without it; the quietest does in 2"
    ]


def test_a_class_that_no_image_has_moves_from_the_defaults_only_as_far_as_the_goal_asks() -> None:
    totals = _totals([0], dice=[[5.0, 8.0, 9.0, 9.1]], alarms=[[5, 2, 1, 0]])

    goals: list[Goal] = [BEST_DICE, TargetRecall(0.9), LeastCost(1, 1), MaxFalseAlarms(0.2)]
    assert [_gates(goal, totals) for goal in goals] == [[0.5], [0.5], [0.5], [0.65]]


def test_target_recall_takes_the_fewest_false_alarms_that_reach_it() -> None:
    totals = _totals([4], hits=[[4, 4, 3, 2]], alarms=[[5, 3, 2, 0]])

    assert _gates(TargetRecall(0.75), totals) == [0.8]
    assert _gates(TargetRecall(0.8), totals) == [0.65]
    assert TargetRecall(0.75).shortfalls(totals.at([(0, 0, 2)]), ["pits"]) == []


def test_an_unreachable_recall_gives_the_highest_and_a_warning() -> None:
    totals = _totals([4], hits=[[2, 3, 3, 1]], alarms=[[5, 4, 3, 0]])
    goal = TargetRecall(0.9)

    assert _gates(goal, totals) == [0.8]
    assert goal.shortfalls(totals.at([(0, 0, 2)]), ["pits"]) == [
        "pits: no setting finds it in 0.9 of the 4 images that have it; the best finds it in 3"
    ]


def test_dice_decides_between_equal_false_alarms() -> None:
    totals = _totals([4], hits=[[4, 4, 4, 4]], alarms=[[1, 1, 1, 1]], dice=[[2, 2, 9, 9]])

    assert _gates(TargetRecall(1.0), totals) == [0.9]


def test_max_false_alarms_takes_the_highest_recall_within_them() -> None:
    # 6 images lack the class; a third of them are 2.
    totals = _totals([4], hits=[[4, 3, 3, 2]], alarms=[[3, 2, 1, 0]], dice=[[0, 6, 6, 9]])

    assert _gates(MaxFalseAlarms(1 / 3), totals) == [0.8]
    assert _gates(MaxFalseAlarms(0), totals) == [0.9]


def test_unavoidable_false_alarms_give_the_fewest_and_a_warning() -> None:
    totals = _totals([4], hits=[[4, 4, 3, 3]], alarms=[[3, 2, 2, 3]])
    goal = MaxFalseAlarms(0.1)

    assert _gates(goal, totals) == [0.65]
    assert goal.shortfalls(totals.at([(0, 0, 1)]), ["pits"]) == [
        "pits: no setting raises an alarm in at most 0.1 of the 6 images without it; the quietest does in 2"
    ]


@pytest.mark.parametrize(("miss", "false_alarm", "gate"), [(10, 1, 0.65), (1, 10, 0.9), (1, 1.5, 0.8)])
def test_the_least_cost_depends_on_both_costs(miss: float, false_alarm: float, gate: float) -> None:
    # Misses 0, 0, 1, 3 and alarms 4, 2, 1, 0: at 1 and 1.5 the costs are 6, 3, 2.5, 3.
    totals = _totals([4], hits=[[4, 4, 3, 1]], alarms=[[4, 2, 1, 0]])

    assert _gates(LeastCost(miss, false_alarm), totals) == [gate]
