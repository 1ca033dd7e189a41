"""What commands make of an output folder that is there: one guard for all that write results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.data.synthetic import write_data_folder
from defectseg.files import folder_lock

Call = Callable[..., Any]


@pytest.fixture(params=["predict", "merge", "evaluate", "compare", "drift", "data check"])
def command(
    request: pytest.FixtureRequest, tmp_path: Path, grey_runtime: Call, call: Call, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The words of a command that writes to `out`."""
    data, model = tmp_path / "data", tmp_path / "m.safetensors"
    write_data_folder(data, images=4, seed=5, size_hw=(64, 128))
    model.write_bytes(b"weights")
    runtime = grey_runtime()
    monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *asked, workers: (runtime, runtime.info))
    monkeypatch.setattr("defectseg.predict.predict.model_identity", lambda models: "0" * 64)
    arguments = {
        "predict": [str(model), str(data / "train_images")],
        "merge": [str(tmp_path / "shard")],
        "evaluate": ["--predictions", str(data / "train.csv"), "--data", str(data)],
        "compare": [str(data / "train.csv"), str(data / "train.csv"), "--data", str(data)],
        "drift": [str(tmp_path / "shard"), "--group", "."],
        "data check": [str(data)],
    }
    if request.param in ("merge", "drift"):
        assert call("predict", *arguments["predict"], "--shard", "1/1", "--out", tmp_path / "shard").code == 0
    return [*request.param.split(), *arguments[request.param], "--out", str(tmp_path / "out")]


def _tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_of_something_else_is_refused_by_name_and_untouched(
    command: list[str], flags: list[str], refused: Call, tmp_path: Path
) -> None:
    (tmp_path / "out" / "overlays2").mkdir(parents=True)
    (tmp_path / "out" / "overlays2" / "a.jpg").write_text("dear to somebody")

    refused(*command, *flags, code=2, told="holds overlays2")

    assert [path.name for path in _tree(tmp_path / "out")] == ["a.jpg"]


def test_results_of_the_same_command_are_continued_or_replaced_only_if_that_is_asked_for(
    command: list[str], call: Call, refused: Call, tmp_path: Path
) -> None:
    assert call(*command).code == 0
    before = _tree(tmp_path / "out")

    if command[0] in ("predict", "drift"):
        assert {"predict": "4 were done before", "drift": "Not judged"}[command[0]] in call(*command).out
    else:
        refused(*command, code=2, told="--overwrite")
        assert _tree(tmp_path / "out") == before
    assert call(*command, "--overwrite").code == 0
    assert _tree(tmp_path / "out").keys() == before.keys()


def test_what_file_managers_and_killed_runs_leave_does_not_count(
    command: list[str], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "~$images.csv", ".lock", ".tmp-00.csv"):
        (tmp_path / "out" / name).touch()

    assert call(*command).code == 0
    assert not (tmp_path / "out" / ".tmp-00.csv").exists()


def test_a_folder_in_use_and_a_file_in_its_place_are_refused(command: list[str], refused: Call, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out"):
        refused(*command, code=4, told="out")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    refused(*command, code=4, told="out")
