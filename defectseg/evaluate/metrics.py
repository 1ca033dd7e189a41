"""Pixel counts of each (image, class) pair, and the metrics computed from them.

Counts are keyed by pair, so no figure depends on batch size, order or number of processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectseg.data.folder import unknown_classes
from defectseg.errors import DataError
from defectseg.evaluate.bootstrap import Interval, Tally, bootstrap, interval_of, number_groups


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pixels of one class in one image: labelled, predicted, and both. Ignored pixels are not counted.

    `unknown`: ignored pixels may hide the class, see `unknown_classes`; the pair only counts in sums of pixels.
    """

    true_px: int
    predicted_px: int
    both_px: int
    unknown: bool = False

    @property
    def dice(self) -> float:
        """2 |both| / (|true| + |predicted|) in [0, 1]; 1 where both masks are empty, as in the Kaggle metric; NaN for
        an unknown pair.
        """
        if self.unknown:
            return float("nan")
        total_px = self.true_px + self.predicted_px
        return 2 * self.both_px / total_px if total_px else 1.0


Counts = dict[tuple[str, int], PairCounts]
"""By (ImageId, ClassId)."""


def count_pairs(
    image_id: str, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> Counts:
    """Count the pixels of one image, for each class.

    Args:
        image_id: the image's ImageId.
        predicted: bool (C, H, W), final masks.
        truth: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to leave out; None for none.
    """
    unknown = np.zeros(len(truth), np.bool_)
    if ignore is not None and ignore.any():
        unknown = unknown_classes(truth, ignore)
        predicted, truth = predicted & ~ignore, truth & ~ignore
    return {
        (image_id, class_id): PairCounts(
            int(np.count_nonzero(true)), int(np.count_nonzero(found)), int(np.count_nonzero(true & found)), bool(hidden)
        )
        for class_id, (found, true, hidden) in enumerate(zip(predicted, truth, unknown, strict=True), start=1)
    }


def dice_of(
    true_px: NDArray[np.int64], predicted_px: NDArray[np.int64], both_px: NDArray[np.int64]
) -> NDArray[np.float64]:
    """`PairCounts.dice` over arrays of counts that broadcast together."""
    total_px = true_px + predicted_px
    return np.where(total_px > 0, 2 * both_px / np.maximum(total_px, 1), 1.0)


@dataclass(frozen=True)
class Detection:
    """Detection of defective images: an image has a defect, or is reported, if any pixel is labelled, or predicted.

    Images without a visible defect are left out if ignored pixels may hide one. `precision` is the share of the
    reported images that have the defect, `recall` the share of the images with the defect that were reported; None
    where it would be 0 / 0.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class ClassMetrics:
    """The figures of one class, all in [0, 1]; None where a figure would be 0 / 0.

    `kaggle_dice` is the mean Dice over all images except the `unknown_pairs`, in which ignored pixels may hide the
    class; `all_empty` is the `kaggle_dice` of empty predictions; `positive_dice` is the mean over the images that have
    the class. `iou`, `precision` and `recall` are computed from pixels summed over the data set.
    """

    class_id: int
    name: str
    positive_pairs: int
    unknown_pairs: int
    kaggle_dice: float | None
    all_empty: float | None
    positive_dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    detection: Detection


@dataclass(frozen=True)
class Metrics:
    """The figures of a data set, all in [0, 1]; None where a figure would be 0 / 0.

    `kaggle_dice` is the mean Dice of all `pairs` except the `unknown_pairs`, in which ignored pixels may hide the
    class; `all_empty` is the `kaggle_dice` of empty predictions; `gain_over_empty` is their difference, in [-1, 1],
    with an interval of its own. `positive_dice` is the mean over pairs with a defect; `miou` is the mean data-set IoU
    of the classes that occur in the labels. `detection` is about a defect of any class. Intervals are about the
    `groups` of images; None where there is only one group.
    """

    images: int
    groups: int
    pairs: int
    positive_pairs: int
    unknown_pairs: int
    kaggle_dice: float
    kaggle_dice_interval: Interval | None
    all_empty: float
    gain_over_empty: float
    gain_over_empty_interval: Interval | None
    positive_dice: float | None
    positive_dice_interval: Interval | None
    miou: float | None
    miou_interval: Interval | None
    detection: Detection
    classes: tuple[ClassMetrics, ...]

    def to_json(self) -> dict[str, object]:
        """Plain containers, numbers and None, ready for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


@dataclass(frozen=True)
class Column:
    """A figure of a class, as the printed table and the report show it.

    Attributes:
        name: of the attribute of ClassMetrics.
        heading: above the column of the table.
        title: above the column of the report.
        of_all: name of the attribute of Metrics that stands for all classes; "": there is none.
        meaning: explains it in the report; "": it is not explained.
    """

    name: str
    heading: str
    title: str
    of_all: str = ""
    meaning: str = ""


COLUMNS = (
    Column("kaggle_dice", "Kaggle Dice", "Kaggle Dice", "kaggle_dice",
           "The mean Dice over all pairs of image and class. Most pairs are empty, so predicting nothing scores high; "
           "compare with that figure."),
    Column("all_empty", "all empty", "Predicting nothing", "all_empty"),
    Column("positive_dice", "positive Dice", "Dice where it is", "positive_dice",
           "The mean over the pairs with a labelled defect: how good the masks are."),
    Column("iou", "IoU", "IoU", "miou",
           "Pixels labelled and predicted divided by pixels labelled or predicted, both summed over all images. The "
           "mean takes the classes that occur in the labels."),
    Column("precision", "precision", "Pixel precision"),
    Column("recall", "recall", "Pixel recall"),
)  # fmt: skip


def summarise(counts: Counts, class_names: Sequence[str], groups: Mapping[str, str] | None = None) -> Metrics:
    """Compute the figures of a data set from its counts.

    Args:
        counts: a pair for each image and each of ClassId 1..len(class_names).
        class_names: item c names ClassId c + 1.
        groups: ImageId -> group; other images are groups of their own. None: all are.

    Raises:
        DataError: there is no image, or every pair is unknown.
    """
    image_ids = sorted({image_id for image_id, _ in counts})
    if not image_ids:
        raise DataError("There is no image to score. Choose a folder or subset that holds at least one.")
    tally = tabulate(counts, image_ids, len(class_names), groups)
    dice, positive, known = tally.dice, tally.positive, tally.known
    if not known.any():
        raise DataError("Nothing can be scored: ignored pixels may hide every class in all images. Choose others.")
    classes = tuple(_class_metrics(tally, index, name) for index, name in enumerate(class_names))
    kaggle_dice, all_empty = float(dice[known].mean()), float((~positive[known]).mean())
    positive_dice = _mean_or_none(dice[positive])
    miou = _mean_or_none([one.iou for one in classes if one.positive_pairs and one.iou is not None])
    resampled, number = bootstrap(tally), int(tally.group.max()) + 1

    def interval(values: NDArray[np.float64], point: float | None) -> Interval | None:
        return None if point is None or number < 2 else interval_of(values, point)

    return Metrics(
        images=len(dice),
        groups=number,
        pairs=dice.size,
        positive_pairs=int(positive.sum()),
        unknown_pairs=int((~known).sum()),
        kaggle_dice=kaggle_dice,
        kaggle_dice_interval=interval(resampled.kaggle_dice, kaggle_dice),
        all_empty=all_empty,
        gain_over_empty=kaggle_dice - all_empty,
        gain_over_empty_interval=interval(resampled.gain_over_empty, kaggle_dice - all_empty),
        positive_dice=positive_dice,
        positive_dice_interval=interval(resampled.positive_dice, positive_dice),
        miou=miou,
        miou_interval=interval(resampled.miou, miou),
        detection=_detect(tally.defective, tally.flagged, tally.defective | tally.sound),
        classes=classes,
    )


def headline(metrics: Metrics) -> dict[str, float | None]:
    """The few figures for log lines and model files."""
    return {name: getattr(metrics, name) for name in ("kaggle_dice", "all_empty", "positive_dice", "miou")}


def decimals(value: float | None) -> str:
    """A figure in [0, 1] with four decimals; a dash for None."""
    return "–" if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference with its sign and four decimals."""
    return f"{value:+.4f}".replace("-", "−")


def tabulate(
    counts: Counts, image_ids: Sequence[str], num_classes: int, groups: Mapping[str, str] | None = None
) -> Tally:
    """Counts as arrays (N, C).

    Args:
        counts: with a pair for each of the images and each of ClassId 1..num_classes.
        image_ids: N images, sorted, so that sums are reproducible to the last bit.
        num_classes: C.
        groups: ImageId -> group; other images are groups of their own. None: all are.
    """
    pairs = [counts[image_id, class_id] for image_id in image_ids for class_id in range(1, num_classes + 1)]
    table = np.array([(one.true_px, one.predicted_px, one.both_px, one.unknown) for one in pairs], np.int64)
    true_px, predicted_px, both_px, unknown = table.T.reshape(4, len(image_ids), num_classes)
    dice = np.where(unknown, np.nan, dice_of(true_px, predicted_px, both_px))
    group = number_groups(map((groups or {}).get, image_ids, image_ids))
    return Tally(dice, true_px, predicted_px, both_px, group)


def _class_metrics(tally: Tally, index: int, name: str) -> ClassMetrics:
    dice, positive, predicted = tally.dice[:, index], tally.positive[:, index], tally.predicted_px[:, index] > 0
    known = tally.known[:, index]
    sums = (int(px[:, index].sum()) for px in (tally.true_px, tally.predicted_px, tally.both_px))
    true_px, predicted_px, both_px = sums
    return ClassMetrics(
        class_id=index + 1,
        name=name,
        positive_pairs=int(positive.sum()),
        unknown_pairs=int((~known).sum()),
        kaggle_dice=_mean_or_none(dice[known]),
        all_empty=_mean_or_none(~positive[known]),
        positive_dice=_mean_or_none(dice[positive]),
        iou=_ratio(both_px, true_px + predicted_px - both_px),
        precision=_ratio(both_px, predicted_px),
        recall=_ratio(both_px, true_px),
        detection=_detect(positive, predicted, known),
    )


def _detect(positive: NDArray[np.bool_], predicted: NDArray[np.bool_], known: NDArray[np.bool_]) -> Detection:
    positive, predicted = positive[known], predicted[known]
    found, false, missed = (
        int(np.count_nonzero(images)) for images in (positive & predicted, ~positive & predicted, positive & ~predicted)
    )
    return Detection(
        true_positives=found,
        false_positives=false,
        false_negatives=missed,
        true_negatives=len(positive) - found - false - missed,
        precision=_ratio(found, found + false),
        recall=_ratio(found, found + missed),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean_or_none(values: ArrayLike) -> float | None:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else None
