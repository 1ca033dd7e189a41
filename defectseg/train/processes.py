"""The device and the processes of a training, as Accelerate knows them."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list

from defectseg.config import Recipe, TrainingConfig, dump_recipe
from defectseg.errors import ConfigError, DefectsegError, MissingExtraError, ResourceError
from defectseg.model.devices import half_precision

log = logging.getLogger(__name__)

TENSORBOARD_NAME = "tensorboard"
_Answer = TypeVar("_Answer")


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Bring the processes of torchrun together for the block. They meet once, since a second meeting would hang on what
    is left of the first: the accelerators of several runs find them so.
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
    """What the main process makes of a piece of work, on every process; an error of ours is raised on every process."""
    if PartialState().num_processes == 1:
        return work()
    answer: list[_Answer | DefectsegError | None] = [None]
    if PartialState().is_main_process:
        try:
            answer = [work()]
        except DefectsegError as error:
            answer = [error]
    (told,) = broadcast_object_list(answer)
    if isinstance(told, DefectsegError):
        raise told
    return told  # type: ignore[no-any-return]


@contextmanager
def accelerated(settings: TrainingConfig, device: torch.device, out: Path) -> Iterator[Accelerator]:
    """Device, precision and trackers of one run in `out`. Raises ConfigError, MissingExtraError."""
    accelerator = _make_accelerator(settings, device, out)
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        # Accelerate keeps these for the whole process, and would refuse a later training in another precision.
        AcceleratorState._reset_state()
        GradientState._reset_state()


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin to record. Raises ResourceError where a tracker cannot start."""
    if not recipe.training.trackers:
        return
    try:
        if accelerator.is_main_process:
            Path(accelerator.project_dir).mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("defectseg", config={"recipe": dump_recipe(recipe)})
    except Exception as error:  # each tracker fails in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ResourceError(f"training.trackers: cannot start ({reason}). Check the recipe.") from error


def _make_accelerator(settings: TrainingConfig, device: torch.device, out: Path) -> Accelerator:
    if settings.precision == "auto":
        half = half_precision(device)
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[half] if half is not None else "no"
    else:
        precision = "no" if settings.precision == "fp32" else settings.precision
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("training.precision: fp16 needs a GPU. Use auto, bf16 or fp32 on a CPU.")
    for name in settings.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"training.trackers: {name}", "train")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulation,
        dataloader_config=DataLoaderConfiguration(non_blocking=device.type == "cuda"),
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / TENSORBOARD_NAME)),
    )
    shown = "fp32" if precision == "no" else precision
    log.info("training on %s in %s, %d process(es)", accelerator.device, shown, accelerator.num_processes)
    return accelerator
