"""Choose thresholds on labelled images and store them in model files: `defectseg tune`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.groups import groups_of
from defectseg.data.split import SPLIT_NAME, leave_out_test, read_split
from defectseg.errors import OutputExistsError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.evaluate.out_of_fold import Part, score_parts
from defectseg.evaluate.score import all_unreadable
from defectseg.evaluate.subset import choose_subset, count_seen, held_out
from defectseg.image.read import bit_depth_warnings
from defectseg.inference.stream import Unreadable
from defectseg.model.info import ModelInfo, Thresholds, read_model_info, write_model_info
from defectseg.model.locate import as_paths
from defectseg.progress import Progress, silent
from defectseg.runtime.ensemble import join_infos
from defectseg.runtime.load import load_runtime
from defectseg.tune.choice import FOLDS, Choice, ThresholdSearch
from defectseg.tune.file import write_thresholds
from defectseg.tune.goals import BEST_DICE, Goal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """Chosen thresholds, and their metrics on the images they were chosen on.

    Attributes:
        choice: thresholds and figures of the classes of the data folder.
        metrics: with these thresholds.
        warnings: sentences, with those of the choice.
        unreadable: images that were left out.
        stored: the model files that were changed.
    """

    choice: Choice
    metrics: Metrics
    warnings: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]
    stored: tuple[Path, ...] = ()


def tune(
    models: Path | Sequence[Path],
    data: Path,
    *,
    subset: str = "val",
    split: Path | None = None,
    goal: Goal = BEST_DICE,
    folds: int = FOLDS,
    out: Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    tta: str | None = None,
    bit_depth: int | None = None,
    progress: Progress = silent,
) -> Tuning:
    """Choose thresholds on labelled images, and store them in every model and in `out`.

    Images of test, in the split.csv of the data folder or of a model, are left out.

    Several models are tuned on the mean of their answers, as predict uses them, if none was trained on the images.
    Otherwise each model answers for the images that it held out.

    Args:
        models: the model file, or several.
        data: data folder.
        subset: val or all.
        split: split.csv with the folds; None for the one beside each model.
        goal: what to optimise.
        folds: of the cross-validation.
        out: JSON file to write the thresholds to, or None.
        dry_run: do not change the models.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: the library that computes: auto, torch, openvino or onnx.
        tta: test-time augmentation: none, flips or turns; None for the models' own. It is not stored.
        bit_depth: of 16-bit files, 9 to 16; None for that of the file's tag, else of the models.
        progress: called after each image.

    Raises:
        OutputExistsError: `out` exists.
        UsageError: it is not known which images to choose on.
        DataError, ModelError, ResourceError: data, model or device cannot be used.
    """
    if out is not None and out.exists():
        raise OutputExistsError(f"{out}: exists. Choose another file.", argument="out")
    paths = as_paths(models)
    infos = [read_model_info(path) for path in paths]
    joined = join_infos(infos, paths)
    folder = open_data_folder(data, class_names=joined.class_names, bit_depth=bit_depth)
    splits = [*(() if split is None else (split,)), *(path.parent / SPLIT_NAME for path in paths), data / SPLIT_NAME]
    folder = leave_out_test(folder, *(read_split(path, folder.image_ids) for path in splits if path.is_file()))
    parts, warnings = _choose_images(folder, paths, infos, joined, subset, split)
    network, _ = load_runtime(paths, device, runtime)
    search = ThresholdSearch(folder.class_names)
    # The search applies thresholds of its own to the answers, so none are applied before.
    asked: dict[str, Any] = {"tta": tta, "classes": (), "visitors": (search.visit,), "keep_answers": True}
    score = score_parts(network, infos, paths, folder, parts, **asked, progress=progress)
    unreadable, left_out = all_unreadable(folder, score.unreadable, scored=len(search.images))
    warnings += [*left_out, *bit_depth_warnings(score.brightest)]
    own = joined.recipe.inference.tta
    if not dry_run and tta not in (None, own):
        warnings.append(f"chosen with views that are not stored: predict with {tta}, too (the model has {own})")
    choice = search.best(goal, groups=groups_of(folder, folder.image_ids, splits=splits), folds=folds)
    chosen_by = f"search on {_images_text(parts, joined, folder, subset, choice.images)}, {choice.goal}"
    thresholds = choice.thresholds.model_copy(update={"chosen_by": chosen_by})
    metrics = summarise(search.counts(thresholds), folder.class_names)
    if others := [name for name in joined.class_names if name not in folder.class_names]:
        warnings.append(f"thresholds of {', '.join(others)}: left as they are, since nothing shows what suits them")
    if out is not None:
        write_thresholds(out, folder.class_names, thresholds)
    for model in () if dry_run else paths:
        _store(model, thresholds, choice, metrics)
    ids = [index + 1 for index in joined.indices_of(folder.class_names)]  # as the model numbers them
    classes = tuple(replace(one, class_id=ids[one.class_id - 1]) for one in choice.classes)
    return Tuning(
        choice=replace(choice, thresholds=thresholds, classes=classes),
        metrics=metrics,
        warnings=(*warnings, *choice.warnings),
        unreadable=unreadable,
        stored=() if dry_run else paths,
    )


def _choose_images(
    folder: DataFolder,
    paths: tuple[Path, ...],
    infos: Sequence[ModelInfo],
    joined: ModelInfo,
    subset: str,
    split: Path | None,
) -> tuple[list[Part], list[str]]:
    """Which models answer for which images, and warnings; `joined` describes all models together.

    Either all models answer for all images, or each for the images that it held out.
    """
    if len(paths) == 1:
        together = True
    elif subset == "val":
        together = joined.fold is not None or any(info.fold is None for info in infos)
    else:
        together = not count_seen(folder, joined, folder.image_ids)
    if together:
        chosen, warnings = choose_subset(folder, joined, paths, subset, split)
        return [(tuple(range(len(paths))), chosen)], warnings
    log.info("each model answers for the images that it held out, since the others were trained on them")
    own, warnings = held_out(folder, infos, paths, split)
    return [((index,), image_ids) for index, image_ids in enumerate(own)], warnings


def _images_text(parts: Sequence[Part], joined: ModelInfo, folder: DataFolder, subset: str, images: int) -> str:
    """The images that the thresholds were chosen on, in words for the model file."""
    if len(parts) > 1:
        return f"{images} out-of-fold images of {len(parts)} models"
    text = f"all {images} images of {folder.root.name}"
    if subset == "val":
        text = f"the {images} validation images of fold {joined.fold}"
    models = len(parts[0][0])
    return text if models == 1 else f"{text}, by the mean of {models} models"


def _store(model: Path, thresholds: Thresholds, choice: Choice, metrics: Metrics) -> None:
    """Store the thresholds in a model file atomically; classes that the data folder lacks keep their own."""
    info = read_model_info(model)
    figures = {**info.metrics, "tuned": headline(metrics)}
    figures.pop("cross_validated", None)
    if choice.validated is not None:
        figures["cross_validated"] = {one: getattr(choice.validated, one) for one in ("kaggle_dice", "positive_dice")}
    class_names = [one.name for one in choice.classes]
    if len(class_names) < info.num_classes:
        text = f"{thresholds.chosen_by}, for {', '.join(class_names)}; of the others as before"
        columns: dict[str, Any] = {"chosen_by": text}
        for name in ("gate", "pixel", "min_area_px"):
            values = list(getattr(info.thresholds, name))
            for index, value in zip(info.indices_of(class_names), getattr(thresholds, name), strict=True):
                values[index] = value
            columns[name] = tuple(values)
        thresholds = Thresholds(**columns)
    write_model_info(model, info.model_copy(update={"thresholds": thresholds, "metrics": figures}))
