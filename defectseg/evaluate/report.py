"""Write the files of an evaluation: metrics.json, pairs.csv, errors.csv and a self-contained report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from defectseg.evaluate.metrics import Counts, Metrics, score, signed
from defectseg.evaluate.rates import Rates
from defectseg.evaluate.sheets import Sheet
from defectseg.files import atomic_csv, text_not_formula, write_text
from defectseg.image.find import escaped
from defectseg.inference.stream import Unreadable
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri

if TYPE_CHECKING:
    import pandas as pd

ERRORS = "errors.csv"
WORST_PAIRS = 30
EMBEDDED_OVERLAYS = 24
EMBEDDED_PX = 1600

_HEADINGS = ("class", "images", "unknown", "Kaggle Dice", "all empty", "positive Dice", "IoU", "precision", "recall")

_FAULTS = {
    "missed": "Labelled, and nothing predicted of that class. The largest first.",
    "false alarm": "Predicted, and nothing labelled of that class. The largest first.",
    "poor overlap": "Labelled and predicted, but not at the same place. The lowest Dice first.",
}


def write_evaluation(
    out: Path,
    metrics: Metrics,
    counts: Counts,
    sheets: Mapping[str, Sheet],
    rates: Rates,
    *,
    title: str,
    facts: Mapping[str, str],
    overlays: Mapping[str, Path],
    warnings: Sequence[str] = (),
    unreadable: Sequence[Unreadable] = (),
) -> None:
    """Write metrics.json, pairs.csv, report.html and, where something was unreadable, errors.csv into `out`.

    Args:
        out: the output folder, made if absent.
        metrics: figures of `counts`.
        counts: of every pair.
        sheets: of every image.
        rates: of `counts` and `sheets`.
        title: heading of the page.
        facts: what was evaluated and how (data, split, seed, thresholds), in the order to show.
        overlays: ImageId -> overlay file relative to `out`. The page shows at most 24 of the worst.
        warnings: sentences to show before the figures.
        unreadable: images that could not be processed.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    figures = {**metrics.to_json(), "rates": rates.to_json()}
    content = {"title": title, **figures, "facts": dict(facts), "warnings": list(warnings)}
    write_text(out / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    pairs = _pairs_frame(counts)
    scores = pairs["ImageId"].map({image_id: sheet.score for image_id, sheet in sheets.items()}).astype(float).round(4)
    for_people = pairs.assign(ImageId=pairs["ImageId"].map(text_not_formula), sheet_score=scores)
    write_text(out / "pairs.csv", for_people.to_csv(index=False, lineterminator="\n", float_format="%.9g"))
    faulty = _faulty_pairs(pairs)
    shown = _pairs_to_show(faulty[faulty["ImageId"].isin(overlays.keys())])
    pictures = [(pair, _embedded(out / overlays[str(pair.ImageId)])) for pair in shown.itertuples()]
    page = render_page(
        "defectseg.evaluate",
        {"score": score, "signed": signed},
        title=title,
        metrics=metrics,
        names={one.class_id: one.name for one in metrics.classes},
        verdict=verdict(metrics),
        histogram=_histogram(pairs),
        worst=list(faulty.head(WORST_PAIRS).itertuples()),
        faulty=len(faulty),
        groups=[(kind, text, [one for one in pictures if one[0].kind == kind]) for kind, text in _FAULTS.items()],
        facts=facts,
        warnings=warnings,
    )
    write_text(out / "report.html", page)
    if unreadable:
        with atomic_csv(out / ERRORS, ("ImageId", "path", "error"), for_people=True) as write_rows:
            write_rows((one.image_id, escaped(one.path), one.message) for one in unreadable)


def metrics_table(metrics: Metrics) -> list[tuple[str, ...]]:
    """Rows of text: headings, a row for each class, and a row for all classes, whose IoU is the mean over classes.

    The column of unknown pairs is left out if there are none.
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
    """A sentence that compares the predictions with empty ones, the baseline of the Kaggle metric."""
    gain, interval = metrics.gain_over_empty, metrics.gain_over_empty_interval
    against = f"Kaggle Dice {score(metrics.kaggle_dice)} against {score(metrics.all_empty)} for an empty answer"
    bounds = "" if interval is None else f", 95 % interval {signed(interval.low)} to {signed(interval.high)}"
    if gain == 0:
        return f"No better and no worse than predicting nothing: {against}."
    better = "Better" if gain > 0 else "Worse"
    sentence = f"{better} than predicting nothing: {against} ({signed(gain)}{bounds})."
    if interval is not None and interval.low <= 0 <= interval.high:
        sentence += f" The interval holds zero, so the {metrics.images:,} images do not prove it."
    return sentence


def _pairs_frame(counts: Counts) -> "pd.DataFrame":
    """A row for each (image, class) pair, sorted by ImageId, then ClassId; areas in px.

    The Dice of an unknown pair is NaN, which pandas leaves out of a mean.
    """
    import pandas as pd

    pairs = sorted(counts.items())
    rows = [(*key, pair.true_px, pair.predicted_px, pair.both_px, pair.dice) for key, pair in pairs]
    return pd.DataFrame(rows, columns=["ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice"])


def _faulty_pairs(pairs: "pd.DataFrame") -> "pd.DataFrame":
    """The pairs with a Dice below 1 and the kind of their fault: lowest Dice first, then most wrong pixels."""
    faulty = pairs[pairs["dice"] < 1]
    missed, false_alarm = faulty["predicted_px"] == 0, faulty["true_px"] == 0
    faulty = faulty.assign(
        kind=np.select([missed, false_alarm], ["missed", "false alarm"], "poor overlap"),
        wrong_px=faulty["true_px"] + faulty["predicted_px"] - 2 * faulty["both_px"],
    )
    return faulty.sort_values(["dice", "wrong_px", "ImageId", "ClassId"], ascending=[True, False, True, True])


def _pairs_to_show(faulty: "pd.DataFrame") -> "pd.DataFrame":
    """The pairs whose overlay the page shows: the kinds of fault take turns, and no image comes twice."""
    kinds = list(_FAULTS)
    ordered = faulty.assign(turn=faulty.groupby("kind").cumcount(), order=faulty["kind"].map(kinds.index))
    return ordered.sort_values(["turn", "order"]).drop_duplicates("ImageId").head(EMBEDDED_OVERLAYS)


def _embedded(path: Path) -> str:
    """The picture for an <img>."""
    bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    return data_uri(np.asarray(bgr, np.uint8), largest_px=EMBEDDED_PX)


def _histogram(pairs: "pd.DataFrame") -> list[tuple[str, int, float]]:
    """Bars over the Dice of the pairs with a defect: label, number of pairs, and height in % of the tallest bar.

    The first bar is for exactly 0; the others are for tenths, including their upper end.
    """
    tenths = np.ceil(pairs["dice"][pairs["true_px"] > 0].to_numpy() * 10).astype(int)
    bars = np.bincount(tenths, minlength=11).tolist()
    labels = ["0", *(f"to {tenth / 10:.1f}" for tenth in range(1, 11))]
    tallest = max(bars) or 1
    return [(label, bar, 100 * bar / tallest) for label, bar in zip(labels, bars, strict=True)]
