"""Several images in one call: which go together, and that no result depends on it."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.inference.batches import Batcher
from defectseg.inference.segment import Segmentation, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.stream import GivenImage, Segmented, Unreadable, stream
from defectseg.inference.tiles import predict_image
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer, memory_errors

HEIGHT, WIDTH = 8, 12
IMAGE_PX = HEIGHT * WIDTH
BATCH_PX = 4 * IMAGE_PX + 1
SETTINGS = Settings(Thresholds(gate=(0.1, 0.1), pixel=(0.5, 0.6), min_area_px=(0, 2)), (HEIGHT, 2 * WIDTH), 4)


class MoodyRuntime:
    """A Runtime whose answer for a pixel depends on all pixels of its image; out of memory above `room` images.

    Attributes:
        calls: shapes of the arrays that it answered.
        refused: of those for which memory was short.
        hold: it answers nothing until this is set.
    """

    name = "moody"
    class_names = ("pits", "cracks")

    def __init__(self, batch_px: int = 0, parallel: int = 1, room: int = 99) -> None:
        self.batch_px, self.parallel, self.room = batch_px, parallel, room
        self.calls: list[tuple[int, ...]] = []
        self.refused: list[tuple[int, ...]] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        assert images.flags.c_contiguous
        self.hold.wait(60)
        with memory_errors(images.shape):
            if len(images) > self.room or (images == 255).all(axis=(1, 2, 3)).any():
                self.refused.append(images.shape)
                raise MemoryError
        self.calls.append(images.shape)
        mood = images.sum(axis=(1, 2, 3), dtype=np.int64)[:, None, None] % 7 / 7
        level = images[:, 0] / 255
        probabilities = np.stack([np.maximum(level, mood), 1 - level * mood], axis=1).astype(np.float32)
        return Answer(probabilities, probabilities.mean(axis=(2, 3)))


def _image(number: int, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 250, size_hw, dtype=np.uint8)


def _given(arrays: Sequence[NDArray[np.uint8]]) -> list[GivenImage]:
    return [GivenImage(str(number), str(number), array=array) for number, array in enumerate(arrays)]


def _segmentation(one: Segmented) -> Segmentation:
    return one.segmentation


def _all(runtime: MoodyRuntime, arrays: Sequence[NDArray[np.uint8]], settings: Settings = SETTINGS) -> list[Any]:
    with closing(stream(_given(arrays), runtime, settings, _segmentation, keep_answers=True)) as results:
        return list(results)


def _assert_same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.class_map, other.class_map)
        np.testing.assert_array_equal(one.answer.probabilities, other.answer.probabilities)
        np.testing.assert_array_equal(one.answer.gate, other.answer.gate)
        assert one.regions == other.regions


def test_a_free_thread_takes_the_images_of_one_shape_that_wait_and_does_not_wait_for_more() -> None:
    runtime = MoodyRuntime(BATCH_PX)
    submitted: list[Any] = []

    class Threads(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            future = super().submit(*arguments, **options)
            submitted.append(future)
            return future

    sizes = [(HEIGHT, WIDTH)] * 3 + [(WIDTH, HEIGHT)] + [(HEIGHT, WIDTH)] * 4
    images = [_image(number, size_hw)[None, None] for number, size_hw in enumerate(sizes)]
    runtime.hold.clear()
    with Threads(1) as network_threads, ThreadPoolExecutor(8) as callers:
        batcher = Batcher(runtime, network_threads)
        answers = []
        for number, image in enumerate(images, start=1):
            answers.append(callers.submit(batcher, image))
            while len(submitted) < number or (number == 1 and not submitted[0].running()):
                time.sleep(0.001)
        runtime.hold.set()
        found = [answer.result() for answer in answers]

    wide, tall = (1, HEIGHT, WIDTH), (1, 1, WIDTH, HEIGHT)
    assert runtime.calls == [(1, *wide), (4, *wide), tall, (2, *wide)]
    for image, answer in zip(images, found, strict=True):
        alone = MoodyRuntime()(image)
        np.testing.assert_array_equal(answer.probabilities, alone.probabilities)
        np.testing.assert_array_equal(answer.gate, alone.gate)


@pytest.mark.parametrize("tta", ["none", "flips", "turns"])
@pytest.mark.parametrize("parallel", [1, 2])
def test_results_do_not_depend_on_the_batch(tta: str, parallel: int) -> None:
    sizes = [(HEIGHT, WIDTH), (HEIGHT, HEIGHT), (HEIGHT, 7 * WIDTH), (3 * HEIGHT + 1, 40)]  # the last two in tiles
    arrays = [_image(number, sizes[number % 5 % 4]) for number in range(40)]
    settings = replace(SETTINGS, tta=tta)
    one_by_one, batches = MoodyRuntime(parallel=parallel), MoodyRuntime(BATCH_PX, parallel)

    expected = _all(one_by_one, arrays, settings)

    _assert_same(_all(batches, arrays, settings), expected)
    assert {shape[0] for shape in one_by_one.calls} == {1}
    assert max(shape[0] for shape in batches.calls) > 1
    assert all(np.prod(shape) <= BATCH_PX for shape in batches.calls)
    assert sum(shape[0] for shape in batches.calls) == len(one_by_one.calls)
    for number in range(4):
        _assert_same(
            [segment_image(batches, arrays[number], settings, keep_answer=True)], expected[number : number + 1]
        )


@pytest.mark.parametrize(("tta", "views"), [("flips", 4), ("turns", 8)])
def test_all_views_and_several_tiles_go_in_one_call(tta: str, views: int) -> None:
    runtime = MoodyRuntime(8 * HEIGHT * HEIGHT)
    settings = replace(SETTINGS, tta=tta, tile_hw=(HEIGHT, HEIGHT), tile_overlap_px=0)

    predict_image(runtime, _image(0, (HEIGHT, HEIGHT)), settings)
    predict_image(runtime, _image(0, (HEIGHT, 10 * HEIGHT)), replace(settings, tta="none"))

    assert [shape[0] for shape in runtime.calls] == [views, 8, 2]


def test_kept_answers_do_not_keep_those_of_their_batch() -> None:
    for found in _all(MoodyRuntime(BATCH_PX), [_image(number) for number in range(9)]):
        assert found.answer.probabilities.base is None


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_batch_is_halved_when_memory_runs_out_and_the_others_are_small_from_the_start(parallel: int) -> None:
    arrays = [_image(number) for number in range(60)]
    runtime = MoodyRuntime(16 * IMAGE_PX, parallel, room=2)
    settings = replace(SETTINGS, tta="flips")

    _assert_same(_all(runtime, arrays, settings), _all(MoodyRuntime(), arrays, settings))

    # Of each network thread at most three are refused, as 16, 8 and 4: later calls know of the first.
    assert 1 <= len(runtime.refused) <= 3 * parallel
    assert IMAGE_PX <= runtime.batch_px < 3 * IMAGE_PX
    assert max(shape[0] for shape in runtime.calls) <= 2


def test_an_image_that_does_not_fit_even_alone_does_not_take_its_batch_along() -> None:
    arrays = [_image(number) for number in range(30)]
    arrays[13] = np.full((HEIGHT, WIDTH), 255, np.uint8)

    found = _all(MoodyRuntime(BATCH_PX), arrays)

    failed = found.pop(13)
    assert isinstance(failed, Unreadable)
    assert failed.memory_short
    assert "memory does not suffice for it, even alone" in failed.message
    _assert_same(found, _all(MoodyRuntime(), arrays[:13] + arrays[14:]))
