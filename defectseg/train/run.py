"""One training run, from images to the finished bundle."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed

from defectseg.config import HeldOut, Recipe, changed
from defectseg.data.folder import DataFolder, image_digest
from defectseg.errors import ConfigError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.files import resource_errors
from defectseg.machine import __version__, now, package_versions
from defectseg.model.appearance import Appearance
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.info import ModelInfo, Thresholds, read_model_info
from defectseg.model.locate import MODEL_NAME
from defectseg.model.network import DefectNetwork, build_network, check_size, transfer_weights
from defectseg.progress import Progress
from defectseg.train.appearance import fit_appearance
from defectseg.train.checkpoint import BEST_NAME, Run, TrainingState, read_checkpoint, restore, save_checkpoint
from defectseg.train.curves import draw_curves, read_history
from defectseg.train.images import Images, Part, check_data
from defectseg.train.loaders import crop_size, fit_memory, make_loader
from defectseg.train.loop import averaged_network, fit
from defectseg.train.processes import accelerated
from defectseg.train.run_folder import CURVES_NAME, METRICS_NAME, has_begun, write_start
from defectseg.train.schedule import make_optimizer, stages_of
from defectseg.train.validation import validate
from defectseg.train.weights import MovingAverage, average_of_best, tidy
from defectseg.tune.choice import ThresholdSearch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        model: path of the bundle.
        metrics: metrics of the held-out images, with the bundle's thresholds; None if no images were held out.
        unreadable: (ImageId, reason) of images that were left out.
        held_out: a phrase that says which images and thresholds the metrics are about.
    """

    model: Path
    metrics: Metrics | None
    unreadable: tuple[tuple[str, str], ...]
    held_out: str = "Validation images"


def train_one(
    images: Images,
    out: Path,
    *,
    recipe: Recipe,
    why: Sequence[str],
    fold: HeldOut | None,
    device: torch.device,
    init: Path | None,
    thresholds: Thresholds | None,
    progress: Progress,
    out_of_fold: dict[str, Any] | None = None,
) -> TrainResult:
    """Train one model, or continue from the checkpoint in `out`. A completed run is returned without training.

    The caller must hold the lock of the run folder.

    Args:
        images: the images of the data folder.
        out: the folder of this run.
        recipe: the recipe. A checkpoint's recipe and fold take precedence.
        why: why the recipe was chosen, for config.yaml.
        fold: what to validate on, or None.
        device: where to train.
        init: a bundle to start from, or None.
        thresholds: thresholds of the bundle; None: choose them on the validation images, or use the defaults.
        progress: called after each step.
        out_of_fold: scores of `thresholds` on images that fold models held out, to store in the bundle.

    Raises:
        ConfigError, DataError, ModelError, ResourceError, KeyboardInterrupt: as `train.train`.
    """
    model = out / MODEL_NAME
    if model.is_file():
        check_data(images.data, read_model_info(model))
        log.info("this run has ended before: %s", model)
        return TrainResult(model, None, images.unreadable)
    begun, saved = read_checkpoint(out) if has_begun(out) else (None, {})
    if begun is not None:
        check_data(images.data, begun)
        recipe, fold = begun.recipe, begun.fold
    elif images.bit_depth is not None:  # also if files state it: images to predict may not
        recipe = changed(recipe, "data", bit_depth=images.bit_depth)
    part = images.part(fold)
    with accelerated(recipe.training, device, out) as accelerator:
        set_seed(recipe.seed)
        if begun is not None:
            network, info = DefectNetwork(recipe.model, images.data.num_classes, begun.normalization), begun
        else:
            network, info = _start_network(recipe, images.data, part, init)
            info = info.model_copy(update={"fold": fold, "appearance": _appearance_of(images, part)})
            if recipe.training.fit_memory:
                info = info.model_copy(update={"recipe": fit_memory(info.recipe, network, accelerator, part)})
                accelerator.gradient_accumulation_steps = info.recipe.training.accumulation
            if out_of_fold is not None:
                info = info.model_copy(update={"thresholds": thresholds, "metrics": {"out_of_fold": out_of_fold}})
        recipe = info.recipe
        network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, recipe.optimizer)
        decay = recipe.training.ema_decay
        ema = MovingAverage(network, decay**accelerator.num_processes) if decay else None
        prepared, prepared_optimizer = accelerator.prepare(network, optimizer)
        # Remove the autocast that Accelerate put into the network: validation uses the precision of `predict`.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        loaders = [make_loader(stage, accelerator, images, part, recipe) for stage in stages_of(recipe)]
        with resource_errors(out):
            accelerator.init_trackers("defectseg")
        run = Run(
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
            progress=progress,
            state=TrainingState(total_epochs=recipe.training.epochs),
        )
        if begun is not None:
            restore(run, saved)
            saved.clear()  # its tensors would stay in memory
            run.history = read_history(out / METRICS_NAME)[: run.state.epoch]
        with run.interrupts.held():
            if accelerator.is_main_process:
                write_start(out, recipe, why, images)
            if begun is None:  # last: resuming needs the files above
                save_checkpoint(run)
        fit(run)
        if "out_of_fold" in run.info.metrics:
            thresholds = run.info.thresholds
        metrics = _finish(run, thresholds)
        told = f"Validation images, with thresholds {'chosen on them' if thresholds is None else 'from elsewhere'}"
        return TrainResult(model, metrics, images.unreadable, told)


def _start_network(recipe: Recipe, data: DataFolder, part: Part, init: Path | None) -> tuple[DefectNetwork, ModelInfo]:
    """A network with initial weights, those of the bundle `init` if given, and the description of the model.

    Raises:
        ConfigError, ModelError: the recipe or the bundle does not fit the data.
    """
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
        raise ConfigError(f"loss.positive_weights: {len(weights)} values; expected {data.num_classes}, or null.")
    packages = ("torch", "segmentation-models-pytorch", "timm", "accelerate", "albumentations", "numpy")
    info = ModelInfo(
        class_names=data.class_names,
        normalization=network.normalization,
        thresholds=Thresholds.default(data.num_classes),
        recipe=recipe,
        data_fingerprint=data.fingerprint(),
        trained_on=tuple(sorted(image_digest(data.image_path(image_id)) for image_id in part.train)),
        versions={"defectseg": __version__, **package_versions(packages)},
        created=now(),
    )
    return network, info


def _appearance_of(images: Images, part: Part) -> Appearance | None:
    """How the training images of a run look."""
    known = [image_id for image_id in part.train if image_id in images.appearances]
    groups = [images.data.groups.get(image_id, image_id) for image_id in known]
    has_defect = np.array([bool(images.data.classes_of(image_id)) for image_id in known], bool)
    return fit_appearance([images.appearances[image_id] for image_id in known], groups, has_defect)


def _finish(run: Run, thresholds: Thresholds | None) -> Metrics | None:
    """Choose weights and thresholds and write the bundle.

    Returns:
        metrics of the validation images; None if there are none.
    """
    run.accelerator.wait_for_everyone()
    figures = {**_choose_weights(run), **run.info.metrics}
    metrics = None
    if run.val_ids and thresholds is None:
        thresholds, metrics = _search_thresholds(run)
    elif run.val_ids:
        metrics = validate(run, run.network, thresholds=thresholds).metrics
    elif thresholds is None:
        log.warning("no validation images, so the thresholds are the defaults; choose them with defectseg tune")
        thresholds = run.info.thresholds
    if metrics is not None:
        figures["tuned"] = headline(metrics)
    if run.accelerator.is_main_process:
        draw_curves(run.folder / CURVES_NAME, run.history)
        info = run.info.model_copy(update={"thresholds": thresholds, "metrics": figures})
        save_bundle(run.folder / MODEL_NAME, run.network.state_dict(), info)  # its presence marks the run as completed
        run.state.kept = []
        tidy(run)
        (run.folder / BEST_NAME).unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    return metrics


def _choose_weights(run: Run) -> dict[str, Any]:
    """Load the weights that the recipe keeps into the network.

    These are the weights of the best epoch, or the average of the best epochs if that scores better; with `keep: last`
    or without validation, the final weights or their moving average.

    Returns:
        the origin of the weights, for the bundle's metrics.
    """
    if not run.val_ids or run.recipe.training.keep == "last":
        if run.ema is not None:
            run.network.load_state_dict(averaged_network(run.ema).state_dict())
        return {"weights": "epoch" if run.ema is None else "ema", "epoch": run.state.epoch}
    best_info, weights = read_bundle(run.folder / BEST_NAME)
    averaged = average_of_best(run)
    if averaged is not None:
        assert run.state.best_score is not None
        run.network.load_state_dict(averaged)
        score = validate(run, run.network, views=False).score
        epochs = sorted(epoch for _, epoch in run.state.kept)
        log.info("mean of the epochs %s: score %.4f; best: %.4f", epochs, score, run.state.best_score)
        if score > run.state.best_score:
            return {"weights": "average", "epochs": epochs}
    run.network.load_state_dict(weights)
    return best_info.metrics


def _search_thresholds(run: Run) -> tuple[Thresholds, Metrics]:
    """Thresholds chosen on all validation images for the current weights, and their metrics there.

    Every process computes the same result.
    """
    search = ThresholdSearch(run.info.class_names)
    validate(run, run.network, visitors=(search.visit,))
    for images in gather_object([search.images]):
        search.images.update(images)
    choice = search.best(groups=run.data.groups)
    for warning in choice.warnings:
        log.warning("%s", warning)
    chosen_by = f"search on the {len(run.val_ids)} validation images of fold {run.info.fold}"
    thresholds = choice.thresholds.model_copy(update={"chosen_by": chosen_by})
    return thresholds, summarise(search.counts(thresholds), run.info.class_names)
