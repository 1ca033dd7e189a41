#!/usr/bin/env python
"""Measure what the gate, mirrored views and the choice of thresholds gain on images that models held out.

Nothing is trained. Each model answers once for each set of views, and the answer is scored with a hard gate, with a
soft gate and without one; with thresholds of 0.5, and with thresholds chosen and cross-validated as in `tune`. Models
(folds or seeds) are scored one by one; the mean comes last.
Usage: python scripts/bench/parts.py DATA MODEL [MODEL ...] [--views none flips]
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from defectseg.data.folder import open_data_folder
from defectseg.evaluate.metrics import summarise
from defectseg.evaluate.score import Scored, score_images
from defectseg.evaluate.subset import choose_subset
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.model.locate import find_model
from defectseg.runtime.load import load_runtime
from defectseg.tune.choice import ThresholdSearch


def soft(answer: ImageAnswer) -> ImageAnswer:
    """The answer with its probabilities multiplied by the gate."""
    return ImageAnswer(answer.probabilities * answer.gate[:, None, None], answer.gate)


def without_head(answer: ImageAnswer) -> ImageAnswer:
    """The answer of a network without a head: its gate is the largest probability."""
    return ImageAnswer(answer.probabilities, answer.probabilities.max(axis=(1, 2)))


GATES: dict[str, Callable[[ImageAnswer], ImageAnswer]] = {
    "hard": lambda answer: answer,
    "soft": soft,
    "none": without_head,
}


def measure(model: Path, root: Path, views: str) -> list[dict[str, Any]]:
    """The figures of one model on what it held out: a row for each kind of gate."""
    runtime, info = load_runtime(model, "cpu")
    data = open_data_folder(root, class_names=info.class_names)
    image_ids, _ = choose_subset(data, info, (model,), "val", None)
    searches = {gate: ThresholdSearch(data.class_names) for gate in GATES}

    def visit(scored: Scored) -> None:
        assert scored.answer is not None
        for gate, search in searches.items():
            search.visit(replace(scored, answer=GATES[gate](scored.answer)))

    default = Thresholds.default(data.num_classes)
    score_images(runtime, data, image_ids, Settings.of(info, tta=views), visitors=(visit,), keep_answers=True)
    rows = []
    for gate, search in searches.items():
        plain, choice = summarise(search.counts(default), data.class_names), search.best(groups=data.groups)
        validated, interval = choice.validated, choice.gain_interval
        rows.append({
            "views": views, "gate": gate,
            "kaggle": plain.kaggle_dice, "positive": plain.positive_dice or 0.0,
            "chosen kaggle": validated.kaggle_dice if validated else np.nan,
            "chosen positive": (validated.positive_dice or 0.0) if validated else np.nan,
            "low": interval.low if interval else np.nan, "high": interval.high if interval else np.nan,
        })  # fmt: skip
    return rows


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", type=lambda text: find_model(Path(text)))
    parser.add_argument("--views", nargs="+", default=["none", "flips"])
    options = parser.parse_args()
    print(
        f"{'model':<32} {'views':<6} {'gate':<5} {'at 0.5: kaggle + positive':<28} chosen, cross-validated (gain, 95 %)"
    )
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for views in options.views:
            for row in measure(model, options.data, views):
                rows.append(row)
                print_row("/".join(model.parts[-3:-1]), row)
    kinds = dict.fromkeys((row["views"], row["gate"]) for row in rows)
    for views, gate in kinds:
        alike = [row for row in rows if (row["views"], row["gate"]) == (views, gate)]
        figures = {key: np.mean([row[key] for row in alike]) for key in row if key not in ("views", "gate")}
        print_row(f"mean of {len(alike)}", {"views": views, "gate": gate, **figures, "low": None})


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    at_half, chosen = row["kaggle"] + row["positive"], row["chosen kaggle"] + row["chosen positive"]
    interval = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    print(
        f"{name:<32} {row['views']:<6} {row['gate']:<5} "
        f"{row['kaggle']:.3f} + {row['positive']:.3f} = {at_half:.3f}       "
        f"{row['chosen kaggle']:.3f} + {row['chosen positive']:.3f} = {chosen:.3f}{interval}",
        flush=True,
    )


if __name__ == "__main__":
    main()
