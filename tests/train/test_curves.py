"""Curves of a training run."""

import numpy as np
from matplotlib.figure import Figure

from defectseg.train.curves import NOT_VALIDATED, _draw_scores

VALIDATED = [
    {"epoch": epoch, "val": {"positive_dice": 0.3, "kaggle_dice": 0.9, "miou": 0.2, "all_empty": 0.8}}
    for epoch in (4, 8)
]


def test_a_run_without_validation_says_so() -> None:
    axes = Figure().subplots()
    _draw_scores(axes, [])
    assert [text.get_text() for text in axes.texts] == [NOT_VALIDATED]
    assert not axes.lines


def test_scores_are_drawn_over_the_epochs_that_were_validated() -> None:
    axes = Figure().subplots()
    _draw_scores(axes, VALIDATED)
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn == {
        "positive Dice": [0.3, 0.3],
        "Kaggle Dice": [0.9, 0.9],
        "mIoU": [0.2, 0.2],
        "Kaggle Dice of empty masks": [0.8, 0.8],
    }
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [4, 8]
    assert not axes.texts
