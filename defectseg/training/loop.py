"""Training as plain functions on Accelerate: one epoch, one validation, and the fit that joins them."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch.utils.data import DataLoader

from defectseg.config import LossConfig, ModelInfo, OptimizerConfig, Thresholds, TrainingConfig
from defectseg.data.labels import DataFolder
from defectseg.errors import ResourceError
from defectseg.evaluation.metrics import Metrics, merge, summarise
from defectseg.evaluation.score import Visitor, score_images
from defectseg.files import atomic_path
from defectseg.inference.runtimes.torch import TorchRuntime
from defectseg.model.bundle import save_bundle
from defectseg.model.devices import half_precision, is_out_of_memory
from defectseg.model.losses import segmentation_loss
from defectseg.model.network import DefectNetwork
from defectseg.training.checkpoint import Progress, save_checkpoint
from defectseg.training.dataset import Batch

log = logging.getLogger(__name__)

BEST_NAME = "best.safetensors"
CHECKPOINT_NAME = "last.ckpt"
METRICS_NAME = "metrics.jsonl"


@dataclass
class Run:
    """The parts of a run that the functions below share; `progress` and `history` change as it goes on.

    Attributes:
        folder: where the run's files go.
        accelerator: device, precision, processes.
        network: the network itself, not as wrapped by Accelerate.
        prepared: the same network as wrapped.
        optimizer: as wrapped.
        loader: training batches.
        data: images and labels.
        val_ids: ImageIds to validate on; empty for none.
        info: description of the model to be.
        loss, rates, settings: sections of the recipe.
        progress: where the run stands.
        history: one entry per epoch, as in metrics.jsonl.
        advance: called after each step with a line for the progress bar.
    """

    folder: Path
    accelerator: Accelerator
    network: DefectNetwork
    prepared: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loader: "DataLoader[Batch]"
    data: DataFolder
    val_ids: Sequence[str]
    info: ModelInfo
    loss: LossConfig
    rates: OptimizerConfig
    settings: TrainingConfig
    progress: Progress
    history: list[dict[str, Any]] = field(default_factory=list)
    advance: Callable[[str], None] = lambda _: None


def fit(run: Run) -> None:
    """Train until the planned epochs or the time budget end; a checkpoint, and the best weights, after each epoch.

    Raises:
        ResourceError: the loss is no longer finite, or memory or disk space ran out.
    """
    started = time.monotonic() - run.progress.elapsed_s
    deadline = math.inf if run.settings.max_minutes is None else started + 60 * run.settings.max_minutes
    while run.progress.epoch < run.progress.total_epochs and not _is_past(run, deadline):
        figures: dict[str, Any] = {"epoch": run.progress.epoch + 1, **train_one_epoch(run, deadline=deadline)}
        run.progress.epoch += 1
        out_of_time = _is_past(run, deadline)
        last = out_of_time or run.progress.epoch >= run.progress.total_epochs
        if run.val_ids and (last or run.progress.epoch % run.settings.validate_every == 0):
            metrics = validate(run, thresholds=run.info.thresholds)
            figures["val"] = headline(metrics)
            _keep_if_best(run, metrics)
        run.progress.elapsed_s = _agreed(run, time.monotonic() - started)[0]
        if not out_of_time:
            _fit_into_budget(run)
        figures["elapsed_s"] = round(run.progress.elapsed_s, 1)
        _record(run, figures)


def train_one_epoch(run: Run, *, deadline: float = math.inf) -> dict[str, float]:
    """One pass over the loader; stops early at `deadline` (seconds of time.monotonic).

    Returns:
        mean losses, learning rates, and the seconds spent waiting for data and computing.

    Raises:
        ResourceError: the loss is not finite; the message names the images of the step.
    """
    run.prepared.train()
    _set_epoch(run.loader, run.progress.epoch)
    total_steps = run.progress.total_epochs * len(run.loader)
    sums: dict[str, float] = {"loss": 0.0, "bce": 0.0, "dice": 0.0, "gate": 0.0}
    count, data_s, factor = 0, 0.0, 1.0
    started = fetched = time.monotonic()
    for batch in run.loader:
        data_s += time.monotonic() - fetched
        factor = rate_factor(run.progress.step, total_steps, run.rates)
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        try:
            parts = _step(run, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"{run.accelerator.device}: out of memory on {len(batch.image_ids)} crops of "
                f"{'x'.join(map(str, batch.images.shape[2:]))}. Lower training.batch_size or data.crop_hw."
            ) from error
        run.progress.step += 1
        count += 1
        for name, value in parts.items():
            sums[name] += value
        run.advance(f"epoch {run.progress.epoch + 1}/{run.progress.total_epochs} loss {parts['loss']:.3f}")
        fetched = time.monotonic()
        if fetched >= deadline and run.accelerator.num_processes == 1:
            break  # several processes end together, after the epoch
    means = {name: value / max(count, 1) for name, value in sums.items()}
    rates = {"lr_encoder": run.rates.encoder_lr * factor, "lr_decoder": run.rates.decoder_lr * factor}
    return {**means, **rates, "data_s": round(data_s, 2), "step_s": round(fetched - started - data_s, 2)}


def validate(run: Run, *, thresholds: Thresholds, visitors: Sequence[Visitor] = ()) -> Metrics:
    """Score the validation images through the same code as `predict`, and in its precision, so that the figures are
    those of the bundle; each process takes its share of the images.
    """
    accelerator = run.accelerator
    for buffer in run.network.buffers():
        broadcast(buffer)  # processes gather batch-norm statistics of their own; the main one's go into the bundle
    own = list(run.val_ids)[accelerator.process_index :: accelerator.num_processes]
    runtime = TorchRuntime(run.network, run.info, dtype=half_precision(accelerator.device))
    score = score_images(runtime, run.data, own, thresholds=thresholds, visitors=visitors)
    return summarise(merge(*gather_object([score.counts])), run.info.class_names)


def selection_score(metrics: Metrics) -> float:
    """What the best epoch is chosen by: positive-pair Dice plus Kaggle Dice."""
    return metrics.kaggle_dice + (metrics.positive_dice or 0.0)


def headline(metrics: Metrics) -> dict[str, Any]:
    """The few figures that a log line, metrics.jsonl and the model file carry."""
    return {
        "kaggle_dice": metrics.kaggle_dice,
        "all_empty": metrics.all_empty,
        "positive_dice": metrics.positive_dice,
        "miou": metrics.miou,
    }


def rate_factor(step: int, total_steps: int, rates: OptimizerConfig) -> float:
    """Share of the full learning rate at a step: linear warm-up, then a cosine down to `final_lr_share`."""
    warmup_steps = rates.warmup * total_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return rates.final_lr_share + (1 - rates.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(network: DefectNetwork, rates: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with two learning rates; norms and biases are not decayed."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        rate = rates.encoder_lr if name.startswith("net.encoder.") else rates.decoder_lr
        decay = rates.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        fused=fused,
    )


def _step(run: Run, batch: Batch) -> dict[str, float]:
    with run.accelerator.accumulate(run.prepared):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        mask_logits, gate_logits = run.prepared(images)
        parts = segmentation_loss(
            mask_logits.float(),
            None if gate_logits is None else gate_logits.float(),
            batch.masks,
            batch.ignore,
            run.loss,
        )
        total = float(parts.total.detach())
        if not math.isfinite(total):
            raise ResourceError(
                f"the loss became {total} at step {run.progress.step + 1}, on {', '.join(batch.image_ids)}. "
                "Lower optimizer.decoder_lr and encoder_lr, or set training.precision=fp32."
            )
        run.accelerator.backward(parts.total)
        if run.accelerator.sync_gradients:
            run.accelerator.clip_grad_norm_(run.prepared.parameters(), run.rates.clip_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
    return {
        "loss": total,
        "bce": float(parts.bce.detach()),
        "dice": float(parts.dice.detach()),
        "gate": float(parts.gate.detach()),
    }


def _set_epoch(loader: "DataLoader[Batch]", epoch: int) -> None:
    set_epoch = getattr(loader, "set_epoch", None)
    assert set_epoch is not None, "the loader was prepared by Accelerate"
    set_epoch(epoch)


def _keep_if_best(run: Run, metrics: Metrics) -> None:
    score = selection_score(metrics)
    if run.progress.best_score is not None and score < run.progress.best_score:
        return  # of equals the later: while the gate still stops every image, each epoch scores as all-empty does
    run.progress.best_score, run.progress.best_epoch = score, run.progress.epoch
    if run.accelerator.is_main_process:
        info = run.info.model_copy(update={"metrics": {"best_epoch": run.progress.epoch, **headline(metrics)}})
        save_bundle(run.folder / BEST_NAME, run.network.state_dict(), info)


def _is_past(run: Run, deadline: float) -> bool:
    return bool(_agreed(run, float(time.monotonic() >= deadline))[0])


def _agreed(run: Run, *values: float) -> tuple[float, ...]:
    """The main process's values, on every process: clocks differ, and a decision must not."""
    shared = list(values)
    return tuple(broadcast_object_list(shared)) if run.accelerator.num_processes > 1 else values


def _fit_into_budget(run: Run) -> None:
    """Plan as many epochs as the time budget allows, so that the cosine still reaches its end.

    A slow epoch (the first often is) lowers the plan and a quick one raises it again, up to the recipe's epochs.
    """
    if run.settings.max_minutes is None or run.progress.epoch >= run.progress.total_epochs:
        return
    epoch_s = run.progress.elapsed_s / run.progress.epoch
    possible = math.floor(60 * run.settings.max_minutes / epoch_s)
    planned = min(run.settings.epochs, max(run.progress.epoch + 1, possible))
    if planned != run.progress.total_epochs:
        log.info("planning %d epochs, which fit into %g minutes", planned, run.settings.max_minutes)
        run.progress.total_epochs = planned


def _record(run: Run, figures: dict[str, Any]) -> None:
    run.history.append(figures)
    if not run.accelerator.is_main_process:
        return
    with atomic_path(run.folder / METRICS_NAME) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in run.history), encoding="utf-8")
    save_checkpoint(run.folder / CHECKPOINT_NAME, run.network, run.optimizer, run.accelerator, run.progress, run.info)
    values = {f"train/{key}": value for key, value in figures.items() if isinstance(value, float)}
    values |= {f"val/{key}": value for key, value in figures.get("val", {}).items() if value is not None}
    run.accelerator.log(values, step=run.progress.epoch)
    log.info("%s", describe(figures, run.progress))


def describe(figures: dict[str, Any], progress: Progress) -> str:
    """One line for people about an epoch."""
    line = f"epoch {figures['epoch']}/{progress.total_epochs}: loss {figures['loss']:.3f}"
    val = figures.get("val")
    if val:
        positive = "none" if val["positive_dice"] is None else f"{val['positive_dice']:.3f}"
        line += f", positive Dice {positive}, Kaggle Dice {val['kaggle_dice']:.4f} (all empty {val['all_empty']:.4f})"
        line += " *" if progress.best_epoch == figures["epoch"] else ""
    return line + f", data {figures['data_s']:.1f} s, steps {figures['step_s']:.1f} s"
