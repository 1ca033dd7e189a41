"""An evaluation from a data folder to a report: what `defectseg evaluate` calls."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, Metrics, summarise
from defectseg.evaluate.prediction_file import score_predictions
from defectseg.evaluate.report import write_evaluation
from defectseg.evaluate.score import Scored, score_images
from defectseg.evaluate.subset import choose_subset, missing_warnings, seen_warnings
from defectseg.files import atomic_csv, result_folder, write_result
from defectseg.image.find import escaped
from defectseg.image.overlay import encode_jpeg, paint_comparison
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.inference.stream import Failure
from defectseg.inference.views import with_tta
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import as_paths
from defectseg.predict.output import output_names
from defectseg.predict.render import fit_jpeg
from defectseg.runtime.base import Runtime
from defectseg.runtime.ensemble import member_infos
from defectseg.runtime.load import load_runtime

log = logging.getLogger(__name__)

OVERLAYS, ERRORS = "overlays", "errors.csv"
_OWN_ENTRIES = frozenset({"metrics.json", "pairs.csv", "report.html", ERRORS, OVERLAYS})
_CONVENTION = "Dice of each (image, class) pair, 1 where both masks are empty, averaged over all pairs (Kaggle 2019)"


@dataclass(frozen=True)
class EvaluateRequest:
    """What `defectseg evaluate MODEL` was asked for.

    Attributes:
        model: model file, or several whose answers are averaged.
        data: data folder.
        out: output folder.
        subset: all, train or val.
        split: split.csv that tells train from val; None for the one beside the model.
        overwrite: replace an earlier evaluation in `out`.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: the library that computes: auto, torch, openvino or onnx.
        tta: test-time augmentation: none, flips or turns; None for the model's own.
        bit_depth: of 16-bit files, 9 to 16; None: as they say themselves, or as the model was trained.
        start, advance: called with the number of images, and after each.
    """

    model: Path | Sequence[Path]
    data: Path
    out: Path
    subset: str = "all"
    split: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    runtime: str = "auto"
    tta: str | None = None
    bit_depth: int | None = None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Evaluation:
    """Figures, warnings, and the images that could not be read; `low_bit_depth` is among the warnings, too."""

    metrics: Metrics
    warnings: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    low_bit_depth: LowBitDepth | None = None


def evaluate_model(request: EvaluateRequest) -> Evaluation:
    """Score a model on labelled images and write metrics, pairs, overlays and report.

    Raises:
        OutputExistsError: see `files.result_folder`.
        UsageError: the subset cannot be told.
        DataError, ModelError, ResourceError: data, model or device cannot be used.
    """
    with result_folder(request.out, _OWN_ENTRIES, writer="evaluate", overwrite=request.overwrite):
        loaded = load_runtime(request.model, request.device, request.runtime)
        runtime = with_tta(loaded, request.tta)
        info = runtime.info
        folder = open_data_folder(request.data, class_names=info.class_names, bit_depth=request.bit_depth)
        image_ids, warnings = choose_subset(folder, info, as_paths(request.model), request.subset, request.split)
        warnings += [*missing_warnings(folder), *seen_warnings(folder, info, image_ids, request.subset)]
        _clear(request.out)
        request.start(len(image_ids))
        overlays, visit = _overlay_writer(request.out, image_ids)
        score = score_images(
            runtime,
            folder,
            image_ids,
            thresholds=info.thresholds,
            visitors=(visit,),
            advance=request.advance,
        )
        failures = _all_failures(folder, score.counts, score.failures)
        warnings += [f"left out, could not be read: {failure.message}" for failure in failures]
        low = find_low_bit_depth(score.brightest)
        warnings += [] if low is None else [str(low)]
        metrics, counts = _numbered_as(info, summarise(score.counts, folder.class_names), score.counts)
        write_evaluation(
            request.out,
            metrics,
            counts,
            title=f"{_title(as_paths(request.model))} on {request.data.name}",
            facts=_facts(request, runtime, member_infos(loaded), len(image_ids), folder),
            overlays={key: value for key, value in overlays.items() if (request.out / value).exists()},
            warnings=warnings,
        )
        _write_errors(request.out / ERRORS, failures)
    return Evaluation(metrics, tuple(warnings), failures, low)


def evaluate_predictions(predictions: Path, data: Path, out: Path | None, *, overwrite: bool = False) -> Evaluation:
    """Score predictions in the Kaggle format; with `out`, write metrics, pairs, errors and report.

    Raises:
        LabelError, DataError: the predictions or the data folder cannot be used.
        OutputExistsError: see `files.result_folder`.
    """
    folder = open_data_folder(data)
    counts, warnings, unread = score_predictions(predictions, folder)
    failures = _all_failures(folder, counts, unread)
    warnings += [f"left out, could not be read: {failure.message}" for failure in failures]
    metrics = summarise(counts, folder.class_names)
    if out is not None:
        with result_folder(out, _OWN_ENTRIES, writer="evaluate", overwrite=overwrite):
            _clear(out)
            facts = {"predictions": str(predictions), "data": str(data), "convention": _CONVENTION}
            title = f"{predictions.name} on {data.name}"
            write_evaluation(out, metrics, counts, title=title, facts=facts, overlays={}, warnings=warnings)
            _write_errors(out / ERRORS, failures)
    return Evaluation(metrics, tuple(warnings), failures)


def _all_failures(folder: DataFolder, counts: Counts, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """The images that could not be read, with those that were faulty from the start. Raises DataError if all were."""
    if failures and not counts:
        raise DataError(
            f"{folder.root}: none of the {len(failures)} images can be read. The first: {failures[0].message}"
        )
    return (*(Failure(image, image.fault) for image in folder.faulty), *failures)


def _numbered_as(info: ModelInfo, metrics: Metrics, counts: Counts) -> tuple[Metrics, Counts]:
    """The same with the model's ClassIds, which are others where the data folder does not name all of its classes."""
    ids = [index + 1 for index in info.indices_of([one.name for one in metrics.classes])]
    classes = tuple(replace(one, class_id=ids[one.class_id - 1]) for one in metrics.classes)
    counts = {(image_id, ids[class_id - 1]): pair for (image_id, class_id), pair in counts.items()}
    return replace(metrics, classes=classes), counts


def _overlay_writer(out: Path, image_ids: Sequence[str]) -> tuple[dict[str, Path], Callable[[Scored], None]]:
    """Paths of the overlays, relative to `out`, and a visitor that writes them."""
    overlays = {image_id: Path(OVERLAYS) / f"{name}.jpg" for image_id, name in output_names(image_ids).items()}

    def write(scored: Scored) -> None:
        truth = scored.truth.any(axis=0) & ~scored.ignore
        picture = paint_comparison(scored.pixels, scored.masks.any(axis=0) & ~scored.ignore, truth)
        write_result(out / overlays[scored.image_id], encode_jpeg(fit_jpeg(picture)[0]))

    return overlays, write


def _clear(root: Path) -> None:
    """Delete an earlier evaluation, once it is sure that a new one can begin."""
    shutil.rmtree(root / OVERLAYS, ignore_errors=True)
    for name in _OWN_ENTRIES - {OVERLAYS}:
        (root / name).unlink(missing_ok=True)


def _title(models: Sequence[Path]) -> str:
    return models[0].name if len(models) == 1 else f"{len(models)} models"


def _facts(
    request: EvaluateRequest, runtime: Runtime, members: Sequence[ModelInfo], num_images: int, folder: DataFolder
) -> Mapping[str, str]:
    networks = [f"{info.recipe.model.architecture}, {info.recipe.model.encoder}" for info in members]
    left_out = [name for name in runtime.info.class_names if name not in folder.class_names]
    folds = ["none" if info.fold is None else str(info.fold) for info in members]
    return {
        "model": ", ".join(map(str, as_paths(request.model))),
        "network": "; ".join(dict.fromkeys(networks)),
        "data": str(request.data),
        "images": f"{num_images}, subset {request.subset}",
        "classes": ", ".join(folder.class_names) + (f"; not in the data: {', '.join(left_out)}" if left_out else ""),
        "seed of the training": ", ".join(str(info.recipe.seed) for info in members),
        "fold held out": ", ".join(folds),
        "thresholds": _describe(runtime.info.thresholds),
        "test-time augmentation": runtime.info.recipe.inference.tta,
        "runtime": runtime.name,
        "convention": _CONVENTION,
    }


def _describe(thresholds: Thresholds) -> str:
    gate, pixel, area = (
        " / ".join(f"{value:g}" for value in values)
        for values in (thresholds.gate, thresholds.pixel, thresholds.min_area_px)
    )
    return f"gate {gate}; pixel {pixel}; minimum area {area} px ({thresholds.chosen_by})"


def _write_errors(path: Path, failures: Sequence[Failure]) -> None:
    if not failures:
        return
    with atomic_csv(path, ("ImageId", "path", "error")) as write_rows:
        write_rows((failure.found.image_id, escaped(failure.found.path), failure.message) for failure in failures)
