import csv
import json
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.errors import ImageError, ModelError, ResourceError
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import DecodedImage
from defectseg.inference import stream
from defectseg.inference.stages import StageTimes
from defectseg.inference.stream import Decoded, Failure, decode_ahead
from defectseg.predict.output import OutputFolder, RunKey
from defectseg.predict.predict import BatchCounts, run_batch
from defectseg.predict.render import fit_jpeg
from defectseg.runtime.base import Answer

STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them
KEY = RunKey(model_sha256="", only_classes=None, thresholds={})


def _sheet(*rectangles: tuple[int, int, int, int, int], size_hw: tuple[int, int] = (16, 24)) -> NDArray[np.uint8]:
    """Steel with rectangles (left, top, width, height, grey level)."""
    image = np.full(size_hw, STEEL, np.uint8)
    image[-1] += 10
    for left, top, width, height, level in rectangles:
        image[top : top + height, left : left + width] = level
    return image


def _write(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def _run(folder: Path, out: Path, runtime: Any, **options: Any) -> BatchCounts:
    with OutputFolder(out, KEY) as output:
        output.write_run({})
        images = output.pending(find_images([folder], keep_faulty=True))
        counts = run_batch(images, runtime, output, thresholds=runtime.info.thresholds, **options)
        output.finish({})
    return counts


def _read(path: Path) -> NDArray[np.uint8]:
    picture: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint8
    return np.asarray(picture, np.uint8)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _decode_literally(encoded: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Severstal's rule word for word: pixels are numbered from 1, down the columns."""
    height, width = size_hw
    mask = np.zeros(size_hw, np.bool_)
    numbers = [int(word) for word in encoded.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start, start + length):
            mask[(pixel - 1) % height, (pixel - 1) // height] = True
    assert mask.shape == (height, width)
    return mask


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Four images: a clean one, one with two pits and a crack, one with overlapping classes, one that is broken."""
    folder = tmp_path / "sheets"
    _write(folder / "clean.png", _sheet())
    _write(folder / "many.png", _sheet((2, 3, 4, 2, PIT), (20, 0, 3, 16, PIT), (10, 10, 1, 3, CRACK)))
    _write(folder / "over.png", _sheet((0, 0, 2, 2, PIT), (2, 0, 2, 2, BOTH)))
    (folder / "broken.png").write_bytes((folder / "clean.png").read_bytes()[:-20])
    return folder


def test_tables_hold_what_the_answer_implies_worked_by_hand(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    counts = _run(sheets, tmp_path / "out", grey_runtime())

    assert counts == BatchCounts(processed=3, with_defect=2, failed=1)
    broken, clean, many, over = _rows(tmp_path / "out" / "images.csv")
    stat = (sheets / "many.png").stat()
    assert many == {
        "ImageId": "many.png", "status": "defect", "height": "16", "width": "24", "classes": "pits; cracks",
        "regions": "3", "defect_area_px": "59", "defect_area_percent": "15.3646", "top_score": "0.9000", "notes": "",
        "size_bytes": str(stat.st_size), "modified_ns": str(stat.st_mtime_ns),
    }  # fmt: skip
    assert (clean["status"], clean["classes"], clean["regions"], clean["top_score"]) == ("clean", "", "0", "")
    assert (clean["defect_area_px"], clean["defect_area_percent"]) == ("0", "0.0000")
    # A pixel of two classes is one defect pixel: 4 of the pit alone and 4 of both.
    assert (over["regions"], over["defect_area_px"], over["classes"]) == ("2", "8", "pits; cracks")
    assert broken["status"] == "unreadable"
    assert broken["height"] == broken["regions"] == broken["defect_area_px"] == ""
    assert "broken.png" in broken["notes"]

    regions = [list(row.values()) for row in _rows(tmp_path / "out" / "regions.csv")]
    assert regions == [
        ["many.png", "1", "pits", "48", "20", "0", "3", "16", "21.0", "7.5", "0.9000"],
        ["many.png", "1", "pits", "8", "2", "3", "4", "2", "3.5", "3.5", "0.9000"],
        ["many.png", "2", "cracks", "3", "10", "10", "1", "3", "10.0", "11.0", "0.8000"],
        ["over.png", "1", "pits", "8", "0", "0", "4", "2", "1.5", "0.5", "0.7500"],
        ["over.png", "2", "cracks", "4", "2", "0", "2", "2", "2.5", "0.5", "0.7000"],
    ]
    (error,) = _rows(tmp_path / "out" / "errors.csv")
    assert (error["ImageId"], error["path"]) == ("broken.png", str(sheets / "broken.png"))
    assert error["error"] == broken["notes"]


def test_predictions_have_a_row_for_each_class_of_each_processed_image(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    _run(sheets, tmp_path / "out", grey_runtime())

    rows = [tuple(row.values()) for row in _rows(tmp_path / "out" / "predictions.csv")]
    assert rows[:2] == [("clean.png", "1", ""), ("clean.png", "2", "")]
    assert [row[:2] for row in rows[2:]] == [("many.png", "1"), ("many.png", "2"), ("over.png", "1"), ("over.png", "2")]
    # Columns of 16 rows: the crack starts at column 10, row 10, that is pixel 10 x 16 + 10 + 1.
    assert rows[3][2] == "171 3"
    assert rows[2][2] == "36 2 52 2 68 2 84 2 321 48"


def test_masks_and_predictions_say_the_same(sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    _run(sheets, tmp_path / "out", grey_runtime())

    for stem, image_id in (("clean", "clean.png"), ("many", "many.png"), ("over", "over.png")):
        class_map = _read(tmp_path / "out" / "masks" / f"{stem}.png")
        assert class_map.shape == (16, 24)
        rows = [row for row in _rows(tmp_path / "out" / "predictions.csv") if row["ImageId"] == image_id]
        masks = np.stack([_decode_literally(row["EncodedPixels"], (16, 24)) for row in rows])
        np.testing.assert_array_equal(masks.any(axis=0), class_map > 0)
        for class_id in (1, 2):
            assert masks[class_id - 1][class_map == class_id].all()
    # Where both classes hold, the crack is more probable.
    assert class_map[:2, :5].tolist() == [[1, 1, 2, 2, 0]] * 2


def _red(bgr: NDArray[np.uint8]) -> NDArray[np.bool_]:
    levels = bgr.astype(np.int64)
    return np.asarray(levels[..., 2] - levels[..., :2].max(axis=-1) > 45)


def test_each_overlay_is_red_exactly_where_its_mask_says_so(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    size_hw = (64, 96)
    for number in range(6):
        # Dark and bright steel with noise; defects keep their levels, which are what the runtime reads.
        image = rng.normal((30, 85, 245)[number % 3], 4, size_hw).clip(0, 255).astype(np.uint8)
        for _ in range(number):
            left, top = rng.integers(0, 90), rng.integers(0, 60)
            image[top : top + rng.integers(1, 20), left : left + rng.integers(1, 30)] = rng.choice([PIT, CRACK, BOTH])
        _write(tmp_path / "in" / f"{number}.png", image)

    _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    found = 0
    for path in sorted((tmp_path / "out" / "masks").iterdir()):
        class_map = _read(path)
        overlay = _read(tmp_path / "out" / "overlays" / f"{path.stem}.jpg")
        np.testing.assert_array_equal(_red(overlay[: size_hw[0]]), class_map > 0)
        assert overlay.shape[1] == size_hw[1]
        assert (overlay.shape[0] > size_hw[0]) == bool(class_map.any())  # the legend is a strip below
        found += bool(class_map.any())
    assert found >= 4


def test_unwanted_classes_have_blank_rows_and_are_not_counted(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    counts = _run(sheets, tmp_path / "out", grey_runtime(), only_classes=(2,))

    assert counts.with_defect == 2
    rows = _rows(tmp_path / "out" / "predictions.csv")
    assert [row["EncodedPixels"] for row in rows if row["ClassId"] == "1"] == ["", "", ""]
    assert [row["classes"] for row in _rows(tmp_path / "out" / "images.csv")] == ["", "", "cracks", "cracks"]


def test_notes_on_what_was_changed_in_decoding_reach_the_table(
    tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    _write(tmp_path / "in" / "deep.png", _sheet().astype(np.uint16) * 257)  # type: ignore[arg-type]

    _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    (row,) = _rows(tmp_path / "out" / "images.csv")
    assert row["notes"] == "16-bit scaled by 1/257"


@pytest.mark.skipif(os.name == "nt", reason="such files cannot exist there")
def test_no_file_stops_a_folder(sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    pixels = (sheets / "clean.png").read_bytes()
    for name in (b"\x8f\xe0.png", b"a\\b.png", b"a\nb.png", b"x" * 251 + b".png", b"x.png/inner.png"):
        path = sheets / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pixels)
    os.mkfifo(sheets / "pipe.png")
    (sheets / "to-pipe.png").symlink_to("pipe.png")
    (sheets / "device.png").symlink_to("/dev/zero")
    (sheets / "circle.png").symlink_to("circle.png")
    with (sheets / "huge.png").open("wb") as handle:
        handle.truncate(100 * 2**30)
    unreadable = ["%8F%E0.png", "a%0Ab.png", "a%5Cb.png", "broken.png", "circle.png"]
    unreadable += ["device.png", "huge.png", "pipe.png", "to-pipe.png"]

    counts = _run(sheets, tmp_path / "out", grey_runtime())

    assert counts == BatchCounts(processed=5, with_defect=2, failed=9)
    errors = _rows(tmp_path / "out" / "errors.csv")
    assert [row["ImageId"] for row in errors] == unreadable
    assert errors[0]["path"] == f"{sheets}/%8F%E0.png"
    images = {row["ImageId"]: row["status"] for row in _rows(tmp_path / "out" / "images.csv")}
    assert sorted(image_id for image_id, status in images.items() if status == "unreadable") == unreadable
    assert images["x.png/inner.png"] == images["x" * 251 + ".png"] == "clean"
    assert _run(sheets, tmp_path / "out", grey_runtime()) == BatchCounts(processed=0, with_defect=0, failed=9)


def _replace(path: Path, image: NDArray[np.uint8]) -> None:
    """As a camera writes a file anew, a second later: another one takes its name, and it is never half there."""
    later_ns = path.stat().st_mtime_ns + 10**9
    new = _write(path.with_name("new.bmp"), image)
    os.utime(new, ns=(later_ns, later_ns))
    new.replace(path)


def test_an_image_replaced_while_the_network_works_on_it_is_done_again(
    tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    path, runtime = _write(tmp_path / "in" / "a.bmp", _sheet()), grey_runtime()
    runtime.before = lambda call: _replace(path, _sheet((0, 0, 2, 2, PIT)))
    assert _run(tmp_path / "in", tmp_path / "out", runtime).with_defect == 0

    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime()).with_defect == 1
    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime()).processed == 0


@pytest.mark.parametrize(("times", "expected"), [(1, BatchCounts(1, 1, 0)), (2, BatchCounts(0, 0, 1))])
def test_an_image_replaced_while_it_is_decoded_is_read_once_more(
    tmp_path: Path,
    grey_runtime: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    expected: BatchCounts,
) -> None:
    path, decode_bytes = _write(tmp_path / "in" / "a.bmp", _sheet()), image_files.decode_bytes
    changes = iter(range(times))

    def replacing(content: bytes, *, name: str, **options: Any) -> DecodedImage:
        if next(changes, None) is not None:
            _replace(path, _sheet((0, 0, 2, 2, PIT)))
        return decode_bytes(content, name=name, **options)

    monkeypatch.setattr(image_files, "decode_bytes", replacing)
    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime()) == expected
    errors = _rows(tmp_path / "out" / "errors.csv")
    assert all("changed while it was read" in row["error"] for row in errors)
    assert len(errors) == expected.failed

    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime()) == BatchCounts(expected.failed, expected.failed, 0)


def test_tiles_change_nothing_for_an_answer_that_depends_on_the_pixel_alone(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    _run(sheets, tmp_path / "whole", grey_runtime())
    _run(sheets, tmp_path / "tiles", grey_runtime(tile_hw=(7, 9), tile_overlap_px=3))

    for name in ("predictions.csv", "images.csv", "regions.csv"):
        assert (tmp_path / "tiles" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_images_of_any_size_pass(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    for number, size_hw in enumerate([(1, 1), (1, 300), (300, 1), (3, 5)]):
        _write(tmp_path / "in" / f"{number}.png", np.full(size_hw, PIT, np.uint8))

    counts = _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    assert counts == BatchCounts(processed=4, with_defect=4, failed=0)
    areas = [row["defect_area_percent"] for row in _rows(tmp_path / "out" / "images.csv")]
    assert areas == ["100.0000"] * 4


@pytest.mark.parametrize("size_hw", [(70_000, 1), (2, 70_000)])
def test_an_overlay_too_long_for_a_jpeg_is_shrunk_and_said_so(
    tmp_path: Path, size_hw: tuple[int, int], grey_runtime: Callable[..., Any]
) -> None:
    _write(tmp_path / "in" / "long.png", np.full(size_hw, PIT, np.uint8))

    counts = _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    assert counts.with_defect == 1
    assert "overlay shrunk to" in _rows(tmp_path / "out" / "images.csv")[0]["notes"]
    assert max(_read(tmp_path / "out" / "overlays" / "long.jpg").shape) == 65_500


def test_a_picture_that_fits_a_jpeg_is_left_alone() -> None:
    picture = np.zeros((3, 65_500, 3), np.uint8)

    assert fit_jpeg(picture) == (picture, ())


def test_progress_is_told_once_for_each_image_whether_it_failed_or_not(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    steps: list[int] = []

    _run(sheets, tmp_path / "out", grey_runtime(), advance=lambda: steps.append(1))

    assert len(steps) == 4


def test_what_was_done_before_memory_ran_out_is_kept(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    for number in range(10):
        _write(tmp_path / "in" / f"{number}.png", _sheet())
    runtime = grey_runtime()

    def run_out(call: int) -> None:
        if call == 9:
            raise ResourceError("out of memory")

    runtime.before = run_out
    with pytest.raises(ResourceError, match="out of memory"):
        _run(tmp_path / "in", tmp_path / "out", runtime)

    with OutputFolder(tmp_path / "out", KEY) as output:
        assert len(output.pending(find_images([tmp_path / "in"]))) < 10


def _found(folder: Path, count: int) -> list[FoundImage]:
    paths = [_write(folder / f"{number:03}.png", _sheet()) for number in range(count)]
    return [FoundImage(path.name, path) for path in paths]


def test_decoding_keeps_the_order_and_reports_failures_in_their_place(tmp_path: Path) -> None:
    images = _found(tmp_path, 12)
    images[5].path.write_bytes(b"not an image")
    images[7].path.unlink()

    items = list(decode_ahead(images))

    assert [item.found for item in items] == images
    assert [index for index, item in enumerate(items) if isinstance(item, Failure)] == [5, 7]
    assert all(isinstance(item, Decoded | Failure) for item in items)


def test_decoding_does_not_run_far_ahead_of_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _found(tmp_path, 30)
    asked: list[FoundImage] = []

    def watched() -> Iterator[FoundImage]:
        for image in images:
            asked.append(image)
            yield image

    reader = decode_ahead(watched())
    next(reader)
    next(reader)

    assert len(asked) <= 2 + stream._LOOK_AHEAD
    reader.close()  # type: ignore[attr-defined]
    assert len(asked) <= 2 + stream._LOOK_AHEAD


def _peak_bytes(folder: Path, count: int, runtime: Any) -> int:
    for number in range(count):
        _write(folder / "in" / f"{number}.png", _sheet((2, 3, 4, 2, PIT)))
    tracemalloc.start()
    _run(folder / "in", folder / "out", runtime)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak_bytes


def test_memory_does_not_grow_with_the_results(
    tmp_path: Path, grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectseg.image.rle.encode", lambda mask: "1 1 " * 10_000)
    few = _peak_bytes(tmp_path / "few", 30, grey_runtime())
    # Twice, since Python's own table of names may grow by 8 MB in one of them.
    many = min(_peak_bytes(tmp_path / name, 400, grey_runtime()) for name in ("many", "again"))

    assert (tmp_path / "many" / "out" / "predictions.csv").stat().st_size > 15_000_000
    assert many - few < 6_000_000


class _Jittery:
    """A GreyRuntime that several threads may call at once and that takes a random time to answer.

    Attributes:
        most_at_once: how many calls were in work at the same time.
    """

    name = "grey levels, late"

    def __init__(self, runtime: Any, parallel: int, longest_s: float = 0.004) -> None:
        self.info, self.parallel = runtime.info, parallel
        self.most_at_once = 0
        self.threads: set[str] = set()
        self._at_once = 0
        self._longest_s = longest_s
        self._runtime = runtime
        self._lock = threading.Lock()
        self._random = random.Random(1)

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.threads.add(threading.current_thread().name)
            seconds = self._random.uniform(0, self._longest_s)
        time.sleep(seconds)
        with self._lock:
            self._at_once -= 1
        answer: Answer = self._runtime(images)
        return answer


def _many_sheets(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(2)
    for number in range(count):
        corners = rng.integers(0, 12, (number % 4, 2)).tolist()
        sheet = _sheet(*((left, top, 5, 4, (PIT, CRACK, BOTH)[left % 3]) for left, top in corners))
        _write(folder / f"{number:03}.png", sheet)
    (folder / "010.png").write_bytes(b"not an image")
    return folder


def _contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_results_are_the_same_to_the_byte_for_one_worker_and_several(
    tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    folder = _many_sheets(tmp_path / "in", 40)
    results, at_once = [], []
    for parallel in (1, 2, 5):
        runtime = _Jittery(grey_runtime(), parallel)
        counts = _run(folder, tmp_path / f"out{parallel}", runtime)
        assert (counts.processed, counts.failed) == (39, 1)
        results.append(_contents(tmp_path / f"out{parallel}"))
        at_once.append(runtime.most_at_once)

    assert len(results[0]) == 2 * 39 + 5
    assert results[0] == results[1] == results[2]
    assert at_once[0] == 1
    assert 1 < at_once[1] <= 2
    assert 2 < at_once[2] <= 5


def test_the_network_is_called_from_threads_of_its_own_alone(tmp_path: Path, grey_runtime: Callable[..., Any]) -> None:
    runtime = _Jittery(grey_runtime(tile_hw=(8, 8), tile_overlap_px=2), 2, longest_s=0.0)

    _run(_many_sheets(tmp_path / "in", 12), tmp_path / "out", runtime)

    assert runtime.threads <= {"network_0", "network_1"}
    assert runtime.threads


def test_the_journal_grows_in_the_order_of_the_images_whatever_is_ready_first(
    tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    folder = _many_sheets(tmp_path / "in", 24)
    images = find_images([folder])
    with OutputFolder(tmp_path / "out", KEY) as output:
        pending = output.pending(images)
        run_batch(pending, _Jittery(grey_runtime(), 4), output, thresholds=grey_runtime().info.thresholds)
        lines = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()

    assert [json.loads(line)["image"]["ImageId"] for line in lines] == [image.image_id for image in images]


@pytest.mark.parametrize("error", [ResourceError("no memory"), ModelError("not a number"), KeyboardInterrupt()])
def test_an_error_in_one_of_several_network_threads_ends_the_batch_and_keeps_what_came_before(
    tmp_path: Path, grey_runtime: Callable[..., Any], error: BaseException
) -> None:
    folder = _many_sheets(tmp_path / "in", 40)
    grey = grey_runtime()

    def fail(call: int) -> None:
        if call == 25:
            raise error

    grey.before = fail
    threads = threading.active_count()  # other tests may have left some of a library's running
    with pytest.raises(type(error)):
        _run(folder, tmp_path / "out", _Jittery(grey, 3))

    with OutputFolder(tmp_path / "out", KEY) as output:
        left = output.pending(find_images([folder]))
    # Call 25 was for one of the images in work: the network's threads, its helpers, and those ready to be written.
    assert len(left) <= 40 - 25 + (3 + 8 + 4)
    assert threading.active_count() == threads


def test_an_interruption_gives_up_a_large_image_at_its_next_tile(
    tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    _write(tmp_path / "in" / "0.png", _sheet())
    _write(tmp_path / "in" / "1.png", _sheet(size_hw=(800, 800)))
    runtime = _Jittery(grey_runtime(tile_hw=(16, 24), tile_overlap_px=0), 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "in", tmp_path / "out", runtime, advance=interrupt)

    assert len(runtime._runtime.calls) < 200  # of 1,701


def test_images_in_work_share_a_budget_of_pixels_and_a_larger_one_goes_alone() -> None:
    budget = stream._Budget(100)
    together: list[int] = []
    held: list[int] = []
    lock = threading.Lock()

    def work(amount: int) -> None:
        with budget.held(amount):
            with lock:
                held.append(amount)
                together.append(sum(held) if 250 not in held else 1000 * (len(held) - 1))
            time.sleep(0.001)
            with lock:
                held.remove(amount)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 30, 30, 250, 60, 60, 250, 10, 90, 100] * 4))

    assert len(together) == 40
    assert max(together) <= 100


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_large_images_are_decoded_one_at_a_time_however_small_their_files(
    suffix: str, tmp_path: Path, grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lzw = (cv2.IMWRITE_TIFF_COMPRESSION, 5) if suffix == ".tif" else ()
    content = cv2.imencode(suffix, np.zeros((4001, 4000), np.uint8), lzw)[1].tobytes()
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}{suffix}").write_bytes(content)
    lock = threading.Lock()
    alone: list[bool] = []

    def decode(path: Path, **options: Any) -> None:
        alone.append(lock.acquire(blocking=False))
        time.sleep(0.01)
        if lock.locked():
            lock.release()
        raise ImageError(f"{path}: seen.")

    monkeypatch.setattr(image_files, "decode", decode)

    counts = _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    assert counts.failed == 6
    assert alone == [True] * 6


def test_times_are_gathered_for_each_stage_and_each_call_of_the_network(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    times = StageTimes()

    _run(sheets, tmp_path / "out", _Jittery(grey_runtime(tile_hw=(16, 12), tile_overlap_px=0), 1), times=times)

    # One of the four images cannot be decoded; the three others have two tiles each.
    assert times.counts == {"decode": 3, "infer": 6, "postprocess": 3, "render": 3, "write": 4}
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert times.mean_ms["infer"] == pytest.approx(1000 * times.seconds["infer"] / 6)


def test_times_of_what_never_happened_are_zero() -> None:
    assert set(StageTimes().mean_ms.values()) == {0.0}


def test_opencv_has_its_threads_back_after_a_run(
    sheets: Path, tmp_path: Path, grey_runtime: Callable[..., Any]
) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        _run(sheets, tmp_path / "out", grey_runtime())
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
