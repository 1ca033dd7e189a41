"""Training as plain functions on Accelerate: one step, one epoch, and the fit that joins them with validation."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from defectseg.config import Recipe
from defectseg.data.folder import DataFolder
from defectseg.errors import ResourceError
from defectseg.evaluate.metrics import headline
from defectseg.evaluate.score import Visitor
from defectseg.files import atomic_path
from defectseg.inference.settings import Settings
from defectseg.model.devices import is_out_of_memory
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import CHECKPOINT_NAME
from defectseg.model.losses import LossParts, segmentation_loss
from defectseg.model.network import DefectNetwork
from defectseg.progress import Progress
from defectseg.train.checkpoint import TrainingState, save_checkpoint
from defectseg.train.dataset import Batch
from defectseg.train.interrupts import Interrupts
from defectseg.train.loaders import StageLoader
from defectseg.train.run_folder import METRICS_NAME
from defectseg.train.schedule import planned_epochs, rate_factor
from defectseg.train.validation import Pictures, Validation, images_to_show, log_pictures, validate
from defectseg.train.weights import Candidates

log = logging.getLogger(__name__)

_PARTS = ("bce", "dice", "lovasz", "gate")


@dataclass
class Run:
    """The parts of a run that the functions below share; `state` and `history` change as it goes on.

    Attributes:
        folder: where the run's files go.
        accelerator: device, precision, processes.
        network: the network itself, not as wrapped by Accelerate.
        prepared: the same network as wrapped.
        optimizer: as wrapped.
        ema: the averaged network, or None.
        loaders: one for each stage.
        data: images and labels.
        val_ids: ImageIds to validate on; empty for none.
        info: description of the model to be.
        recipe: the resolved recipe.
        state: where the run stands.
        candidates: the best weights so far.
        interrupts: SIGTERM and Ctrl-C, kept until the end of a step.
        progress: called after each step, in the main process.
        history: one entry per epoch, as in metrics.jsonl.
    """

    folder: Path
    accelerator: Accelerator
    network: DefectNetwork
    prepared: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    loaders: Sequence[StageLoader]
    data: DataFolder
    val_ids: Sequence[str]
    info: ModelInfo
    recipe: Recipe
    state: TrainingState
    candidates: Candidates
    interrupts: Interrupts
    progress: Progress
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs planned, of all stages."""
        return self.state.total_epochs + self.recipe.training.second_stage.epochs

    @property
    def steps(self) -> int:
        """Steps planned, of all stages."""
        later = self.recipe.training.second_stage.epochs
        return self.state.total_epochs * len(self.loaders[0]) + later * len(self.loaders[-1])


def fit(run: Run) -> None:
    """Train until the planned epochs or the time budget end; a checkpoint, and the best weights, after each epoch.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the checkpoint holds the last whole step.
        ResourceError: the loss is no longer finite, or memory or disk space ran out.
    """
    started = time.monotonic() - run.state.elapsed_s
    minutes = run.recipe.training.max_minutes
    deadline = math.inf if minutes is None else started + 60 * minutes
    with run.interrupts.held(), _lost_workers():
        while run.state.epoch < run.epochs and not _is_past(run, deadline):
            figures: dict[str, Any] = {
                "epoch": run.state.epoch + 1,
                **train_one_epoch(run, started=started, deadline=deadline),
            }
            epoch, out_of_time = run.state.epoch + 1, _is_past(run, deadline)
            last = out_of_time or epoch >= run.epochs
            validates = bool(run.val_ids) and (last or epoch % run.recipe.training.validate_every == 0)
            if validates and not out_of_time:
                # Validation can take minutes; torchrun kills 30 s after it was asked to stop.
                run.state.elapsed_s = _agreed(run, time.monotonic() - started)
                _save(run)
            run.state.epoch, run.state.batch, run.state.sums = epoch, 0, {}
            if validates:
                figures |= _validate_candidates(run)
            run.state.elapsed_s = _agreed(run, time.monotonic() - started)
            if not out_of_time:
                _fit_into_budget(run)
            figures["elapsed_s"] = round(run.state.elapsed_s, 1)
            _record(run, figures)
            if run.interrupts.came(run.accelerator):
                raise KeyboardInterrupt
        if run.val_ids and run.state.best_score is None:  # the time ended between an epoch and its validation
            _validate_candidates(run)


def train_one_epoch(run: Run, *, started: float = 0.0, deadline: float = math.inf) -> dict[str, float]:
    """One pass over the crops of the present stage, or what an interruption left of it.

    Args:
        started, deadline: seconds of time.monotonic; at the deadline the pass stops early.

    Returns:
        mean losses, learning rates, and the seconds spent waiting for data and computing.

    Raises:
        KeyboardInterrupt, ResourceError: as `fit`.
    """
    run.prepared.train()
    crops, done_before, planned = _stage_of(run)
    crops.sampler.set_share_done(min(1.0, run.state.epoch / run.state.total_epochs))
    crops.sampler.start_at(run.state.batch * crops.stage.batch_size * run.accelerator.num_processes)
    _set_epoch(crops.loader, run.state.epoch)
    data_s = 0.0
    begun = fetched = time.monotonic()
    for batch in crops.loader:
        data_s += time.monotonic() - fetched
        position = done_before * len(crops) + run.state.batch
        factor = crops.stage.rate_share * rate_factor(
            position, planned * len(crops), run.recipe.optimizer, warms_up=crops.stage.warms_up
        )
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        share_done = min(1.0, run.state.step / max(1, run.state.total_epochs * len(run.loaders[0])))
        _account(run, _step_or_say_why(run, batch, share_done), factor)
        fetched = time.monotonic()
        if run.accelerator.sync_gradients and run.interrupts.came(run.accelerator):
            run.state.elapsed_s = fetched - started
            _save(run)
            raise KeyboardInterrupt
        if fetched >= deadline and run.accelerator.num_processes == 1:
            break  # several processes end together, after the epoch
    crops.sampler.start_at(0)
    sums = run.state.sums
    means = {name: sums.get(name, 0.0) / max(run.state.batch, 1) for name in ("loss", *_PARTS)}
    rates = run.recipe.optimizer
    factor = sums.get("factor", 0.0)
    return {
        **means,
        "lr_encoder": rates.encoder_lr * factor,
        "lr_decoder": rates.decoder_lr * factor,
        "data_s": round(data_s, 2),
        "step_s": round(fetched - begun - data_s, 2),
    }


def validate_on(
    run: Run,
    network: DefectNetwork,
    *,
    thresholds: Thresholds | None = None,
    visitors: Sequence[Visitor] = (),
    views: bool = True,
) -> Validation:
    """`validate` on the validation images of the run.

    Args:
        thresholds: None for those that the run began with.
        views: whether to look at all views of an image that the recipe's `inference.tta` asks for; else at one, since
            they would make each validation several times as long.
    """
    return validate(
        run.accelerator,
        network,
        run.info,
        run.data,
        run.val_ids,
        Settings.of(run.info, tta=None if views else "none", thresholds=thresholds),
        visitors=visitors,
    )


def averaged_network(ema: AveragedModel) -> DefectNetwork:
    """The network inside a moving average."""
    assert isinstance(ema.module, DefectNetwork)
    return ema.module


def describe(figures: dict[str, Any], epochs: int, best_epoch: int | None) -> str:
    """One line for people about an epoch."""
    line = f"epoch {figures['epoch']}/{epochs}: loss {figures['loss']:.3f}"
    val = figures.get("val")
    if val:
        positive = "none" if val["positive_dice"] is None else f"{val['positive_dice']:.3f}"
        line += f", positive Dice {positive}, Kaggle Dice {val['kaggle_dice']:.4f} (all empty {val['all_empty']:.4f})"
        line += " *" if best_epoch == figures["epoch"] else ""
    return line + f", data {figures['data_s']:.1f} s, steps {figures['step_s']:.1f} s"


def _stage_of(run: Run) -> tuple[StageLoader, int, int]:
    """The loader of the present epoch, the epochs that its stage has done, and those that it is to have."""
    first = run.state.total_epochs
    if run.state.epoch < first:
        return run.loaders[0], run.state.epoch, first
    return run.loaders[-1], run.state.epoch - first, run.recipe.training.second_stage.epochs


def _step_or_say_why(run: Run, batch: Batch, share_done: float) -> LossParts:
    try:
        return _step(run, batch, share_done)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"{run.accelerator.device}: out of memory on {len(batch.image_ids)} crops of "
            f"{'x'.join(map(str, batch.images.shape[2:]))}. Set training.fit_memory, or lower training.batch_size "
            "or data.crop_hw."
        ) from error


def _step(run: Run, batch: Batch, share_done: float) -> LossParts:
    with run.accelerator.accumulate(run.prepared):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with run.accelerator.autocast():
            mask_logits, gate_logits = run.prepared(images, full_size=not run.recipe.loss.at_input_scale)
        parts = segmentation_loss(
            mask_logits.float(),
            None if gate_logits is None else gate_logits.float(),
            batch.masks,
            batch.ignore,
            run.recipe.loss,
            unknown=batch.unknown,
            share_done=share_done,
        )
        total = float(parts.total.detach())
        if not math.isfinite(total):
            raise ResourceError(
                f"the loss became {total} at step {run.state.step + 1}, on {', '.join(batch.image_ids)}. "
                "Lower optimizer.decoder_lr and encoder_lr, or set training.precision=fp32."
            )
        run.accelerator.backward(parts.total)
        if run.accelerator.sync_gradients:
            run.accelerator.clip_grad_norm_(run.prepared.parameters(), run.recipe.optimizer.clip_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
    if run.ema is not None and run.accelerator.sync_gradients:
        run.ema.update_parameters(run.network)
    return parts


def _account(run: Run, parts: LossParts, factor: float) -> None:
    run.state.step += 1
    run.state.batch += 1
    sums = run.state.sums
    total = float(parts.total.detach())
    sums["loss"] = sums.get("loss", 0.0) + total
    for name in _PARTS:
        sums[name] = sums.get(name, 0.0) + float(getattr(parts, name).detach())
    sums["factor"] = factor
    if run.accelerator.is_main_process:
        run.progress(run.state.step, run.steps, f"epoch {run.state.epoch + 1}/{run.epochs} loss {total:.3f}")


def _validate_candidates(run: Run) -> dict[str, Any]:
    """Validate the weights of the epoch, and their moving average; returns the better figures, and remembers them."""
    own_ids = run.val_ids[:: run.accelerator.num_processes]  # those of the main process, which shows them
    pictures = Pictures(images_to_show(run.data, own_ids))
    networks = {"epoch": run.network} | ({} if run.ema is None else {"ema": averaged_network(run.ema)})
    scored = {
        kind: (validate_on(run, network, visitors=(pictures,), views=False), network)
        for kind, network in networks.items()
    }
    better = run.candidates.offer(run.state, scored, run.info)
    log_pictures(run.accelerator, pictures.bgr, run.state.epoch)
    validation = scored[better][0]
    return {"val": {**headline(validation.metrics), "ungated_dice": validation.ungated_dice, "weights": better}}


@contextmanager
def _lost_workers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            f"a worker that loads data was killed ({str(error).splitlines()[0]}). Mostly memory has run out, in a "
            "container the shared memory (docker run --shm-size=8g). Give it more, or set data.workers=0."
        ) from error


def _set_epoch(loader: "DataLoader[Batch]", epoch: int) -> None:
    set_epoch = getattr(loader, "set_epoch", None)
    assert set_epoch is not None, "the loader was prepared by Accelerate"
    set_epoch(epoch)


def _is_past(run: Run, deadline: float) -> bool:
    return bool(_agreed(run, float(time.monotonic() >= deadline)))


def _agreed(run: Run, value: float) -> float:
    """The main process's value, on every process: clocks differ, and a decision must not."""
    if run.accelerator.num_processes == 1:
        return value
    return float(broadcast_object_list([value])[0])


def _fit_into_budget(run: Run) -> None:
    minutes, epoch = run.recipe.training.max_minutes, run.state.epoch
    if minutes is None or epoch >= run.state.total_epochs:
        return
    wanted = run.recipe.training.epochs
    planned = planned_epochs(
        budget_s=60 * minutes,
        elapsed_s=run.state.elapsed_s,
        epochs_done=epoch,
        epochs_wanted=wanted,
        later_share=_second_stage_share(run),
    )
    if planned != run.state.total_epochs:
        log.info("planning %d epochs, which fit into %g minutes", planned, minutes)
        run.state.total_epochs = planned


def _second_stage_share(run: Run) -> float:
    """The time of the second stage in epochs of the first, taken to go by the pixels of their crops."""
    return run.recipe.training.second_stage.epochs * run.loaders[-1].pixels / run.loaders[0].pixels


def _save(run: Run) -> None:
    save_checkpoint(
        run.folder / CHECKPOINT_NAME, run.network, run.ema, run.optimizer, run.accelerator, run.state, run.info
    )


def _record(run: Run, figures: dict[str, Any]) -> None:
    run.history.append(figures)
    if run.accelerator.is_main_process:
        with atomic_path(run.folder / METRICS_NAME) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in run.history), encoding="utf-8")
    _save(run)
    if not run.accelerator.is_main_process:
        return
    run.candidates.tidy(run.state)
    values = {f"train/{key}": value for key, value in figures.items() if isinstance(value, float)}
    values |= {f"val/{key}": value for key, value in figures.get("val", {}).items() if isinstance(value, float)}
    run.accelerator.log(values, step=run.state.epoch)
    log.info("%s", describe(figures, run.epochs, run.state.best_epoch))
