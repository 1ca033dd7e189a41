"""Every command through the real executable: exact files, exit codes, and what goes to which stream."""

import csv
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import defectseg
from defectseg.cli import bars, options
from defectseg.cli.main import main

COMMAND = [sys.executable, "-m", "defectseg"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1]), "COLUMNS": "200"}
PREDICT_FILES = {
    *("overlays", "masks", "predictions.csv", "images.csv", "regions.csv", "errors.csv", "run.json", "journal.jsonl"),
}
EVALUATE_FILES = {"metrics.json", "pairs.csv", "report.html"}
SIZE_HW = (64, 128)

with_torch = pytest.mark.slow


def run(*arguments: str | Path, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Call `defectseg` in a folder; torch takes some seconds to start."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *told: str) -> None:
    """The exit code, nothing on stdout, and one line on stderr that holds each of the words."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in told:
        assert word in line


class Call(Protocol):
    """Calls the command line in this process, which is quick, as if it were one of its own."""

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def _own_process() -> Iterator[None]:
    """Puts back what the command line sets for the whole process."""
    logger = logging.getLogger("defectseg")
    before = logger.handlers, logger.level, logger.propagate
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield
    logger.handlers, logger.level, logger.propagate = before
    options.state.verbose = False
    for one, handler in handlers.items():
        signal.signal(one, handler)


@pytest.fixture
def call(
    _own_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line in the test's folder, with nothing on stdin."""

    def call_main(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = ["defectseg", *map(str, arguments)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GOMP_SPINCOUNT", "1")
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(argv, int(ended.value.code or 0), captured.out, captured.err)

    return call_main


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


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
def run_folder(trained_run: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model reports the most suspect twentieth of the pixels: defects of each class, everywhere."""
    from defectseg.image.read import decode as decode_image
    from defectseg.model.bundle import read_bundle, save_bundle
    from defectseg.model.info import Thresholds
    from defectseg.runtime.torch import load_torch_runtime

    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(trained_run, folder)
    model = folder / "model.safetensors"
    runtime = load_torch_runtime(model, "cpu")
    images = [decode_image(path).pixels for path in sorted((data_folder / "train_images").iterdir())]
    answer = runtime(np.stack(images)[:, None])
    pixel = np.quantile(answer.probabilities, 0.95, axis=(0, 2, 3)).clip(0, 1)
    thresholds = Thresholds(gate=(0.0,) * 4, pixel=tuple(map(float, pixel)), min_area_px=(3,) * 4)
    info, weights = read_bundle(model)
    save_bundle(model, weights, info.model_copy(update={"thresholds": thresholds}))
    return folder


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
def predicted(run_folder: Path, inputs: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """The first prediction of `inputs`, into `results`."""
    return run("predict", run_folder, inputs.name, "--out", "results", "--device", "cpu", cwd=work)


@pytest.fixture(scope="module")
def scored(run_folder: Path, data_folder: Path, work: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """The whole data folder evaluated and predicted by one model, and the predictions evaluated."""
    model, images = run_folder / "model.safetensors", data_folder / "train_images"
    by_model = run("evaluate", model, "--data", data_folder, "--out", "by-model", cwd=work)
    prediction = run("predict", model, images, "--out", "all", cwd=work)
    by_file = run(
        *("evaluate", "--predictions", "all/predictions.csv", "--data", data_folder, "--out", "by-file", "--json"),
        cwd=work,
    )
    return {"by model": by_model, "prediction": prediction, "by file": by_file}


# predict


@with_torch
def test_predict_does_the_good_images_lists_the_bad_one_and_exits_with_3(
    predicted: subprocess.CompletedProcess[str], work: Path
) -> None:
    results = work / "results"

    assert predicted.returncode == 3
    stems = ["line 2/sheet_00004", *(f"sheet_{number:05}" for number in range(4))]
    assert files(results) == {
        *(f"overlays/{stem}.jpg" for stem in stems),
        *(f"masks/{stem}.png" for stem in stems),
        *(PREDICT_FILES - {"overlays", "masks"}),
    }
    (error,) = rows(results / "errors.csv")
    assert error["ImageId"] == "torn.jpg"
    assert "cut short" in error["error"]
    assert [(row["ImageId"], row["status"]) for row in rows(results / "images.csv")] == [
        *((f"{stem}.jpg", "defect") for stem in stems),
        ("torn.jpg", "unreadable"),
    ]
    summary, where = predicted.stdout.splitlines()
    assert summary.startswith("5 images processed")
    assert summary.endswith("5 with a defect, 1 unreadable; 0 were done before.")
    assert where == "Results: results"
    (warning,) = (line for line in predicted.stderr.splitlines() if line.startswith("warning"))
    assert "torn.jpg" in warning


@with_torch
def test_predictions_masks_and_overlays_say_the_same(
    predicted: subprocess.CompletedProcess[str], inputs: Path, work: Path
) -> None:
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


@with_torch
def test_predict_again_does_what_is_missing_and_tells_of_defects_in_its_exit_code(
    predicted: subprocess.CompletedProcess[str], run_folder: Path, inputs: Path, work: Path
) -> None:
    results = shutil.copytree(work / "results", work / "again")
    (results / "overlays" / "sheet_00001.jpg").unlink()
    mended = shutil.copytree(inputs, work / "mended")
    shutil.copy(mended / "sheet_00000.jpg", mended / "torn.jpg")
    for path in inputs.rglob("*.*"):
        if path.name != "torn.jpg":
            os.utime(mended / path.relative_to(inputs), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))

    done = run("predict", run_folder, mended, "--out", results, "--json", "--fail-on-defect", cwd=work)

    assert done.returncode == 10, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["processed"], summary["already_done"], summary["unreadable"]) == (2, 4, 0)
    assert summary["images_in_folder"] == {"defect": 6, "clean": 0, "blank": 0, "unreadable": 0}
    assert done.stderr == ""
    assert rows(results / "errors.csv") == []
    assert (results / "overlays" / "sheet_00001.jpg").exists()
    by_image = {
        image_id: [row["EncodedPixels"] for row in rows(results / "predictions.csv") if row["ImageId"] == image_id]
        for image_id in ("torn.jpg", "sheet_00000.jpg")
    }
    assert by_image["torn.jpg"] == by_image["sheet_00000.jpg"]


@with_torch
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "--out", "done", "--classes", "1"], 2, ["another model or other settings", "--overwrite"]),
        (["run", "--out", "new", "--classes", "1,rust"], 2, ["--classes: found rust", "2 (cracks)"]),
        (["run", "--out", "new", "--device", "tpu"], 2, ["--device", "tpu", "auto, cpu, cuda, cuda:N or mps"]),
        (["run", "--out", "new", "--device", "cuda:99"], 4, ["--device", "cuda:99"]),
        (["torn.safetensors", "--out", "new"], 4, ["torn.safetensors", "damaged"]),
        (["missing.safetensors", "--out", "new"], 4, ["missing.safetensors", "no such model file"]),
        (["run", "--out", "done", "--tta", "flips"], 2, ["another model or other settings", "--overwrite"]),
        (["run", "--out", "new", "--tta", "flop"], 2, ["--tta", "flop", "none, flips, turns"]),
        (["torn.safetensors,", "--out", "new"], 4, ["torn.safetensors,", "one comma between"]),
    ],
    ids=[
        *("other settings", "unknown class", "unknown device", "absent device", "torn model", "missing model"),
        *("other views", "unknown views", "half a list"),
    ],
)
def test_predict_refuses_in_one_line(
    arguments: list[str],
    code: int,
    told: list[str],
    predicted: subprocess.CompletedProcess[str],
    call: Call,
    run_folder: Path,
    inputs: Path,
    work: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(work / "results", tmp_path / "done")
    (tmp_path / "torn.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:5000])
    model = run_folder if arguments[0] == "run" else arguments[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*.*")}

    done = call("predict", model, inputs, *arguments[1:])

    assert_refused(done, code, *told)
    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*.*")} == before


@with_torch
def test_inputs_may_be_a_list_on_stdin_a_pattern_a_file_and_a_folder_without_its_subfolders(
    run_folder: Path, inputs: Path, work: Path
) -> None:
    listed = f"{inputs}/sheet_00000.jpg\n\n{inputs}/line 2/sheet_00004.jpg\n"
    (work / "flat" / "deep").mkdir(parents=True)
    for name in ("flat/x.jpg", "flat/deep/y.jpg", "single.JPG"):
        shutil.copy(inputs / "sheet_00003.jpg", work / name)

    given = ["-", f"{inputs}/sheet_0000[12].jpg", "single.JPG", "flat"]
    flags = ["--no-recursive", "--out", "mixed", "--classes", "4, pits"]
    done = run("predict", run_folder, *given, *flags, cwd=work, stdin=listed)

    assert done.returncode == 0, done.stderr
    table = rows(work / "mixed" / "images.csv")
    assert [row["ImageId"] for row in table] == [
        *("sheet_00000.jpg", "sheet_00001.jpg", "sheet_00002.jpg", "sheet_00004.jpg", "single.JPG", "x.jpg"),
    ]
    found = {name for row in table for name in row["classes"].split("; ")}
    assert found <= {"pits", "patches", ""}
    assert found & {"pits", "patches"}
    encoded = {row["ClassId"] for row in rows(work / "mixed" / "predictions.csv") if row["EncodedPixels"]}
    assert encoded <= {"1", "4"}


@with_torch
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_prediction_exits_with_130_and_can_be_continued(
    stop: signal.Signals, run_folder: Path, inputs: Path, tmp_path: Path
) -> None:
    for copy in range(60):
        shutil.copytree(inputs, tmp_path / "in" / f"{copy:02}", ignore=shutil.ignore_patterns("torn.jpg"))
    command = [*COMMAND, "predict", str(run_folder), "in", "--out", "out"]
    journal = tmp_path / "out" / "journal.jsonl"
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        patience = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.005)
        process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    if stop is signal.SIGINT:
        return  # continuing is the same for both

    done = run("predict", run_folder, "in", "--out", "out", "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["processed"] + summary["already_done"] == 300
    assert summary["already_done"] >= 1
    assert names(tmp_path / "out") == PREDICT_FILES
    answers: dict[tuple[str, str], set[str]] = {}
    for row in rows(tmp_path / "out" / "predictions.csv"):
        answers.setdefault((row["ImageId"][3:], row["ClassId"]), set()).add(row["EncodedPixels"])
    assert len(answers) == 5 * 4
    assert all(len(encoded) == 1 for encoded in answers.values()), "copies of an image get the same answer"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere"], 4, ["nowhere: no such file or folder"]),
        (["nowhere/*.jpg"], 4, ["nowhere/*.jpg"]),
        (["empty"], 4, ["No image in empty", ".jpg"]),
        (["notes.txt"], 4, ["notes.txt", "not an image by its name"]),
        (["-"], 4, ["No image"]),
        ([""], 2, ["an INPUT is empty"]),
    ],
    ids=["missing", "pattern without match", "no images", "not an image", "empty stdin", "empty variable"],
)
def test_predict_without_images_is_refused_at_once(
    arguments: list[str], code: int, told: list[str], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()

    done = call("predict", "model.safetensors", *arguments, "--out", "out")

    assert_refused(done, code, *told)
    assert not (tmp_path / "out").exists()


def test_results_into_the_input_folder_itself_are_refused(call: Call, data_folder: Path) -> None:
    images = data_folder / "train_images"
    before = names(images)

    done = call("predict", "model.safetensors", images, "--out", images)

    assert_refused(done, 4, "No image in", "results go there: choose another output folder")
    assert names(images) == before


def test_verbose_adds_the_traceback_of_an_error(call: Call) -> None:
    done = call("predict", "model.safetensors", "nowhere", "--out", "out", "--verbose")

    assert done.returncode == 4
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: nowhere: no such file or folder")


@with_torch
def test_a_list_of_models_and_views_at_test_time_are_told_in_the_result(
    predicted: subprocess.CompletedProcess[str], run_folder: Path, inputs: Path, work: Path
) -> None:
    copied = shutil.copy(run_folder / "model.safetensors", work / "copy.safetensors")
    arguments: list[str | Path] = [inputs / "line 2", "--device", "cpu", "--json", "--out"]

    twice = run("predict", f"{run_folder},{copied}", *arguments, "twice", cwd=work)
    mirrored = run("predict", run_folder, *arguments, "mirrored", "--tta", "flips", cwd=work)

    assert (twice.returncode, mirrored.returncode) == (0, 0), twice.stderr + mirrored.stderr
    told = json.loads(twice.stdout)
    assert told["runtime"].startswith("ensemble of 2: openvino cpu")
    assert (told["tta"], json.loads(mirrored.stdout)["tta"]) == ("none", "flips")
    # A model with itself finds what it finds alone.
    alone = [row for row in rows(work / "results" / "predictions.csv") if row["ImageId"].startswith("line 2/")]
    encoded = [row["EncodedPixels"] for row in rows(work / "twice" / "predictions.csv")]
    assert encoded == [row["EncodedPixels"] for row in alone]
    assert encoded != [row["EncodedPixels"] for row in rows(work / "mirrored" / "predictions.csv")]


# evaluate


@with_torch
def test_evaluate_writes_exactly_its_files_and_warns_of_images_that_were_trained_on(
    scored: dict[str, subprocess.CompletedProcess[str]], data_folder: Path, work: Path
) -> None:
    done = scored["by model"]

    assert done.returncode == 0, done.stderr
    assert names(work / "by-model") == EVALUATE_FILES | {"overlays"}
    images = sorted((data_folder / "train_images").iterdir())
    assert files(work / "by-model" / "overlays") == {f"{image.stem}.jpg" for image in images}
    assert done.stderr == (
        "warning: the model was trained on 18 of these 24 images; the subset val gives an honest score\n"
    )
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["class", "images"]
    assert [line.split()[0] for line in lines[1:6]] == ["pits", "cracks", "scratches", "patches", "all"]
    assert lines[6] == f"Report: {Path('by-model') / 'report.html'}"


@with_torch
@pytest.mark.parametrize("command", ["evaluate", "tune", "predict"])
def test_commands_name_the_flag_for_images_of_fewer_bits_once_and_take_it(
    command: str, run_folder: Path, data_folder: Path, call: Call, tmp_path: Path
) -> None:
    deep = shutil.copytree(data_folder, tmp_path / "deep")
    for path in (deep / "train_images").iterdir():
        wide = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).astype(np.uint16) * 16
        path.write_bytes(cv2.imencode(".png", wide)[1].tobytes())
    arguments: tuple[str | Path, ...] = {
        "evaluate": ("--data", deep, "--out", "out", "--overwrite"),
        "tune": ("--data", deep, "--dry-run"),
        "predict": (deep, "--out", "out", "--overwrite"),
    }[command]
    silent = call(command, run_folder, *arguments)
    assert silent.stderr.count("16-bit images") == silent.stderr.count("--bit-depth 12") == 1
    told = call(command, run_folder, *arguments, "--bit-depth", "12")
    assert (silent.returncode, told.returncode) == (0, 0)
    assert "bit" not in told.stderr


@with_torch
def test_predict_evaluate_and_an_independent_scorer_agree(
    scored: dict[str, subprocess.CompletedProcess[str]], data_folder: Path, work: Path
) -> None:
    assert scored["prediction"].returncode == 0
    assert scored["by file"].returncode == 0, scored["by file"].stderr
    assert scored["by file"].stderr == ""
    assert names(work / "by-file") == EVALUATE_FILES
    printed = json.loads(scored["by file"].stdout)
    stored = [json.loads((work / name / "metrics.json").read_text()) for name in ("by-model", "by-file")]
    truth = {(row["ImageId"], row["ClassId"]): row["EncodedPixels"] for row in rows(data_folder / "train.csv")}

    dice = []
    for row in rows(work / "all" / "predictions.csv"):
        one, other = decode(row["EncodedPixels"]), decode(truth.get((row["ImageId"], row["ClassId"]), ""))
        total = one.sum() + other.sum()
        dice.append(2 * (one & other).sum() / total if total else 1.0)

    assert len(dice) == 24 * 4
    kaggle_dice = sum(dice) / len(dice)
    assert 0 < kaggle_dice < 1
    for figures in (printed, *stored):
        assert figures["kaggle_dice"] == pytest.approx(kaggle_dice, abs=1e-6)


@with_torch
def test_evaluating_the_validation_images_needs_the_split_of_the_run(
    call: Call, run_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(run_folder / "model.safetensors", tmp_path / "lone.safetensors")
    arguments: list[str | Path] = ["--data", data_folder, "--subset", "val", "--out"]

    done = run("evaluate", run_folder, *arguments, "val", "--json", cwd=tmp_path)
    refused = call("evaluate", "lone.safetensors", *arguments, "other")

    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["images"], done.stderr) == (6, "")
    assert_refused(refused, 2, "no split.csv beside lone.safetensors", "--split: ")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, ["MODEL or --predictions"]),
        (["m.safetensors", "--predictions", "p.csv"], 2, ["MODEL or --predictions"]),
        (["--predictions", "p.csv"], 4, ["p.csv"]),
        (["m.safetensors", "--out", "out", "--subset", "test"], 2, ["--subset test", "all, train or val"]),
        (["m.safetensors,", "--out", "out"], 4, ["m.safetensors,", "one comma between"]),
        (["l.safetensors,m.safetensors", "--out", "out"], 4, ["l.safetensors: no such model file"]),
    ],
    ids=["neither", "both", "no predictions", "unknown subset", "half a list", "missing models"],
)
def test_evaluate_refuses_in_one_line(
    arguments: list[str], code: int, told: list[str], call: Call, data_folder: Path
) -> None:
    assert_refused(call("evaluate", *arguments, "--data", data_folder), code, *told)


# train, demo


@with_torch
def test_train_writes_exactly_its_run_folder_and_refuses_it_the_second_time(
    call: Call, data_folder: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = [
        "train",
        tiny_recipe,
        "--data",
        data_folder,
        "--out",
        "run",
        "--set",
        "training.epochs=1",
    ]

    done = run(*arguments, "--json", "--device", "cpu", cwd=tmp_path)
    again = call(*arguments)

    assert done.returncode == 0, done.stderr
    expected = {"request.json", "model.safetensors", "last.ckpt", "config.yaml", "split.csv", "metrics.jsonl"}
    expected |= {"curves.png"}
    assert names(tmp_path / "run") == expected
    result = json.loads(done.stdout)
    assert result["model"] == str(Path("run") / "model.safetensors")
    assert result["validation"]["images"] == 6
    assert "epoch 1/1" in done.stderr
    assert_refused(again, 2, "run: not empty", "--resume")


def test_a_recipe_can_be_shown_and_its_mistakes_are_told_at_once(tmp_path: Path) -> None:
    done = run("train", "demo", "--set", "training.epochs=7", "--print-config", cwd=tmp_path)
    refused = run("train", "demo", "--set", "training.epoch=7", "--set", "seed=-1", cwd=tmp_path)

    assert done.returncode == 0
    assert "\n  epochs: 7\n" in done.stdout
    assert_refused(refused, 2, "did you mean 'epochs'?", "seed")


# data, info


def test_data_synthesize_and_split_write_exactly_their_files(call: Call, tmp_path: Path) -> None:
    made = call("data", "synthesize", "--out", "sheets", "--images", "6", "--size", "64x128", "--seed", "2")
    again = call("data", "synthesize", "--out", "sheets")
    split = call("data", "split", "sheets", "--folds", "3")
    split_again = call("data", "split", "sheets")

    assert (made.returncode, made.stdout, made.stderr) == (0, "6 sheets: sheets\n", "")
    images = {f"train_images/sheet_{number:05}.jpg" for number in range(6)}
    assert files(tmp_path / "sheets") == {"train.csv", "classes.txt", "split.csv", *images}
    assert_refused(again, 2, "sheets", "not empty")
    assert_refused(call("demo", "--out", "sheets"), 2, "sheets: not empty. Choose another --out.")
    assert split.returncode == 0, split.stderr
    folds = {row["ImageId"]: row["fold"] for row in rows(tmp_path / "sheets" / "split.csv")}
    assert set(folds) == {Path(image).name for image in images}
    assert set(folds.values()) == {"0", "1", "2"}
    assert_refused(split_again, 2, "split.csv: exists", "--overwrite")


def test_info_describes_a_model_without_running_it(trained_run: Path, tmp_path: Path) -> None:
    done, shown = run("info", trained_run, "--json", cwd=tmp_path), run("info", trained_run, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert content["classes"] == {"1": "pits", "2": "cracks", "3": "scratches", "4": "patches"}
    assert (content["trained_on_images"], content["fold_held_out"]) == (18, 0)
    scores = next(line for line in shown.stdout.splitlines() if line.startswith("metrics, tuned "))
    assert f"kaggle dice {content['metrics']['tuned']['kaggle_dice']:.4g}, all empty " in scores


@with_torch
def test_info_describes_the_machine(tmp_path: Path) -> None:
    done = run("info", "--json", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert content["defectseg"] == defectseg.__version__
    assert {"torch", "openvino"} <= set(content["runtimes"]) <= {"torch", "openvino", "onnxruntime"}
    for runtime in content["runtimes"].values():
        assert runtime["version"]
        assert runtime["devices"][0].startswith("cpu")


def test_info_tells_of_a_runtime_that_is_installed_and_cannot_be_imported(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "defectseg.runtime.onnx", None)

    done = call("info")

    (line,) = (line for line in done.stdout.splitlines() if line.startswith("runtimes, onnxruntime"))
    assert "cannot be imported: ModuleNotFoundError" in line


# The command line itself


def test_version_and_unknown_commands(tmp_path: Path) -> None:
    version = run("--version", cwd=tmp_path)
    unknown = run("predcit", cwd=tmp_path)

    assert (version.returncode, version.stdout, version.stderr) == (0, f"defectseg {defectseg.__version__}\n", "")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "No such command 'predcit'" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_bug_exits_with_1_and_asks_for_a_report(tmp_path: Path) -> None:
    code = (
        "import sys, defectseg.image.find as images\n"
        "def broken(*_, **__): raise KeyError('oops')\n"
        "images.find_images = broken\n"
        "sys.argv = ['defectseg', 'predict', 'm', 'in', '--out', 'out']\n"
        "from defectseg.cli.main import main\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )

    assert_refused(done, 1, "unexpected KeyError: 'oops'", "a bug in defectseg", "--verbose")


@pytest.mark.usefixtures("_own_process")
def test_progress_goes_to_stderr_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    bars.set_up_logging()
    with bars.progress_bar("predicting") as progress:
        progress(1, 2)
        progress(2, 0, "b.jpg")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["predicting: 1 of 2", "predicting: 2 b.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_a_pipe_gets_plain_results(tmp_path: Path) -> None:
    import pty

    screen, stderr = pty.openpty()
    command = [*COMMAND, "data", "synthesize", "--out", "sheets", "--images", "3", "--size", "64x128"]
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=stderr, timeout=120, check=False
    )
    os.close(stderr)
    shown = b""
    try:
        while chunk := os.read(screen, 65536):
            shown += chunk
    except OSError:  # Linux ends the other side so
        pass
    os.close(screen)

    assert (done.returncode, done.stdout) == (0, b"3 sheets: sheets\n")
    assert b"making sheets" in shown
    assert b"\x1b[" in shown
