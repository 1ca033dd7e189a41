"""`defectseg tune` through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.errors import UsageError
from defectseg.model.info import read_model_info
from defectseg.tune.goals import BEST_DICE, LeastCost, MaxFalseAlarms, TargetRecall

Call = Callable[..., Any]


@pytest.fixture
def model(trained_run: Path, tmp_path: Path) -> Path:
    """The model in a run folder that may be tuned."""
    return Path(shutil.copytree(trained_run, tmp_path / "run")) / "model.safetensors"


@pytest.mark.slow
def test_tuning_shows_a_row_for_each_class_and_stores_the_choice(
    call: Call, model: Path, data_folder: Path, tmp_path: Path
) -> None:
    done = call("tune", "run", "--data", data_folder, "--device", "cpu", "--out", "t.json", "--folds", "3")

    assert done.code == 0, done.err
    lines = done.out.splitlines()
    info = read_model_info(model)
    assert lines[0].startswith("Chosen by search on the 6 validation images of fold 0, best Dice.")
    assert lines[1].split()[:3] == ["class", "images", "gate"]
    for line, name, gate in zip(lines[2:6], info.class_names, info.thresholds.gate, strict=True):
        assert line.startswith(name)
        assert line.removeprefix(name).split()[1] == f"{gate:g}"
    assert lines[6].startswith("all ")
    assert lines[7].startswith("Against the defaults, in cross-validation: ")
    assert lines[8:] == ["Stored in: run/model.safetensors", "Stored in: t.json"]
    assert info.thresholds.chosen_by == "search on the 6 validation images of fold 0, best Dice"
    assert json.loads((tmp_path / "t.json").read_text())["thresholds"] == info.thresholds.model_dump(mode="json")
    assert "warning: " in done.err


@pytest.mark.slow
def test_a_dry_run_leaves_the_model_and_json_holds_all_figures_and_3_tells_of_a_torn_image(
    call: Call, model: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    split = (model.parent / "split.csv").read_text().splitlines()
    torn = data / "train_images" / next(line for line in split if line.split(",")[1] == "0").split(",")[0]
    torn.write_bytes(b"torn")
    before = model.read_bytes()

    done = call("tune", "run", "--data", data, "--device", "cpu", "--json", "--dry-run", "--target-recall", "0.9")

    assert done.code == 3, done.err
    assert model.read_bytes() == before
    content: dict[str, Any] = json.loads(done.out)
    assert content["goal"] == "fewest false alarms at a recall of 0.9"
    assert (content["images"], content["stored"]) == (5, [])
    assert [name for name, _ in content["unreadable"]] == [torn.name]
    assert len(content["classes"]) == len(content["thresholds"]["gate"]) == 4
    assert set(content["metrics"]) == {"kaggle_dice", "all_empty", "positive_dice", "miou"}
    assert f"left out, unreadable: {torn}" in done.err
    assert all(f"warning: {warning}" in done.err for warning in content["warnings"])


def test_flags_reach_the_library(call: Call, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def refuse(models: object, data: Path, **options: Any) -> Any:
        del options["progress"]
        asked.append({"models": models, **options})
        raise UsageError("asked enough")

    monkeypatch.setattr("defectseg.tune.tune.tune", refuse)
    call("tune", "m.xml", "--data", data_folder)
    flags = ("--runtime", "onnx", "--device", "mps", "--tta", "flips", "--dry-run", "--bit-depth", 12, "--folds", 2)
    call("tune", "m.xml,n.xml", "--data", data_folder, *flags, "--split", "s.csv", "--out", "t.json")
    for goal in (
        ("--target-recall", 0.9),
        ("--max-false-alarms", 0),
        ("--cost-miss", 2, "--cost-false-alarm", 1),
    ):
        call("tune", "m.xml", "--data", data_folder, "--subset", "all", *goal)

    plain = dict.fromkeys(("split", "out", "tta", "bit_depth")) | {"runtime": "auto", "device": "auto"}
    plain |= {"dry_run": False, "folds": 5, "subset": "val", "goal": BEST_DICE}
    assert asked[0] == {"models": (Path("m.xml"),), **plain}
    given = {"models": (Path("m.xml"), Path("n.xml")), "split": Path("s.csv"), "out": Path("t.json")}
    given |= {"runtime": "onnx", "device": "mps", "tta": "flips", "dry_run": True, "bit_depth": 12, "folds": 2}
    assert asked[1] == plain | given
    assert {one["subset"] for one in asked[2:]} == {"all"}
    assert [one["goal"] for one in asked[2:]] == [TargetRecall(0.9), MaxFalseAlarms(0), LeastCost(2, 1)]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--target-recall", "0.9", "--max-false-alarms", "0.1"], 2, "give one of --target-recall"),
        (["--target-recall", "0.9", "--cost-miss", "1", "--cost-false-alarm", "1"], 2, "give one of"),
        (["--cost-miss", "1"], 2, "go together"),
        (["--cost-false-alarm", "1"], 2, "go together"),
        (["--cost-miss", "inf", "--cost-false-alarm", "1"], 2, "--cost-miss"),
        (["--cost-miss", "2", "--cost-false-alarm", "-1"], 2, "--cost-false-alarm"),
        (["--target-recall", "nan"], 2, "--target-recall"),
        (["--max-false-alarms", "1.5"], 2, "--max-false-alarms"),
        (["--subset", "all", "--split", "split.csv"], 2, "leave --subset at val"),
        (["--folds", "1"], 2, "--folds"),
        (["--out", "there.json"], 2, "--out: there.json: exists. Choose another"),
        (["--out", "."], 2, "--out: .: exists. Choose another"),
        ([], 4, "missing.safetensors: no such model file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Call, data_folder: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    (tmp_path / "there.json").write_text("{}")
    refused("tune", "missing.safetensors", "--data", data_folder, *arguments, code=code, told=told)
