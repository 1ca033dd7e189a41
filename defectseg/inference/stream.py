"""Many images through one model, in order, overlapped and in bounded memory.

One thread reads an image, segments it and calls the caller's function with the result. While it waits for the
network, other threads read and post-process. Only a fixed pool of `runtime.parallel` threads calls the network, because
these libraries start a team of workers for each calling thread; images that wait for it at once form batches.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock
from typing import Any, TypeVar

import cv2
from numpy.typing import NDArray

from defectseg.errors import DefectsegError, ImageError
from defectseg.files import size_and_time
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage
from defectseg.image.read import DecodedImage
from defectseg.inference.batches import Batcher, ThresholdingBatcher
from defectseg.inference.segment import Segmentation, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import in_order
from defectseg.machine import cores
from defectseg.runtime.base import Runtime, ThresholdingRuntime, is_memory_short

_LOOK_AHEAD = 4  # results that wait for their turn, besides the images being processed
_MOST_HELPERS = 8  # threads that read and post-process while the network computes, if it takes one image at a time
_WAITING = 32  # besides, as many threads that only wait for a batch
# The images being processed have at most this many pixels together, besides those in batches; a larger image is
# processed alone. Each pixel takes about 25 bytes: four classes in float32 and as masks, the image, the overlay.
PIXELS_IN_WORK = 16_000_000

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class GivenImage(FoundImage):
    """An image in memory, uint8 or uint16 as OpenCV decodes it; its ImageId is used in messages."""

    array: NDArray[Any] = field(kw_only=True)


@dataclass(frozen=True)
class Segmented:
    """An image and its segmentation.

    Attributes:
        found: the file.
        stamp: size and time of the file before it was read, to notice a later change; see `size_and_time`.
        decoded: the pixels.
        segmentation: the result.
    """

    found: FoundImage
    stamp: tuple[int, int]
    decoded: DecodedImage
    segmentation: Segmentation


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be processed, and why; `memory_short` if memory did not suffice, even for it alone."""

    image_id: str
    path: Path
    message: str
    memory_short: bool = False


def decode(found: FoundImage, settings: Settings) -> DecodedImage:
    """Decode an image for the network. Raises ImageError."""
    bit_depth, model_bit_depth = settings.bit_depth, settings.model_bit_depth
    if not isinstance(found, GivenImage):
        return image_files.decode(found, bit_depth=bit_depth, model_bit_depth=model_bit_depth)
    array = found.array
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(f"{found.image_id}: shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4), not empty.")
    return image_files.to_grey(array, found.image_id, bit_depth=model_bit_depth if bit_depth is None else bit_depth)


def stream(
    images: Iterable[FoundImage | None],
    runtime: Runtime,
    settings: Settings,
    then: Callable[[Segmented], _Out],
    *,
    keep_answers: bool = False,
) -> Generator[_Out | Unreadable, None, None]:
    """Segment images, and yield in their order the result of `then` for each, or Unreadable.

    Use it with `contextlib.closing`: closing abandons the images being processed, a large one at its next tile.

    If memory does not suffice for an image, it is processed again, alone and tile by tile. Tiles stay the same, because
    others would change the answer. If memory is still short, the image is Unreadable. A batch is halved before.

    Args:
        images: read a bounded number ahead of the caller. None: no other is ready, so yield what those before give.
        runtime: called from `runtime.parallel` threads.
        settings: of the inference.
        then: called from several threads, in any order; twice for an image for which it runs out of memory.
        keep_answers: keep the network's answers, see `segment_image`.

    Raises:
        ModelError: the network answers with NaN.
        Exception: any error of `then` except ImageError, which makes the image Unreadable.
    """
    helpers = cores() + _WAITING if runtime.batch_px else max(2, min(cores(), _MOST_HELPERS))
    threads = runtime.parallel + helpers
    most_px = PIXELS_IN_WORK + (runtime.parallel + 1) * runtime.batch_px  # of batches being computed, and the next
    with (
        _one_opencv_thread(),
        ThreadPoolExecutor(runtime.parallel, thread_name_prefix="network") as network_threads,
        ThreadPoolExecutor(threads, thread_name_prefix="image") as pool,
    ):
        kind = ThresholdingBatcher if isinstance(runtime, ThresholdingRuntime) else Batcher
        network = kind(runtime, network_threads)
        tile_by_tile = copy(network)
        tile_by_tile.parallel, tile_by_tile.most_px = 1, 0
        pixels_in_work = _Budget(most_px)

        def work(found: FoundImage) -> _Out | Unreadable:
            reason = ""
            for alone in (False, True):
                try:
                    with pixels_in_work.held(most_px if alone else _pixels_of(found)):
                        stamp, decoded = _decode_unchanged(found, settings)
                        own = tile_by_tile if alone else network
                        segmentation = segment_image(own, decoded.pixels, settings, keep_answer=keep_answers)
                        return then(Segmented(found, stamp, decoded, segmentation))
                except Exception as error:
                    reason = str(error) or type(error).__name__
                    if not is_memory_short(error.__cause__ if isinstance(error, DefectsegError) else error):
                        if isinstance(error, ImageError):
                            return Unreadable(found.image_id, found.path, reason)
                        raise
            message = f"{found.path}: memory does not suffice for it, even alone ({reason})"
            return Unreadable(found.image_id, found.path, message, memory_short=True)

        try:
            yield from in_order(pool, work, images, most=threads + _LOOK_AHEAD)
        finally:
            network.stopped.set()


def _pixels_of(found: FoundImage) -> int:
    """Number of pixels of an image, from the header of its file. Raises ImageError."""
    if isinstance(found, GivenImage):
        return found.array.size
    height, width = image_files.read_size(found.path) if not found.fault else (0, 0)
    return height * width


def _decode_unchanged(found: FoundImage, settings: Settings) -> tuple[tuple[int, int], DecodedImage]:
    """The stamp of a file before it was read, and the image.

    Raises:
        ImageError: as `decode`, or the file changed twice while it was read.
    """
    for _ in range(2):
        stamp = size_and_time(found.path)
        decoded = decode(found, settings)
        if size_and_time(found.path) == stamp:
            return stamp, decoded
    raise ImageError(f"{found.path}: changed while it was read. Run the same command again once it is complete.")


class _Budget:
    """Makes threads wait so that the amounts they hold stay within a limit; a larger amount is held alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = Condition()

    @contextmanager
    def held(self, amount: int) -> Iterator[None]:
        """Wait until an amount fits, and hold it."""
        share = min(amount, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._held + share <= self._limit)
            self._held += share
        try:
            yield
        finally:
            with self._changed:
                self._held -= share
                self._changed.notify_all()


_opencv_lock = Lock()
_opencv_threads_before: list[int] = []  # for each open stream


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Let OpenCV use one thread: more gain nothing here and slow the network down.

    The setting holds for the whole process; the last of several open streams restores it.
    """
    with _opencv_lock:
        _opencv_threads_before.append(cv2.getNumThreads())
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        with _opencv_lock:
            before = _opencv_threads_before.pop()
            if not _opencv_threads_before:
                cv2.setNumThreads(before)
