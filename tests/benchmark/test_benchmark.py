"""What is measured, on a runtime whose calls can be counted, and how several runtimes are reported."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.benchmark import benchmark as module
from defectseg.benchmark.benchmark import STAGES, benchmark, measure, resolve_runtimes, run_network, run_pipeline
from defectseg.errors import CannotContinueError, DataError, ExitCode, UsageError
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("auto", ("auto",)),
        ("all", ("torch", "openvino", "onnx")),
        ("onnx, torch", ("onnx", "torch")),
        ("openvino,all,auto", ("openvino", "torch", "onnx", "auto")),
    ],
)
def test_a_list_of_runtimes_keeps_its_order_and_names_each_once(text: str, names: tuple[str, ...]) -> None:
    assert resolve_runtimes(text) == names


@pytest.mark.parametrize("text", ["tensorrt", "torch,", ""])
def test_an_unknown_runtime_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected all, auto, torch, openvino, onnx"):
        resolve_runtimes(text)


def test_the_network_alone_is_called_as_the_pipeline_calls_it(
    grey_runtime: Callable[..., Any], images: list[FoundImage], tmp_path: Path
) -> None:
    runtime = grey_runtime(tile_hw=(8, 8), tile_overlap_px=4)
    flipped = Settings.of(runtime.info, tta="flips")
    run_pipeline(runtime, flipped, images, tmp_path / "out")
    by_pipeline = Counter(runtime.calls)
    runtime.calls.clear()
    run_network(runtime, flipped, [decode(found.path).pixels for found in images])
    assert Counter(runtime.calls) == by_pipeline
    assert by_pipeline == {(1, 1, 8, 8): 3 * 3 * 4}  # tiles begin in columns 0, 4 and 8; each is seen in 4 views


def test_the_pipeline_writes_everything_and_leaves_nothing(
    grey_runtime: Callable[..., Any],
    images: list[FoundImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    remove = shutil.rmtree

    def look_and_remove(folder: Path) -> None:
        written.extend(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
        remove(folder)

    monkeypatch.setattr("shutil.rmtree", look_and_remove)
    runtime = grey_runtime()
    seconds = run_pipeline(runtime, runtime.settings, images, tmp_path / "out")
    assert {"overlays/0.jpg", "masks/2.png", "predictions.csv", "images.csv", "regions.csv"} <= set(written)
    assert not (tmp_path / "out").exists()
    assert seconds > 0


def test_a_measurement_takes_pipeline_and_network_in_turn(
    grey_runtime: Callable[..., Any], images: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, order = grey_runtime(), list[str]()

    def pipeline(runtime: Any, settings: Settings, images: Sequence[FoundImage], folder: Path) -> float:
        order.append(f"pipeline {len(images)}")
        return {"warm-up": 99.0, "first": 1.0, "1": 0.5, "2": 4.0}[folder.name]

    def network(runtime: Any, settings: Settings, pixels: Sequence[Any]) -> float:
        order.append(f"network {len(pixels)}")
        return 0.75

    monkeypatch.setattr(module, "run_pipeline", pipeline)
    monkeypatch.setattr(module, "run_network", network)
    stages_ms = np.array([[1, 8, 1, 3, 2], [2, 16, 2, 3, 2], [3, 36, 1, 3, 2]], np.float64)
    monkeypatch.setattr(module, "run_stages", lambda *asked: stages_ms)
    monkeypatch.setattr(module, "peak_memory_mb", lambda: 123.4)

    figures = measure(runtime, runtime.settings, images, tmp_path, rounds=3)

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


def test_a_measurement_of_a_real_run_has_all_figures(
    grey_runtime: Callable[..., Any], images: list[FoundImage], tmp_path: Path
) -> None:
    runtime = grey_runtime()
    figures = measure(runtime, runtime.settings, images, tmp_path / "work", rounds=2)
    assert len(runtime.calls) == 2 + 2 * (3 + 3) + 3  # warm-up, two rounds of both, stages
    assert figures["pipeline_share"] == pytest.approx(
        figures["pipeline_images_per_s"] / figures["network_images_per_s"], abs=1e-4
    )
    assert all(figures["stages_ms"][stage] > 0 for stage in STAGES)


def test_images_that_cannot_be_read_are_left_out(
    images: list[FoundImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images[0].path.write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        chosen, sizes_hw = module._choose(images, 9)
    assert ([found.image_id for found in chosen], sizes_hw) == (["1.png", "2.png"], [(8, 16)] * 2)
    assert "0.png" in caplog.text
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        module._choose(images[:1], 9)


def test_no_more_images_are_taken_than_asked_for_or_may_be_held(
    images: list[FoundImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(module._choose(images, 2)[0]) == 2
    monkeypatch.setattr(module, "_MOST_PX", 8 * 16 * 2)
    assert len(module._choose(images, 9)[0]) == 2
    monkeypatch.setattr(module, "_MOST_PX", 1)
    assert len(module._choose(images, 9)[0]) == 1  # one is needed, however large


def answer_with(monkeypatch: pytest.MonkeyPatch, **results: Any) -> list[Any]:
    """Have each runtime measured as it is said here; returns the jobs as they come."""
    jobs: list[Any] = []

    def measure_apart(job: Any) -> Any:
        jobs.append(job)
        return results[job.runtime]

    monkeypatch.setattr(module, "_measure_apart", measure_apart)
    return jobs


def test_what_cannot_be_measured_is_told_in_its_row(images: list[FoundImage], monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = module._Refusal("needs a package", ExitCode.CANNOT_CONTINUE)
    jobs = answer_with(monkeypatch, torch=FIGURES, onnx=refusal)
    steps: list[tuple[int, int, str]] = []

    result = benchmark(
        Path("m.safetensors"),
        images,
        runtimes=("torch", "onnx"),
        num_images=2,
        workers=3,
        progress=lambda done, total, text="": steps.append((done, total, text)),
    )

    assert result["runtimes"] == [{"runtime": "torch", **FIGURES}, {"runtime": "onnx", "error": "needs a package"}]
    assert result["images"] == {"count": 2, "synthetic": False, "sizes": ["8x16"]}
    assert (result["model"], steps) == ("m.safetensors", [(0, 2, "torch"), (1, 2, "onnx")])
    assert [(job.runtime, job.workers, job.images) for job in jobs] == [
        ("torch", 3, tuple(images[:2])),
        ("onnx", 3, tuple(images[:2])),
    ]


@pytest.mark.parametrize(
    ("code", "error"), [(ExitCode.CANNOT_CONTINUE, CannotContinueError), (ExitCode.USAGE, UsageError)]
)
def test_where_nothing_can_be_measured_the_reasons_are_raised(
    images: list[FoundImage], monkeypatch: pytest.MonkeyPatch, code: ExitCode, error: type[Exception]
) -> None:
    answer_with(monkeypatch, torch=module._Refusal("No.", code), onnx=module._Refusal("Neither.", code))
    with pytest.raises(error, match=r"^No\. Neither\.$"):
        benchmark(Path("m"), images, runtimes=("torch", "onnx"))


def test_without_images_it_measures_on_synthetic_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = [answer_with(monkeypatch, auto=FIGURES)]
    result = benchmark(Path("m"), num_images=2)
    assert result["images"] == {"count": 2, "synthetic": True, "sizes": ["256x1600"]}
    assert not any(found.path.exists() for found in job[0].images)


def test_less_than_one_image_is_refused() -> None:
    with pytest.raises(UsageError, match="images: expected 1 or more"):
        benchmark(Path("m"), num_images=0)


def test_a_process_that_dies_is_a_reason_not_a_crash(
    images: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DyingPool:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __enter__(self) -> "DyingPool":
            return self

        def __exit__(self, *args: object) -> None: ...
        def submit(self, *args: Any) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(module, "ProcessPoolExecutor", DyingPool)
    result = module._measure_apart(module._Job((Path("m"),), tuple(images), "onnx", "cpu", None, tmp_path / "work"))
    assert isinstance(result, module._Refusal)
    assert "the process that measured onnx died" in result.message
