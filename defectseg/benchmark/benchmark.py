"""How fast a model is on this machine: the network alone, the whole pipeline, each of its stages.

Each runtime is measured in a process of its own, so that its memory is its own and none is slowed by the threads of
another.
"""

import logging
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import defectseg
from defectseg.data.synthetic import write_data_folder
from defectseg.errors import CannotContinueError, DataError, DefectsegError, ExitCode, ImageError, UsageError
from defectseg.files import size_and_time
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.segment import segment
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, decode
from defectseg.inference.tiles import answer_tile, cut_tiles, predict_image
from defectseg.machine import machine_facts, peak_memory_mb
from defectseg.model.info import ModelInfo
from defectseg.model.locate import as_paths
from defectseg.predict.output import output_folder
from defectseg.predict.predict import run_batch
from defectseg.predict.render import render
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import RUNTIMES, load_runtime

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

ROUNDS = 3
STAGES = ("read", "network", "postprocess", "render", "write")
_COLD_STARTS = 3
_SYNTHETIC_HW = (256, 1600)
_MOST_PX = 2**28  # of all images together: the network alone is measured on pixels that are held in memory

_FIRST_ANSWER = """
import sys
from defectseg.inference.predictor import Predictor
model, image, device, runtime, workers = sys.argv[1:]
Predictor.load(model, device=device, runtime=runtime, workers=int(workers) or None, keep_probabilities=False)(image)
print("answered", flush=True)
"""


@dataclass(frozen=True)
class _Job:
    """One runtime to measure, as it is sent to a process."""

    model: tuple[Path, ...]
    images: tuple[FoundImage, ...]
    runtime: str
    device: str
    workers: int | None
    folder: Path


@dataclass(frozen=True)
class _Refusal:
    """Why a runtime could not be measured; errors themselves do not all survive the way between processes."""

    message: str
    exit_code: ExitCode


def resolve_runtimes(text: str) -> tuple[str, ...]:
    """What a comma-separated list means: `all` stands for torch, openvino and onnx.

    Raises:
        UsageError: a name that is no runtime, or none at all.
    """
    names = [name.strip() for name in text.split(",")]
    known = ("all", *RUNTIMES)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"expected {', '.join(known)}, or several with commas between them, found {unknown[0]!r}.",
            argument="runtime",
        )
    every = [name for name in RUNTIMES if name != "auto"]
    return tuple(dict.fromkeys(each for name in names for each in (every if name == "all" else [name])))


def benchmark(
    models: Path | Sequence[Path],
    images: Sequence[FoundImage] = (),
    *,
    runtimes: Sequence[str] = ("auto",),
    num_images: int = 32,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure each runtime; what cannot be measured is told in its row, if another one can.

    Args:
        models: model file, or several whose answers are averaged.
        images: images to measure on; none: synthetic sheets of 256 x 1600.
        runtimes: what to measure, see `resolve_runtimes`.
        num_images: how many images at most.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: calls at once; None for what suits the machine.
        progress: told after each runtime.

    Returns:
        what `--json` prints: `machine`, `images` and `runtimes`, a row for each; see `measure` for its figures. Besides
        these, a row has `runtime` (as asked for) and `cold_start_s`: from starting Python to the first answer, the
        median of 3; or, in place of all figures, `error`.

    Raises:
        DataError: no image can be read.
        UsageError: fewer than one image is asked for.
        CannotContinueError, UsageError: no runtime can be measured.
    """
    if num_images < 1:
        raise UsageError(f"expected 1 or more, found {num_images}.", argument="images")
    paths = as_paths(models)
    with tempfile.TemporaryDirectory(prefix="defectseg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        chosen, sizes_hw = _choose(images or _make_sheets(folder, num_images), num_images)
        rows: list[dict[str, Any]] = []
        refusals: list[_Refusal] = []
        for runtime in runtimes:
            progress(len(rows), len(runtimes), runtime)
            result = _measure_apart(_Job(paths, chosen, runtime, device, workers, folder / runtime))
            if isinstance(result, _Refusal):
                refusals.append(result)
                result = {"error": result.message}
            rows.append({"runtime": runtime, **result})
    if len(refusals) == len(rows):
        kind = UsageError if refusals[0].exit_code is ExitCode.USAGE else CannotContinueError
        raise kind(" ".join(dict.fromkeys(refusal.message for refusal in refusals)))
    return {
        "model": ", ".join(map(str, paths)),
        "machine": machine_facts(),
        "images": {
            "count": len(chosen),
            "synthetic": not images,
            "sizes": sorted({f"{height}x{width}" for height, width in sizes_hw}),
        },
        "runtimes": rows,
    }


def measure(
    runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path, *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Measure one runtime: pipeline and network in turn, so that both meet the same noise of the machine.

    Args:
        runtime: the model.
        settings: of the inference.
        images: at least one, all readable, together small enough to hold their pixels in memory.
        folder: results are written to subfolders of it and deleted again.
        rounds: how often; rates are those of the median.

    Returns:
        `name` and `parallel` of the runtime; `network_images_per_s` (images ready in memory, as many at once as in the
        pipeline), `pipeline_images_per_s` (files to files, as `predict` does it), `pipeline_share` (their ratio);
        `stages_ms`, the mean time of each of STAGES for one image at a time, of which the pipeline overlaps those of
        several; `latency_ms` with `p50` and `p95`, of a single image from file to regions; `peak_memory_mb` of the
        process, before images are held for the network alone.
    """
    warm_up = images[: 2 * runtime.parallel]  # the first calls of each stream choose kernels and allocate
    run_pipeline(runtime, settings, warm_up, folder / "warm-up")
    pipeline_s = [run_pipeline(runtime, settings, images, folder / "first")]
    peak_mb = peak_memory_mb()
    pixels = [decode(found, settings).pixels for found in images]
    network_s = [run_network(runtime, settings, pixels)]
    for number in range(1, rounds):
        pipeline_s.append(run_pipeline(runtime, settings, images, folder / str(number)))
        network_s.append(run_network(runtime, settings, pixels))
    network, pipeline = (len(images) / statistics.median(seconds) for seconds in (network_s, pipeline_s))
    stages_ms = run_stages(runtime, settings, images, folder / "stages")
    to_regions_ms = stages_ms[:, : STAGES.index("postprocess") + 1].sum(axis=1)
    p50, p95 = np.percentile(to_regions_ms, [50, 95]).tolist()
    return {
        "name": runtime.name,
        "parallel": runtime.parallel,
        "network_images_per_s": round(network, 3),
        "pipeline_images_per_s": round(pipeline, 3),
        "pipeline_share": round(pipeline / network, 4),
        "stages_ms": dict(zip(STAGES, stages_ms.mean(axis=0).round(3).tolist(), strict=True)),
        "latency_ms": {"p50": round(p50, 3), "p95": round(p95, 3)},
        "peak_memory_mb": peak_mb,
    }


def _make_sheets(folder: Path, count: int) -> list[FoundImage]:
    write_data_folder(folder / "sheets", images=count, seed=0, size_hw=_SYNTHETIC_HW)
    return find_images([folder / "sheets"])


def _choose(images: Sequence[FoundImage], count: int) -> tuple[tuple[FoundImage, ...], list[tuple[int, int]]]:
    """The first images that can be read, and their sizes: up to `count`, and no more than may be held in memory."""
    chosen: list[FoundImage] = []
    sizes_hw: list[tuple[int, int]] = []
    for found in images:
        try:
            height, width = image_files.decode(found).pixels.shape
        except ImageError as error:
            log.warning("%s It is left out.", error)
            continue
        too_much = sum(h * w for h, w in sizes_hw) + height * width > _MOST_PX
        if chosen and too_much:
            break
        chosen.append(found)
        sizes_hw.append((height, width))
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError(f"none of the {len(images)} images can be read. Give others, or none for synthetic sheets.")
    return tuple(chosen), sizes_hw


def _measure_apart(job: _Job) -> dict[str, Any] | _Refusal:
    """Measure in a fresh process, then the first answer of others.

    One before them only loads the model: a bundle that is converted for its runtime needs torch for that, and the
    memory and the time of it, but only once.
    """
    try:
        result = _in_fresh_process(_load_job, job) or _in_fresh_process(_measure_job, job)
    except BrokenProcessPool:
        message = f"the process that measured {job.runtime} died, perhaps out of memory. Try fewer workers."
        return _Refusal(message, ExitCode.CANNOT_CONTINUE)
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
    if isinstance(result, dict):
        result["cold_start_s"] = round(statistics.median(_cold_start_s(job) for _ in range(_COLD_STARTS)), 3)
    return result


def _in_fresh_process(function: Callable[[_Job], _Result], job: _Job) -> _Result:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, job).result()


def _load_job(job: _Job) -> _Refusal | None:
    try:
        _load(job)
    except DefectsegError as error:
        return _Refusal(str(error), error.exit_code)
    return None


def _measure_job(job: _Job) -> dict[str, Any] | _Refusal:
    try:
        runtime, info = _load(job)
        return measure(runtime, Settings.of(info), job.images, job.folder)
    except DefectsegError as error:
        return _Refusal(str(error), error.exit_code)


def _load(job: _Job) -> tuple[Runtime, ModelInfo]:
    return load_runtime(job.model, job.device, job.runtime, workers=job.workers)


def _cold_start_s(job: _Job) -> float:
    """Seconds from starting Python to its answer for the first image, files being cached by the system."""
    package = str(Path(defectseg.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    model = ",".join(map(str, job.model))
    arguments = (model, str(job.images[0].path), job.device, job.runtime, str(job.workers or 0))
    begun = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - this very Python
        [sys.executable, "-c", _FIRST_ANSWER, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        answered = any(line.strip() == "answered" for line in process.stdout)
        seconds = time.perf_counter() - begun
    if not answered:
        raise CannotContinueError(f"{job.runtime}: gave no answer in a process of its own, though it did before.")
    return seconds


def run_pipeline(runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path) -> float:
    """Seconds from image files to the results of `predict`; what it wrote is deleted."""
    begun = time.perf_counter()
    with output_folder(folder, {}) as output:
        run_batch(output.pending(images), runtime, settings, output)
        output.finish({})
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    return seconds


def run_network(runtime: Runtime, settings: Settings, pixels: Sequence[NDArray[np.uint8]]) -> float:
    """Seconds that the network takes for images (H, W) in memory, in all their tiles and views."""
    tiles = [tile for image in pixels for tile in cut_tiles(image, settings)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(runtime.parallel) as pool:
        for _ in pool.map(lambda tile: answer_tile(runtime, tile, settings.tta), tiles):
            pass
    return time.perf_counter() - begun


def run_stages(runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path) -> NDArray[np.float64]:
    """Milliseconds (images, STAGES) of one image after another through the functions that the pipeline overlaps."""
    rows = []
    with output_folder(folder, {}) as output:
        output.pending(images)
        for found in images:
            times = [time.perf_counter()]
            decoded = decode(found, settings)
            times.append(time.perf_counter())
            answer = predict_image(runtime, decoded.pixels, settings)
            times.append(time.perf_counter())
            segmentation = segment(answer, settings.thresholds, only_classes=settings.classes)
            times.append(time.perf_counter())
            one = Segmented(found, size_and_time(found.path), decoded, segmentation)
            rendered = render(one, runtime.class_names, output.choice)
            times.append(time.perf_counter())
            output.write(rendered.record, rendered.pictures)
            times.append(time.perf_counter())
            rows.append(1000 * np.diff(times))
    shutil.rmtree(folder)
    return np.stack(rows)
