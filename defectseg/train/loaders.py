"""Data loaders of the stages: crop sizes, batch sizes, and fitting them into memory."""

import copy
import logging
import math
import sys
from collections.abc import Set
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from defectseg.config import Recipe, changed
from defectseg.errors import ConfigError, ResourceError
from defectseg.machine import cores
from defectseg.model.losses import segmentation_loss
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import is_memory_short
from defectseg.train.augment import build_augment
from defectseg.train.dataset import Batch, CropDataset, CropSampler, collate
from defectseg.train.images import Images, Part
from defectseg.train.interrupts import leave_signals_to_main
from defectseg.train.schedule import Stage, make_optimizer, stages_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageLoader:
    """The data loader of one stage, prepared by Accelerate, and its sampler. Crops have `crop_hw` px."""

    stage: Stage
    crop_hw: tuple[int, int]
    loader: "DataLoader[Batch]"
    sampler: CropSampler

    def __len__(self) -> int:
        """Steps per epoch and process."""
        return len(self.loader)

    @property
    def pixels(self) -> int:
        """Pixels per epoch and process."""
        return len(self) * self.stage.batch_size * math.prod(self.crop_hw)


def make_loader(stage: Stage, accelerator: Accelerator, images: Images, part: Part, recipe: Recipe) -> StageLoader:
    """The loader of one stage of a run."""
    settings = recipe.data.model_copy(update={"samples_per_epoch": stage.samples})
    sampler = CropSampler(images.data, part.train, settings, recipe.seed)
    size_hw = crop_size(stage, part.train_sizes, recipe)
    crop_hw, augment = None if stage.crop_hw is None else size_hw, build_augment(recipe.augment)
    limit = recipe.data.black_limit
    dataset = CropDataset(images.data, crop_hw, augment, recipe.seed, cache=images.cache, black_limit=limit)
    on_gpu = accelerator.device.type == "cuda"
    can_fork = sys.platform == "linux"  # macOS has fork, but its libraries are not fork-safe
    # On a CPU, workers would compete with the network for cores.
    automatic = min(16, cores()) if on_gpu and can_fork else 0
    workers = automatic if recipe.data.workers == "auto" else recipe.data.workers
    stage = replace(stage, batch_size=min(stage.batch_size, max(1, len(sampler) // accelerator.num_processes)))
    loader = DataLoader(
        dataset,
        batch_size=stage.batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_main,
        # Forked workers share the cache; spawned ones would each get a copy.
        multiprocessing_context="fork" if workers and can_fork else None,
        # Each iteration of the loader draws a seed, from here and not from torch's global generator: a resumed epoch
        # iterates once more than an uninterrupted one.
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    return StageLoader(stage, size_hw, accelerator.prepare(loader), sampler)


def crop_size(stage: Stage, sizes: Set[tuple[int, int]], recipe: Recipe) -> tuple[int, int]:
    """The crop size (H, W) of a stage, in px.

    Crops are no larger than the largest image, because prediction adds no black margins either. With quarter turns they
    are squares that fit into at least one image.

    Raises:
        ConfigError: whole images are wanted, but their sizes differ, or they are not square and would be turned.
    """
    if stage.crop_hw is not None:
        if recipe.augment.quarter_turns:
            side = min(*stage.crop_hw, max(map(min, sizes)))
            return side, side
        height, width = map(max, zip(*sizes, strict=True))
        return min(stage.crop_hw[0], height), min(stage.crop_hw[1], width)
    (height, width), *others = sorted(sizes)
    if others:
        problem = f"the images differ in size (for example {height}x{width} and {others[0][0]}x{others[0][1]})"
    elif recipe.augment.quarter_turns and height != width:
        problem = f"augment.quarter_turns needs square crops and the images are {height}x{width}"
    else:
        return height, width
    raise ConfigError(f"{stage.crop_key} is null, but {problem}. Set a crop size, such as {stage.crop_key}=[256,256]")


def fit_memory(recipe: Recipe, network: DefectNetwork, accelerator: Accelerator, part: Part) -> Recipe:
    """The recipe with a batch size that fits into the device's memory, and more accumulation in return.

    It runs training steps on a copy of the network; weights and random states stay the same.

    Raises:
        ResourceError: not even one crop fits.
    """
    batch_size = recipe.training.batch_size
    for parts in (number for number in range(1, batch_size + 1) if batch_size % number == 0):
        second = recipe.training.second_stage
        if second.batch_size is not None:
            second = second.model_copy(update={"batch_size": math.ceil(second.batch_size / parts)})
        smaller = changed(
            recipe,
            "training",
            batch_size=batch_size // parts,
            accumulation=recipe.training.accumulation * parts,
            second_stage=second,
            fit_memory=False,
        )
        sizes = [(stage.batch_size, crop_size(stage, part.train_sizes, recipe)) for stage in stages_of(smaller)]
        fits = all(_fits(network, accelerator, recipe, *size) for size in sizes)
        if all(gather_object([fits])):  # all processes must use the same batch size
            log.info("steps of %d crops, gradients of %d added up", batch_size // parts, smaller.training.accumulation)
            return smaller
    raise ResourceError(f"{accelerator.device}: out of memory on one crop. Lower data.crop_hw or model.encoder.")


def _fits(
    network: DefectNetwork, accelerator: Accelerator, recipe: Recipe, batch_size: int, crop_hw: tuple[int, int]
) -> bool:
    """Whether one training step, including the optimizer's, fits into memory."""
    device = accelerator.device
    with torch.random.fork_rng():
        try:
            trial = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            optimizer = make_optimizer(trial, recipe.optimizer)
            with accelerator.autocast():
                masks, gate = trial(torch.zeros((batch_size, 1, *crop_hw), dtype=torch.uint8, device=device))
            truth = torch.zeros(masks.shape, dtype=torch.bool, device=device)
            gate = None if gate is None else gate.float()
            # share_done=1: the Lovasz loss, if the recipe uses it, since it takes more memory than Dice.
            loss = segmentation_loss(masks.float(), gate, truth, truth[:, 0], recipe.loss, share_done=1.0).total
            accelerator.backward(loss)
            optimizer.step()
        except RuntimeError as error:
            if not is_memory_short(error):
                raise
            return False
        finally:
            torch.cuda.empty_cache()
    return True
