"""What `defectseg train` calls: one run, or several on different folds."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from defectseg.config import Recipe, parse_recipe
from defectseg.data.split import read_split
from defectseg.errors import OutputExistsError, UsageError
from defectseg.files import LOCK_NAME, is_empty_folder, write_text
from defectseg.model.info import Thresholds
from defectseg.model.locate import FOLD_PREFIX
from defectseg.train.loaders import SPLIT_NAME, TENSORBOARD_NAME, is_main_process, processes
from defectseg.train.loop import CHECKPOINT_NAME
from defectseg.train.request import TrainRequest, TrainResult
from defectseg.train.run_folder import MODEL_NAME, train_single
from defectseg.tune.tune import tune_out_of_fold

log = logging.getLogger(__name__)

FOLDS_NAME = "folds"
REQUEST_NAME = "request.json"


@processes()
def train(request: TrainRequest) -> TrainResult:
    """Train a model and write its run folder.

    Where the recipe trains on everything and asks for `training.threshold_folds`, that many models are trained on
    folds before, in RUN/folds, and the thresholds are those that fit their answers for the images they held out.

    Raises:
        OutputExistsError: the run folder is not empty and --resume was not given.
        UsageError, ConfigError: the request makes no sense for this data.
        DataError, ModelError, ResourceError: something needed is missing, unreadable or exhausted.
        KeyboardInterrupt: SIGTERM or Ctrl-C; the run can be resumed.
    """
    _check_out(request)
    folds_out = request.out / FOLDS_NAME
    if request.resume and (request.out / CHECKPOINT_NAME).is_file():
        return train_single(request)
    if request.resume and (folds_out / REQUEST_NAME).is_file():
        return _train_on_everything(_as_begun(request, folds_out))
    recipe = request.recipe
    needs_folds = recipe.data.fold is None and recipe.training.threshold_folds and request.thresholds is None
    if request.resume or not needs_folds:
        return train_single(request)
    return _train_on_everything(request)


@processes()
def train_folds(request: TrainRequest) -> dict[int, TrainResult]:
    """One run for each fold that split.csv of the data folder has, or the recipe wants, in `out`/fold-N; on resuming,
    those that have ended are left as they are. Raises as `train` does.
    """
    _check_out(request)
    if request.resume:
        request = _as_begun(request, request.out)
    else:
        _keep(request, request.out)
    return _train_each(request, request.out, _all_folds(request))


def _train_on_everything(request: TrainRequest) -> TrainResult:
    """Runs on folds for the thresholds, then one on all images; the time budget is shared out equally."""
    folds = request.recipe.training.threshold_folds
    numbers = _all_folds(request)
    if folds > len(numbers):
        raise UsageError(f"training.threshold_folds: {folds}, but the split has only {len(numbers)} folds.")
    if not request.resume:
        _keep(request, request.out / FOLDS_NAME)
    request = replace(request, recipe=_with_budget(request.recipe, folds + 1), resume=False)
    runs = _train_each(request, request.out / FOLDS_NAME, numbers[:folds])
    models = [run.model for run in runs.values()]
    bit_depth = request.recipe.data.bit_depth
    tuning = tune_out_of_fold(models, request.data, device=request.device, bit_depth=bit_depth)
    for warning in tuning.warnings:
        log.warning("%s", warning)
    log.info("now on all images")
    result = train_single(replace(request, thresholds=tuning.thresholds))
    held_out = f"Images that the models of {folds} folds held out, with the thresholds that were chosen on them"
    return replace(result, metrics=tuning.metrics, held_out=held_out)


def _train_each(request: TrainRequest, out: Path, folds: Sequence[int]) -> dict[int, TrainResult]:
    results = {}
    for fold in folds:
        folder = out / f"{FOLD_PREFIX}{fold}"
        if (folder / MODEL_NAME).is_file():
            log.info("fold %d has ended before: %s", fold, folder / MODEL_NAME)
            results[fold] = TrainResult(folder / MODEL_NAME, None, ())
            continue
        log.info("fold %d, in %s", fold, folder)
        begun = (folder / CHECKPOINT_NAME).is_file()
        recipe = _with_fold(request.recipe, fold)
        results[fold] = train_single(replace(request, recipe=recipe, out=folder, resume=begun))
    return results


def _keep(request: TrainRequest, folder: Path) -> None:
    """Write down what was asked for: after an interruption, the runs that had not begun need it."""
    content = {
        "recipe": request.recipe.model_dump(mode="json"),
        "init": None if request.init is None else str(request.init.resolve()),
        "thresholds": None if request.thresholds is None else request.thresholds.model_dump(mode="json"),
    }
    if is_main_process():
        write_text(folder / REQUEST_NAME, json.dumps(content, indent=2) + "\n")


def _as_begun(request: TrainRequest, folder: Path) -> TrainRequest:
    """The request as `_keep` wrote it down. Raises UsageError where there is none."""
    path = folder / REQUEST_NAME
    if not path.is_file():
        raise UsageError(f"{folder}: no {REQUEST_NAME}, so there are no runs on folds to resume. Leave out --resume.")
    content = json.loads(path.read_text(encoding="utf-8"))
    init, thresholds = content["init"], content["thresholds"]
    return replace(
        request,
        recipe=parse_recipe(content["recipe"], source=str(path)),
        init=None if init is None else Path(init),
        thresholds=None if thresholds is None else Thresholds.model_validate(thresholds),
    )


def _check_out(request: TrainRequest) -> None:
    """Raise OutputExistsError where a new run would write into a folder that is not empty."""
    if is_main_process() and not request.resume and not _is_free(request.out):
        raise OutputExistsError(f"{request.out}: not empty. Choose another --out, or continue that run with --resume.")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, but for what runs leave that could not begin, for a wrong setting or an early kill."""
    return is_empty_folder(folder) or (folder.is_dir() and all(map(_is_trace, folder.iterdir())))


def _is_trace(entry: Path) -> bool:
    if entry.is_dir():
        is_run = entry.name.startswith((FOLDS_NAME, FOLD_PREFIX))
        return entry.name == TENSORBOARD_NAME or (is_run and _is_free(entry))
    return entry.name in (REQUEST_NAME, LOCK_NAME)


def _all_folds(request: TrainRequest) -> list[int]:
    split = request.data / SPLIT_NAME
    if not split.is_file():
        return list(range(request.recipe.data.folds))
    return sorted(set(read_split(split).values()))


def _with_fold(recipe: Recipe, fold: int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"fold": fold})})


def _with_budget(recipe: Recipe, runs: int) -> Recipe:
    minutes = recipe.training.max_minutes
    if minutes is None:
        return recipe
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_minutes": minutes / runs})})
