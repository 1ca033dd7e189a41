"""Write the files of an evaluation: metrics.json, pairs.csv, errors.csv and a self-contained report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from defectseg.evaluate.gallery import KINDS, choose_pictures, filters, find_faults
from defectseg.evaluate.metrics import COLUMNS, Counts, Metrics, decimals, signed
from defectseg.evaluate.score import Evaluation, Score
from defectseg.evaluate.summary import certainty, look_first, neighbours, operating_points, percent
from defectseg.files import atomic_csv, text_not_formula, write_text
from defectseg.image.find import escaped
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri

if TYPE_CHECKING:
    import pandas as pd

ERRORS = "errors.csv"
EMBEDDED_PX = 1600
PICTURES_BYTES = 18_000_000  # of all JPEGs; a third more as text in the page
NOT_FOUND = "0, nothing of it"


def write_evaluation(
    out: Path,
    evaluation: Evaluation,
    score: Score,
    *,
    title: str,
    facts: Mapping[str, str],
    overlays: Mapping[str, Path],
) -> None:
    """Write metrics.json, pairs.csv, report.html and, where something was unreadable, errors.csv into `out`.

    Args:
        out: the output folder, made if absent.
        evaluation: the figures, whose `metrics.classes` may have other ClassIds than 1, 2 and so on, which are written.
        score: what they were computed from.
        title: heading of the page.
        facts: what was evaluated and how (data, split, seed, thresholds), in the order to show.
        overlays: ImageId -> overlay file relative to `out`. The page shows up to 150 with faults.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    metrics, rates, warnings = evaluation.metrics, evaluation.rates, evaluation.warnings
    content = {"title": title, **evaluation.to_json(), "facts": dict(facts), "warnings": list(warnings)}
    write_text(out / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    names = {one.class_id: one.name for one in metrics.classes}
    pairs = _pairs_frame(score.counts, list(names))
    scores = pairs["ImageId"].map({one: sheet.score for one, sheet in score.sheets.items()}).astype(float).round(4)
    for_people = pairs.assign(ImageId=pairs["ImageId"].map(text_not_formula), sheet_score=scores)
    write_text(out / "pairs.csv", for_people.to_csv(index=False, lineterminator="\n", float_format="%.9g"))
    faults = find_faults(score.counts, score.sheets, list(names))
    chosen = choose_pictures(faults, overlays.keys())
    most_bytes = PICTURES_BYTES // max(1, len(chosen))
    page = render_page(
        "defectseg.evaluate",
        {"score": decimals, "signed": signed, "percent": percent, "certainty": certainty},
        title=title,
        metrics=metrics,
        columns=COLUMNS,
        names=names,
        rates=rates,
        advice=look_first(rates, score.counts, faults, names),
        points=neighbours(rates),
        trade_off_chart=operating_points(rates) if rates.points else "",
        verdict=verdict(metrics),
        histogram=_histogram(pairs),
        faults=faults,
        shown=[(image_id, own, *_embedded(out / overlays[image_id], most_bytes)) for image_id, own in chosen.items()],
        filters=filters(chosen.values(), names),
        kinds=KINDS,
        facts=facts,
        warnings=warnings,
    )
    write_text(out / "report.html", page)
    if evaluation.unreadable:
        with atomic_csv(out / ERRORS, ("ImageId", "path", "error"), for_people=True) as write_rows:
            write_rows((one.image_id, escaped(one.path), one.message) for one in evaluation.unreadable)


def metrics_table(metrics: Metrics) -> list[tuple[str, ...]]:
    """Rows of text: headings, a row for each class, and a row for all classes, whose IoU is the mean over classes.

    The column of unknown pairs is left out if there are none.
    """
    rows = []
    for one in metrics.classes:
        figures = (decimals(getattr(one, it.name)) for it in COLUMNS)
        rows.append((one.name, str(one.positive_pairs), str(one.unknown_pairs), *figures))
    with_defect = metrics.detection.true_positives + metrics.detection.false_negatives
    total = (decimals(getattr(metrics, it.of_all)) if it.of_all else "" for it in COLUMNS)
    headings = ("class", "images", "unknown", *(it.heading for it in COLUMNS))
    table = [headings, *rows, ("all", str(with_defect), str(metrics.unknown_pairs), *total)]
    return table if metrics.unknown_pairs else [(*row[:2], *row[3:]) for row in table]


def verdict(metrics: Metrics) -> str:
    """A sentence that compares the predictions with empty ones, the baseline of the Kaggle metric."""
    gain, interval = metrics.gain_over_empty, metrics.gain_over_empty_interval
    against = f"Kaggle Dice {decimals(metrics.kaggle_dice)} against {decimals(metrics.all_empty)} for an empty answer"
    bounds = "" if interval is None else f", 95 % interval {signed(interval.low)} to {signed(interval.high)}"
    if gain == 0:
        return f"No better and no worse than predicting nothing: {against}."
    better = "Better" if gain > 0 else "Worse"
    sentence = f"{better} than predicting nothing: {against} ({signed(gain)}{bounds})."
    if interval is not None and interval.low <= 0 <= interval.high:
        sentence += f" The interval holds zero, so the {metrics.images:,} images do not prove it."
    return sentence


def _pairs_frame(counts: Counts, class_ids: Sequence[int]) -> "pd.DataFrame":
    """A row for each (image, class) pair, sorted by ImageId, then ClassId; areas in px. See `find_faults`.

    The Dice of an unknown pair is NaN, which pandas leaves out of a mean.
    """
    import pandas as pd

    rows = sorted(
        (image_id, class_ids[number - 1], pair.true_px, pair.predicted_px, pair.both_px, pair.dice)
        for (image_id, number), pair in counts.items()
    )
    return pd.DataFrame(rows, columns=["ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice"])


def _embedded(path: Path, most_bytes: int) -> tuple[str, bool]:
    """The picture for an <img>, and whether it is wide."""
    bgr = np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR), np.uint8)
    return data_uri(bgr, largest_px=EMBEDDED_PX, most_bytes=most_bytes), bgr.shape[1] > 2 * bgr.shape[0]


def _histogram(pairs: "pd.DataFrame") -> dict[str, int]:
    """Number of pairs with a defect by their Dice: exactly 0, then tenths, including their upper end."""
    tenths = np.ceil(pairs["dice"][pairs["true_px"] > 0].to_numpy() * 10).astype(int)
    labels = [NOT_FOUND, *(f"to {tenth / 10:.1f}" for tenth in range(1, 11))]
    return dict(zip(labels, np.bincount(tenths, minlength=11).tolist(), strict=True))
