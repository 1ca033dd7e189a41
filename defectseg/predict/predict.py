"""A prediction run from images to an output folder: what `defectseg predict` calls."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DefectsegError, ExitCode, ImageError, UsageError
from defectseg.files import size_and_time
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage
from defectseg.image.read import DecodedImage, LowBitDepth, find_low_bit_depth
from defectseg.inference.segment import Segmentation, segment_image
from defectseg.inference.stages import StageTimes, timed
from defectseg.inference.stream import (
    _MOST_HELPERS,
    _PIXELS_IN_WORK,
    _Budget,
    _decode_unchanged,
    _Network,
    _one_opencv_thread,
    _ordered_map,
    _Watched,
)
from defectseg.inference.views import with_tta
from defectseg.machine import __version__, package_versions
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import as_paths, model_identity
from defectseg.predict.output import OutputFolder, RunKey
from defectseg.predict.render import Rendered, render, render_failure
from defectseg.predict.tables import STATUS_BLANK, STATUS_DEFECT, STATUS_UNREADABLE, choose_outputs
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import ONNX, OPENVINO, TORCH, choose_runtime, load_runtime

log = logging.getLogger(__name__)

_PACKAGES = ("numpy", "opencv-python-headless")  # that results depend on, besides the one of the runtime:
_PACKAGE_OF_RUNTIME = {TORCH: "torch", OPENVINO: "openvino", ONNX: "onnxruntime"}


@dataclass(frozen=True)
class BatchCounts:
    """What a batch did.

    Attributes:
        processed, failed: number of images.
        with_defect, blank: number of those processed.
        low_bit_depth: set where most of its 16-bit images seem to come from a camera of fewer bits.
    """

    processed: int
    with_defect: int
    failed: int
    blank: int = 0
    low_bit_depth: LowBitDepth | None = None


def run_batch(
    images: Sequence[FoundImage],
    runtime: Runtime,
    output: OutputFolder,
    *,
    thresholds: Thresholds,
    only_classes: Collection[int] | None = None,
    bit_depth: int | None = None,
    advance: Callable[[], None] = lambda: None,
    times: StageTimes | None = None,
) -> BatchCounts:
    """Segment images and write what is found; an image that cannot be read is recorded and the batch goes on.

    Args:
        images: what to process; see OutputFolder.pending.
        runtime: the model; called from `runtime.parallel` threads at once.
        output: where results go, and which of them.
        thresholds: gate, pixel threshold and minimum area for each class.
        only_classes: ClassIds to report; None reports all.
        bit_depth: of 16-bit files; None: as they say themselves, or as the model was trained.
        advance: called after each image, in the order of `images`.
        times: receives the time spent in each stage.

    Raises:
        ResourceError: memory or disk space ran out; what is done is kept.
        ModelError: the network answers with something that is not a number.
    """
    statuses: Counter[str] = Counter()
    brightest: Counter[int | None] = Counter()
    with _one_opencv_thread(), _Network(runtime, times) as network:
        worker = _Worker(network, thresholds, only_classes, bit_depth, output, times)
        threads = network.parallel + max(2, min(os.cpu_count() or 2, _MOST_HELPERS))
        with closing(_ordered_map(worker, images, threads=threads, abandon=network.stop)) as results:
            for result in results:
                with timed(times, "write"):
                    output.write(result.record, overlay_jpeg=result.overlay_jpeg, class_map_png=result.class_map_png)
                statuses[result.record.status] += 1
                brightest[result.brightest16] += 1
                if result.record.status == STATUS_UNREADABLE:
                    log.warning("%s", result.record.image["notes"])
                advance()
    failed = statuses[STATUS_UNREADABLE]
    return BatchCounts(
        processed=statuses.total() - failed,
        with_defect=statuses[STATUS_DEFECT],
        failed=failed,
        blank=statuses[STATUS_BLANK],
        low_bit_depth=find_low_bit_depth(brightest),
    )


class _Worker:
    """Takes one image from its file to what is to be written of it; called from several threads at once."""

    def __init__(
        self,
        network: "_Network",
        thresholds: Thresholds,
        only_classes: Collection[int] | None,
        bit_depth: int | None,
        output: OutputFolder,
        times: StageTimes | None,
    ) -> None:
        self._network = network
        self._thresholds = thresholds
        self._only_classes = only_classes
        self._bit_depths = {"bit_depth": bit_depth, "model_bit_depth": network.info.recipe.data.bit_depth}
        self._choice = output.key.outputs
        self._times = times
        self._pixels_in_work = _Budget(_PIXELS_IN_WORK)

    def __call__(self, found: FoundImage) -> Rendered:
        stamp = size_and_time(found.path)
        try:
            height, width = image_files.read_size(found.path) if not found.fault else (0, 0)
            with self._pixels_in_work.held(height * width):
                with timed(self._times, "decode"):
                    decoded, stamp = _decode_unchanged(found, **self._bit_depths)
                return self._answered(found, stamp, decoded)
        except ImageError as error:
            return render_failure(found, stamp, str(error))

    def _answered(self, found: FoundImage, stamp: tuple[int, int], decoded: DecodedImage) -> Rendered:
        segmentation = self._segment(decoded.pixels)
        with timed(self._times, "render"):
            return render(found, stamp, decoded, segmentation, self._network.info.class_names, self._choice)

    def _segment(self, pixels: NDArray[np.uint8]) -> Segmentation:
        if self._times is None:
            return segment_image(self._network, pixels, self._thresholds, only_classes=self._only_classes)
        begun, network = time.perf_counter(), _Watched(self._network)
        segmentation = segment_image(network, pixels, self._thresholds, only_classes=self._only_classes)
        self._times.add("postprocess", max(0.0, time.perf_counter() - begun - network.waited_s))
        return segmentation


def predict(
    models: Path | Sequence[Path],
    images: Sequence[FoundImage],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    workers: int | None = None,
    outputs: Sequence[str] | None = None,
    overlays: str | None = None,
    tta: str | None = None,
    bit_depth: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Process the images that have no result yet in the output folder.

    Args:
        models: model file, or several whose answers are averaged.
        images: see defectseg.image.find.find_images.
        out: output folder; continued where its results have the same key, see defectseg.predict.output.RunKey.
        classes: ClassIds or names to report; None reports all.
        overwrite: redo everything in a folder that predict wrote.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: auto, torch, openvino or onnx.
        workers: images that the network works on at once; None for what suits the runtime. Results do not depend on it.
        outputs: what is written, see defectseg.predict.tables; None for everything.
        overlays: which images get an overlay: all, defects or none; None for all, where `outputs` has overlays.
        tta: test-time augmentation: none, flips or turns; None for the model's own.
        bit_depth: of 16-bit files, 9 to 16; None: as they say themselves, or as the model was trained.
        progress: counts the images.

    Returns:
        what run.json holds.

    Raises:
        OutputExistsError: the folder holds something else, or results of other settings.
        ModelError, ResourceError, UsageError: the run cannot go on; what is done is kept and can be continued.
    """
    choice = choose_outputs(outputs, overlays)
    if workers is not None and workers < 1:
        raise UsageError(
            f"expected 1 or more, found {workers}. Leave it out for what suits the machine.", argument="workers"
        )
    workers = 1 if len(images) == 1 else workers  # all cores on the one image
    network = with_tta(load_runtime(models, device, runtime, workers=workers), tta)
    info = network.info
    kinds = list(dict.fromkeys(choose_runtime(path, device, runtime) for path in as_paths(models)))
    only_classes = None if classes is None else resolve_classes(classes, info.class_names)
    key = RunKey(
        model_sha256=model_identity(models),
        runtime=", ".join(kinds),
        outputs=choice,
        only_classes=only_classes,
        bit_depth=bit_depth,
        **_settings_of(info),
    )
    run: dict[str, Any] = {
        "defectseg": __version__,
        "model": ", ".join(map(str, as_paths(models))),
        "runtime": network.name,
        "workers": network.parallel,
        "tta": info.recipe.inference.tta,
        "class_names": list(info.class_names),
        "thresholds_chosen_by": info.thresholds.chosen_by,
        "started": _now(),
    }
    with OutputFolder(out, key, overwrite=overwrite) as output:
        pending = output.pending(images)
        if pending:
            _note_what_computes(output, network.name, kinds, started=run["started"])
        output.write_run({**run, "status": "running"})
        progress(0, len(pending))
        begun = time.monotonic()
        done = count(1)
        try:
            counts = run_batch(
                pending,
                network,
                output,
                thresholds=info.thresholds,
                only_classes=only_classes,
                bit_depth=bit_depth,
                advance=lambda: progress(next(done), len(pending)),
            )
            run |= _outcome(counts, skipped=len(images) - len(pending), seconds=time.monotonic() - begun)
            return output.finish(run)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DefectsegError):  # on a full disk, say; the first error is the one to report
                output.write_run({**run, "status": status, "error": str(error), "ended": _now()})
            raise


def _settings_of(info: ModelInfo) -> dict[str, Any]:
    """What of the model's description decides its results, besides the weights; see RunKey."""
    export, inference = info.export, info.recipe.inference
    return {
        "precision": None if export is None else f"{export.precision}, other layers {export.float_layers}",
        "thresholds": info.thresholds.model_dump(mode="json", exclude={"chosen_by"}),
        "model_bit_depth": info.recipe.data.bit_depth,
        "tta": inference.tta,
        "tile_hw": inference.tile_hw,
        "tile_overlap_px": inference.tile_overlap_px,
    }


def _note_what_computes(output: OutputFolder, name: str, kinds: Sequence[str], *, started: str) -> None:
    """Keep the runtime and the versions of the libraries, and warn where they are not those of earlier results."""
    packages = [*_PACKAGES, *(_PACKAGE_OF_RUNTIME[kind] for kind in kinds)]
    computed_by = {"runtime": name, "defectseg": __version__, **package_versions(packages)}
    if changes := output.add_run(computed_by, started=started):
        log.warning(
            "%s: earlier results were computed by something else (%s), and may differ a little from new ones. Choose "
            "another folder, or overwrite this one, to compute all alike.",
            output.root,
            "; ".join(changes),
        )


def resolve_classes(wanted: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """ClassIds for names or numbers. Raises UsageError for none at all, or one that the model does not have."""
    known = "the model has " + ", ".join(f"{number} ({name})" for number, name in enumerate(class_names, start=1))
    if not wanted:
        raise UsageError(f"names no class; {known}. Leave it out to report all.", argument="classes")
    ids = []
    for entry in wanted:
        if entry in class_names:
            ids.append(class_names.index(entry) + 1)
        elif entry.isdecimal() and 1 <= int(entry) <= len(class_names):
            ids.append(int(entry))
        else:
            raise UsageError(f"found {entry}; {known}.", argument="classes")
    return tuple(sorted(set(ids)))


def exit_code_of(run: dict[str, Any], *, fail_on_defect: bool, fail_on_blank: bool = False) -> ExitCode:
    """The exit code that a finished run calls for, from the images that are in its folder."""
    in_folder = run["images_in_folder"]
    if fail_on_defect and in_folder[STATUS_DEFECT]:
        return ExitCode.DEFECT_FOUND
    if run[STATUS_UNREADABLE] or (fail_on_blank and in_folder[STATUS_BLANK]):
        return ExitCode.PARTIAL
    return ExitCode.DONE


def _outcome(counts: BatchCounts, *, skipped: int, seconds: float) -> dict[str, Any]:
    return {
        "status": "finished",
        "ended": _now(),
        "processed": counts.processed,
        "with_defect": counts.with_defect,
        STATUS_BLANK: counts.blank,
        STATUS_UNREADABLE: counts.failed,
        "low_bit_depth": None if counts.low_bit_depth is None else asdict(counts.low_bit_depth),
        "already_done": skipped,
        "seconds": round(seconds, 3),
        "images_per_second": round(counts.processed / seconds, 2) if counts.processed and seconds > 0 else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
