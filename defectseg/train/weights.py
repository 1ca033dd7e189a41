"""The best weights of a run, kept on disk, and the moving average."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from defectseg.evaluate.metrics import headline
from defectseg.model.bundle import read_bundle, save_bundle
from defectseg.model.network import DefectNetwork
from defectseg.train.checkpoint import BEST_NAME, Run
from defectseg.train.validation import Validation


def offer(run: Run, scored: Mapping[str, tuple[Validation, DefectNetwork]]) -> str:
    """Save an epoch's weights if they are among the best so far.

    Of equal scores the later epoch wins: as long as the gate rejects everything, all epochs may score the same.

    Args:
        run: the run; its state is updated.
        scored: validation and network of the weights (`epoch`) and, if there is one, their moving average (`ema`).

    Returns:
        the key of the better one.
    """
    state, most = run.state, run.recipe.training.average_best
    kind = max(scored, key=lambda name: scored[name][0].score)
    score = scored[kind][0].score
    if state.best_score is None or score >= state.best_score:
        state.best_score, state.best_epoch = score, state.epoch
        _save(run, BEST_NAME, kind, *scored[kind])
    if most > 1:
        state.kept = sorted([*state.kept, (scored["epoch"][0].score, state.epoch)], reverse=True)[:most]
        if any(epoch == state.epoch for _, epoch in state.kept):
            _save(run, _name(state.epoch), "epoch", *scored["epoch"])
    return kind


def average_of_best(run: Run) -> dict[str, Tensor] | None:
    """Mean weights of the kept epochs, on the CPU; None if there are fewer than two.

    Batch-norm statistics are averaged too, which is accurate enough for epochs of one run. Integer counters are those
    of the best epoch.
    """
    if len(run.state.kept) < 2:
        return None
    parts = [read_bundle(run.folder / _name(epoch))[1] for _, epoch in run.state.kept]
    weights = {key for key, value in parts[0].items() if value.is_floating_point()}
    return parts[0] | {key: torch.stack([part[key] for part in parts]).mean(dim=0) for key in weights}


def tidy(run: Run) -> None:
    """Delete weights of epochs no longer kept. Call it after saving the checkpoint, which refers to the kept ones."""
    wanted = {_name(epoch) for _, epoch in run.state.kept}
    for path in run.folder.glob(_name("*")):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _save(run: Run, name: str, kind: str, validation: Validation, network: DefectNetwork) -> None:
    if run.accelerator.is_main_process:
        origin = {"weights": kind, "best_epoch": run.state.epoch}
        metrics = {**origin, **headline(validation.metrics), "ungated_dice": validation.ungated_dice}
        save_bundle(run.folder / name, network.state_dict(), run.info.model_copy(update={"metrics": metrics}))


def _name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"


class MovingAverage(AveragedModel):
    """An exponential moving average of weights and batch-norm statistics. Call `update_parameters` after each step.

    After n updates the decay is at most (1 + n) / (10 + n), as in TensorFlow, so early weights are forgotten quickly.
    """

    def __init__(self, network: DefectNetwork, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Unlike torch's, it reads no tensor on a GPU, for which it would have to wait; `n_averaged` is on the CPU."""
        steps = int(self.n_averaged)
        share = 1.0 - min(self.decay, (1.0 + steps) / (10.0 + steps)) if steps else 1.0
        averaged, current = ([*one.parameters(), *one.buffers()] for one in (self.module, model))
        pairs = list(zip(averaged, current, strict=True))
        weights = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([pair[0] for pair in weights], [pair[1] for pair in weights], share)
        if counters := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_([pair[0] for pair in counters], [pair[1] for pair in counters])
        self.n_averaged += 1
