"""A training run: its parts, its state, and saving and restoring that state."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.swa_utils import AveragedModel

from defectseg import errors
from defectseg.config import Recipe
from defectseg.data.folder import DataFolder
from defectseg.errors import ModelError
from defectseg.files import open_regular, write_bytes
from defectseg.model.info import ModelInfo
from defectseg.model.locate import CHECKPOINT_NAME
from defectseg.model.network import DefectNetwork
from defectseg.model.weights_file import unpickle
from defectseg.progress import Progress
from defectseg.train.interrupts import Interrupts
from defectseg.train.loaders import StageLoader

BEST_NAME = "best.safetensors"
_SUM_BYTES = hashlib.sha256().digest_size


@dataclass
class TrainingState:
    """Progress of a run.

    Attributes:
        epoch: completed epochs.
        batch: completed steps of the current epoch.
        step: completed steps in total.
        sums: sum of each loss over the current epoch, and the latest learning-rate factor.
        total_epochs: planned epochs of the first stage; a time budget can lower it.
        elapsed_s: training time in seconds, over all sessions.
        best_score: highest validation score so far; None before the first validation.
        best_epoch: the epoch (from 1) that reached it.
        kept: (score, epoch) of the epochs whose weights are kept for averaging, best first.
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


@dataclass
class Run:
    """The objects that a run consists of. `state` and `history` change during training.

    Attributes:
        folder: the run folder.
        accelerator: device, precision, processes.
        network: the network, not wrapped by Accelerate.
        prepared: the same network, wrapped by Accelerate.
        optimizer: wrapped by Accelerate.
        ema: moving average of the network, or None.
        loaders: one per stage.
        data: images and labels.
        val_ids: ImageIds of the validation images; may be empty.
        info: description of the model, without its final thresholds and metrics.
        progress: called after each step, in the main process.
        state: progress of the run.
        interrupts: handles SIGTERM and Ctrl-C.
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
    progress: Progress
    state: TrainingState
    interrupts: Interrupts = field(default_factory=Interrupts)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.info.recipe

    @property
    def epochs(self) -> int:
        """Planned epochs of all stages."""
        return self.state.total_epochs + self.recipe.training.second_stage.epochs

    @property
    def steps(self) -> int:
        """Planned steps of all stages."""
        later = self.recipe.training.second_stage.epochs
        return self.state.total_epochs * len(self.loaders[0]) + later * len(self.loaders[-1])


def save_checkpoint(run: Run) -> None:
    """Write last.ckpt atomically. All processes must call this together; the main process writes.

    The file is what `torch.save` writes, followed by its SHA-256.

    Raises:
        ResourceError: it cannot be written.
    """
    scaler = run.accelerator.scaler
    # Torch's generators only: each crop has its own seed, and a step uses no other source of randomness.
    random_states = gather_object([{"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}])
    if not run.accelerator.is_main_process:
        return
    saved = {
        "network": run.network.state_dict(),
        "ema": None if run.ema is None else run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "state": vars(run.state),
        "info": run.info.model_dump_json(),
        "random": random_states,
    }
    content = io.BytesIO()
    torch.save(saved, content)  # not to the file: torch does not report a full disk as OSError
    content.write(hashlib.sha256(content.getbuffer()).digest())
    write_bytes(run.folder / CHECKPOINT_NAME, content.getbuffer())


def read_checkpoint(folder: Path) -> tuple[ModelInfo, dict[str, Any]]:
    """Read last.ckpt: the model's description and the state for `restore`. Raises ModelError if it is damaged.

    No code in it is run, and what it holds takes no more memory than the file is long.
    """
    path = folder / CHECKPOINT_NAME
    with _failure_as_model_error(path):
        with open_regular(path) as file:
            content = file.read()
        if hashlib.sha256(memoryview(content)[:-_SUM_BYTES]).digest() != content[-_SUM_BYTES:]:
            raise ValueError("its checksum does not match: damaged, or of another version")
        saved = unpickle(io.BytesIO(content))
        return ModelInfo.model_validate_json(saved["info"]), saved


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Load a saved state into a run. Raises ModelError if it does not fit, for example another network."""
    with _failure_as_model_error(run.folder / CHECKPOINT_NAME):
        run.network.load_state_dict(saved["network"])
        if run.ema is not None:
            run.ema.load_state_dict(saved["ema"])
        run.optimizer.load_state_dict(saved["optimizer"])
        if run.accelerator.scaler is not None and saved["scaler"] is not None:
            run.accelerator.scaler.load_state_dict(saved["scaler"])
        own = saved["random"][run.accelerator.process_index % len(saved["random"])]
        torch.set_rng_state(own["torch"])
        if own["cuda"] and len(own["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(own["cuda"])
        run.state = TrainingState(**saved["state"])


@contextmanager
def _failure_as_model_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        best = path.with_name(BEST_NAME)
        init = f", from the best weights so far with {errors.spelling('init', str(best))}" if best.is_file() else ""
        raise ModelError(
            f"{path}: the run cannot be resumed from it ({reason[0] if reason else type(error).__name__}). "
            f"Start again in a new folder{init}."
        ) from error
