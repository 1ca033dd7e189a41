import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from defectseg.evaluate.bootstrap import draw_groups, number_groups
from defectseg.evaluate.metrics import Counts, PairCounts
from defectseg.evaluate.rates import PartRates, Rate, Rates, rates_of
from defectseg.evaluate.sheets import Sheet

NAMES = ("pits", "cracks")
SIZES = ((0, 100), (100, 1000), (1000, 10_000), (10_000, 10**9))


class _Case:
    """Random sheets with two classes, some with unknown pairs, in groups of several or alone."""

    def __init__(self, seed: int, images: int, groups: int | None = None, *, scored: bool = True) -> None:
        generator = np.random.default_rng(seed)
        self.counts: Counts = {}
        self.sheets: dict[str, Sheet] = {}
        for number in range(images):
            regions: list[list[tuple[int, int, bool]]] = [[], []]
            is_defective = generator.random() < 0.5
            for class_id in (1, 2):
                for side, share in enumerate((0.6 * is_defective, 0.5 if is_defective else 0.15)):
                    if generator.random() < share:
                        for _ in range(generator.integers(1, 4)):
                            px = int(10 ** generator.uniform(0.5, 4.6))
                            regions[side].append((class_id, px, bool(generator.random() < 0.6)))
                true_px, found_px = (sum(px for number, px, _ in side if number == class_id) for side in regions)
                unknown = bool(generator.random() < 0.1) and not true_px
                self.counts[f"{number:03}", class_id] = PairCounts(true_px, found_px, 0, unknown)
            score = round(float(np.clip(generator.normal(0.7 if is_defective else 0.4, 0.2), 0, 1)), 2)
            confusion = generator.integers(0, 99, (3, 3))
            self.sheets[f"{number:03}"] = Sheet(
                score if scored else None, tuple(regions[0]), tuple(regions[1]), confusion
            )
        self.groups = None if groups is None else {one: f"coil {int(one) % groups}" for one in self.sheets}

    def rates(self) -> Rates:
        return rates_of(self.counts, self.sheets, NAMES, self.groups)

    def group(self) -> Any:
        return number_groups((self.groups or {}).get(one, one) for one in sorted(self.sheets))

    def pair(self, image: str, class_id: int) -> PairCounts:
        return self.counts[image, class_id]

    def is_defective(self, image: str) -> bool:
        return any(self.pair(image, number).true_px for number in (1, 2))

    def is_sound(self, image: str) -> bool:
        return not any(self.pair(image, number).true_px or self.pair(image, number).unknown for number in (1, 2))

    def scores(self, images: Sequence[str]) -> tuple[list[float], list[float]]:
        """Those of the defective images, and those of the sound ones."""
        score = {image: self.sheets[image].score or 0.0 for image in images}
        return [score[one] for one in images if self.is_defective(one)], [
            score[one] for one in images if self.is_sound(one)
        ]

    def is_flagged(self, image: str) -> bool:
        return any(self.pair(image, number).predicted_px for number in (1, 2))


def _clopper_pearson(count: float, of: float) -> tuple[float, float]:
    low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
    return low, beta.ppf(0.975, count + 1, of - count) if count < of else 1.0


def _widened(shares: Sequence[float], part: float, whole: float) -> tuple[float, float]:
    """The bounds of resampled shares, and those of as many independent sheets as would vary as much."""
    low, high = np.quantile(shares, [0.025, 0.975])
    share, mean = part / whole, sum(shares) / len(shares)
    varied = sum((one - mean) ** 2 for one in shares) / len(shares)
    independent = min(whole, share * (1 - share) / varied)
    lowest, highest = _clopper_pearson(share * independent, independent)
    return min(low, lowest), max(high, highest)


def _assert_exact(rate: Rate, count: int, of: int) -> None:
    assert (rate.count, rate.of) == (count, of)
    if of:
        assert (rate.share, rate.low, rate.high) == pytest.approx((count / of, *_clopper_pearson(count, of)), abs=1e-6)
    else:
        assert rate.share is rate.low is rate.high is None


def _assert_resampled(
    rate: Rate, case: _Case, share_of: Callable[[Sequence[str]], tuple[float, float]], *, is_share: bool = True
) -> None:
    """`share_of` gives part and whole of a list of images, in which images may come several times."""
    images = sorted(case.sheets)
    part, whole = share_of(images)
    assert (rate.count, rate.of) == (part, whole)
    if not whole or rate.low is None or part in (0, whole):
        return
    shares = []
    for weights in np.concatenate(list(draw_groups(case.group()))):
        part_drawn, whole_drawn = share_of(
            [one for one, times in zip(images, weights, strict=True) for _ in range(int(times))]
        )
        shares += [part_drawn / whole_drawn] if whole_drawn else []
    low, high = np.quantile(shares, [0.025, 0.975])
    expected = _widened(shares, part, whole) if is_share else (min(low, part / whole), max(high, part / whole))
    assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-6)


def test_sheets_that_are_groups_of_their_own_have_exact_bounds() -> None:
    case = _Case(1, 60)
    rates, images = case.rates(), sorted(case.sheets)

    assert (rates.groups, rates.images_alone) == (60, True)
    defective, sound = [[one for one in images if kind(one)] for kind in (case.is_defective, case.is_sound)]
    missed, stopped = sum(not case.is_flagged(one) for one in defective), sum(case.is_flagged(one) for one in sound)
    for rate, of_groups, of, count in (
        (rates.all.missed, rates.missed_groups, len(defective), missed),
        (rates.all.stopped, rates.stopped_groups, len(sound), stopped),
    ):
        assert 0 < count < of
        _assert_exact(rate, count, of)
        _assert_exact(of_groups, count, of)
    assert rates.left_out == 60 - len(defective) - len(sound) > 0
    for class_id, (name, row) in enumerate(zip(NAMES, rates.classes, strict=True), start=1):
        assert row.name == name
        pairs = [case.pair(one, class_id) for one in images]
        has, free = [one for one in pairs if one.true_px], [one for one in pairs if not one.true_px and not one.unknown]
        _assert_exact(row.missed, sum(not one.predicted_px for one in has), len(has))
        _assert_exact(row.stopped, sum(one.predicted_px > 0 for one in free), len(free))
    for row, (low, high) in zip(rates.sizes, SIZES, strict=True):
        largest = {one: max((px for _, px, _ in case.sheets[one].labelled), default=0) for one in defective}
        of_size = [one for one, px in largest.items() if low <= px < high]
        _assert_exact(row.missed, sum(not case.is_flagged(one) for one in of_size), len(of_size))
        claimed = [max((px for _, px, _ in case.sheets[one].predicted), default=-1) for one in sound]
        _assert_exact(row.stopped, sum(low <= px < high for px in claimed), len(sound))
    json.dumps(asdict(rates), allow_nan=False)


def _parts(rates: Rates) -> list[tuple[PartRates, int, tuple[int, int]]]:
    everything = (0, 10**9)
    rows = [(rates.all, 0, everything), (rates.classes[1], 2, everything)]
    return rows + [(row, 0, size) for row, size in zip(rates.sizes, SIZES, strict=True)]


@pytest.mark.parametrize("groups", [None, 9])
def test_regions_are_counted_by_class_and_size_and_resampled_by_group(groups: int | None) -> None:
    case = _Case(2, 40, groups)

    for row, class_id, (low, high) in _parts(case.rates()):

        def own(regions: Any, class_id: int = class_id, low: int = low, high: int = high) -> list[bool]:
            return [flag for number, px, flag in regions if class_id in (0, number) and low <= px < high]

        def recall(images: Sequence[str], own: Any = own) -> tuple[float, float]:
            flags = [flag for one in images for flag in own(case.sheets[one].labelled)]
            return sum(flags), len(flags)

        def false(images: Sequence[str], own: Any = own) -> tuple[float, float]:
            return sum(not flag for one in images for flag in own(case.sheets[one].predicted)), len(images)

        _assert_resampled(row.regions_found, case, recall)
        _assert_resampled(row.false_regions, case, false, is_share=False)


def test_groups_of_several_sheets_are_counted_and_resampled_whole() -> None:
    case = _Case(3, 60, 23)
    rates = case.rates()

    assert (rates.groups, rates.images_alone) == (23, False)

    def missed(images: Sequence[str]) -> tuple[float, float]:
        defective = [one for one in images if case.is_defective(one)]
        return sum(not case.is_flagged(one) for one in defective), len(defective)

    _assert_resampled(rates.all.missed, case, missed)
    coils = [[one for one in sorted(case.sheets) if int(one) % 23 == number] for number in range(23)]
    defective = [[one for one in coil if case.is_defective(one)] for coil in coils]
    lost = sum(bool(coil) and not any(map(case.is_flagged, coil)) for coil in defective)
    _assert_exact(rates.missed_groups, lost, sum(map(bool, defective)))
    sound = [coil for coil in coils if all(map(case.is_sound, coil))]
    _assert_exact(rates.stopped_groups, sum(any(map(case.is_flagged, coil)) for coil in sound), len(sound))


def _best(case: _Case, images: Sequence[str], held: str, rate: float) -> tuple[int, int]:
    """The other sheets, how many and of how many, after trying every threshold that makes a difference."""
    defective, sound = case.scores(images)
    found = []
    for threshold in {*defective, *sound, *(np.nextafter(score, 2) for score in sound)}:
        missed, stopped = sum(score < threshold for score in defective), sum(score >= threshold for score in sound)
        if held == "missed" and missed <= rate * len(defective) + 1e-9:
            found.append((stopped, len(sound)))
        if held == "stopped" and stopped <= rate * len(sound) + 1e-9:
            found.append((missed, len(defective)))
    return min(found)


def test_one_rate_is_held_by_the_threshold_that_is_best_for_the_other() -> None:
    case = _Case(4, 110)
    told = [one for one in case.rates().trade_offs if not one.note]

    assert {(one.held, one.rate) for one in told} == {("missed", 0.05), ("stopped", 0.02), ("stopped", 0.05)}
    for one in told:
        assert one.other is not None
        assert (one.other.count, one.other.of) == _best(case, sorted(case.sheets), one.held, one.rate)
        assert one.threshold is not None
        defective, sound = case.scores(sorted(case.sheets))
        missed, stopped = sum(at < one.threshold for at in defective), sum(at >= one.threshold for at in sound)
        assert (missed if one.held == "stopped" else stopped) == one.other.count


def test_bounds_of_trade_offs_equal_those_of_literal_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _Case(5, 110, 40)
    weights = np.concatenate(list(draw_groups(case.group())))[:60]
    monkeypatch.setattr("defectseg.evaluate.rates.draw_groups", lambda group: iter([weights]))
    images = sorted(case.sheets)

    for one in (one for one in case.rates().trade_offs if not one.note):
        shares = []
        for drawn in weights:
            resample = [image for image, times in zip(images, drawn, strict=True) for _ in range(int(times))]
            count, of = _best(case, resample, one.held, one.rate)
            shares.append(count / of)
        assert one.other is not None
        expected = _widened(shares, one.other.count, one.other.of)
        assert (one.other.low, one.other.high) == pytest.approx(expected, abs=1e-6)


def test_operating_points_are_all_that_no_other_beats_in_both_rates() -> None:
    case = _Case(6, 70)
    rates = case.rates()

    scores = case.scores(sorted(case.sheets))
    every = {(sum(s < t for s in scores[0]), sum(s >= t for s in scores[1])) for t in np.arange(0, 1.005, 0.01)}
    best = {p for p in every if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in every)}
    best.discard((len(scores[0]), 0))  # nothing is flagged
    assert [(one.missed, one.stopped) for one in rates.points] == sorted(best)
    shipped = rates.shipped
    assert (shipped.threshold, shipped.missed, shipped.stopped) == (
        None,
        rates.all.missed.count,
        rates.all.stopped.count,
    )
    for one in rates.points:
        assert one.threshold is not None
        assert one.missed == sum(score < one.threshold for score in scores[0])
        assert one.stopped == sum(score >= one.threshold for score in scores[1])
        assert (one.more_missed, one.more_stopped) == (one.missed - shipped.missed, one.stopped - shipped.stopped)


def test_classes_are_confused_in_pixels_and_in_sheets() -> None:
    case = _Case(7, 50)
    rates = case.rates()

    assert rates.names == ["sound", *NAMES]
    assert rates.confusion_px == np.sum([sheet.confusion for sheet in case.sheets.values()], axis=0).tolist()
    expected = np.zeros((3, 3), int)
    for image in case.sheets:
        pairs = {number: case.pair(image, number) for number in (1, 2)}
        lost = [number for number, one in pairs.items() if one.true_px and not one.predicted_px]
        extra = [number for number, one in pairs.items() if one.predicted_px and not one.true_px and not one.unknown]
        for row in lost or [0]:
            for column in extra or [0]:
                expected[row, column] += bool(lost or extra)
        for number, one in pairs.items():
            expected[number, number] += bool(one.true_px and one.predicted_px)
        expected[0, 0] += case.is_sound(image) and not case.is_flagged(image)
    assert rates.confusion_sheets == expected.tolist()


def _plain(images: int, *, defective: int, flagged: int, groups: int) -> Rates:
    """Images of one class, the first defective, the first flagged; groups take turns."""
    counts: Counts = {(f"{n:04}", 1): PairCounts(5 * (n < defective), 5 * (n < flagged), 0) for n in range(images)}
    sheets = {one: Sheet(0.5, (), (), np.zeros((3, 3), np.int64)) for one, _ in counts}
    counts |= {(one, 2): PairCounts(0, 0, 0) for one in sheets}
    return rates_of(counts, sheets, NAMES, {one: str(int(one) % groups) for one in sheets})


def test_no_miss_proves_only_as_much_as_the_number_of_groups_allows() -> None:
    rates = _plain(200, defective=100, flagged=100, groups=50)

    missed = rates.all.missed
    assert (missed.count, missed.of, missed.low) == (0, 100, 0.0)
    assert missed.high == pytest.approx(_clopper_pearson(0, 50)[1], abs=1e-6)
    told = " ".join(rates.notes)
    assert "No defective sheet of 100 is missed. With 95 % confidence, this proves that at most 6.0 % are" in told
    assert "3 / 50 groups" in told
    assert "No image shows cracks" in told


def test_resamples_without_a_sheet_of_the_kind_do_not_count_as_free_of_faults() -> None:
    counts: Counts = {(f"{n:03}", 1): PairCounts(5 * (n < 20), 5 * (n % 2), 0) for n in range(300)}
    sheets = {one: Sheet(None, (), ((1, 5, False),), np.zeros((2, 2), np.int64)) for one, _ in counts}
    rates = rates_of(counts, sheets, NAMES[:1], {one: str(int(one) // 10) for one in sheets})

    # Two coils of 30 have the defect, and half of it is missed in each: they do not vary, as 20 of one kind would.
    assert (rates.all.missed.count, rates.all.missed.of) == (10, 20)
    assert (rates.all.missed.low, rates.all.missed.high) == pytest.approx(_clopper_pearson(10, 20), abs=1e-6)
    # One false region in each image is no share of 1.
    assert rates.all.false_regions == Rate(300, 300, 1, 1, 1)


def test_bounds_hold_a_rare_share_of_sheets_that_are_alike_within_their_groups() -> None:
    generator, above, trials, groups = np.random.default_rng(0), 0, 100, 25
    for _ in range(trials):
        share_of_group = generator.beta(0.05 * 9, 0.95 * 9, groups)  # 0.05 in the mean
        missed = generator.random((groups, 5)) < share_of_group[:, None]
        counts: Counts = {
            (f"{g:02}-{n}", 1): PairCounts(5, 5 * (not missed[g, n]), 0) for g, n in np.ndindex(groups, 5)
        }
        sheets = {one: Sheet(None, (), (), np.zeros((2, 2), np.int64)) for one, _ in counts}
        high = rates_of(counts, sheets, NAMES[:1], {one: one[:2] for one in sheets}).all.missed.high
        above += high is not None and high < 0.05
    assert above / trials < 0.06  # of percentiles alone more than 0.1


def test_one_group_tells_nothing_about_how_sure_the_rates_are() -> None:
    rates = _plain(40, defective=20, flagged=10, groups=1)

    assert rates.all.missed == Rate(10, 20, 0.5, None, None)
    assert "All images belong to one group" in rates.notes[0]
    assert "this proves that nothing" in " ".join(rates.notes)


@pytest.mark.parametrize("defective", [0, 9])
def test_without_defective_or_sound_sheets_there_is_no_curve_and_a_sentence(defective: int) -> None:
    rates = _plain(9, defective=defective, flagged=4, groups=9)

    assert not rates.points
    assert not rates.trade_offs
    assert f"There is no {'sound' if defective else 'defective'} sheet" in " ".join(rates.notes)
    json.dumps(asdict(rates), allow_nan=False)


def test_a_rate_is_held_only_where_there_are_enough_sheets_to_tell_it() -> None:
    rates = _plain(110, defective=60, flagged=50, groups=110)

    notes = {(one.held, one.rate): one.note for one in rates.trade_offs}
    assert notes["missed", 0.01] == "A rate of 1 % cannot be told from 60 defective sheets, only from 100."
    assert notes["missed", 0.02] == notes["stopped", 0.02] == notes["stopped", 0.05] == ""


def test_without_sheet_scores_only_the_shipped_point_is_known() -> None:
    rates = _Case(8, 30, scored=False).rates()

    assert not rates.points
    assert not rates.trade_offs
    assert rates.shipped.missed == rates.all.missed.count
    assert "sheet scores" in rates.notes[-1]
