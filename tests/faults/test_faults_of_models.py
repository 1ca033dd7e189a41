"""Faults of trainings and exports, which are costly: a few each."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.model.locate import model_identity

pytestmark = pytest.mark.slow
Commands = Any


def test_an_export_to_a_really_full_disk_says_so(trained_run: Path, torch_commands: Commands, tmp_path: Path) -> None:
    if not torch_commands.may_mount:
        pytest.skip("this machine lets nobody mount a small disk")
    torch_commands.mount(tmp_path, "size=200k")
    done = torch_commands(
        "export", trained_run, "--format", "openvino", "--size", "64x128", "--out", tmp_path / "model.xml"
    )
    assert (done.code, "no space left" in done.said) == (4, True), done.said
    assert list(torch_commands.seen(tmp_path).iterdir()) == []


@pytest.fixture
def train(tiny_recipe: Path, data_folder: Path, torch_commands: Commands, tmp_path: Path) -> Callable[..., Any]:
    """Trains the tiny recipe, or resumes it, with a worker that loads data; with the arguments of a fault."""

    def run(name: str, resume: bool = False, **fault: Any) -> Any:
        begin = (tiny_recipe, "--data", data_folder, "--set", "data.workers=1")
        out = ("--device", "cpu", "--out", tmp_path / name)
        return torch_commands("train", *(("--resume",) if resume else begin), *out, under=tmp_path / name, **fault)

    return run


def _trained(run: Path) -> tuple[str, list[Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    figures = [{key: value for key, value in json.loads(line).items() if not key.endswith("_s")} for line in lines]
    return model_identity(run / "model.safetensors"), figures


def test_a_training_that_fails_resumes_bit_for_bit(train: Callable[..., Any], tmp_path: Path) -> None:
    undisturbed = train("whole", events=["rename"])
    assert undisturbed.code == 0, undisturbed.said
    faults: dict[str, dict[str, Any]] = {
        "a worker that loads data was killed": {"kill_children": True},
        "no space left": {"errno": errno.ENOSPC, "lasting": True},
    }
    for told, fault in faults.items():
        name = told.replace(" ", "_")
        done = train(name, events=["rename"], at=undisturbed.events // 2, **fault)
        assert (done.code, told in done.said) == (4, True), done.said
        resumed = train(name, resume=True)
        assert resumed.code == 0, resumed.said
        assert _trained(tmp_path / name) == _trained(tmp_path / "whole")
        names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in (name, "whole")]
        assert names[0] == names[1]
