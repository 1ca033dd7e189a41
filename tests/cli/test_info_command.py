"""`defectseg info`: what is in a model, what is on this machine."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import defectseg
from defectseg.model.locate import model_identity
from defectseg.runtime.load import load_runtime

Call = Callable[..., Any]


def test_a_model_is_described(call: Call, trained_run: Path) -> None:
    done, shown = call("info", trained_run, "--json"), call("info", trained_run)

    assert (done.code, done.err) == (0, "")
    content = json.loads(done.out)
    assert content["classes"] == {"1": "pits", "2": "cracks", "3": "scratches", "4": "patches"}
    assert (content["trained_on_images"], content["fold_held_out"], content["export"]) == (18, 0, None)
    told = yaml.safe_load(shown.out)
    assert told == {**content, "classes": {1: "pits", 2: "cracks", 3: "scratches", 4: "patches"}}
    assert list(told)[:4] == ["model", "sha256", "runs_here_in", "network"]
    assert content["sha256"] == model_identity(trained_run / "model.safetensors")
    assert content["runs_here_in"] == load_runtime(trained_run / "model.safetensors")[0].name


@pytest.mark.slow
def test_the_machine_is_described_with_a_runtime_that_is_broken(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(call("info", "--json").out)
    monkeypatch.setitem(sys.modules, "defectseg.runtime.onnx", None)
    broken = call("info")

    assert whole["defectseg"] == defectseg.__version__
    assert set(whole["runtimes"]) == {"torch", "openvino", "onnxruntime"}
    for runtime in whole["runtimes"].values():
        assert runtime["version"]
        assert runtime["devices"][0].startswith("cpu")
    told = yaml.safe_load(broken.out)["runtimes"]["onnxruntime"]["error"]
    assert "cannot be imported: ModuleNotFoundError" in told
