import copy
import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.config import DataConfig
from defectseg.data.folder import image_digest
from defectseg.errors import DataError, ModelError, OutputExistsError, UsageError
from defectseg.evaluate.evaluate import evaluate, evaluate_predictions
from defectseg.image.find import find_images
from defectseg.predict.predict import predict
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

SIZE_HW = (32, 48)
STEEL, PIT, CRACK = 60, 120, 160  # grey levels, as GreyRuntime reads them
FILES = {"metrics.json", "pairs.csv", "report.html"}

# Left, top, width, height of what is seen and of what is labelled.
SEEN = {"a.png": [(2, 4, 6, 8, PIT)], "b.png": [(10, 0, 4, 4, CRACK)], "c.png": [], "d.png": [(0, 0, 8, 8, PIT)]}
LABELS = {"a.png": {1: (5, 4, 6, 8)}, "d.png": {1: (0, 0, 8, 8), 2: (20, 10, 5, 5)}}


def _encode_literally(mask: NDArray[np.bool_]) -> str:
    """Severstal's rule word for word: a run of one pixel each, numbered from 1 down the columns."""
    height = mask.shape[0]
    return " ".join(f"{x * height + y + 1} 1" for x in range(mask.shape[1]) for y in range(height) if mask[y, x])


def _decode_literally(encoded: str, size_hw: tuple[int, int]) -> set[int]:
    """The numbers of the pixels, from 1."""
    numbers = [int(word) for word in encoded.split()]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    pixels = {pixel for start, length in pairs for pixel in range(start, start + length)}
    assert max(pixels, default=0) <= size_hw[0] * size_hw[1]
    return pixels


def _box(left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images: a pit labelled 3 columns aside, a false crack, a clean one, a right pit with a missed crack."""
    root = tmp_path / "data"
    (root / "train_images").mkdir(parents=True)
    for name, defects in SEEN.items():
        image = np.full(SIZE_HW, STEEL, np.uint8)
        for *box, level in defects:
            image[_box(*box)] = level
        (root / "train_images" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    rows = [
        f"{name},{number},{_encode_literally(_box(*box))}" for name in LABELS for number, box in LABELS[name].items()
    ]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    (root / "classes.txt").write_text("pits\ncracks\n")
    return root


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """A model file with the split.csv of its run: a.png and b.png are held back."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.csv").write_text("ImageId,fold\na.png,0\nb.png,0\nc.png,1\nd.png,2\n")
    return write_model(tmp_path / "run" / "model.safetensors")


@pytest.fixture
def runtime(grey_runtime: Callable[..., Any], data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime that any model file loads as; it was trained on c.png and d.png."""
    made = grey_runtime()
    digests = tuple(image_digest(data / "train_images" / name) for name in ("c.png", "d.png"))
    made.info = made.info.model_copy(update={"fold": 0, "trained_on": digests})
    for module in ("evaluate.evaluate", "predict.predict"):
        monkeypatch.setattr(f"defectseg.{module}.load_runtime", lambda *asked, **options: (made, made.info))
    monkeypatch.setattr("defectseg.evaluate.evaluate.read_model_info", lambda path: made.info)
    return made


def _evaluate(model: Path | Sequence[Path], data: Path, out: Path, **options: Any) -> Any:
    return evaluate(model, data, out, **options)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _pairs(out: Path) -> list[list[str]]:
    with (out / "pairs.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def _scored_ids(out: Path) -> set[str]:
    return {row[0] for row in _pairs(out)[1:]}


# Dice of a.png is 2 x 24 / 96 = 0.5, of the false and of the missed crack 0, of the other five pairs 1.
KAGGLE_DICE = (0.5 + 0 + 0 + 5) / 8


def test_an_evaluation_has_exactly_its_files_and_the_figures_worked_by_hand(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []

    evaluation = _evaluate(
        model, data, tmp_path / "out", progress=lambda done, total, text="": steps.append((done, total))
    )

    assert _names(tmp_path / "out") == FILES | {"overlays"}
    assert _names(tmp_path / "out" / "overlays") == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    assert evaluation.metrics.all_empty == 5 / 8
    assert evaluation.metrics.positive_dice == 0.5  # of 0.5, 1 and 0
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["kaggle_dice"] == evaluation.metrics.kaggle_dice
    assert _pairs(tmp_path / "out") == [
        ["ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice"],
        ["a.png", "1", "48", "48", "24", "0.5"], ["a.png", "2", "0", "0", "0", "1"],
        ["b.png", "1", "0", "0", "0", "1"], ["b.png", "2", "0", "16", "0", "0"],
        ["c.png", "1", "0", "0", "0", "1"], ["c.png", "2", "0", "0", "0", "1"],
        ["d.png", "1", "64", "64", "64", "1"], ["d.png", "2", "25", "0", "0", "0"],
    ]  # fmt: skip
    assert steps == [(done, 4) for done in range(5)]


def test_a_folder_with_the_models_names_in_another_order_scores_the_same(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    before = _evaluate(model, data, tmp_path / "before")
    (data / "classes.txt").write_text("cracks\npits\n")
    table = (data / "train.csv").read_text()
    (data / "train.csv").write_text(
        table.replace("png,1,", "png,9,").replace("png,2,", "png,1,").replace("g,9,", "g,2,")
    )

    after = _evaluate(model, data, tmp_path / "after")

    assert (after.metrics, _pairs(tmp_path / "after")) == (before.metrics, _pairs(tmp_path / "before"))


def test_a_folder_that_names_fewer_classes_is_scored_on_those_alone_under_the_models_numbers(
    data: Path, model: Path, runtime: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "classes.txt").write_text("cracks\n")
    (data / "train.csv").write_text(
        f"ImageId,ClassId,EncodedPixels\nd.png,1,{_encode_literally(_box(*LABELS['d.png'][2]))}\n"
    )

    metrics = _evaluate(model, data, tmp_path / "out").metrics

    assert (metrics.kaggle_dice, metrics.pairs) == (2 / 4, 4)  # the false and the missed crack
    assert [(one.class_id, one.name) for one in metrics.classes] == [(2, "cracks")]
    assert [row[:4] for row in _pairs(tmp_path / "out")[1:]] == [
        ["a.png", "2", "0", "0"], ["b.png", "2", "0", "16"], ["c.png", "2", "0", "0"], ["d.png", "2", "25", "0"],
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["facts"]["classes"].endswith(
        "not in the data: pits"
    )
    overlay = cv2.imread(str(tmp_path / "out" / "overlays" / "a.jpg"))
    assert overlay is not None
    assert np.ptp(overlay[: SIZE_HW[0]].astype(int), axis=2).max() < 20, "no pit is painted"
    assert caplog.text.count("does not name pits") == 1


def _widen(data: Path, largest: int) -> None:
    """Turn 8-bit images into 16-bit ones that reach from 0 to `largest`."""
    for path in (data / "train_images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        cv2.imwrite(str(path), np.rint(grey / 255.0 * largest).astype(np.uint16))


@pytest.mark.parametrize("learnt", [False, True])
def test_images_of_fewer_bits_are_told_and_scored_right_once_that_is_said_or_learnt(
    data: Path, model: Path, runtime: Any, tmp_path: Path, learnt: bool
) -> None:
    _widen(data, 4095)
    black = _evaluate(model, data, tmp_path / "black")
    assert (black.low_bit_depth.images, black.low_bit_depth.bit_depth) == (4, 12)
    assert any("4 of 4 16-bit images" in warning for warning in black.warnings)
    if learnt:
        recipe = runtime.info.recipe.model_copy(update={"data": DataConfig(bit_depth=12)})
        runtime.info = runtime.info.model_copy(update={"recipe": recipe})
    right = _evaluate(model, data, tmp_path / "right", bit_depth=None if learnt else 12)
    assert right.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    assert right.low_bit_depth is None


def test_the_model_is_loaded_for_the_device_and_the_runtime_asked_for(
    data: Path, model: Path, runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_runtime(*args: Any) -> Any:
        asked.append(args)
        return runtime, runtime.info

    monkeypatch.setattr("defectseg.evaluate.evaluate.load_runtime", load_runtime)
    _evaluate(model, data, tmp_path / "default")
    _evaluate(model, data, tmp_path / "other", device="cuda:1", runtime="onnx")

    assert asked == [((model,), "auto", "auto"), ((model,), "cuda:1", "onnx")]


def test_overlays_show_truth_blue_prediction_red_and_both_magenta(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    _evaluate(model, data, tmp_path / "out")

    overlay = cv2.imread(str(tmp_path / "out" / "overlays" / "a.jpg"))
    assert overlay is not None
    blue, green, red = (overlay[: SIZE_HW[0], :, channel].astype(int) for channel in range(3))
    np.testing.assert_array_equal(red - green > 45, _box(2, 4, 6, 8))  # predicted
    np.testing.assert_array_equal(blue - green > 45, _box(5, 4, 6, 8))  # labelled


def test_ignored_pixels_are_neither_scored_nor_painted(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    with (data / "train.csv").open("a") as handle:
        handle.write(f"b.png,255,{_encode_literally(_box(8, 0, 8, 6))}\n")

    evaluation = _evaluate(model, data, tmp_path / "out")

    # Both pairs of b.png, which has no label, are unknown; of the others one has Dice 0.5, and one 0.
    assert (evaluation.metrics.kaggle_dice, evaluation.metrics.unknown_pairs) == (4.5 / 6, 2)
    overlay = cv2.imread(str(tmp_path / "out" / "overlays" / "b.jpg"))
    assert overlay is not None
    assert np.ptp(overlay[: SIZE_HW[0]].astype(int), axis=2).max() < 20


def test_subset_all_warns_with_the_number_of_images_that_the_model_was_trained_on(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    evaluation = _evaluate(model, data, tmp_path / "out")

    assert evaluation.warnings == (
        "the model was trained on 2 of these 4 images; the subset val gives an honest score",
    )
    assert evaluation.warnings[0] in json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"]


def test_train_and_val_divide_the_images(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    train = _evaluate(model, data, tmp_path / "train", subset="train")
    val = _evaluate(model, data, tmp_path / "val", subset="val")

    assert _scored_ids(tmp_path / "val") == {"a.png", "b.png"}
    assert _scored_ids(tmp_path / "train") == {"c.png", "d.png"}
    assert val.warnings == ()
    assert any("trained on" in warning for warning in train.warnings)


def test_validation_images_that_are_copies_of_training_images_are_told(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    images = data / "train_images"
    (images / "b.png").write_bytes((images / "c.png").read_bytes())

    val = _evaluate(model, data, tmp_path / "val", subset="val")

    assert any("trained on 1 of these 2 images" in warning for warning in val.warnings)


def test_a_split_that_is_named_goes_before_the_one_beside_the_model(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text("ImageId,fold\na.png,1\nb.png,1\nc.png,0\n")

    evaluation = _evaluate(model, data, tmp_path / "out", subset="val", split=tmp_path / "mine.csv")

    assert _scored_ids(tmp_path / "out") == {"c.png"}
    assert any("1 images of" in warning and "mine.csv" in warning for warning in evaluation.warnings)


def test_a_subset_without_a_split_is_refused_before_anything_is_written(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (model.parent / "split.csv").unlink()

    with pytest.raises(UsageError, match=r"split: no split\.csv beside .*model\.safetensors"):
        _evaluate(model, data, tmp_path / "out", subset="val")
    with pytest.raises(DataError, match=r"missing\.csv"):
        _evaluate(model, data, tmp_path / "out", subset="val", split=tmp_path / "missing.csv")

    assert not _names(tmp_path / "out")


def test_a_model_trained_on_everything_has_no_validation_images(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    runtime.info = runtime.info.model_copy(update={"fold": None})

    with pytest.raises(UsageError, match="trained on all folds"):
        _evaluate(model, data, tmp_path / "out", subset="val")


@pytest.fixture
def ensemble(model: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two models with equal splits beside them, and answers as those of `runtime`; `runtime` is the first of both."""
    other = model.parent.with_name("other") / model.name
    other.parent.mkdir()
    for name in ("split.csv", "model.safetensors"):
        (other.parent / name).write_bytes((model.parent / name).read_bytes())
    twin = copy.copy(runtime)

    def load(paths: Sequence[Path], device: str, name: str) -> Any:
        return EnsembleRuntime([runtime, twin]), join_infos([runtime.info, twin.info], paths)

    monkeypatch.setattr("defectseg.evaluate.evaluate.load_runtime", load)
    return model, other


def test_an_ensemble_is_evaluated_as_one_model_and_the_report_lists_its_models(
    data: Path, runtime: Any, ensemble: tuple[Path, Path], tmp_path: Path
) -> None:
    evaluation = _evaluate(ensemble, data, tmp_path / "out")

    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())["facts"]
    assert facts["model"] == f"{ensemble[0]}, {ensemble[1]}"
    assert facts["runtime"] == "ensemble of 2: grey levels"
    assert (facts["seed of the training"], facts["fold held out"]) == ("0, 0", "0, 0")
    assert "2 models on data" in (tmp_path / "out" / "report.html").read_text()


def test_models_that_held_back_the_same_images_are_evaluated_on_those(
    data: Path, ensemble: tuple[Path, Path], tmp_path: Path
) -> None:
    evaluation = _evaluate(ensemble, data, tmp_path / "out", subset="val")

    assert _scored_ids(tmp_path / "out") == {"a.png", "b.png"}
    assert evaluation.warnings == ()


@pytest.mark.parametrize("subset", ["train", "val"])
def test_models_that_held_back_other_images_have_no_common_validation_images(
    data: Path, runtime: Any, ensemble: tuple[Path, Path], tmp_path: Path, subset: str
) -> None:
    models, split = ensemble, ensemble[0].parent / "split.csv"
    (models[1].parent / "split.csv").write_text("ImageId,fold\na.png,1\nb.png,0\nc.png,1\nd.png,2\n")
    with pytest.raises(UsageError, match=r"2 models did not all hold back the same images.*subset='all'"):
        _evaluate(models, data, tmp_path / "out", subset=subset)
    _evaluate(models, data, tmp_path / "by-split", subset=subset, split=split)  # the user says which it was

    (models[1].parent / "split.csv").unlink()
    with pytest.raises(UsageError, match=r"no split\.csv beside .*other"):
        _evaluate(models, data, tmp_path / "out", subset=subset)

    runtime.info = runtime.info.model_copy(update={"fold": 1})  # the other one is still of fold 0
    with pytest.raises(UsageError, match="2 models did not all hold back the same images"):
        _evaluate(models, data, tmp_path / "out", subset=subset, split=split)


def test_an_ensemble_of_folds_warns_of_every_image_that_any_of_them_was_trained_on(
    data: Path, runtime: Any, ensemble: tuple[Path, Path], tmp_path: Path
) -> None:
    digests = tuple(image_digest(data / "train_images" / name) for name in ("a.png", "d.png"))
    runtime.info = runtime.info.model_copy(update={"fold": 1, "trained_on": digests})

    evaluation = _evaluate(ensemble, data, tmp_path / "out")

    assert evaluation.warnings == ("the model was trained on 3 of these 4 images; scores on new images will be lower",)


def test_augmentation_at_test_time_is_as_told_and_shown_in_the_report(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    def facts(name: str) -> Any:
        return json.loads((tmp_path / name / "metrics.json").read_text())["facts"]

    _evaluate(model, data, tmp_path / "plain")
    assert len(runtime.calls) == 4
    evaluation = _evaluate(model, data, tmp_path / "flips", tta="flips")

    assert len(runtime.calls) == 4 + 16
    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE)
    assert facts("plain")["test-time augmentation"] == "none"
    assert facts("flips")["test-time augmentation"] == "flips"
    with pytest.raises(UsageError, match="tta: expected none, flips, turns, found flop"):
        _evaluate(model, data, tmp_path / "flop", tta="flop")


def test_a_split_of_other_images_is_refused(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    (model.parent / "split.csv").write_text("ImageId,fold\nother.png,0\n")

    with pytest.raises(UsageError, match="none of the images"):
        _evaluate(model, data, tmp_path / "out", subset="val")


def test_unreadable_images_are_left_out_and_listed(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    (data / "train_images" / "b.png").write_bytes(b"not an image")

    evaluation = _evaluate(model, data, tmp_path / "out")

    assert _names(tmp_path / "out") == FILES | {"overlays", "errors.csv"}
    assert _scored_ids(tmp_path / "out") == {"a.png", "c.png", "d.png"}
    with (tmp_path / "out" / "errors.csv").open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["ImageId"], row["path"]) == ("b.png", str(data / "train_images" / "b.png"))
    assert [one.image_id for one in evaluation.unreadable] == ["b.png"]


def test_a_link_that_leads_nowhere_is_an_unreadable_image(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (data / "train_images" / "z.png").symlink_to(tmp_path / "nowhere.png")

    evaluation = _evaluate(model, data, tmp_path / "out")

    assert [one.image_id for one in evaluation.unreadable] == ["z.png"]


def test_a_folder_of_unreadable_images_is_an_error_that_names_the_first(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    for path in (data / "train_images").iterdir():
        path.write_bytes(b"not an image")

    with pytest.raises(DataError, match=r"none of the 4 images can be read.*a\.png"):
        _evaluate(model, data, tmp_path / "out")


def test_labels_of_images_that_are_not_there_are_told(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    (data / "train_images" / "d.png").unlink()

    evaluation = _evaluate(model, data, tmp_path / "out")

    assert any("1 images of the label table are not in the folder (first: d.png)" in one for one in evaluation.warnings)


def test_an_earlier_evaluation_is_kept_unless_told_to_overwrite(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (data / "train_images" / "b.png").write_bytes(b"not an image")
    _evaluate(model, data, tmp_path / "out")
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    with pytest.raises(OutputExistsError, match=r"errors\.csv, metrics\.json, overlays, .*overwrite=True"):
        _evaluate(model, data, tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before

    _evaluate(model, data, tmp_path / "out", overwrite=True, subset="train")

    assert _names(tmp_path / "out") == FILES | {"overlays"}  # errors.csv is gone, as nothing failed
    assert _names(tmp_path / "out" / "overlays") == {"c.jpg", "d.jpg"}


def test_an_evaluation_that_cannot_begin_leaves_the_earlier_one(
    data: Path, model: Path, runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _evaluate(model, data, tmp_path / "out")
    before = _names(tmp_path / "out")

    def refuse(path: Path, device: str, runtime: str) -> Any:
        raise ModelError("damaged")

    monkeypatch.setattr("defectseg.evaluate.evaluate.load_runtime", refuse)
    with pytest.raises(ModelError):
        _evaluate(model, data, tmp_path / "out", overwrite=True)

    assert _names(tmp_path / "out") == before


def test_an_interrupted_evaluation_can_be_done_again_in_its_folder(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    def interrupt(call: int) -> None:
        if call == 3:
            raise KeyboardInterrupt

    runtime.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        _evaluate(model, data, tmp_path / "out")
    assert _names(tmp_path / "out") == {"overlays"}
    runtime.before = lambda call: None

    _evaluate(model, data, tmp_path / "out", overwrite=True)

    assert _names(tmp_path / "out") == FILES | {"overlays"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused_and_untouched(
    data: Path, model: Path, runtime: Any, tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "holiday.jpg").write_bytes(b"dear to somebody")
    (out / "metrics.json").write_text("of another program")
    (out / "notes.txt").write_text("dear to somebody")

    with pytest.raises(OutputExistsError, match=r"notes\.txt, not written by evaluate"):
        _evaluate(model, data, out, overwrite=overwrite)
    with pytest.raises(OutputExistsError, match=r"notes\.txt, not written by evaluate"):
        evaluate_predictions(data / "train.csv", data, out, overwrite=overwrite)

    assert sorted(path.name for path in out.rglob("*.*")) == ["holiday.jpg", "metrics.json", "notes.txt"]


def test_an_overlay_too_long_for_a_jpeg_does_not_stop_the_evaluation(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    long = np.full((2, 66_000), STEEL, np.uint8)
    (data / "train_images" / "long.png").write_bytes(cv2.imencode(".png", long)[1].tobytes())

    _evaluate(model, data, tmp_path / "out")

    assert _scored_ids(tmp_path / "out") == {*SEEN, "long.png"}


def test_predictions_in_a_file_score_as_the_model_that_made_them(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    with (data / "train.csv").open("a") as handle:
        handle.write(f"a.png,255,{_encode_literally(_box(3, 2, 4, 5))}\n")
        handle.write(f"c.png,255,{_encode_literally(_box(0, 0, 9, 9))}\n")
    predict(model, find_images([data / "train_images"]), tmp_path / "predicted")
    by_model = _evaluate(model, data, tmp_path / "by-model")

    by_file = evaluate_predictions(tmp_path / "predicted" / "predictions.csv", data, tmp_path / "by-file")

    assert by_file.metrics == by_model.metrics
    assert by_file.metrics.unknown_pairs == 2
    assert by_file.warnings == ()
    assert _names(tmp_path / "by-file") == FILES
    assert _pairs(tmp_path / "by-file") == _pairs(tmp_path / "by-model")
    assert evaluate_predictions(tmp_path / "predicted" / "predictions.csv", data, None).metrics == by_model.metrics


@pytest.mark.skipif(os.name == "nt", reason="such files cannot exist there")
def test_files_that_cannot_be_read_are_left_out_whoever_predicted(
    data: Path, model: Path, runtime: Any, tmp_path: Path
) -> None:
    (tmp_path / "all.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,\nb.png,1,\nc.png,1,\nd.png,1,\n")
    images = data / "train_images"
    (images / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (images / "d.png").unlink()
    os.mkfifo(images / "d.png")

    by_model = _evaluate(model, data, tmp_path / "by-model")
    by_file = evaluate_predictions(tmp_path / "all.csv", data, tmp_path / "by-file")

    for evaluation, out in ((by_model, "by-model"), (by_file, "by-file")):
        assert [one.image_id for one in evaluation.unreadable] == ["%FF.png", "d.png"]
        with (tmp_path / out / "errors.csv").open(newline="") as handle:
            assert [row["ImageId"] for row in csv.DictReader(handle)] == ["%FF.png", "d.png"]
        assert _scored_ids(tmp_path / out) == {"a.png", "b.png", "c.png"}
        assert sum("left out" in warning for warning in evaluation.warnings) == 2


def test_an_independent_scorer_gets_the_same_kaggle_dice(data: Path, model: Path, runtime: Any, tmp_path: Path) -> None:
    predict(model, find_images([data / "train_images"]), tmp_path / "predicted")

    def read(path: Path) -> dict[tuple[str, int], set[int]]:
        with path.open(newline="") as handle:
            return {
                (row["ImageId"], int(row["ClassId"])): _decode_literally(row["EncodedPixels"], SIZE_HW)
                for row in csv.DictReader(handle)
            }

    predicted, truth = read(tmp_path / "predicted" / "predictions.csv"), read(data / "train.csv")
    dice = []
    for key in predicted:
        one, other = predicted[key], truth.get(key, set())
        dice.append(2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0)

    assert sorted(predicted) == [(name, number) for name in SEEN for number in (1, 2)]
    score = sum(dice) / len(dice)
    assert score == pytest.approx(KAGGLE_DICE)
    assert abs(score - _evaluate(model, data, tmp_path / "out").metrics.kaggle_dice) < 1e-6
