"""`defectseg evaluate`: its files, its figures against an independent scorer, its refusals."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Call = Callable[..., Any]
FILES = {"metrics.json", "pairs.csv", "report.html"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def pixels_of(encoded: str) -> set[int]:
    numbers = [int(word) for word in encoded.split()]
    return {
        pixel
        for start, length in zip(numbers[::2], numbers[1::2], strict=True)
        for pixel in range(start, start + length)
    }


@pytest.mark.slow
def test_model_predictions_and_an_independent_scorer_agree(
    call: Call, run_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    model, images = run_folder / "model.safetensors", data_folder / "train_images"

    by_model = call("evaluate", model, "--data", data_folder, "--out", "by-model")
    assert call("predict", model, images, "--out", "all", "--outputs", "rle").code == 0
    flags = ("--predictions", "all/predictions.csv", "--data", data_folder, "--out", "by-file")
    by_file = call("evaluate", *flags, "--json")

    assert by_model.code == 0, by_model.err
    assert {path.name for path in (tmp_path / "by-model").iterdir()} == FILES | {"overlays"}
    assert len(list((tmp_path / "by-model" / "overlays").iterdir())) == 24
    assert by_model.err == (
        "warning: the model was trained on 18 of these 24 images; the subset val gives an honest score\n"
    )
    lines = by_model.out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["class", "pits", "cracks", "scratches", "patches", "all"]
    assert lines[6:] == [f"Report: {Path('by-model') / 'report.html'}"]
    assert (by_file.code, by_file.err) == (0, "")
    assert {path.name for path in (tmp_path / "by-file").iterdir()} == FILES

    truth = {(row["ImageId"], row["ClassId"]): row["EncodedPixels"] for row in rows(data_folder / "train.csv")}
    dice = []
    for row in rows(tmp_path / "all" / "predictions.csv"):
        one, other = pixels_of(row["EncodedPixels"]), pixels_of(truth.get((row["ImageId"], row["ClassId"]), ""))
        dice.append(2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0)
    assert len(dice) == 24 * 4
    assert 0 < sum(dice) / len(dice) < 1
    stored = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("by-model", "by-file")]
    for figures in (json.loads(by_file.out), *stored):
        assert figures["kaggle_dice"] == pytest.approx(sum(dice) / len(dice), abs=1e-6)


@pytest.mark.slow
def test_validation_images_need_the_split_of_the_run(
    call: Call, refused: Call, run_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    lone = Path(shutil.copy(run_folder / "model.safetensors", tmp_path / "lone.safetensors"))
    flags = ("--data", data_folder, "--subset", "val", "--out")

    done = call("evaluate", run_folder, *flags, "val", "--json")

    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["images"] == 6
    refused("evaluate", lone.name, *flags, "other", code=2, told=["no split.csv beside lone.safetensors", "--split: "])
    assert call("evaluate", lone, *flags, "other", "--split", run_folder / "split.csv").code == 0


@pytest.mark.slow
def test_an_unreadable_image_exits_with_3(call: Call, run_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    (data / "train_images" / "sheet_00000.jpg").write_bytes(b"torn")

    assert call("evaluate", run_folder, "--data", data, "--out", "out").code == 3


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evaluate", "--out", "out", "--overwrite"], ["tune", "--dry-run"]])
def test_images_of_fewer_bits_are_told_once_with_the_flag_that_says_so(
    command: list[str], run_folder: Path, data_folder: Path, call: Call, tmp_path: Path
) -> None:
    deep = shutil.copytree(data_folder, tmp_path / "deep")
    for path in (deep / "train_images").iterdir():
        wide = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).astype(np.uint16) * 16
        path.write_bytes(cv2.imencode(".png", wide)[1].tobytes())

    silent = call(*command, run_folder, "--data", deep)
    told = call(*command, run_folder, "--data", deep, "--bit-depth", "12")

    assert (silent.code, told.code) == (0, 0)
    assert silent.err.count("16-bit images") == silent.err.count("--bit-depth 12") == 1
    assert "bit" not in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, ["MODEL or --predictions"]),
        (["m.safetensors", "--predictions", "p.csv"], 2, ["MODEL or --predictions"]),
        (["--predictions", "p.csv"], 4, ["p.csv"]),
        (["--predictions", "p.csv", "--subset", "val"], 2, ["--subset and --split go with MODEL"]),
        (["--predictions", "p.csv", "--split", "s.csv"], 2, ["--subset and --split go with MODEL"]),
        (["m.safetensors"], 2, ["needs --out"]),
        (["m.safetensors", "--out", "out", "--subset", "test"], 2, ["--subset", "'all', 'train', 'val'"]),
        (["m.safetensors", "--out", "out", "--split", "s.csv"], 2, ["--split tells train from val"]),
        (["m.safetensors,", "--out", "out"], 4, ["m.safetensors,", "one comma between"]),
        (["l.safetensors,m.safetensors", "--out", "out"], 4, ["l.safetensors: no such model file"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], code: int, told: list[str], refused: Call, data_folder: Path
) -> None:
    refused("evaluate", *arguments, "--data", data_folder, code=code, told=told)
