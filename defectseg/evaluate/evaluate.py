"""Score a model, or a file of predictions, on a data folder and write a report: `defectseg evaluate`."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.groups import Groups, groups_of
from defectseg.data.split import SPLIT_NAME
from defectseg.evaluate.metrics import summarise
from defectseg.evaluate.out_of_fold import Part, are_folds, divide_by_seen, score_parts
from defectseg.evaluate.prediction_file import find_models, predicted_classes, score_predictions
from defectseg.evaluate.rates import rates_of
from defectseg.evaluate.report import ERRORS, write_evaluation
from defectseg.evaluate.score import Evaluation, Score, Scored, all_unreadable
from defectseg.evaluate.subset import choose_subset, seen_warnings
from defectseg.files import own_dir, result_folder, write_result
from defectseg.image.overlay import encode_jpeg
from defectseg.image.read import bit_depth_warnings
from defectseg.inference.settings import Settings
from defectseg.model.info import ModelInfo, Thresholds, read_model_info
from defectseg.model.locate import as_paths
from defectseg.predict.names import output_names
from defectseg.predict.output import read_results
from defectseg.progress import Progress, silent
from defectseg.runtime.ensemble import join_infos
from defectseg.runtime.load import load_runtime

OVERLAYS = "overlays"
_OWN_ENTRIES = frozenset({"metrics.json", "pairs.csv", "report.html", ERRORS, OVERLAYS})
_CONVENTION = "Dice of each (image, class) pair, 1 where both masks are empty, averaged over all pairs (Kaggle 2019)"
_ONE_GROUP = "all images are of one group: how much chance is in the figures cannot be told"


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
    group: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a model on labelled images and write metrics, pairs, overlays and report.

    Args:
        models: model file, or several whose answers are averaged. Of models that held out different folds, those answer
            for an image of the subset all that were not trained on it.
        data: data folder.
        out: output folder.
        subset: all, train, val or test.
        split: split.csv with the folds; None for the one beside the model, or for test, that of the data folder.
        overwrite: replace an earlier evaluation in `out`.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: the library that computes: auto, torch, openvino or onnx.
        tta: test-time augmentation: none, flips or turns; None for the model's own.
        bit_depth: of 16-bit files, 9 to 16; None for that of the file's tag, else of the model.
        group: regular expression that finds the group of an image in its ImageId; None: see `groups_of`.
        progress: called after each image.

    Raises:
        OutputExistsError: see `files.result_folder`.
        UsageError: it is not known which images belong to the subset.
        DataError, ModelError, ResourceError: data, model or device cannot be used.
    """
    paths = as_paths(models)
    with result_folder(out, _OWN_ENTRIES, writer="evaluate", overwrite=overwrite):
        network, info = load_runtime(paths, device, runtime)
        settings = Settings.of(info, tta=tta, bit_depth=bit_depth)
        folder = open_data_folder(data, class_names=info.class_names, bit_depth=bit_depth)
        infos = [read_model_info(path) for path in paths]
        by_fold = subset == "all" and are_folds(infos)
        if by_fold:
            parts, warnings = divide_by_seen(folder, infos, paths)
        else:
            chosen, warnings = choose_subset(folder, info, paths, subset, split)
            parts = [(tuple(range(len(paths))), chosen)]
        image_ids = sorted(image_id for _, of_part in parts for image_id in of_part)
        splits = [*(() if split is None else (split,)), *(path.parent / SPLIT_NAME for path in paths)]
        groups = groups_of(folder, image_ids, group, splits=splits)
        _clear(out)
        own_dir(out / OVERLAYS)
        overlays = {image_id: Path(OVERLAYS) / f"{name}.jpg" for image_id, name in output_names(image_ids).items()}

        def write_overlay(scored: Scored) -> None:
            write_result(out / overlays[scored.image_id], encode_jpeg(scored.picture()))

        score = score_parts(network, infos, paths, folder, parts, tta=tta, visitors=(write_overlay,), progress=progress)
        evaluation = _evaluation_of(score, folder, groups, warnings, bit_depth_warnings(score.brightest))
        absent = [name for name in info.class_names if name not in folder.class_names]
        ids = [index + 1 for index in info.indices_of(folder.class_names)]
        classes = tuple(replace(one, class_id=ids[one.class_id - 1]) for one in evaluation.metrics.classes)
        evaluation = replace(evaluation, metrics=replace(evaluation.metrics, classes=classes))
        write_evaluation(
            out,
            evaluation,
            score,
            title=f"{paths[0].name if len(paths) == 1 else f'{len(paths)} models'} on {data.name}",
            facts={
                **_facts_of_models(paths, infos),
                "data": str(data),
                "images": f"{len(image_ids)}, subset {subset}",
                **(_facts_of_parts(parts, len(paths)) if by_fold else {}),
                "groups": f"{evaluation.metrics.groups}, {groups.source}",
                "classes": ", ".join(folder.class_names)
                + (f"; not in the data: {', '.join(absent)}" if absent else ""),
                "thresholds": "; ".join(_describe(one.thresholds) for one in (infos if by_fold else [info])),
                "test-time augmentation": settings.tta,
                "runtime": network.name,
                "convention": _CONVENTION,
            },
            overlays={key: value for key, value in overlays.items() if (out / value).exists()},
        )
    return evaluation


def evaluate_predictions(
    predictions: Path, data: Path, out: Path | None, *, overwrite: bool = False, group: str | None = None
) -> Evaluation:
    """Score predictions, see `score_predictions`; with `out`, write metrics, pairs, sheets, errors and report.

    `group` as in `evaluate`.

    Raises:
        LabelError, DataError: the predictions or the data folder cannot be used.
        OutputExistsError: see `files.result_folder`.
    """
    folder = open_data_folder(data, class_names=predicted_classes(predictions))
    score, warnings = score_predictions(predictions, folder)
    seen: list[str] = []
    if predictions.is_dir() and (paths := find_models(read_results(predictions)[0])):
        info = join_infos([read_model_info(path) for path in paths], paths)
        seen = seen_warnings(folder, info, tuple(score.sheets), "test")
    groups = groups_of(folder, folder.image_ids, group)
    evaluation = _evaluation_of(score, folder, groups, warnings, seen)
    if out is not None:
        told = f"{evaluation.metrics.groups}, {groups.source}"
        facts = {"predictions": str(predictions), "data": str(data), "groups": told, "convention": _CONVENTION}
        with result_folder(out, _OWN_ENTRIES, writer="evaluate", overwrite=overwrite):
            _clear(out)
            write_evaluation(
                out, evaluation, score, title=f"{predictions.name} on {data.name}", facts=facts, overlays={}
            )
    return evaluation


def _evaluation_of(
    score: Score, folder: DataFolder, groups: Groups, warnings: Sequence[str], more: Sequence[str]
) -> Evaluation:
    """The figures of a score, whose warnings stand between those known before and `more`."""
    unreadable, left_out = all_unreadable(folder, score.unreadable, scored=len(score.counts))
    metrics = summarise(score.counts, folder.class_names, groups)
    rates = rates_of(score.counts, score.sheets, folder.class_names, groups)
    one_group = [_ONE_GROUP] if metrics.groups == 1 else []
    return Evaluation(metrics, rates, (*warnings, *left_out, *more, *one_group), unreadable)


def _facts_of_parts(parts: Sequence[Part], models: int) -> dict[str, str]:
    new = sum(len(image_ids) for members, image_ids in parts if len(members) == models)
    held_out = sum(len(image_ids) for _, image_ids in parts) - new
    return {
        "held out by a fold": f"{held_out} images, each scored by the models that did not see it",
        "seen by no fold": f"{new} images, scored by the mean of {models} models",
    }


def _clear(root: Path) -> None:
    """Delete an earlier evaluation. Called once nothing prevents the new one from starting."""
    shutil.rmtree(root / OVERLAYS, ignore_errors=True)
    for name in _OWN_ENTRIES - {OVERLAYS}:
        (root / name).unlink(missing_ok=True)


def _facts_of_models(models: Sequence[Path], infos: Sequence[ModelInfo]) -> dict[str, str]:
    networks = [f"{info.recipe.model.architecture}, {info.recipe.model.encoder}" for info in infos]
    return {
        "model": ", ".join(map(str, models)),
        "network": "; ".join(dict.fromkeys(networks)),
        "seed of the training": ", ".join(str(info.recipe.seed) for info in infos),
        "fold held out": ", ".join("none" if info.fold is None else str(info.fold) for info in infos),
    }


def _describe(thresholds: Thresholds) -> str:
    figures = (thresholds.gate, thresholds.pixel, thresholds.min_area_px)
    gate, pixel, area = (" / ".join(f"{value:g}" for value in values) for values in figures)
    return f"gate {gate}; pixel {pixel}; minimum area {area} px ({thresholds.chosen_by})"
