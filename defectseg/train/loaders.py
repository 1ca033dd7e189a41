"""The parts of a training run, made from a recipe and a data folder."""

import copy
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, gather_object
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from defectseg.config import Recipe, TrainingConfig, dump_recipe
from defectseg.data.folder import DataFolder, image_digest
from defectseg.data.split import make_folds, read_split
from defectseg.errors import ConfigError, DataError, ImageError, MissingExtraError, ResourceError, UsageError
from defectseg.image.read import LowBitDepth, find_low_bit_depth
from defectseg.machine import __version__
from defectseg.model.bundle import read_bundle
from defectseg.model.devices import half_precision, is_out_of_memory
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.losses import segmentation_loss
from defectseg.model.network import DefectNetwork, build_network, check_size, transfer_weights
from defectseg.train.augment import build_augment
from defectseg.train.checkpoint import Progress
from defectseg.train.dataset import CropDataset, CropSampler, cache_fits, collate, load_cache
from defectseg.train.interrupts import Interrupts, leave_signals_to_main
from defectseg.train.loop import Feed, Run
from defectseg.train.schedule import Stage, make_optimizer, stages_of
from defectseg.train.weights import Candidates, make_ema

log = logging.getLogger(__name__)

SPLIT_NAME = "split.csv"
TENSORBOARD_NAME = "tensorboard"


@dataclass(frozen=True)
class Images:
    """What a run is trained on.

    Attributes:
        train, val: ImageIds.
        folds: of all images.
        failed: (ImageId, reason) of those that cannot be read.
        sizes: (H, W) of the others, in px.
        bit_depth: what all 16-bit images were read with; None where there are none, where they differ, or where it is
            not known.
        low_bit_depth: set where most 16-bit images seem to come from a camera of fewer bits.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    folds: dict[str, int]
    failed: tuple[tuple[str, str], ...]
    sizes: dict[str, tuple[int, int]]
    bit_depth: int | None = None
    low_bit_depth: LowBitDepth | None = None

    @property
    def train_sizes(self) -> set[tuple[int, int]]:
        """The different sizes (H, W) of the images to train on."""
        return {self.sizes[image_id] for image_id in self.train}


def is_main_process() -> bool:
    """False in all but the first of the processes that torchrun starts; known before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def processes() -> Iterator[None]:
    """Let the processes of torchrun part after the block. The first accelerator inside it brings them together, and
    later ones find them so: a second meeting would hang on what is left of the first.
    """
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        PartialState._reset_state()


def make_accelerator(settings: TrainingConfig, device: torch.device, out: Path) -> Accelerator:
    """Device, precision, processes and trackers of a run. Raises ConfigError, MissingExtraError."""
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
        dataloader_config=DataLoaderConfiguration(non_blocking=device.type == "cuda"),
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / TENSORBOARD_NAME)),
    )
    if trackers and accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
    shown = "fp32" if precision == "no" else precision
    log.info("training on %s in %s, %d process(es)", accelerator.device, shown, accelerator.num_processes)
    return accelerator


def _tracker_is_there(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        extra = "mlflow" if name == "mlflow" else "train"
        raise MissingExtraError(f"training.trackers: {name}", extra)
    return True


def choose_images(data: DataFolder, recipe: Recipe, split: Path | None) -> Images:
    """Which images to train and validate on.

    Args:
        data: images and labels.
        recipe: fold, number of folds, seed.
        split: split.csv of the run that is resumed; None for that of the data folder, or new folds.

    Raises:
        UsageError: there is no such fold.
        DataError: too few images, or none with a defect.
        LabelError: a run-length does not fit its image.
    """
    fold = recipe.data.fold
    folds = _folds(data, recipe, split)
    if fold is not None and fold not in folds.values():
        raise UsageError(f"--fold {fold}: the split has folds {sorted(set(folds.values()))}.")
    read, failed = _read_all(data)
    for image_id, reason in failed:
        log.warning("left out: %s (%s)", image_id, reason)
    sizes = {image_id: one.size_hw for image_id, one in read.items()}
    low = find_low_bit_depth(Counter(one.brightest16 for one in read.values()))
    if low is not None:
        log.warning("%s Set data.bit_depth to %d, or to 16 if that is right.", low, low.bit_depth)
    failed = (*((image.image_id, image.fault) for image in data.faulty), *failed)
    readable = [image_id for image_id in data.image_ids if image_id in sizes]
    train_ids = tuple(image_id for image_id in readable if folds[image_id] != fold)
    val_ids = tuple(image_id for image_id in readable if folds[image_id] == fold)
    if not train_ids or (fold is not None and not val_ids):
        raise DataError(
            f"{data.root}: {len(train_ids)} images to train on and {len(val_ids)} to validate on; give more."
        )
    if not any(data.classes_of(image_id) for image_id in train_ids):
        raise DataError(
            f"{data.root}: none of the {len(train_ids)} images to train on has a mask to learn. Check train.csv."
        )
    bit_depths = {one.bit_depth for one in read.values() if (one.bit_depth, one.brightest16) != (None, None)}
    return Images(train_ids, val_ids, folds, failed, sizes, bit_depths.pop() if len(bit_depths) == 1 else None, low)


def _crop_size(stage: Stage, sizes: Set[tuple[int, int]], recipe: Recipe) -> tuple[int, int]:
    """The size (H, W) of a stage's crops: no larger than the images, since prediction has no black around them.

    Raises:
        ConfigError: whole images cannot make a batch.
    """
    if stage.crop_hw is not None:
        height, width = (
            min(crop, max(lengths)) for crop, lengths in zip(stage.crop_hw, zip(*sizes, strict=True), strict=True)
        )
        return (max(height, width),) * 2 if recipe.augment.quarter_turns else (height, width)
    (height, width), *others = sorted(sizes)
    if others:
        raise ConfigError(
            f"{stage.crop_key} is null, but the images differ in size (for example {height}x{width} and "
            f"{others[0][0]}x{others[0][1]}). Set a crop size, for example --set {stage.crop_key}=[256,256]"
        )
    if recipe.augment.quarter_turns and height != width:
        raise ConfigError(
            f"augment.quarter_turns needs square crops, but {stage.crop_key} is null and the images are "
            f"{height}x{width}. Set a crop size, for example --set {stage.crop_key}=[256,256]"
        )
    return height, width


def _folds(data: DataFolder, recipe: Recipe, split: Path | None) -> dict[str, int]:
    existing = split or data.root / SPLIT_NAME
    if not existing.is_file():
        log.info("no split.csv: making %d folds that keep copies together", recipe.data.folds)
        return make_folds(data, folds=recipe.data.folds, seed=recipe.seed)
    folds = read_split(existing)
    unlisted = [image_id for image_id in data.image_ids if image_id not in folds]
    if unlisted:
        raise DataError(
            f"{existing}: gives no fold for {len(unlisted)} images (first: {unlisted[0]}). "
            f"Run: defectseg data split {data.root}"
        )
    return {image_id: folds[image_id] for image_id in data.image_ids}


class _Read(NamedTuple):
    """The size (H, W) of an image that can be read; the others as in DecodedImage."""

    size_hw: tuple[int, int]
    bit_depth: int | None
    brightest16: int | None


def _read_all(data: DataFolder) -> tuple[dict[str, _Read], tuple[tuple[str, str], ...]]:
    """Figures of the images that can be read, and (ImageId, reason) of the others; masks are decoded too.

    Raises:
        LabelError: a run-length that does not fit its image: training on a part of the labels would hide it.
    """

    def read(image_id: str) -> _Read | str:
        try:
            decoded = data.decode(image_id)
        except ImageError as error:
            return str(error)
        size_hw = (decoded.pixels.shape[0], decoded.pixels.shape[1])
        data.masks_of(image_id, size_hw)
        return _Read(size_hw, decoded.bit_depth, decoded.brightest16)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = dict(zip(data.image_ids, pool.map(read, data.image_ids), strict=True))
    found = {image_id: one for image_id, one in results.items() if not isinstance(one, str)}
    return found, tuple((image_id, reason) for image_id, reason in results.items() if isinstance(reason, str))


def start_network(
    recipe: Recipe, data: DataFolder, images: Images, *, init: Path | None, begun: ModelInfo | None
) -> tuple[DefectNetwork, ModelInfo]:
    """The network with its first weights, and the description of the model to be.

    Args:
        init: a bundle to start from, or None.
        begun: what the run that is resumed began with, or None.

    Raises:
        DataError: the data are not those that the run began with.
        ConfigError, ModelError: the recipe or the bundle do not fit the data.
    """
    if begun is not None:
        if (begun.class_names, begun.data_fingerprint) != (data.class_names, data.fingerprint()):
            raise DataError(
                f"{data.root}: not the data that this run began with: images or labels differ. "
                "Resume with the same --data, or train anew in another --out."
            )
        network = DefectNetwork(recipe.model, data.num_classes, begun.normalization)
    elif init is None:
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
        check_size(network, _crop_size(stage, images.train_sizes, recipe))
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
        fold=recipe.data.fold,
        data_fingerprint=data.fingerprint(),
        trained_on=tuple(sorted(image_digest(data.image_path(image_id)) for image_id in images.train)),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return network, info


def _versions() -> dict[str, str]:
    packages = ("torch", "segmentation-models-pytorch", "timm", "accelerate", "albumentations", "numpy")
    return {"defectseg": __version__, **{name: importlib.metadata.version(name) for name in packages}}


def assemble(
    out: Path, accelerator: Accelerator, data: DataFolder, images: Images, network: DefectNetwork, info: ModelInfo
) -> Run:
    """Put the parts together; a run that begins anew.

    Raises:
        ResourceError: not even one crop fits into memory, or a tracker cannot start.
    """
    recipe = info.recipe
    if recipe.training.sync_batch_norm and accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe.optimizer)
    ema = make_ema(network, recipe.training.ema_decay**accelerator.num_processes) if recipe.training.ema_decay else None
    prepared, prepared_optimizer = accelerator.prepare(network, optimizer)
    # Accelerate has put autocast into the network itself, but validation computes in the precision of `predict`.
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    sizes = {image_id: images.sizes[image_id] for image_id in images.train}
    cache = load_cache(data, images.train) if cache_fits(sizes, recipe.data.cache) else None
    feeds = [_make_feed(stage, accelerator, data, images, recipe, cache) for stage in stages_of(recipe)]
    _start_trackers(accelerator, recipe)
    return Run(
        folder=out,
        accelerator=accelerator,
        network=network,
        prepared=prepared,
        optimizer=prepared_optimizer,
        ema=ema,
        feeds=feeds,
        data=data,
        val_ids=images.val,
        info=info,
        recipe=recipe,
        progress=Progress(total_epochs=recipe.training.epochs),
        candidates=Candidates(out, recipe.training.average_best, writes=accelerator.is_main_process),
        interrupts=Interrupts(),
    )


def fit_memory(recipe: Recipe, network: DefectNetwork, accelerator: Accelerator, images: Images) -> Recipe:
    """The recipe with steps small enough for the memory of the device, and as many more of them added up.

    Tried out on a copy of the network; neither weights nor random states change.

    Raises:
        ResourceError: not even one crop fits.
    """
    batch_size = recipe.training.batch_size
    for parts in (number for number in range(1, batch_size + 1) if batch_size % number == 0):
        smaller = _in_parts(recipe, parts)
        sizes = [(stage.batch_size, _crop_size(stage, images.train_sizes, recipe)) for stage in stages_of(smaller)]
        fits = all(_fits(network, accelerator, recipe, *size) for size in sizes)
        if all(gather_object([fits])):  # processes must agree, even if their devices do not
            log.info("steps of %d crops, gradients of %d added up", batch_size // parts, smaller.training.accumulation)
            return smaller
    raise ResourceError(
        f"{accelerator.device}: out of memory on one crop. Lower data.crop_hw, or choose a smaller model.encoder."
    )


def _in_parts(recipe: Recipe, parts: int) -> Recipe:
    training = recipe.training
    second = training.second_stage
    if second.batch_size is not None:
        second = second.model_copy(update={"batch_size": math.ceil(second.batch_size / parts)})
    changed = {
        "batch_size": training.batch_size // parts,
        "accumulation": training.accumulation * parts,
        "second_stage": second,
        "fit_memory": False,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=changed)})


def _fits(
    network: DefectNetwork, accelerator: Accelerator, recipe: Recipe, batch_size: int, crop_hw: tuple[int, int]
) -> bool:
    """Whether one step of training fits, optimizer included."""
    device = accelerator.device
    with torch.random.fork_rng():
        try:
            trial = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            optimizer = make_optimizer(trial, recipe.optimizer)
            with accelerator.autocast():
                masks, gate = trial(torch.zeros((batch_size, 1, *crop_hw), dtype=torch.uint8, device=device))
            truth = torch.zeros(masks.shape, dtype=torch.bool, device=device)
            gate = None if gate is None else gate.float()
            # Lovasz, where the recipe has it: of the two losses the one that takes more memory.
            loss = segmentation_loss(masks.float(), gate, truth, truth[:, 0], recipe.loss, share_done=1.0).total
            accelerator.backward(loss)
            optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return True


def _make_feed(
    stage: Stage,
    accelerator: Accelerator,
    data: DataFolder,
    images: Images,
    recipe: Recipe,
    cache: Mapping[str, NDArray[np.uint8]] | None,
) -> Feed:
    settings = recipe.data.model_copy(update={"samples_per_epoch": stage.samples, "crop_hw": stage.crop_hw})
    sampler = CropSampler(data, images.train, settings, recipe.seed)
    crop_hw = _crop_size(stage, images.train_sizes, recipe)
    dataset = CropDataset(
        data,
        None if stage.crop_hw is None else crop_hw,
        build_augment(recipe.augment),
        recipe.seed,
        cache=cache,
        black_limit=recipe.data.black_limit,
    )
    workers = _workers(recipe, accelerator.device)
    stage = replace(stage, batch_size=min(stage.batch_size, max(1, len(sampler) // accelerator.num_processes)))
    loader = DataLoader(
        dataset,
        batch_size=stage.batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_main,
        # Forked workers share the cache; others would get a copy of it each.
        multiprocessing_context="fork" if workers and _can_fork() else None,
        # One of its own, since each start of the loader draws from it: a resumed epoch starts it once more.
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    return Feed(stage, crop_hw, accelerator.prepare(loader), sampler)


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
    """Worker processes of the loader. On a CPU they would take the cores from the network, so there are none; nor where
    they cannot be forked.
    """
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return min(8, os.cpu_count() or 1) if device.type == "cuda" and _can_fork() else 0


def _can_fork() -> bool:
    return sys.platform == "linux"  # macOS has fork, but its libraries do not bear it
