"""The history of a run, and its plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defectseg.errors import DataError, LabelError
from defectseg.files import atomic_path
from defectseg.text import read_json

_LOSSES, _RATES = ("loss", "bce", "dice", "lovasz", "gate"), ("lr_encoder", "lr_decoder")
_LARGEST = 1e30  # that a curve is drawn of
_SCORES = {"positive_dice": "positive Dice", "kaggle_dice": "Kaggle Dice", "miou": "mIoU"}


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl; empty if there is no file.

    Raises:
        DataError: it cannot be read, or a line is no entry of an epoch.
    """
    if not path.exists():
        return []
    try:
        history: list[dict[str, Any]] = read_json(path, lines=True)
        numbers = [entry[name] for entry in history for name in ("epoch", *_LOSSES, *_RATES)]
        numbers += [entry["val"][name] for entry in history if "val" in entry for name in (*_SCORES, "all_empty")]
        if not all(number is None or abs(number) < _LARGEST or number != number for number in numbers):
            raise ValueError
    except (LabelError, ValueError, TypeError, LookupError) as error:
        what = "damaged: expected a line of JSON with losses and scores for each epoch"
        raise DataError(f"{path}: {what}. Delete it to go on without the earlier curves.") from error
    return history


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Plot losses, learning rates and, if any, validation scores over the epochs as a PNG."""
    from matplotlib.figure import Figure

    validated = [entry for entry in history if "val" in entry]
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(13, 4))
    losses, rates, *scores = figure.subplots(1, 3 if validated else 2)
    for name in _LOSSES:
        if any(entry[name] for entry in history):
            losses.plot(epochs, [entry[name] for entry in history], label=name)
    for name in _RATES:
        rates.plot(epochs, [entry[name] for entry in history], label=name.removeprefix("lr_"))
    for axes in scores:
        for name, label in _SCORES.items():
            values = [entry["val"][name] for entry in validated]
            axes.plot([entry["epoch"] for entry in validated], values, label=label, marker=".")
        axes.axhline(validated[0]["val"]["all_empty"], label="Kaggle Dice of empty masks", color="grey", ls="--")
    for axes, title in zip((losses, rates, *scores), ("training loss", "learning rate", "validation"), strict=False):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
