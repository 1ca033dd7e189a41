"""What slips through and what is stopped in vain: rates of sheets, groups and regions, and how sure they are.

A sheet is defective if a pixel is labelled, and flagged if a pixel is predicted. A defective sheet that is not flagged
is missed; a sound one that is flagged is stopped in vain. A sheet without a label in which ignored pixels may hide a
defect is neither. A group, such as a coil, is missed if it has defective sheets and none of them is flagged; it is
stopped in vain if all its sheets are sound and one is flagged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import draw_groups, interval_of, number_groups
from defectseg.evaluate.metrics import Counts
from defectseg.evaluate.sheets import Sheet
from defectseg.files import atomic_csv

HELD_RATES = (0.01, 0.02, 0.05)
_MOST_POINTS = 60
_NEIGHBOURS = 3  # points on either side of the shipped one that are always listed

_Flags = NDArray[np.bool_]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """`count` out of `of`, and bounds that hold the true share with 95 % probability.

    They are those of Clopper and Pearson for groups, and for sheets that are groups of their own; else come from
    resampled groups, and where nothing or everything was seen, from the number of groups. `share` is None for 0 / 0, a
    bound where it cannot be told, for example from one group.
    """

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PartRates:
    """The rates of all classes, of one class, or of one size.

    Attributes:
        name: of the class or size, or "all".
        missed: of the defective sheets, or those with the class, or those whose largest defect has the size.
        stopped: of the sound sheets, or those without the class; of a size: those whose largest prediction has it.
        regions_found: labelled regions of which at least 10 % of the pixels are predicted in their class.
        false_regions: predicted regions that touch no label of their class, by the number of images.
    """

    name: str
    missed: Rate
    stopped: Rate
    regions_found: Rate
    false_regions: Rate


@dataclass(frozen=True)
class Point:
    """Sheets with a sheet score of at least `threshold` are flagged; None: by the shipped thresholds, from the masks.

    `more_missed` and `more_stopped` compare with the shipped point; negative means fewer.
    """

    threshold: float | None
    missed: int
    stopped: int
    more_missed: int
    more_stopped: int


@dataclass(frozen=True)
class TradeOff:
    """The other rate, where one is held at 1, 2 or 5 % by the best threshold on the sheet score.

    Attributes:
        held, rate: "missed" or "stopped", and its limit.
        threshold: from which on sheets are flagged; None if the rate cannot be told from so few sheets, see `note`.
        other: stopped or missed. Each resample chooses a threshold of its own, so bounds include the luck of that.
        note: why nothing can be told, or "".
    """

    held: str
    rate: float
    threshold: float | None = None
    other: Rate | None = None
    note: str = ""


@dataclass(frozen=True)
class Rates:
    """The rates of a data set, see the head of this module.

    Attributes:
        groups: number of groups.
        images_alone: whether every image is its own group.
        left_out: sheets that are neither defective nor sound.
        all, classes, sizes: rates of sheets and regions; sizes below 100, 1,000 and 10,000 px, and larger.
        missed_groups, stopped_groups: groups.
        shipped: the shipped thresholds.
        points: others by rising threshold, where none is better in both rates; at most about 60.
        trade_offs: see TradeOff. It and `points` are empty without sheet scores, defective or sound sheets.
        names: "sound" and the classes: rows (labelled) and columns (predicted) of the confusions.
        confusion_px: pixels, see Sheet.
        confusion_sheets: sheets by each class that they have but that was not predicted (or sound, if there is none),
            and each predicted class that they do not have (or sound). On the diagonal: sheets with the class, where it
            was predicted, and sound sheets that were not flagged.
        notes: what the figures do not prove, in sentences.
    """

    groups: int
    images_alone: bool
    left_out: int
    all: PartRates
    classes: list[PartRates]
    sizes: list[PartRates]
    missed_groups: Rate
    stopped_groups: Rate
    shipped: Point
    points: list[Point]
    trade_offs: list[TradeOff]
    names: list[str]
    confusion_px: list[list[int]]
    confusion_sheets: list[list[int]]
    notes: list[str]

    def to_json(self) -> dict[str, object]:
        """Plain containers, numbers and None, ready for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def rates_of(
    counts: Counts, sheets: Mapping[str, Sheet], class_names: Sequence[str], groups: Mapping[str, str] | None = None
) -> Rates:
    """The rates of a data set.

    Args:
        counts: a pair for each image and each of ClassId 1..len(class_names).
        sheets: by ImageId, of the same images.
        class_names: item c names ClassId c + 1.
        groups: ImageId -> group; other images are groups of their own. None: all are.
    """
    table = _Table(counts, sheets, len(class_names), groups or {})
    classes = [_Part(name, class_id) for class_id, name in enumerate(class_names, start=1)]
    every, *others = _part_rates(table, [_Part("all"), *classes, *_SIZES])
    missed_groups, stopped_groups = _group_rates(table)
    shipped = Point(None, every.missed.count, every.stopped.count, 0, 0)
    notes = _notes(table, every, [one.name for one in others[: len(classes)] if not one.missed.of])
    has_curve = table.is_scored and every.missed.of and every.stopped.of
    return Rates(
        groups=table.groups,
        images_alone=table.groups == len(table.group),
        left_out=len(table.group) - every.missed.of - every.stopped.of,
        all=every,
        classes=others[: len(classes)],
        sizes=others[len(classes) :],
        missed_groups=missed_groups,
        stopped_groups=stopped_groups,
        shipped=shipped,
        points=_points(table, shipped) if has_curve else [],
        trade_offs=_trade_offs(table) if has_curve else [],
        names=["sound", *class_names],
        confusion_px=np.sum([sheet.confusion for sheet in table.sheets], axis=0).tolist(),
        confusion_sheets=_confused_sheets(table),
        notes=notes,
    )


class _Table:
    """What the rates need of the N images, sorted by ImageId.

    Attributes:
        labelled, predicted, known: bool (N, C): a pixel is labelled, or predicted; it is known if the class is there.
        defective, sound, flagged: bool (N,).
        group: int64 (N,), numbered from 0.
        groups: their number.
        score: float64 (N,), the sheet score; NaN where it is not known.
        sheets: the N sheets.
    """

    def __init__(self, counts: Counts, sheets: Mapping[str, Sheet], classes: int, groups: Mapping[str, str]) -> None:
        image_ids = sorted(sheets)
        pairs = [counts[image_id, class_id] for image_id in image_ids for class_id in range(1, classes + 1)]
        flags = np.array([(one.true_px > 0, one.predicted_px > 0, not one.unknown) for one in pairs], np.bool_)
        self.labelled, self.predicted, self.known = flags.T.reshape(3, len(image_ids), classes)
        self.defective, self.flagged = self.labelled.any(axis=1), self.predicted.any(axis=1)
        self.sound = ~self.defective & self.known.all(axis=1)
        self.group = number_groups(groups.get(image_id, image_id) for image_id in image_ids)
        self.groups = int(self.group.max()) + 1
        self.sheets = [sheets[image_id] for image_id in image_ids]
        self.score = np.array([np.nan if one.score is None else one.score for one in self.sheets])

    @property
    def is_scored(self) -> bool:
        """Whether all sheets that are defective or sound have a score."""
        return not np.isnan(self.score[self.defective | self.sound]).any()

    def groups_with(self, images: _Flags) -> _Flags:
        """Bool (G,): the groups that have one of these images, bool (N,)."""
        return np.bincount(self.group, images, minlength=self.groups) > 0


@dataclass(frozen=True)
class _Part:
    """A class (0: all), or regions of a size from `low` to below `high` px."""

    name: str
    class_id: int = 0
    low: float = 0
    high: float = math.inf

    def holds(self, px: NDArray[np.int64]) -> _Flags:
        return (self.low <= px) & (px < self.high)


_SIZES = (
    _Part("below 100 px", high=100),
    _Part("100 to 999 px", low=100, high=1_000),
    _Part("1,000 to 9,999 px", low=1_000, high=10_000),
    _Part("10,000 px and more", low=10_000),
)


def _part_rates(table: _Table, parts: Sequence[_Part]) -> list[PartRates]:
    """The rates of each part. All are resampled together."""
    labelled, predicted = ([one.labelled for one in table.sheets], [one.predicted for one in table.sheets])
    largest_defect, largest_found = (
        np.array([max((px for _, px, _ in regions), default=0) for regions in of_sheets], np.int64)
        for of_sheets in (labelled, predicted)
    )
    ratios: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = []
    for part in parts:
        index = part.class_id - 1
        has, flagged, sound = table.defective, table.flagged, table.sound
        if part.class_id:
            has, flagged = table.labelled[:, index], table.predicted[:, index]
            sound = ~has & table.known[:, index]
        has = has & part.holds(largest_defect)
        regions, found = _per_image(labelled, part)
        claimed, true = _per_image(predicted, part)
        ratios += [(has & ~flagged, has), (sound & flagged & part.holds(largest_found), sound)]
        ratios += [(found, regions), (claimed - true, np.ones_like(claimed))]
    parts_and_wholes = np.array(ratios, np.float64).reshape(2 * len(ratios), -1).T
    drawn = np.concatenate([weights @ parts_and_wholes for weights in draw_groups(table.group)])
    rates = []
    for number, (count, of) in enumerate(parts_and_wholes.T.reshape(len(ratios), 2, -1)):
        with np.errstate(invalid="ignore"):
            shares = drawn[:, 2 * number] / drawn[:, 2 * number + 1]
        of_sheets = number % 4 < 2
        if of_sheets and table.groups == len(table.group):
            rates.append(_exact(count.sum(), of.sum()))
        else:
            rates.append(_resampled(count.sum(), of.sum(), shares, table.groups_with(of > 0)))
    rates[3::4] = [rate if rate.count else replace(rate, high=None) for rate in rates[3::4]]  # it is no share
    return [PartRates(part.name, *rates[4 * number : 4 * number + 4]) for number, part in enumerate(parts)]


def _per_image(of_sheets: Sequence[Sequence[tuple[int, int, bool]]], part: _Part) -> NDArray[np.int64]:
    """The regions of a part in each image, and those whose flag is set, int64 (2, N)."""
    own = [
        [flag for class_id, px, flag in regions if part.class_id in (0, class_id) and part.low <= px < part.high]
        for regions in of_sheets
    ]
    return np.array([[len(flags), sum(flags)] for flags in own], np.int64).T


def _exact(count: int, of: int) -> Rate:
    """A share of independent things, with the bounds of Clopper and Pearson."""
    from scipy.stats import binomtest

    count, of = int(count), int(of)
    if not of:
        return Rate(0, 0, None, None, None)
    bounds = binomtest(count, of).proportion_ci(0.95, method="exact")
    return Rate(count, of, count / of, float(bounds.low), float(bounds.high))


def _resampled(count: float, of: float, shares: _Floats, groups: _Flags) -> Rate:
    """A share with bounds from those of resamples, where there are at least two `groups`, bool (G,).

    No resample shows what never happened, so a share of 0 or 1 has the bounds of as many groups of their own.
    """
    if not of or groups.sum() < 2:
        return Rate(int(count), int(of), count / of if of else None, None, None)
    share = float(count / of)
    interval = interval_of(shares, share)
    if share in (0, 1):
        interval = _exact(share * groups.sum(), groups.sum())
    return Rate(int(count), int(of), share, interval.low, interval.high)


def _group_rates(table: _Table) -> tuple[Rate, Rate]:
    """Missed and stopped groups."""
    defective, sound = table.groups_with(table.defective), ~table.groups_with(~table.sound)
    missed = defective & ~table.groups_with(table.defective & table.flagged)
    stopped = sound & table.groups_with(table.flagged)
    return _exact(missed.sum(), defective.sum()), _exact(stopped.sum(), sound.sum())


def _points(table: _Table, shipped: Point) -> list[Point]:
    defective, sound = (np.sort(table.score[images]) for images in (table.defective, table.sound))
    thresholds = np.unique(defective)  # in between, more sheets would be stopped and none less missed
    missed = np.searchsorted(defective, thresholds)
    stopped = len(sound) - np.searchsorted(sound, thresholds)
    best = np.flatnonzero(np.diff(stopped, prepend=-1))  # a higher threshold that stops as many only misses more
    near = np.searchsorted(missed[best], shipped.missed) + np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    spread = np.linspace(0, len(best) - 1, _MOST_POINTS).round().astype(int)
    chosen = best[np.unique(np.clip([*near, *spread], 0, len(best) - 1))]
    rows = zip(*(values[chosen].tolist() for values in (thresholds, missed, stopped)), strict=True)
    return [Point(at, lost, held, lost - shipped.missed, held - shipped.stopped) for at, lost, held in rows]


def _trade_offs(table: _Table) -> list[TradeOff]:
    """The trade-offs of the data set, with bounds from resamples that each choose their own thresholds."""
    judged = table.defective | table.sound
    thresholds, step = np.unique(table.score[judged], return_inverse=True)
    defective = table.defective[judged]
    goals = list(product(("missed", "stopped"), HELD_RATES))

    def solve(weights: _Floats) -> list[tuple[int, float, float]]:
        """For each goal the number of the threshold, the other sheets, and their share."""
        lost = np.cumsum([0, *np.bincount(step, weights * defective, len(thresholds))])
        kept = np.cumsum([0, *np.bincount(step, weights * ~defective, len(thresholds))])
        stopped, solved = kept[-1] - kept, []
        for held, rate in goals:
            if held == "missed":
                at = int(np.searchsorted(lost, rate * lost[-1] + 1e-9, side="right")) - 1
                solved.append((at, stopped[at], stopped[at] / max(1, kept[-1])))
            else:
                at = int(np.searchsorted(-stopped, -rate * kept[-1] - 1e-9))
                solved.append((at, lost[at], lost[at] / max(1, lost[-1])))
        return solved

    drawn = np.array(
        [
            [share for _, _, share in solve(weights)]
            for block in draw_groups(table.group)
            for weights in block[:, judged]
        ]
    )
    steps = [*thresholds.tolist(), math.nextafter(thresholds[-1], 2)]
    found = []
    for number, ((held, rate), (at, count, _)) in enumerate(zip(goals, solve(np.ones(len(step))), strict=True)):
        of_held, of_other = (table.defective, table.sound)[:: 1 if held == "missed" else -1]
        kind, n = "defective" if held == "missed" else "sound", int(of_held.sum())
        if n * rate < 1:
            note = f"A rate of {rate:.0%} cannot be told from {n:,} {kind} sheets; that takes {math.ceil(1 / rate)}."
            found.append(TradeOff(held, rate, note=note))
        else:
            other = _resampled(count, of_other.sum(), drawn[:, number], table.groups_with(of_other))
            found.append(TradeOff(held, rate, steps[at], other))
    return found


def _confused_sheets(table: _Table) -> list[list[int]]:
    confusion = np.zeros((table.labelled.shape[1] + 1,) * 2, np.int64)
    confusion[0, 0] = np.count_nonzero(table.sound & ~table.flagged)
    for labelled, predicted, known in zip(table.labelled, table.predicted, table.known, strict=True):
        both = np.flatnonzero(labelled & predicted) + 1
        confusion[both, both] += 1
        lost, extra = (np.flatnonzero(one) + 1 for one in (labelled & ~predicted, predicted & ~labelled & known))
        if lost.size or extra.size:
            confusion[np.ix_(lost if lost.size else [0], extra if extra.size else [0])] += 1
    return [list(map(int, row)) for row in confusion]


def _notes(table: _Table, every: PartRates, without_region: Sequence[str]) -> list[str]:
    notes = []
    if table.groups < 2:
        notes.append("All images belong to one group, so it cannot be told how sure the rates of sheets are.")
    for rate, images, kind, verb in (
        (every.missed, table.defective, "defective", "missed"), (every.stopped, table.sound, "sound", "stopped"),
    ):  # fmt: skip
        groups = int(table.groups_with(images).sum())
        if not rate.of:
            notes.append(f"No sheet is {kind}, so it cannot be told how many are {verb}.")
        elif not rate.count:
            proves = f"less than {min(1, 3 / groups):.1%} are {verb} (rule of three: 3 / {groups:,} groups)"
            proves = f"no more than that: {groups} groups are too few for a bound" if groups < 4 else proves
            notes.append(f"None of the {rate.of:,} {kind} sheets is {verb}. With 95 % confidence this proves {proves}.")
    if without_region:
        notes.append(f"No image shows {', '.join(without_region)}, so it cannot be told how much of it is missed.")
    if not table.is_scored:
        notes.append("Other operating points are not known without the sheet scores that `predict` writes.")
    return notes


def write_sheets(
    path: Path, counts: Counts, sheets: Mapping[str, Sheet], groups: Mapping[str, str] | None = None
) -> None:
    """Write a row for each image, sorted by ImageId: sheets.csv, see docs/formats.md. Raises ResourceError."""
    classes = range(1, 1 + max(class_id for _, class_id in counts))
    columns = ("ImageId", "group", "label", "flagged", "sheet_score", "largest_defect_px", "regions", "regions_found")
    with atomic_csv(path, (*columns, "false_regions"), for_people=True) as write:
        for image_id, sheet in sorted(sheets.items()):
            pairs = [counts[image_id, class_id] for class_id in classes if (image_id, class_id) in counts]
            unknown = "unknown" if any(one.unknown for one in pairs) else "sound"
            label = "defective" if any(one.true_px for one in pairs) else unknown
            flagged = int(any(one.predicted_px for one in pairs))
            score = "" if sheet.score is None else f"{sheet.score:.4f}"
            largest_px, found = max((px for _, px, _ in sheet.labelled), default=0), [one[2] for one in sheet.labelled]
            false = sum(not touches for _, _, touches in sheet.predicted)
            group = (groups or {}).get(image_id, "")
            write([(image_id, group, label, flagged, score, largest_px, len(found), sum(found), false)])
