"""Networks in PyTorch, on any device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectseg.errors import ResourceError
from defectseg.machine import with_amx
from defectseg.model.bundle import load_bundle
from defectseg.model.devices import half_precision, resolve_device
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import GPU_BATCH_PX, Answer, Reached, Turn, borrowed, memory_errors

_PARALLEL_ON_CARD = 2  # while one batch is computed, the next is copied to the card, and the last one's answer back


class TorchRuntime:
    """A Runtime around a network that is already on its device.

    Parallel calls on a graphics card each have a stream of their own, so that their copies and computations overlap.

    Args:
        network: evaluated in evaluation mode; its own mode is restored after each call.
        info: its description, for the class names.
        dtype: the 16-bit type to compute in, or None for float32.
        workers: the value of `parallel`; 1 by default, since one call uses all cores.
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
        self._on_card = self.device.type == "cuda"
        self._idle: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
        self.batch_px = (GPU_BATCH_PX if self._on_card else 0) if batch_px is None else batch_px

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        with self._computing(images.shape):
            return Answer(*self._fetch(*self.network.answer(self._send(images))))

    @contextmanager
    def _computing(self, shape: Sequence[int]) -> Iterator[None]:
        was_training = self.network.training
        if was_training:
            self.network.eval()
        try:
            with (
                memory_errors(shape),
                self._own_stream(),
                torch.inference_mode(),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
            ):
                yield
        except ResourceError:
            torch.cuda.empty_cache()  # so that a smaller batch finds room; does nothing on other devices
            raise
        finally:
            if was_training:
                self.network.train()

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """On a graphics card, compute on that card in a stream that no other call uses at the same time."""
        if not self._on_card:
            yield
            return
        with borrowed(self._idle, partial(torch.cuda.Stream, self.device)) as stream:
            stream.wait_stream(torch.cuda.default_stream(self.device))  # on which weights are loaded or trained
            with torch.cuda.stream(stream):
                yield

    def _send(self, images: NDArray[np.uint8]) -> Tensor:
        """Copy images to the device without waiting. PyTorch keeps pinned buffers and uses them again."""
        batch = torch.empty(images.shape, dtype=torch.uint8, pin_memory=self._on_card)
        batch.numpy()[...] = images  # of any strides: torch would refuse those of a mirrored image of one column
        return batch.to(self.device, non_blocking=self._on_card).contiguous(memory_format=torch.channels_last)

    def _fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Copy tensors from the device; the calling thread sleeps until they are there."""
        if not self._on_card:
            return [tensor.cpu().numpy() for tensor in tensors]
        fetched = [tensor.contiguous().to("cpu", non_blocking=True) for tensor in tensors]  # to pinned buffers
        # Waiting for the stream itself would keep a core busy.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        return [tensor.numpy() for tensor in fetched]


class CardRuntime(TorchRuntime):
    """A ThresholdingRuntime. It works on every device, but can only pay where probabilities leave a graphics card."""

    def reach(self, images: NDArray[np.uint8], thresholds: Thresholds, turns: Sequence[Turn]) -> list[Reached]:
        """See ThresholdingRuntime."""
        ranks = [min(max(1, area_px), images[0].size) - 1 for area_px in thresholds.min_area_px]
        with self._computing(images.shape):
            # Copied before all else, since a copy of values that are not pinned waits for everything before it.
            least = torch.tensor((thresholds.gate, thresholds.pixel), dtype=torch.float32, device=self.device)
            at_rank = torch.tensor(ranks, device=self.device)[:, None]
            probabilities, gate = self._sum(self._send(images), turns)
            planes, gate = (probabilities / len(turns)).flatten(2).contiguous(), gate / len(turns)  # (N, C, H * W)
            masks = (planes >= least[1, :, None]) & ~(gate < least[0])[..., None]
            top = planes.topk(max(ranks) + 1).values
            kth = top.gather(2, at_rank.expand(len(top), -1, 1)).where(~top[..., :1].isnan(), torch.nan)
            gates, kths, counts = self._fetch(gate, kth[..., 0], masks.sum(dim=2))
            held = torch.from_numpy(counts > 0).to(self.device)
            bits, values = self._fetch(pack_bits(masks[held]), planes[masks])
        found = [Reached(gate, kth, {}) for gate, kth in zip(gates, kths, strict=True)]
        parts = np.split(values, np.cumsum(counts[counts > 0]))  # one for each plane with pixels, and an empty one
        for (number, index), *pixels in zip(np.argwhere(counts).tolist(), bits, parts, strict=False):
            found[number].pixels[index] = tuple(pixels)
        return found

    def _sum(self, images: Tensor, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        """Probabilities and gates, summed over the views in the order of `defectseg.inference.views`."""
        if len(turns) > 1:
            half = len(turns) // 2
            (first, gate), (second, other) = self._sum(images, turns[:half]), self._sum(images, turns[half:])
            return first + second, gate + other
        transposed, *steps = turns[0]
        backwards = [axis for axis, step in zip((-2, -1), steps, strict=True) if step < 0]
        turned = (images.mT if transposed else images).flip(backwards)
        probabilities, gate = self.network.answer(turned.contiguous(memory_format=torch.channels_last))
        upright = probabilities.flip(backwards)
        return upright.mT if transposed else upright, gate


def pack_bits(masks: Tensor) -> Tensor:
    """Masks bool (P, n) as one bit a pixel, uint8 (P, ceil(n / 8)), like numpy.packbits(masks, axis=1)."""
    count, length = masks.shape
    eights = torch.nn.functional.pad(masks, (0, -length % 8)).view(count, (length + 7) // 8, 8)
    bits = eights * 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    return bits.sum(dim=2, dtype=torch.uint8)


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
    if target.type == "cuda":
        return CardRuntime(network, info, dtype=half_precision(target), workers=workers or _PARALLEL_ON_CARD)
    return TorchRuntime(network, info, dtype=half_precision(target), workers=workers)
