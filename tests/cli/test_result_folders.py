"""What commands make of an output folder that is there: one guard for all that write results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defectseg.cli.main import app
from defectseg.data.synthetic import write_data_folder
from defectseg.errors import OutputExistsError, ResourceError
from defectseg.files import folder_lock


@pytest.fixture(params=["predict", "evaluate", "data check"])
def command(
    request: pytest.FixtureRequest, tmp_path: Path, grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
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
        "evaluate": ["--predictions", str(data / "train.csv"), "--data", str(data)],
        "data check": [str(data)],
    }
    return [*request.param.split(), *arguments[request.param], "--out", str(tmp_path / "out")]


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def _tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", ["notes.txt", "overlays2/a.jpg"])
def test_a_folder_of_something_else_is_refused_by_name_and_untouched(
    command: list[str], flags: list[str], name: str, tmp_path: Path
) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("dear to somebody")

    refused = _run(*command, *flags)

    assert isinstance(refused.exception, OutputExistsError)
    assert f"holds {name.split('/')[0]}" in str(refused.exception)
    assert refused.exception.go_on == {}
    assert [path.name for path in _tree(tmp_path / "out")] == [Path(name).name]


def test_results_of_the_same_command_are_continued_or_replaced_only_if_that_is_asked_for(
    command: list[str], tmp_path: Path
) -> None:
    assert _run(*command).exit_code == 0
    before = _tree(tmp_path / "out")

    again = _run(*command)

    if command[0] == "predict":
        assert again.exit_code == 0
        assert "4 were done before" in again.output
    else:
        assert isinstance(again.exception, OutputExistsError)
        assert again.exception.go_on == {"overwrite": True}
        assert _tree(tmp_path / "out") == before
    assert _run(*command, "--overwrite").exit_code == 0
    assert _tree(tmp_path / "out").keys() == before.keys()


def test_what_file_managers_and_killed_runs_leave_does_not_count(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "~$images.csv", ".lock", ".tmp-00.csv"):
        (tmp_path / "out" / name).touch()

    assert _run(*command).exit_code == 0
    assert not (tmp_path / "out" / ".tmp-00.csv").exists()


def test_a_folder_in_use_and_a_file_in_its_place_are_refused(command: list[str], tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out"):
        assert isinstance(_run(*command).exception, ResourceError)
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    assert isinstance(_run(*command).exception, ResourceError)
