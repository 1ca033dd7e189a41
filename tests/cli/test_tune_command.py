"""`defectseg tune` through the command line."""

import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from defectseg.cli import options
from defectseg.cli.main import main
from defectseg.errors import UsageError
from defectseg.model.info import read_model_info

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _own_process() -> Iterator[None]:
    """Puts back what the command line sets for the whole process."""
    logger = logging.getLogger("defectseg")
    before = logger.handlers, logger.level, logger.propagate
    handler = signal.getsignal(signal.SIGTERM)
    yield
    logger.handlers, logger.level, logger.propagate = before
    options.state.verbose = False
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def call(
    _own_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Exit code, stdout and stderr of `defectseg tune` in the test's folder."""

    def call_main(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GOMP_SPINCOUNT", "1")
        monkeypatch.setattr(sys, "argv", ["defectseg", "tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call_main


@pytest.fixture
def run_folder(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that may be tuned."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.mark.slow
def test_tuning_shows_a_row_for_each_class_and_stores_the_choice(
    call: Call, run_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    model = run_folder / "model.safetensors"

    code, out, err = call(run_folder, "--data", data_folder, "--device", "cpu", "--out", "t.json", "--folds", "3")

    assert code == 0, err
    lines = out.splitlines()
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
    assert "warning: " in err


@pytest.mark.slow
def test_a_dry_run_leaves_the_model_and_json_holds_all_figures(call: Call, run_folder: Path, data_folder: Path) -> None:
    before = (run_folder / "model.safetensors").read_bytes()

    code, out, err = call(
        run_folder, "--data", data_folder, "--device", "cpu", "--json", "--dry-run", "--target-recall", "0.9"
    )

    assert code == 0, err
    assert (run_folder / "model.safetensors").read_bytes() == before
    content: dict[str, Any] = json.loads(out)
    assert content["goal"] == "fewest false alarms at a recall of 0.9"
    assert (content["images"], content["stored"], content["unreadable"]) == (6, [], [])
    assert len(content["classes"]) == len(content["thresholds"]["gate"]) == 4
    assert set(content["metrics"]) == {"kaggle_dice", "all_empty", "positive_dice", "miou"}
    assert all(f"warning: {warning}" in err for warning in content["warnings"])


def test_flags_reach_the_library(call: Call, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def refuse(models: object, data: Path, **options: Any) -> Any:
        asked.append({"models": models, **options})
        raise UsageError("asked enough")

    monkeypatch.setattr("defectseg.tune.tune.tune", refuse)
    call("m.xml", "--data", data_folder)
    call("m.xml", "--data", data_folder, "--runtime", "onnx", "--device", "mps", "--tta", "flips", "--dry-run")

    assert [tuple(one[name] for name in ("runtime", "device", "tta", "dry_run")) for one in asked] == [
        ("auto", "auto", None, False),
        ("onnx", "mps", "flips", True),
    ]
    assert asked[0]["models"] == (Path("m.xml"),)


@pytest.mark.slow
def test_an_image_that_cannot_be_read_gives_three(
    call: Call, run_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    held_out = next(line for line in (run_folder / "split.csv").read_text().splitlines() if line.endswith(",0"))
    (data / "train_images" / held_out.split(",")[0]).write_bytes(b"torn")

    code, out, err = call(run_folder, "--data", data, "--device", "cpu", "--dry-run")

    assert code == 3
    assert out.startswith("Chosen by search on the 5 validation images")
    assert f"left out, unreadable: {data / 'train_images' / held_out.split(',')[0]}" in err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--target-recall", "0.9", "--max-false-alarms", "0.1"], 2, "give one of --target-recall"),
        (["--target-recall", "0.9", "--cost-miss", "1"], 2, "give one of"),
        (["--cost-miss", "1"], 2, "go together"),
        (["--cost-miss", "0", "--cost-false-alarm", "0"], 2, "one of them above 0"),
        (["--cost-miss", "inf", "--cost-false-alarm", "1"], 2, "expected costs from 0"),
        (["--cost-miss", "2", "--cost-false-alarm", "-1"], 2, "expected costs from 0"),
        (["--target-recall", "0"], 2, "--target-recall 0: expected a share"),
        (["--target-recall", "nan"], 2, "--target-recall nan: expected a share"),
        (["--max-false-alarms", "1.5"], 2, "--max-false-alarms 1.5: expected a share"),
        (["--subset", "train"], 2, "--subset train: expected val or all"),
        (["--subset", "all", "--split", "split.csv"], 2, "leave --subset at val"),
        (["--folds", "1"], 2, "--folds"),
        (["--out", "there.json"], 2, "--out: there.json: exists. Choose another"),
        (["--out", "."], 2, "--out: .: exists. Choose another"),
        ([], 4, "missing.safetensors: no such model file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    call: Call, data_folder: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    (tmp_path / "there.json").write_text("{}")

    ended, out, err = call("missing.safetensors", "--data", data_folder, *arguments)

    assert (ended, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert told in line
