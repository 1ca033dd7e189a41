"""A data folder and a model, or predictions -> figures and a report: what `defectseg evaluate` calls."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.evaluate.metrics import Counts, Metrics, summarise
from defectseg.evaluate.prediction_file import score_predictions
from defectseg.evaluate.report import write_evaluation
from defectseg.evaluate.score import Scored, all_unreadable, score_images
from defectseg.evaluate.subset import choose_subset, missing_warnings, seen_warnings
from defectseg.files import atomic_csv, result_folder, write_result
from defectseg.image.find import escaped
from defectseg.image.overlay import encode_jpeg, paint_comparison
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Unreadable
from defectseg.model.info import ModelInfo, Thresholds, read_model_info
from defectseg.model.locate import as_paths
from defectseg.predict.names import output_names
from defectseg.progress import Progress, silent
from defectseg.runtime.load import load_runtime

log = logging.getLogger(__name__)

OVERLAYS, ERRORS = "overlays", "errors.csv"
_OWN_ENTRIES = frozenset({"metrics.json", "pairs.csv", "report.html", ERRORS, OVERLAYS})
_CONVENTION = "Dice of each (image, class) pair, 1 where both masks are empty, averaged over all pairs (Kaggle 2019)"


@dataclass(frozen=True)
class Evaluation:
    """Figures, warnings, and the unreadable images; `low_bit_depth` is among the warnings, too."""

    metrics: Metrics
    warnings: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()
    low_bit_depth: LowBitDepth | None = None


def evaluate(
    models: Path | Sequence[Path],
    data: Path,
    out: Path,
    *,
    subset: str = "all",
    split: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    tta: str | None = None,
    bit_depth: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a model on labelled images and write metrics, pairs, overlays and report.

    Args:
        models: model file, or several whose answers are averaged.
        data: data folder.
        out: output folder.
        subset: all, train or val.
        split: split.csv that tells train from val; None for the one beside the model.
        overwrite: replace an earlier evaluation in `out`.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: the library that computes: auto, torch, openvino or onnx.
        tta: test-time augmentation: none, flips or turns; None for the model's own.
        bit_depth: of 16-bit files, 9 to 16; None: as they say themselves, or as the model was trained.
        progress: told after each image.

    Raises:
        OutputExistsError: see `files.result_folder`.
        UsageError: the subset cannot be told.
        DataError, ModelError, ResourceError: data, model or device cannot be used.
    """
    paths = as_paths(models)
    with result_folder(out, _OWN_ENTRIES, writer="evaluate", overwrite=overwrite):
        network, info = load_runtime(paths, device, runtime)
        settings = Settings.of(info, tta=tta, bit_depth=bit_depth)
        folder = open_data_folder(data, class_names=info.class_names, bit_depth=bit_depth)
        image_ids, warnings = choose_subset(folder, info, paths, subset, split)
        warnings += [*missing_warnings(folder), *seen_warnings(folder, info, image_ids, subset)]
        _clear(out)
        overlays, visit = _overlay_writer(out, image_ids)
        score = score_images(network, folder, image_ids, settings, visitors=(visit,), progress=progress)
        unreadable = all_unreadable(folder, score.unreadable, scored=len(score.counts))
        warnings += [f"left out, unreadable: {one.message}" for one in unreadable]
        low = find_low_bit_depth(score.brightest)
        warnings += [] if low is None else [str(low)]
        metrics, counts = _numbered_as(info, summarise(score.counts, folder.class_names), score.counts)
        facts = {
            **_facts_of_models(paths),
            "data": str(data),
            "images": f"{len(image_ids)}, subset {subset}",
            "classes": _describe_classes(info, folder),
            "thresholds": _describe(info.thresholds),
            "test-time augmentation": settings.tta,
            "runtime": network.name,
            "convention": _CONVENTION,
        }
        write_evaluation(
            out,
            metrics,
            counts,
            title=f"{paths[0].name if len(paths) == 1 else f'{len(paths)} models'} on {data.name}",
            facts=facts,
            overlays={key: value for key, value in overlays.items() if (out / value).exists()},
            warnings=warnings,
        )
        _write_errors(out / ERRORS, unreadable)
    return Evaluation(metrics, tuple(warnings), unreadable, low)


def evaluate_predictions(predictions: Path, data: Path, out: Path | None, *, overwrite: bool = False) -> Evaluation:
    """Score predictions in the Kaggle format; with `out`, write metrics, pairs, errors and report.

    Raises:
        LabelError, DataError: the predictions or the data folder cannot be used.
        OutputExistsError: see `files.result_folder`.
    """
    folder = open_data_folder(data)
    counts, warnings, unread = score_predictions(predictions, folder)
    unreadable = all_unreadable(folder, unread, scored=len(counts))
    warnings += [f"left out, unreadable: {one.message}" for one in unreadable]
    metrics = summarise(counts, folder.class_names)
    if out is not None:
        with result_folder(out, _OWN_ENTRIES, writer="evaluate", overwrite=overwrite):
            _clear(out)
            facts = {"predictions": str(predictions), "data": str(data), "convention": _CONVENTION}
            title = f"{predictions.name} on {data.name}"
            write_evaluation(out, metrics, counts, title=title, facts=facts, overlays={}, warnings=warnings)
            _write_errors(out / ERRORS, unreadable)
    return Evaluation(metrics, tuple(warnings), unreadable)


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
        write_result(out / overlays[scored.image_id], encode_jpeg(picture))

    return overlays, write


def _clear(root: Path) -> None:
    """Delete an earlier evaluation, once it is sure that a new one can begin."""
    shutil.rmtree(root / OVERLAYS, ignore_errors=True)
    for name in _OWN_ENTRIES - {OVERLAYS}:
        (root / name).unlink(missing_ok=True)


def _facts_of_models(models: Sequence[Path]) -> dict[str, str]:
    infos = [read_model_info(path) for path in models]
    networks = [f"{info.recipe.model.architecture}, {info.recipe.model.encoder}" for info in infos]
    return {
        "model": ", ".join(map(str, models)),
        "network": "; ".join(dict.fromkeys(networks)),
        "seed of the training": ", ".join(str(info.recipe.seed) for info in infos),
        "fold held out": ", ".join("none" if info.fold is None else str(info.fold) for info in infos),
    }


def _describe_classes(info: ModelInfo, folder: DataFolder) -> str:
    left_out = [name for name in info.class_names if name not in folder.class_names]
    return ", ".join(folder.class_names) + (f"; not in the data: {', '.join(left_out)}" if left_out else "")


def _describe(thresholds: Thresholds) -> str:
    gate, pixel, area = (
        " / ".join(f"{value:g}" for value in values)
        for values in (thresholds.gate, thresholds.pixel, thresholds.min_area_px)
    )
    return f"gate {gate}; pixel {pixel}; minimum area {area} px ({thresholds.chosen_by})"


def _write_errors(path: Path, unreadable: Sequence[Unreadable]) -> None:
    if not unreadable:
        return
    with atomic_csv(path, ("ImageId", "path", "error")) as write_rows:
        write_rows((one.image_id, escaped(one.path), one.message) for one in unreadable)
