"""What `defectseg train` calls: one run, a run on each fold, or one on everything with thresholds from folds."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from defectseg.config import Recipe, changed
from defectseg.data.folder import open_data_folder
from defectseg.data.split import SPLIT_NAME, write_split
from defectseg.errors import UsageError
from defectseg.evaluate.metrics import Metrics, headline
from defectseg.image.read import LowBitDepth
from defectseg.machine import is_main_process
from defectseg.model.devices import resolve_device
from defectseg.model.info import Thresholds, read_model_info
from defectseg.model.locate import FOLD_PREFIX, MODEL_NAME
from defectseg.progress import Progress, silent
from defectseg.train.images import Images, check_data, find_folds, read_images
from defectseg.train.processes import from_main, processes
from defectseg.train.run import train_one
from defectseg.train.run_folder import FOLDS_NAME, Request, has_begun, read_request, run_folder
from defectseg.tune.tune import tune_out_of_fold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        model: the bundle.
        metrics: with its thresholds, on images held out; None where there are none.
        unreadable: (ImageId, reason) of the images left out.
        held_out: for people: which images the metrics are of.
        low_bit_depth: set where most 16-bit images seem to come from a camera of fewer bits.
    """

    model: Path
    metrics: Metrics | None
    unreadable: tuple[tuple[str, str], ...]
    held_out: str = "Validation images, with the thresholds that were chosen on them"
    low_bit_depth: LowBitDepth | None = None


def train(
    data: Path | None,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    init: Path | None = None,
    thresholds: Thresholds | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train a model and write its run folder.

    Where the recipe trains on everything and asks for `training.threshold_folds`, that many models are trained on
    folds before, in `out`/folds, and the thresholds are those that fit their answers for the images they held out.

    Args:
        data: data folder; on resuming, None for the one that the training began with.
        out: run folder.
        recipe: the resolved recipe, the fold among it.
        device: auto, cpu, cuda, cuda:N or mps.
        init: a bundle to start from, or None.
        thresholds: of the model to be; None to choose them on the validation images, or for the defaults.
        resume: continue the training in `out` as its request.json says: recipe, init and thresholds are left out.
        progress: called after each step of a run with the steps done and planned.

    Raises:
        OutputExistsError: the run folder is not empty, and `resume` was not given.
        UsageError, ConfigError: what is asked for makes no sense for this data.
        DataError, ModelError, ResourceError: something needed is missing, unreadable or exhausted.
        KeyboardInterrupt: SIGTERM or Ctrl-C; the training can be resumed.
    """
    request = _request(data, out, recipe, init, thresholds, resume=resume, every_fold=False)
    with _opened(request, out, device, progress, resume=resume) as (images, held_out, run):
        if request.threshold_folds:
            return _train_on_everything(request, out, device, images, held_out, run)
        metrics = run(out, recipe=request.recipe, thresholds=request.thresholds)
        return TrainResult(out / MODEL_NAME, metrics, images.unreadable, low_bit_depth=images.low_bit_depth)


def train_folds(
    data: Path | None,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    init: Path | None = None,
    thresholds: Thresholds | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[int, TrainResult]:
    """One run for each fold that split.csv of the data folder has, or the recipe wants, in `out`/fold-N; on resuming,
    those that have ended are left as they are. Arguments and errors as of `train`.
    """
    request = _request(data, out, recipe, init, thresholds, resume=resume, every_fold=True)
    with _opened(request, out, device, progress, resume=resume) as (images, held_out, run):
        return _train_each(out, request, images, held_out, run)


def _request(
    data: Path | None,
    out: Path,
    recipe: Recipe | None,
    init: Path | None,
    thresholds: Thresholds | None,
    *,
    resume: bool,
    every_fold: bool,
) -> Request:
    """What the arguments ask for; on resuming, what the training in `out` was asked for."""
    if not resume:
        if data is None or recipe is None:
            raise UsageError("a training that begins needs a data folder and a recipe.")
        return Request(recipe=recipe, data=data, init=init, thresholds=thresholds, every_fold=every_fold)
    if recipe is not None or init is not None or thresholds is not None:
        raise UsageError(
            "a training goes on with its own recipe, init and thresholds; leave them out.", argument="resume"
        )
    request = read_request(out)
    if request.every_fold != every_fold:
        kind = "runs on each fold" if request.every_fold else "a single run"
        raise UsageError(f"{out}: began as {kind}, and can only go on as that.", argument="resume")
    return request if data is None else request.model_copy(update={"data": data})


@contextmanager
def _opened(
    request: Request, out: Path, device_name: str, progress: Progress, *, resume: bool
) -> Iterator[tuple[Images, list[int | None], Callable[..., Metrics | None]]]:
    """For the block, hold the run folder and keep the processes together.

    Gives the images, which all runs share; the fold that each run holds back (None: none); and a function that trains a
    run on them, called as `train_one` with its folder, recipe and thresholds.
    """
    device = resolve_device(device_name)
    with run_folder(out, request, resume=resume), processes(device):
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
        yield images, held_out, partial(train_one, images, device=device, init=request.init, progress=progress)


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


def _train_on_everything(
    request: Request,
    out: Path,
    device: str,
    images: Images,
    held_out: list[int | None],
    run: Callable[..., Metrics | None],
) -> TrainResult:
    """Runs on folds for the thresholds, then one on all images; the time budget is shared out equally."""
    minutes, count = request.recipe.training.max_minutes, len(held_out) - 1
    if minutes is not None:
        recipe = changed(request.recipe, "training", max_minutes=minutes / len(held_out))
        request = request.model_copy(update={"recipe": recipe})
    if has_begun(out):
        run(out, recipe=request.recipe, thresholds=None)
        return TrainResult(out / MODEL_NAME, None, images.unreadable, low_bit_depth=images.low_bit_depth)
    models = [one.model for one in _train_each(out / FOLDS_NAME, request, images, held_out[:-1], run).values()]
    tuning = tune_out_of_fold(models, request.data, device=device, bit_depth=request.recipe.data.bit_depth)
    for warning in tuning.warnings:
        log.warning("%s", warning)
    log.info("now on all images")
    scores = {**headline(tuning.metrics), "images": tuning.metrics.images, "folds": count}
    run(out, recipe=request.recipe, thresholds=tuning.thresholds, out_of_fold=scores)
    told = f"Images that the models of {count} folds held out, with the thresholds that were chosen on them"
    return TrainResult(out / MODEL_NAME, tuning.metrics, images.unreadable, told, images.low_bit_depth)


def _train_each(
    out: Path, request: Request, images: Images, folds: Sequence[int | None], run: Callable[..., Metrics | None]
) -> dict[int, TrainResult]:
    """A run on each fold, but for those that have ended before."""
    results = {}
    for fold in folds:
        assert fold is not None
        folder = out / f"{FOLD_PREFIX}{fold}"
        model = folder / MODEL_NAME
        if model.is_file():
            check_data(images.data, read_model_info(model))
            log.info("fold %d has ended before: %s", fold, model)
            results[fold] = TrainResult(model, None, ())
        else:
            log.info("fold %d, in %s", fold, folder)
            metrics = run(folder, recipe=changed(request.recipe, "data", fold=fold), thresholds=request.thresholds)
            results[fold] = TrainResult(model, metrics, images.unreadable, low_bit_depth=images.low_bit_depth)
    return results
