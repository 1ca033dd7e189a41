"""Thresholds from labelled images into model files: what `defectseg tune` calls."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import DataError, ModelError, OutputExistsError, UsageError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.evaluate.score import Score, score_images
from defectseg.evaluate.subset import choose_subset, held_out, missing_warnings, seen_warnings
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Unreadable
from defectseg.model.info import ModelInfo, Thresholds, read_model_info, write_model_info
from defectseg.runtime.load import load_runtime
from defectseg.tune.choice import Choice
from defectseg.tune.file import write_thresholds
from defectseg.tune.goals import BestDice, Goal
from defectseg.tune.search import FOLDS, ThresholdSearch


@dataclass(frozen=True)
class TuneRequest:
    """What `defectseg tune` was asked for.

    Attributes:
        models: the model file; or those of several folds, each of which answers for what it held out.
        data: data folder.
        subset: val or all; several models go with val only.
        split: split.csv that tells what was held out; None for the one beside each model.
        goal: what to choose by.
        folds: of the cross-validation.
        out: JSON file to write the thresholds to, or None.
        dry_run: leave the models as they are.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: the library that computes: auto, torch, openvino or onnx.
        tta: test-time augmentation: none, flips or turns; None for the models' own. It is not stored.
        bit_depth: of 16-bit files, 9 to 16; None: as they say themselves, or as the models were trained.
        start, advance: called with the number of images, and after each.
    """

    models: Sequence[Path]
    data: Path
    subset: str = "val"
    split: Path | None = None
    goal: Goal = field(default_factory=BestDice)
    folds: int = FOLDS
    out: Path | None = None
    dry_run: bool = False
    device: str = "auto"
    runtime: str = "auto"
    tta: str | None = None
    bit_depth: int | None = None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Tuning:
    """Chosen thresholds.

    Attributes:
        thresholds: of the classes of the data folder.
        choice: with figures of each of these classes.
        metrics: with the thresholds, on the images they were chosen on.
        warnings: of the choice, too.
        failures: images that could not be read.
        stored: the model files that were changed.
        low_bit_depth: set where 16-bit images seem to come from a camera of fewer bits; it is among the warnings, too.
    """

    thresholds: Thresholds
    choice: Choice
    metrics: Metrics
    warnings: tuple[str, ...]
    failures: tuple[Unreadable, ...]
    stored: tuple[Path, ...] = ()
    low_bit_depth: LowBitDepth | None = None


def tune(request: TuneRequest) -> Tuning:
    """Choose thresholds on labelled images, and store them in every model file of the request and in `out`.

    Raises:
        OutputExistsError: `out` exists.
        UsageError: it cannot be told which images to choose on, or there is nowhere to store the choice.
        DataError, ModelError, ResourceError: data, model or device cannot be used.
    """
    if request.out is not None and request.out.exists():
        raise OutputExistsError(f"{request.out}: exists. Choose another --out.")
    infos = _read_infos(request.models)
    targets = () if request.dry_run else tuple(request.models)
    folder = open_data_folder(request.data, class_names=infos[0].class_names, bit_depth=request.bit_depth)
    parts, warnings = _choose_images(request, folder, infos)
    search, failures, low = _search(request, folder, parts)
    warnings += [f"left out, could not be read: {failure.message}" for failure in failures]
    warnings += [] if low is None else [str(low)]
    own = infos[0].recipe.inference.tta
    if targets and request.tta not in (None, own):
        warnings.append(
            f"chosen with --tta {request.tta}, which is not stored (the model has {own}): give it to predict, too"
        )
    choice = search.best(request.goal, groups=folder.groups, folds=request.folds)
    thresholds = choice.thresholds.model_copy(update={"chosen_by": _chosen_by(request, infos, choice)})
    metrics = summarise(search.counts(thresholds), folder.class_names)
    if left_out := [name for name in infos[0].class_names if name not in folder.class_names]:
        warnings.append(f"thresholds of {', '.join(left_out)}: left as they are, since nothing shows what suits them")
    if request.out is not None:
        write_thresholds(request.out, folder.class_names, thresholds)
    for model in targets:
        _store(model, thresholds, choice, metrics)
    ids = [index + 1 for index in infos[0].indices_of(folder.class_names)]  # as the model numbers them
    classes = tuple(replace(one, class_id=ids[one.class_id - 1]) for one in choice.classes)
    return Tuning(
        thresholds=thresholds,
        choice=replace(choice, classes=classes),
        metrics=metrics,
        warnings=(*warnings, *choice.warnings),
        failures=(*(Unreadable(image.image_id, image.path, image.fault) for image in folder.faulty), *failures),
        stored=targets,
        low_bit_depth=low,
    )


def tune_out_of_fold(
    models: Sequence[Path], data: Path, *, device: str = "auto", bit_depth: int | None = None
) -> Tuning:
    """Choose thresholds on the images that each of several models held out; nothing is written. Raises as `tune`."""
    return tune(TuneRequest(models=models, data=data, device=device, bit_depth=bit_depth, dry_run=True))


def _read_infos(models: Sequence[Path]) -> list[ModelInfo]:
    """Descriptions of models of the same classes. Raises ModelError."""
    infos = [read_model_info(model) for model in models]
    for info, model in zip(infos, models, strict=True):
        if info.class_names != infos[0].class_names:
            raise ModelError(
                f"{model}: knows the classes {', '.join(info.class_names)}, but {models[0]} knows "
                f"{', '.join(infos[0].class_names)}. Tune models of the same classes together."
            )
    return infos


def _choose_images(
    request: TuneRequest, folder: DataFolder, infos: Sequence[ModelInfo]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """For each model the ImageIds that it answers for, and warnings."""
    if len(infos) == 1:
        chosen, warnings = choose_subset(folder, infos[0], request.models, request.subset, request.split)
        parts = [chosen]
    elif request.subset == "val":
        parts, warnings = held_out(folder, infos, request.models, request.split)
    else:
        raise UsageError(
            f"--subset {request.subset}: of several models each answers for the images that it held out; "
            "leave --subset at val, or tune a single model."
        )
    warnings += missing_warnings(folder)
    for info, image_ids in zip(infos, parts, strict=True):
        warnings += seen_warnings(folder, info, image_ids, request.subset)
    return parts, warnings


def _search(
    request: TuneRequest, folder: DataFolder, parts: Sequence[Sequence[str]]
) -> tuple[ThresholdSearch, tuple[Unreadable, ...], LowBitDepth | None]:
    """A search that holds each model's answers for its part of the images, those that could not be read, and whether
    16-bit images seem to come from a camera of fewer bits.
    """
    request.start(sum(map(len, parts)))
    search = ThresholdSearch(folder.class_names)
    scores = [
        _gather(request, search, folder, model, image_ids)
        for model, image_ids in zip(request.models, parts, strict=True)
        if image_ids
    ]
    failures = tuple(failure for score in scores for failure in score.unreadable)
    if failures and not search.images:
        first = failures[0].message
        raise DataError(f"{request.data}: none of the {len(failures)} images can be read. The first: {first}")
    return search, failures, find_low_bit_depth(sum((score.brightest for score in scores), Counter()))


def _gather(
    request: TuneRequest, search: ThresholdSearch, folder: DataFolder, model: Path, image_ids: Sequence[str]
) -> Score:
    """Take the model's answers for some images into the search."""
    runtime, info = load_runtime(model, request.device, request.runtime)
    return score_images(
        runtime,
        folder,
        image_ids,
        Settings.of(info, tta=request.tta),
        visitors=(search.visit,),
        keep_answers=True,
        progress=lambda done, total, text="": request.advance() if done else None,
    )


def _chosen_by(request: TuneRequest, infos: Sequence[ModelInfo], choice: Choice) -> str:
    """For people, in the model file: on what and for what the thresholds were chosen."""
    if len(infos) > 1:
        images = f"{choice.images} out-of-fold images of {len(infos)} models"
    elif request.subset == "val":
        images = f"the {choice.images} validation images of fold {infos[0].fold}"
    else:
        images = f"all {choice.images} images of {request.data.name}"
    return f"search on {images}, {choice.goal}"


def _store(model: Path, thresholds: Thresholds, choice: Choice, metrics: Metrics) -> None:
    """Replace the thresholds in a model file, whole or not at all."""
    info = read_model_info(model)
    figures = {**info.metrics, "tuned": headline(metrics)}
    figures.pop("cross_validated", None)
    if choice.validated is not None:
        validated = choice.validated
        figures["cross_validated"] = {
            "kaggle_dice": validated.kaggle_dice,
            "positive_dice": validated.positive_dice,
        }
    thresholds = _completed(thresholds, [one.name for one in choice.classes], info)
    write_model_info(model, info.model_copy(update={"thresholds": thresholds, "metrics": figures}))


def _completed(thresholds: Thresholds, class_names: Sequence[str], info: ModelInfo) -> Thresholds:
    """Thresholds chosen for some of a model's classes, with its own for the others."""
    if len(class_names) == info.num_classes:
        return thresholds
    places = info.indices_of(class_names)

    def fill(own: Sequence[Any], chosen: Sequence[Any]) -> tuple[Any, ...]:
        values = dict(enumerate(own)) | dict(zip(places, chosen, strict=True))
        return tuple(values.values())

    return Thresholds(
        gate=fill(info.thresholds.gate, thresholds.gate),
        pixel=fill(info.thresholds.pixel, thresholds.pixel),
        min_area_px=fill(info.thresholds.min_area_px, thresholds.min_area_px),
        chosen_by=f"{thresholds.chosen_by}, for {', '.join(class_names)}; of the others as before",
    )
