"""A prediction run from images to an output folder: what `defectseg predict` calls."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from defectseg.errors import DefectsegError, ExitCode, UsageError
from defectseg.image.find import FoundImage
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.machine import __version__
from defectseg.model.locate import as_paths, model_identity
from defectseg.predict.output import OutputFolder, RunKey
from defectseg.predict.render import Rendered, render, render_failure
from defectseg.predict.tables import STATUS_BLANK, STATUS_DEFECT, STATUS_FAILED, choose_outputs
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

log = logging.getLogger(__name__)


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
    settings: Settings,
    output: OutputFolder,
    *,
    progress: Progress = silent,
) -> BatchCounts:
    """Segment images and write what is found; an image that cannot be read is recorded and the batch goes on.

    Args:
        images: what to process; see OutputFolder.pending.
        runtime: the model; called from `runtime.parallel` threads at once.
        settings: of the inference.
        output: where results go, and which of them.
        progress: told after each image, in the order of `images`.

    Raises:
        ResourceError: memory or disk space ran out; what is done is kept.
        ModelError: the network answers with something that is not a number.
    """
    statuses: Counter[str] = Counter()
    brightest: Counter[int | None] = Counter()

    def paint(one: Segmented) -> Rendered:
        return render(one.found, one.stamp, one.decoded, one.segmentation, runtime.class_names, output.key.outputs)

    with closing(stream(images, runtime, settings, paint)) as results:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Unreadable):
                log.warning("%s", result.message)
                result = render_failure(result)
            output.write(result.record, overlay_jpeg=result.overlay_jpeg, class_map_png=result.class_map_png)
            statuses[result.record.status] += 1
            brightest[result.brightest16] += 1
            progress(done, len(images))
    failed = statuses[STATUS_FAILED]
    return BatchCounts(
        processed=statuses.total() - failed,
        with_defect=statuses[STATUS_DEFECT],
        failed=failed,
        blank=statuses[STATUS_BLANK],
        low_bit_depth=find_low_bit_depth(brightest),
    )


@dataclass(frozen=True)
class PredictRequest:
    """What `defectseg predict` was asked for.

    Attributes:
        model: model file, or several whose answers are averaged.
        images: images to process, see defectseg.image.find.find_images.
        out: output folder.
        classes: ClassIds or names to report; None reports all.
        overwrite: redo a folder that other settings wrote.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: auto, torch, openvino or onnx.
        workers: images that the network works on at once; None for what suits the runtime. Results do not depend on it.
        outputs: what is written, see defectseg.predict.tables; None for everything.
        overlays: which images get an overlay: all, defects or none; None for all, where `outputs` has overlays.
        tta: test-time augmentation: none, flips or turns; None for the model's own.
        bit_depth: of 16-bit files, 9 to 16; None: as they say themselves, or as the model was trained.
        start: called with the number of images to process.
        advance: called after each image.
    """

    model: Path | Sequence[Path]
    images: Sequence[FoundImage]
    out: Path
    classes: Sequence[str] | None = None
    overwrite: bool = False
    device: str = "auto"
    runtime: str = "auto"
    workers: int | None = None
    outputs: Sequence[str] | None = None
    overlays: str | None = None
    tta: str | None = None
    bit_depth: int | None = None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[], None] = lambda: None


def predict(request: PredictRequest) -> dict[str, Any]:
    """Process the images that have no result yet in the output folder; see DESIGN for what is written.

    Returns:
        what run.json holds.

    Raises:
        OutputExistsError: the folder holds something else, or results of other settings.
        ModelError, ResourceError, UsageError: the run cannot go on; what is done is kept and can be continued.
    """
    choice = choose_outputs(request.outputs, request.overlays)
    if request.workers is not None and request.workers < 1:
        raise UsageError(f"--workers {request.workers}: expected 1 or more. Leave it out for what suits the machine.")
    workers = 1 if len(request.images) == 1 else request.workers  # all cores on the one image
    runtime, info = load_runtime(request.model, request.device, request.runtime, workers=workers)
    only_classes = None if request.classes is None else resolve_classes(request.classes, info.class_names)
    settings = Settings.of(info, tta=request.tta, classes=only_classes, bit_depth=request.bit_depth)
    key = RunKey(
        model_sha256=model_identity(request.model),
        only_classes=only_classes,
        thresholds=info.thresholds.model_dump(mode="json", exclude={"chosen_by"}),
        tta=settings.tta,
        outputs=choice,
        bit_depth=request.bit_depth,
    )
    run: dict[str, Any] = {
        "defectseg": __version__,
        "model": ", ".join(map(str, as_paths(request.model))),
        "runtime": runtime.name,
        "workers": runtime.parallel,
        "tta": settings.tta,
        "class_names": list(info.class_names),
        "thresholds_chosen_by": info.thresholds.chosen_by,
        "started": _now(),
    }
    with OutputFolder(request.out, key, overwrite=request.overwrite) as output:
        output.write_run({**run, "status": "running"})
        pending = output.pending(request.images)
        request.start(len(pending))
        begun = time.monotonic()
        try:
            counts = run_batch(
                pending, runtime, settings, output, progress=lambda done, total, text="": request.advance()
            )
            run |= _outcome(counts, skipped=len(request.images) - len(pending), seconds=time.monotonic() - begun)
            in_folder = output.finish(run)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DefectsegError):  # on a full disk, say; the first error is the one to report
                output.write_run({**run, "status": status, "error": str(error), "ended": _now()})
            raise
    return {**run, "images_in_folder": in_folder}


def resolve_classes(wanted: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """ClassIds for names or numbers. Raises UsageError for none at all, or one that the model does not have."""
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(class_names, start=1))
    if not wanted:
        raise UsageError(f"--classes names no class; the model has {known}. Leave it out to report all.")
    ids = []
    for entry in wanted:
        if entry in class_names:
            ids.append(class_names.index(entry) + 1)
        elif entry.isdecimal() and 1 <= int(entry) <= len(class_names):
            ids.append(int(entry))
        else:
            raise UsageError(f"--classes {entry}: the model has {known}.")
    return tuple(sorted(set(ids)))


def exit_code_of(run: dict[str, Any], *, fail_on_defect: bool, fail_on_blank: bool = False) -> ExitCode:
    """The exit code that a finished run calls for, from the images that are in its folder."""
    in_folder = run["images_in_folder"]
    if fail_on_defect and in_folder[STATUS_DEFECT]:
        return ExitCode.DEFECT_FOUND
    if run[STATUS_FAILED] or (fail_on_blank and in_folder[STATUS_BLANK]):
        return ExitCode.PARTIAL
    return ExitCode.DONE


def _outcome(counts: BatchCounts, *, skipped: int, seconds: float) -> dict[str, Any]:
    return {
        "status": "finished",
        "ended": _now(),
        "processed": counts.processed,
        "with_defect": counts.with_defect,
        STATUS_BLANK: counts.blank,
        STATUS_FAILED: counts.failed,
        "low_bit_depth": None if counts.low_bit_depth is None else asdict(counts.low_bit_depth),
        "already_done": skipped,
        "seconds": round(seconds, 3),
        "images_per_second": round(counts.processed / seconds, 2) if counts.processed and seconds > 0 else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
