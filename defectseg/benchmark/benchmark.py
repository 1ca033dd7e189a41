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
from collections.abc import Callable, Iterator, Sequence
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
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.segment import segment_image
from defectseg.inference.stages import StageTimes
from defectseg.inference.tiles import tile_starts
from defectseg.inference.views import answer_views
from defectseg.machine import machine_facts, peak_memory_mb
from defectseg.model.locate import as_paths
from defectseg.predict.output import OutputFolder, RunKey
from defectseg.predict.predict import run_batch
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import RUNTIMES, load_runtime

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

ROUNDS = 3
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
class BenchmarkRequest:
    """What `defectseg benchmark` was asked for.

    Attributes:
        model: model file, or several whose answers are averaged.
        images: images to measure on; none: synthetic sheets of 256 x 1600.
        runtimes: what to measure, see `resolve_runtimes`.
        num_images: how many images at most.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: calls at once; None for what suits the machine.
        start: called with the number of runtimes.
        advance: called after each runtime.
    """

    model: Path | Sequence[Path]
    images: Sequence[FoundImage] = ()
    runtimes: Sequence[str] = ("auto",)
    num_images: int = 32
    device: str = "auto"
    workers: int | None = None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[], None] = lambda: None


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
        raise UsageError(f"--runtime {unknown[0]!r}: expected {', '.join(known)}, or several with commas between them.")
    every = [name for name in RUNTIMES if name != "auto"]
    return tuple(dict.fromkeys(each for name in names for each in (every if name == "all" else [name])))


def benchmark(request: BenchmarkRequest) -> dict[str, Any]:
    """Measure each runtime; what cannot be measured is told in its row, if another one can.

    Returns:
        what `--json` prints: `machine`, `images` and `runtimes`, a row for each; see `measure` for its figures. Besides
        these, a row has `runtime` (as asked for) and `cold_start_s`: from starting Python to the first answer, the
        median of 3; or, in place of all figures, `error`.

    Raises:
        DataError: no image can be read.
        UsageError: fewer than one image is asked for.
        CannotContinueError, UsageError: no runtime can be measured.
    """
    if request.num_images < 1:
        raise UsageError(f"--images {request.num_images}: expected 1 or more.")
    request.start(len(request.runtimes))
    with tempfile.TemporaryDirectory(prefix="defectseg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        images, sizes_hw = _choose(request.images or _make_sheets(folder, request.num_images), request.num_images)
        rows: list[dict[str, Any]] = []
        refusals: list[_Refusal] = []
        for runtime in request.runtimes:
            job = _Job(as_paths(request.model), images, runtime, request.device, request.workers, folder / runtime)
            result = _measure_apart(job)
            if isinstance(result, _Refusal):
                refusals.append(result)
                result = {"error": result.message}
            rows.append({"runtime": runtime, **result})
            request.advance()
    if len(refusals) == len(rows):
        kind = UsageError if refusals[0].exit_code is ExitCode.USAGE else CannotContinueError
        raise kind(" ".join(dict.fromkeys(refusal.message for refusal in refusals)))
    return {
        "model": ", ".join(map(str, as_paths(request.model))),
        "machine": machine_facts(),
        "images": {
            "count": len(images),
            "synthetic": not request.images,
            "sizes": sorted({f"{height}x{width}" for height, width in sizes_hw}),
        },
        "runtimes": rows,
    }


def measure(runtime: Runtime, images: Sequence[FoundImage], folder: Path, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure one runtime: pipeline and network in turn, so that both meet the same noise of the machine.

    Args:
        runtime: the model.
        images: at least one, all readable, together small enough to hold their pixels in memory.
        folder: results are written to subfolders of it and deleted again.
        rounds: how often; rates are those of the median.

    Returns:
        `name` and `parallel` of the runtime; `network_images_per_s` (tiles and views ready in memory, as many calls at
        once as in the pipeline), `pipeline_images_per_s` (files to files), `pipeline_share` (their ratio); `stages_ms`,
        the time of one image in each stage, which overlap; `latency_ms` with `p50` and `p95`, from file to regions,
        one image at a time; `peak_memory_mb` of the process, before images are held for the network alone.
    """
    warm_up = images[: 2 * runtime.parallel]  # the first calls of each stream choose kernels and allocate
    run_pipeline(runtime, warm_up, folder / "warm-up")
    times = StageTimes()
    pipeline_s = [run_pipeline(runtime, images, folder / "first", times)]
    peak_mb = peak_memory_mb()
    pixels = [image_files.decode(found.path).pixels for found in images]
    network_s = [run_network(runtime, pixels)]
    for number in range(1, rounds):
        pipeline_s.append(run_pipeline(runtime, images, folder / str(number), times))
        network_s.append(run_network(runtime, pixels))
    network, pipeline = (len(images) / statistics.median(seconds) for seconds in (network_s, pipeline_s))
    p50, p95 = np.percentile([_latency_ms(runtime, found) for found in images], [50, 95]).tolist()
    return {
        "name": runtime.name,
        "parallel": runtime.parallel,
        "network_images_per_s": round(network, 3),
        "pipeline_images_per_s": round(pipeline, 3),
        "pipeline_share": round(pipeline / network, 4),
        "stages_ms": _stages_ms(times, len(images) * rounds),
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
            height, width = image_files.decode_found(found).pixels.shape
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
        message = f"the process that measured {job.runtime} died, perhaps out of memory. Try fewer --workers."
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
        return measure(_load(job), job.images, job.folder)
    except DefectsegError as error:
        return _Refusal(str(error), error.exit_code)


def _load(job: _Job) -> Runtime:
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


def run_pipeline(
    runtime: Runtime, images: Sequence[FoundImage], folder: Path, times: StageTimes | None = None
) -> float:
    """Seconds from image files to the results of `predict`; what it wrote is deleted."""
    begun = time.perf_counter()
    with OutputFolder(folder, RunKey("", None, {})) as output:
        run_batch(output.pending(images), runtime, output, thresholds=runtime.info.thresholds, times=times)
        output.finish({})
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    return seconds


def run_network(runtime: Runtime, pixels: Sequence[NDArray[np.uint8]]) -> float:
    """Seconds that the network takes for images (H, W) in memory, in all their tiles and views."""
    tiles = [tile for image in pixels for tile in _tiles(runtime, image)]
    tta = runtime.info.recipe.inference.tta
    begun = time.perf_counter()
    with ThreadPoolExecutor(runtime.parallel) as pool:
        for _ in pool.map(lambda tile: answer_views(runtime, tile, tta), tiles):
            pass
    return time.perf_counter() - begun


def _tiles(runtime: Runtime, image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """What the network is called with for an image (H, W): uint8 (1, 1, h, w), contiguous."""
    settings = runtime.info.recipe.inference
    tile_h, tile_w = (min(length, tile) for length, tile in zip(image.shape, settings.tile_hw, strict=True))
    for top in tile_starts(image.shape[0], tile_h, settings.tile_overlap_px):
        for left in tile_starts(image.shape[1], tile_w, settings.tile_overlap_px):
            yield np.ascontiguousarray(image[top : top + tile_h, left : left + tile_w])[None, None]


def _latency_ms(runtime: Runtime, found: FoundImage) -> float:
    begun = time.perf_counter()
    segment_image(runtime, image_files.decode(found.path).pixels, runtime.info.thresholds)
    return 1000 * (time.perf_counter() - begun)


def _stages_ms(times: StageTimes, images: int) -> dict[str, float]:
    return {stage: round(1000 * seconds / images, 3) for stage, seconds in times.seconds.items()}
