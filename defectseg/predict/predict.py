"""`defectseg predict`: from images to an output folder."""

import logging
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectseg import errors
from defectseg.data.names import match_groups
from defectseg.errors import DefectsegError, ImageError, require_extra
from defectseg.files import open_regular
from defectseg.image import whole
from defectseg.image.find import FoundImage
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import fits_one_tile
from defectseg.machine import __version__, now
from defectseg.model.locate import as_paths, model_identity
from defectseg.predict.output import OutputFolder, output_folder
from defectseg.predict.rules import Rules, resolve_classes
from defectseg.predict.shards import Shard, digest_of
from defectseg.predict.tables import ALL_OUTPUTS, OutputChoice, counts_of
from defectseg.progress import Progress, silent
from defectseg.runtime.base import PreparingRuntime, Runtime
from defectseg.runtime.load import choose_runtime, load_runtime, versions_of

if TYPE_CHECKING:
    from defectseg.inference.stream import Unreadable
    from defectseg.predict.render import Rendered

log = logging.getLogger(__name__)

RESULTS_VERSION = 1  # raised only if class maps change for the same model and settings: older folders are not continued
LOCAL, RAY = "local", "ray"  # engines: where the images are computed


def run_batch(
    images: Sequence[FoundImage],
    runtime: Any,
    settings: Settings,
    output: OutputFolder,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Segment images and write the results. An unreadable image is recorded, and the batch goes on.

    Args:
        images: see OutputFolder.pending.
        runtime: the model, a Runtime, called from `runtime.parallel` threads; or a RayCluster that holds it.
        settings: of the inference.
        output: the folder for the results.
        progress: called after each image, in the order of `images` unless a cluster does them.

    Returns:
        entries of run.json: the numbers of images, see `counts_of`; `warnings`, sentences for people.

    Raises:
        ResourceError: disk space ran out; finished images are kept.
        ModelError: the network answers with NaN.
    """
    # OpenCV and what needs it: the network is prepared meanwhile.
    from defectseg.image.read import bit_depth_warnings
    from defectseg.inference.stream import Unreadable
    from defectseg.predict.render import render_unreadable

    statuses: Counter[str] = Counter()
    brightest: Counter[int | None] = Counter()
    memory_short = 0
    rendered = runtime.rendered if hasattr(runtime, "rendered") else partial(_rendered, runtime)
    with closing(rendered(images, settings, output)) as results:
        for done, (image, result) in enumerate(results, start=1):
            if isinstance(result, Unreadable):
                log.warning("%s", result.message)
                memory_short += result.memory_short
                result = render_unreadable(image, result.message)
            output.write(result.record, result.pictures)
            statuses[result.record.status] += 1
            brightest[result.brightest16] += 1
            progress(done, len(images))
    if memory_short:
        fewer = f", with {errors.spelling('workers', 1)}" if runtime.parallel > 1 else ""
        advice = "Close other programs and run the same command again"
        log.warning("memory did not suffice for %d images. %s%s.", memory_short, advice, fewer)
    return {**counts_of(statuses), "warnings": bit_depth_warnings(brightest)}


def _rendered(
    runtime: Runtime, images: Sequence[FoundImage], settings: Settings, output: OutputFolder
) -> Generator[tuple[FoundImage, "Rendered | Unreadable"], None, None]:
    from defectseg.inference.stream import stream
    from defectseg.predict.render import render

    paint = partial(render, class_names=runtime.class_names, choice=output.choice, trained=settings.appearance)
    with closing(stream(images, runtime, settings, paint)) as results:
        yield from zip(images, results, strict=True)


@dataclass(frozen=True)
class Loaded:
    """A model, and everything besides the images that results depend on.

    Attributes:
        network: the model, a Runtime; or the RayCluster that holds it.
        settings: of the inference.
        key: see `output_folder`.
        run: entries of run.json.
        kinds: names of the runtimes.
    """

    network: Any
    settings: Settings
    key: dict[str, Any]
    run: dict[str, Any]
    kinds: Sequence[str]

    def computed_by(self) -> dict[str, str]:
        """The runtime and the versions of the libraries that compute results; see `OutputFolder.add_run`."""
        return {"runtime": self.network.name, **versions_of(self.kinds)}


def load(
    models: Path | Sequence[Path],
    engine: str = LOCAL,
    *,
    classes: Sequence[str] | None,
    device: str,
    runtime: str,
    workers: int | None,
    tta: str | None,
    bit_depth: int | None,
) -> Loaded:
    """Load a model for `predict`, whose arguments these are. Raises ModelError, ResourceError or UsageError."""
    network: Any
    if engine == RAY:
        require_extra("the engine ray", "ray", "ray", "s3fs")
        from defectseg.predict.ray import RayCluster

        network = RayCluster(models, device, runtime, cores_each=workers or 1)
        info, device = network.info, network.device
    else:
        network, info = load_runtime(models, device, runtime, workers=workers)
    kinds = list(dict.fromkeys(choose_runtime(path, device, runtime) for path in as_paths(models)))
    only_classes = None if classes is None else resolve_classes(classes, info.class_names)
    settings = Settings.of(info, tta=tta, classes=only_classes, bit_depth=bit_depth)
    if settings.model_bit_depth is not None and settings.bit_depth not in (None, settings.model_bit_depth):
        told = errors.spelling("bit_depth", settings.bit_depth), settings.model_bit_depth
        log.warning("%s, but the model was trained on images of %d bits, so these may look darker or brighter", *told)
    export = info.export
    key = {
        "model_sha256": model_identity(models),
        "only_classes": only_classes,
        "thresholds": info.thresholds.model_dump(mode="json", exclude={"chosen_by"}),
        "tta": settings.tta,
        "bit_depth": settings.bit_depth,
        "model_bit_depth": settings.model_bit_depth,
        "runtime": ", ".join(kinds),
        # As requested by the model file, whatever this processor computes in; None: the fastest of the runtime.
        "precision": None if export is None else f"{export.precision}, other layers {export.float_layers}",
        "tile_hw": settings.tile_hw,
        "tile_overlap_px": settings.tile_overlap_px,
        "results_version": RESULTS_VERSION,
    }
    run = {
        "defectseg": __version__,
        "model": ", ".join(map(str, as_paths(models))),
        "runtime": network.name,
        "workers": network.parallel,
        "tta": settings.tta,
        "class_names": list(info.class_names),
        "thresholds_chosen_by": info.thresholds.chosen_by,
        "training": None if settings.appearance is None else settings.appearance.model_dump(mode="json"),
        "started": now(),
    }
    return Loaded(network, settings, key, run, kinds)


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
    choice: OutputChoice = ALL_OUTPUTS,
    fail_on: str | None = None,
    tta: str | None = None,
    bit_depth: int | None = None,
    shard: Shard | None = None,
    engine: str = LOCAL,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Process the images that have no result in the output folder.

    Args:
        models: a model file, or several whose answers are averaged.
        images: see defectseg.image.find.find_images.
        out: output folder; continued if its results come from the same model and settings.
        classes: ClassIds or names to report; None: all.
        overwrite: delete earlier results of predict in the folder.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: auto, torch, openvino or onnx.
        workers: images that the network computes at once; None: what suits the runtime. Results do not depend on it.
        choice: the outputs to write; see `choose_outputs`.
        fail_on: rules, see defectseg.predict.rules; the content of run.json tells which images meet one.
        tta: test-time augmentation: none, flips or turns; None: the model's own.
        bit_depth: of 16-bit files, 9 to 16; None: as their tag says, else as the model was trained.
        shard: process only its part of `images`, which must be the same list for every shard; None: all.
        engine: local or ray: processes with `workers` cores each (default: 1), on the machines of a cluster.
        progress: counts the images.

    Returns:
        the content of run.json.

    Raises:
        OutputExistsError: the folder contains something else, or results of other settings.
        ModelError, ResourceError, UsageError: the run cannot go on; finished images are kept, and it can be continued.
    """
    if choice.group is not None:
        match_groups(choice.group, [image.image_id for image in images])
    own = images if shard is None else [image for image in images if image.image_id in shard]
    workers = 1 if len(own) == 1 else workers  # which gets all cores
    loaded = load(
        models, engine, classes=classes, device=device, runtime=runtime, workers=workers, tta=tta, bit_depth=bit_depth
    )
    run, names = loaded.run, loaded.network.class_names
    rules = None if fail_on is None else Rules.parse(fail_on, names, choice, loaded.key["only_classes"])
    if shard is not None:
        log.info("shard %s: %d of %d images", shard, len(own), len(images))
        run["all_images_sha256"] = digest_of(image.image_id for image in images)
        run["own_images_sha256"] = digest_of(image.image_id for image in own)
    if own and not out.exists():  # otherwise, all may be done
        _prepare(loaded.network, own[0], loaded.settings)
    key = {**loaded.key, "shard": None if shard is None else str(shard)}
    held = closing(loaded.network) if engine == RAY else nullcontext()
    with held, output_folder(out, key, choice, overwrite=overwrite) as output:
        pending = output.pending(own, images)
        if pending:
            output.add_run(loaded.computed_by(), started=run["started"])
        output.write_run({**run, "status": "running"})
        progress(0, len(pending))
        begun = time.perf_counter()
        try:
            counts = run_batch(pending, loaded.network, loaded.settings, output, progress=progress)
            seconds, processed = time.perf_counter() - begun, counts["processed"]
            run |= {
                "status": "finished",
                "ended": now(),
                **counts,
                "already_done": len(own) - len(pending),
                "seconds": round(seconds, 3),
                "images_per_second": round(processed / seconds, 2) if processed else None,
            }
            return output.finish(run, rules)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(DefectsegError):  # such as a full disk: the first error is reported
                output.write_run({**run, "status": status, "error": str(error), "ended": now()})
            raise


def _prepare(network: Runtime, found: FoundImage, settings: Settings) -> None:
    """Let the network be compiled for the size of an image in the background, unless it is cut into tiles."""
    if isinstance(network, PreparingRuntime) and not found.fault:
        with suppress(ImageError, OSError), open_regular(found.path) as file:
            size_hw = whole.read_size(file, name=found.file)
            if fits_one_tile(size_hw, settings):
                network.prepare(size_hw)
