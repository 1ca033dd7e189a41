import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.errors import ExitCode, OutputExistsError, ResourceError, UsageError
from defectseg.image.find import find_images
from defectseg.model.info import ExportInfo, ModelInfo, Thresholds
from defectseg.predict.predict import exit_code_of, predict, resolve_classes

PIT, CRACK = 120, 160  # grey levels, as GreyRuntime reads them
TABLES = ("predictions.csv", "images.csv", "regions.csv", "errors.csv")


def _write(path: Path, *levels: int) -> Path:
    """A sheet of 8 x 16, of two greys, with a defect of 2 x 2 for each grey level."""
    image = np.full((8, 16), 60, np.uint8)
    image[-1] = 70
    for number, level in enumerate(levels):
        image[2:4, 3 * number : 3 * number + 2] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Twelve sheets: number n has a pit if n is odd, and a crack if it is a multiple of three."""
    for number in range(12):
        levels = ([PIT] if number % 2 else []) + ([CRACK] if number % 3 == 0 else [])
        _write(tmp_path / "sheets" / f"{number:02}.png", *levels)
    return tmp_path / "sheets"


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def runtime(grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime that any model file loads as."""
    made = grey_runtime()
    monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *asked, workers: (made, made.info))
    return made


def _predict(model: Path | Sequence[Path], out: Path, *inputs: Path, **options: Any) -> dict[str, Any]:
    return predict(model, find_images(inputs, skip=out), out, **options)


def _tables(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text(encoding="utf-8") for name in TABLES}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _stop_at(call_to_stop: int, error: BaseException) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == call_to_stop:
            raise error

    return before


def test_a_run_says_what_it_did(sheets: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    (sheets / "zz.png").write_bytes(b"not an image")
    steps: list[tuple[int, int]] = []

    run = _predict(model, tmp_path / "out", sheets, progress=lambda done, total, text="": steps.append((done, total)))

    # Odd or a multiple of three: 0, 1, 3, 5, 6, 7, 9, 11.
    assert (run["processed"], run["with_defect"], run["unreadable"], run["already_done"]) == (12, 8, 1, 0)
    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 1}
    assert (run["status"], run["class_names"], run["runtime"]) == ("finished", ["pits", "cracks"], "grey levels")
    assert run["started"] <= run["ended"]
    assert run == json.loads((tmp_path / "out" / "run.json").read_text())
    assert steps == [(done, 13) for done in range(14)]


def test_running_again_does_nothing_and_changes_nothing(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "out", sheets)
    before = _tables(tmp_path / "out")

    run = _predict(model, tmp_path / "out", sheets)

    assert (run["processed"], run["already_done"], run["images_per_second"]) == (0, 12, None)
    assert len(runtime.calls) == 12
    assert _tables(tmp_path / "out") == before


@pytest.mark.parametrize("call", [1, 2, 7, 12])
def test_an_interrupted_run_continues_to_the_same_tables(
    call: int, sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "whole", sheets)
    runtime.calls.clear()
    runtime.before = _stop_at(call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _predict(model, tmp_path / "out", sheets)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "out" / "predictions.csv").exists()
    runtime.before = lambda call: None

    run = _predict(model, tmp_path / "out", sheets)

    assert run["processed"] + run["already_done"] == 12
    assert run["already_done"] >= call - 6  # all but what was on its way through the pipeline
    assert _tables(tmp_path / "out") == _tables(tmp_path / "whole")
    for picture in (tmp_path / "whole").glob("*/*"):
        assert (tmp_path / "out" / picture.relative_to(tmp_path / "whole")).read_bytes() == picture.read_bytes()


def test_a_finished_run_whose_continuation_is_interrupted_loses_nothing(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    first = sorted(sheets.iterdir())[:6]
    _predict(model, tmp_path / "out", *first)
    before = _tables(tmp_path / "out")
    runtime.before = _stop_at(8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _predict(model, tmp_path / "out", sheets)
    assert _tables(tmp_path / "out") == before

    runtime.before = lambda call: None
    run = _predict(model, tmp_path / "out", sheets)

    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 0}
    assert run["already_done"] >= 6


@pytest.mark.parametrize("error", [ResourceError("no memory"), RuntimeError("a bug"), MemoryError()])
def test_a_run_that_fails_says_so_in_run_json(
    error: Exception, sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    runtime.before = _stop_at(3, error)

    with pytest.raises(type(error)):
        _predict(model, tmp_path / "out", sheets)

    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (stored["status"], stored["error"]) == ("failed", str(error))


# Runs `predict` on the runtime of these tests, slowed down, in a process that can be killed.
_DRIVER = """
import importlib.util, sys, time
from pathlib import Path
from defectseg.config import InferenceConfig
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import model_identity
from defectseg.image.find import find_images
from defectseg.predict import predict as batch

spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
runtime = conftest.GreyRuntime(Thresholds.default(2), InferenceConfig())
runtime.before = lambda call: time.sleep(0.05)
batch.load_runtime = lambda *asked, workers: (runtime, runtime.info)
model, sheets, out = map(Path, sys.argv[2:])
batch.predict(model, find_images([sheets]), out)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_run_continues_to_the_same_tables(sheets: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    arguments = [str(path) for path in (conftest, model, sheets, tmp_path / "out")]
    journal = tmp_path / "out" / "journal.jsonl"
    with subprocess.Popen([sys.executable, "-c", _DRIVER, *arguments]) as process:
        patience = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "predictions.csv").exists()

    run = _predict(model, tmp_path / "out", sheets)

    assert 1 <= run["already_done"] < 12
    _predict(model, tmp_path / "whole", sheets)
    assert _tables(tmp_path / "out") == _tables(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(".*"))


def test_new_changed_and_mended_images_are_done_and_others_are_not(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (sheets / "zz.png").write_bytes(b"not an image")
    assert _predict(model, tmp_path / "out", sheets)["unreadable"] == 1
    runtime.calls.clear()
    _write(sheets / "new.png", PIT)
    _write(sheets / "00.png", PIT, PIT)  # was a crack
    _write(sheets / "zz.png", CRACK)

    run = _predict(model, tmp_path / "out", sheets)

    assert (run["processed"], run["unreadable"], run["already_done"], len(runtime.calls)) == (3, 0, 11, 3)
    classes = {row["ImageId"]: row["classes"] for row in _rows(tmp_path / "out" / "images.csv")}
    assert len(classes) == 14
    assert (classes["new.png"], classes["00.png"], classes["zz.png"]) == ("pits", "pits", "cracks")
    assert _rows(tmp_path / "out" / "errors.csv") == []
    regions = [row["class_name"] for row in _rows(tmp_path / "out" / "regions.csv") if row["ImageId"] == "00.png"]
    assert regions == ["pits", "pits"]
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "00.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert set(np.unique(mask).tolist()) == {0, 1}


def test_another_model_is_refused_by_content_not_by_name(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    _predict(model, tmp_path / "out", sheets)
    shutil.copy(model, tmp_path / "renamed.safetensors")
    assert _predict(tmp_path / "renamed.safetensors", tmp_path / "out", sheets)["processed"] == 0

    write_model(model, weight=1.0)
    with pytest.raises(OutputExistsError, match="another model or other settings"):
        _predict(model, tmp_path / "out", sheets)

    assert _predict(model, tmp_path / "out", sheets, overwrite=True)["processed"] == 12


def test_other_thresholds_are_refused_and_another_way_to_have_chosen_them_is_not(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "out", sheets)
    same = Thresholds(gate=(0.5, 0.5), pixel=(0.5, 0.5), min_area_px=(0, 0), chosen_by="hand")
    runtime.info = runtime.info.model_copy(update={"thresholds": same})
    assert _predict(model, tmp_path / "out", sheets)["processed"] == 0

    other = same.model_copy(update={"min_area_px": (0, 5)})
    runtime.info = runtime.info.model_copy(update={"thresholds": other})
    with pytest.raises(OutputExistsError, match="another model or other settings"):
        _predict(model, tmp_path / "out", sheets)


def test_other_classes_are_refused_and_the_same_in_other_words_are_not(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "out", sheets, classes=["2"])
    assert _predict(model, tmp_path / "out", sheets, classes=["cracks", "2"])["processed"] == 0
    assert {row["classes"] for row in _rows(tmp_path / "out" / "images.csv")} == {"", "cracks"}

    for classes in (None, ["1"], ["1", "2"]):
        with pytest.raises(OutputExistsError, match="another model or other settings"):
            _predict(model, tmp_path / "out", sheets, classes=classes)


def test_another_augmentation_is_refused_and_the_models_own_by_name_is_not(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    run = _predict(model, tmp_path / "out", sheets)
    assert run["tta"] == "none"
    assert _predict(model, tmp_path / "out", sheets, tta="none")["processed"] == 0
    with pytest.raises(OutputExistsError, match="another model or other settings"):
        _predict(model, tmp_path / "out", sheets, tta="flips")
    runtime.calls.clear()

    run = _predict(model, tmp_path / "out", sheets, tta="flips", overwrite=True)

    assert (run["tta"], run["processed"], len(runtime.calls)) == ("flips", 12, 48)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["tta"] == "flips"
    with pytest.raises(OutputExistsError, match="another model or other settings"):
        _predict(model, tmp_path / "out", sheets)
    with pytest.raises(UsageError, match=r"tta.*flop"):
        _predict(model, tmp_path / "out", sheets, tta="flop")


def _changed(runtime: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> dict[str, Any]:
    """Change one thing that results depend on; returns the arguments of the next call."""
    info: ModelInfo = runtime.info
    recipe = info.recipe
    if what == "tiles":
        recipe = recipe.model_copy(update={"inference": recipe.inference.model_copy(update={"tile_hw": (64, 64)})})
        runtime.info = info.model_copy(update={"recipe": recipe})
    elif what == "bit depth of the model":
        runtime.info = _with_bit_depth(info, 12)
    elif what in ("int8", "f32"):
        options: Any = {"precision": "int8"} if what == "int8" else {"float_layers": "f32"}
        runtime.info = info.model_copy(update={"export": ExportInfo(format="openvino", **options)})
    elif what == "results version":
        monkeypatch.setattr("defectseg.predict.predict.RESULTS_VERSION", 2)
    return {"runtime": what} if what in ("torch", "onnx") else {"bit_depth": 12} if what == "bit depth" else {}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("torch", "runtime openvino -> torch"),
        ("onnx", "runtime openvino -> onnx"),
        ("int8", "precision none -> int8.*"),
        ("f32", "precision none -> .*f32"),
        ("tiles", r"tile_hw \[1024, 2048\] -> \[64, 64\]"),
        ("bit depth", "bit_depth none -> 12"),
        ("bit depth of the model", "model_bit_depth none -> 12"),
        ("results version", "results_version 1 -> 2"),
    ],
)
def test_a_folder_is_continued_only_where_all_that_results_depend_on_is_as_it_was(
    what: str, told: str, sheets: Path, model: Path, runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _predict(model, tmp_path / "out", sheets)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    options = _changed(runtime, monkeypatch, what)

    with pytest.raises(OutputExistsError, match=rf"another model or other settings \({told}\).*overwrite=True"):
        _predict(model, tmp_path / "out", sheets, **options)

    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert _predict(model, tmp_path / "out", sheets, overwrite=True, **options)["processed"] == 12
    assert _predict(model, tmp_path / "out", sheets, **options)["already_done"] == 12


def test_an_openvino_model_is_known_with_its_weights(
    sheets: Path, runtime: Any, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    exported = write_model(tmp_path / "model.xml")
    _predict(exported, tmp_path / "out", sheets)
    write_model(exported, weight=1.0)

    with pytest.raises(OutputExistsError, match=r"\(model_sha256 \w{12} -> \w{12}\)"):
        _predict(exported, tmp_path / "out", sheets)


@pytest.mark.parametrize(
    ("change", "told"), [("version", "openvino 1.0 -> 2.0"), ("precision", "runtime grey.* -> bf16")]
)
def test_an_upgrade_or_another_processor_is_warned_of_and_does_not_stop_a_nightly_job(
    change: str,
    told: str,
    sheets: Path,
    model: Path,
    runtime: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installed = {"openvino": "1.0", "numpy": "2.0"}
    monkeypatch.setattr("defectseg.predict.predict.package_versions", lambda names: dict(installed))
    _predict(model, tmp_path / "out", sheets)
    _write(sheets / "second night.png", PIT)
    _predict(model, tmp_path / "out", sheets)
    assert caplog.text == ""
    if change == "version":
        installed["openvino"] = "2.0"
    else:
        runtime.name = "bf16"

    idle = _predict(model, tmp_path / "out", sheets)
    assert caplog.text == "", "nothing is computed"
    _write(sheets / "third night.png", PIT)
    run = _predict(model, tmp_path / "out", sheets)

    assert re.search(told, caplog.text)
    assert run["processed"] == 1
    assert [night["runs"] for night in idle["runs"]] == [2]
    assert [night["runs"] for night in run["runs"]] == [2, 1]
    assert run["runs"][0]["computed_by"]["openvino"] == "1.0"


def test_an_ensemble_is_known_by_the_content_and_order_of_its_models(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    other = write_model(tmp_path / "other.safetensors", weight=1.0)

    run = _predict([model, other], tmp_path / "out", sheets)

    assert run["model"] == f"{model}, {other}"
    renamed = Path(shutil.copy(other, tmp_path / "renamed.safetensors"))
    assert _predict([model, renamed], tmp_path / "out", sheets)["processed"] == 0
    others: list[Path | list[Path]] = [model, other, [other, model], [model, model], [model, other, other]]
    for models in others:
        with pytest.raises(OutputExistsError, match="another model or other settings"):
            _predict(models, tmp_path / "out", sheets)


def test_images_of_the_same_name_in_two_folders_are_told_apart(model: Path, runtime: Any, tmp_path: Path) -> None:
    _write(tmp_path / "north" / "a.png", PIT)
    _write(tmp_path / "south" / "a.png")

    _predict(model, tmp_path / "out", tmp_path / "north", tmp_path / "south")

    rows = _rows(tmp_path / "out" / "images.csv")
    assert [(row["ImageId"], row["status"]) for row in rows] == [("north/a.png", "defect"), ("south/a.png", "clean")]
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*/*")) == [
        *("masks/north/a.png", "masks/south/a.png", "overlays/north/a.jpg", "overlays/south/a.jpg"),
    ]


def test_images_that_differ_only_by_suffix_keep_it_in_their_pictures(model: Path, runtime: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in" / "a.png", PIT)
    _write(tmp_path / "in" / "a.bmp")

    _predict(model, tmp_path / "out", tmp_path / "in")

    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == [
        *("a.bmp.jpg", "a.bmp.png", "a.png.jpg", "a.png.png"),
    ]
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "a.png.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.any()


def test_an_output_folder_inside_the_input_is_not_read_as_input(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    assert _predict(model, sheets / "results", sheets)["processed"] == 12
    assert _predict(model, sheets / "results", sheets)["already_done"] == 12


@pytest.mark.parametrize(
    ("wanted", "ids"), [(["1"], (1,)), (["cracks", "1"], (1, 2)), (["2", "cracks"], (2,)), (["pits"], (1,))]
)
def test_classes_are_named_by_number_or_name(wanted: list[str], ids: tuple[int, ...]) -> None:
    assert resolve_classes(wanted, ["pits", "cracks"]) == ids


@pytest.mark.parametrize("wanted", [["3"], ["0"], ["-1"], ["rust"], ["1", "Pits"], ["²"], ["1.0"], []])
def test_classes_that_the_model_does_not_have_are_refused_with_those_it_has(wanted: list[str]) -> None:
    with pytest.raises(UsageError, match=r"classes: .*1 \(pits\), 2 \(cracks\)"):
        resolve_classes(wanted, ["pits", "cracks"])


def test_a_number_is_a_class_id_whatever_the_classes_are_called() -> None:
    assert resolve_classes(["2"], ["2", "1"]) == (2,)
    assert resolve_classes(["7"], ["7", "8"]) == (1,)


@pytest.mark.parametrize(
    ("unreadable", "defects", "blank", "flags", "code"),
    [
        (0, 0, 0, {"fail_on_defect", "fail_on_blank"}, ExitCode.DONE),
        (0, 5, 5, set(), ExitCode.DONE),
        (0, 5, 0, {"fail_on_defect"}, ExitCode.DEFECT_FOUND),
        (1, 5, 0, {"fail_on_defect"}, ExitCode.DEFECT_FOUND),
        (1, 5, 0, {"fail_on_blank"}, ExitCode.PARTIAL),
        (1, 0, 0, {"fail_on_defect"}, ExitCode.PARTIAL),
        (0, 0, 1, {"fail_on_defect"}, ExitCode.DONE),
        (0, 0, 1, {"fail_on_blank"}, ExitCode.PARTIAL),
        (1, 1, 1, {"fail_on_defect", "fail_on_blank"}, ExitCode.DEFECT_FOUND),
    ],
)
def test_a_defect_comes_before_unreadable_and_blank_images_in_the_exit_code(
    unreadable: int, defects: int, blank: int, flags: set[str], code: ExitCode
) -> None:
    run = {"unreadable": unreadable, "images_in_folder": {"defect": defects, "blank": blank}}

    given = {name: name in flags for name in ("fail_on_defect", "fail_on_blank")}
    assert exit_code_of(run, **given) is code


def _picture(path: Path, image: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def test_a_picture_that_shows_nothing_is_blank_unless_a_defect_is_found_on_it(
    model: Path, runtime: Any, tmp_path: Path
) -> None:
    few, many = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    few[0, :2], many[0, :3] = 60, 60  # 0.5 % of the pixels, and a little more
    flat, pit = np.full((20, 20), 60, np.uint8), np.full((20, 20), PIT, np.uint8)
    for name, image in {"few": few, "many": many, "flat": flat, "pit": pit}.items():
        _picture(tmp_path / "in" / f"{name}.png", image)
    (tmp_path / "in" / "torn.png").write_bytes(b"not an image")

    run = _predict(model, tmp_path / "out", tmp_path / "in")

    assert (run["processed"], run["with_defect"], run["blank"], run["unreadable"]) == (4, 1, 2, 1)
    assert run["images_in_folder"] == {"defect": 1, "clean": 1, "blank": 2, "unreadable": 1}
    status = {row["ImageId"]: row["status"] for row in _rows(tmp_path / "out" / "images.csv")}
    names = ("few.png", "flat.png", "many.png", "pit.png", "torn.png")
    assert status == dict(zip(names, ("blank", "blank", "clean", "defect", "unreadable"), strict=True))
    assert (tmp_path / "out" / "masks" / "few.png").exists()
    assert _predict(model, tmp_path / "out", tmp_path / "in")["already_done"] == 4


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_images_of_a_camera_with_fewer_bits_are_told_and_read_right_once_that_is_said(
    bits: int, model: Path, runtime: Any, tmp_path: Path
) -> None:
    for number in range(3):
        image = np.full((8, 16), round(60 / 255 * (2**bits - 1)), np.uint16)
        image[0] = 2**bits - 1
        image[2:4, 2:4] = round(PIT / 255 * (2**bits - 1))
        _picture(tmp_path / "in" / f"{number}.png", image)

    black = _predict(model, tmp_path / "out", tmp_path / "in")

    assert black["with_defect"] == 0
    assert black["low_bit_depth"] == {"images": 3, "of": 3, "brightest": 2**bits - 1, "bit_depth": bits}
    with pytest.raises(OutputExistsError, match="other settings"):
        _predict(model, tmp_path / "out", tmp_path / "in", bit_depth=bits)
    told = _predict(model, tmp_path / "told", tmp_path / "in", bit_depth=bits)
    runtime.info = _with_bit_depth(runtime.info, bits)
    learnt = _predict(model, tmp_path / "learnt", tmp_path / "in")
    wrong = _predict(model, tmp_path / "wrong", tmp_path / "in", bit_depth=bits - 1)
    for run, out in ((told, "told"), (learnt, "learnt")):
        assert (run["with_defect"], run["low_bit_depth"]) == (3, None)
        assert {row["area_px"] for row in _rows(tmp_path / out / "regions.csv")} == {"4"}
    assert wrong["unreadable"] == 3
    assert f"the value {2**bits - 1}" in _rows(tmp_path / "wrong" / "errors.csv")[0]["error"]


def _with_bit_depth(info: ModelInfo, bit_depth: int) -> ModelInfo:
    data = info.recipe.data.model_copy(update={"bit_depth": bit_depth})
    return info.model_copy(update={"recipe": info.recipe.model_copy(update={"data": data})})


def test_the_runtime_and_the_workers_asked_for_are_loaded_and_stored(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, workers: int | None) -> Any:
        asked.append((*arguments, workers))
        runtime.parallel = workers or 1
        return runtime, runtime.info

    monkeypatch.setattr("defectseg.predict.predict.load_runtime", load)

    run = _predict(model, tmp_path / "out", sheets, device="cpu", runtime="onnx", workers=3)
    _predict(model, tmp_path / "other", sheets)

    assert asked == [(model, "cpu", "onnx", 3), (model, "auto", "auto", None)]
    assert (run["runtime"], run["workers"]) == ("grey levels", 3)
    assert _tables(tmp_path / "out") == _tables(tmp_path / "other")


def test_a_folder_is_continued_with_another_number_of_workers(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "out", sheets, workers=2)

    assert _predict(model, tmp_path / "out", sheets)["already_done"] == 12


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_at_all_are_refused(workers: int, sheets: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"workers: expected 1 or more, found {workers}"):
        _predict(model, tmp_path / "out", sheets, workers=workers)
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_wanted_are_as_in_a_run_that_writes_everything(
    sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _predict(model, tmp_path / "all", sheets)
    run = _predict(model, tmp_path / "some", sheets, outputs=["overlays", "rle"], overlays="defects")

    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 0}
    some = {path.relative_to(tmp_path / "some") for path in (tmp_path / "some").rglob("*") if path.is_file()}
    # Odd or a multiple of three.
    overlays = {Path("overlays") / f"{number:02}.jpg" for number in (0, 1, 3, 5, 6, 7, 9, 11)}
    tables = set(map(Path, ("predictions.csv", "images.csv", "errors.csv")))
    assert some == overlays | tables | {Path("run.json"), Path("journal.jsonl")}
    for path in overlays | tables:
        assert (tmp_path / "some" / path).read_bytes() == (tmp_path / "all" / path).read_bytes()


@pytest.mark.parametrize("call", [2, 9])
def test_an_interrupted_run_of_some_outputs_continues_to_the_same_files(
    call: int, sheets: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"outputs": ["masks"]}
    _predict(model, tmp_path / "whole", sheets, **options)
    runtime.calls.clear()
    runtime.before = _stop_at(call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _predict(model, tmp_path / "out", sheets, **options)
    runtime.before = lambda call: None

    run = _predict(model, tmp_path / "out", sheets, **options)

    assert run["processed"] + run["already_done"] == 12
    names = sorted(path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*.*"))
    masks = [f"masks/{number:02}.png" for number in range(12)]
    assert names == ["errors.csv", "images.csv", "journal.jsonl", *masks, "run.json"]
    for name in set(names) - {"run.json", "journal.jsonl"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_choice_of_outputs_is_refused(sheets: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    _predict(model, tmp_path / "out", sheets, outputs=["masks", "rle"])
    assert _predict(model, tmp_path / "out", sheets, outputs=["rle", "masks"], overlays="none")["processed"] == 0

    for options in ({}, {"outputs": ["masks"]}, {"overlays": "none"}):
        with pytest.raises(OutputExistsError, match="another model or other settings"):
            _predict(model, tmp_path / "out", sheets, **options)
