"""Batches: several images of one shape in one call of the network, where that is quicker, as on a graphics card."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ResourceError
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer, Reached, Runtime, ThresholdingRuntime, Turn

# Images (N, 1, H, W); the other arguments of `reach`, or none for a plain call; and the answer to come.
_Waiting = tuple[NDArray[np.uint8], tuple[Any, ...], "Future[Any]"]
_Out = TypeVar("_Out")


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
    """The answer for images (N, 1, H, W); see `_call`."""
    answers = _call(runtime, runtime, images)
    if len(answers) == 1:
        return answers[0]
    return Answer(*(np.concatenate([getattr(one, name) for one in answers]) for name in ("probabilities", "gate")))


def _call(runtime: Runtime, function: Callable[[NDArray[np.uint8]], _Out], images: NDArray[np.uint8]) -> list[_Out]:
    """What a function of the runtime gives for images (N, 1, H, W), in several calls if `batch_px` demands it.

    If memory runs out, `runtime.batch_px` becomes half of that call, for good.

    Raises:
        ResourceError: memory ran out, even for a single image.
    """
    results: list[_Out] = []
    begin = 0
    while begin < len(images):
        batch = images[begin : begin + most_images(runtime, images.shape[2:])]
        try:
            results.append(function(batch))
            begin += len(batch)
        except ResourceError:
            if len(batch) == 1:
                raise
            runtime.batch_px = min(runtime.batch_px, batch.size // 2)
    return results


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
        answer: Answer = self._wait_for(images)
        return answer

    def _wait_for(self, images: NDArray[np.uint8], *arguments: Any) -> Any:
        if self.stopped.is_set():
            raise CancelledError
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((images, arguments, future))
        self._threads.submit(self._answer_waiting)
        return future.result()

    def _answer_waiting(self) -> None:
        """Answer one batch of the waiting images, if others have not taken all."""
        batch = self._take()
        if not batch:
            return
        try:
            answer = self._answer(np.concatenate([images for images, _, _ in batch]), *batch[0][1])
        except BaseException as error:  # for the callers to raise
            for _, _, future in batch:
                future.set_exception(error)
            return
        begin = 0
        for images, _, future in batch:
            end = begin + len(images)
            future.set_result(part_of(answer, begin, end) if isinstance(answer, Answer) else answer[begin:end])
            begin = end

    def _answer(self, images: NDArray[np.uint8], *reach: Any) -> Any:
        if not reach:
            return answer_batch(self._runtime, images)
        thresholds, turns = reach
        assert isinstance(self._runtime, ThresholdingRuntime)
        reached = partial(self._runtime.reach, thresholds=thresholds, turns=turns)
        return list(chain.from_iterable(_call(self._runtime, reached, images)))

    def _take(self) -> list[_Waiting]:
        """The images that have waited longest, and others of the same kind as far as the call has room for them."""
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        room = 0
        with self._lock:
            for waiting in self._waiting:
                count, kind = len(waiting[0]), (waiting[0].shape[2:], waiting[1])
                if not taken:
                    first_kind, room = kind, max(count, most_images(self._runtime, kind[0]))
                fits = kind == first_kind and count <= room
                room -= count if fits else 0
                (taken if fits else left).append(waiting)
            self._waiting[:] = left
        return taken


class ThresholdingBatcher(Batcher):
    """A Batcher for a ThresholdingRuntime."""

    def reach(self, images: NDArray[np.uint8], thresholds: Thresholds, turns: Sequence[Turn]) -> list[Reached]:
        """See ThresholdingRuntime."""
        reached: list[Reached] = self._wait_for(images, thresholds, turns)
        return reached
