"""`defectseg info`: what is in a model, what is on this machine."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import defectseg

Call = Callable[..., Any]


def test_a_model_is_described(call: Call, trained_run: Path) -> None:
    done, shown = call("info", trained_run, "--json"), call("info", trained_run)

    assert (done.code, done.err) == (0, "")
    content = json.loads(done.out)
    assert content["classes"] == {"1": "pits", "2": "cracks", "3": "scratches", "4": "patches"}
    assert (content["trained_on_images"], content["fold_held_out"], content["export"]) == (18, 0, None)
    told = yaml.safe_load(shown.out)
    assert told == {**content, "classes": {1: "pits", 2: "cracks", 3: "scratches", 4: "patches"}}
    assert list(told)[:3] == ["model", "network", "classes"]


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
