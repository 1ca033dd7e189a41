import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.errors import ExitCode, ModelError, OutputExistsError, ResourceError, UsageError
from defectseg.files import write_bytes
from defectseg.image import read as image_files
from defectseg.image import rle
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import DecodedImage
from defectseg.model.info import ExportInfo, ModelInfo
from defectseg.predict.predict import predict
from defectseg.predict.rules import Tolerance, exit_code_of, resolve_classes
from defectseg.predict.tables import choose_outputs

STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them
TABLES = ("predictions.csv", "images.csv", "regions.csv", "errors.csv")
Run = Callable[..., dict[str, Any]]
REFUSED = "another model or other settings"


def _sheet(*rectangles: tuple[int, int, int, int, int], size_hw: tuple[int, int] = (16, 24)) -> NDArray[np.uint8]:
    """Steel with a last row that is a little brighter, and rectangles (left, top, width, height, grey level)."""
    image = np.full(size_hw, STEEL, np.uint8)
    image[-1] += 10
    for left, top, width, height, level in rectangles:
        image[top : top + height, left : left + width] = level
    return image


PIT_SHEET, CRACK_SHEET = _sheet((0, 2, 2, 2, PIT)), _sheet((3, 2, 2, 2, CRACK))


def _write(path: Path, image: NDArray[Any]) -> Path:
    write_bytes(path, cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Twelve sheets: number n has a pit if n is odd, and a crack if it is a multiple of three."""
    for number in range(12):
        sheet = PIT_SHEET.copy() if number % 2 else _sheet()
        sheet[2:4, 3:5] = CRACK if number % 3 == 0 else STEEL
        _write(tmp_path / "sheets" / f"{number:02}.png", sheet)
    return tmp_path / "sheets"


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def runtime(grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime that any model file loads as; `asked` are the arguments that it was last loaded with."""
    made = grey_runtime()

    def load(*arguments: Any, workers: int | None) -> Any:
        made.asked = (*arguments, workers)
        made.parallel = workers or 1
        return made, made.info

    monkeypatch.setattr("defectseg.predict.predict.load_runtime", load)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def process(model: Path, runtime: Any, out: Path) -> Run:
    """Predicts on inputs into `out`, or into a folder of another name beside it; takes options of `choose_outputs`."""

    def predict_on(*inputs: Path, into: str = "out", models: Any = model, **options: Any) -> dict[str, Any]:
        choice = choose_outputs(*(options.pop(name, None) for name in ("outputs", "overlays", "mm_per_px", "group")))
        return predict(models, find_images(inputs, keep_faulty=True), out.with_name(into), choice=choice, **options)

    return predict_on


def _counts(run: dict[str, Any]) -> tuple[int, int, int, int]:
    return run["processed"], run["with_defect"], run["unreadable"], run["already_done"]


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _files(out: Path) -> dict[str, bytes]:
    """What a run leaves, without the journal, whose lines may be in another order, and run.json, which tells times."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.name not in ("journal.jsonl", "run.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def _stop_at(call_to_stop: int, error: BaseException) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == call_to_stop:
            raise error

    return before


def test_tables_and_pictures_worked_by_hand(process: Run, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    _write(folder / "clean.png", _sheet())
    many_path = _write(folder / "many.png", _sheet((2, 3, 4, 2, PIT), (20, 0, 3, 16, PIT), (10, 10, 1, 3, CRACK)))
    _write(folder / "over.png", _sheet((0, 0, 2, 2, PIT), (2, 0, 2, 2, BOTH)))
    (folder / "broken.png").write_bytes((folder / "clean.png").read_bytes()[:-20])

    assert _counts(process(folder)) == (3, 2, 1, 0)

    broken, clean, many, over = _rows(out / "images.csv")
    stat = many_path.stat()
    assert many.items() >= {
        "ImageId": "many.png", "status": "defect", "height": "16", "width": "24", "classes": "pits; cracks",
        "regions": "3", "defect_area_px": "59", "defect_area_percent": "15.3646", "top_score": "0.9000",
        "sheet_score": "0.9000", "notes": "", "size_bytes": str(stat.st_size), "modified_ns": str(stat.st_mtime_ns),
        "unlike": "", "differs": "", "black_percent": "0.0",
    }.items()  # fmt: skip
    assert broken["brightness"] == ""
    assert (clean["status"], clean["classes"], clean["regions"], clean["top_score"]) == ("clean", "", "0", "")
    assert (clean["defect_area_px"], clean["defect_area_percent"], clean["sheet_score"]) == ("0", "0.0000", "0.1000")
    # A pixel of two classes is one defect pixel: 4 of the pit alone and 4 of both.
    assert (over["regions"], over["defect_area_px"], over["classes"]) == ("2", "8", "pits; cracks")
    assert broken["status"] == "unreadable"
    assert broken["height"] == broken["regions"] == broken["defect_area_px"] == broken["sheet_score"] == ""
    assert broken["size_bytes"] == str((folder / "broken.png").stat().st_size)
    assert "broken.png" in broken["notes"]
    assert [list(row.values()) for row in _rows(out / "regions.csv")] == [
        ["many.png", "1", "pits", "48", "20", "0", "3", "16", "21.0", "7.5", "0.9000"],
        ["many.png", "1", "pits", "8", "2", "3", "4", "2", "3.5", "3.5", "0.9000"],
        ["many.png", "2", "cracks", "3", "10", "10", "1", "3", "10.0", "11.0", "0.8000"],
        ["over.png", "1", "pits", "8", "0", "0", "4", "2", "1.5", "0.5", "0.7500"],
        ["over.png", "2", "cracks", "4", "2", "0", "2", "2", "2.5", "0.5", "0.7000"],
    ]
    assert [tuple(row.values()) for row in _rows(out / "errors.csv")] == [
        ("broken.png", str(folder / "broken.png"), broken["notes"])
    ]
    # Columns of 16 rows: the crack starts at column 10, row 10, that is pixel 10 x 16 + 10 + 1.
    assert [tuple(row.values()) for row in _rows(out / "predictions.csv")] == [
        *(("clean.png", "1", ""), ("clean.png", "2", "")),
        *(("many.png", "1", "36 2 52 2 68 2 84 2 321 48"), ("many.png", "2", "171 3")),
        *(("over.png", "1", "1 2 17 2 33 2 49 2"), ("over.png", "2", "33 2 49 2")),
    ]
    assert _read(out / "masks" / "over.png")[:3, :5].tolist() == [[1, 1, 2, 2, 0]] * 2 + [[0] * 5]
    for name in ("clean", "many", "over"):
        class_map, overlay = _read(out / "masks" / f"{name}.png"), _read(out / "overlays" / f"{name}.jpg").astype(int)
        encoded = [row["EncodedPixels"] for row in _rows(out / "predictions.csv") if row["ImageId"] == f"{name}.png"]
        np.testing.assert_array_equal(class_map > 0, np.any([rle.decode(one, (16, 24)) for one in encoded], axis=0))
        red = overlay[..., 2] - overlay[..., :2].max(axis=-1) > 45
        np.testing.assert_array_equal(red[:16], class_map > 0)
        assert (len(overlay) > 16) == bool(class_map.any()), "the legend is a strip below"


def test_a_run_says_what_it_did_and_the_next_does_the_rest(process: Run, runtime: Any, sheets: Path, out: Path) -> None:
    (sheets / "zz.png").write_bytes(b"not an image")
    steps: list[tuple[int, int]] = []

    run = process(sheets, progress=lambda done, total, text="": steps.append((done, total)))

    # Odd or a multiple of three: 0, 1, 3, 5, 6, 7, 9, 11.
    assert _counts(run) == (12, 8, 1, 0)
    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 1}
    assert (run["status"], run["class_names"], run["runtime"]) == ("finished", ["pits", "cracks"], "grey levels")
    assert run["started"] <= run["ended"]
    assert run["images_per_second"] == pytest.approx(12 / run["seconds"], rel=0.1)
    assert run == json.loads((out / "run.json").read_text())
    assert steps == [(done, 13) for done in range(14)]
    _write(sheets / "zz.png", CRACK_SHEET)
    assert _counts(process(sheets)) == (1, 1, 0, 12)
    before = _files(out)
    assert _rows(out / "errors.csv") == []

    run = process(sheets)

    assert _counts(run) == (0, 0, 0, 13)
    assert run["images_per_second"] is None
    assert len(runtime.calls) == 13
    assert _files(out) == before


@pytest.mark.parametrize(("call", "options"), [(1, {}), (7, {}), (9, {"outputs": ["masks"]})])
def test_an_interrupted_run_continues_to_the_same_files(
    call: int, options: dict[str, Any], process: Run, runtime: Any, sheets: Path, out: Path
) -> None:
    process(sheets, into="whole", **options)
    runtime.calls.clear()
    runtime.before = _stop_at(call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        process(sheets, **options)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert not (out / "images.csv").exists()
    runtime.before = lambda call: None

    run = process(sheets, **options)

    assert run["processed"] + run["already_done"] == 12
    assert run["already_done"] >= call - 6  # all but what was on its way through the pipeline
    assert _files(out) == _files(out.with_name("whole"))


def test_interrupting_a_continuation_loses_nothing(process: Run, runtime: Any, sheets: Path, out: Path) -> None:
    process(*sorted(sheets.iterdir())[:6])
    before = (out / "images.csv").read_text()
    runtime.before = _stop_at(8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        process(sheets)
    assert (out / "images.csv").read_text() == before

    runtime.before = lambda call: None
    run = process(sheets)

    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 0}
    assert run["already_done"] >= 6


@pytest.mark.parametrize("error", [ResourceError("no memory"), ModelError("not a number")])
def test_a_run_that_fails_says_so(error: Exception, process: Run, runtime: Any, sheets: Path, out: Path) -> None:
    runtime.before = _stop_at(3, error)

    with pytest.raises(type(error)):
        process(sheets)

    stored = json.loads((out / "run.json").read_text())
    assert (stored["status"], stored["error"]) == ("failed", str(error))


@pytest.mark.parametrize(("workers", "advice"), [(1, "run the same command again."), (2, "again, with workers=1.")])
def test_an_image_for_which_memory_is_short_is_unreadable_and_done_by_the_next_run(
    workers: int,
    advice: str,
    process: Run,
    sheets: Path,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decode(image: FoundImage, **options: Any) -> DecodedImage:
        if image.image_id == "05.png":
            raise MemoryError
        return image_files.decode_bytes(image.path.read_bytes(), name="")

    process(sheets, into="whole")
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "decode", decode)
        run = process(sheets, workers=workers)
    assert _counts(run) == (11, 7, 1, 0)
    assert exit_code_of(run) == ExitCode.PARTIAL
    assert _rows(out / "errors.csv")[0]["error"].endswith(
        "05.png: memory does not suffice for it, even alone (MemoryError)"
    )
    assert caplog.messages[-1].endswith(advice)
    process(sheets)
    assert _files(out) == _files(out.with_name("whole"))


def _with(info: ModelInfo, **sections: dict[str, Any]) -> ModelInfo:
    """The description with other values in these sections of its recipe."""
    changed = {name: getattr(info.recipe, name).model_copy(update=values) for name, values in sections.items()}
    return info.model_copy(update={"recipe": info.recipe.model_copy(update=changed)})


def _other_info(info: ModelInfo, what: str) -> ModelInfo:
    thresholds = info.thresholds.model_copy(update={"min_area_px": (0, 5)})
    return {
        "thresholds": lambda: info.model_copy(update={"thresholds": thresholds}),
        "tiles": lambda: _with(info, inference={"tile_hw": (64, 64)}),
        "model's bit depth": lambda: _with(info, data={"bit_depth": 12}),
        "int8": lambda: info.model_copy(update={"export": ExportInfo(format="openvino", precision="int8")}),
        "f32": lambda: info.model_copy(update={"export": ExportInfo(format="openvino", float_layers="f32")}),
    }.get(what, lambda: info)()


@pytest.mark.parametrize(
    ("what", "options", "told"),
    [
        ("weights", {}, r"model_sha256 \w{12} -> \w{12}"),
        ("thresholds", {}, r"thresholds.min_area_px \[0, 0\] -> \[0, 5\]"),
        ("tiles", {}, r"tile_hw \[1024, 2048\] -> \[64, 64\]"),
        ("model's bit depth", {}, "model_bit_depth none -> 12"),
        ("int8", {}, "precision none -> int8.*"),
        ("f32", {}, "precision none -> .*f32"),
        ("results version", {}, "results_version 1 -> 2"),
        ("runtime", {"runtime": "torch"}, "runtime openvino -> torch"),
        ("bit depth", {"bit_depth": 12}, "bit_depth none -> 12"),
        ("tta", {"tta": "flips"}, "tta none -> flips"),
        ("classes", {"classes": ["1"]}, r"only_classes none -> \[1\]"),
        ("outputs", {"outputs": ["masks"]}, "outputs.names .*"),
        ("overlays", {"overlays": "defects"}, "outputs.overlays all -> defects"),
        ("mm", {"mm_per_px": (0.5, 0.8)}, r"outputs.mm_per_px none -> \[0.5, 0.8\]"),
    ],
)
def test_a_folder_of_another_model_or_other_settings_is_not_continued(
    what: str,
    options: dict[str, Any],
    told: str,
    process: Run,
    runtime: Any,
    sheets: Path,
    out: Path,
    write_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The weights of an OpenVINO model lie beside it, in a .bin.
    model = write_model(out.with_name("model.xml" if what == "weights" else "model.safetensors"))
    images = sorted(sheets.iterdir())[:3]
    process(*images, models=model)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    runtime.info = _other_info(runtime.info, what)
    if what == "weights":
        write_model(model, weight=1.0)
    elif what == "results version":
        monkeypatch.setattr("defectseg.predict.predict.RESULTS_VERSION", 2)

    with pytest.raises(OutputExistsError, match=rf"{REFUSED} \({told}\).*overwrite=True"):
        process(*images, models=model, **options)

    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert process(*images, models=model, overwrite=True, **options)["processed"] == 3
    assert process(*images, models=model, **options)["already_done"] == 3


def test_settings_in_other_words_continue_a_folder(
    process: Run, runtime: Any, model: Path, sheets: Path, out: Path
) -> None:
    options: dict[str, Any] = {"classes": ["2"], "outputs": ["masks", "rle"]}
    process(sheets, **options)
    rows = _rows(out / "predictions.csv")
    assert {row["EncodedPixels"] for row in rows if row["ClassId"] == "1"} == {""}
    assert {row["classes"] for row in _rows(out / "images.csv")} == {"", "cracks"}
    renamed = Path(shutil.copy(model, out.with_name("renamed.safetensors")))
    thresholds = runtime.info.thresholds.model_copy(update={"chosen_by": "hand"})
    runtime.info = runtime.info.model_copy(update={"thresholds": thresholds})
    options = {"classes": ["cracks", "2"], "outputs": ["rle", "masks"], "overlays": "none"}

    run = process(sheets, models=renamed, tta="none", workers=2, **options)

    assert (run["tta"], run["already_done"]) == ("none", 12)


def test_augmentation_calls_the_network_for_each_view(process: Run, runtime: Any, sheets: Path) -> None:
    run = process(sheets, tta="flips")

    assert (run["tta"], run["processed"], len(runtime.calls)) == ("flips", 12, 48)


def test_an_ensemble_is_known_by_the_content_and_order_of_its_models(
    process: Run, model: Path, sheets: Path, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    other = write_model(tmp_path / "other.safetensors", weight=1.0)

    run = process(sheets, models=[model, other])

    assert run["model"] == f"{model}, {other}"
    others: list[Path | list[Path]] = [model, other, [other, model], [model, model], [model, other, other]]
    for models in others:
        with pytest.raises(OutputExistsError, match=REFUSED):
            process(sheets, models=models)


def test_an_upgrade_and_another_processor_are_warned_of(
    process: Run, runtime: Any, sheets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed = {"openvino": "1.0", "numpy": "2.0"}
    monkeypatch.setattr("defectseg.runtime.load.package_versions", lambda names: dict(installed))

    def work() -> list[dict[str, Any]]:
        """A night with one new image; returns what computed the results of all nights."""
        _write(sheets / f"{len(list(sheets.iterdir()))}.png", PIT_SHEET)
        run = process(sheets)
        assert run["processed"] == 1
        return list(run["runs"])

    process(sheets)
    work()
    installed["openvino"] = "2.0"
    assert [night["runs"] for night in process(sheets)["runs"]] == [2]
    assert caplog.text == "", "nothing is computed"
    work()
    assert "openvino 1.0 -> 2.0" in caplog.text
    runtime.name = "bf16"
    nights = work()
    assert re.search("runtime grey.* -> bf16", caplog.text)
    assert [night["runs"] for night in nights] == [2, 1, 1]
    assert [night["computed_by"]["openvino"] for night in nights] == ["1.0", "2.0", "2.0"]


@pytest.mark.parametrize(
    ("wanted", "class_names", "ids"),
    [
        (["1"], ["pits", "cracks"], (1,)),
        (["cracks", "1"], ["pits", "cracks"], (1, 2)),
        (["2", "cracks"], ["pits", "cracks"], (2,)),
        (["2"], ["2", "1"], (2,)),  # a number is a ClassId, whatever the classes are called
        (["7"], ["7", "8"], (1,)),
    ],
)
def test_classes_are_named_by_number_or_name(wanted: list[str], class_names: list[str], ids: tuple[int, ...]) -> None:
    assert resolve_classes(wanted, class_names) == ids


@pytest.mark.parametrize("wanted", [["3"], ["0"], ["-1"], ["rust"], ["1", "Pits"], ["²"], ["1.0"], []])
def test_classes_that_the_model_does_not_have_are_refused_with_those_it_has(wanted: list[str]) -> None:
    with pytest.raises(UsageError, match=r"classes: .*1 \(pits\), 2 \(cracks\)"):
        resolve_classes(wanted, ["pits", "cracks"])


@pytest.mark.parametrize(
    ("unreadable", "met", "blank", "on_blank", "code"),
    [
        (0, 0, 0, True, ExitCode.DONE),
        (0, None, 5, False, ExitCode.DONE),
        (1, 5, 0, True, ExitCode.DEFECT_FOUND),
        (1, None, 0, False, ExitCode.PARTIAL),
        (1, 0, 0, False, ExitCode.PARTIAL),
        (0, 0, 1, True, ExitCode.PARTIAL),
    ],
)
def test_the_exit_code_tells_rules_before_unreadable_and_blank_images(
    unreadable: int, met: int | None, blank: int, on_blank: bool, code: ExitCode
) -> None:
    run = {"processed": 9, "unreadable": unreadable, "already_done": 0, "images_in_folder": {"blank": blank}}
    rules = {} if met is None else {"fail_on": {"images": met}}

    assert exit_code_of(run | rules, fail_on_blank=on_blank) is code


def test_a_file_that_is_dead_for_good_may_be_accepted_but_not_one_more(process: Run, sheets: Path) -> None:
    (sheets / "torn.png").write_bytes(b"not an image")
    one, few, percent = Tolerance.parse("1"), Tolerance.parse("7.6%"), Tolerance.parse("7.7%")  # 1 of 13 is 7.69 %

    for _ in range(2):  # it is tried again
        run = process(sheets)
        assert exit_code_of(run) is exit_code_of(run, max_unreadable=few) is ExitCode.PARTIAL
        assert exit_code_of(run, max_unreadable=one) is exit_code_of(run, max_unreadable=percent) is ExitCode.DONE
    (sheets / "more.png").write_bytes(b"not an image")
    run = process(sheets)
    assert exit_code_of(run, max_unreadable=one) is exit_code_of(run, max_unreadable=percent) is ExitCode.PARTIAL
    (sheets / "torn.png").unlink()  # its row stays in the folder, but it is not given any more
    assert exit_code_of(process(sheets), max_unreadable=one) is ExitCode.DONE
    blank = process(_write(sheets / "black.png", np.zeros((9, 9), np.uint8)))
    assert exit_code_of(blank, fail_on_blank=True, max_unreadable=Tolerance.parse("100%")) is ExitCode.PARTIAL


def test_rules_count_all_images_of_the_folder_and_say_which_meet_them(process: Run, sheets: Path, out: Path) -> None:
    large = _write(sheets / "large.png", _sheet((2, 2, 5, 4, PIT)))
    run = process(sheets, fail_on="pits:area_px=20,cracks:count=2")
    assert run["fail_on"] == {"rules": "pits:area_px>=20 or cracks:count>=2", "images": 1, "first": ["large.png"]}
    assert exit_code_of(run) is ExitCode.DEFECT_FOUND

    _write(sheets / "two.png", _sheet((2, 2, 2, 2, CRACK), (9, 2, 2, 2, CRACK)))
    large.unlink()
    run = process(sheets, fail_on="pits:area_px=20,cracks:count=2")  # rules are no part of the key

    assert (run["processed"], run["fail_on"]["first"]) == (1, ["large.png", "two.png"])
    assert json.loads((out / "run.json").read_text())["fail_on"] == run["fail_on"]
    run = process(sheets, fail_on="pits:area_px=21")
    assert (run["fail_on"]["images"], run["fail_on"]["first"], exit_code_of(run)) == (0, [], ExitCode.DONE)
    assert "fail_on" not in process(sheets)


def test_run_json_names_a_bounded_number_of_images_that_meet_a_rule(process: Run, sheets: Path) -> None:
    for number in range(30):
        _write(sheets / f"more{number:02}.png", PIT_SHEET)

    run = process(sheets, fail_on="pits")

    assert run["fail_on"]["images"] == 36
    assert run["fail_on"]["first"] == [
        *(f"{n:02}.png" for n in (1, 3, 5, 7, 9, 11)),
        *(f"more{n:02}.png" for n in range(14)),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fail_on": "scrach"}, "fail_on: scrach"),
        ({"fail_on": "2", "classes": ["pits"]}, "not reported"),
        ({"fail_on": "pits:length_mm=2"}, "mm_per_px"),
        ({"fail_on": "pits", "outputs": ["masks"]}, "needs regions"),
        ({"mm_per_px": (0.5, 0.0)}, "mm_per_px: expected sizes above 0"),
        ({"mm_per_px": (0.5, 0.5), "outputs": ["rle", "masks"]}, "mm_per_px: .*Add regions to the outputs masks,rle"),
    ],
)
def test_rules_and_sizes_that_cannot_be_used_are_refused_before_anything_is_written(
    options: dict[str, Any], told: str, process: Run, sheets: Path, runtime: Any, out: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        process(sheets, **options)

    assert not out.exists()
    assert runtime.calls == []


def test_sizes_in_mm_are_columns_at_the_end_of_regions_and_all_else_stays(
    process: Run, sheets: Path, out: Path
) -> None:
    image = _sheet((2, 2, 8, 5, PIT), (15, 1, 1, 12, CRACK))
    image[3:6, 4:7] = STEEL  # a hole, with
    image[4, 5] = PIT  # a region in it
    for step in range(6):
        image[14 - step, 3 + step] = BOTH  # rises to the right
    _write(sheets / "shapes.png", image)
    process(sheets, into="px")

    process(sheets, mm_per_px=(0.5, 0.5), fail_on="cracks:length_mm=6")

    in_px, in_mm = _files(out.with_name("px")), _files(out)
    assert in_px.pop("index.html") != in_mm.pop("index.html"), "its areas are in mm², too"
    rows, regions = in_px.pop("regions.csv").splitlines(), in_mm.pop("regions.csv").splitlines()
    assert in_mm == in_px
    assert [row.rsplit(b",", 4)[0] for row in regions] == rows
    assert [
        [row[name] for name in ("class_name", "area_px", "length_mm", "width_mm", "area_mm2", "direction_deg")]
        for row in _rows(out / "regions.csv")
        if row["ImageId"] == "shapes.png"
    ] == [
        ["pits", "31", "4", "2.5", "7.75", "0.0"],
        ["pits", "6", "3.88909", "0.353553", "1.5", "45.0"],  # five diagonals and a half of 0.5 mm * sqrt(2)
        ["pits", "1", "0.5", "0.5", "0.25", "0.0"],
        ["cracks", "12", "6", "0.5", "3", "90.0"],
        ["cracks", "6", "3.88909", "0.353553", "1.5", "45.0"],
    ]
    assert json.loads((out / "run.json").read_text())["fail_on"]["first"] == ["shapes.png"]
    assert process(sheets, mm_per_px=(0.5, 0.5))["already_done"] == 13


def test_a_picture_that_shows_nothing_is_blank(process: Run, tmp_path: Path, out: Path) -> None:
    few, many = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    few[0, :2], many[0, :3] = 60, 60  # 0.5 % of the pixels, and a little more
    flat, pit = np.full((20, 20), 60, np.uint8), np.full((20, 20), PIT, np.uint8)
    for name, image in {"few": few, "many": many, "flat": flat, "pit": pit}.items():
        _write(tmp_path / "in" / f"{name}.png", image)
    (tmp_path / "in" / "torn.png").write_bytes(b"not an image")

    run = process(tmp_path / "in")

    assert (*_counts(run), run["blank"]) == (4, 1, 1, 0, 2)
    assert run["images_in_folder"] == {"defect": 1, "clean": 1, "blank": 2, "unreadable": 1}
    status = {row["ImageId"]: row["status"] for row in _rows(out / "images.csv")}
    names = ("few.png", "flat.png", "many.png", "pit.png", "torn.png")
    assert status == dict(zip(names, ("blank", "blank", "clean", "defect", "unreadable"), strict=True))
    assert (out / "masks" / "few.png").exists()
    assert process(tmp_path / "in")["already_done"] == 4


def test_images_of_a_camera_with_fewer_bits_are_told(process: Run, runtime: Any, tmp_path: Path, out: Path) -> None:
    for number in range(3):
        twelve = np.rint(PIT_SHEET / 255 * 4095).astype(np.uint16)
        twelve[0] = 4095
        _write(tmp_path / "in" / f"{number}.png", twelve)

    black = process(tmp_path / "in")

    assert black["with_defect"] == 0
    assert "3 of 3 16-bit images hold no value above 4095" in black["warnings"][0]
    told = process(tmp_path / "in", into="told", bit_depth=12)
    runtime.info = _with(runtime.info, data={"bit_depth": 12})
    learnt = process(tmp_path / "in", into="learnt")
    wrong = process(tmp_path / "in", into="wrong", bit_depth=11)
    for run, name in ((told, "told"), (learnt, "learnt")):
        assert (run["with_defect"], run["warnings"]) == (3, [])
        assert {row["area_px"] for row in _rows(tmp_path / name / "regions.csv")} == {"4"}
        assert _rows(tmp_path / name / "images.csv")[0]["notes"] == "16-bit scaled from 12 bits"
    assert wrong["unreadable"] == 3
    assert "the value 4095" in _rows(tmp_path / "wrong" / "errors.csv")[0]["error"]


def test_the_runtime_asked_for_is_loaded(process: Run, runtime: Any, model: Path, sheets: Path, out: Path) -> None:
    run = process(sheets, device="cpu", runtime="onnx", workers=3)
    assert runtime.asked == (model, "cpu", "onnx", 3)
    assert (run["runtime"], run["workers"]) == ("grey levels", 3)
    process(sheets, into="other")
    assert runtime.asked == (model, "auto", "auto", None)
    assert _files(out) == _files(out.with_name("other"))
    process(sheets / "00.png", into="one", workers=3)
    assert runtime.asked == (model, "auto", "auto", 1), "all cores work on the one image"

    assert not (out.with_name("none")).exists()


def test_some_outputs_are_as_in_a_run_that_writes_everything(process: Run, sheets: Path, out: Path) -> None:
    process(sheets, into="all")
    run = process(sheets, into="some", outputs=["overlays", "rle"], overlays="defects")

    assert run["images_in_folder"] == {"defect": 8, "clean": 4, "blank": 0, "unreadable": 0}
    # Odd or a multiple of three.
    overlays = {f"overlays/{number:02}.jpg" for number in (0, 1, 3, 5, 6, 7, 9, 11)}
    some, everything = _files(out.with_name("some")), _files(out.with_name("all"))
    assert set(some) == overlays | {"predictions.csv", "images.csv", "errors.csv"}
    assert some.items() <= everything.items()
    assert process(sheets, into="more", outputs=["regions", "masks"])["processed"] == 12
    assert process(sheets, into="more", outputs=["regions", "masks"])["already_done"] == 12
    names = {path.name for path in out.with_name("all").iterdir()}
    assert names == {*TABLES, "index.html", "journal.jsonl", "masks", "overlays", "run.json"}
    assert {path.name for path in out.with_name("more").iterdir()} == names - {
        "index.html",
        "overlays",
        "predictions.csv",
    }


@pytest.mark.skipif(os.name == "nt", reason="such files cannot exist there")
def test_no_file_stops_a_folder(process: Run, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    pixels = _write(folder / "a.png", PIT_SHEET).read_bytes()
    for name in (b"\x8f\xe0.png", b"a\\b.png", b"a\nb.png", b"x" * 251 + b".png", b"x.png/inner.png"):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pixels)
    os.mkfifo(folder / "pipe.png")
    (folder / "to-pipe.png").symlink_to("pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "circle.png").symlink_to("circle.png")
    with (folder / "huge.png").open("wb") as handle:
        handle.truncate(100 * 2**30)
    unreadable = ["%8F%E0.png", "a%0Ab.png", "a%5Cb.png", "circle.png", "device.png"]
    unreadable += ["huge.png", "pipe.png", "to-pipe.png"]

    assert _counts(process(folder)) == (3, 3, 8, 0)

    errors = _rows(out / "errors.csv")
    assert [row["ImageId"] for row in errors] == unreadable
    assert errors[0]["path"] == f"{folder}/%8F%E0.png"
    images = {row["ImageId"]: row["status"] for row in _rows(out / "images.csv")}
    assert sorted(image_id for image_id, status in images.items() if status == "unreadable") == unreadable
    assert images["x.png/inner.png"] == images["x" * 251 + ".png"] == "defect"
    assert _counts(process(folder)) == (0, 0, 8, 3)


def _replace(path: Path, image: NDArray[np.uint8]) -> None:
    """As a camera writes a file anew, a second later: another one takes its name, and it is never half there."""
    later_ns = path.stat().st_mtime_ns + 10**9
    new = _write(path.with_name("new.bmp"), image)
    os.utime(new, ns=(later_ns, later_ns))
    new.replace(path)


def test_an_image_replaced_while_the_network_works_is_done_again(process: Run, runtime: Any, tmp_path: Path) -> None:
    path = _write(tmp_path / "in" / "a.bmp", _sheet())
    runtime.before = lambda call: _replace(path, PIT_SHEET)
    assert process(path.parent)["with_defect"] == 0
    runtime.before = lambda call: None

    assert process(path.parent)["with_defect"] == 1
    assert process(path.parent)["already_done"] == 1


@pytest.mark.parametrize(("times", "counts"), [(1, (1, 1, 0, 0)), (2, (0, 0, 1, 0))])
def test_an_image_replaced_while_it_is_decoded_is_read_once_more(
    times: int,
    counts: tuple[int, ...],
    process: Run,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, decode_bytes = _write(tmp_path / "in" / "a.bmp", _sheet()), image_files.decode_bytes
    changes = iter(range(times))

    def replacing(content: bytes, *, name: str, **options: Any) -> DecodedImage:
        if next(changes, None) is not None:
            _replace(path, PIT_SHEET)
        return decode_bytes(content, name=name, **options)

    monkeypatch.setattr(image_files, "decode_bytes", replacing)
    assert _counts(process(path.parent)) == counts
    errors = _rows(out / "errors.csv")
    assert ["changed while it was read" in row["error"] for row in errors] == [True] * counts[2]

    assert process(path.parent)["processed"] == counts[2]


def test_images_of_any_size_pass_and_overlays_are_shrunk_to_fit(process: Run, tmp_path: Path, out: Path) -> None:
    for number, size_hw in enumerate([(1, 1), (1, 300), (300, 1), (70_000, 1)]):
        _write(tmp_path / "in" / f"{number}.png", np.full(size_hw, PIT, np.uint8))

    assert _counts(process(tmp_path / "in")) == (4, 4, 0, 0)

    rows = _rows(out / "images.csv")
    assert [row["defect_area_percent"] for row in rows] == ["100.0000"] * 4
    assert [row["notes"] for row in rows] == ["", "", "", "overlay shrunk to fit a JPEG"]
    assert _read(out / "overlays" / "3.jpg").shape[0] == 65_500
    assert _read(out / "masks" / "3.png").shape == (70_000, 1)


def test_the_size_of_the_first_image_is_prepared_for_a_fresh_folder_unless_it_is_cut_into_tiles(
    runtime: Any, process: Run, tmp_path: Path
) -> None:
    sizes: list[tuple[int, int]] = []
    runtime.prepare = sizes.append
    shapes = {"large.png": (1025, 8), "small.png": (24, 40), "tall.png": (40, 24)}
    for name, size_hw in shapes.items():
        cv2.imwrite(str(tmp_path / name), np.full(size_hw, 80, np.uint8))
    process(tmp_path / "small.png", tmp_path / "tall.png")
    assert sizes == [(24, 40)]
    process(tmp_path / "small.png", tmp_path / "tall.png")  # all may be done
    process(tmp_path / "large.png", into="tiles")
    assert sizes == [(24, 40)]


def test_groups_are_counted_for_each_coil(process: Run, tmp_path: Path, out: Path, caplog: Any) -> None:
    folder = tmp_path / "in"
    for name, image in {
        "c1/a.png": _sheet((0, 2, 2, 2, PIT), (8, 2, 2, 2, PIT), (3, 10, 2, 2, CRACK)),
        "c1/b.png": _sheet(),
        "c2/a.png": CRACK_SHEET,
        "odd.png": PIT_SHEET,
    }.items():
        _write(folder / name, image)
    (folder / "c1" / "torn.png").write_bytes((folder / "odd.png").read_bytes()[:-20])

    run = process(folder, group="^(c[0-9])/")

    assert (out / "by_group.csv").read_text().splitlines() == [
        "group,images,unreadable,defective,regions_pits,regions_cracks",
        ",1,0,1,1,0",
        "c1,3,1,1,2,1",
        "c2,1,0,1,0,1",
    ]
    groups = {row["ImageId"]: row["group"] for row in _rows(out / "images.csv")}
    assert groups == {"c1/a.png": "c1", "c1/b.png": "c1", "c1/torn.png": "c1", "c2/a.png": "c2", "odd.png": ""}
    assert "1 of 5 images belong to no group, because group='^(c[0-9])/' does not match: odd.png" in caplog.text
    assert run["key"]["outputs"]["group"] == "^(c[0-9])/"
    assert _counts(process(folder, group="^(c[0-9])/")) == (0, 0, 1, 4)
    for other in ("^c[0-9]", None):
        with pytest.raises(OutputExistsError, match=rf"{REFUSED} \(outputs\.group"):
            process(folder, group=other)

    process(folder, into="cracks", group="^(c[0-9])/", classes=["cracks"])
    assert (out.with_name("cracks") / "by_group.csv").read_text().splitlines()[:2] == [
        "group,images,unreadable,defective,regions_cracks",
        ",1,0,0,0",
    ]
    process(folder, overwrite=True)
    assert "by_group.csv" not in _files(out)
    assert "group" not in _rows(out / "images.csv")[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"group": "coil("}, r"group: 'coil\(' is no regular expression"),
        ({"group": "coil"}, r"group: 'coil' matches no ImageId; one of them is 00\.png"),
        ({"group": "0", "outputs": ["rle"]}, r"group: needs regions\.csv\. Add regions to the outputs rle"),
    ],
)
def test_groups_that_cannot_be_told_are_refused_before_anything_is_written(
    process: Run, sheets: Path, out: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        process(sheets, **options)
    assert not out.exists()
