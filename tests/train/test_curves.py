"""Curves of a training run."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defectseg.errors import DataError
from defectseg.train.curves import draw_curves, read_history

LOSSES = {"loss": 1.0, "bce": 0.5, "dice": 0.5, "lovasz": 0.0, "gate": 0.1, "lr_encoder": 1e-3, "lr_decoder": 1e-2}
SCORES = {"positive_dice": 0.3, "kaggle_dice": 0.9, "miou": 0.2, "all_empty": 0.8}


def _draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *validated: int) -> tuple[Axes, ...]:
    """Losses, rates and scores of nine epochs as they are drawn."""
    drawn: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: str) -> None:
        drawn.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    history = [{"epoch": epoch, **LOSSES, **({"val": SCORES} if epoch in validated else {})} for epoch in range(1, 10)]
    draw_curves(tmp_path / "curves.png", history)
    return tuple(drawn[0].axes)


def test_a_run_without_validation_has_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, rates = _draw(tmp_path, monkeypatch)
    assert [line.get_label() for line in losses.lines] == ["loss", "bce", "dice", "gate"], "nothing that is always 0"
    assert [line.get_label() for line in rates.lines] == ["encoder", "decoder"]
    assert np.asarray(rates.lines[0].get_ydata()).tolist() == [1e-3] * 9
    assert [axes.get_title() for axes in (losses, rates)] == ["training loss", "learning rate"]


def test_scores_are_drawn_over_the_epochs_that_were_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, axes = _draw(tmp_path, monkeypatch, 4, 8)
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn == {
        "positive Dice": [0.3, 0.3],
        "Kaggle Dice": [0.9, 0.9],
        "mIoU": [0.2, 0.2],
        "Kaggle Dice of empty masks": [0.8, 0.8],
    }
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [4, 8]


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"epoch": 2, **LOSSES, "val": 7}).encode(),
        json.dumps({"epoch": "2", **LOSSES}).encode(),
        json.dumps({"epoch": 2, **LOSSES, "loss": 10**400}).encode(),
        json.dumps({"epoch": 2, **LOSSES, "loss": float("inf")}).encode(),
        json.dumps({"epoch": 2, **LOSSES, "val": {**SCORES, "miou": {}}}).encode(),
    ],
)
def test_a_damaged_history_is_refused_by_name_with_the_way_on(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    sound = {"epoch": 1, **LOSSES, "val": SCORES | {"miou": None}}
    path.write_bytes(json.dumps(sound).encode() + b"\n")
    assert read_history(path) == [sound]
    path.write_bytes(json.dumps(sound).encode() + b"\n" + damaged + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: .*(Delete it|expected a line)"):
        read_history(path)
