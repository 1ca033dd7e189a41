"""The history of a run, and its plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defectseg.files import atomic_path


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl; empty if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Plot losses, learning rates and, if any, validation scores over the epochs as a PNG."""
    from matplotlib.figure import Figure

    validated = [entry for entry in history if "val" in entry]
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(13, 4))
    losses, rates, *scores = figure.subplots(1, 3 if validated else 2)
    for name in ("loss", "bce", "dice", "lovasz", "gate"):
        if any(entry[name] for entry in history):
            losses.plot(epochs, [entry[name] for entry in history], label=name)
    for name in ("lr_encoder", "lr_decoder"):
        rates.plot(epochs, [entry[name] for entry in history], label=name.removeprefix("lr_"))
    for axes in scores:
        for name, label in (("positive_dice", "positive Dice"), ("kaggle_dice", "Kaggle Dice"), ("miou", "mIoU")):
            values = [entry["val"][name] for entry in validated]
            axes.plot([entry["epoch"] for entry in validated], values, label=label, marker=".")
        axes.axhline(validated[0]["val"]["all_empty"], label="Kaggle Dice of empty masks", color="grey", ls="--")
    for axes, title in zip((losses, rates, *scores), ("training loss", "learning rate", "validation"), strict=False):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
