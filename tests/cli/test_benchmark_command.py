"""`defectseg benchmark` through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.benchmark.benchmark import STAGES
from defectseg.data.folder import images_folder

Call = Callable[..., Any]

OPENVINO = {
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
}
TORCH = OPENVINO | {"runtime": "torch", "name": "torch cpu", "parallel": 1, "peak_memory_mb": 800.4}
VERSIONS = {"defectseg": "1.0", "openvino": "2.0"}
RESULT = {
    "model": "m.safetensors",
    "machine": {"cpu": "Xeon", "cores": 2, "cpu_flags": ["avx2", "amx_bf16"], "versions": VERSIONS},
    "images": {"count": 32, "synthetic": True, "sizes": ["256x1600"]},
    "runtimes": [OPENVINO, TORCH, {"runtime": "onnx", "error": "needs packages that are not installed."}],
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library was asked for; it answers RESULT."""
    asked: list[Any] = []

    def answer(models: Any, images: Any, **options: Any) -> dict[str, Any]:
        asked.append({"models": models, "images": images, **options})
        return RESULT

    monkeypatch.setattr("defectseg.benchmark.benchmark.benchmark", answer)
    return asked


def test_flags_reach_the_library(call: Call, requests: list[Any], data_folder: Path) -> None:
    flags = ("--runtime", "all", "--images", "7", "--workers", "2", "--device", "cpu")
    assert call("benchmark", "m.xml,n.xml", images_folder(data_folder), *flags).code == 0
    assert call("benchmark", "m.xml").code == 0
    for request in requests:
        del request["progress"]
    assert len(requests[0].pop("images")) == 24
    assert requests == [
        {"models": (Path("m.xml"), Path("n.xml")), "runtimes": ("torch", "openvino", "onnx"), "num_images": 7}
        | {"workers": 2, "device": "cpu"},
        {"models": (Path("m.xml"),), "images": (), "runtimes": ("auto",), "num_images": 32}
        | {"workers": None, "device": "auto"},
    ]


def test_it_shows_machine_figures_stages_and_what_failed(call: Call, requests: list[Any]) -> None:
    assert call("benchmark", "m.safetensors").out.splitlines() == [
        "Xeon, 2 cores, avx2 amx_bf16",
        "defectseg 1.0, openvino 2.0",
        "32 synthetic sheets of 256x1600 px",
        "",
        "                              network/s  pipeline/s  share  p50 ms  p95 ms  memory MB  first answer s",
        "openvino cpu bf16, 2 at once      24.00       20.40    85%    45.0    51.2    unknown            0.51",
        "torch cpu                         24.00       20.40    85%    45.0    51.2        800            0.51",
        "",
        "One image in each stage, ms; stages of different images overlap:",
        "                              read  network  postprocess  render  write",
        "openvino cpu bf16, 2 at once   1.0     83.2          3.0     4.0    0.5",
        "torch cpu                      1.0     83.2          3.0     4.0    0.5",
        "",
        "onnx: needs packages that are not installed.",
    ]
    assert json.loads(call("benchmark", "m.safetensors", "--json").out) == RESULT


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--runtime", "torch,tensorrt"], 2, "--runtime: expected all, auto, torch, openvino, onnx"),
        (["--images", "0"], 2, "--images"),
        (["--workers", "0"], 2, "--workers"),
        ([], 4, "missing.xml: no such model file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Call, data_folder: Path, arguments: list[str], code: int, told: str
) -> None:
    refused("benchmark", "missing.xml", images_folder(data_folder), *arguments, code=code, told=told)


@pytest.mark.slow
def test_a_real_measurement_has_every_figure_and_no_conversion_in_it(
    call: Call, trained_run: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "cache"))
    flags = ("--runtime", "openvino", "--device", "cpu", "--images", "3", "--workers", "1", "--json")

    done = call("benchmark", trained_run, images_folder(data_folder), *flags)

    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["images"] == {"count": 3, "synthetic": False, "sizes": ["64x128"]}
    (row,) = result["runtimes"]
    assert row["name"].startswith("openvino cpu")
    assert row["parallel"] == 1
    assert set(row["stages_ms"]) == set(STAGES)
    for figure in ("network_images_per_s", "pipeline_images_per_s", "pipeline_share", "cold_start_s"):
        assert row[figure] > 0
    assert row["latency_ms"]["p95"] >= row["latency_ms"]["p50"] > 0
    assert 30 < row["peak_memory_mb"] < 450  # a conversion, with torch, takes 900
