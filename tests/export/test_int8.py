"""int8: which images it is made with, how it is judged, and NNCF at work on a network of two layers."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.config import DataConfig, InferenceConfig, Recipe
from defectseg.data.folder import open_data_folder
from defectseg.data.split import write_split
from defectseg.errors import DataError, ExitCode, ModelError
from defectseg.evaluate import score
from defectseg.evaluate.metrics import Counts, count_pairs
from defectseg.export import int8
from defectseg.export.int8 import Int8Cost, Judge, LabelledImages, choose_images, count_layers, measure, median_ms
from defectseg.model import openvino_io
from defectseg.model.info import ExportInfo, ModelInfo, Normalization, Thresholds

STEEL, PIT = 20, 120
NAMES = ("pits", "cracks")
HALF_A_PIT = np.full((4, 5), STEEL, np.uint8)
HALF_A_PIT[:, :2] = PIT


def _info(fold: int | Literal["val"] | None = None, **changes: Any) -> ModelInfo:
    info = ModelInfo(
        class_names=NAMES,
        normalization=Normalization(mean=0.5, std=0.5),
        thresholds=Thresholds.default(2),
        recipe=Recipe(),
        fold=fold,
    )
    return info.model_copy(update=changes)


def _write_folder(root: Path, images: Mapping[str, Mapping[int, str]], picture: NDArray[Any]) -> Path:
    """A data folder of images that look alike: ImageId -> ClassId -> run-lengths."""
    (root / "train_images").mkdir(parents=True)
    rows = ["ImageId,ClassId,EncodedPixels"]
    for image_id, by_class in images.items():
        assert cv2.imwrite(str(root / "train_images" / image_id), picture)
        rows += [f"{image_id},{class_id},{encoded}" for class_id, encoded in by_class.items()] or [f"{image_id},1,"]
    (root / "train.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of 4 x 5 px: six with pits, two with cracks, four clean."""
    labels: dict[str, Mapping[int, str]] = {f"p{n}.png": {1: "1 4"} for n in range(6)}
    labels |= {f"c{n}.png": {2: "1 4"} for n in range(2)} | {f"s{n}.png": {} for n in range(4)}
    return _write_folder(tmp_path / "data", labels, np.full((4, 5), STEEL, np.uint8))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "model.safetensors"


def test_the_split_beside_the_model_goes_before_that_of_the_data_folder(folder: Path, model: Path) -> None:
    write_split(folder / "split.csv", {"p5.png": 1, "p4.png": 0})
    images = choose_images(folder, _info(fold=1), model)
    assert (images.calibration, images.validation) == (("p4.png",), ("p5.png",))
    write_split(model.parent / "split.csv", {"p0.png": 1, "p1.png": 0, "s0.png": 2, "s1.png": 1, "gone.png": 1})
    images = choose_images(folder, _info(fold=1), model)
    assert images.calibration == ("p1.png", "s0.png")
    assert images.validation == ("p0.png", "s1.png")
    assert "held out" in images.chosen_by


@pytest.mark.parametrize("fold", [None, 3])
def test_without_a_held_out_fold_halves_have_as_many_defects_each(folder: Path, model: Path, fold: int | None) -> None:
    write_split(folder / "split.csv", {"p5.png": 1, "p4.png": 0})
    images = choose_images(folder, _info(fold), model)
    halves = [images.calibration, images.validation]
    assert sorted(image_id for half in halves for image_id in half) == list(images.folder.image_ids)
    for half in halves:
        assert sorted(image_id[0] for image_id in half) == ["c", "p", "p", "p", "s", "s"]
    assert "halves" in images.chosen_by
    assert choose_images(folder, _info(fold), model) == images


@pytest.mark.parametrize("fold", ["val", None])
def test_images_of_test_are_not_used_and_those_of_val_not_calibrated_on(
    folder: Path, model: Path, fold: Literal["val"] | None
) -> None:
    write_split(folder / "split.csv", {"p0.png": "test"})
    write_split(model.parent / "split.csv", {"p1.png": "val", "p2.png": 0, "p3.png": 1, "s0.png": "test", "p0.png": 0})
    images = choose_images(folder, _info(fold), model)
    used = {*images.calibration, *images.validation}
    if fold:
        assert (images.calibration, images.validation) == (("p2.png", "p3.png"), ("p1.png",))
    else:
        assert used == set(open_data_folder(folder).image_ids) - {"p0.png", "s0.png"}


def test_no_more_images_than_are_needed(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "CALIBRATION_IMAGES", 2)
    monkeypatch.setattr(int8, "VALIDATION_IMAGES", 5)
    images = choose_images(folder, _info(), model)
    assert (len(images.calibration), len(images.validation)) == (2, 5)


def test_images_that_int8_cannot_be_judged_by_are_an_error(folder: Path, model: Path, tmp_path: Path) -> None:
    write_split(folder / "split.csv", {"p5.png": 1, "s0.png": 0})
    with pytest.raises(DataError, match="no defect in 1 images to judge int8 on"):
        choose_images(folder, _info(fold=0), model)
    one = _write_folder(tmp_path / "one", {"a.png": {1: "1 4"}}, np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="at least two images"):
        choose_images(one, _info(), model)


def _measure(fp32: Any, quantised: Any, images: LabelledImages) -> Int8Cost:
    return measure(fp32, fp32, quantised, fp32.info, images, HALF_A_PIT, (9, 8))


@pytest.mark.parametrize("learnt", [False, True])
def test_int8_is_judged_on_images_of_the_bit_depth_that_is_said_or_learnt(
    learnt: bool, tmp_path: Path, model: Path, grey_runtime: Callable[..., Any]
) -> None:
    picture = np.full((4, 5), round(PIT / 255 * 4095), np.uint16)
    root = _write_folder(tmp_path / "data", {"a.png": {1: "1 20"}, "b.png": {1: "1 20"}}, picture)
    runtime = grey_runtime()
    if learnt:
        runtime.info = runtime.info.model_copy(update={"recipe": Recipe(data=DataConfig(bit_depth=12))})
    images = choose_images(root, runtime.info, model, bit_depth=None if learnt else 12)
    assert _measure(runtime, runtime, images).positive_dice_int8 == 1


def test_scores_are_those_of_final_masks_against_labels(
    tmp_path: Path, grey_runtime: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    # 4 x 5 px, the first two columns a pit; labelled are the first three columns (12 px in Severstal's order).
    labels: dict[str, Mapping[int, str]] = {"a.png": {1: "1 12"}, "b.png": {}, "torn.png": {1: "1 4"}}
    root = _write_folder(tmp_path / "data", labels, HALF_A_PIT)
    (root / "train_images" / "torn.png").write_bytes(b"no image")
    images = LabelledImages(open_data_folder(root, class_names=NAMES), (), ("a.png", "b.png", "torn.png"), "")
    blind = grey_runtime()
    blind.levels[:] = 0.1
    cost = _measure(grey_runtime(), blind, images)
    assert cost.positive_dice_fp32 == cost.loss == pytest.approx(2 * 8 / (8 + 12))
    assert cost.kaggle_dice_fp32 == pytest.approx((0.8 + 0 + 1 + 1) / 4)  # b.png: 8 px found, nothing is labelled
    assert (cost.positive_dice_int8, cost.kaggle_dice_int8) == (0.0, 0.75)
    assert (cost.labelled_images, cost.mask_dice_int8, cost.layers, cost.layers_int8) == (2, 0.0, 9, 8)
    assert "torn.png" in caplog.text


@pytest.mark.parametrize(("lines", "dice"), [("cracks\npits\n", (0.8, (0.8 + 0 + 1 + 1) / 4)), ("pits\n", (0.8, 0.4))])
def test_int8_is_judged_on_the_classes_that_the_folder_names_in_whatever_order(
    tmp_path: Path, grey_runtime: Callable[..., Any], model: Path, lines: str, dice: tuple[float, float]
) -> None:
    class_id = lines.split().index("pits") + 1
    root = _write_folder(tmp_path / "data", {"a.png": {class_id: "1 12"}, "b.png": {}}, HALF_A_PIT)
    (root / "classes.txt").write_text(lines)
    images = LabelledImages(choose_images(root, _info(), model).folder, (), ("a.png", "b.png"), "")
    cost = _measure(grey_runtime(), grey_runtime(), images)
    assert (cost.positive_dice_fp32, cost.kaggle_dice_fp32) == pytest.approx(dice)
    assert (cost.kaggle_dice_int8, cost.mask_dice_int8) == (cost.kaggle_dice_fp32, 1.0)


def _cost(positive_dice_int8: float) -> Int8Cost:
    return Int8Cost(7, 0.6, positive_dice_int8, 0.9, 0.9, 0.95, 10, 9, 40.0, 20.0)


def test_int8_may_lose_as_much_as_is_allowed_and_no_more() -> None:
    _cost(0.596).check(what="m.xml")
    _cost(0.7).check(what="m.xml")
    with pytest.raises(ModelError, match=r"m\.xml.*loses 0\.0060.*0\.6000 -> 0\.5940 on 7 images") as refused:
        _cost(0.594).check(what="m.xml")
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE
    with pytest.raises(ModelError):
        _cost(float("nan")).check(what="m.xml")


def test_time_is_the_median_without_the_first_call(
    grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(int8, "TIMED_RUNS", 3)
    runtimes, seconds = (grey_runtime(), grey_runtime()), ([0, 9, 1, 5, 2], [0, 9, 4, 4, 4])
    for runtime, taken in zip(runtimes, seconds, strict=True):
        runtime.before = lambda call, taken=taken: clock.__setitem__(0, clock[0] + taken[call])
    assert median_ms(runtimes, np.zeros((2, 3), np.uint8)) == [2000.0, 4000.0]


def _brightness_model() -> Any:
    """An openvino.Model of two 1 x 1 convolutions: pits are bright, cracks never are, the gate is the largest."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset8 as op

    image = op.parameter([-1, 1, -1, -1], np.uint8, name="image")
    grey = op.divide(op.convert(image, "f32"), np.float32(255))
    # Many channels, since NNCF leaves tiny convolutions alone.
    spread = op.convolution(grey, np.full((16, 1, 1, 1), 1, np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    weights = np.stack([np.full((16, 1, 1), 1, np.float32), np.full((16, 1, 1), -1, np.float32)])
    logits = op.convolution(op.relu(spread), weights, [1, 1], [0, 0], [0, 0], [1, 1])
    bias = np.array([-5.0, -5.0], np.float32).reshape(1, 2, 1, 1)
    probabilities = op.sigmoid(op.add(logits, bias))
    gate = op.reduce_max(probabilities, np.array([2, 3]))
    model = openvino.Model([probabilities, gate], [image], "brightness")
    model.input(0).tensor.set_names({"image"})
    for output, name in zip(model.outputs, ("probabilities", "gate"), strict=True):
        output.tensor.set_names({name})
    return model


@pytest.fixture
def bright_images(tmp_path: Path) -> LabelledImages:
    """Four images of 32 x 32 px whose left half is bright and labelled as a pit."""
    picture = np.full((32, 32), 30, np.uint8)
    picture[:, :16] = 200
    root = _write_folder(tmp_path / "data", {f"{n}.png": {1: "1 512"} for n in range(4)}, picture)
    return LabelledImages(open_data_folder(root, class_names=NAMES), ("0.png", "1.png"), ("2.png", "3.png"), "")


def test_nncf_makes_integers_of_the_layers_and_keeps_quiet(
    bright_images: LabelledImages, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf")
    model = _brightness_model()
    assert count_layers(model) == (2, 0)
    assert count_layers(int8.quantize(model, _info(), bright_images)) == (2, 2)
    assert count_layers(model) == (2, 0)
    assert capsys.readouterr() == ("", "")


def test_a_layer_that_costs_too_much_goes_back_to_floating_point(
    bright_images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    # The more often NNCF asks, the less is found, so that layers are taken back one by one.
    asked: list[str] = []

    def count_less(image_id: str, masks: NDArray[np.bool_], *truth: Any) -> Counts:
        asked.append(image_id)
        masks = masks.copy()
        masks[..., : min(len(asked), 15)] = False
        return count_pairs(image_id, masks, *truth)

    monkeypatch.setattr(score, "count_pairs", count_less)
    monkeypatch.setattr(int8, "MAX_LOSS", 0.0)
    assert count_layers(int8.quantize(_brightness_model(), _info(), bright_images))[1] < 2


def test_ctrl_c_ends_it_with_the_images_in_work(
    bright_images: LabelledImages, default_interrupt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    asked: list[str] = []
    stopped = threading.Event()
    away_from_signals = openvino_io.away_from_signals

    def watch(work: Callable[[], Any], *, stop: Callable[[], object]) -> Any:
        def stop_and_tell() -> None:
            stop()
            stopped.set()

        return away_from_signals(work, stop=stop_and_tell)

    def count(image_id: str, *masks: Any) -> Counts:
        asked.append(image_id)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped.wait(60)
        return count_pairs(image_id, *masks)

    monkeypatch.setattr(score, "count_pairs", count)
    monkeypatch.setattr(openvino_io, "away_from_signals", watch)
    with pytest.raises(KeyboardInterrupt):
        int8.quantize(_brightness_model(), _info(), bright_images)
    assert len(asked) <= 2  # the images that were in work
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("openvino")]


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Ctrl-C raises, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_images_that_cannot_be_read_or_have_another_size_than_the_export_are_an_error(
    bright_images: LabelledImages,
) -> None:
    info = _info(export=ExportInfo(format="openvino", size_hw=(32, 33)))
    with pytest.raises(DataError, match=r"0\.png: 32x32 px, but the export is to take 32x33 only"):
        int8.quantize(None, info, bright_images)
    for image_id in bright_images.calibration:
        bright_images.folder.image_path(image_id).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        int8.quantize(None, _info(), bright_images)


class _Pits:
    """What NNCF hands over to be judged, as far as it is used: finds a pit in every bright pixel, and counts calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.calls += 1
        bright = (images > 100).astype(np.float32)
        probabilities = np.concatenate([bright, np.zeros_like(bright)], axis=1)
        return {"probabilities": probabilities, "gate": probabilities.max(axis=(2, 3))}


def _judge(images: LabelledImages, **changes: Any) -> Judge:
    return Judge(_info(**changes), images.folder, images.validation, threading.Event())


def test_nncf_is_told_the_dice_of_all_and_of_each(bright_images: LabelledImages) -> None:
    assert cv2.imwrite(str(bright_images.folder.image_path("3.png")), np.full((32, 32), 200, np.uint8))
    dice, of_each = _judge(bright_images)(_Pits(), iter(("2.png", "3.png")))
    assert of_each == [1.0, pytest.approx(2 * 512 / (512 + 1024))]
    assert dice == pytest.approx((1 + 2 / 3) / 2)


def test_all_images_are_judged_in_the_views_of_predict_and_a_part_in_one(bright_images: LabelledImages) -> None:
    judge, compiled = _judge(bright_images, recipe=Recipe(inference=InferenceConfig(tta="flips"))), _Pits()
    judge(compiled, ["2.png", "3.png"])
    assert compiled.calls == 2 * 4
    judge(compiled, ["3.png"])
    assert compiled.calls == 2 * 4 + 1


def test_long_work_tells_how_far_it_is(
    bright_images: LabelledImages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    judge = _judge(bright_images)
    for _ in range(4):
        clock[0] += 8
        judge(_Pits(), ["2.png"])
    assert caplog.messages == [f"quantising: trial {n}, positive-pair Dice 1.0000 on 1 images" for n in (2, 4)]
