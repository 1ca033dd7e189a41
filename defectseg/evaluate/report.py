"""What an evaluation leaves on disk: metrics.json, pairs.csv, and report.html, one page that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

from defectseg import files
from defectseg.evaluate.bootstrap import Interval
from defectseg.evaluate.metrics import Counts, Metrics, PairCounts, pairs_frame, score, signed
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri

WORST_PAIRS = 30
EMBEDDED_OVERLAYS = 24
EMBEDDED_PX = 1600

_HEADINGS = ("class", "images", "unknown", "Kaggle Dice", "all empty", "positive Dice", "IoU", "precision", "recall")

_GROUPS = {
    "missed": "Labelled, and nothing predicted of that class. The largest first.",
    "false alarm": "Predicted, and nothing labelled of that class. The largest first.",
    "poor overlap": "Labelled and predicted, but not at the same place. The lowest Dice first.",
}


@dataclass(frozen=True)
class _Pair:
    image_id: str
    class_id: int
    class_name: str
    counts: PairCounts

    @property
    def kind(self) -> str:
        """One of `_GROUPS`, for a pair whose Dice is below 1."""
        if not self.counts.predicted_px:
            return "missed"
        return "poor overlap" if self.counts.true_px else "false alarm"

    @property
    def wrong_px(self) -> int:
        return self.counts.true_px + self.counts.predicted_px - 2 * self.counts.both_px


@dataclass(frozen=True)
class _Picture:
    pair: _Pair
    data_uri: str | None


def write_evaluation(
    out: Path,
    metrics: Metrics,
    counts: Counts,
    *,
    title: str,
    facts: Mapping[str, str],
    overlays: Mapping[str, Path],
    warnings: Sequence[str] = (),
) -> None:
    """Write metrics.json, pairs.csv and report.html into `out`, each whole or not at all.

    Args:
        out: the output folder, made if absent.
        metrics: figures of `counts`.
        counts: of every pair.
        title: heading of the page.
        facts: what was evaluated and how (data, split, seed, thresholds), in the order to show.
        overlays: ImageId -> overlay file relative to `out`. At most 24 of the worst go into the page.
        warnings: sentences that a reader has to know before the figures.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    content = {"title": title, **metrics.to_json(), "facts": dict(facts), "warnings": list(warnings)}
    files.write_text(out / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    _write(out / "pairs.csv", pairs_frame(counts).to_csv(index=False, lineterminator="\n", float_format="%.9g"))
    _write(out / "report.html", _page(out, metrics, counts, title, facts, overlays, warnings))


def metrics_table(metrics: Metrics) -> list[tuple[str, ...]]:
    """Rows of text: headings, a row for each class, and one for all, whose IoU is the mean over classes.

    The column of unknown pairs is there where there are any.
    """
    rows = [
        (one.name, str(one.positive_pairs), str(one.unknown_pairs), *map(score, (
            one.kaggle_dice, one.all_empty, one.positive_dice, one.iou, one.precision, one.recall,
        )))
        for one in metrics.classes
    ]  # fmt: skip
    figures = (metrics.kaggle_dice, metrics.all_empty, metrics.positive_dice, metrics.miou)
    detection = metrics.detection
    with_defect = detection.true_positives + detection.false_negatives
    total = ("all", str(with_defect), str(metrics.unknown_pairs), *map(score, figures), "", "")
    table = [_HEADINGS, *rows, total]
    return table if metrics.unknown_pairs else [(*row[:2], *row[3:]) for row in table]


def verdict(metrics: Metrics) -> str:
    """One sentence that says whether the predictions beat predicting nothing, the baseline of the Kaggle metric."""
    gain, interval = metrics.gain_over_empty, metrics.gain_over_empty_interval
    against = f"Kaggle Dice {score(metrics.kaggle_dice)} against {score(metrics.all_empty)} for an empty answer"
    gained = f"{signed(gain)}, 95 % interval {signed(interval.low)} to {signed(interval.high)}"
    if gain == 0:
        return f"No better and no worse than predicting nothing: {against}."
    better = "Better" if gain > 0 else "Worse"
    sentence = f"{better} than predicting nothing: {against} ({gained})."
    if interval.low <= 0 <= interval.high:
        sentence += f" The interval holds zero, so the {metrics.images:,} images do not prove it."
    return sentence


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{score(interval.low)} to {score(interval.high)}"


def _page(
    out: Path,
    metrics: Metrics,
    counts: Counts,
    title: str,
    facts: Mapping[str, str],
    overlays: Mapping[str, Path],
    warnings: Sequence[str],
) -> str:
    faulty = _faulty_pairs(counts, {one.class_id: one.name for one in metrics.classes})
    pictures = [_Picture(pair, _embedded(out / overlays[pair.image_id])) for pair in _to_show(faulty, overlays)]
    return render_page(
        "defectseg.evaluate",
        {"score": score, "signed": signed, "interval": _interval},
        title=title,
        metrics=metrics,
        verdict=verdict(metrics),
        histogram=_histogram(counts),
        worst=faulty[:WORST_PAIRS],
        faulty=len(faulty),
        groups=[(kind, text, [one for one in pictures if one.pair.kind == kind]) for kind, text in _GROUPS.items()],
        facts=facts,
        warnings=warnings,
    )


def _faulty_pairs(counts: Counts, class_names: Mapping[int, str]) -> list[_Pair]:
    """Pairs with a Dice below 1: the lowest first; of equal ones, that with the most wrong pixels. No unknown ones."""
    pairs = [_Pair(image_id, number, class_names[number], pair) for (image_id, number), pair in counts.items()]
    faulty = [pair for pair in pairs if pair.counts.dice < 1]
    return sorted(faulty, key=lambda pair: (pair.counts.dice, -pair.wrong_px, pair.image_id, pair.class_id))


def _to_show(faulty: Sequence[_Pair], overlays: Mapping[str, Path]) -> list[_Pair]:
    """Pairs to show the overlay of: the kinds of fault take turns, and no image comes twice."""
    shown: dict[str, _Pair] = {}
    by_kind = [[pair for pair in faulty if pair.kind == kind and pair.image_id in overlays] for kind in _GROUPS]
    for turn in zip_longest(*by_kind):
        for pair in turn:
            if pair is not None and len(shown) < EMBEDDED_OVERLAYS:
                shown.setdefault(pair.image_id, pair)
    return list(shown.values())


def _embedded(path: Path) -> str | None:
    """The picture for an <img>; None where it cannot be read."""
    try:
        bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if bgr is None else data_uri(np.asarray(bgr, np.uint8), largest_px=EMBEDDED_PX)


def _histogram(counts: Counts) -> list[tuple[str, int, float]]:
    """Label, number of pairs and height in % of the tallest, of bars over the Dice of the pairs with a defect.

    The first bar holds exactly 0; then come tenths, each with its upper end.
    """
    dice = [pair.dice for pair in counts.values() if pair.true_px]
    tenths = np.ceil(np.array(dice) * 10).astype(int)
    bars = np.bincount(tenths, minlength=11).tolist()
    labels = ["0", *(f"to {tenth / 10:.1f}" for tenth in range(1, 11))]
    tallest = max(bars) or 1
    return [(label, bar, 100 * bar / tallest) for label, bar in zip(labels, bars, strict=True)]


def _write(path: Path, text: str) -> None:
    # A path among the facts may hold bytes that are no text; Python carries them as lone surrogates.
    files.write_bytes(path, text.encode("utf-8", "backslashreplace"))
