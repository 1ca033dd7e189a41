"""What `defectseg train` calls: one run, a run on each fold, or one on everything with thresholds from folds."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from defectseg.config import Recipe, changed
from defectseg.data.folder import open_data_folder
from defectseg.data.split import SPLIT_NAME, write_split
from defectseg.errors import UsageError
from defectseg.evaluate.metrics import headline
from defectseg.machine import is_main_process
from defectseg.model.devices import resolve_device
from defectseg.model.info import Thresholds
from defectseg.model.locate import FOLD_PREFIX
from defectseg.progress import Progress, silent
from defectseg.train.images import Images, find_folds, read_images
from defectseg.train.processes import from_main, processes
from defectseg.train.run import TrainResult, train_one
from defectseg.train.run_folder import FOLDS_NAME, Request, has_begun, read_request, run_folder
from defectseg.tune.tune import tune_out_of_fold

log = logging.getLogger(__name__)


def train(
    data: Path | None,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    init: Path | None = None,
    thresholds: Thresholds | None = None,
    every_fold: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> list[TrainResult]:
    """Train a model and write its run folder; or, with `every_fold`, one for each fold, in `out`/fold-N.

    Where the recipe trains on everything and asks for `training.threshold_folds`, that many models are trained on
    folds before, in `out`/folds, and the thresholds are those that fit their answers for the images they held out.

    Args:
        data: data folder; on resuming, None for the one that the training began with.
        out: run folder.
        recipe: the resolved recipe, the fold among it.
        device: auto, cpu, cuda, cuda:N or mps.
        init: a bundle to start from, or None.
        thresholds: of the model to be; None to choose them on the validation images, or for the defaults.
        every_fold: a run for each fold that split.csv of the data folder has, or that the recipe wants.
        resume: continue the training in `out` as its request.json says: recipe, init, thresholds and every_fold are
            left out. Runs on folds that have ended are left as they are.
        progress: called after each step of a run with the steps done and planned.

    Returns:
        what the run came to, or each of the runs on folds.

    Raises:
        OutputExistsError: the run folder is not empty, and `resume` was not given.
        UsageError, ConfigError: what is asked for makes no sense for this data.
        DataError, ModelError, ResourceError: something needed is missing, unreadable or exhausted.
        KeyboardInterrupt: SIGTERM or Ctrl-C; the training can be resumed.
    """
    if resume:
        if recipe is not None or init is not None or thresholds is not None or every_fold:
            raise UsageError("a training goes on as it began; give no recipe, init or thresholds.", argument="resume")
        request = read_request(out)
        if data is not None:
            request = request.model_copy(update={"data": data})
    elif data is None or recipe is None:
        raise UsageError("a training that begins needs a data folder and a recipe.")
    else:
        request = Request(recipe=recipe, data=data, init=init, thresholds=thresholds, every_fold=every_fold)
    target = resolve_device(device)
    with run_folder(out, request, resume=resume), processes(target):
        images, held_out = _read(request, out)
        run = partial(train_one, images, device=target, init=request.init, progress=progress)
        if request.every_fold:
            return _train_each(out, request, held_out, run)
        if request.threshold_folds:
            return [_train_on_everything(out, request, device, held_out, run)]
        return [run(out, recipe=request.recipe, thresholds=request.thresholds)]


def _read(request: Request, out: Path) -> tuple[Images, list[int | None]]:
    """The images, which all runs share, and the fold that each run holds back (None: none)."""
    settings = request.recipe.data
    data = open_data_folder(request.data, bit_depth=settings.bit_depth)
    if data.missing_images:
        count, first = len(data.missing_images), data.missing_images[0]
        log.warning("%d images of the label table are not in the folder (first: %s)", count, first)
    own = out / SPLIT_NAME
    folds = from_main(lambda: find_folds(data, own, folds=settings.folds, seed=request.recipe.seed))
    held_out = _held_out(request, sorted(set(folds.values())))
    if is_main_process():
        write_split(own, folds)  # so that copies are not searched for again
    unwanted = held_out[0] if len(held_out) == 1 else None
    images = read_images(data, folds, keep=settings.cache, left_out=unwanted)
    for fold in held_out:  # a fault of the last run is told before the first
        images.part(fold)
    return images, held_out


def _held_out(request: Request, numbers: list[int]) -> list[int | None]:
    """The fold that each run of a training holds back, of those of the split. Raises UsageError for one it lacks."""
    fold, wanted = request.recipe.data.fold, request.threshold_folds
    if request.every_fold:
        return [*numbers]
    if wanted > len(numbers):
        raise UsageError(f"training.threshold_folds: {wanted}, but the split has only {len(numbers)} folds.")
    if wanted:
        return [*numbers[:wanted], None]
    if fold is not None and fold not in numbers:
        raise UsageError(f"data.fold: {fold}, but the split has the folds {numbers}.")
    return [fold]


def _train_each(
    out: Path, request: Request, folds: Sequence[int | None], run: Callable[..., TrainResult]
) -> list[TrainResult]:
    results = []
    for fold in folds:
        log.info("fold %d", fold)
        recipe = changed(request.recipe, "data", fold=fold)
        results.append(run(out / f"{FOLD_PREFIX}{fold}", recipe=recipe, thresholds=request.thresholds))
    return results


def _train_on_everything(
    out: Path, request: Request, device: str, held_out: list[int | None], run: Callable[..., TrainResult]
) -> TrainResult:
    """Runs on folds for the thresholds, then one on all images; the time budget is shared out equally."""
    minutes, count = request.recipe.training.max_minutes, len(held_out) - 1
    if minutes is not None:
        recipe = changed(request.recipe, "training", max_minutes=minutes / len(held_out))
        request = request.model_copy(update={"recipe": recipe})
    if has_begun(out):
        return run(out, recipe=request.recipe, thresholds=None)
    models = [one.model for one in _train_each(out / FOLDS_NAME, request, held_out[:-1], run)]
    tuning = tune_out_of_fold(models, request.data, device=device, bit_depth=request.recipe.data.bit_depth)
    for warning in tuning.warnings:
        log.warning("%s", warning)
    log.info("now on all images")
    scores = {**headline(tuning.metrics), "images": tuning.metrics.images, "folds": count}
    result = run(out, recipe=request.recipe, thresholds=tuning.thresholds, out_of_fold=scores)
    told = f"Images that the models of {count} folds held out, with the thresholds that were chosen on them"
    return replace(result, metrics=tuning.metrics, held_out=told)
