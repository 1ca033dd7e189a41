"""One training run from a data folder to a bundle."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object, set_seed

from defectseg.config import dump_recipe, load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.data.split import write_split
from defectseg.errors import UsageError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.files import LOCK_NAME, TEMPORARY_PREFIX, atomic_csv, folder_lock, remove_stale_temporaries, write_text
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.devices import resolve_device
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.train.checkpoint import load_checkpoint, read_description, save_checkpoint
from defectseg.train.curves import draw_curves, read_history
from defectseg.train.loaders import (
    SPLIT_NAME,
    TENSORBOARD_NAME,
    Images,
    assemble,
    choose_images,
    fit_memory,
    make_accelerator,
    start_network,
)
from defectseg.train.loop import CHECKPOINT_NAME, METRICS_NAME, Run, averaged_network, fit, validate_on
from defectseg.train.request import TrainRequest, TrainResult
from defectseg.train.weights import BEST_NAME
from defectseg.tune.choice import ThresholdSearch
from defectseg.tune.file import read_thresholds, write_thresholds

log = logging.getLogger(__name__)

MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"
ERRORS_NAME = "errors.csv"
THRESHOLDS_NAME = "thresholds.json"
INIT_NAME = "init.json"
_BEFORE_CHECKPOINT = {CONFIG_NAME, SPLIT_NAME, ERRORS_NAME, THRESHOLDS_NAME, INIT_NAME, TENSORBOARD_NAME, LOCK_NAME}


def train_single(request: TrainRequest) -> TrainResult:
    """Train one model and write its run folder, which the caller has seen to be free.

    Raises:
        UsageError, ConfigError: the request makes no sense for this data.
        DataError, ModelError, ResourceError: something needed is missing, unreadable or exhausted.
        KeyboardInterrupt: SIGTERM or Ctrl-C; the run can be resumed.
    """
    device = resolve_device(request.device)
    if request.resume:
        request = _resumed(request)
    accelerator = make_accelerator(request.recipe.training, device, request.out)
    try:
        if not accelerator.is_main_process:
            return _train(request, accelerator)
        with folder_lock(request.out):
            remove_stale_temporaries(request.out)
            return _train(request, accelerator)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        # Accelerate keeps these for the whole process, and would refuse a later training in another precision.
        AcceleratorState._reset_state()
        GradientState._reset_state()


def _train(request: TrainRequest, accelerator: Accelerator) -> TrainResult:
    recipe = request.recipe
    set_seed(recipe.seed)
    data = open_data_folder(request.data, bit_depth=recipe.data.bit_depth)
    kept = request.out / THRESHOLDS_NAME  # there if they were given to the run that is resumed or started again
    if kept.is_file() and (request.resume or request.thresholds is None):
        request = replace(request, thresholds=read_thresholds(kept, data.class_names))
    if data.missing_images:
        count, first = len(data.missing_images), data.missing_images[0]
        log.warning("%d images of the label table are not in the folder (first: %s)", count, first)
    images = choose_images(data, recipe, request.out / SPLIT_NAME if request.resume else None)
    if images.bit_depth is not None:  # also where the files state it: those that the model will meet may not
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"bit_depth": images.bit_depth})})
    begun = read_description(request.out / CHECKPOINT_NAME) if request.resume else None
    network, info = start_network(recipe, data, images, init=request.init, begun=begun)
    if recipe.training.fit_memory:
        info = info.model_copy(update={"recipe": fit_memory(info.recipe, network, accelerator, images)})
        accelerator.gradient_accumulation_steps = info.recipe.training.accumulation
    run = assemble(request.out, accelerator, data, images, network, info)
    path = request.out / CHECKPOINT_NAME
    if request.resume:
        run.progress = load_checkpoint(path, network, run.ema, run.optimizer, accelerator)
        run.history = read_history(request.out / METRICS_NAME)[: run.progress.epoch]
    with run.interrupts.held():
        if accelerator.is_main_process:
            _write_start(request, info, images)
        if not request.resume:  # last, since with it the run can be resumed, and then needs the files above
            save_checkpoint(path, network, run.ema, run.optimizer, accelerator, run.progress, info)
        if accelerator.is_main_process:
            (request.out / INIT_NAME).unlink(missing_ok=True)
    _report_steps(request, run)
    fit(run)
    metrics = _finish(request, run)
    return TrainResult(request.out / MODEL_NAME, metrics, images.failed, low_bit_depth=images.low_bit_depth)


def _write_start(request: TrainRequest, info: ModelInfo, images: Images) -> None:
    """Write down what a run that is resumed needs besides the checkpoint, or, before there is one, to start again."""
    if request.init is not None:  # first, since a recipe without it would start from other weights
        write_text(request.out / INIT_NAME, json.dumps(str(request.init.resolve())) + "\n")
    write_text(request.out / CONFIG_NAME, dump_recipe(info.recipe))
    write_split(request.out / SPLIT_NAME, images.folds)
    _write_errors(request.out / ERRORS_NAME, images.failed)
    if request.thresholds is not None:
        write_thresholds(request.out / THRESHOLDS_NAME, info.class_names, request.thresholds)


def _resumed(request: TrainRequest) -> TrainRequest:
    """The request with the recipe of the run that is continued; one to start from the beginning where that run was
    stopped before its first checkpoint.
    """
    config = request.out / CONFIG_NAME
    if not config.is_file():
        raise UsageError(f"{request.out}: no {CONFIG_NAME}, so there is no run to resume. Leave out --resume.")
    if (request.out / MODEL_NAME).exists():
        raise UsageError(f"{request.out}: this run has ended; its model is {MODEL_NAME}. There is nothing to resume.")
    recipe = load_recipe(str(config))
    if recipe.data.fold != request.recipe.data.fold:
        fold = "none" if recipe.data.fold is None else recipe.data.fold
        log.info("resuming with --fold %s, as the run began", fold)
    request = replace(request, recipe=recipe)
    if not _stopped_before_checkpoint(request.out):
        return request
    log.info("%s: stopped before its first checkpoint, so it starts from the beginning", request.out)
    return replace(request, init=_read_init(request.out / INIT_NAME), resume=False)


def _stopped_before_checkpoint(folder: Path) -> bool:
    """Whether a run folder holds nothing but what is written before the first checkpoint."""
    names = {entry.name for entry in folder.iterdir()}
    return all(name in _BEFORE_CHECKPOINT or name.startswith(TEMPORARY_PREFIX) for name in names)


def _read_init(path: Path) -> Path | None:
    return Path(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _report_steps(request: TrainRequest, run: Run) -> None:
    def advance(text: str) -> None:
        if run.accelerator.is_main_process:
            request.advance(run.progress.step, run.steps, text)

    run.advance = advance


def _finish(request: TrainRequest, run: Run) -> Metrics | None:
    """Settle on weights and thresholds, and give the bundle its final name."""
    run.accelerator.wait_for_everyone()
    if run.val_ids:
        info, metrics = _finish_validated(request, run)
    else:
        info, metrics = _finish_unvalidated(request, run), None
    if run.accelerator.is_main_process:
        draw_curves(run.folder / "curves.png", run.history)
        save_bundle(run.folder / MODEL_NAME, run.network.state_dict(), info)  # says that the run has ended
        run.candidates.clear()
    run.accelerator.wait_for_everyone()
    return metrics


def _finish_validated(request: TrainRequest, run: Run) -> tuple[ModelInfo, Metrics]:
    """The weights that the recipe wants to keep, and thresholds chosen for them."""
    chosen = _take_last(run) if run.recipe.training.keep == "last" else _take_best(run)
    if request.thresholds is None:
        thresholds, metrics = _search_thresholds(run)
    else:
        thresholds = request.thresholds
        metrics = validate_on(run, run.network, thresholds=thresholds).metrics
    info = run.info.model_copy(update={"thresholds": thresholds, "metrics": {**chosen, "tuned": headline(metrics)}})
    return info, metrics


def _finish_unvalidated(request: TrainRequest, run: Run) -> ModelInfo:
    """The last weights, and thresholds from elsewhere."""
    origin = _take_last(run)
    if request.thresholds is None:
        log.warning("no validation images, so the thresholds are the defaults; choose them with defectseg tune")
    thresholds = request.thresholds or run.info.thresholds
    return run.info.model_copy(update={"thresholds": thresholds, "metrics": origin})


def _take_best(run: Run) -> dict[str, Any]:
    """Give the network the weights of the best epoch, or the average of the best few where that validates better;
    returns which they are.
    """
    best_info, weights = read_bundle(run.folder / BEST_NAME)
    run.network.load_state_dict(weights)
    averaged = run.candidates.averaged(run.progress)
    if averaged is not None:
        run.network.load_state_dict(averaged)
        score = validate_on(run, run.network, views=False).score
        epochs = sorted(epoch for _, epoch in run.progress.kept)
        log.info("mean of the epochs %s: score %.4f; best: %.4f", epochs, score, run.progress.best_score)
        if run.progress.best_score is not None and score > run.progress.best_score:
            return {"weights": "average", "epochs": epochs}
        run.network.load_state_dict(weights)
    return best_info.metrics


def _take_last(run: Run) -> dict[str, Any]:
    """Give the network the moving average of its last weights, where there is one; returns which they are."""
    origin = "epoch"
    if run.ema is not None:
        run.network.load_state_dict(averaged_network(run.ema).state_dict())
        origin = "ema"
    return {"weights": origin, "epoch": run.progress.epoch}


def _search_thresholds(run: Run) -> tuple[Thresholds, Metrics]:
    """Thresholds for the current weights, chosen on all validation images (by each process, to the same result), and
    what they score there.
    """
    search = ThresholdSearch(run.info.class_names)
    validate_on(run, run.network, visitors=(search.visit,))
    for images in gather_object([search.images]):
        search.merge(images)
    choice = search.best(groups=run.data.groups)
    for warning in choice.warnings:
        log.warning("%s", warning)
    chosen_by = f"search on the {len(run.val_ids)} validation images of fold {run.info.fold}"
    thresholds = choice.thresholds.model_copy(update={"chosen_by": chosen_by})
    return thresholds, summarise(search.counts(thresholds), run.info.class_names)


def _write_errors(path: Path, failed: Sequence[tuple[str, str]]) -> None:
    if not failed:
        return
    with atomic_csv(path, ("ImageId", "error")) as write_rows:
        write_rows(failed)
