"""Trainings on a split that has val and test: what each recipe holds out, and what nothing is trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.data.folder import image_digest, open_data_folder
from defectseg.data.split import Fold, read_split, write_split
from defectseg.errors import DataError, UsageError
from defectseg.files import is_empty_folder
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.model.locate import model_identity
from defectseg.train.train import TrainResult, train
from defectseg.tune.tune import tune

Asked = Callable[..., dict[str, Any]]
Start = Callable[..., TrainResult]
GoOn = Callable[..., list[TrainResult]]
Interrupt = Callable[..., None]

QUICK = ("training.epochs=1", "data.samples_per_epoch=4", "data.folds=3")
WITH_THRESHOLDS = (*QUICK, "data.fold=null", "training.threshold_folds=2")


def _divide(data: Path, *rest: Fold) -> dict[str, Fold]:
    """Five images each are val and test, and the others are divided among the folds or parts of `rest`."""
    image_ids = open_data_folder(data).image_ids
    folds: dict[str, Fold] = {}
    for number, image_id in enumerate(image_ids):
        folds[image_id] = "val" if number < 5 else "test" if number < 10 else rest[number % len(rest)]
    write_split(data / "split.csv", folds)
    return folds


def _trained_on(info: ModelInfo, data: Path, folds: dict[str, Fold]) -> set[Fold]:
    """The parts and folds that a model was trained on. All of their images must be among its training images."""
    digests = {image_id: image_digest(open_data_folder(data).image_path(image_id)) for image_id in folds}
    parts = {folds[image_id] for image_id, digest in digests.items() if digest in info.trained_on}
    assert sum(fold in parts for fold in folds.values()) == len(info.trained_on)
    return parts


@pytest.mark.parametrize("fold", [None, "null", "0", "val"])
def test_val_is_held_out_whatever_the_recipe_says(start: Start, out: Path, data: Path, fold: str | None) -> None:
    folds = _divide(data, "train")
    result = start(*QUICK, *([] if fold is None else [f"data.fold={fold}"]), data=data)
    info = read_model_info(result.model)
    assert (info.fold, _trained_on(info, data, folds)) == ("val", {"train"})
    assert info.thresholds.chosen_by == "search on the 5 validation images of fold val"
    assert result.metrics is not None
    assert result.metrics.images == 5
    assert read_split(out / "split.csv") == folds


@pytest.mark.parametrize(("fold", "held_out", "trained_on"), [(None, "val", {0, 1}), ("1", 1, {0}), ("0", 0, {1})])
def test_a_numbered_fold_is_held_out_if_it_is_asked_for_and_val_is_not_trained_on(
    start: Start, data: Path, fold: str | None, held_out: Fold, trained_on: set[Fold]
) -> None:
    folds = _divide(data, 0, 1)
    info = read_model_info(start(*QUICK, *([] if fold is None else [f"data.fold={fold}"]), data=data).model)
    assert (info.fold, _trained_on(info, data, folds)) == (held_out, trained_on)


def test_thresholds_come_from_folds_of_the_rest_and_the_model_holds_val_out(
    start: Start, out: Path, data: Path, interrupt: Interrupt, go_on: GoOn, tmp_path: Path
) -> None:
    _divide(data, "train")
    result = start(*WITH_THRESHOLDS, data=data)
    folds = read_split(out / "split.csv")
    assert set(folds.values()) == {0, 1, 2, "val", "test"}
    info = read_model_info(result.model)
    assert (info.fold, _trained_on(info, data, folds)) == ("val", {0, 1, 2})
    models = sorted((out / "folds").glob("*/model.safetensors"))
    parts = [_trained_on(read_model_info(model), data, folds) for model in models]
    assert parts == [{1, 2}, {0, 2}]
    tuning = tune(models, data, device="cpu", dry_run=True)
    assert info.thresholds == tuning.choice.thresholds
    assert (info.metrics["out_of_fold"]["images"], info.metrics["out_of_fold"]["folds"]) == (tuning.metrics.images, 2)
    assert result.metrics is not None
    assert (result.metrics.images, result.held_out) == (5, "Validation images, with thresholds from elsewhere")

    again = tmp_path / "again"
    interrupt(1, *WITH_THRESHOLDS, in_run=3, data=data, out=again)
    (resumed,) = go_on(out=again)
    whole = read_model_info(resumed.model)
    assert model_identity(resumed.model) == model_identity(result.model)
    assert (whole.thresholds, whole.metrics, resumed.held_out) == (info.thresholds, info.metrics, result.held_out)


def test_numbered_folds_of_the_split_are_used_for_the_thresholds(start: Start, out: Path, data: Path) -> None:
    folds = _divide(data, 4, 7)
    start(*WITH_THRESHOLDS, data=data)
    models = sorted((out / "folds").glob("*/model.safetensors"))
    assert [(read_model_info(model).fold, _trained_on(read_model_info(model), data, folds)) for model in models] == [
        (4, {7}),
        (7, {4}),
    ]


def test_every_fold_is_one_of_the_rest(asked: Asked, data: Path, out: Path) -> None:
    _divide(data, "train")
    results = train(**asked(*QUICK, data=data, every_fold=True))
    folds = read_split(out / "split.csv")
    infos = [read_model_info(result.model) for result in results]
    assert [(info.fold, _trained_on(info, data, folds)) for info in infos] == [(0, {1, 2}), (1, {0, 2}), (2, {0, 1})]


@pytest.mark.parametrize("rest", [("train",), (0, 1)])
def test_val_is_trained_on_if_that_is_asked_for(
    start: Start, data: Path, interrupt: Interrupt, go_on: GoOn, tmp_path: Path, rest: tuple[Fold, ...]
) -> None:
    folds = _divide(data, *rest)
    result = start(*QUICK, "data.fold=null", data=data, use_val=True)
    info = read_model_info(result.model)
    assert (info.fold, _trained_on(info, data, folds), result.metrics) == (None, {*rest, "val"}, None)
    again = tmp_path / "again"
    interrupt(1, *QUICK, "data.fold=null", data=data, use_val=True, out=again)
    assert model_identity(go_on(out=again)[0].model) == model_identity(result.model)


def test_training_needs_images_besides_val_and_on_val_it_needs_one_and_no_fold(
    asked: Asked, data: Path, out: Path
) -> None:
    for fold, every_fold in (("auto", False), ("0", False), ("null", True)):
        with pytest.raises(UsageError, match="use_val: goes with a training on everything"):
            train(**asked(f"data.fold={fold}", data=data, every_fold=every_fold, use_val=True))
    write_split(data / "split.csv", dict.fromkeys(open_data_folder(data).image_ids, 0))
    with pytest.raises(UsageError, match="use_val: no image is in val"):
        train(**asked("data.fold=null", data=data, use_val=True))
    write_split(data / "split.csv", dict.fromkeys(open_data_folder(data).image_ids, "val"))
    for every_fold in (False, True):
        with pytest.raises(DataError, match="0 images to train on and 24 to validate on"):
            train(**asked(data=data, every_fold=every_fold))
    assert is_empty_folder(out)


def test_images_of_test_alone_leave_the_rest_to_train_on(start: Start, data: Path) -> None:
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {one: "test" if number < 5 else "train" for number, one in enumerate(image_ids)})
    everything, fold = start(*QUICK, "data.fold=null", data=data), start(*QUICK, data=data, out=data.parent / "other")
    infos = [read_model_info(result.model) for result in (everything, fold)]
    assert [(info.fold, len(info.trained_on)) for info in infos] == [(None, 19), (0, 19 - 7)]
    assert set(read_split(fold.model.with_name("split.csv")).values()) == {0, 1, 2, "test"}
