"""Read -> infer -> post-process -> render -> write, overlapped, in bounded memory.

Each image passes through one thread from reading to rendering; while it waits for the network, other threads read and
render. The network itself is called only from threads of its own, as many as the runtime has use for: libraries that
compute keep a team of helpers for each thread that calls them. Results are written by the caller's thread, in the order
of the images.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Condition, Event
from types import TracebackType
from typing import Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.config import Thresholds
from defectseg.data import images as image_files
from defectseg.data.images import DecodedImage, FoundImage
from defectseg.errors import ImageError
from defectseg.inference.outputs import OutputFolder
from defectseg.inference.postprocess import Segmentation, segment_image
from defectseg.inference.render import Rendered, render, render_failure
from defectseg.inference.runtimes.base import Answer, Runtime
from defectseg.inference.stages import StageTimes, timed
from defectseg.inference.tables import STATUS_DEFECT, STATUS_FAILED

log = logging.getLogger(__name__)

_LOOK_AHEAD = 4  # images that wait, ready, for their turn to be written, besides those in work
_MOST_HELPERS = 8  # threads that read and render while the network computes
# Images in work at once have no more pixels than this together; a larger one goes alone. About 25 bytes are held for
# each pixel: four classes in float32 and as masks, the image, the overlay.
_PIXELS_IN_WORK = 16_000_000

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class BatchCounts:
    """What a batch did: images processed, among them with a defect, and failed."""

    processed: int
    with_defect: int
    failed: int


def run_batch(
    images: Sequence[FoundImage],
    runtime: Runtime,
    output: OutputFolder,
    *,
    thresholds: Thresholds,
    only_classes: Collection[int] | None = None,
    advance: Callable[[], None] = lambda: None,
    times: StageTimes | None = None,
) -> BatchCounts:
    """Segment images and write what is found; an image that cannot be read is recorded and the batch goes on.

    Args:
        images: what to process; see OutputFolder.pending.
        runtime: the model; called from `runtime.parallel` threads at once.
        output: where results go, and which of them.
        thresholds: gate, pixel threshold and minimum area for each class.
        only_classes: ClassIds to report; None reports all.
        advance: called after each image, in the order of `images`.
        times: receives the time spent in each stage.

    Raises:
        ResourceError: memory or disk space ran out; what is done is kept.
        ModelError: the network answers with something that is not a number.
    """
    processed = with_defect = failed = 0
    with _one_opencv_thread(), _Network(runtime, times) as network:
        worker = _Worker(network, thresholds, only_classes, output, times)
        threads = network.parallel + max(2, min(os.cpu_count() or 2, _MOST_HELPERS))
        with closing(_ordered_map(worker, images, threads=threads, abandon=network.stop)) as results:
            for result in results:
                with timed(times, "write"):
                    output.write(result.record, overlay_jpeg=result.overlay_jpeg, class_map_png=result.class_map_png)
                if result.record.status == STATUS_FAILED:
                    failed += 1
                    log.warning("%s", result.record.image["notes"])
                else:
                    processed += 1
                    with_defect += result.record.status == STATUS_DEFECT
                advance()
    return BatchCounts(processed, with_defect, failed)


class _Worker:
    """Takes one image from its file to what is to be written of it; called from several threads at once."""

    def __init__(
        self,
        network: "_Network",
        thresholds: Thresholds,
        only_classes: Collection[int] | None,
        output: OutputFolder,
        times: StageTimes | None,
    ) -> None:
        self._network = network
        self._thresholds = thresholds
        self._only_classes = only_classes
        self._choice = output.key.outputs
        self._times = times
        # How large an image is, is known once it is read; until then its file is the best guess.
        self._bytes_in_work = _Budget(_PIXELS_IN_WORK)
        self._pixels_in_work = _Budget(_PIXELS_IN_WORK)

    def __call__(self, found: FoundImage) -> Rendered:
        with self._bytes_in_work.held(_file_bytes(found)):
            try:
                with timed(self._times, "decode"):
                    decoded = image_files.decode(found.path)
            except ImageError as error:
                return render_failure(found, str(error))
            with self._pixels_in_work.held(decoded.pixels.size):
                return self._answered(found, decoded)

    def _answered(self, found: FoundImage, decoded: DecodedImage) -> Rendered:
        segmentation = self._segment(decoded.pixels)
        with timed(self._times, "render"):
            return render(found, decoded, segmentation, self._network.info.class_names, self._choice)

    def _segment(self, pixels: NDArray[np.uint8]) -> Segmentation:
        if self._times is None:
            return segment_image(self._network, pixels, self._thresholds, only_classes=self._only_classes)
        begun, network = time.perf_counter(), _Watched(self._network)
        segmentation = segment_image(network, pixels, self._thresholds, only_classes=self._only_classes)
        self._times.add("postprocess", max(0.0, time.perf_counter() - begun - network.waited_s))
        return segmentation


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


def decode_ahead(images: Iterable[FoundImage]) -> Iterator[Decoded | Failure]:
    """Decode images in their order, a few ahead of the caller, in a thread."""

    def decode(found: FoundImage) -> Decoded | Failure:
        try:
            return Decoded(found, image_files.decode(found.path))
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


def _file_bytes(found: FoundImage) -> int:
    try:
        return found.path.stat().st_size
    except OSError:
        return 0
