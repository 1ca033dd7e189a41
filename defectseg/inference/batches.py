"""Batches: several images of one shape in one call of the network, where that is quicker, as on a graphics card."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ResourceError
from defectseg.runtime.base import Answer, Runtime

_Waiting = tuple[NDArray[np.uint8], "Future[Answer]"]  # images (N, 1, H, W) and their answer to come


def most_images(runtime: Runtime, size_hw: tuple[int, ...]) -> int:
    """The most images (h, w) of a call of the runtime; 1 or more."""
    return max(1, runtime.batch_px // (size_hw[0] * size_hw[1]))


def answer_each(runtime: Runtime, images: Sequence[NDArray[np.uint8]]) -> Iterator[Answer]:
    """The answer for each of some images uint8 (h, w) of one shape, in order: an Answer of one image.

    Each call of the runtime gets as many as `runtime.batch_px` allows, once its first answer is asked for. Raises as
    `answer_batch`.
    """
    begin = 0
    while begin < len(images):
        batch = np.stack(images[begin : begin + most_images(runtime, images[begin].shape)])[:, None]
        answer = answer_batch(runtime, batch)
        yield from (part_of(answer, index, index + 1) for index in range(len(batch)))
        begin += len(batch)


def answer_batch(runtime: Runtime, images: NDArray[np.uint8]) -> Answer:
    """The answer for images (N, 1, H, W), in several calls if `runtime.batch_px` demands it.

    If memory runs out, `runtime.batch_px` becomes half of that call, for good.

    Raises:
        ResourceError: memory ran out, even for a single image.
    """
    answers: list[Answer] = []
    begin = 0
    while begin < len(images):
        batch = images[begin : begin + most_images(runtime, images.shape[2:])]
        try:
            answers.append(runtime(batch))
            begin += len(batch)
        except ResourceError:
            if len(batch) == 1:
                raise
            runtime.batch_px = min(runtime.batch_px, batch.size // 2)
    if len(answers) == 1:
        return answers[0]
    return Answer(*(np.concatenate([getattr(one, name) for one in answers]) for name in ("probabilities", "gate")))


def part_of(answer: Answer, begin: int, end: int) -> Answer:
    """The answer for images `begin` to `end` - 1; it shares memory with that for all."""
    return Answer(answer.probabilities[begin:end], answer.gate[begin:end])


class Batcher:
    """A Runtime that computes in its own threads, whichever thread calls it, until it is stopped.

    When one of them is free, it takes the images that have waited longest and others of their shape, up to
    `runtime.batch_px`. It never waits for more.

    Attributes:
        most_px: a lower limit than that of the runtime.
        stopped: set it, and no call begins any more.
    """

    def __init__(self, runtime: Runtime, threads: ThreadPoolExecutor) -> None:
        self.class_names, self.name, self.parallel = runtime.class_names, runtime.name, runtime.parallel
        self.most_px = runtime.batch_px
        self.stopped = Event()
        self._runtime = runtime
        self._threads = threads
        self._lock = Lock()
        self._waiting: list[_Waiting] = []

    @property
    def batch_px(self) -> int:
        """See Runtime."""
        return min(self.most_px, self._runtime.batch_px)

    @batch_px.setter
    def batch_px(self, most_px: int) -> None:
        self._runtime.batch_px = most_px

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime. Raises CancelledError after it was stopped."""
        if self.stopped.is_set():
            raise CancelledError
        future: Future[Answer] = Future()
        with self._lock:
            self._waiting.append((images, future))
        self._threads.submit(self._answer_waiting)
        return future.result()

    def _answer_waiting(self) -> None:
        """Answer one batch of the waiting images, if others have not taken all."""
        batch = self._take()
        if not batch:
            return
        try:
            answer = answer_batch(self._runtime, np.concatenate([images for images, _ in batch]))
        except BaseException as error:  # for the callers to raise
            for _, future in batch:
                future.set_exception(error)
            return
        begin = 0
        for images, future in batch:
            future.set_result(part_of(answer, begin, begin + len(images)))
            begin += len(images)

    def _take(self) -> list[_Waiting]:
        """The images that have waited longest, and others of their shape as far as the call has room for them."""
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        room = 0
        with self._lock:
            for waiting in self._waiting:
                count, size_hw = len(waiting[0]), waiting[0].shape[2:]
                if not taken:
                    first_hw, room = size_hw, max(count, most_images(self._runtime, size_hw))
                fits = size_hw == first_hw and count <= room
                room -= count if fits else 0
                (taken if fits else left).append(waiting)
            self._waiting[:] = left
        return taken
