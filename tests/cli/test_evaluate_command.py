"""`defectseg evaluate`: its files, what it prints, its refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.evaluate.rates import rates_of
from defectseg.evaluate.score import Evaluation
from defectseg.evaluate.sheets import Sheet

Call = Callable[..., Any]
FILES = {"metrics.json", "pairs.csv", "errors.csv", "report.html"}
COUNTS = {("a.jpg", 1): PairCounts(4, 4, 2), ("b.jpg", 1): PairCounts(0, 0, 0)}
METRICS = summarise(COUNTS, ("pits",))
SHEET = Sheet(0.5, (), (), np.zeros((2, 2), np.int64))
RATES = rates_of(COUNTS, {"a.jpg": SHEET, "b.jpg": SHEET}, ("pits",))


@pytest.mark.slow
def test_a_model_and_its_predictions_score_the_same_and_a_torn_image_exits_with_3(
    call: Call, trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    (data / "train_images" / "sheet_00000.jpg").write_bytes(b"torn")

    by_model = call("evaluate", trained_run, "--data", "data", "--out", "by-model")
    assert call("predict", trained_run, "data/train_images", "--out", "all", "--outputs", "rle").code == 3
    by_file = call("evaluate", "--predictions", "all/predictions.csv", "--data", "data", "--out", "by-file", "--json")

    assert (by_model.code, by_file.code) == (3, 3)
    assert {path.name for path in (tmp_path / "by-model").iterdir()} == FILES | {"overlays"}
    assert len(list((tmp_path / "by-model" / "overlays").iterdir())) == 23
    assert {path.name for path in (tmp_path / "by-file").iterdir()} == FILES
    seen, torn = (line for line in by_model.err.splitlines() if line.startswith("warning: "))
    assert seen == "warning: the model was trained on 17 of these 24 images; the subset val gives an honest score"
    assert torn.startswith("warning: left out, unreadable: ")
    lines = by_model.out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["class", "pits", "cracks", "scratches", "patches", "all"]
    assert lines[6:] == [f"Report: {Path('by-model') / 'report.html'}"]
    printed, stored = json.loads(by_file.out), json.loads((tmp_path / "by-model" / "metrics.json").read_text())
    assert 0 < printed["kaggle_dice"] == pytest.approx(stored["kaggle_dice"], abs=1e-9)


def test_flags_reach_the_library_and_warnings_the_user(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def evaluate(models: Any, data: Path, out: Path, **options: Any) -> Evaluation:
        del options["progress"]
        asked.append({"models": models, "data": data, "out": out, **options})
        return Evaluation(METRICS, RATES, ("odd",))

    monkeypatch.setattr("defectseg.evaluate.evaluate.evaluate", evaluate)
    done = call("evaluate", "m.xml", "--data", "d", "--out", "o")
    flags = ("--runtime", "onnx", "--device", "mps", "--tta", "flips", "--bit-depth", 12, "--overwrite", "--json")
    only = ("--subset", "train", "--split", "s.csv", "--group", "c.")
    told = call("evaluate", "m.xml,n.xml", "--data", "d", "--out", "o", *only, *flags)

    assert (done.code, told.code) == (0, 0)
    assert done.err == "warning: odd\n"
    assert told.out == f"{json.dumps({**METRICS.to_json(), 'rates': asdict(RATES), 'warnings': ['odd']}, indent=2)}\n"
    plain = {"models": (Path("m.xml"),), "data": Path("d"), "out": Path("o"), "subset": "all", "split": None}
    plain |= {"runtime": "auto", "device": "auto", "tta": None, "bit_depth": None, "group": None, "overwrite": False}
    given = {"models": (Path("m.xml"), Path("n.xml")), "subset": "train", "split": Path("s.csv")}
    given |= {"runtime": "onnx", "device": "mps", "tta": "flips", "bit_depth": 12, "group": "c.", "overwrite": True}
    assert asked == [plain, plain | given]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "MODEL or --predictions"),
        (["--predictions", "p.csv", "--images", "train_images"], 2, "--images goes with --predictions FILE alone"),
        (["m.safetensors", "--predictions", "p.csv"], 2, "MODEL or --predictions"),
        (["--predictions", "p.csv"], 4, "p.csv"),
        (["--predictions", "p.csv", "--subset", "val"], 2, "--subset and --split go with MODEL"),
        (["--predictions", "p.csv", "--split", "s.csv"], 2, "--subset and --split go with MODEL"),
        (["m.safetensors"], 2, "needs --out"),
        (["m.safetensors", "--out", "out", "--split", "s.csv"], 2, "--split tells train from val"),
        (["m.safetensors,", "--out", "out"], 4, "separated by commas"),
        (["l.safetensors,m.safetensors", "--out", "out"], 4, "l.safetensors: no such model file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], code: int, told: str, refused: Call, data_folder: Path
) -> None:
    refused("evaluate", *arguments, "--data", data_folder, code=code, told=told)


def test_predictions_without_labels_are_checked(call: Call, refused: Call, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("ImageId,ClassId,EncodedPixels\nsheet_00000.jpg,3,1 9\nsheet_00001.jpg,,\n")
    alone = call("evaluate", "--predictions", "p.csv")
    assert (alone.code, alone.err) == (0, "")
    assert alone.out.splitlines()[-1].split() == ["3", "1", "9"]
    compared = call("evaluate", "--predictions", "p.csv", "--images", data_folder / "train_images", "--json")
    assert compared.code == 3, "22 images are missing"
    assert json.loads(compared.out)["empty_images"] == 1
    refused("evaluate", "m.safetensors", "--out", "out", code=2, told="evaluate needs --data DIR")
    refused("evaluate", "--predictions", "p.csv", "--out", "out", code=2, told="evaluate needs --data DIR")
    refused("evaluate", "--predictions", "p.csv", "--subset", "val", code=2, told="go with MODEL")
    refused("evaluate", "--predictions", "p.csv", "--group", "c", code=2, told="evaluate needs --data DIR")
