"""The weights that validated best, on disk while a run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from defectseg.evaluate.metrics import headline
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.info import ModelInfo
from defectseg.model.network import DefectNetwork
from defectseg.train.checkpoint import TrainingState
from defectseg.train.validation import Validation

BEST_NAME = "best.safetensors"


class Candidates:
    """Keeps the best weights of a run, and those of the best few epochs where they are to be averaged.

    Args:
        folder: run folder.
        average_best: how many epochs; 1 for none.
        writes: whether this process writes.
    """

    def __init__(self, folder: Path, average_best: int, *, writes: bool) -> None:
        self.folder = folder
        self.average_best = average_best
        self.writes = writes

    def offer(
        self, state: TrainingState, scored: Mapping[str, tuple[Validation, DefectNetwork]], info: ModelInfo
    ) -> str:
        """Take in what one validation found: of 'epoch' the weights as they are, of 'ema' their moving average; returns
        the better of the two.

        Of equals the later is best: while a gate still stops every image, each epoch may score as all-empty does.
        """
        kind = max(scored, key=lambda name: scored[name][0].score)
        validation, network = scored[kind]
        if state.best_score is None or validation.score >= state.best_score:
            state.best_score, state.best_epoch = validation.score, state.epoch
            self._save(BEST_NAME, network, info, {"weights": kind, "best_epoch": state.epoch}, validation)
        if self.average_best > 1:
            self._rank(state, *scored["epoch"], info)
        return kind

    def averaged(self, state: TrainingState) -> dict[str, Tensor] | None:
        """Mean weights of the best epochs, on the CPU; None where fewer than two were kept."""
        if len(state.kept) < 2:
            return None
        return average([read_bundle(self.folder / _name(epoch))[1] for _, epoch in state.kept])

    def tidy(self, state: TrainingState) -> None:
        """Delete epochs that are no longer among the best, once the checkpoint no longer speaks of them."""
        wanted = {_name(epoch) for _, epoch in state.kept}
        for path in self.folder.glob(_name("*")):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all of them, when the run has its model."""
        for path in (self.folder / BEST_NAME, *self.folder.glob(_name("*"))):
            path.unlink(missing_ok=True)

    def _rank(self, state: TrainingState, validation: Validation, network: DefectNetwork, info: ModelInfo) -> None:
        ranked = sorted([*state.kept, (validation.score, state.epoch)], reverse=True)
        state.kept = ranked[: self.average_best]
        if any(epoch == state.epoch for _, epoch in state.kept):
            origin: dict[str, str | int] = {"weights": "epoch", "best_epoch": state.epoch}
            self._save(_name(state.epoch), network, info, origin, validation)

    def _save(
        self,
        name: str,
        network: DefectNetwork,
        info: ModelInfo,
        origin: Mapping[str, str | int],
        validation: Validation,
    ) -> None:
        if self.writes:
            metrics = {**origin, **headline(validation.metrics), "ungated_dice": validation.ungated_dice}
            save_bundle(self.folder / name, network.state_dict(), info.model_copy(update={"metrics": metrics}))


def _name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"


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
