"""Averages of weights: along the training (EMA), and of the best epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from defectseg.model.network import DefectNetwork


def make_ema(network: DefectNetwork, decay: float) -> AveragedModel:
    """An exponential moving average of weights and batch statistics; call its `update_parameters` after each step.

    The first steps count for more: the decay is at most (1 + n) / (10 + n) after n steps, as in TensorFlow.
    """

    @torch.no_grad()
    def move(averaged: Any, current: Any, count: Tensor | int) -> None:
        steps = float(count)
        share = 1.0 - min(decay, (1.0 + steps) / (10.0 + steps))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(network, multi_avg_fn=move, use_buffers=True)


def average(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several state dicts of one network; counters are those of the first. Batch statistics are averaged too,
    which is close enough for epochs of one run.
    """
    first = parts[0]
    return {
        key: torch.stack([part[key] for part in parts]).mean(dim=0) if value.is_floating_point() else value
        for key, value in first.items()
    }
