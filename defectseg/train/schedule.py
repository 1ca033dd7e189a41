"""Stages, learning rates, and the number of epochs that fit into a time budget."""

import math
from dataclasses import dataclass

import torch

from defectseg.config import OptimizerConfig, Recipe
from defectseg.model.network import DefectNetwork

FINAL_SHARE = 0.01


@dataclass(frozen=True)
class Stage:
    """Epochs with the same crop size, batch size and learning-rate schedule.

    Attributes:
        crop_key: the recipe key that sets `crop_hw`.
        crop_hw: size of a crop in px; None: whole images.
        batch_size: crops per step and process.
        samples: crops per epoch; None: one per image.
        rate_share: factor on the learning rates.
        warms_up: whether the learning rate starts with a warm-up.
    """

    crop_key: str
    crop_hw: tuple[int, int] | None
    batch_size: int
    samples: int | None
    rate_share: float
    warms_up: bool


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The one or two stages of a recipe."""
    data, later, batch_size = recipe.data, recipe.training.second_stage, recipe.training.batch_size
    first = Stage("data.crop_hw", data.crop_hw, batch_size, data.samples_per_epoch, 1.0, warms_up=True)
    if not later.epochs:
        return (first,)
    key, batch_size = "training.second_stage.crop_hw", later.batch_size or batch_size
    return first, Stage(key, later.crop_hw, batch_size, later.samples_per_epoch, later.rate_share, warms_up=False)


def rate_factor(step: int, total_steps: int, rates: OptimizerConfig, *, warms_up: bool = True) -> float:
    """Factor on the learning rate at a step: linear warm-up, then cosine decay to 0.01."""
    warmup_steps = rates.warmup * total_steps if warms_up else 0.0
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(network: DefectNetwork, rates: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with two learning rates, and no weight decay for norms and biases."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        rate = rates.encoder_lr if name.startswith("net.encoder.") else rates.decoder_lr
        decay = rates.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    kinds = [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(kinds, fused=fused)


def planned_epochs(
    *, budget_s: float, elapsed_s: float, epochs_done: int, epochs_wanted: int, later_share: float
) -> int:
    """Number of first-stage epochs that fit into the time budget, so that the cosine decay is completed.

    It is computed after every epoch from the mean duration so far, so a slow first epoch lowers it only for a while.

    Args:
        budget_s: time budget in s.
        elapsed_s: training time so far in s.
        epochs_done: completed epochs, at least 1.
        epochs_wanted: upper limit, from the recipe.
        later_share: duration of the second stage, in first-stage epochs.
    """
    epoch_s = elapsed_s / epochs_done
    possible = math.floor(budget_s / epoch_s - later_share)
    return min(epochs_wanted, max(epochs_done + 1, possible))
