import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from defectseg.drift import verdict
from defectseg.drift.verdict import began, camera_shift, in_words, more_defects
from defectseg.image.appearance import LIGHT, NUMBERS
from defectseg.model.appearance import Appearance

Table = NDArray[np.float64]
FOUR = np.full(20, 4.0)


def _groups(seed: int, spread: float = 1.0, count: int = 20) -> Table:
    """Residuals of groups of 4 images, which vary as those of the training, or more."""
    return np.random.default_rng(seed).normal(0, spread * (0.01 + 0.01 / 4) ** 0.5, size=(count, NUMBERS))


def test_a_shift_is_what_yuens_t_says_of_each_direction_and_each_ending(trained: Appearance) -> None:
    light = np.arange(NUMBERS) < LIGHT
    residuals = _groups(4, count=48) + 0.04 * light + np.eye(NUMBERS)[7] * 0.12

    found = camera_shift(residuals, np.full(48, 4.0), trained)

    chances = []
    for last in (48, 12):
        for level, axes in ((0.02, [light / LIGHT**0.5]), (0.001, 2 * [*np.eye(NUMBERS)])):
            for axis in axes:
                along = residuals[-last:] @ axis / (0.01 + 0.01 / 4) ** 0.5
                ends = {48: 2, 12: 0}[last]
                kept, mean = last - 2 * ends, stats.trim_mean(along, ends / last)
                winsorized = np.asarray(stats.mstats.winsorize(along, (ends / last, ends / last)))
                variance = max(1, np.var(winsorized, ddof=1) * (last - 1) / (kept - 1))
                t = abs(mean) / np.sqrt(variance * (1 / kept + 1 / 60))
                chance = 2 * stats.t.sf(t, kept - 1) * 2 * len(axes) / level * 0.021
                if abs(mean) >= verdict.LEAST_SHIFT:
                    chances.append((chance, last, abs(mean)))
    assert found is not None
    assert (found.p, found.groups, found.size) == pytest.approx(min(chances))


def test_unchanged_groups_raise_no_alarm_not_even_if_they_differ_among_each_other(trained: Appearance) -> None:
    for spread in (1.0, 3.0):
        alarms = [camera_shift(_groups(seed, spread), FOUR, trained) is not None for seed in range(200)]
        assert sum(alarms) <= 2, spread


@pytest.mark.parametrize(
    ("change", "words"), [(-0.29 * (np.arange(NUMBERS) < LIGHT), "darker by 2"), (np.eye(NUMBERS)[-1], "more black")]
)
def test_a_change_of_all_groups_is_seen_and_named(trained: Appearance, change: Table, words: str) -> None:
    residuals = _groups(1) + change
    assert camera_shift(residuals, FOUR, trained) is not None
    means = residuals + trained.expected(has_defect=0.5)
    assert words in in_words(means, np.full(20, 0.5), FOUR, trained)


def test_one_group_of_another_steel_neither_raises_an_alarm_nor_hides_one(trained: Appearance) -> None:
    residuals = _groups(1)
    residuals[3] += 50 * np.eye(NUMBERS)[7]
    assert camera_shift(residuals, FOUR, trained) is None
    assert camera_shift(residuals + 0.29 * np.eye(NUMBERS)[7], FOUR, trained) is not None


def test_a_small_shift_of_very_many_groups_is_none(trained: Appearance) -> None:
    shift = 0.5 * (0.01 + 0.01 / 4) ** 0.5
    residuals = _groups(2, count=2000) + shift * np.eye(NUMBERS)[3]
    assert camera_shift(residuals, np.full(2000, 4.0), trained) is None


def test_what_began_lately_is_seen_in_a_long_history(trained: Appearance) -> None:
    residuals = _groups(3, count=160)
    residuals[-10:, :LIGHT] -= 0.29
    found = camera_shift(residuals, np.full(160, 4.0), trained)
    assert found is not None
    assert found.groups == 10
    assert began(residuals @ found.direction) == 150


def test_the_first_group_of_a_change_is_told_only_if_it_is_clear() -> None:
    noise = np.random.default_rng(1).normal(size=30)
    clear, faint = noise.copy(), noise.copy()
    clear[12:] += 4
    faint[12:] += 0.5
    assert began(clear) in (12, 13)
    assert began(faint) is None
    assert began(noise + 4) == 0, "it was so from the start"
    assert began(np.r_[np.zeros(9), 5.0]) == 9


def test_more_defects_are_those_beyond_the_earlier_groups_or_else_beyond_the_training(trained: Appearance) -> None:
    generator, none = np.random.default_rng(0), np.zeros(0)
    shares, earlier = generator.normal(0.3, 0.05, size=20), generator.normal(0.1, 0.05, size=40)

    assert more_defects(shares, none, trained)[0] is None, "half of the training images have a defect"
    assert more_defects(shares, earlier[:9], trained)[0] is None, "nine groups tell nothing"
    found, usual = more_defects(shares, earlier, trained)
    assert (usual.groups, usual.source) == (40, "in the groups before")
    assert usual.mean == pytest.approx(earlier.mean())
    assert found is not None
    assert found.size == pytest.approx(shares.mean())
    t = (shares.mean() - earlier.mean()) / np.sqrt(shares.var(ddof=1) / 20 + earlier.var(ddof=1) / 40)
    assert found.p == pytest.approx(stats.t.sf(t, 19))
    assert more_defects(shares - 0.17, earlier, trained)[0] is None, "a rise by 3 points"
    found, usual = more_defects(np.full(20, 0.95), none, trained)
    assert found is not None
    assert (usual.mean, usual.source) == (0.5, "in the training images")
    late, usual = more_defects(np.r_[shares - 0.2, shares - 0.2, shares[:12]], none, trained)
    assert late is not None
    assert late.groups == 13, "a quarter of them"
    assert usual.mean == pytest.approx(np.r_[shares - 0.2, shares[:19] - 0.2].mean())
