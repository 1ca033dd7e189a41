"""One training run, from its images to a bundle."""

import importlib.metadata
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from defectseg.config import Recipe, changed
from defectseg.data.folder import DataFolder, image_digest
from defectseg.errors import ConfigError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.machine import __version__
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import CHECKPOINT_NAME, MODEL_NAME
from defectseg.model.network import DefectNetwork, build_network, check_size, transfer_weights
from defectseg.progress import Progress
from defectseg.train.checkpoint import TrainingState, load_checkpoint, read_description, save_checkpoint
from defectseg.train.curves import draw_curves, read_history
from defectseg.train.images import Images, Part, check_data
from defectseg.train.interrupts import Interrupts
from defectseg.train.loaders import crop_size, fit_memory, make_loader
from defectseg.train.loop import Run, averaged_network, fit, validate_on
from defectseg.train.processes import accelerated, start_trackers
from defectseg.train.run_folder import CURVES_NAME, METRICS_NAME, has_begun, write_start
from defectseg.train.schedule import make_optimizer, stages_of
from defectseg.train.weights import BEST_NAME, Candidates, make_ema
from defectseg.tune.choice import ThresholdSearch

log = logging.getLogger(__name__)


def train_one(
    images: Images,
    out: Path,
    *,
    recipe: Recipe,
    device: torch.device,
    init: Path | None,
    thresholds: Thresholds | None,
    progress: Progress,
    out_of_fold: dict[str, Any] | None = None,
) -> Metrics | None:
    """Train one model into its run folder, or go on where a checkpoint there says; the caller holds the folder.

    Args:
        images: of the data folder.
        recipe: the fold among it. Of a run that goes on, that of the checkpoint counts.
        init: a bundle to start from, or None.
        thresholds: of the model to be; None to choose them on the validation images, or for the defaults.
        progress: called after each step.
        out_of_fold: scores of the thresholds on images that other models held out, for the bundle to keep.

    Returns:
        the figures of the validation images with the model's thresholds; None where there are none.

    Raises:
        ConfigError, DataError, ModelError, ResourceError, KeyboardInterrupt: as `train.train`.
    """
    begun = read_description(out / CHECKPOINT_NAME) if has_begun(out) else None
    if begun is not None:
        recipe = begun.recipe
    elif images.bit_depth is not None:  # also where the files state it: those that the model will meet may not
        recipe = changed(recipe, "data", bit_depth=images.bit_depth)
    with accelerated(recipe.training, device, out) as accelerator:
        set_seed(recipe.seed)
        part = images.part(recipe.data.fold)
        network, info = _start_network(recipe, images.data, part, init=init, begun=begun)
        if begun is None and recipe.training.fit_memory:
            info = info.model_copy(update={"recipe": fit_memory(info.recipe, network, accelerator, part)})
            accelerator.gradient_accumulation_steps = info.recipe.training.accumulation
        if begun is None and out_of_fold is not None:
            info = info.model_copy(update={"thresholds": thresholds, "metrics": {"out_of_fold": out_of_fold}})
        run = _assemble(out, accelerator, images, part, network, info, progress)
        path = out / CHECKPOINT_NAME
        if begun is not None:
            run.state = load_checkpoint(path, network, run.ema, run.optimizer, accelerator)
            run.history = read_history(out / METRICS_NAME)[: run.state.epoch]
        with run.interrupts.held():
            if accelerator.is_main_process:
                write_start(out, info.recipe, images)
            if begun is None:  # last, since what is resumed from it needs the files above
                save_checkpoint(path, network, run.ema, run.optimizer, accelerator, run.state, info)
        fit(run)
        return _finish(run, thresholds)


def _start_network(
    recipe: Recipe, data: DataFolder, part: Part, *, init: Path | None, begun: ModelInfo | None
) -> tuple[DefectNetwork, ModelInfo]:
    """The network with its first weights, and the description of the model to be.

    Args:
        init: a bundle to start from, or None.
        begun: what the run that goes on began with, or None.

    Raises:
        DataError: the data are not those that the run began with.
        ConfigError, ModelError: the recipe or the bundle do not fit the data.
    """
    if begun is not None:
        check_data(data, begun)
        return DefectNetwork(recipe.model, data.num_classes, begun.normalization), begun
    if init is None:
        network = build_network(recipe.model, data.num_classes, recipe.model.encoder_weights)
    else:
        source_info, source = read_bundle(init)
        if source_info.recipe.model != recipe.model:
            log.info("the network is that of %s (%s)", init, source_info.recipe.model.encoder)
        recipe = recipe.model_copy(update={"model": source_info.recipe.model})
        network = DefectNetwork(recipe.model, data.num_classes, source_info.normalization)
        kept = transfer_weights(source, source_info.class_names, network, data.class_names)
        log.info("classes carried over: %s", ", ".join(kept) or "none, their last layer starts anew")
    for stage in stages_of(recipe):
        check_size(network, crop_size(stage, part.train_sizes, recipe))
    weights = recipe.loss.positive_weights
    if weights is not None and len(weights) != data.num_classes:
        raise ConfigError(
            f"loss.positive_weights: {len(weights)} values for {data.num_classes} classes. Give one for each, or null."
        )
    packages = ("torch", "segmentation-models-pytorch", "timm", "accelerate", "albumentations", "numpy")
    info = ModelInfo(
        class_names=data.class_names,
        normalization=network.normalization,
        thresholds=Thresholds.default(data.num_classes),
        recipe=recipe,
        fold=recipe.data.fold,
        data_fingerprint=data.fingerprint(),
        trained_on=tuple(sorted(image_digest(data.image_path(image_id)) for image_id in part.train)),
        versions={"defectseg": __version__, **{name: importlib.metadata.version(name) for name in packages}},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return network, info


def _assemble(
    out: Path,
    accelerator: Accelerator,
    images: Images,
    part: Part,
    network: DefectNetwork,
    info: ModelInfo,
    progress: Progress,
) -> Run:
    """Put the parts together. Raises ResourceError where a tracker cannot start."""
    recipe = info.recipe
    network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe.optimizer)
    ema = make_ema(network, recipe.training.ema_decay**accelerator.num_processes) if recipe.training.ema_decay else None
    prepared, prepared_optimizer = accelerator.prepare(network, optimizer)
    # Accelerate has put autocast into the network itself, but validation computes in the precision of `predict`.
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    loaders = [make_loader(stage, accelerator, images, part, recipe) for stage in stages_of(recipe)]
    start_trackers(accelerator, recipe)
    return Run(
        folder=out,
        accelerator=accelerator,
        network=network,
        prepared=prepared,
        optimizer=prepared_optimizer,
        ema=ema,
        loaders=loaders,
        data=images.data,
        val_ids=part.val,
        info=info,
        recipe=recipe,
        state=TrainingState(total_epochs=recipe.training.epochs),
        candidates=Candidates(out, recipe.training.average_best, writes=accelerator.is_main_process),
        interrupts=Interrupts(),
        progress=progress,
    )


def _finish(run: Run, thresholds: Thresholds | None) -> Metrics | None:
    """Choose weights and thresholds, and give the bundle its final name."""
    run.accelerator.wait_for_everyone()
    origin = _take_best(run) if run.val_ids and run.recipe.training.keep == "best" else _take_last(run)
    metrics = None
    if not run.val_ids:
        if thresholds is None and "out_of_fold" not in run.info.metrics:
            log.warning("no validation images, so the thresholds are the defaults; choose them with defectseg tune")
        thresholds = thresholds or run.info.thresholds
    elif thresholds is None:
        thresholds, metrics = _search_thresholds(run)
    else:
        metrics = validate_on(run, run.network, thresholds=thresholds).metrics
    figures = {**origin, **run.info.metrics, **({} if metrics is None else {"tuned": headline(metrics)})}
    if run.accelerator.is_main_process:
        draw_curves(run.folder / CURVES_NAME, run.history)
        info = run.info.model_copy(update={"thresholds": thresholds, "metrics": figures})
        save_bundle(run.folder / MODEL_NAME, run.network.state_dict(), info)  # says that the run has ended
        run.candidates.clear()
    run.accelerator.wait_for_everyone()
    return metrics


def _take_best(run: Run) -> dict[str, Any]:
    """Give the network the weights of the best epoch, or the average of the best few where that validates better;
    returns which they are.
    """
    best_info, weights = read_bundle(run.folder / BEST_NAME)
    run.network.load_state_dict(weights)
    averaged = run.candidates.averaged(run.state)
    if averaged is not None:
        run.network.load_state_dict(averaged)
        score = validate_on(run, run.network, views=False).score
        epochs = sorted(epoch for _, epoch in run.state.kept)
        log.info("mean of the epochs %s: score %.4f; best: %.4f", epochs, score, run.state.best_score)
        if run.state.best_score is not None and score > run.state.best_score:
            return {"weights": "average", "epochs": epochs}
        run.network.load_state_dict(weights)
    return best_info.metrics


def _take_last(run: Run) -> dict[str, Any]:
    """Give the network the moving average of its last weights, where there is one; returns which they are."""
    if run.ema is not None:
        run.network.load_state_dict(averaged_network(run.ema).state_dict())
    return {"weights": "epoch" if run.ema is None else "ema", "epoch": run.state.epoch}


def _search_thresholds(run: Run) -> tuple[Thresholds, Metrics]:
    """Thresholds for the current weights, chosen on all validation images (by each process, to the same result), and
    what they score there.
    """
    search = ThresholdSearch(run.info.class_names)
    validate_on(run, run.network, visitors=(search.visit,))
    for images in gather_object([search.images]):
        search.images.update(images)
    choice = search.best(groups=run.data.groups)
    for warning in choice.warnings:
        log.warning("%s", warning)
    chosen_by = f"search on the {len(run.val_ids)} validation images of fold {run.info.fold}"
    thresholds = choice.thresholds.model_copy(update={"chosen_by": chosen_by})
    return thresholds, summarise(search.counts(thresholds), run.info.class_names)
