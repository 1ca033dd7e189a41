"""Curves of a training run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectseg.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_VALIDATED = "trained on all images,\nor not validated yet"


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl; none where the file is absent."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Draw losses, validation scores and learning rates over the epochs into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    epochs = [entry["epoch"] for entry in history]
    for name in ("loss", "bce", "dice", "lovasz", "gate"):
        if any(entry[name] for entry in history):
            losses.plot(epochs, [entry[name] for entry in history], label=name)
    _draw_scores(scores, [entry for entry in history if "val" in entry])
    for name in ("lr_encoder", "lr_decoder"):
        rates.plot(epochs, [entry[name] for entry in history], label=name.removeprefix("lr_"))
    for axes, title in ((losses, "training loss"), (scores, "validation"), (rates, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_scores(axes: "Axes", validated: Sequence[dict[str, Any]]) -> None:
    if not validated:
        axes.text(0.5, 0.5, NOT_VALIDATED, ha="center", va="center", transform=axes.transAxes, color="grey")
        axes.set(xticks=[], yticks=[])
        return
    for name, label in (("positive_dice", "positive Dice"), ("kaggle_dice", "Kaggle Dice"), ("miou", "mIoU")):
        values = [entry["val"][name] for entry in validated]
        axes.plot([entry["epoch"] for entry in validated], values, label=label, marker=".")
    axes.axhline(validated[0]["val"]["all_empty"], label="Kaggle Dice of empty masks", color="grey", ls="--")
