"""The interface of all runtimes, and the errors that they share."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DefectsegError, ModelError, ResourceError
from defectseg.machine import to_allow
from defectseg.model.info import Thresholds

GPU_BATCH_PX = 16 * 256 * 1600  # not measured: no graphics card at hand
_SIGNS_OF_NO_MEMORY = ("allocat", "bad_alloc", "out of memory")
_SIGN_OF_OUR_LIMIT = "Available memory of"  # how ONNX Runtime says that it may take no more

_Idle = TypeVar("_Idle")


@dataclass(frozen=True)
class Answer:
    """The network's answer for N images of one size.

    Attributes:
        probabilities: float32 (N, C, H, W), 0..1, classes independent.
        gate: float32 (N, C), 0..1: whether the class occurs in the image at all.
    """

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


# Some of the pixels of an image of H x W px, by the index of their class: one bit for each pixel of the image, uint8
# (ceil(H * W / 8),), as numpy.packbits makes of a mask; and the probabilities of these pixels row by row, float32 (n,).
Pixels = dict[int, tuple[NDArray[np.uint8], NDArray[np.float32]]]


@dataclass(frozen=True)
class Reached:
    """What post-processing needs of the answer for one image of H x W px: the pixels that reach their threshold.

    Attributes:
        gate: float32 (C,), as in Answer.
        kth_largest: float32 (C,): the k-th largest probability of each class, k = max(1, minimum area), or the least if
            the image has fewer pixels; NaN if any probability of the class is.
        pixels: those that reach the threshold of their class, for each class that passes the gate and has any.
    """

    gate: NDArray[np.float32]
    kth_largest: NDArray[np.float32]
    pixels: Pixels


Turn = tuple[bool, int, int]  # see defectseg.inference.views.View


class Runtime(Protocol):
    """A loaded network. Normalisation, padding to the stride and sigmoid are part of it.

    Attributes:
        batch_px: the most pixels of a call for several images, which is lowered when memory runs out; 0: one image a
            call is quickest.
    """

    batch_px: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names; name n - 1 belongs to ClassId n."""

    @property
    def name(self) -> str:
        """Library, device and precision, for people and run.json."""

    @property
    def parallel(self) -> int:
        """The number of parallel calls, each from its own thread, that uses the machine best; 1 or more."""

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """Compute the answer for images (N, 1, H, W) of any size, grey levels 0..255.

        Raises:
            ModelError: the model was exported for another size.
            ResourceError: memory ran out.
        """


@runtime_checkable
class ThresholdingRuntime(Runtime, Protocol):
    """A Runtime that can apply thresholds where the probabilities lie, so that few of them have to be fetched."""

    def reach(self, images: NDArray[np.uint8], thresholds: Thresholds, turns: Sequence[Turn]) -> list[Reached]:
        """What the mean answer over the views of each image reaches; images and errors as for a call.

        Args:
            images: uint8 (N, 1, H, W).
            thresholds: one value for each class.
            turns: the views in which the network sees each image, 2^n of them, summed in pairs of neighbours.
        """


@runtime_checkable
class PreparingRuntime(Runtime, Protocol):
    """A Runtime that compiles the network for each size of images."""

    def prepare(self, size_hw: tuple[int, int]) -> None:
        """Begin to compile for images of this size in a thread; a call for it waits until this is done."""


def is_memory_short(error: BaseException | None) -> bool:
    """Whether an error of numpy, OpenCV, torch or another library means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS_OF_NO_MEMORY)


@contextmanager
def memory_errors(shape: Sequence[int], *, of_export: bool = False) -> Iterator[None]:
    """Raise ResourceError in place of the errors of numpy and the libraries when memory runs out.

    Args:
        shape: of the images (N, 1, H, W), for the message.
        of_export: raise ModelError in place of other errors, since anybody may have written the network.
    """
    try:
        yield
    except DefectsegError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        if not is_memory_short(error):
            if not of_export:
                raise
            why = str(error).strip().partition("\n")[0][:200]
            raise ModelError(
                f"This model cannot compute images of {shape[2]}x{shape[3]} px ({why}). Export it again."
            ) from error
        traceback.clear_frames(error.__traceback__)  # which hold what was computed so far
        advice = "Use fewer workers, compute on the CPU, or train with a smaller inference.tile_hw."
        if _SIGN_OF_OUR_LIMIT in str(error):
            advice = to_allow()
        raise ResourceError(f"Out of memory on {shape[0]} image(s) of {shape[2]}x{shape[3]}. {advice}") from error


@contextmanager
def borrowed(idle: "SimpleQueue[_Idle]", make: Callable[[], _Idle]) -> Iterator[_Idle]:
    """Take something from those that no other call uses, or make one; it is put back for the next call."""
    try:
        one = idle.get_nowait()
    except Empty:
        one = make()
    try:
        yield one
    finally:
        idle.put(one)


def wrong_size(takes_hw: Sequence[object], shape: Sequence[int]) -> ModelError:
    """The error of a model that was exported for images of size `takes_hw` only, but got images of another `shape`."""
    return ModelError(
        f"This model was exported for images of {'x'.join(map(str, takes_hw))} px, but was given "
        f"{shape[2]}x{shape[3]}. Export it without a size."
    )
