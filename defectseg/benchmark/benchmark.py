"""How fast a model is on this machine: the network alone, the whole pipeline, and each of its stages.

Each runtime is measured in a process of its own, so that its memory is its own and the threads of other runtimes do not
slow it down.
"""

import logging
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.data.synthetic import write_data_folder
from defectseg.errors import CannotContinueError, DataError, DefectsegError, ImageError, UsageError
from defectseg.files import size_and_time
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.segment import segment
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, decode
from defectseg.inference.tiles import answer_all, cut_tiles, predict_image
from defectseg.machine import machine_facts, peak_memory_mb
from defectseg.model.locate import as_paths
from defectseg.predict.output import output_folder
from defectseg.predict.predict import run_batch
from defectseg.predict.render import render
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import AUTO, RUNTIMES, load_runtime

log = logging.getLogger(__name__)

ROUNDS = 3
STAGES = ("read", "network", "postprocess", "render", "write")
_COLD_STARTS = 3
MOST_PX = 2**28  # of all images together: to measure the network alone, their pixels are held in memory

_FIRST_ANSWER = """
import sys, time
from defectseg.inference.predictor import Predictor
model, image, device, runtime, workers = sys.argv[1:]
Predictor.load(model, device=device, runtime=runtime, workers=int(workers) or None, keep_probabilities=False)(image)
print(time.time())
"""


def resolve_runtimes(text: str) -> tuple[str, ...]:
    """The runtimes in a comma-separated list; `all` stands for torch, openvino and onnx. Raises UsageError."""
    names: list[str] = []
    for name in (entry.strip() for entry in text.split(",")):
        if name not in ("all", *RUNTIMES):
            expected = ", ".join(("all", *RUNTIMES))
            raise UsageError(f"expected {expected}, or several, comma-separated; found {name!r}.", argument="runtime")
        names += [each for each in RUNTIMES if each != AUTO] if name == "all" else [name]
    return tuple(dict.fromkeys(names))


def benchmark(
    models: Path | Sequence[Path],
    images: Sequence[FoundImage] = (),
    *,
    runtimes: Sequence[str] = (AUTO,),
    num_images: int = 32,
    device: str = AUTO,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure each runtime. If one cannot be measured, its row says why.

    Args:
        models: model file, or several whose answers are averaged.
        images: images to measure on; none: synthetic sheets of 256 x 1600.
        runtimes: what to measure, see `resolve_runtimes`.
        num_images: how many images at most.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: calls at once; None for what suits the machine.
        progress: called before each runtime.

    Returns:
        what `--json` prints: `machine`, `images` and `runtimes`, a list with a row for each. A row has the figures of
        `measure`, `runtime` (as asked for) and `cold_start_s`: seconds from starting Python to the first answer, the
        median of 3. Instead of the figures it may have `error`.

    Raises:
        DataError: no image can be read.
        DefectsegError: no runtime can be measured; the reason for the first one.
    """
    paths = as_paths(models)
    with tempfile.TemporaryDirectory(prefix="defectseg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if not images:
            write_data_folder(folder / "sheets", images=num_images, seed=0)
        chosen, sizes = _choose(images or find_images([folder / "sheets"]), num_images)
        rows: list[dict[str, Any]] = []
        refusals: list[DefectsegError] = []
        for runtime in runtimes:
            progress(len(rows), len(runtimes), runtime)
            try:
                figures = _measure_apart(paths, device, runtime, workers, chosen, folder / runtime)
            except DefectsegError as error:
                refusals.append(error)
                figures = {"error": str(error)}
            rows.append({"runtime": runtime, **figures})
    if len(refusals) == len(rows):
        raise refusals[0]
    return {
        "model": ", ".join(map(str, paths)),
        "machine": machine_facts(),
        "images": {"count": len(chosen), "synthetic": not images, "sizes": sizes},
        "runtimes": rows,
    }


def measure(runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path) -> dict[str, Any]:
    """Measure one runtime. Pipeline and network take turns, so that both meet the same noise of the machine.

    Args:
        runtime: the model.
        settings: of the inference.
        images: at least one, all readable, together small enough to hold their pixels in memory.
        folder: results are written to subfolders of it and deleted again.

    Returns:
        `name` and `parallel` of the runtime; `network_images_per_s` (images in memory, as many at once as in the
        pipeline), `pipeline_images_per_s` (from files to files, as `predict` does it), `pipeline_share` (their ratio);
        `stages_ms`: mean time of each of STAGES for one image at a time (the pipeline overlaps the stages of several
        images); `latency_ms` with `p50` and `p95`: of a single image from file to regions; `peak_memory_mb` of the
        process, before images are held to measure the network alone. Rates are medians of ROUNDS.
    """
    warm_up = images[: 2 * runtime.parallel]  # the first calls of each stream choose kernels and allocate
    run_pipeline(runtime, settings, warm_up, folder)
    pipeline_s = [run_pipeline(runtime, settings, images, folder)]
    peak_mb = peak_memory_mb()
    pixels = [decode(found, settings).pixels for found in images]
    network_s = [run_network(runtime, settings, pixels)]
    for _ in range(1, ROUNDS):
        pipeline_s.append(run_pipeline(runtime, settings, images, folder))
        network_s.append(run_network(runtime, settings, pixels))
    network, pipeline = (len(images) / statistics.median(seconds) for seconds in (network_s, pipeline_s))
    stages_ms = run_stages(runtime, settings, images, folder)
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


def _choose(images: Sequence[FoundImage], count: int) -> tuple[list[FoundImage], list[str]]:
    """The first readable images, up to `count` and as many as fit in memory, and their different sizes as HxW."""
    chosen: list[FoundImage] = []
    sizes: set[str] = set()
    sum_px = 0
    for found in images:
        try:
            pixels = image_files.decode(found).pixels
        except ImageError as error:
            log.warning("%s It is left out.", error)
            continue
        sum_px += pixels.size
        if chosen and sum_px > MOST_PX:
            break
        chosen.append(found)
        sizes.add(f"{pixels.shape[0]}x{pixels.shape[1]}")
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError(f"none of the {len(images)} images can be read. Give others, or none for synthetic sheets.")
    return chosen, sorted(sizes)


def _measure_apart(
    models: Sequence[Path], device: str, runtime: str, workers: int | None, images: Sequence[FoundImage], folder: Path
) -> dict[str, Any]:
    """Measure in one fresh process, and the first answer in others."""
    load_runtime(models, device, runtime, workers=workers)  # converts a bundle, once and not in a process measured
    first = [",".join(map(str, models)), str(images[0].path), device, runtime, str(workers or 0)]
    cold_starts_s = []
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            figures = pool.submit(_load_and_measure, models, device, runtime, workers, images, folder).result()
        for _ in range(_COLD_STARTS):
            begun = time.time()
            command = [sys.executable, "-c", _FIRST_ANSWER, *first]
            answered = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603 - this Python
            cold_starts_s.append(float(answered) - begun)
    except (BrokenProcessPool, subprocess.CalledProcessError) as error:
        message = f"the process that measured {runtime} died, perhaps out of memory. Try fewer workers."
        raise CannotContinueError(message) from error
    return {**figures, "cold_start_s": round(statistics.median(cold_starts_s), 3)}


def _load_and_measure(
    models: Sequence[Path], device: str, runtime: str, workers: int | None, images: Sequence[FoundImage], folder: Path
) -> dict[str, Any]:
    loaded, info = load_runtime(models, device, runtime, workers=workers)
    return measure(loaded, Settings.of(info), images, folder)


def run_pipeline(runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path) -> float:
    """Seconds from image files to the results of `predict` in `folder`, which is deleted afterwards."""
    begun = time.perf_counter()
    with output_folder(folder, {}) as output:
        run_batch(output.pending(images), runtime, settings, output)
        output.finish({"class_names": runtime.class_names})
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    return seconds


def run_network(runtime: Runtime, settings: Settings, pixels: Sequence[NDArray[np.uint8]]) -> float:
    """Seconds that the network takes for images (H, W) in memory, in all their tiles and views."""
    tiles = sorted((tile for image in pixels for tile in cut_tiles(image, settings)), key=np.shape)
    begun = time.perf_counter()
    for _, of_one_shape in groupby(tiles, key=np.shape):
        for _ in answer_all(runtime, of_one_shape, settings.tta):
            pass
    return time.perf_counter() - begun


def run_stages(runtime: Runtime, settings: Settings, images: Sequence[FoundImage], folder: Path) -> NDArray[np.float64]:
    """Milliseconds (images, STAGES), one image after another, of the functions that the pipeline overlaps."""
    rows = []
    with output_folder(folder, {}) as output:
        output.pending(images)
        for found in images:
            times = [time.perf_counter()]
            decoded = decode(found, settings)
            times.append(time.perf_counter())
            answer = predict_image(runtime, decoded.pixels, settings)
            times.append(time.perf_counter())
            segmentation = segment(answer, settings.thresholds)
            times.append(time.perf_counter())
            one = Segmented(found, size_and_time(found.path), decoded, segmentation)
            rendered = render(one, runtime.class_names, output.choice, settings.appearance)
            times.append(time.perf_counter())
            output.write(rendered.record, rendered.pictures)
            times.append(time.perf_counter())
            rows.append(1000 * np.diff(times))
    shutil.rmtree(folder)
    return np.stack(rows)
