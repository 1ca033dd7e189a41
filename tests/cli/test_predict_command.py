"""`defectseg predict`: exact files, exit codes, what goes to which stream, and what its flags ask the library for."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Call = Callable[..., Any]

SIZE_HW = (64, 128)
FILES = {"predictions.csv", "images.csv", "regions.csv", "errors.csv", "run.json", "journal.jsonl"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def decode(encoded: str) -> NDArray[np.bool_]:
    """Severstal's rule word for word: pixels are numbered from 1, down the columns."""
    mask = np.zeros(SIZE_HW, np.bool_)
    numbers = [int(word) for word in encoded.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel % SIZE_HW[0], pixel // SIZE_HW[0]] = True
    return mask


def read_picture(path: Path) -> NDArray[np.uint8]:
    picture: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint8
    return np.asarray(picture, np.uint8)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to call commands in."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def inputs(data_folder: Path, work: Path) -> Path:
    """Five sheets, one of them in a subfolder, and one that is cut short."""
    folder = work / "night shift"
    images = sorted((data_folder / "train_images").iterdir())
    (folder / "line 2").mkdir(parents=True)
    for image in images[:4]:
        shutil.copy(image, folder)
    shutil.copy(images[4], folder / "line 2")
    (folder / "torn.jpg").write_bytes(images[5].read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def predicted(call_in: Call, run_folder: Path, inputs: Path, work: Path) -> Any:
    """The first prediction of `inputs`, into `results`."""
    return call_in(work, "predict", run_folder, inputs.name, "--out", "results", "--device", "cpu")


@pytest.mark.slow
def test_the_good_images_are_done_and_the_bad_one_is_listed_and_exits_with_3(predicted: Any, work: Path) -> None:
    results = work / "results"

    assert predicted.code == 3
    stems = ["line 2/sheet_00004", *(f"sheet_{number:05}" for number in range(4))]
    assert {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()} == {
        *(f"overlays/{stem}.jpg" for stem in stems),
        *(f"masks/{stem}.png" for stem in stems),
        *FILES,
    }
    (error,) = rows(results / "errors.csv")
    assert error["ImageId"] == "torn.jpg"
    assert "cut short" in error["error"]
    assert [(row["ImageId"], row["status"]) for row in rows(results / "images.csv")] == [
        *((f"{stem}.jpg", "defect") for stem in stems),
        ("torn.jpg", "unreadable"),
    ]
    summary, where = predicted.out.splitlines()
    assert summary.startswith("5 images processed, ")
    assert summary.endswith("images/s: 5 with a defect, 1 unreadable; 0 were done before.")
    assert where == "Results: results"
    (warning,) = (line for line in predicted.err.splitlines() if line.startswith("warning"))
    assert "torn.jpg" in warning


@pytest.mark.slow
def test_table_class_maps_and_overlays_agree(predicted: Any, work: Path) -> None:
    results = work / "results"
    table = rows(results / "predictions.csv")

    assert len(table) == 5 * 4
    for row in rows(results / "images.csv")[:5]:
        stem = row["ImageId"].removesuffix(".jpg")
        class_map = read_picture(results / "masks" / f"{stem}.png")
        mine = [one for one in table if one["ImageId"] == row["ImageId"]]
        assert [one["ClassId"] for one in mine] == ["1", "2", "3", "4"]
        masks = np.stack([decode(one["EncodedPixels"]) for one in mine])
        np.testing.assert_array_equal(masks.any(axis=0), class_map > 0)
        for class_id in np.unique(class_map[class_map > 0]).tolist():
            assert masks[class_id - 1][class_map == class_id].all()
        assert int(row["defect_area_px"]) == np.count_nonzero(class_map)

        overlay = read_picture(results / "overlays" / f"{stem}.jpg").astype(int)
        assert overlay.shape[0] > SIZE_HW[0]  # a legend below, as there are several classes
        picture = overlay[: SIZE_HW[0]]
        red = picture[..., 2] - picture[..., :2].max(axis=-1)
        np.testing.assert_array_equal(red > 45, class_map > 0)


@pytest.mark.slow
def test_a_second_call_does_what_is_missing_and_can_fail_for_a_defect(
    predicted: Any, call_in: Call, run_folder: Path, inputs: Path, work: Path
) -> None:
    results = shutil.copytree(work / "results", work / "again")
    (results / "overlays" / "sheet_00001.jpg").unlink()
    mended = shutil.copytree(inputs, work / "mended")
    shutil.copy(mended / "sheet_00000.jpg", mended / "torn.jpg")
    for path in inputs.rglob("*.*"):
        if path.name != "torn.jpg":
            os.utime(mended / path.relative_to(inputs), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))

    done = call_in(work, "predict", run_folder, mended, "--out", results, "--json", "--fail-on-defect")

    assert (done.code, done.err) == (10, "")
    summary = json.loads(done.out)
    assert (summary["processed"], summary["already_done"], summary["unreadable"]) == (2, 4, 0)
    assert summary["images_in_folder"] == {"defect": 6, "clean": 0, "blank": 0, "unreadable": 0}
    assert rows(results / "errors.csv") == []
    assert (results / "overlays" / "sheet_00001.jpg").exists()
    encoded = {"torn.jpg": [], "sheet_00000.jpg": []}  # type: dict[str, list[str]]
    for row in rows(results / "predictions.csv"):
        encoded.get(row["ImageId"], []).append(row["EncodedPixels"])
    assert encoded["torn.jpg"] == encoded["sheet_00000.jpg"] != []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "--out", "done", "--classes", "1"], 2, ["another model or other settings", "--overwrite"]),
        (["run", "--out", "done", "--tta", "flips"], 2, ["another model or other settings", "--overwrite"]),
        (["run", "--out", "new", "--classes", "1,rust"], 2, ["--classes: found rust", "2 (cracks)"]),
        (["run", "--out", "new", "--device", "tpu"], 2, ["--device: ", "tpu", "auto, cpu, cuda, cuda:N or mps"]),
        (["torn.safetensors", "--out", "new"], 4, ["torn.safetensors", "damaged"]),
        (["missing.safetensors", "--out", "new"], 4, ["missing.safetensors", "no such model file"]),
    ],
    ids=["other classes", "other views", "unknown class", "unknown device", "torn model", "missing model"],
)
def test_a_refusal_leaves_the_folder_alone(
    arguments: list[str],
    code: int,
    told: list[str],
    predicted: Any,
    refused: Call,
    run_folder: Path,
    inputs: Path,
    work: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(work / "results", tmp_path / "done")
    (tmp_path / "torn.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:5000])
    model = run_folder if arguments[0] == "run" else arguments[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*.*")}

    refused("predict", model, inputs, *arguments[1:], code=code, told=told)

    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere"], 4, ["nowhere: no such file or folder"]),
        (["nowhere/*.jpg"], 4, ["nowhere/*.jpg"]),
        (["empty"], 4, ["No image in empty", ".jpg"]),
        (["notes.txt"], 4, ["notes.txt", "not an image by its name"]),
        (["-"], 4, ["No image"]),
        ([""], 2, ["an INPUT is empty"]),
        (["out"], 4, ["No image in out", "results go there: choose another output folder"]),
    ],
    ids=["missing", "pattern", "no images", "not an image", "empty stdin", "empty variable", "the output folder"],
)
def test_inputs_without_an_image_are_refused_at_once(
    arguments: list[str], code: int, told: list[str], refused: Call, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").touch()

    refused("predict", "model.safetensors", *arguments, "--out", "out", code=code, told=told)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


RESULT: dict[str, Any] = {
    "processed": 1,
    "images_per_second": 2.0,
    "with_defect": 0,
    "blank": 1,
    "unreadable": 0,
    "already_done": 0,
    "low_bit_depth": {"images": 1, "of": 1, "brightest": 4000, "bit_depth": 12},
    "images_in_folder": {"defect": 0, "blank": 1},
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library was asked for; it answers RESULT."""
    asked: list[dict[str, Any]] = []

    def predict(models: Any, images: Any, out: Any, **options: Any) -> dict[str, Any]:
        asked.append({"models": models, "images": [image.image_id for image in images], "out": out, **options})
        return RESULT

    monkeypatch.setattr("defectseg.predict.predict.predict", predict)
    return asked


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Empty files by the names of images."""
    for name in ("in/a.png", "in/b.png", "in/deep/c.png", "single.JPG", "line 1/0.jpg", "line 2/1.jpg", "line 2/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "in"


def test_without_flags_everything_is_left_to_the_library(
    call: Call, sheets: Path, requests: list[dict[str, Any]]
) -> None:
    done = call("predict", "m.safetensors", "in", "--out", "out")

    assert (done.code, done.out) == (
        0,
        "1 images processed, 2.0 images/s: 0 with a defect, 1 blank, 0 unreadable; 0 were done before.\nResults: out\n",
    )
    low, hint = done.err.splitlines()
    assert low.startswith("warning: 1 of 1 16-bit images")
    assert hint.startswith("warning: If so, give --bit-depth 12;")
    (request,) = requests
    del request["progress"]
    unset = dict.fromkeys(("classes", "outputs", "overlays", "workers", "tta", "bit_depth"))
    assert request == unset | {
        "models": (Path("m.safetensors"),),
        "images": ["a.png", "b.png", "deep/c.png"],
        "out": Path("out"),
        "overwrite": False,
        "device": "auto",
        "runtime": "auto",
    }


def test_flags_reach_the_library(call: Call, sheets: Path, requests: list[dict[str, Any]]) -> None:
    flags = ("--runtime", "openvino", "--workers", 3, "--outputs", "rle, overlays,", "--overlays", "defects", "--json")

    done = call("predict", "a.xml,b.xml", "in", "--out", "o", *flags, "--bit-depth", 12, "--classes", "1,pit")

    assert (done.code, json.loads(done.out)) == (0, RESULT)
    (request,) = requests
    assert request["models"] == (Path("a.xml"), Path("b.xml"))
    assert (request["runtime"], request["workers"], request["bit_depth"]) == ("openvino", 3, 12)
    assert (request["outputs"], request["overlays"]) == (["rle", "overlays"], "defects")
    assert request["classes"] == ["1", "pit"]


def test_inputs_are_paths_on_stdin_patterns_files_and_folders(
    call: Call, sheets: Path, requests: list[dict[str, Any]]
) -> None:
    given = ["-", "line ?/[12].jpg", "single.JPG", "in", "--no-recursive"]

    done = call("predict", "m.xml", *given, "--out", "out", stdin="line 1/0.jpg\n\ngone.png\n")

    assert done.code == 0, "a path on standard input that is gone does not stop the others"
    assert requests[0]["images"] == ["0.jpg", "1.jpg", "2.jpg", "a.png", "b.png", "gone.png", "single.JPG"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--outputs", "overlay"], "--outputs: expected"),
        (["--outputs", ","], "--outputs: names nothing"),
        (["--overlays", "some"], "--overlays"),
        (["--outputs", "masks", "--overlays", "all"], "--overlays: all contradicts"),
        (["--workers", "0"], "--workers"),
        (["--bit-depth", "8"], "--bit-depth"),
        (["--bit-depth", "17"], "--bit-depth"),
        (["--tta", "flop"], "--tta"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_model_is_read(
    refused: Call, sheets: Path, flags: list[str], told: str
) -> None:
    refused("predict", "m.safetensors", sheets, "--out", "out", *flags, code=2, told=told)


def test_blank_images_fail_the_command_if_that_is_asked_for(
    call: Call, sheets: Path, requests: list[dict[str, Any]]
) -> None:
    assert call("predict", "m.safetensors", "in", "--out", "out", "--fail-on-blank").code == 3
