from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from defectseg.data.folder import image_digest
from defectseg.errors import DataError, UsageError
from defectseg.model.info import ModelInfo, Thresholds, read_model_info
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos
from defectseg.tune.file import read_thresholds
from defectseg.tune.goals import TargetRecall
from defectseg.tune.tune import Tuning, tune

Call = Callable[..., Any]

SIZE_HW = (32, 48)
STEEL, PIT = 60, 120  # grey levels, as GreyRuntime reads them
NAMES = [f"{letter}.png" for letter in "abcdef"]


@pytest.fixture
def data(tmp_path: Path, write_data: Callable[..., Path]) -> Path:
    """Six images with a pit 10 columns wide on the left; that of a.png, c.png and e.png is labelled."""
    images = {name: np.full(SIZE_HW, STEEL, np.uint8) for name in NAMES}
    for number, image in enumerate(images.values()):
        image[:, :10] = PIT + number  # no two files alike
    rows = [f"{name},1,1 {10 * SIZE_HW[0]}" for name in NAMES[::2]]
    return write_data(tmp_path / "data", images, rows, ["pits", "cracks"])


class _Models:
    """Model files without a network; what they are loaded as answers as GreyRuntime does."""

    def __init__(self, root: Path, write: Callable[..., Path], make: Call) -> None:
        self.root, self.write, self.make = root, write, make
        self.runtimes: dict[Path, Any] = {}
        self.asked: list[tuple[str, str]] = []

    def add(self, name: str, *, fold: int | str | None, split: str | None = "abcdef", **info: Any) -> Path:
        """A model with a split.csv in which two images each, in the order of the letters, make folds 0, 1 and 2."""
        path = self.root / name / "model.safetensors"
        path.parent.mkdir()
        if split is not None:
            lines = [f"{letter}.png,{number // 2}" for number, letter in enumerate(split)]
            (path.parent / "split.csv").write_text("\n".join(["ImageId,fold", *lines]) + "\n")
        self.runtimes[path] = self.make()
        return self.write(path, fold=fold, **info)

    def load(self, paths: Sequence[Path], device: str, runtime: str) -> tuple[Any, ModelInfo]:
        self.asked.append((device, runtime))
        if len(paths) == 1:
            return self.runtimes[paths[0]], read_model_info(paths[0])
        return EnsembleRuntime([self.runtimes[path] for path in paths]), _joined(paths)


@pytest.fixture
def models(tmp_path: Path, write_model: Call, grey_runtime: Call, monkeypatch: pytest.MonkeyPatch) -> _Models:
    made = _Models(tmp_path, write_model, grey_runtime)
    monkeypatch.setattr("defectseg.tune.tune.load_runtime", made.load)
    return made


def _joined(paths: Sequence[Path]) -> ModelInfo:
    return join_infos([read_model_info(path) for path in paths], paths)


def _tune(models: list[Path], data: Path, **options: Any) -> Tuning:
    return tune(models, data, **{"dry_run": True, **options})


def _answered(models: _Models, path: Path) -> int:
    return len(models.runtimes[path].calls)


def test_a_model_is_tuned_on_the_images_it_held_out(data: Path, models: _Models) -> None:
    model = models.add("run", fold=0)
    steps: list[tuple[int, int]] = []

    tuning = _tune([model], data, progress=lambda done, total, text="": steps.append((done, total)))

    assert (tuning.choice.images, _answered(models, model)) == (2, 2)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert tuning.choice.thresholds.chosen_by == "search on the 2 validation images of fold 0, best Dice"
    # A pit in both images, labelled in one: 1 of 4 pairs is wrong, and the pair with a defect is right.
    assert tuning.metrics.kaggle_dice + (tuning.metrics.positive_dice or 0) == 1.75
    assert tuning.stored == ()
    recalled = _tune([model], data, goal=TargetRecall(0.5), device="cuda:1", runtime="onnx")
    assert models.asked == [("auto", "auto"), ("cuda:1", "onnx")]
    assert recalled.choice.thresholds.chosen_by.endswith("fewest false alarms at a recall of 0.5")
    assert recalled.choice.classes[0].chosen.recall == 1.0


def test_names_in_another_order_give_the_same_thresholds_and_fewer_only_theirs(
    data: Path, models: _Models, tmp_path: Path
) -> None:
    model = models.add("run", fold=0, split=None)
    before = _tune([model], data, subset="all")
    table = (data / "train.csv").read_text().replace("png,1,", "png,2,")
    (data / "train.csv").write_text(table)
    (data / "classes.txt").write_text("cracks\npits\n")
    assert _tune([model], data, subset="all") == before

    (data / "train.csv").write_text(table.replace("png,2,", "png,1,"))
    (data / "classes.txt").write_text("pits\n")
    fewer = _tune([model], data, subset="all", out=tmp_path / "t.json")
    assert fewer.choice.classes[0] == before.choice.classes[0]
    assert (len(fewer.choice.classes), len(fewer.choice.thresholds.gate)) == (1, 1)
    assert any("thresholds of cracks: left as they are" in warning for warning in fewer.warnings)
    assert read_thresholds(tmp_path / "t.json", ["pits"]) == fewer.choice.thresholds


def test_a_pit_that_ignored_pixels_may_hide_is_neither_found_nor_a_false_alarm(data: Path, models: _Models) -> None:
    with (data / "train.csv").open("a") as handle:
        handle.write(f"b.png,255,{1 + 20 * SIZE_HW[0]} 100\n")

    tuning = _tune([models.add("run", fold=0)], data)

    assert (tuning.metrics.unknown_pairs, tuning.metrics.kaggle_dice, tuning.metrics.positive_dice) == (2, 1, 1)
    assert any("2 of 4 pairs of image and class are left out" in warning for warning in tuning.warnings)


def test_low_bit_depth_is_warned_of_and_can_be_given(data: Path, models: _Models) -> None:
    for path in (data / "train_images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        cv2.imwrite(str(path), np.rint(grey / 255.0 * 1023).astype(np.uint16))
    paths = [models.add(f"fold-{fold}", fold=fold) for fold in range(3)]

    black, right = _tune(paths, data), _tune(paths, data, bit_depth=10)

    assert any("6 of 6 16-bit images" in warning and "bit_depth=10" in warning for warning in black.warnings)
    assert black.metrics.positive_dice == 0
    assert right.metrics.positive_dice == 1
    assert not any("16-bit" in warning for warning in right.warnings)


def test_tuning_on_all_images_warns_of_training_images(data: Path, models: _Models) -> None:
    digests = tuple(image_digest(data / "train_images" / name) for name in NAMES[2:])
    model = models.add("run", fold=0, split=None, trained_on=digests)

    tuning = _tune([model], data, subset="all")

    assert tuning.choice.images == 6
    assert any("trained on 4 of these 6 images" in warning for warning in tuning.warnings)
    assert tuning.choice.thresholds.chosen_by.startswith("search on all 6 images of data, ")


@pytest.mark.parametrize("place", ["data", "run"])
@pytest.mark.parametrize(("subset", "images"), [("all", 5), ("val", 1)])
def test_images_of_test_are_never_tuned_on(data: Path, models: _Models, place: str, subset: str, images: int) -> None:
    model = models.add("run", fold="val", split="abcdef")
    split = "ImageId,fold\n" + "".join(f"{letter}.png,{'val' if letter in 'ab' else 0}\n" for letter in "abcdef")
    (model.parent / "split.csv").write_text(split if place == "data" else split.replace("a.png,val", "a.png,test"))
    if place == "data":
        (data / "split.csv").write_text("ImageId,fold\na.png,test\n")
    tuning = _tune([model], data, subset=subset)
    assert (tuning.choice.images, _answered(models, model)) == (images, images)
    assert not any("not in the folder" in warning for warning in tuning.warnings)


def test_each_of_several_models_answers_for_its_held_out_images(data: Path, models: _Models) -> None:
    paths = [models.add(f"fold-{fold}", fold=fold) for fold in (2, 0)]
    for path, levels in zip(paths, ((124, 125), (120, 121)), strict=True):
        runtime = models.runtimes[path]
        runtime.levels[:] = 0.1
        runtime.levels[0, levels[0]] = 0.9  # a model that sees the labelled pit of its own fold, and no other

    tuning = _tune(paths, data)

    assert [_answered(models, path) for path in paths] == [2, 2]
    assert tuning.metrics.kaggle_dice == 1.0
    assert tuning.metrics.positive_pairs == 2
    assert tuning.choice.thresholds.chosen_by == "search on 4 out-of-fold images of 2 models, best Dice"


@pytest.mark.parametrize(("subset", "trained_on"), [("val", ()), ("all", ()), ("all", ("elsewhere",))])
def test_models_that_saw_none_of_the_images_are_tuned_on_their_mean(
    data: Path, models: _Models, subset: str, trained_on: tuple[str, ...]
) -> None:
    # One model finds the pits at 0.9, the other at 0.1: none of either's thresholds suits their mean of 0.5.
    folds = (0, 0) if subset == "val" else (None, 1)
    paths = [models.add(f"m{number}", fold=fold, trained_on=trained_on) for number, fold in enumerate(folds)]
    models.runtimes[paths[1]].levels[:] = 0.1

    tuning = _tune(paths, data, subset=subset, dry_run=False)

    number = 2 if subset == "val" else 6
    assert [_answered(models, path) for path in paths] == [number] * 2
    assert (tuning.choice.images, tuning.stored) == (number, tuple(paths))
    assert tuning.metrics.positive_dice == 1
    assert tuning.choice.thresholds.chosen_by.endswith(", by the mean of 2 models, best Dice")
    chosen_by = _joined(paths).thresholds.chosen_by
    assert _joined(paths).thresholds == tuning.choice.thresholds.model_copy(update={"chosen_by": chosen_by})


def test_models_trained_on_some_of_the_images_answer_for_their_held_out_ones(
    data: Path, models: _Models, caplog: pytest.LogCaptureFixture
) -> None:
    digest = image_digest(data / "train_images" / "a.png")
    paths = [models.add("m0", fold=0), models.add("m1", fold=1, trained_on=(digest,))]
    steps: list[tuple[int, int]] = []

    with caplog.at_level("INFO", logger="defectseg"):
        tuning = _tune(paths, data, subset="all", progress=lambda done, total, text="": steps.append((done, total)))

    assert [_answered(models, path) for path in paths] == [2, 2]
    assert tuning.choice.thresholds.chosen_by == "search on 4 out-of-fold images of 2 models, best Dice"
    assert "each model answers for the images that it held out" in caplog.text
    assert steps == [(done, 4) for done in (0, 1, 2, 2, 3, 4)]


def test_a_fold_without_an_image_in_the_folder_needs_no_answers(data: Path, models: _Models) -> None:
    for name in NAMES[4:]:
        (data / "train_images" / name).unlink()
    paths = [models.add(f"fold-{fold}", fold=fold) for fold in range(3)]

    tuning = _tune(paths, data)

    assert [_answered(models, path) for path in paths] == [2, 2, 0]
    assert any("1 images of the label table are not in the folder" in warning for warning in tuning.warnings)


def test_one_split_may_be_given_for_all(data: Path, models: _Models, tmp_path: Path) -> None:
    paths = [models.add(f"fold-{fold}", fold=fold, split=None) for fold in range(2)]
    (tmp_path / "mine.csv").write_text("ImageId,fold\na.png,1\nb.png,0\nc.png,0\n")

    tuning = _tune(paths, data, split=tmp_path / "mine.csv")

    assert [_answered(models, path) for path in paths] == [2, 1]
    assert any("3 images of" in warning and "mine.csv" in warning for warning in tuning.warnings)


@pytest.mark.parametrize(
    ("folds", "splits", "options", "told"),
    [
        ((0, 1, 0), ("abcdef",) * 3, {}, "held out fold 0, and so did"),
        ((0, None), ("abcdef", "abcdef"), {}, "did not all hold back the same .* subset='all'"),
        ((0, None), ("abcdef", "abcdef"), {"subset": "all"}, "trained on all folds"),
        ((0, 1), ("abcdef", "fedcba"), {}, "not the same split"),
        ((0, 1), ("abcdef", None), {}, "no split.csv beside"),
        ((7, 8), ("abcdef", "abcdef"), {}, "held out no image"),
        ((0, 0), ("abcdef", "fedcba"), {}, "did not all hold back the same images"),
        ((None,), (None,), {}, "was trained on all folds. Or go on with subset='all'"),
        ((0,), (None,), {}, "no split.csv beside"),
    ],
)
def test_models_without_a_known_set_of_images_are_refused(
    data: Path,
    models: _Models,
    folds: tuple[int | None, ...],
    splits: tuple[str | None, ...],
    options: dict[str, Any],
    told: str,
) -> None:
    trained_on = (image_digest(data / "train_images" / "a.png"),)
    paths = [
        models.add(f"m{number}", fold=fold, split=split, trained_on=trained_on)
        for number, (fold, split) in enumerate(zip(folds, splits, strict=True))
    ]

    with pytest.raises(UsageError, match=told):
        _tune(paths, data, **options)


def test_unreadable_images_are_left_out_with_a_warning(data: Path, models: _Models) -> None:
    (data / "train_images" / "a.png").write_bytes(b"torn")
    (data / "train_images" / "\t.png").touch()

    model = models.add("run", fold=0)

    tuning = _tune([model], data)

    assert [one.image_id for one in tuning.unreadable] == ["%09.png", "a.png"]
    assert tuning.choice.images == 1
    assert any(warning.startswith("left out, unreadable: ") for warning in tuning.warnings)
    (data / "train_images" / "b.png").write_bytes(b"torn")
    with pytest.raises(DataError, match="no image can be read"):
        _tune([model], data)


def test_images_of_a_group_are_left_out_together(data: Path, models: _Models) -> None:
    (data / "groups.csv").write_text("ImageId,Group\n" + "".join(f"{name},strip\n" for name in NAMES))

    assert _tune([models.add("run", fold=0)], data).choice.folds == 0  # all are of one group


def test_other_views_than_the_models_are_looked_at_and_not_stored(data: Path, models: _Models) -> None:
    model = models.add("run", fold=0)

    tuning = _tune([model], data, tta="flips", dry_run=False)

    assert _answered(models, model) == 2 * 4
    after = read_model_info(model)
    assert (after.thresholds, after.recipe.inference.tta) == (tuning.choice.thresholds, "none")
    assert any("not stored: predict with flips" in warning for warning in tuning.warnings)
    for options in ({"tta": "flips"}, {"tta": "none", "dry_run": False}):
        assert not any("not stored" in warning for warning in _tune([model], data, **options).warnings)
    with pytest.raises(UsageError, match="tta: expected none, flips, turns"):
        _tune([model], data, tta="mirrors")


def test_a_model_keeps_its_thresholds_of_the_classes_that_the_folder_does_not_name(data: Path, models: _Models) -> None:
    own = Thresholds(gate=(0.1, 0.2), pixel=(0.3, 0.4), min_area_px=(7, 8), chosen_by="hand")
    model = models.add("run", fold=None, thresholds=own)
    (data / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\na.png,1,1 {SIZE_HW[0]}\n")
    (data / "classes.txt").write_text("cracks\n")

    tuning = _tune([model], data, subset="all", dry_run=False)

    assert [(one.class_id, one.name) for one in tuning.choice.classes] == [(2, "cracks")]
    chosen = tuning.choice.thresholds
    stored = read_model_info(model).thresholds
    assert stored.gate == (0.1, *chosen.gate)
    assert stored.pixel == (0.3, *chosen.pixel)
    assert stored.min_area_px == (7, *chosen.min_area_px)
    assert stored.chosen_by.endswith("for cracks; of the others as before")


def test_every_model_is_rewritten_with_the_choice_and_nothing_else(data: Path, models: _Models) -> None:
    paths = [models.add(f"fold-{fold}", fold=fold, weight=fold, metrics={"best_epoch": 3}) for fold in range(2)]
    before = [read_model_info(path) for path in paths]

    tuning = _tune(paths, data, dry_run=False)

    assert tuning.stored == tuple(paths)
    for fold, path in enumerate(paths):
        after = read_model_info(path)
        assert after.thresholds == tuning.choice.thresholds
        assert after.metrics["best_epoch"] == 3
        assert after.metrics["tuned"]["kaggle_dice"] == tuning.metrics.kaggle_dice
        assert set(after.metrics["cross_validated"]) == {"kaggle_dice", "positive_dice"}
        unchanged = {"thresholds": before[fold].thresholds, "metrics": before[fold].metrics}
        assert after.model_copy(update=unchanged) == before[fold]
        assert load_file(path)["weight"] == fold
        assert {entry.name for entry in path.parent.iterdir()} == {"model.safetensors", "split.csv"}
