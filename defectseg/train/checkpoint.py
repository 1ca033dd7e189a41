"""Everything needed to go on after an interruption as if there had been none."""

import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel

from defectseg.errors import ModelError
from defectseg.files import write_bytes
from defectseg.model.info import ModelInfo


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        epoch: epochs done.
        batch: steps done of the present epoch.
        step: steps done in all.
        sums: of the losses over those of the present epoch, and the last learning-rate factor.
        total_epochs: epochs planned for the first stage; a time budget can lower it.
        elapsed_s: seconds of training done, over all sessions.
        best_score: the highest selection score so far; None before the first validation.
        best_epoch: the epoch (from 1) that reached it.
        kept: (score, epoch) of the epochs whose weights are kept to be averaged, the best first.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    total_epochs: int = 0
    elapsed_s: float = 0.0
    best_score: float | None = None
    best_epoch: int | None = None
    kept: list[tuple[float, int]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    network: nn.Module,
    ema: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    run_state: TrainingState,
    info: ModelInfo,
) -> None:
    """Write the state of a run, whole or not at all; `info` describes the model to be. All processes call it together,
    the main one writes.

    Raises ResourceError if it cannot be written.
    """
    scaler = accelerator.scaler
    random_states = gather_object([_random_state()])
    if not accelerator.is_main_process:
        return
    state = {
        "network": network.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "state": vars(run_state),
        "info": info.model_dump_json(),
        "random": random_states,
    }
    content = io.BytesIO()
    torch.save(state, content)  # not to the file: torch does not tell a full disk from other failures
    write_bytes(path, content.getbuffer())


def read_description(path: Path) -> ModelInfo:
    """What the run of a checkpoint began with. Raises ModelError as `load_checkpoint` does."""
    state = _read(path, mmap=True)
    try:
        return ModelInfo.model_validate_json(state["info"])
    except (KeyError, ValueError) as error:
        raise _unusable(path, error) from error


def load_checkpoint(
    path: Path,
    network: nn.Module,
    ema: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> TrainingState:
    """Put a run back to where its checkpoint was written.

    Raises:
        ModelError: no checkpoint there, or it does not fit the network.
    """
    state = _read(path)
    try:
        network.load_state_dict(state["network"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"][accelerator.process_index % len(state["random"])])
        return TrainingState(**state["state"])
    except Exception as error:
        raise _unusable(path, error) from error


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint; with `mmap`, its tensors are left on the disk."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise ModelError(f"{path}: no checkpoint to resume from. Start again in a new folder.") from None
    except Exception as error:
        raise _unusable(path, error) from error
    return state


def _unusable(path: Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()
    return ModelError(
        f"{path}: the run cannot be resumed from it ({reason[0] if reason else type(error).__name__}). "
        "Start again in a new folder."
    )


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
