"""Read -> infer -> post-process -> render -> write, overlapped, in bounded memory.

Each image passes through one thread from reading to rendering; while it waits for the network, other threads read and
render. The network itself is called only from threads of its own, as many as the runtime has use for: libraries that
compute keep a team of helpers for each thread that calls them. Results are written by the caller's thread, in the order
of the images.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Event
from types import TracebackType
from typing import Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError
from defectseg.files import size_and_time
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage
from defectseg.image.read import DecodedImage
from defectseg.inference.stages import StageTimes, timed
from defectseg.runtime.base import Answer, Runtime

log = logging.getLogger(__name__)

_LOOK_AHEAD = 4  # images that wait, ready, for their turn to be written, besides those in work
_MOST_HELPERS = 8  # threads that read and render while the network computes
# Images in work at once have no more pixels than this together; a larger one goes alone. About 25 bytes are held for
# each pixel: four classes in float32 and as masks, the image, the overlay.
_PIXELS_IN_WORK = 16_000_000

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _decode_unchanged(
    found: FoundImage, *, bit_depth: int | None, model_bit_depth: int | None
) -> tuple[DecodedImage, tuple[int, int]]:
    """An image, and the size and time of its file from before it was read, so that a later change shows.

    Raises:
        ImageError: as `decode_found` does, or the file changes again and again.
    """
    for _ in range(2):
        stamp = size_and_time(found.path)
        decoded = image_files.decode_found(found, bit_depth=bit_depth, model_bit_depth=model_bit_depth)
        if size_and_time(found.path) == stamp:
            return decoded, stamp
    raise ImageError(f"{found.path}: changed while it was read. Run the same command again once it is complete.")


class _Network:
    """A Runtime that is called only from threads of its own, `parallel` of them, whoever asks."""

    def __init__(self, runtime: Runtime, times: StageTimes | None) -> None:
        self.info, self.name, self.parallel = runtime.info, runtime.name, runtime.parallel
        self._runtime = runtime
        self._times = times
        self._pool = ThreadPoolExecutor(runtime.parallel, thread_name_prefix="network")
        self._stopped = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def stop(self) -> None:
        """Refuse all further calls, so that a large image in work is given up at its next tile."""
        self._stopped.set()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime. Raises CancelledError once it was stopped."""
        if self._stopped.is_set():
            raise CancelledError
        return self._pool.submit(self._answer, images).result()

    def _answer(self, images: NDArray[np.uint8]) -> Answer:
        with timed(self._times, "infer"):
            return self._runtime(images)


class _Watched:
    """A Runtime that remembers how long one image waited for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.info, self.name, self.parallel = runtime.info, runtime.name, runtime.parallel
        self.waited_s = 0.0
        self._runtime = runtime

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        begun = time.perf_counter()
        answer = self._runtime(images)
        self.waited_s += time.perf_counter() - begun
        return answer


class _Budget:
    """Lets threads through while what they hold together is within a limit; one that needs more goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = Condition()

    @contextmanager
    def held(self, amount: int) -> Iterator[None]:
        """Wait for, then hold, an amount."""
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


@dataclass(frozen=True)
class Decoded:
    """An image that was read whole."""

    found: FoundImage
    decoded: DecodedImage


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    found: FoundImage
    message: str


def decode_ahead(
    images: Iterable[FoundImage], *, bit_depth: int | None = None, model_bit_depth: int | None = None
) -> Iterator[Decoded | Failure]:
    """Decode images in their order, a few ahead of the caller, in a thread; bit depths as in `decode_bytes`."""

    def decode(found: FoundImage) -> Decoded | Failure:
        try:
            return Decoded(found, image_files.decode_found(found, bit_depth=bit_depth, model_bit_depth=model_bit_depth))
        except ImageError as error:
            return Failure(found, str(error))

    yield from _ordered_map(decode, images)


def _ordered_map(
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    *,
    threads: int = 1,
    abandon: Callable[[], None] = lambda: None,
) -> Generator[_Out, None, None]:
    """Like `map`, with threads that work ahead on a bounded number of items.

    `abandon` is called before it waits for what is in work at the end, be it that all is done, that the reader has had
    enough, or that an item failed.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= threads + _LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            abandon()


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from spreading single calls over cores: here that gains nothing, and takes from the network."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
