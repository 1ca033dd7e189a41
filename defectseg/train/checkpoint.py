"""A run: its parts, where it stands, and the checkpoint that it goes on from."""

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

from defectseg.config import Recipe
from defectseg.data.folder import DataFolder
from defectseg.errors import ModelError
from defectseg.files import write_bytes
from defectseg.model.info import ModelInfo
from defectseg.model.locate import CHECKPOINT_NAME
from defectseg.model.network import DefectNetwork
from defectseg.progress import Progress
from defectseg.train.interrupts import Interrupts
from defectseg.train.loaders import StageLoader


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


@dataclass
class Run:
    """The parts of a run, which the functions of training share; `state` and `history` change as it goes on.

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
        progress: called after each step, in the main process.
        state: where the run stands.
        interrupts: SIGTERM and Ctrl-C, kept until the end of a step.
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
        """Epochs planned, of all stages."""
        return self.state.total_epochs + self.recipe.training.second_stage.epochs

    @property
    def steps(self) -> int:
        """Steps planned, of all stages."""
        later = self.recipe.training.second_stage.epochs
        return self.state.total_epochs * len(self.loaders[0]) + later * len(self.loaders[-1])


def save_checkpoint(run: Run) -> None:
    """Write the state of a run, whole or not at all. All processes call it together, the main one writes.

    Raises ResourceError if it cannot be written.
    """
    scaler = run.accelerator.scaler
    random_states = gather_object([_random_state()])
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
    torch.save(saved, content)  # not to the file: torch does not tell a full disk from other failures
    write_bytes(run.folder / CHECKPOINT_NAME, content.getbuffer())


def read_checkpoint(folder: Path) -> tuple[ModelInfo, dict[str, Any]]:
    """What the run in a folder began with, and its saved state for `restore`. Raises ModelError."""
    path = folder / CHECKPOINT_NAME
    with _unusable_where_it_fails(path):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return ModelInfo.model_validate_json(saved["info"]), saved


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Put a run back to where its checkpoint was written. Raises ModelError where that does not fit the run."""
    with _unusable_where_it_fails(run.folder / CHECKPOINT_NAME):
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
def _unusable_where_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{path}: the run cannot be resumed from it ({reason[0] if reason else type(error).__name__}). "
            "Start again in a new folder."
        ) from error


def _random_state() -> dict[str, Any]:
    """Of torch alone: crops are seeded one by one, and nothing else in a step is random."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}
