"""From what images score under every setting to the thresholds that are settled on."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate import bootstrap
from defectseg.evaluate.bootstrap import Interval, interval_of
from defectseg.model.info import Thresholds
from defectseg.tune.choice import Choice, ClassChoice, figures_of
from defectseg.tune.crossval import CrossValidation, cross_validate
from defectseg.tune.doubts import FEW_IMAGES, doubts_of, dropped_regions, unknown_pairs
from defectseg.tune.goals import BestDice, Goal
from defectseg.tune.grid import Grid, Places, Table, Totals
from defectseg.tune.sums import ImageSums

SURE_AGREEMENT = 0.75
"""Share of the repetitions that must choose the same or a neighbouring setting."""
VETO_ERRORS = 1.0
"""The defaults are kept where cross-validation finds them better by more standard errors than this.

Nought would keep them wherever no gain shows, and small sets often fail to show one that is there. On simulated sets
of 17 to 88 images nought scored 0.004 to 0.011 of Kaggle plus positive Dice less than one where the defaults were poor,
and between 0.003 less and 0.005 more where they were the best common setting there is.
"""


def settle(
    images: Sequence[ImageSums],
    grid: Grid,
    class_names: Sequence[str],
    goal: Goal,
    groups: Sequence[Hashable],
    *,
    folds: int,
) -> Choice:
    """Choose on all images, and tell by cross-validation what the choice is worth.

    Args:
        images: at least one.
        grid: the settings to try.
        class_names: item c names ClassId c + 1.
        goal: what to choose by.
        groups: for each image, what it shares with those that are to be left out with it.
        folds: of the cross-validation.
    """
    for_dice = isinstance(goal, BestDice)  # what another goal seeks is not measured by the score of the defaults
    table = Table(images, grid)
    totals = table.totals(np.arange(len(images)))
    best = goal.choose(totals, grid)
    validation = cross_validate(table, grid, goal, groups, folds=folds)
    vetoed = _vetoes(table, grid, validation) if for_dice else [False] * len(best)
    places = [grid.default if veto else place for place, veto in zip(best, vetoed, strict=True)]
    default, chosen = totals.at([grid.default] * len(places)), totals.at(places)
    honest = None if validation is None else _with_defaults(validation, vetoed, table, default, grid)
    classes = _class_choices(table, grid, places, vetoed, (default, chosen), honest, class_names, for_dice)
    gain, gain_interval, interval = _gain(table, grid, honest)
    return Choice(
        thresholds=Thresholds(
            gate=tuple(one.gate for one in classes),
            pixel=tuple(one.pixel for one in classes),
            min_area_px=tuple(one.min_area_px for one in classes),
            chosen_by=f"search on {len(images)} validation images, {goal.text}",
        ),
        objective=tuple(one.chosen.objective for one in classes),
        images=len(images),
        goal=goal.text,
        folds=0 if validation is None else validation.folds,
        classes=classes,
        default=figures_of(default),
        chosen=figures_of(chosen),
        validated=None if honest is None else figures_of(honest.totals),
        validated_interval=interval,
        gain=gain,
        gain_interval=gain_interval,
        warnings=(
            *goal.shortfalls(chosen, class_names),
            *doubts_of(classes, validation, for_dice),
            *dropped_regions(images, grid, places, class_names),
            *unknown_pairs(table.known),
        ),
    )


def _vetoes(table: Table, grid: Grid, validation: CrossValidation | None) -> list[bool]:
    """The classes in which cross-validation finds the defaults clearly better."""
    if validation is None:
        return [False] * table.true_px.shape[1]
    lost = table.dice([grid.default] * table.true_px.shape[1]) - validation.dice
    images, positives = (np.maximum(pairs.sum(axis=0), 1) for pairs in (table.known, table.positive))
    # What each image adds to the objective of each class.
    lost = np.where(table.known, lost * (1 / images + table.positive / positives), 0)
    errors = np.sqrt((((lost - lost.sum(axis=0) / images) * table.known) ** 2).sum(axis=0))
    return [bool(veto) for veto in lost.sum(axis=0) > VETO_ERRORS * errors]


def _with_defaults(
    validation: CrossValidation, vetoed: Sequence[bool], table: Table, default: Totals, grid: Grid
) -> CrossValidation:
    """The cross-validation of what is settled on: where the defaults are kept, nothing is chosen."""
    kept = np.array(vetoed)
    totals = validation.totals
    mixed = [
        np.where(kept, getattr(default, name), getattr(totals, name))
        for name in ("dice", "positive_dice", "hits", "alarms")
    ]
    dice = np.where(kept, table.dice([grid.default] * len(kept)), validation.dice)
    return CrossValidation(dice, Totals(totals.images, totals.positives, *mixed), validation.places, validation.folds)


def _class_choices(
    table: Table,
    grid: Grid,
    places: Sequence[Places],
    vetoed: Sequence[bool],
    scored: tuple[Totals, Totals],
    honest: CrossValidation | None,
    class_names: Sequence[str],
    for_dice: bool,
) -> tuple[ClassChoice, ...]:
    agreements = [None] * len(places) if honest is None else honest.agreement(places)
    choices = []
    for index, (pixel, area, gate) in enumerate(places):
        default, chosen = (figures_of(totals, index) for totals in scored)
        one = ClassChoice(
            class_id=index + 1,
            name=class_names[index],
            images_with=int(table.positive[:, index].sum()),
            gate=grid.gate[gate],
            pixel=grid.pixel[pixel],
            min_area_px=grid.area_px[area],
            default=default,
            chosen=chosen,
            validated=None if honest is None else figures_of(honest.totals, index),
            validated_interval=None if honest is None else _interval(table, honest.dice, slice(index, index + 1)),
            agreement=None if vetoed[index] else agreements[index],
            verdict="defaults kept" if vetoed[index] else "defaults",
        )
        if places[index] != grid.default:
            one = replace(one, verdict="stable" if _is_sure(one, for_dice) else "unsure")
        choices.append(one)
    return tuple(choices)


def _is_sure(one: ClassChoice, for_dice: bool) -> bool:
    """Whether enough images, the repetitions and the gain all speak for the setting of a class."""
    agreed = one.agreement is not None and one.agreement >= SURE_AGREEMENT
    return one.images_with >= FEW_IMAGES and agreed and not (for_dice and one.shows_no_gain)


def _gain(
    table: Table, grid: Grid, honest: CrossValidation | None
) -> tuple[float | None, Interval | None, Interval | None]:
    """Gain over the defaults in cross-validation, its interval, and that of the objective itself."""
    if honest is None:
        return None, None, None
    everything = slice(None)
    default_dice = table.dice([grid.default] * table.true_px.shape[1])
    # The same seed gives the same resamples, so that the difference of each is that of one set of images.
    gained = _resampled(table, honest.dice, everything) - _resampled(table, default_dice, everything)
    gain = _objective(table, honest.dice, everything) - _objective(table, default_dice, everything)
    return gain, interval_of(gained, gain), _interval(table, honest.dice, everything)


def _interval(table: Table, dice: NDArray[np.float64], classes: slice) -> Interval:
    return interval_of(_resampled(table, dice, classes), _objective(table, dice, classes))


def _resampled(table: Table, dice: NDArray[np.float64], classes: slice) -> NDArray[np.float64]:
    """Objectives of some classes over resamples of the images, from Dice (N, C)."""
    true_px = table.true_px[:, classes]
    nothing = np.zeros_like(true_px)  # only the Dice figures are asked for
    figures = bootstrap.bootstrap(bootstrap.Tally(dice[:, classes], true_px, nothing, nothing), seed=0)
    return figures.kaggle_dice + np.nan_to_num(figures.positive_dice)


def _objective(table: Table, dice: NDArray[np.float64], classes: slice) -> float:
    dice, positive, known = dice[:, classes], table.positive[:, classes], table.known[:, classes]
    return sum(float(dice[pairs].mean()) for pairs in (known, positive) if pairs.any())
