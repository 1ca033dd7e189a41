"""`defectseg demo`, with fewer and smaller sheets and a network that trains in a second."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg import config
from defectseg.cli import demo
from defectseg.data import synthetic

Call = Callable[..., Any]


def test_the_demo_ends_with_a_picture_of_truth_and_answer_and_the_next_commands(
    call: Call, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config.load_recipe(str(tiny_recipe))
    monkeypatch.setattr(config, "load_recipe", lambda name: recipe)
    monkeypatch.setattr(synthetic, "write_data_folder", partial(synthetic.write_data_folder, size_hw=(64, 160)))
    monkeypatch.setattr(demo, "TRAINING_SHEETS", 16)
    monkeypatch.setattr(demo, "UNSEEN_SHEETS", 8)

    done = call("demo", "--out", "shown")

    assert done.code == 0, done.err
    shown, _, commands = done.out.partition("\nLook at:\n")[2].partition("\n\n")
    files = [Path(line.split()[-1]) for line in shown.splitlines()]
    assert [path.name for path in files] == ["picture.jpg", "index.html", "report.html", "model.safetensors"]
    assert all((tmp_path / path).is_file() for path in files)
    assert [line.split()[1] for line in commands.splitlines() if line.startswith("  defectseg")] == [
        *("data", "train", "predict"),
    ]
    picture = np.asarray(cv2.imread(str(tmp_path / files[0]))).astype(int)
    sheet, truth, answer = np.split(picture, 3)  # each with its line of text
    coloured = [(np.abs(part[..., 2] - part[..., 0]) > 60)[:64, :160] for part in (sheet, truth, answer)]
    assert not coloured[0].any()
    assert coloured[1].any()
    blue, red = truth[:64, :160][coloured[1]], answer[:64, :160][coloured[2]]
    assert (blue[:, 0] > blue[:, 2]).mean() > 0.9  # JPEG changes some pixels at the borders
    assert len(red) == 0 or (red[:, 2] > red[:, 0]).mean() > 0.9


def test_the_sheet_shown_is_that_of_the_median_dice_among_those_with_a_defect(tmp_path: Path) -> None:
    # Dice: bad 0; middle 2 x 50 / (50 + 150), the false alarm of its second class counts; good 1; clean has no defect.
    (tmp_path / "pairs.csv").write_text(
        "ImageId,ClassId,true_px,predicted_px,both_px,dice\n"
        "bad.jpg,1,100,0,0,0\nbad.jpg,2,0,0,0,1\n"
        "clean.jpg,1,0,0,0,1\nclean.jpg,2,0,10,0,0\n"
        "good.jpg,1,10,10,10,1\ngood.jpg,2,0,0,0,1\n"
        "middle.jpg,1,50,50,50,1\nmiddle.jpg,2,0,100,0,0\n"
    )
    assert demo._typical_sheet(tmp_path / "pairs.csv") == "middle.jpg"
