"""Many images through one model: order, threads, memory and errors, whatever is made of the segmentations."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.errors import ImageError, ModelError, ResourceError
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage
from defectseg.inference.stream import GivenImage, Segmented, Unreadable, stream
from defectseg.runtime.base import Answer, memory_errors

STEEL, PIT = 60, 120  # grey levels, as GreyRuntime reads them


def _found(folder: Path, count: int, size_hw: tuple[int, int] = (16, 24)) -> list[FoundImage]:
    """Sheets of steel; number n has n pixels of a pit."""
    images = []
    for number in range(count):
        sheet = np.full(size_hw, STEEL, np.uint8)
        sheet.flat[:number] = PIT
        path = folder / f"{number:03}.png"
        path.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
        images.append(FoundImage(path.name, str(path)))
    return images


def _area(one: Segmented) -> tuple[str, int]:
    return one.found.image_id, int(np.count_nonzero(one.segmentation.class_map))


def _ids(results: list[Any]) -> list[str]:
    return [result.image_id if isinstance(result, Unreadable) else result[0] for result in results]


def test_results_come_in_order_for_any_number_of_workers(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    images = _found(tmp_path, 40)
    images[5].path.write_bytes(b"not an image")
    images[7].path.unlink()
    at_once, results = [], []
    for parallel in (1, 2, 5):
        runtime = grey_runtime(parallel=parallel, longest_s=0.004)
        results.append(list(stream(images, runtime, runtime.settings, _area)))
        at_once.append(runtime.most_at_once)
        assert runtime.threads <= {f"network_{number}" for number in range(parallel)}

    assert results[0] == results[1] == results[2]
    assert _ids(results[0]) == [image.image_id for image in images]
    assert results[0][39] == ("039.png", 39)
    unreadable = [result for result in results[0] if isinstance(result, Unreadable)]
    assert [(one.path, str(one.path) in one.message) for one in unreadable] == [
        (images[5].path, True),
        (images[7].path, True),
    ]
    assert at_once[0] == 1
    assert 1 < at_once[1] <= 2
    assert 2 < at_once[2] <= 5


def test_no_result_is_held_back_while_no_other_image_is_ready(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    images, runtime = _found(tmp_path, 5), grey_runtime(parallel=2)
    results: list[Any] = []

    def coming() -> Iterator[FoundImage | None]:
        yield None
        yield images[0]
        yield None
        assert _ids(results) == ["000.png"]
        yield from images[1:4]
        yield None
        assert _ids(results) == ["000.png", "001.png", "002.png", "003.png"]
        yield images[4]

    for result in stream(coming(), runtime, runtime.settings, _area):
        results.append(result)  # noqa: PERF402  # which the generator reads meanwhile
    assert len(results) == 5


def test_few_images_are_taken_ahead_of_the_caller(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    asked: list[FoundImage] = []

    def watched() -> Iterator[FoundImage]:
        for image in _found(tmp_path, 60):
            asked.append(image)
            yield image

    runtime = grey_runtime()
    with closing(stream(watched(), runtime, runtime.settings, _area)) as results:
        next(results)
        next(results)
        # The network's thread, at most 8 others, 4 that are ready, and those that were yielded.
        assert len(asked) <= 1 + 8 + 4 + 2


@pytest.mark.parametrize("suffix", [".png", "in memory"])
def test_images_in_work_have_few_pixels_together(
    suffix: str, tmp_path: Path, grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectseg.inference.stream.PIXELS_IN_WORK", 1000)
    at_once = {}
    for size_hw in ((5, 66), (10, 50), (10, 51), (50, 50)):
        array, lock, counts = np.full(size_hw, STEEL, np.uint8), threading.Lock(), [0]
        path = tmp_path / f"a{suffix}"
        image: FoundImage = GivenImage("a", str(path), array=array)
        if suffix != "in memory":
            cv2.imwrite(str(path), array)
            image = FoundImage("a", str(path))

        def decode(*arguments: Any, counts: list[int] = counts, lock: Any = lock, **options: Any) -> None:
            with lock:
                counts.append(counts[-1] + 1)
            time.sleep(0.02)
            with lock:
                counts.append(counts[-1] - 1)
            raise ImageError("seen.")

        monkeypatch.setattr(image_files, "decode", decode)
        monkeypatch.setattr(image_files, "to_grey", decode)
        runtime = grey_runtime(parallel=4)
        assert len(list(stream([image] * 8, runtime, runtime.settings, _area))) == 8
        at_once[size_hw] = max(counts)

    assert at_once[(10, 51)] == at_once[(50, 50)] == 1
    assert 1 < at_once[(10, 50)] <= 2
    assert 1 < at_once[(5, 66)] <= 3


@pytest.mark.parametrize("error", [ResourceError("no memory"), ModelError("not a number"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["network", "then"])
def test_an_error_in_a_thread_ends_the_stream_after_what_came_before(
    where: str, error: BaseException, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    runtime = grey_runtime(parallel=3, longest_s=0.004)
    calls: list[int] = []

    def fail(call: int) -> None:
        if call == 25:
            raise error

    def then(one: Segmented) -> tuple[str, int]:
        calls.append(1)
        if where == "then":
            fail(len(calls))
        return _area(one)

    if where == "network":
        runtime.before = fail
    threads = threading.active_count()  # other tests may have left some of a library's running
    done: list[Any] = []
    with pytest.raises(type(error)), closing(stream(_found(tmp_path, 40), runtime, runtime.settings, then)) as results:
        done.extend(results)

    # Call 25 was for one of the images in work: the network's threads, its helpers, and those that are ready.
    assert 25 - (3 + 8 + 4) <= len(done) < 40
    assert threading.active_count() == threads


@pytest.mark.parametrize("where", ["decoding", "network", "then"])
@pytest.mark.parametrize("times", [1, 99])
def test_an_image_for_which_memory_is_short_is_done_again_alone_and_with_the_same_tiles(
    where: str, times: int, tmp_path: Path, grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _found(tmp_path, 12)
    cv2.imwrite(str(images[4].path), np.full((32, 72), PIT, np.uint8))  # six tiles
    runtime = grey_runtime(tile_hw=(16, 24), tile_overlap_px=0, parallel=3, longest_s=0.004)
    undisturbed = list(stream(images, runtime, runtime.settings, _area))
    attempts: list[int] = []
    others_at_once: set[int] = set()

    def fail(place: str, large: bool) -> None:
        if large and place == "decoding":
            attempts.append(1)
        if large and len(attempts) == 2:
            others_at_once.add(runtime.at_once)
        if large and place == where and len(attempts) <= times:
            raise MemoryError

    class Short:
        class_names, name, parallel, batch_px = runtime.class_names, runtime.name, runtime.parallel, 0

        def __call__(self, tile: NDArray[np.uint8]) -> Answer:
            with memory_errors(tile.shape):
                fail("network", bool((tile == PIT).all()))
                answer: Answer = runtime(tile)
                return answer

    def imdecode(content: NDArray[np.uint8], flags: int) -> Any:
        pixels: Any = decode(content, flags)
        fail("decoding", pixels.size == 32 * 72)
        return pixels

    def then(one: Segmented) -> tuple[str, int]:
        fail("then", one.decoded.pixels.size == 32 * 72)
        return _area(one)

    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", imdecode)
    found = list(stream(images, cast(Any, Short()), runtime.settings, then))

    unreadable = found[4]
    if times > 1:
        assert isinstance(unreadable, Unreadable)
        assert unreadable.memory_short
        assert unreadable.message.startswith(f"{images[4].path}: memory does not suffice for it, even alone")
        found[4] = undisturbed[4]
    assert found == undisturbed
    assert len(attempts) == 2
    assert others_at_once == {0}
    assert set(runtime.calls) == {(1, 1, 16, 24)}


def test_a_closed_stream_gives_up_a_large_image(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    (tmp_path / "large").mkdir()
    images = [*_found(tmp_path, 1), *_found(tmp_path / "large", 1, size_hw=(800, 800))]
    runtime = grey_runtime(tile_hw=(16, 24), tile_overlap_px=0, longest_s=0.004)

    with closing(stream(images, runtime, runtime.settings, _area)) as results:
        next(results)

    assert len(runtime.calls) < 200  # of 1,701


def test_opencv_has_its_threads_back_after_the_last_stream(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    images, runtime, before = _found(tmp_path, 3), grey_runtime(), cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        first, second = (stream(images, runtime, runtime.settings, _area) for _ in range(2))
        next(first)
        next(second)
        first.close()
        assert cv2.getNumThreads() == 1
        second.close()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
