"""A training run from a data folder to a bundle: what `defectseg train` calls."""

import csv
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from torch.utils.data import DataLoader

from defectseg import __version__
from defectseg.config import ModelInfo, Recipe, Thresholds, dump_recipe, load_recipe
from defectseg.data.identity import image_digest
from defectseg.data.images import decode
from defectseg.data.labels import DataFolder, open_data_folder
from defectseg.data.splits import make_folds, read_split, write_split
from defectseg.errors import (
    ConfigError,
    DataError,
    ImageError,
    MissingExtraError,
    OutputExistsError,
    ResourceError,
    UsageError,
)
from defectseg.evaluation.metrics import Metrics
from defectseg.evaluation.score import Scored
from defectseg.evaluation.tune import ThresholdSearch
from defectseg.files import atomic_path, folder_lock, is_empty_folder, remove_stale_temporaries, write_text
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.devices import half_precision, resolve_device
from defectseg.model.network import DefectNetwork, build_network, check_size, transfer_weights
from defectseg.training.augment import build_augment
from defectseg.training.checkpoint import Progress, load_checkpoint, read_description, save_checkpoint
from defectseg.training.dataset import CropDataset, CropSampler, collate
from defectseg.training.loop import (
    BEST_NAME,
    CHECKPOINT_NAME,
    METRICS_NAME,
    Run,
    fit,
    headline,
    make_optimizer,
    validate,
)
from defectseg.training.plots import draw_curves, read_history

log = logging.getLogger(__name__)

MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"
SPLIT_NAME = "split.csv"
TENSORBOARD_NAME = "tensorboard"
ERRORS_NAME = "errors.csv"


@dataclass(frozen=True)
class TrainRequest:
    """What `defectseg train` was asked for.

    Attributes:
        recipe: the resolved recipe; on resuming, that and the fold of the run folder count.
        data: data folder.
        out: run folder.
        device: auto, cpu, cuda, cuda:N or mps.
        fold: the fold to validate on, or None to train on everything.
        init: a bundle to start from, or None.
        resume: continue the run in `out`.
        advance: called after each step with (steps done, steps planned, a line of text).
    """

    recipe: Recipe
    data: Path
    out: Path
    device: str = "auto"
    fold: int | None = 0
    init: Path | None = None
    resume: bool = False
    advance: Callable[[int, int, str], None] = lambda done, total, text: None


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: the bundle, its validation metrics (None with fold none), and the images left out."""

    model: Path
    metrics: Metrics | None
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Images:
    """ImageIds to train and validate on, the folds of all, (ImageId, reason) of those that cannot be read, and the
    size (H, W) of a crop.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    folds: dict[str, int]
    failed: tuple[tuple[str, str], ...]
    crop_hw: tuple[int, int]


def train(request: TrainRequest) -> TrainResult:
    """Train a model and write its run folder.

    Raises:
        OutputExistsError: the run folder is not empty and --resume was not given.
        UsageError, ConfigError: the request makes no sense for this data.
        DataError, ModelError, ResourceError: something needed is missing, unreadable or exhausted.
    """
    device = resolve_device(request.device)
    if not request.resume and not is_empty_folder(request.out):
        raise OutputExistsError(f"{request.out}: not empty. Choose another --out, or continue that run with --resume.")
    if request.resume:
        request = _resumed(request)
    accelerator = _make_accelerator(request, device)
    try:
        if not accelerator.is_main_process:
            return _train(request, accelerator)
        with folder_lock(request.out):
            remove_stale_temporaries(request.out)
            return _train(request, accelerator)
    finally:
        accelerator.end_training()
        # Accelerate keeps these for the whole process, and would refuse a later training in another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _train(request: TrainRequest, accelerator: Accelerator) -> TrainResult:
    recipe = request.recipe
    set_seed(recipe.seed)
    data = open_data_folder(request.data)
    if data.missing_images:
        count, first = len(data.missing_images), data.missing_images[0]
        log.warning("%d images of the label table are not in the folder (first: %s)", count, first)
    images = _choose_images(request, data)
    network, info = _start_network(request, data, images)
    run = _assemble(request, accelerator, data, images, network, info)
    if request.resume:
        run.progress = load_checkpoint(request.out / CHECKPOINT_NAME, network, run.optimizer, accelerator)
        run.history = read_history(request.out / METRICS_NAME)[: run.progress.epoch]
    elif accelerator.is_main_process:  # so that an interruption in the first epoch can be resumed too
        save_checkpoint(request.out / CHECKPOINT_NAME, network, run.optimizer, accelerator, run.progress, info)
    if accelerator.is_main_process:
        write_text(request.out / CONFIG_NAME, dump_recipe(info.recipe))
        write_split(request.out / SPLIT_NAME, images.folds)
        _write_errors(request.out / ERRORS_NAME, images.failed)
    _report_steps(request, run)
    fit(run)
    metrics = _finish(request, run)
    return TrainResult(request.out / MODEL_NAME, metrics, images.failed)


def _resumed(request: TrainRequest) -> TrainRequest:
    """The request with the recipe and the fold of the run that is continued."""
    config = request.out / CONFIG_NAME
    if not config.is_file():
        raise UsageError(f"{request.out}: no {CONFIG_NAME}, so there is no run to resume. Leave out --resume.")
    if (request.out / MODEL_NAME).exists():
        raise UsageError(f"{request.out}: this run has ended; its model is {MODEL_NAME}. There is nothing to resume.")
    fold = read_description(request.out / CHECKPOINT_NAME).fold
    if fold != request.fold:
        log.info("resuming with --fold %s, as the run began", "none" if fold is None else fold)
    return replace(request, recipe=load_recipe(str(config)), fold=fold)


def _make_accelerator(request: TrainRequest, device: torch.device) -> Accelerator:
    settings = request.recipe.training
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if settings.precision == "auto":
        half = half_precision(device)
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[half] if half is not None else "no"
    else:
        precision = "no" if settings.precision == "fp32" else settings.precision
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("training.precision: fp16 needs a GPU. Use auto, bf16 or fp32 on a CPU.")
    trackers = [name for name in settings.trackers if _tracker_is_there(name)]
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(request.out), logging_dir=str(request.out / TENSORBOARD_NAME)),
    )
    if trackers and accelerator.is_main_process:
        request.out.mkdir(parents=True, exist_ok=True)
    shown = "fp32" if precision == "no" else precision
    log.info("training on %s in %s, %d process(es)", accelerator.device, shown, accelerator.num_processes)
    return accelerator


def _tracker_is_there(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        extra = "mlflow" if name == "mlflow" else "train"
        raise MissingExtraError(f"training.trackers: {name}", extra)
    return True


def _choose_images(request: TrainRequest, data: DataFolder) -> _Images:
    folds = _folds(request, data)
    if request.fold is not None and request.fold not in folds.values():
        raise UsageError(f"--fold {request.fold}: the split has folds {sorted(set(folds.values()))}.")
    sizes, failed = _read_all(data)
    for image_id, reason in failed:
        log.warning("left out: %s (%s)", image_id, reason)
    readable = [image_id for image_id in data.image_ids if image_id in sizes]
    train_ids = tuple(image_id for image_id in readable if folds[image_id] != request.fold)
    val_ids = tuple(image_id for image_id in readable if folds[image_id] == request.fold)
    if not train_ids or (request.fold is not None and not val_ids):
        raise DataError(
            f"{data.root}: {len(train_ids)} images to train on and {len(val_ids)} to validate on; give more."
        )
    if not any(data.classes_of(image_id) for image_id in train_ids):
        raise DataError(f"{data.root}: none of the {len(train_ids)} images to train on has a mask. Check train.csv.")
    crop_hw = request.recipe.data.crop_hw or _whole_image_hw(
        {sizes[image_id] for image_id in train_ids}, request.recipe
    )
    return _Images(train_ids, val_ids, folds, failed, crop_hw)


def _whole_image_hw(sizes: Set[tuple[int, int]], recipe: Recipe) -> tuple[int, int]:
    """The one size (H, W) of images that are trained on whole. Raises ConfigError where they cannot make a batch."""
    (height, width), *others = sorted(sizes)
    if others:
        raise ConfigError(
            f"data.crop_hw is null, but the images differ in size (for example {height}x{width} and "
            f"{others[0][0]}x{others[0][1]}). Set a crop size, for example --set data.crop_hw=[256,256]"
        )
    if recipe.augment.quarter_turns and height != width:
        raise ConfigError(
            f"augment.quarter_turns needs square crops, but data.crop_hw is null and the images are {height}x{width}. "
            "Set a crop size, for example --set data.crop_hw=[256,256]"
        )
    return height, width


def _folds(request: TrainRequest, data: DataFolder) -> dict[str, int]:
    """Folds of the run that is resumed, else those in the data folder, else new ones from the seed."""
    candidates = [request.out / SPLIT_NAME] if request.resume else [data.root / SPLIT_NAME]
    existing = next((path for path in candidates if path.is_file()), None)
    if existing is None:
        log.info("no split.csv: making %d folds that keep copies together", request.recipe.data.folds)
        return make_folds(data, folds=request.recipe.data.folds, seed=request.recipe.seed)
    folds = read_split(existing)
    unlisted = [image_id for image_id in data.image_ids if image_id not in folds]
    if unlisted:
        raise DataError(
            f"{existing}: gives no fold for {len(unlisted)} images (first: {unlisted[0]}). "
            f"Run: defectseg data split {data.root}"
        )
    return {image_id: folds[image_id] for image_id in data.image_ids}


def _read_all(data: DataFolder) -> tuple[dict[str, tuple[int, int]], tuple[tuple[str, str], ...]]:
    """Sizes (H, W) of the images that can be read, and (ImageId, reason) of the others; masks are decoded too.

    Raises:
        LabelError: a run-length that does not fit its image: training on a part of the labels would hide it.
    """

    def read(image_id: str) -> tuple[int, int] | str:
        try:
            pixels = decode(data.image_path(image_id)).pixels
        except ImageError as error:
            return str(error)
        size_hw = (pixels.shape[0], pixels.shape[1])
        data.masks_of(image_id, size_hw)
        return size_hw

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = dict(zip(data.image_ids, pool.map(read, data.image_ids), strict=True))
    sizes = {image_id: size for image_id, size in results.items() if not isinstance(size, str)}
    return sizes, tuple((image_id, reason) for image_id, reason in results.items() if isinstance(reason, str))


def _start_network(request: TrainRequest, data: DataFolder, images: _Images) -> tuple[DefectNetwork, ModelInfo]:
    """The network with its first weights, and the description of the model to be."""
    recipe = request.recipe
    if request.resume:
        begun = read_description(request.out / CHECKPOINT_NAME)
        if (begun.class_names, begun.data_fingerprint) != (data.class_names, data.fingerprint()):
            raise DataError(
                f"{data.root}: not the data that {request.out} began with: images or labels differ. "
                "Resume with the same --data, or train anew in another --out."
            )
        network = DefectNetwork(recipe.model, data.num_classes, begun.normalization)
    elif request.init is None:
        network = build_network(recipe.model, data.num_classes, recipe.model.encoder_weights)
    else:
        source_info, source = read_bundle(request.init)
        if source_info.recipe.model != recipe.model:
            log.info("the network is that of %s (%s)", request.init, source_info.recipe.model.encoder)
        recipe = recipe.model_copy(update={"model": source_info.recipe.model})
        network = DefectNetwork(recipe.model, data.num_classes, source_info.normalization)
        kept = transfer_weights(source, source_info.class_names, network, data.class_names)
        log.info("classes carried over: %s", ", ".join(kept) or "none, their last layer starts anew")
    check_size(network, images.crop_hw)
    weights = recipe.loss.positive_weights
    if weights is not None and len(weights) != data.num_classes:
        raise ConfigError(
            f"loss.positive_weights: {len(weights)} values for {data.num_classes} classes. Give one for each, or null."
        )
    info = ModelInfo(
        class_names=data.class_names,
        normalization=network.normalization,
        thresholds=Thresholds.default(data.num_classes),
        recipe=recipe,
        fold=request.fold,
        data_fingerprint=data.fingerprint(),
        trained_on=tuple(sorted(image_digest(data.image_path(image_id)) for image_id in images.train)),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return network, info


def _versions() -> dict[str, str]:
    packages = ("torch", "segmentation-models-pytorch", "timm", "accelerate", "albumentations", "numpy")
    return {"defectseg": __version__, **{name: importlib.metadata.version(name) for name in packages}}


def _assemble(
    request: TrainRequest,
    accelerator: Accelerator,
    data: DataFolder,
    images: _Images,
    network: DefectNetwork,
    info: ModelInfo,
) -> Run:
    recipe = info.recipe
    network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe.optimizer)
    sampler = CropSampler(data, images.train, recipe.data, recipe.seed)
    dataset = CropDataset(data, recipe.data.crop_hw, build_augment(recipe.augment), recipe.seed)
    workers = _workers(recipe, accelerator.device)
    loader = DataLoader(
        dataset,
        batch_size=min(recipe.training.batch_size, max(1, len(sampler) // accelerator.num_processes)),
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=workers > 0,
    )
    prepared, prepared_optimizer, prepared_loader = accelerator.prepare(network, optimizer, loader)
    _start_trackers(accelerator, recipe)
    return Run(
        folder=request.out,
        accelerator=accelerator,
        network=network,
        prepared=prepared,
        optimizer=prepared_optimizer,
        loader=prepared_loader,
        data=data,
        val_ids=images.val,
        info=info,
        loss=recipe.loss,
        rates=recipe.optimizer,
        settings=recipe.training,
        progress=Progress(total_epochs=recipe.training.epochs),
    )


def _start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    if not recipe.training.trackers:
        return
    try:
        accelerator.init_trackers("defectseg", config={"recipe": dump_recipe(recipe)})
    except Exception as error:  # each tracker, and the server behind it, fails in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = (
            " and MLFLOW_TRACKING_URI, which must name a tracking server"
            if "mlflow" in recipe.training.trackers
            else ""
        )
        raise ResourceError(f"training.trackers: cannot start ({reason}). Check the recipe{hint}.") from error


def _workers(recipe: Recipe, device: torch.device) -> int:
    """Worker processes of the loader. On a CPU they would take the cores from the network, so there are none."""
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _report_steps(request: TrainRequest, run: Run) -> None:
    def advance(text: str) -> None:
        if not run.accelerator.is_main_process:
            return
        request.advance(run.progress.step, run.progress.total_epochs * len(run.loader), text)

    run.advance = advance


def _finish(request: TrainRequest, run: Run) -> Metrics | None:
    """Choose thresholds for the best weights on the validation images, and give the bundle its final name."""
    main = run.accelerator.is_main_process
    metrics = None
    info = run.info
    if run.val_ids:
        run.accelerator.wait_for_everyone()
        best_info, weights = read_bundle(run.folder / BEST_NAME)
        run.network.load_state_dict(weights)
        info = best_info.model_copy(update={"thresholds": _search_thresholds(run)})
        metrics = validate(run, thresholds=info.thresholds)
        info = info.model_copy(update={"metrics": {**info.metrics, "tuned": headline(metrics)}})
    if main:
        save_bundle(run.folder / MODEL_NAME, run.network.state_dict(), info)
        (run.folder / BEST_NAME).unlink(missing_ok=True)
        draw_curves(run.folder / "curves.png", run.history)
    return metrics


def _search_thresholds(run: Run) -> Thresholds:
    """Thresholds for the current weights, chosen on all validation images (by each process, to the same result)."""
    search = ThresholdSearch(run.info.class_names)

    def visit(scored: Scored) -> None:
        prediction = scored.prediction
        search.add(scored.image_id, prediction.probabilities, prediction.gate, scored.truth, scored.ignore)

    validate(run, thresholds=run.info.thresholds, visitors=(visit,))
    for images in gather_object([search.images]):
        search.merge(images)
    choice = search.best()
    return choice.thresholds.model_copy(
        update={"chosen_by": f"search on the {len(run.val_ids)} validation images of fold {run.info.fold}"}
    )


def _write_errors(path: Path, failed: Sequence[tuple[str, str]]) -> None:
    if not failed:
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer: Any = csv.writer(handle, lineterminator="\n")
        writer.writerow(("ImageId", "error"))
        writer.writerows(failed)
