"""`defectseg benchmark` through the command line."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from defectseg.benchmark.benchmark import STAGES
from defectseg.cli import options
from defectseg.cli.main import main
from defectseg.data.folder import images_folder

Call = Callable[..., tuple[int, str, str]]

RESULT = {
    "model": "m.safetensors",
    "machine": {
        "cpu": "Xeon",
        "cores": 2,
        "cpu_flags": ["avx2", "amx_bf16"],
        "versions": {"defectseg": "1.0", "openvino": "2.0"},
    },
    "images": {"count": 32, "synthetic": True, "sizes": ["256x1600"]},
    "runtimes": [
        {
            "runtime": "openvino",
            "name": "openvino cpu bf16",
            "parallel": 2,
            "network_images_per_s": 24.0,
            "pipeline_images_per_s": 20.4,
            "pipeline_share": 0.85,
            "stages_ms": {"read": 1.04, "network": 83.2, "postprocess": 3.0, "render": 4.0, "write": 0.5},
            "latency_ms": {"p50": 45.0, "p95": 51.25},
            "peak_memory_mb": None,
            "cold_start_s": 0.512,
        },
        {"runtime": "onnx", "error": "running an .onnx needs packages that are not installed."},
    ],
}


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
    """Exit code, stdout and stderr of `defectseg benchmark` in the test's folder."""

    def call_main(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GOMP_SPINCOUNT", "1")
        monkeypatch.setattr(sys, "argv", ["defectseg", "benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call_main


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library was asked for; it answers RESULT."""
    asked: list[Any] = []

    def answer(models: Any, images: Any, **options: Any) -> dict[str, Any]:
        asked.append({"models": models, "images": images, **options})
        return RESULT

    monkeypatch.setattr("defectseg.benchmark.benchmark.benchmark", answer)
    return asked


def test_the_flags_reach_the_library(call: Call, requests: list[Any], data_folder: Path) -> None:
    code, _, err = call(
        *("m.safetensors", images_folder(data_folder), "--runtime", "all", "--images", "7", "--workers", "2"),
        *("--device", "cpu"),
    )
    assert code == 0, err
    (request,) = requests
    assert request["models"] == (Path("m.safetensors"),)
    assert len(request["images"]) == 24
    assert (request["runtimes"], request["num_images"]) == (("torch", "openvino", "onnx"), 7)
    assert (request["workers"], request["device"]) == (2, "cpu")


def test_by_default_it_measures_auto_on_synthetic_sheets(call: Call, requests: list[Any]) -> None:
    assert call("m.safetensors")[0] == 0
    (request,) = requests
    expected = {"images": (), "runtimes": ("auto",), "num_images": 32, "workers": None}
    assert {name: request[name] for name in expected} == expected


def test_it_shows_machine_figures_stages_and_what_failed(call: Call, requests: list[Any]) -> None:
    _, out, _ = call("m.safetensors")
    assert out.splitlines() == [
        "Xeon, 2 cores, avx2 amx_bf16",
        "defectseg 1.0, openvino 2.0",
        "32 synthetic sheets of 256x1600 px",
        "",
        "                              network/s  pipeline/s  share  p50 ms  p95 ms  memory MB  first answer s",
        "openvino cpu bf16, 2 at once      24.00       20.40    85%    45.0    51.2    unknown            0.51",
        "",
        "One image in each stage, ms; stages of different images overlap:",
        "                              read  network  postprocess  render  write",
        "openvino cpu bf16, 2 at once   1.0     83.2          3.0     4.0    0.5",
        "",
        "onnx: running an .onnx needs packages that are not installed.",
    ]


def test_json_is_what_the_library_gives(call: Call, requests: list[Any]) -> None:
    _, out, _ = call("m.safetensors", "--json")
    assert json.loads(out) == RESULT


def test_an_unknown_runtime_is_a_mistake_in_usage(call: Call) -> None:
    code, out, err = call("m.safetensors", "--runtime", "torch,tensorrt")
    assert (code, out) == (2, "")
    assert "--runtime: expected all, auto, torch, openvino, onnx" in err


@pytest.mark.slow
def test_a_model_that_is_missing_ends_with_its_own_message(call: Call, data_folder: Path) -> None:
    code, out, err = call("missing.safetensors", images_folder(data_folder), "--runtime", "torch")
    assert (code, out) == (4, "")
    assert "missing.safetensors: no such model file" in err


@pytest.mark.slow
def test_a_real_measurement_has_every_figure_and_no_conversion_in_it(
    call: Call, trained_run: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("defectseg.benchmark.benchmark._COLD_STARTS", 1)
    code, out, err = call(
        *(trained_run, images_folder(data_folder), "--runtime", "openvino", "--images", "3", "--workers", "1", "--json")
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == {"count": 3, "synthetic": False, "sizes": ["64x128"]}
    assert {"cpu", "cores", "cpu_flags", "versions"} <= set(result["machine"])
    (row,) = result["runtimes"]
    assert row["name"].startswith("openvino cpu")
    assert row["parallel"] == 1
    assert set(row["stages_ms"]) == set(STAGES)
    for figure in ("network_images_per_s", "pipeline_images_per_s", "pipeline_share", "cold_start_s"):
        assert row[figure] > 0
    assert row["latency_ms"]["p95"] >= row["latency_ms"]["p50"] > 0
    assert 30 < row["peak_memory_mb"] < 450  # a conversion, with torch, takes 900
