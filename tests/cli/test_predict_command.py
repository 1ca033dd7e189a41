"""`defectseg predict`: its files, exit codes and streams, and what its flags ask the library for."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.predict.tables import OutputChoice

Call = Callable[..., Any]

FILES = {"predictions.csv", "images.csv", "regions.csv", "errors.csv", "run.json", "journal.jsonl", "index.html"}


@pytest.mark.slow
def test_good_images_are_done_and_a_bad_one_is_listed_and_exits_with_3(
    call: Call, refused: Call, trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    folder, results = tmp_path / "night shift", tmp_path / "results"
    images = sorted((data_folder / "train_images").iterdir())
    (folder / "line 2").mkdir(parents=True)
    shutil.copy(images[0], folder / "line 2")
    shutil.copy(images[1], folder)
    (folder / "torn.jpg").write_bytes(images[2].read_bytes()[:900])
    command = ("predict", trained_run, folder, "--out", "results", "--device", "cpu")

    done = call(*command)

    assert done.code == 3
    stems = ["line 2/sheet_00000", "sheet_00001"]
    pictures = {f"{kind}/{stem}.{suffix}" for stem in stems for kind, suffix in (("overlays", "jpg"), ("masks", "png"))}
    assert {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()} == FILES | pictures
    with (results / "images.csv").open(newline="") as handle:
        status = {row["ImageId"]: row["status"] for row in csv.DictReader(handle)}
    assert [*status] == ["line 2/sheet_00000.jpg", "sheet_00001.jpg", "torn.jpg"]
    assert status["torn.jpg"] == "unreadable"
    summary, where = done.out.splitlines()
    defects = [*status.values()].count("defect")
    assert summary.startswith("2 images processed, ")
    assert summary.endswith(f"images/s: {defects} with a defect, 1 unreadable; 0 were done before.")
    assert where == "Results: results/index.html"
    (warning,) = (line for line in done.err.splitlines() if line.startswith("warning"))
    assert "torn.jpg" in warning
    assert call(*command).out.startswith("0 images processed: 0 with a defect, 1 unreadable; 2 were done before.\n")
    refused(*command, "--classes", "1", code=2, told=["another model or other settings", "--overwrite"])


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
    "warnings": ["1 of 1 16-bit images are nearly black"],
    "unlike": {"state": "judged", "images": 0, "differs": ""},
    "images_in_folder": {"defect": 1, "blank": 1},
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
    assert done.err == "warning: 1 of 1 16-bit images are nearly black\n"
    (request,) = requests
    del request["progress"]
    unset = dict.fromkeys(("classes", "fail_on", "workers", "tta", "bit_depth", "shard"))
    assert request == unset | {
        "models": (Path("m.safetensors"),),
        "images": ["a.png", "b.png", "deep/c.png"],
        "out": Path("out"),
        "choice": OutputChoice(),
        "overwrite": False,
        "device": "auto",
        "runtime": "auto",
        "engine": "local",
    }


def test_flags_reach_the_library(call: Call, sheets: Path, requests: list[dict[str, Any]]) -> None:
    flags = (
        "--runtime",
        "openvino",
        "--workers",
        3,
        "--outputs",
        "rle, regions, overlays,",
        "--overlays",
        "defects",
        "--json",
    )
    more = ("--bit-depth", 12, "--classes", "1,pit", "--group", "c.")

    done = call("predict", "a.xml,b.xml", "in", "--out", "o", *flags, *more)

    assert (done.code, json.loads(done.out)) == (0, RESULT)
    (request,) = requests
    assert request["models"] == (Path("a.xml"), Path("b.xml"))
    assert (request["runtime"], request["workers"], request["bit_depth"]) == ("openvino", 3, 12)
    assert request["choice"] == OutputChoice(("overlays", "rle", "regions"), "defects", None, "c.")
    assert request["classes"] == ["1", "pit"]


def test_inputs_are_paths_on_stdin_patterns_files_and_folders(
    call: Call, sheets: Path, requests: list[dict[str, Any]]
) -> None:
    given = ["-", "line ?/[12].jpg", "single.JPG", "in", "--no-recursive"]

    done = call("predict", "m.xml", *given, "--out", "out", stdin="\ufeffline 1/0.jpg\r\n\ngone.png\n")

    assert done.code == 0, "a path on standard input that is gone does not stop the others"
    assert requests[0]["images"] == ["0.jpg", "1.jpg", "2.jpg", "a.png", "b.png", "gone.png", "single.JPG"]


def test_blank_images_fail_the_command_if_that_is_asked_for(
    call: Call, sheets: Path, requests: list[dict[str, Any]]
) -> None:
    assert call("predict", "m.safetensors", "in", "--out", "out", "--fail-on-blank").code == 3


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["--fail-on-defect"], "any"),
        (["--fail-on", "pit:area_px=5,2"], "pit:area_px=5,2"),
        (["--fail-on", "pit:area_px=5", "--fail-on-defect"], "any,pit:area_px=5"),
    ],
)
@pytest.mark.parametrize(
    ("first", "told"),
    [
        ([], "0 images in out meet a>=1.\n"),
        (["a.png", "b.png"], "2 images in out meet a>=1: a.png, b.png.\n"),
        ([f"{n}.png" for n in range(5)], "5 images in out meet a>=1: 0.png, 1.png, 2.png and 2 more.\n"),
    ],
)
def test_images_that_meet_a_rule_fail_the_command_and_are_told(
    call: Call,
    sheets: Path,
    requests: list[dict[str, Any]],
    flags: list[str],
    asked: str,
    first: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RESULT, "fail_on", {"rules": "a>=1", "images": len(first), "first": first})

    done = call("predict", "m.safetensors", "in", "--out", "out", *flags)

    assert done.code == (10 if first else 0)
    assert told in done.out
    assert requests[0]["fail_on"] == asked


@pytest.mark.parametrize(("flags", "code"), [([], 3), (["--max-unreadable", "1"], 0), (["--max-unreadable", "9%"], 3)])
def test_so_many_unreadable_images_are_accepted_as_the_flag_says(
    call: Call,
    sheets: Path,
    requests: list[dict[str, Any]],
    flags: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RESULT, "unreadable", 1)
    monkeypatch.setitem(RESULT, "already_done", 9)

    done = call("predict", "m.safetensors", "in", "--out", "out", *flags)

    assert done.code == code
    assert "1 unreadable" in done.out


@pytest.mark.parametrize(("text", "size"), [("0.5", (0.5, 0.5)), ("0.5x0.8", (0.5, 0.8)), ("2X1", (2.0, 1.0))])
def test_the_size_of_a_pixel_reaches_the_library(
    call: Call, sheets: Path, requests: list[dict[str, Any]], text: str, size: tuple[float, float]
) -> None:
    assert call("predict", "m.safetensors", "in", "--out", "out", "--mm-per-px", text).code == 0
    assert requests[0]["choice"].mm_per_px == size


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--outputs", "overlay"], "--outputs: expected"),
        (["--outputs", ","], "--outputs: names nothing"),
        (["--overlays", "some"], "--overlays"),
        (["--outputs", "masks", "--overlays", "all"], "--overlays: all contradicts"),
        (["--workers", "0"], "--workers"),
        *(
            (["--mm-per-px", size], f"--mm-per-px {size}: expected mm")
            for size in ("0", "0,5", "1x2x3", "1e-3", "x", "nan")
        ),
        (["--mm-per-px", "0.5", "--outputs", "masks"], "--mm-per-px: needs regions.csv"),
        (["--max-unreadable", "2.5"], "--max-unreadable: expected a number such as 3, or 0% to 100%; found 2.5"),
        (["--bit-depth", "8"], "--bit-depth"),
        (["--bit-depth", "17"], "--bit-depth"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_model_is_read(
    refused: Call, sheets: Path, flags: list[str], told: str
) -> None:
    refused("predict", "m.safetensors", sheets, "--out", "out", *flags, code=2, told=told)


def test_models_and_devices_that_cannot_be_used_are_refused(refused: Call, write_model: Call, sheets: Path) -> None:
    good, torn = (write_model(sheets.parent / f"{name}.safetensors") for name in ("good", "torn"))
    torn.write_bytes(torn.read_bytes()[:-1])
    flags = (sheets, "--out", "out")
    refused("predict", good, *flags, "--device", "tpu", code=2, told=["--device: ", "auto, cpu, cuda, cuda:N or mps"])
    refused("predict", torn, *flags, code=4, told=["torn.safetensors", "damaged"])
    refused("predict", "gone.xml", *flags, code=4, told=["gone.xml", "no such model file"])
    assert not (sheets.parent / "out").exists()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (["cat", "/dev/zero"], "no list of paths"),
        (["printf", "\\000a/b.jpg\\n"], "no list of paths"),
        (["yes", "a.jpg"], "--max-gb"),
    ],
    ids=["a line without end", "UTF-16", "a list without end"],
)
def test_a_list_that_is_none_or_has_no_end_is_refused(source: list[str], told: str) -> None:
    with subprocess.Popen(source, stdout=subprocess.PIPE) as lines:
        command = [sys.executable, "-m", "defectseg", "--max-gb", "0.1", "predict", "m.xml", "-", "--out", "out"]
        done = subprocess.run(command, stdin=lines.stdout, capture_output=True, text=True, timeout=100, check=False)
        lines.kill()
    assert (done.returncode, told in done.stderr) == (4, True), done.stderr
