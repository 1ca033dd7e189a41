"""How well thresholds chosen for a goal do on other images: repeated K-fold cross-validation."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import number_groups
from defectseg.tune.goals import Goal, choose
from defectseg.tune.grid import Table, Totals

REPEATS = 5
"""Number of divisions into folds. The figures are means over them, because with few images the division matters."""


@dataclass(frozen=True)
class CrossValidation:
    """The scores of images with thresholds that were chosen without them.

    Attributes:
        dice: float (N, C), mean over the repetitions.
        totals: of all images, arrays (C,), mean over the repetitions.
        folds: number of folds.
    """

    dice: NDArray[np.float64]
    totals: Totals
    folds: int


def cross_validate(table: Table, goal: Goal, groups: Sequence[Hashable], *, folds: int) -> CrossValidation | None:
    """For each fold of five divisions of the images, choose on the other folds and score on this one.

    Args:
        table: the images under all settings.
        goal: what to optimise.
        groups: the group of each image; images of one group stay in one fold.
        folds: number of folds; fewer if there are fewer groups.

    Returns:
        None if all images are of one group.
    """
    folds = min(folds, len(set(groups)))
    if folds < 2:
        return None
    generator = np.random.default_rng(0)
    dice, totals = np.zeros(table.true_px.shape), []
    for _ in range(REPEATS):
        fold_of = divide(table.positive, groups, folds, generator)
        parts = [np.flatnonzero(fold_of == fold) for fold in range(folds)]
        sums = [table.totals(rows) for rows in parts]
        everything = [sum(values) for values in zip(*sums, strict=True)]
        for rows, held_out in zip(parts, sums, strict=True):
            rest = Totals(*map(np.subtract, everything, held_out))
            chosen = choose(goal, rest, table.grid)
            dice[rows] += table.dice(chosen)[rows] / REPEATS
            totals.append(held_out.at(chosen))
    mean = Totals(*(sum(values) / REPEATS for values in zip(*totals, strict=True)))
    return CrossValidation(dice, mean, folds)


def divide(
    positive: NDArray[np.bool_], groups: Sequence[Hashable], folds: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The fold of each image, int (N,): random, with the images of each class spread evenly, rare classes first.

    Args:
        positive: bool (N, C), which image has which class.
        groups: the group of each image; images of one group stay in one fold.
        folds: number of folds.
        generator: of the random order.
    """
    member_of = number_groups(groups)
    held = np.zeros((len(set(groups)), positive.shape[1]), np.bool_)
    np.logical_or.at(held, member_of, positive)
    rarity = np.where(held, held.sum(axis=0), len(held) + 1).min(axis=1)  # of the rarest class; clean groups last
    order = generator.permutation(len(held))
    order = order[np.argsort(rarity[order], kind="stable")]
    fold_of_group = np.empty(len(held), np.int64)
    fold_of_group[order] = np.arange(len(held)) % folds
    return np.asarray(fold_of_group[member_of])
