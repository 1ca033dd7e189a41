"""Accelerate: processes, device, precision and trackers of a training."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list

from defectseg.config import TrainingConfig
from defectseg.errors import ConfigError, DefectsegError, require_extra
from defectseg.model.devices import half_precision

log = logging.getLogger(__name__)

TENSORBOARD_NAME = "tensorboard"
_Answer = TypeVar("_Answer")


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Connect the processes that torchrun started, for the duration of the block.

    The accelerators of all runs share this connection: connecting a second time would hang.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    PartialState(cpu=device.type == "cpu")
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        PartialState._reset_state()


def from_main(work: Callable[[], _Answer]) -> _Answer:
    """Call `work` in the main process; every process gets its result, or its DefectsegError."""
    answer: _Answer | DefectsegError | None = None
    if PartialState().is_main_process:
        try:
            answer = work()
        except DefectsegError as error:
            answer = error
    (told,) = broadcast_object_list([answer])
    if isinstance(told, DefectsegError):
        raise told
    return told  # type: ignore[no-any-return]


@contextmanager
def accelerated(settings: TrainingConfig, device: torch.device, out: Path) -> Iterator[Accelerator]:
    """The accelerator of one run in `out`: device, precision, trackers. Raises ConfigError, MissingExtraError."""
    precision: str = settings.precision
    if precision == "auto":
        precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[half_precision(device)]
    elif precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU. Use auto, bf16 or fp32 on a CPU.")
    require_extra("training.trackers", "train", *settings.trackers)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=settings.accumulation,
        dataloader_config=DataLoaderConfiguration(non_blocking=device.type == "cuda"),
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / TENSORBOARD_NAME)),
    )
    log.info("training on %s in %s, %d process(es)", accelerator.device, precision, accelerator.num_processes)
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        # Accelerate keeps this state globally and would refuse a later training with another precision.
        AcceleratorState._reset_state()
        GradientState._reset_state()
