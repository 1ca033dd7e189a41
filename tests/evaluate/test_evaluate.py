import copy
import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.config import DataConfig
from defectseg.data.folder import image_digest
from defectseg.errors import DataError, DefectsegError, ModelError, OutputExistsError, UsageError
from defectseg.evaluate.evaluate import evaluate, evaluate_predictions
from defectseg.evaluate.score import Evaluation
from defectseg.image.find import find_images
from defectseg.predict.predict import predict
from defectseg.predict.tables import OutputChoice
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

Call = Callable[..., Any]

SIZE_HW = (32, 48)
STEEL, PIT, CRACK = 60, 120, 160  # grey levels, as GreyRuntime reads them
FILES = {"metrics.json", "pairs.csv", "report.html"}

# Left, top, width, height of what is seen and of what is labelled.
SEEN = {"a.png": [(2, 4, 6, 8, PIT)], "b.png": [(10, 0, 4, 4, CRACK)], "c.png": [], "d.png": [(0, 0, 8, 8, PIT)]}
LABELS = {"a.png": {1: (5, 4, 6, 8)}, "d.png": {1: (0, 0, 8, 8), 2: (20, 10, 5, 5)}}

# Dice of a.png is 2 x 24 / 96 = 0.5, of the false and of the missed crack 0, of the other five pairs 1.
KAGGLE_DICE = (0.5 + 0 + 0 + 5) / 8


def _encode_literally(mask: NDArray[np.bool_]) -> str:
    """Severstal's rule word for word: a run of one pixel each, numbered from 1 down the columns."""
    height = mask.shape[0]
    return " ".join(f"{x * height + y + 1} 1" for x in range(mask.shape[1]) for y in range(height) if mask[y, x])


def _box(left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def _row(name: str, number: int, *box: int) -> str:
    return f"{name},{number},{_encode_literally(_box(*box))}"


@dataclass
class _Bench:
    """A data folder and a model that was trained on c.png and d.png; a.png and b.png are its fold 0."""

    root: Path
    data: Path
    model: Path
    runtime: Any
    models: tuple[Path, ...] = ()
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def evaluate(self, out: str = "out", **options: Any) -> Evaluation:
        return evaluate(self.models or self.model, self.data, self.root / out, **options)

    def label(self, rows: Sequence[str], classes: str | None = None) -> None:
        (self.data / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
        if classes is not None:
            (self.data / "classes.txt").write_text(classes)

    def describe(self, **changes: Any) -> None:
        self.runtime.info = self.runtime.info.model_copy(update=changes)

    def load(self, paths: Sequence[Path], *asked: Any, **options: Any) -> Any:
        self.asked.append(asked)
        return self.runtime, self.runtime.info

    def digests(self, *names: str) -> tuple[str, ...]:
        return tuple(image_digest(self.data / "train_images" / name) for name in names)


ROWS = [_row(name, number, *box) for name, boxes in LABELS.items() for number, box in boxes.items()]


@pytest.fixture
def bench(
    tmp_path: Path, write_data: Call, write_model: Call, grey_runtime: Call, monkeypatch: pytest.MonkeyPatch
) -> _Bench:
    """Four images: a pit labelled 3 columns aside, a false crack, a clean one, a right pit with a missed crack."""
    images = {name: np.full(SIZE_HW, STEEL, np.uint8) for name in SEEN}
    for name, defects in SEEN.items():
        for *box, level in defects:
            images[name][_box(*box)] = level
    data = write_data(tmp_path / "data", images, ROWS, ["pits", "cracks"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.csv").write_text("ImageId,fold\na.png,0\nb.png,0\nc.png,1\nd.png,2\n")
    bench = _Bench(tmp_path, data, write_model(tmp_path / "run" / "model.safetensors"), grey_runtime())
    bench.describe(fold=0, trained_on=bench.digests("c.png", "d.png"))
    for module in ("evaluate.evaluate", "predict.predict"):
        monkeypatch.setattr(f"defectseg.{module}.load_runtime", bench.load)
    monkeypatch.setattr("defectseg.evaluate.evaluate.read_model_info", lambda path: bench.runtime.info)
    return bench


@pytest.fixture
def ensemble(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    """Two models with equal splits beside them and equal answers; the runtime of `bench` is that of the first."""
    other = bench.root / "other" / bench.model.name
    other.parent.mkdir()
    for name in ("split.csv", "model.safetensors"):
        (other.parent / name).write_bytes((bench.model.parent / name).read_bytes())
    bench.models, twin = (bench.model, other), copy.copy(bench.runtime)

    def load(paths: Sequence[Path], *asked: Any) -> Any:
        return EnsembleRuntime([bench.runtime, twin]), join_infos([bench.runtime.info, twin.info], paths)

    monkeypatch.setattr("defectseg.evaluate.evaluate.load_runtime", load)
    return bench


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _pairs(out: Path) -> list[list[str]]:
    with (out / "pairs.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def _scored_ids(out: Path) -> set[str]:
    return {row[0] for row in _pairs(out)[1:]}


def _facts(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())["facts"]


def _painted(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where an overlay is red, and where it is blue, above its legend."""
    overlay = cv2.imread(str(path))
    assert overlay is not None
    blue, green, red = (overlay[: SIZE_HW[0], :, channel].astype(int) for channel in range(3))
    return red - green > 45, blue - green > 45


def test_an_evaluation_has_exactly_its_files_and_the_figures_worked_by_hand(bench: _Bench) -> None:
    steps: list[tuple[int, int]] = []

    evaluation = bench.evaluate(progress=lambda done, total, text="": steps.append((done, total)))
    bench.evaluate("other", device="cuda:1", runtime="onnx")

    out = bench.root / "out"
    assert _names(out) == FILES | {"overlays"}
    assert _names(out / "overlays") == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    assert evaluation.metrics.all_empty == 5 / 8
    assert evaluation.metrics.positive_dice == 0.5  # of 0.5, 1 and 0
    stored = json.loads((out / "metrics.json").read_text())
    assert stored["kaggle_dice"] == evaluation.metrics.kaggle_dice
    warning = "the model was trained on 2 of these 4 images; the subset val gives an honest score"
    assert evaluation.warnings == tuple(stored["warnings"]) == (warning,)
    assert _pairs(out) == [
        ["ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice", "sheet_score"],
        ["a.png", "1", "48", "48", "24", "0.5", "0.9"], ["a.png", "2", "0", "0", "0", "1", "0.9"],
        ["b.png", "1", "0", "0", "0", "1", "0.8"], ["b.png", "2", "0", "16", "0", "0", "0.8"],
        ["c.png", "1", "0", "0", "0", "1", "0.1"], ["c.png", "2", "0", "0", "0", "1", "0.1"],
        ["d.png", "1", "64", "64", "64", "1", "0.9"], ["d.png", "2", "25", "0", "0", "0", "0.9"],
    ]  # fmt: skip
    assert steps == [(done, 4) for done in range(5)]
    assert bench.asked == [("auto", "auto"), ("cuda:1", "onnx")]


def test_a_folder_with_the_models_names_in_another_order_scores_the_same(bench: _Bench) -> None:
    before = bench.evaluate("before")
    renumbered = [_row(name, 3 - number, *box) for name, boxes in LABELS.items() for number, box in boxes.items()]
    bench.label(renumbered, classes="cracks\npits\n")

    after = bench.evaluate("after")

    assert (after.metrics, _pairs(bench.root / "after")) == (before.metrics, _pairs(bench.root / "before"))


def test_a_folder_with_fewer_classes_is_scored_on_them_with_the_models_class_ids(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.label([_row("d.png", 1, *LABELS["d.png"][2])], classes="cracks\n")

    metrics = bench.evaluate().metrics

    assert (metrics.kaggle_dice, metrics.pairs) == (2 / 4, 4)  # the false and the missed crack
    assert [(one.class_id, one.name) for one in metrics.classes] == [(2, "cracks")]
    assert [row[:4] for row in _pairs(bench.root / "out")[1:]] == [
        ["a.png", "2", "0", "0"], ["b.png", "2", "0", "16"], ["c.png", "2", "0", "0"], ["d.png", "2", "25", "0"],
    ]  # fmt: skip
    assert _facts(bench.root / "out")["classes"] == "cracks; not in the data: pits"
    assert not np.any(_painted(bench.root / "out" / "overlays" / "a.jpg")), "no pit is painted"
    assert caplog.text.count("does not name pits") == 1


@pytest.mark.parametrize("learnt", [False, True])
def test_low_bit_depth_is_warned_of_and_scored_correctly_once_it_is_known(bench: _Bench, learnt: bool) -> None:
    for path in (bench.data / "train_images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        cv2.imwrite(str(path), np.rint(grey / 255.0 * 4095).astype(np.uint16))
    black = bench.evaluate("black")
    assert any("4 of 4 16-bit images" in warning and "bit_depth=12" in warning for warning in black.warnings)
    if learnt:
        bench.describe(recipe=bench.runtime.info.recipe.model_copy(update={"data": DataConfig(bit_depth=12)}))
    right = bench.evaluate("right", bit_depth=None if learnt else 12)
    assert right.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    assert not any("16-bit" in warning for warning in right.warnings)


def test_overlays_show_truth_blue_and_prediction_red_outside_the_ignored_pixels(bench: _Bench) -> None:
    ignored = _box(8, 0, 8, 6)
    bench.label([*ROWS, _row("b.png", 255, 8, 0, 8, 6)])

    metrics = bench.evaluate().metrics

    predicted, labelled = _painted(bench.root / "out" / "overlays" / "a.jpg")
    np.testing.assert_array_equal(predicted, _box(2, 4, 6, 8))
    np.testing.assert_array_equal(labelled, _box(5, 4, 6, 8))
    assert not (np.any(_painted(bench.root / "out" / "overlays" / "b.jpg"), axis=0) & ignored).any()
    # Both pairs of b.png, which has no label, are unknown; of the others one has Dice 0.5, and one 0.
    assert (metrics.kaggle_dice, metrics.unknown_pairs) == (4.5 / 6, 2)


def test_train_and_val_divide_the_images(bench: _Bench) -> None:
    train, val = bench.evaluate("train", subset="train"), bench.evaluate("val", subset="val")

    assert _scored_ids(bench.root / "val") == {"a.png", "b.png"}
    assert _scored_ids(bench.root / "train") == {"c.png", "d.png"}
    assert val.warnings == ()
    assert any("trained on" in warning for warning in train.warnings)

    images = bench.data / "train_images"
    (images / "b.png").write_bytes((images / "c.png").read_bytes())
    assert "trained on 1 of these 2 images" in bench.evaluate("copies", subset="val").warnings[0]


def test_a_split_that_is_named_goes_before_the_one_beside_the_model(bench: _Bench) -> None:
    (bench.root / "mine.csv").write_text("ImageId,fold\na.png,1\nb.png,1\nc.png,0\n")

    evaluation = bench.evaluate(subset="val", split=bench.root / "mine.csv")

    assert _scored_ids(bench.root / "out") == {"c.png"}
    assert any("1 images of" in warning and "mine.csv" in warning for warning in evaluation.warnings)


def test_the_part_test_comes_from_the_split_of_the_model_or_else_of_the_data_folder(bench: _Bench) -> None:
    with pytest.raises(UsageError, match=r"test: no image .*data is in test of .*split\.csv or .*data/split\.csv"):
        bench.evaluate(subset="test")
    (bench.data / "split.csv").write_text("ImageId,fold\na.png,test\nb.png,0\nc.png,test\n")
    evaluation = bench.evaluate(subset="test")
    assert _scored_ids(bench.root / "out") == {"a.png", "c.png"}
    assert evaluation.warnings == ("the model was trained on 1 of these 2 images; scores on new images will be lower",)
    (bench.model.parent / "split.csv").write_text("ImageId,fold\na.png,val\nb.png,test\nc.png,0\nd.png,1\n")
    bench.describe(fold="val")
    scored = {}
    for subset in ("test", "val", "train"):
        bench.evaluate(subset, subset=subset)
        scored[subset] = _scored_ids(bench.root / subset)
    assert scored == {"test": {"b.png"}, "val": {"a.png"}, "train": {"c.png", "d.png"}}
    bench.evaluate("given", subset="test", split=bench.data / "split.csv")
    assert _scored_ids(bench.root / "given") == {"a.png", "c.png"}


def test_an_unknown_subset_is_refused_before_anything_is_written(bench: _Bench) -> None:
    (bench.root / "others.csv").write_text("ImageId,fold\nother.png,0\n")
    with pytest.raises(UsageError, match="none of the images"):
        bench.evaluate(subset="val", split=bench.root / "others.csv")
    with pytest.raises(DataError, match=r"missing\.csv"):
        bench.evaluate(subset="val", split=bench.root / "missing.csv")
    (bench.model.parent / "split.csv").unlink()
    with pytest.raises(UsageError, match=r"split: no split\.csv beside .*model\.safetensors"):
        bench.evaluate(subset="val")
    bench.describe(fold=None)
    with pytest.raises(UsageError, match="trained on all folds"):
        bench.evaluate(subset="val")

    assert not _names(bench.root / "out")


def test_an_ensemble_is_evaluated_as_one_model_and_the_report_lists_its_models(ensemble: _Bench) -> None:
    evaluation, val = ensemble.evaluate(), ensemble.evaluate("val", subset="val")

    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE, abs=1e-12)
    facts = _facts(ensemble.root / "out")
    assert facts["model"] == ", ".join(map(str, ensemble.models))
    assert facts["runtime"] == "ensemble of 2: grey levels"
    assert (facts["seed of the training"], facts["fold held out"]) == ("0, 0", "0, 0")
    assert "2 models on data" in (ensemble.root / "out" / "report.html").read_text()
    assert (_scored_ids(ensemble.root / "val"), val.warnings) == ({"a.png", "b.png"}, ())


@pytest.mark.parametrize("subset", ["train", "val"])
def test_models_that_held_back_other_images_have_no_common_validation_images(ensemble: _Bench, subset: str) -> None:
    split, other = (model.parent / "split.csv" for model in ensemble.models)
    other.write_text("ImageId,fold\na.png,1\nb.png,0\nc.png,1\nd.png,2\n")
    with pytest.raises(UsageError, match=r"2 models did not all hold back the same images.*subset='all'"):
        ensemble.evaluate(subset=subset)
    ensemble.evaluate("by-split", subset=subset, split=split)  # the user says which it was

    other.unlink()
    with pytest.raises(UsageError, match=r"no split\.csv beside .*other"):
        ensemble.evaluate(subset=subset)

    ensemble.describe(fold=1)  # the other one is still of fold 0
    with pytest.raises(UsageError, match="2 models did not all hold back the same images"):
        ensemble.evaluate(subset=subset, split=split)


def test_an_ensemble_warns_of_every_image_that_any_of_its_models_was_trained_on(ensemble: _Bench) -> None:
    ensemble.describe(trained_on=ensemble.digests("a.png", "d.png"))

    (warning,) = ensemble.evaluate().warnings

    assert warning == "the model was trained on 3 of these 4 images; the subset val gives an honest score"


def test_requested_augmentation_is_used_and_shown_in_the_report(bench: _Bench) -> None:
    bench.evaluate("plain")
    assert len(bench.runtime.calls) == 4
    evaluation = bench.evaluate("flips", tta="flips")

    assert len(bench.runtime.calls) == 4 + 16
    assert evaluation.metrics.kaggle_dice == pytest.approx(KAGGLE_DICE)
    assert _facts(bench.root / "plain")["test-time augmentation"] == "none"
    assert _facts(bench.root / "flips")["test-time augmentation"] == "flips"
    with pytest.raises(UsageError, match="tta: expected none, flips, turns, found flop"):
        bench.evaluate("flop", tta="flop")


@pytest.mark.skipif(os.name == "nt", reason="such files cannot exist there")
def test_unreadable_files_are_left_out_and_listed_for_models_and_for_predictions(bench: _Bench) -> None:
    (bench.root / "all.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,\nb.png,1,\nc.png,1,\nd.png,1,\n")
    images = bench.data / "train_images"
    (images / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (images / "b.png").write_bytes(b"not an image")
    (images / "e.png").symlink_to(bench.root / "nowhere.png")
    (images / "d.png").unlink()
    os.mkfifo(images / "d.png")

    by_model = bench.evaluate()
    by_file = evaluate_predictions(bench.root / "all.csv", bench.data, bench.root / "by-file")

    # Nothing is labelled or predicted in b.png and e.png, so that their size is not needed to score a file.
    for evaluation, out, unreadable, scored in (
        (by_model, bench.root / "out", ["%FF.png", "b.png", "d.png", "e.png"], {"a.png", "c.png"}),
        (by_file, bench.root / "by-file", ["%FF.png", "d.png"], {"a.png", "b.png", "c.png", "e.png"}),
    ):
        assert [one.image_id for one in evaluation.unreadable] == unreadable
        with (out / "errors.csv").open(newline="") as handle:
            rows = {row["ImageId"]: row["path"] for row in csv.DictReader(handle)}
        assert list(rows) == unreadable
        assert rows["d.png"] == str(images / "d.png")
        assert _scored_ids(out) == scored
        assert sum(warning.startswith("left out") for warning in evaluation.warnings) == len(unreadable)


def test_labels_of_missing_images_are_warned_of(bench: _Bench) -> None:
    (bench.data / "train_images" / "d.png").unlink()

    missing, _ = bench.evaluate().warnings

    assert "1 images of the label table are not in the folder (first: d.png)" in missing


def test_an_earlier_evaluation_is_kept_without_overwrite(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.data / "train_images" / "b.png").write_bytes(b"not an image")
    bench.evaluate()
    out = bench.root / "out"
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    with pytest.raises(OutputExistsError, match=r"errors\.csv, metrics\.json, overlays, .*overwrite=True"):
        bench.evaluate()
    with monkeypatch.context() as patch:

        def refuse(*asked: Any) -> Any:
            raise ModelError("damaged")

        patch.setattr("defectseg.evaluate.evaluate.load_runtime", refuse)
        with pytest.raises(ModelError):
            bench.evaluate(overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before

    bench.evaluate(overwrite=True, subset="train")

    assert _names(out) == FILES | {"overlays"}  # errors.csv is gone, as nothing failed
    assert _names(out / "overlays") == {"c.jpg", "d.jpg"}


def test_an_overlay_too_long_for_a_jpeg_does_not_stop_the_evaluation(bench: _Bench) -> None:
    cv2.imwrite(str(bench.data / "train_images" / "long.png"), np.full((2, 66_000), STEEL, np.uint8))

    bench.evaluate()

    assert _scored_ids(bench.root / "out") == {*SEEN, "long.png"}


def test_predictions_in_a_file_score_as_the_model_that_made_them(bench: _Bench) -> None:
    bench.label([*ROWS, _row("a.png", 255, 3, 2, 4, 5), _row("c.png", 255, 0, 0, 9, 9)])
    predict(bench.model, find_images([bench.data / "train_images"]), bench.root / "predicted")
    table, by_file = bench.root / "predicted" / "predictions.csv", bench.root / "by-file"
    by_model = bench.evaluate().metrics

    evaluation = evaluate_predictions(table, bench.data, by_file)

    assert (evaluation.metrics, evaluation.metrics.unknown_pairs, evaluation.warnings) == (by_model, 2, ())
    assert _names(by_file) == FILES
    assert [row[:6] for row in _pairs(by_file)] == [row[:6] for row in _pairs(bench.root / "out")]
    assert {row[6] for row in _pairs(by_file)} == {"sheet_score", ""}, "a table has no scores"
    by_folder = evaluate_predictions(table.parent, bench.data, bench.root / "by-folder")
    assert by_folder.metrics == by_model
    assert _pairs(bench.root / "by-folder") == _pairs(bench.root / "out")
    assert evaluate_predictions(table, bench.data, None).metrics == by_model


def test_a_result_folder_scores_the_images_that_it_has(bench: _Bench) -> None:
    images, out = bench.data / "train_images", bench.root / "predicted"
    broken = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(broken[:40])
    predict(bench.model, find_images([images / name for name in ("a.png", "b.png", "c.png")]), out)
    (images / "b.png").write_bytes(broken)

    evaluation = evaluate_predictions(out, bench.data, bench.root / "by-folder")

    assert [one.image_id for one in evaluation.unreadable] == ["b.png"], "it was unreadable when it was predicted"
    assert _scored_ids(bench.root / "by-folder") == {"a.png", "c.png"}
    assert "1 images are not in predicted and are left out: d.png." in evaluation.warnings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda bench: cv2.imwrite(str(bench.data / "train_images" / "c.png"), np.zeros((9, 9))),
            "c.png was another im",
        ),
        (lambda bench: bench.label([], classes="dents\n"), "dents"),
        (lambda bench: bench.describe(class_names=("dents", "rust")), "pits"),
    ],
    ids=["size", "classes of the folder", "classes of the model"],
)
def test_results_of_other_images_or_classes_are_refused(
    bench: _Bench, change: Callable[[_Bench], object], told: str
) -> None:
    images, choice = find_images([bench.data / "train_images"]), OutputChoice(("rle",))
    predict(bench.model, images, bench.root / "predicted", choice=choice)
    run = bench.root / "predicted" / "run.json"
    change(bench)
    run.write_text(run.read_text().replace('"pits"', f'"{bench.runtime.info.class_names[0]}"'))

    with pytest.raises(DefectsegError, match=told):
        evaluate_predictions(bench.root / "predicted", bench.data, None)


def test_results_without_run_lengths_are_refused(bench: _Bench) -> None:
    images, choice = find_images([bench.data / "train_images"]), OutputChoice(("masks",))
    predict(bench.model, images, bench.root / "predicted", choice=choice)

    with pytest.raises(DataError, match="without predictions"):
        evaluate_predictions(bench.root / "predicted", bench.data, None)
