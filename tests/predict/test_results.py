import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.image import read as image_files
from defectseg.image.find import find_images
from defectseg.image.read import DecodedImage
from defectseg.inference.settings import Settings
from defectseg.predict.output import output_folder
from defectseg.predict.predict import run_batch

STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them


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


def _run(folder: Path, out: Path, runtime: Any, **options: Any) -> dict[str, Any]:
    with output_folder(out, {}) as output:
        images = output.pending(find_images([folder], keep_faulty=True))
        counts = run_batch(images, runtime, runtime.settings, output, **options)
        output.finish({"status": "finished"})
    return counts


def _counts(processed: int, with_defect: int, unreadable: int) -> dict[str, Any]:
    counts = {"processed": processed, "with_defect": with_defect, "unreadable": unreadable}
    return {**counts, "blank": 0, "low_bit_depth": None}


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

    assert counts == _counts(3, 2, 1)
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
    runtime = grey_runtime()
    runtime.settings = Settings.of(runtime.info, classes=(2,))
    counts = _run(sheets, tmp_path / "out", runtime)

    assert counts["with_defect"] == 2
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

    assert counts == _counts(5, 2, 9)
    errors = _rows(tmp_path / "out" / "errors.csv")
    assert [row["ImageId"] for row in errors] == unreadable
    assert errors[0]["path"] == f"{sheets}/%8F%E0.png"
    images = {row["ImageId"]: row["status"] for row in _rows(tmp_path / "out" / "images.csv")}
    assert sorted(image_id for image_id, status in images.items() if status == "unreadable") == unreadable
    assert images["x.png/inner.png"] == images["x" * 251 + ".png"] == "clean"
    assert _run(sheets, tmp_path / "out", grey_runtime()) == _counts(0, 0, 9)


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
    assert _run(tmp_path / "in", tmp_path / "out", runtime)["with_defect"] == 0

    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime())["with_defect"] == 1
    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime())["processed"] == 0


@pytest.mark.parametrize(("times", "expected"), [(1, _counts(1, 1, 0)), (2, _counts(0, 0, 1))])
def test_an_image_replaced_while_it_is_decoded_is_read_once_more(
    tmp_path: Path,
    grey_runtime: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    expected: dict[str, Any],
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
    assert len(errors) == expected["unreadable"]

    assert _run(tmp_path / "in", tmp_path / "out", grey_runtime()) == _counts(
        expected["unreadable"], expected["unreadable"], 0
    )


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

    assert counts == _counts(4, 4, 0)
    areas = [row["defect_area_percent"] for row in _rows(tmp_path / "out" / "images.csv")]
    assert areas == ["100.0000"] * 4


@pytest.mark.parametrize("size_hw", [(70_000, 1), (2, 70_000)])
def test_an_overlay_too_long_for_a_jpeg_is_shrunk_and_said_so(
    tmp_path: Path, size_hw: tuple[int, int], grey_runtime: Callable[..., Any]
) -> None:
    _write(tmp_path / "in" / "long.png", np.full(size_hw, PIT, np.uint8))

    counts = _run(tmp_path / "in", tmp_path / "out", grey_runtime())

    assert counts["with_defect"] == 1
    assert "overlay shrunk to" in _rows(tmp_path / "out" / "images.csv")[0]["notes"]
    assert max(_read(tmp_path / "out" / "overlays" / "long.jpg").shape) == 65_500


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
    results = []
    for parallel in (1, 2, 5):
        counts = _run(folder, tmp_path / f"out{parallel}", grey_runtime(parallel=parallel, longest_s=0.004))
        assert (counts["processed"], counts["unreadable"]) == (39, 1)
        results.append(_contents(tmp_path / f"out{parallel}"))

    assert len(results[0]) == 2 * 39 + 5
    assert results[0] == results[1] == results[2]
