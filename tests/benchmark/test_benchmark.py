"""What is measured, on a runtime whose calls can be counted, and how several runtimes are reported."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.benchmark import benchmark as module
from defectseg.benchmark.benchmark import (
    STAGES,
    benchmark,
    measure,
    resolve_runtimes,
    run_network,
    run_pipeline,
    run_stages,
)
from defectseg.errors import CannotContinueError, DataError, MissingExtraError, UsageError
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import decode
from defectseg.inference.settings import Settings

FIGURES = {"name": "a runtime", "parallel": 1, "network_images_per_s": 10.0}


@pytest.fixture
def images(tmp_path: Path) -> list[FoundImage]:
    """Three sheets of 8 x 16, the last with a pit."""
    for number, level in enumerate((60, 60, 120)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 16), level, np.uint8))
    return find_images([tmp_path])


def test_a_list_of_runtimes_keeps_its_order_and_names_each_once() -> None:
    assert resolve_runtimes("onnx, torch") == ("onnx", "torch")
    assert resolve_runtimes("openvino,all,auto") == ("openvino", "torch", "onnx", "auto")
    for text in ("tensorrt", "torch,", ""):
        with pytest.raises(UsageError, match="expected all, auto, torch, openvino, onnx"):
            resolve_runtimes(text)


def test_pipeline_network_and_stages_do_the_same_work_and_leave_nothing(
    grey_runtime: Callable[..., Any], images: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = grey_runtime(tile_hw=(8, 8), tile_overlap_px=4)
    flipped, written, remove = Settings.of(runtime.info, tta="flips"), list[str](), shutil.rmtree

    def look_and_remove(folder: Path) -> None:
        written.extend(str(path.relative_to(folder)) for path in folder.rglob("*"))
        remove(folder)

    monkeypatch.setattr("shutil.rmtree", look_and_remove)
    assert 0 < run_pipeline(runtime, flipped, images, tmp_path / "out") < 60
    assert {"overlays/0.jpg", "masks/2.png", "predictions.csv", "images.csv", "regions.csv"} <= set(written)
    calls = [Counter(runtime.calls)]
    runtime.calls.clear()
    assert 0 < run_network(runtime, flipped, [decode(found.path).pixels for found in images]) < 60
    calls.append(Counter(runtime.calls))
    runtime.calls.clear()
    stages_ms = run_stages(runtime, flipped, images, tmp_path / "out")
    assert stages_ms.shape == (3, len(STAGES))
    assert (stages_ms > 0).all()
    # Tiles begin in columns 0, 4 and 8; each is seen in 4 views.
    assert [*calls, Counter(runtime.calls)] == [{(1, 1, 8, 8): 3 * 3 * 4}] * 3
    assert not (tmp_path / "out").exists()


def test_a_measurement_takes_pipeline_and_network_in_turn(
    grey_runtime: Callable[..., Any], images: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, order = grey_runtime(), list[str]()
    pipeline_s = iter([99.0, 1.0, 0.5, 4.0])

    def pipeline(runtime: Any, settings: Settings, images: Sequence[FoundImage], folder: Path) -> float:
        order.append(f"pipeline {len(images)}")
        return next(pipeline_s)

    def network(runtime: Any, settings: Settings, pixels: Sequence[Any]) -> float:
        order.append(f"network {len(pixels)}")
        return 0.75

    monkeypatch.setattr(module, "run_pipeline", pipeline)
    monkeypatch.setattr(module, "run_network", network)
    stages_ms = np.array([[1, 8, 1, 3, 2], [2, 16, 2, 3, 2], [3, 36, 1, 3, 2]], np.float64)
    monkeypatch.setattr(module, "run_stages", lambda *asked: stages_ms)
    monkeypatch.setattr(module, "peak_memory_mb", lambda: 123.4)

    figures = measure(runtime, runtime.settings, images, tmp_path)

    assert order == ["pipeline 2", *["pipeline 3", "network 3"] * 3]
    assert figures == {
        "name": "grey levels",
        "parallel": 1,
        "network_images_per_s": 4.0,  # 3 images in 0.75 s
        "pipeline_images_per_s": 3.0,  # in 1 s, the median of 1, 0.5 and 4
        "pipeline_share": 0.75,
        "stages_ms": {"read": 2.0, "network": 20.0, "postprocess": 1.333, "render": 3.0, "write": 2.0},
        "latency_ms": {"p50": 20.0, "p95": 38.0},  # of 10, 20 and 40 until regions are known
        "peak_memory_mb": 123.4,
    }


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[FoundImage]]:
    """The images that a fresh process is asked to measure on; none is started, and each answers FIGURES at once."""
    asked: list[list[FoundImage]] = []

    def submit(pool: object, function: object, *arguments: Any) -> Future[dict[str, Any]]:
        asked.append(arguments[-2])
        future: Future[dict[str, Any]] = Future()
        future.set_result(FIGURES)
        return future

    answers = iter([1.0, 9.0, 3.0] * 9)
    monkeypatch.setattr("time.time", lambda: 100.0)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout=f"{100 + next(answers)}\n".encode()))
    monkeypatch.setattr(module, "machine_facts", dict)
    monkeypatch.setattr(module, "load_runtime", load_or_refuse)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", submit)
    return asked


def load_or_refuse(models: Any, device: str, runtime: str, *, workers: int | None) -> None:
    if runtime == "onnx":
        raise MissingExtraError("ONNX Runtime", "onnx")


def test_what_cannot_be_measured_is_told_in_its_row(images: list[FoundImage], jobs: list[list[FoundImage]]) -> None:
    steps: list[tuple[int, int, str]] = []
    result = benchmark(
        [Path("a.xml"), Path("b.xml")],
        images,
        runtimes=("torch", "onnx"),
        num_images=2,
        workers=3,
        progress=lambda done, total, text="": steps.append((done, total, text)),
    )
    measured, refused = result["runtimes"]
    assert measured == {"runtime": "torch", **FIGURES, "cold_start_s": 3.0}, "the median of 1, 9 and 3 s"
    assert (refused["runtime"], "defectseg[onnx]" in refused["error"]) == ("onnx", True)
    assert result["images"] == {"count": 2, "synthetic": False, "sizes": ["8x16"]}
    assert (result["model"], steps) == ("a.xml, b.xml", [(0, 2, "torch"), (1, 2, "onnx")])
    assert jobs == [images[:2]]


def test_if_nothing_can_be_measured_the_reason_is_raised(images: list[FoundImage], jobs: list[Any]) -> None:
    with pytest.raises(MissingExtraError, match=r"defectseg\[onnx\]"):
        benchmark(Path("m"), images, runtimes=("onnx",))


def test_a_process_that_dies_is_a_reason_not_a_crash(
    images: list[FoundImage], jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object, **options: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", die)
    with pytest.raises(CannotContinueError, match="the process that measured torch died"):
        benchmark(Path("m"), images, runtimes=("torch",))


def test_without_images_it_measures_on_synthetic_sheets(jobs: list[list[FoundImage]]) -> None:
    result = benchmark(Path("m"), num_images=2)
    assert result["images"] == {"count": 2, "synthetic": True, "sizes": ["256x1600"]}
    assert not any(found.path.exists() for found in jobs[0])


def test_images_that_cannot_be_read_are_left_out(
    images: list[FoundImage], jobs: list[list[FoundImage]], caplog: pytest.LogCaptureFixture
) -> None:
    images[0].path.write_bytes(b"no picture")
    benchmark(Path("m"), images)
    assert jobs == [images[1:]]
    assert "0.png" in caplog.text
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        benchmark(Path("m"), images[:1])


def test_no_more_images_are_taken_than_may_be_held(
    images: list[FoundImage], jobs: list[list[FoundImage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for most_px, taken in ((8 * 16 * 2, 2), (1, 1)):  # one is needed, however large
        monkeypatch.setattr(module, "MOST_PX", most_px)
        benchmark(Path("m"), images)
        assert jobs[-1] == images[:taken]
