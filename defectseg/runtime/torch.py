"""Networks in PyTorch, on any device."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectseg.errors import ResourceError
from defectseg.machine import with_amx
from defectseg.model.bundle import load_bundle
from defectseg.model.devices import half_precision, resolve_device
from defectseg.model.info import ModelInfo
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import GPU_BATCH_PX, Answer, memory_errors


class TorchRuntime:
    """A Runtime around a network that is already on its device.

    Args:
        network: evaluated in evaluation mode; its own mode is restored after each call.
        info: its description, for the class names.
        dtype: the 16-bit type to compute in, or None for float32.
        workers: the value of `parallel`; 1 by default, since one call uses all cores or the graphics card.
        batch_px: see Runtime; None: batches on a graphics card only.
    """

    def __init__(
        self,
        network: DefectNetwork,
        info: ModelInfo,
        *,
        dtype: torch.dtype | None = None,
        workers: int | None = None,
        batch_px: int | None = None,
    ) -> None:
        self.network = network
        self.class_names = info.class_names
        self.device = next(network.parameters()).device
        self.dtype = dtype
        self.name = name_of(self.device, dtype)
        self.parallel = workers or 1
        on_cuda = self.device.type == "cuda"
        self.batch_px = (GPU_BATCH_PX if on_cuda else 0) if batch_px is None else batch_px

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        was_training = self.network.training
        if was_training:
            self.network.eval()
        try:
            with (
                memory_errors(images.shape),
                # A new thread starts on the first card, whichever card other threads use.
                torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext(),
                torch.inference_mode(),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
            ):
                return Answer(*self._fetch(*self.network.answer(self._send(images))))
        except ResourceError:
            torch.cuda.empty_cache()  # so that a smaller batch finds room; does nothing on other devices
            raise
        finally:
            if was_training:
                self.network.train()

    def _send(self, images: NDArray[np.uint8]) -> Tensor:
        """Copy images to the device. Pinned memory lets the copy overlap with computation for other threads."""
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device).contiguous(memory_format=torch.channels_last)

    def _fetch(self, probabilities: Tensor, gate: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy answers to new float32 arrays."""
        answers = (probabilities.float(), gate.float())
        if self.device.type != "cuda":
            return answers[0].cpu().numpy(), answers[1].cpu().numpy()
        pinned = [torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True) for answer in answers]
        for target, answer in zip(pinned, answers, strict=True):
            target.copy_(answer, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return pinned[0].numpy(), pinned[1].numpy()


def name_of(device: torch.device, dtype: torch.dtype | None) -> str:
    """The name of a runtime, for example 'torch cpu bfloat16 with AMX'."""
    precision = str(dtype or torch.float32).removeprefix("torch.")
    return f"torch {device} {with_amx(precision) if device.type == 'cpu' else precision}"


def load_torch_runtime(path: Path, device: str = "auto", *, workers: int | None = None) -> TorchRuntime:
    """Load a bundle onto a device, in the precision that is fastest there.

    Raises:
        ModelError: the bundle cannot be used.
        UsageError, ResourceError: the device is unknown or missing.
    """
    target = resolve_device(device)
    network, info = load_bundle(path)
    network = network.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TorchRuntime(network, info, dtype=half_precision(target), workers=workers)
