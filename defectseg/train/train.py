"""The entry of `defectseg train`: a single run, one per fold, or one on all images with thresholds from folds."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from defectseg.config import HeldOut, Recipe, changed
from defectseg.data.folder import open_data_folder
from defectseg.data.split import SPLIT_NAME, Folds, leave_out_test, write_split
from defectseg.errors import UsageError
from defectseg.evaluate.metrics import headline
from defectseg.machine import is_main_process
from defectseg.model.devices import resolve_device
from defectseg.model.info import Thresholds
from defectseg.model.locate import FOLD_PREFIX
from defectseg.progress import Progress, silent
from defectseg.train.images import Groups, Images, divide_train, find_folds, join_val, read_images
from defectseg.train.processes import from_main, processes
from defectseg.train.run import TrainResult, train_one
from defectseg.train.run_folder import FOLDS_NAME, Request, has_begun, read_request, run_folder
from defectseg.tune.tune import tune

__all__ = ["TrainResult", "train"]

log = logging.getLogger(__name__)


def train(
    data: Path | None,
    out: Path,
    *,
    recipe: Recipe | None = None,
    why: tuple[str, ...] = (),
    device: str = "auto",
    init: Path | None = None,
    thresholds: Thresholds | None = None,
    every_fold: bool = False,
    use_val: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> list[TrainResult]:
    """Train a model into a run folder; with `every_fold`, one model per fold, in `out`/fold-N.

    If the recipe has no validation fold and sets `training.threshold_folds`, that many fold models are trained first,
    in `out`/folds. The thresholds of the final model are chosen on the images that these held out.

    Images of the part test of split.csv are never trained on. Those of val are held out by every run; runs without
    another fold validate on them.

    Args:
        data: data folder; None on resuming: the one that the training began with.
        out: run folder.
        recipe: the resolved recipe, including the fold.
        why: why it was chosen, see `choose`; config.yaml begins with it.
        device: auto, cpu, cuda, cuda:N or mps.
        init: a bundle to start from, or None.
        thresholds: thresholds of the bundle; None: choose them on the validation images, or use the defaults.
        every_fold: train one model for each fold of split.csv in the data folder, or else of the recipe.
        use_val: train on the images of val as well. This needs a recipe whose `data.fold` is None.
        resume: continue the training in `out`. It uses the stored request, so recipe, init, thresholds, every_fold and
            use_val must not be given. Completed fold models are not trained again.
        progress: called after each step with the completed and planned steps of the run.

    Returns:
        one result, or one per fold with `every_fold`.

    Raises:
        OutputExistsError: the run folder is not empty, and `resume` is False.
        UsageError, ConfigError: the settings are invalid or do not fit the data.
        DataError, ModelError, ResourceError: something is missing, unreadable or exhausted.
        KeyboardInterrupt: after SIGTERM or Ctrl-C; the training can be resumed.
    """
    if resume:
        if recipe is not None or init is not None or thresholds is not None or every_fold or use_val:
            raise UsageError("a training goes on as it began; give no recipe, init or thresholds.", argument="resume")
        request = read_request(out)
        if data is not None:
            request = request.model_copy(update={"data": data})
    elif data is None or recipe is None:
        raise UsageError("a training that begins needs a data folder and a recipe.")
    elif use_val and (every_fold or recipe.data.fold is not None):
        raise UsageError("goes with a training on everything, without a fold (data.fold: null).", argument="use_val")
    else:
        request = Request(
            recipe=recipe, why=why, data=data, init=init, thresholds=thresholds, every_fold=every_fold, use_val=use_val
        )
    target = resolve_device(device)
    with run_folder(out, request, resume=resume), processes(target):
        # A recipe that was chosen depends on the machine, so that of the main process counts.
        request = request.model_copy(update={"recipe": from_main(lambda: request.recipe)})
        images, held_out = _read(request, out)
        run = partial(train_one, images, why=request.why, device=target, init=request.init, progress=progress)
        if request.every_fold:
            return _train_each(out, request, held_out, run)
        if request.threshold_folds:
            return [_train_on_everything(out, request, device, held_out, run)]
        return [run(out, recipe=request.recipe, fold=held_out[0], thresholds=request.thresholds)]


def _read(request: Request, out: Path) -> tuple[Images, list[HeldOut | None]]:
    """The images, shared by all runs, and the validation fold of each run (None: no validation)."""
    settings = request.recipe.data
    data = open_data_folder(request.data, bit_depth=settings.bit_depth)
    if data.missing_images:
        count, first = len(data.missing_images), data.missing_images[0]
        log.warning("%d images of the label table are not in the folder (first: %s)", count, first)
    own = out / SPLIT_NAME

    def find() -> tuple[Folds, Groups]:
        chosen = {"folds": settings.folds, "seed": request.recipe.seed}
        folds, groups = find_folds(data, own, **chosen)
        if request.use_val and not own.is_file():
            folds = join_val(folds)
        one_is_held_out = settings.fold is not None and "val" not in folds.values()
        several = request.every_fold or request.threshold_folds
        return divide_train(data, folds, groups, **chosen) if several or one_is_held_out else (folds, groups)

    folds, groups = from_main(find)
    data = replace(data, groups=groups)
    held_out = _held_out(request, folds)
    if is_main_process():
        write_split(own, folds, groups)  # resuming then skips the search for copies
    untrained = {"val", *(held_out if len(held_out) == 1 else ())}
    images = read_images(leave_out_test(data, folds), folds, keep=settings.cache, left_out=untrained)
    for fold in held_out:  # raises before the first run if any run lacks images
        images.part(fold)
    return images, held_out


def _held_out(request: Request, folds: Folds) -> list[HeldOut | None]:
    """The validation fold of each run. Raises UsageError if the split lacks it."""
    fold, wanted = request.recipe.data.fold, request.threshold_folds
    numbers = sorted({fold for fold in folds.values() if isinstance(fold, int)})
    everything: HeldOut | None = "val" if "val" in folds.values() else None
    if request.every_fold:
        return [*numbers] or [everything]
    count = len(numbers)
    if wanted > count:
        raise UsageError(f"training.threshold_folds: {wanted}, but there are {count} folds. Lower it or set data.fold.")
    if wanted:
        return [*numbers[:wanted], everything]
    if fold is None or (everything and (fold == "auto" or not numbers)):
        return [everything]
    fold = 0 if fold == "auto" else fold
    known = [*numbers, *filter(None, [everything])]
    if fold not in known:
        raise UsageError(f"data.fold: {fold}, but the split has the folds {known}.")
    return [fold]


def _train_each(
    out: Path, request: Request, folds: Sequence[HeldOut | None], run: Callable[..., TrainResult]
) -> list[TrainResult]:
    results = []
    for fold in folds:
        log.info("fold %s", fold)
        recipe = changed(request.recipe, "data", fold=fold)
        results.append(run(out / f"{FOLD_PREFIX}{fold}", recipe=recipe, fold=fold, thresholds=request.thresholds))
    return results


def _train_on_everything(
    out: Path, request: Request, device: str, held_out: list[HeldOut | None], run: Callable[..., TrainResult]
) -> TrainResult:
    """Train fold models, choose thresholds, then train on everything. All runs get the same share of the time."""
    minutes, count = request.recipe.training.max_minutes, len(held_out) - 1
    if minutes is not None:
        recipe = changed(request.recipe, "training", max_minutes=minutes / len(held_out))
        request = request.model_copy(update={"recipe": recipe})
    if has_begun(out):
        return run(out, recipe=request.recipe, fold=held_out[-1], thresholds=None)
    models = [one.model for one in _train_each(out / FOLDS_NAME, request, held_out[:-1], run)]
    tuning = tune(models, request.data, device=device, bit_depth=request.recipe.data.bit_depth, dry_run=True)
    for warning in tuning.warnings:
        log.warning("%s", warning)
    log.info("now on all images%s", f" but those of {held_out[-1]}" if held_out[-1] else "")
    scores = {**headline(tuning.metrics), "images": tuning.metrics.images, "folds": count}
    result = run(out, recipe=request.recipe, fold=held_out[-1], thresholds=tuning.choice.thresholds, out_of_fold=scores)
    if result.metrics is not None:
        return result
    told = f"Images that the models of {count} folds held out, with the thresholds that were chosen on them"
    return replace(result, metrics=tuning.metrics, held_out=told)
