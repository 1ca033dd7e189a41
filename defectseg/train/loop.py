"""The training loop: steps, epochs, validation and checkpoints, on Accelerate."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from defectseg.errors import ResourceError
from defectseg.evaluate.metrics import headline
from defectseg.files import write_text
from defectseg.model.losses import LossParts, segmentation_loss
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import is_memory_short
from defectseg.train.checkpoint import Run, TrainingState, save_checkpoint
from defectseg.train.dataset import Batch
from defectseg.train.depthwise import DepthwiseInFloat32
from defectseg.train.loaders import StageLoader
from defectseg.train.run_folder import METRICS_NAME
from defectseg.train.schedule import planned_epochs, rate_factor
from defectseg.train.validation import Pictures, validate
from defectseg.train.weights import offer, tidy

log = logging.getLogger(__name__)


def fit(run: Run) -> None:
    """Train until the planned epochs are done or the time is up. Saves a checkpoint after each epoch.

    Raises:
        KeyboardInterrupt: after SIGTERM or Ctrl-C; the checkpoint contains the last completed step.
        ResourceError: the loss is not finite, or memory or disk space ran out.
    """
    started = time.monotonic() - run.state.elapsed_s
    minutes = run.recipe.training.max_minutes
    deadline = math.inf if minutes is None else started + 60 * minutes
    with run.interrupts.held(), _explained(run):
        while run.state.epoch < run.epochs and not _is_past(deadline):
            epoch = run.state.epoch + 1
            figures: dict[str, Any] = {"epoch": epoch, **train_one_epoch(run, started=started, deadline=deadline)}
            out_of_time = _is_past(deadline)
            last = out_of_time or epoch >= run.epochs
            validates = bool(run.val_ids) and (last or epoch % run.recipe.training.validate_every == 0)
            if validates and not out_of_time:
                # Validation can take minutes, but torchrun kills its processes 30 s after SIGTERM.
                run.state.elapsed_s = _agreed(time.monotonic() - started)
                save_checkpoint(run)
            run.state.epoch, run.state.batch, run.state.sums = epoch, 0, {}
            if validates:
                figures["val"] = _validate_candidates(run)
            run.state.elapsed_s = _agreed(time.monotonic() - started)
            if not out_of_time:
                _fit_into_budget(run)
            figures["elapsed_s"] = round(run.state.elapsed_s, 1)
            _record(run, figures)
            if run.interrupts.came(run.accelerator):
                raise KeyboardInterrupt
        if run.val_ids and run.state.best_score is None:  # time was up before the first validation
            _validate_candidates(run)


def train_one_epoch(run: Run, *, started: float, deadline: float) -> dict[str, float]:
    """Train one epoch of the current stage, or the rest of an interrupted one.

    Args:
        run: the run.
        started: time.monotonic at the start of the run, in s, less the time of earlier sessions.
        deadline: time.monotonic at which the epoch stops early, in s.

    Returns:
        mean losses, learning rates, and seconds spent waiting for data (`data_s`) and computing (`step_s`).

    Raises:
        KeyboardInterrupt, ResourceError: as `fit`.
    """
    state, rates = run.state, run.recipe.optimizer
    run.prepared.train()
    crops = _stage_of(run)[0]
    done = state.batch * crops.stage.batch_size * run.accelerator.num_processes
    crops.sampler.begin(state.epoch, share_done=min(1.0, state.epoch / state.total_epochs), start=done)
    losses, alone = _Losses(state), run.accelerator.num_processes == 1
    data_s = 0.0
    begun = fetched = time.monotonic()
    for batch in crops.loader:
        data_s += time.monotonic() - fetched
        factor = _set_rates(run)
        losses.add(_step(run, batch), batch.image_ids)
        state.step += 1
        state.batch += 1
        state.sums["factor"] = factor
        updated = run.accelerator.sync_gradients
        due = updated and len(losses.unread) >= steps_per_look(run.accelerator.device)
        if due:
            losses.read()
        if run.accelerator.is_main_process:
            run.progress(state.step, run.steps, f"epoch {state.epoch + 1}/{run.epochs}{losses.text}")
        fetched = time.monotonic()
        if updated and (due or alone) and run.interrupts.came(run.accelerator):
            losses.read()
            state.elapsed_s = fetched - started
            save_checkpoint(run)
            raise KeyboardInterrupt
        if fetched >= deadline and alone:
            break  # with several processes, the epoch is completed
    losses.read()
    means = {name: state.sums.get(name, 0.0) / max(state.batch, 1) for name in LossParts._fields}
    factor = state.sums.get("factor", 0.0)
    return {
        "loss": means.pop("total"),
        **means,
        "lr_encoder": rates.encoder_lr * factor,
        "lr_decoder": rates.decoder_lr * factor,
        "data_s": round(data_s, 2),
        "step_s": round(fetched - begun - data_s, 2),
    }


def steps_per_look(device: torch.device) -> int:
    """Number of steps after which losses are read. A GPU would stand idle after each reading, a CPU computes anyway."""
    return 1 if device.type == "cpu" else 10


@dataclass
class _Losses:
    """The losses of an epoch. Those of the latest steps stay unread on the device, which may still compute them.

    Attributes:
        state: its sums are those of the steps that were read.
        unread: step (from 1), ImageIds, and losses float (5,) of each other step.
        text: for the progress bar, the loss of the last step that was read.
    """

    state: TrainingState
    unread: list[tuple[int, Sequence[str], Tensor]] = field(default_factory=list)
    text: str = ""

    def add(self, parts: LossParts, image_ids: Sequence[str]) -> None:
        """Keep the losses of the next step."""
        losses = torch.stack([part.detach() for part in parts])
        self.unread.append((self.state.step + 1, image_ids, losses))

    def read(self) -> None:
        """Wait for the device and add to the sums. Call it before the run is saved.

        Raises:
            ResourceError: a loss is not finite; so the weights may be damaged.
        """
        if not self.unread:
            return
        rows = torch.stack([losses for _, _, losses in self.unread]).tolist()
        for (step, image_ids, _), row in zip(self.unread, rows, strict=True):
            if not math.isfinite(row[0]):
                raise ResourceError(
                    f"the loss became {row[0]} at step {step}, on {', '.join(image_ids)}. "
                    "Lower optimizer.decoder_lr and encoder_lr, or set training.precision=fp32."
                )
            for name, loss in zip(LossParts._fields, row, strict=True):
                self.state.sums[name] = self.state.sums.get(name, 0.0) + loss
        self.text = f" loss {rows[-1][0]:.3f}"
        self.unread.clear()


def averaged_network(ema: AveragedModel) -> DefectNetwork:
    """The network inside a moving average."""
    assert isinstance(ema.module, DefectNetwork)
    return ema.module


def describe(figures: dict[str, Any], epochs: int, best_epoch: int | None) -> str:
    """The log line of an epoch; `*` marks the best epoch so far."""
    line = f"epoch {figures['epoch']}/{epochs}: loss {figures['loss']:.3f}"
    val = figures.get("val")
    if val:
        positive = "none" if val["positive_dice"] is None else f"{val['positive_dice']:.3f}"
        line += f", positive Dice {positive}, Kaggle Dice {val['kaggle_dice']:.4f} (all empty {val['all_empty']:.4f})"
        line += " *" if best_epoch == figures["epoch"] else ""
    return line + f", data {figures['data_s']:.1f} s, steps {figures['step_s']:.1f} s"


def _stage_of(run: Run) -> tuple[StageLoader, int, int]:
    """The loader of the current stage, its completed epochs, and its planned epochs."""
    first = run.state.total_epochs
    if run.state.epoch < first:
        return run.loaders[0], run.state.epoch, first
    return run.loaders[-1], run.state.epoch - first, run.recipe.training.second_stage.epochs


def _set_rates(run: Run) -> float:
    """Set the learning rates of the next step; returns their factor."""
    crops, done_before, planned = _stage_of(run)
    position, steps = done_before * len(crops) + run.state.batch, planned * len(crops)
    factor = crops.stage.rate_share * rate_factor(position, steps, run.recipe.optimizer, warms_up=crops.stage.warms_up)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return factor


def _step(run: Run, batch: Batch) -> LossParts:
    with run.accelerator.accumulate(run.prepared):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with run.accelerator.autocast():
            mask_logits, gate_logits = run.prepared(images, full_size=not run.recipe.loss.at_input_scale)
        parts = segmentation_loss(
            mask_logits.to(torch.float32, memory_format=torch.contiguous_format),  # the layout of the masks
            None if gate_logits is None else gate_logits.float(),
            batch.masks,
            batch.ignore,
            run.recipe.loss,
            unknown=batch.unknown,
            share_done=min(1.0, run.state.step / (run.state.total_epochs * len(run.loaders[0]))),
        )
        with DepthwiseInFloat32() if parts.total.device.type == "cpu" else nullcontext():
            run.accelerator.backward(parts.total)
        if run.accelerator.sync_gradients:
            run.accelerator.clip_grad_norm_(run.prepared.parameters(), run.recipe.optimizer.clip_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
    if run.ema is not None and run.accelerator.sync_gradients:
        run.ema.update_parameters(run.network)
    return parts


def _validate_candidates(run: Run) -> dict[str, Any]:
    """Validate the weights and their moving average; returns the metrics of the better one."""
    pictures = Pictures(run.data, run.val_ids[:: run.accelerator.num_processes])  # the main process's share
    networks = {"epoch": run.network} | ({} if run.ema is None else {"ema": averaged_network(run.ema)})
    validated = {kind: validate(run, network, visitors=(pictures,), views=False) for kind, network in networks.items()}
    scored = {kind: (validated[kind], network) for kind, network in networks.items()}
    better = offer(run, scored)
    pictures.log(run.accelerator, run.state.epoch)
    validation = scored[better][0]
    return {**headline(validation.metrics), "ungated_dice": validation.ungated_dice, "weights": better}


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Turn torch's errors about memory into a ResourceError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if is_memory_short(error):
            raise ResourceError(f"{run.accelerator.device}: out of memory. Set training.fit_memory.") from error
        if "DataLoader worker" in str(error):
            raise ResourceError(
                f"a worker that loads data was killed ({str(error).splitlines()[0]}). Mostly memory has run out, in a "
                "container the shared memory (docker run --shm-size=8g). Give it more, or set data.workers=0."
            ) from error
        raise


def _is_past(deadline: float) -> bool:
    return bool(_agreed(float(time.monotonic() >= deadline)))


def _agreed(value: float) -> float:
    """The main process's value, on every process: clocks differ, but decisions must be the same."""
    return float(broadcast_object_list([value])[0])


def _fit_into_budget(run: Run) -> None:
    training, epoch = run.recipe.training, run.state.epoch
    if training.max_minutes is None or epoch >= run.state.total_epochs:
        return
    planned = planned_epochs(
        budget_s=60 * training.max_minutes,
        elapsed_s=run.state.elapsed_s,
        epochs_done=epoch,
        epochs_wanted=training.epochs,
        # Assumes that time is proportional to the pixels of an epoch.
        later_share=training.second_stage.epochs * run.loaders[-1].pixels / run.loaders[0].pixels,
    )
    if planned != run.state.total_epochs:
        log.info("planning %d epochs, which fit into %g minutes", planned, training.max_minutes)
        run.state.total_epochs = planned


def _record(run: Run, figures: dict[str, Any]) -> None:
    run.history.append(figures)
    if run.accelerator.is_main_process:
        write_text(run.folder / METRICS_NAME, "".join(json.dumps(entry) + "\n" for entry in run.history))
    save_checkpoint(run)
    if not run.accelerator.is_main_process:
        return
    tidy(run)
    values = {f"train/{key}": value for key, value in figures.items() if isinstance(value, float)}
    values |= {f"val/{key}": value for key, value in figures.get("val", {}).items() if isinstance(value, float)}
    run.accelerator.log(values, step=run.state.epoch)
    log.info("%s", describe(figures, run.epochs, run.state.best_epoch))
