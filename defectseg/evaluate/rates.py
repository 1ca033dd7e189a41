"""What slips through and what is stopped in vain: rates of sheets, groups and regions, and how sure they are.

`Tally` says which sheets are defective, sound and flagged. A defective sheet that is not flagged is missed; a sound one
that is flagged is stopped in vain. A sheet without a label in which ignored pixels may hide a defect is neither. A
group, such as a coil, is missed if it has defective sheets and none of them is flagged; it is stopped in vain if all
its sheets are sound and one is flagged.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import Tally, draw_groups, interval_of
from defectseg.evaluate.metrics import Counts, tabulate
from defectseg.evaluate.sheets import Regions, Sheet

_HELD_RATES = (0.01, 0.02, 0.05)
SIZES_PX = {
    "below 100 px": (0, 100),
    "100 to 999 px": (100, 1_000),
    "1,000 to 9,999 px": (1_000, 10_000),
    "10,000 px and more": (10_000, math.inf),
}
_MOST_POINTS = 60
_NEIGHBOURS = 3  # points on either side of the shipped one that are always listed

_Flags = NDArray[np.bool_]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """`count` out of `of`, and bounds that hold the true share with 95 % probability.

    They are those of Clopper and Pearson for groups, and for sheets that are groups of their own, else see
    `resampled`. `share` is None for 0 / 0, a bound where it cannot be told, for example from one group.
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
    image_ids = sorted(sheets)
    table = _Table(tabulate(counts, image_ids, len(class_names), groups), [sheets[one] for one in image_ids])
    every, *parts = _part_rates(table, class_names)
    missed_groups, stopped_groups = _group_rates(table)
    shipped = Point(None, every.missed.count, every.stopped.count, 0, 0)
    has_curve = table.is_scored and every.missed.of and every.stopped.of
    return Rates(
        groups=table.groups,
        images_alone=table.alone,
        left_out=len(table.group) - every.missed.of - every.stopped.of,
        all=every,
        classes=parts[: len(class_names)],
        sizes=parts[len(class_names) :],
        missed_groups=missed_groups,
        stopped_groups=stopped_groups,
        shipped=shipped,
        points=_points(table, shipped) if has_curve else [],
        trade_offs=_trade_offs(table) if has_curve else [],
        names=["sound", *class_names],
        confusion_px=np.sum([sheet.confusion for sheet in table.sheets], axis=0).tolist(),
        confusion_sheets=_confused_sheets(table),
        notes=_notes(table, every, [one.name for one in parts[: len(class_names)] if not one.missed.of]),
    )


class _Table:
    """What the rates need of the N images, sorted by ImageId.

    Attributes:
        labelled, predicted, known: bool (N, C): a pixel is labelled, or predicted; it is known if the class is there.
        defective, sound, flagged: bool (N,), see Tally.
        group: int64 (N,), numbered from 0; `groups`: how many; `alone`: whether every image is its own.
        score: float64 (N,), the sheet score; NaN where it is not known.
        sheets: the N sheets.
    """

    def __init__(self, tally: Tally, sheets: Sequence[Sheet]) -> None:
        self.labelled, self.predicted, self.known = tally.positive, tally.predicted_px > 0, tally.known
        self.defective, self.sound, self.flagged, self.group = tally.defective, tally.sound, tally.flagged, tally.group
        self.groups = int(self.group.max()) + 1
        self.alone = self.groups == len(sheets)
        self.sheets = sheets
        self.score = np.array([np.nan if one.score is None else one.score for one in sheets])
        self.is_scored = not np.isnan(self.score[self.defective | self.sound]).any()

    def groups_with(self, images: _Flags) -> _Flags:
        """Bool (G,): the groups that have one of these images, bool (N,)."""
        return np.bincount(self.group, images, minlength=self.groups) > 0


def _part_rates(table: _Table, class_names: Sequence[str]) -> list[PartRates]:
    """The rates of all classes, of each class and of each size. All are resampled together."""
    parts = [("all", 0, 0.0, math.inf), *((name, number, 0.0, math.inf) for number, name in enumerate(class_names, 1))]
    parts += [(name, 0, low, high) for name, (low, high) in SIZES_PX.items()]
    labelled, predicted = [one.labelled for one in table.sheets], [one.predicted for one in table.sheets]
    ratios = []
    for _, class_id, low, high in parts:
        has, flagged, sound = table.defective, table.flagged, table.sound
        if class_id:
            has, flagged, known = (one[:, class_id - 1] for one in (table.labelled, table.predicted, table.known))
            sound = ~has & known
        (regions, found, of_size), (claimed, true, claimed_size) = (
            _per_image(of_sheets, class_id, low, high) for of_sheets in (labelled, predicted)
        )
        ratios += [(has & of_size & ~flagged, has & of_size), (sound & flagged & claimed_size, sound)]
        ratios += [(found, regions), (claimed - true, np.ones_like(claimed))]
    sums = np.array(ratios, np.float64)  # (ratios, 2, N)
    drawn = np.concatenate([sums @ weights.T for weights in draw_groups(table.group)], axis=2)
    rates = []
    for number, ((count, of), (counts, ofs)) in enumerate(zip(sums, drawn, strict=True)):
        if table.alone and number % 4 < 2:
            rates.append(_exact(count.sum(), of.sum()))
        else:
            groups, is_share = table.groups_with(of > 0), number % 4 < 3  # false regions are none
            rates.append(resampled(count.sum(), of.sum(), _shares(counts, ofs), groups, is_share=is_share))
    return [PartRates(part[0], *rates[4 * number : 4 * number + 4]) for number, part in enumerate(parts)]


def _per_image(of_sheets: Sequence[Regions], class_id: int, low: float, high: float) -> NDArray[np.int64]:
    """Int64 (3, N): the regions of a class (0: all) and size, those whose flag is set, and if the largest has the size.

    Sheets without any region of the classes pass as of all sizes.
    """
    rows = []
    for regions in of_sheets:
        own = [flag for number, px, flag in regions if class_id in (0, number) and low <= px < high]
        rows.append((len(own), sum(own), low <= max((px for _, px, _ in regions), default=0) < high))
    return np.array(rows, np.int64).T


def _exact(count: float, of: float) -> Rate:
    """A share of independent things, with the bounds of Clopper and Pearson."""
    if not of:
        return Rate(0, 0, None, None, None)
    return Rate(int(count), int(of), float(count / of), *_clopper_pearson(count, of))


def _clopper_pearson(count: float, of: float) -> tuple[float, float]:
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0


def _shares(count: _Floats, of: _Floats) -> _Floats:
    """Of each resample; NaN where it has none of the sheets in question."""
    return np.where(of > 0, count, np.nan) / np.maximum(of, 1e-9)


def resampled(count: float, of: float, shares: _Floats, groups: _Flags, *, is_share: bool = True) -> Rate:
    """A share with bounds from those of resamples, float64 (R,), NaN where one has none.

    `groups`, bool (G,), are those that have such sheets; of one alone nothing can be told.
    Resamples of few faults end too early: a bound lay on the wrong side of the truth in up to 14 of 100 data sets. So
    they are widened to the bounds of Clopper and Pearson for as many independent sheets as vary as much (Korn and
    Graubard 1998); for a share of 0 or 1, which does not vary, for as many as there are groups.
    """
    if not of or groups.sum() < 2:
        return Rate(int(count), int(of), float(count / of) if of else None, None, None)
    share = float(count / of)
    interval = interval_of(shares, share)
    if not is_share:
        return Rate(int(count), int(of), share, interval.low, interval.high if count else None)
    varying = share * (1 - share) / max(float(np.nanvar(shares)), 1e-12)
    independent = min(of, varying) if varying else float(groups.sum())
    low, high = _clopper_pearson(share * independent, independent)
    return Rate(int(count), int(of), share, min(low, interval.low), max(high, interval.high))


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
    """Seen from above, with negative scores, to hold stopped sheets is the same as to hold missed ones."""
    return [
        *_held(table, "missed", table.score, table.defective, table.sound, "defective"),
        *_held(table, "stopped", -table.score, table.sound, table.defective, "sound"),
    ]


def _held(table: _Table, held: str, score: _Floats, lost: _Flags, other: _Flags, kind: str) -> Iterator[TradeOff]:
    """The share of `other` sheets from the highest threshold on below which at most 1, 2 or 5 % of `lost` are."""
    order = np.argsort(score)
    first = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)  # of the sheets with each score
    for rate in _HELD_RATES:
        if lost.sum() * rate < 1:
            percent, least = f"{100 * rate:.0f} %", f"{1 / rate:.0f}"
            why = f"A rate of {percent} cannot be told from {lost.sum():,} {kind} sheets, only from {least}."
            yield TradeOff(held, rate, note=why)
            continue
        steps, shares = [], []
        for weights in chain([np.ones((1, len(score)))], draw_groups(table.group)):
            below, from_here = (weights[:, order] * images[order] for images in (lost, other))
            below = (np.cumsum(below, axis=1) - below)[:, first]
            from_here = np.cumsum(from_here[:, ::-1], axis=1)[:, ::-1]
            step = (below <= rate * (weights @ lost)[:, None] + 1e-9).sum(axis=1) - 1
            steps.append(step)
            shares.append(_shares(from_here[np.arange(len(step)), first[step]], weights @ other))
        share, *drawn = np.concatenate(shares)
        at = float(score[order][first[steps[0][0]]])
        threshold = at if held == "missed" else math.nextafter(-at, 2)
        count = round(share * other.sum())
        yield TradeOff(held, rate, threshold, resampled(count, other.sum(), np.array(drawn), table.groups_with(other)))


def _confused_sheets(table: _Table) -> list[list[int]]:
    lost = _or_none(table.labelled & ~table.predicted)
    confusion = lost.T @ _or_none(table.predicted & ~table.labelled & table.known)
    confusion[1:, 1:] += np.diag((table.labelled & table.predicted).sum(axis=0))
    confusion[0, 0] = np.count_nonzero(table.sound & ~table.flagged)
    rows: list[list[int]] = confusion.tolist()
    return rows


def _or_none(flags: _Flags) -> NDArray[np.int64]:
    """Flags (N, C) after a column that is set where they have none, int64 (N, C + 1)."""
    return np.column_stack([~np.any(flags, axis=1), flags]).astype(np.int64)


def _notes(table: _Table, every: PartRates, without_region: Sequence[str]) -> list[str]:
    notes = []
    if table.groups < 2:
        notes.append("All images belong to one group, so it cannot be told how sure the rates are.")
    for rate, images, kind in (every.missed, table.defective, "missed"), (every.stopped, table.sound, "stopped"):
        groups, sheets = table.groups_with(images).sum(), "defective sheet" if kind == "missed" else "sound sheet"
        if not rate.of:
            notes.append(f"There is no {sheets}, so it cannot be told how many are {kind}.")
        elif not rate.count:
            most = f"at most {300 / groups:.1f} % are (rule of three: 3 / {groups:,} groups)"
            proves = most if groups > 3 else "nothing"
            notes.append(f"No {sheets} of {rate.of:,} is {kind}. With 95 % confidence, this proves that {proves}.")
    if without_region:
        notes.append(f"No image shows {', '.join(without_region)}, so it cannot be told how much of it is missed.")
    if not table.is_scored:
        notes.append("Other operating points are not known without the sheet scores that `predict` writes.")
    return notes
