import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.tune.crossval import REPEATS, cross_validate, divide
from defectseg.tune.goals import BEST_DICE, Goal, choose
from defectseg.tune.grid import Grid, Table, Totals
from defectseg.tune.sums import ImageSums

GRID = Grid(pixel=(0.5,), area_px=(0,), gate=(0.5, 0.8))


def _image(gate: float, *, defect: bool) -> ImageSums:
    """One class: a region of 10 px, labelled or not, which is predicted exactly where the gate lets it pass."""
    true_px = 10 if defect else 0
    return ImageSums(
        gate=np.array([gate], np.float32),
        true_px=np.array([true_px]),
        known=np.array([True]),
        kept_px=np.array([[[[10]], [[true_px]]]], np.int32),
        image_px=1000,
        regions_px=np.zeros((0, 3), np.int32),
    )


class _Recording(Goal):
    """Allows the first gate only, and notes how many images it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    def allowed(self, totals: Totals, index: int) -> NDArray[np.bool_]:
        self.shown.append((int(totals.images[index]), int(totals.positives[index])))
        return np.array([[[True, False]]])


def test_each_choice_is_made_without_the_images_it_is_scored_on() -> None:
    table = Table([_image(0.9, defect=number < 4) for number in range(8)], GRID)
    goal = _Recording()

    validation = cross_validate(table, goal, list(range(8)), folds=4)

    assert validation is not None
    assert goal.shown == [(6, 3)] * 4 * REPEATS  # each fold holds 2 images, one of them with the class
    assert validation.totals.images.tolist() == [8]
    assert validation.totals.hits.tolist() == [4]
    assert validation.totals.alarms.tolist() == [4]
    assert validation.dice[:, 0].tolist() == pytest.approx([1, 1, 1, 1, 0, 0, 0, 0])


def test_held_out_scores_are_those_of_the_choice_on_the_rest() -> None:
    # All that speaks for the gate of 0.8 is one of two images: where that one is held out, 0.5 is chosen for it.
    images = [_image(0.6, defect=False), _image(0.9, defect=True)]
    table = Table(images, GRID)

    in_sample = choose(BEST_DICE, table.totals(np.arange(2)), GRID)
    validation = cross_validate(table, BEST_DICE, ["a", "b"], folds=5)

    assert in_sample == [(0, 0, 1)]
    assert validation is not None
    assert validation.folds == 2
    assert validation.dice[:, 0].tolist() == pytest.approx([0, 1])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_groups_stay_together_and_classes_are_spread(seed: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [f"strip {number}" for number in generator.integers(0, 12, 40)]
    single = generator.random((40, 3)) < [0.05, 0.2, 0.5]

    fold_of = divide(single, groups, folds, generator)
    alone = divide(single[:, :1], range(40), folds, generator)

    assert len({(group, fold) for group, fold in zip(groups, fold_of.tolist(), strict=True)}) == len(set(groups))
    with_class = np.bincount(alone[single[:, 0]], minlength=folds)
    assert with_class.max() - with_class.min() <= 1
    assert np.ptp(np.bincount(alone, minlength=folds)) <= 1
