"""Choose thresholds on validation images, with their figures and a cross-validated estimate for other images.

The search is fast, because each image is reduced to the pixel sums of every setting.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.bootstrap import Interval, Tally, bootstrap, interval_of, number_groups
from defectseg.evaluate.metrics import Counts, PairCounts
from defectseg.evaluate.score import Scored
from defectseg.model.info import Thresholds
from defectseg.tune.crossval import CrossValidation, cross_validate
from defectseg.tune.goals import BEST_DICE, Goal, choose
from defectseg.tune.grid import GRID, Grid, Table, Totals
from defectseg.tune.sums import ImageSums, sum_image

FOLDS = 5
FEW_IMAGES = 10
"""A class in fewer images gets a warning."""
LARGEST_AREA_SHARE = 0.05
"""No minimum area exceeds this share of the largest image, or it would discard real defects."""


@dataclass(frozen=True)
class Figures:
    """Figures of one class or of all together, in [0, 1]; None where there is no image to compute a figure on.

    Images in which ignored pixels may hide the class are left out. `recall` is the share of the images with the class
    in which a predicted pixel is true, `false_alarms` the share of the images without it in which a pixel is predicted.
    """

    kaggle_dice: float | None
    positive_dice: float | None
    recall: float | None
    false_alarms: float | None

    @property
    def objective(self) -> float:
        """Kaggle Dice plus positive Dice, in [0, 2]; Kaggle Dice alone if no image has the class."""
        return (self.kaggle_dice or 0.0) + (self.positive_dice or 0.0)


@dataclass(frozen=True)
class ClassChoice:
    """The thresholds of one class.

    Attributes:
        class_id: from 1.
        name: of the class.
        images_with: number of images that have it.
        gate, pixel, min_area_px: the thresholds.
        default, chosen: figures with the default and with these thresholds, on the images they were chosen on.
        validated: cross-validated figures; None where there were too few images.
    """

    class_id: int
    name: str
    images_with: int
    gate: float
    pixel: float
    min_area_px: int
    default: Figures
    chosen: Figures
    validated: Figures | None


@dataclass(frozen=True)
class Choice:
    """The thresholds of all classes; figures as in ClassChoice.

    Attributes:
        thresholds: one value for each class.
        images: number of images.
        goal: the goal in words.
        folds: of the cross-validation; 0 if there was none.
        gain: cross-validated objective minus that of the defaults, in [-2, 2].
        gain_interval: 95 % interval of it.
        warnings: sentences for the user.
    """

    thresholds: Thresholds
    images: int
    goal: str
    folds: int
    classes: tuple[ClassChoice, ...]
    default: Figures
    chosen: Figures
    validated: Figures | None
    gain: float | None
    gain_interval: Interval | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and None, ready for `json.dumps`."""
        return {**asdict(self), "thresholds": self.thresholds.model_dump(mode="json")}


class ThresholdSearch:
    """Collects validation images one by one, then chooses the thresholds.

    Images are stored by ImageId, so the choice does not depend on their order or on the thread or process of each.

    Args:
        class_names: item c names ClassId c + 1.
        grid: the settings to try. Minimum areas above 5 % of the largest image are not used.
    """

    def __init__(self, class_names: Sequence[str], grid: Grid = GRID) -> None:
        self.class_names = tuple(class_names)
        self.grid = grid
        self.images: dict[str, ImageSums] = {}

    def visit(self, scored: Scored) -> None:
        """Add an image; a visitor of `score_images`, called from any thread."""
        self.images[scored.image_id] = sum_image(scored, self.grid.pixel, self.grid.area_px)

    def counts(self, thresholds: Thresholds) -> Counts:
        """The pixels of every (image, class) pair. Raises ValueError for thresholds that are not in the grid."""
        settings = list(zip(thresholds.pixel, thresholds.min_area_px, thresholds.gate, strict=True))
        counts: Counts = {}
        for image_id, image in sorted(self.images.items()):  # threads added them in any order
            for index, (pixel, area_px, gate) in enumerate(settings):
                place = self.grid.pixel.index(pixel), self.grid.area_px.index(area_px)
                passes = image.gate[index] >= np.float32(gate)
                predicted_px, both_px = image.kept_px[index, :, *place].tolist() if passes else (0, 0)
                true_px, unknown = int(image.true_px[index]), not image.known[index]
                counts[image_id, index + 1] = PairCounts(true_px, predicted_px, both_px, unknown)
        return counts

    def best(self, goal: Goal = BEST_DICE, *, groups: Mapping[str, str] | None = None, folds: int = FOLDS) -> Choice:
        """Choose thresholds for each class on all images, and estimate by cross-validation how they do on others.

        Args:
            goal: what to optimise.
            groups: ImageId -> group; images of one group stay in one fold. Other images are independent.
            folds: of the cross-validation, at least 2.

        Raises:
            DataError: there is no image, or ignored pixels may hide every class in all of them.
        """
        if not any(image.known.any() for image in self.images.values()):
            why = f", since ignored pixels may hide every class in all {len(self.images)}" if self.images else ""
            raise DataError(f"There is no validation image to choose thresholds on{why}. Give the split at least one.")
        image_ids = sorted(self.images)
        images = [self.images[image_id] for image_id in image_ids]
        most_px = LARGEST_AREA_SHARE * max(image.image_px for image in images)
        areas_px = tuple(area_px for area_px in self.grid.area_px if area_px <= most_px) or self.grid.area_px[:1]
        # An image without a group is one of its own: a tuple, which cannot equal the name of a group.
        members = [(groups or {}).get(image_id, (image_id,)) for image_id in image_ids]
        grid = Grid(self.grid.pixel, areas_px, self.grid.gate)
        table = Table(images, grid)
        totals = table.totals(np.arange(len(images)))
        places = choose(goal, totals, grid)
        default, chosen = totals.at([grid.default] * len(places)), totals.at(places)
        validation = cross_validate(table, goal, members, folds=folds)
        classes = tuple(
            ClassChoice(
                class_id=index + 1,
                name=self.class_names[index],
                images_with=int(totals.positives[index]),
                gate=grid.gate[gate],
                pixel=grid.pixel[pixel],
                min_area_px=grid.area_px[area],
                default=figures_of(default, index),
                chosen=figures_of(chosen, index),
                validated=None if validation is None else figures_of(validation.totals, index),
            )
            for index, (pixel, area, gate) in enumerate(places)
        )
        gain, gain_interval = (None, None) if validation is None else _gain(table, validation, number_groups(members))
        return Choice(
            thresholds=Thresholds(
                gate=tuple(one.gate for one in classes),
                pixel=tuple(one.pixel for one in classes),
                min_area_px=tuple(one.min_area_px for one in classes),
                chosen_by=f"search on {len(images)} validation images, {goal.text}",
            ),
            images=len(images),
            goal=goal.text,
            folds=0 if validation is None else validation.folds,
            classes=classes,
            default=figures_of(default),
            chosen=figures_of(chosen),
            validated=None if validation is None else figures_of(validation.totals),
            gain=gain,
            gain_interval=gain_interval,
            warnings=(*goal.shortfalls(chosen, self.class_names), *_warnings(table, classes, gain, goal)),
        )


def figures_of(totals: Totals, index: int | None = None) -> Figures:
    """Figures of one class, or of all together, from totals of arrays (C,)."""
    chosen = slice(None) if index is None else slice(index, index + 1)
    positives = totals.positives[chosen]
    pairs, with_defect = int(totals.images[chosen].sum()), int(positives.sum())

    def share(values: NDArray[np.float64], whole: int) -> float | None:
        return float(values[chosen].sum()) / whole if whole else None

    return Figures(
        kaggle_dice=share(totals.dice, pairs),
        positive_dice=share(totals.positive_dice, with_defect),
        recall=share(totals.hits, with_defect),
        false_alarms=share(totals.alarms, pairs - with_defect),
    )


def _gain(table: Table, validation: CrossValidation, group: NDArray[np.int64]) -> tuple[float, Interval]:
    """The gain over the defaults in cross-validation, and its 95 % interval over resamples of the groups."""
    dice, default_dice = validation.dice, table.dice([table.grid.default] * table.known.shape[1])

    def resampled(dice: NDArray[np.float64]) -> NDArray[np.float64]:
        nothing = np.zeros_like(table.true_px)  # only the Dice figures are used
        figures = bootstrap(Tally(dice, table.true_px, nothing, nothing, group))
        return figures.kaggle_dice + np.nan_to_num(figures.positive_dice)

    gain = sum(float((dice - default_dice)[pairs].mean()) for pairs in (table.known, table.positive) if pairs.any())
    # Both have the same resamples, so each difference belongs to one set of images.
    return gain, interval_of(resampled(dice) - resampled(default_dice), gain)


def _warnings(table: Table, classes: Sequence[ClassChoice], gain: float | None, goal: Goal) -> Iterator[str]:
    """Warnings about the images that the choice rests on; `gain` in Dice, None without cross-validation."""
    if gain is None:
        yield "there are too few images to cross-validate: how well the thresholds do on others is not known"
    for one in classes:
        if not one.images_with:
            yield f"none of the images shows {one.name}, so it gets the default thresholds"
        elif one.images_with < FEW_IMAGES:
            yield f"only {one.images_with} of the images show {one.name}: its thresholds may not hold on others"
    if goal == BEST_DICE and gain is not None and round(gain, 4) < 0:
        yield f"in cross-validation, thresholds chosen like this score {-gain:.4f} less than the defaults"
    yield from _dropped_regions(table, classes)
    if left_out := int((~table.known).sum()):
        why = "ignored pixels may hide the class there"
        yield f"{left_out} of {table.known.size} pairs of image and class are left out: {why}"


def _dropped_regions(table: Table, classes: Sequence[ClassChoice]) -> Iterator[str]:
    """Warnings of labelled regions that the network does find, but only in regions below the minimum area."""
    for index, one in enumerate(classes):
        regions, dropped_px, column = 0, [], 2 + table.grid.pixel.index(one.pixel)
        for image in table.images:
            of_class = image.regions_px[image.regions_px[:, 0] == index]
            regions += len(of_class)
            if image.gate[index] >= np.float32(one.gate):
                largest_px = of_class[:, column]
                dropped_px += of_class[(largest_px > 0) & (largest_px < one.min_area_px), 1].tolist()
        if dropped_px:
            dropped = f"{len(dropped_px)} of {regions} true regions, the largest of {max(dropped_px)} px"
            yield f"minimum area {one.min_area_px} px of {one.name} drops {dropped}"
