"""Whole training runs, tiny ones: what they leave, that they repeat, and how they go on after an interruption."""

import csv
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from defectseg.config import Thresholds, load_recipe
from defectseg.data.identity import image_digest
from defectseg.data.labels import open_data_folder
from defectseg.data.splits import read_split, write_split
from defectseg.errors import (
    ConfigError,
    DataError,
    LabelError,
    MissingExtraError,
    ModelError,
    OutputExistsError,
    UsageError,
)
from defectseg.evaluation.metrics import Metrics, summarise
from defectseg.evaluation.score import score_images
from defectseg.files import is_empty_folder
from defectseg.inference.runtimes import load_runtime
from defectseg.inference.runtimes.torch import TorchRuntime
from defectseg.model.bundle import load_bundle, read_bundle, weights_digest
from defectseg.model.devices import half_precision
from defectseg.training import run as run_module
from defectseg.training.loop import headline
from defectseg.training.plots import read_history
from defectseg.training.run import TrainRequest, TrainResult, train

RUN_FILES = {"model.safetensors", "last.ckpt", "config.yaml", "split.csv", "metrics.jsonl", "curves.png"}
STEPS_PER_EPOCH = 4
# Enough for a network this small to find something; with a head, the gate would still stop every image.
LEARNS = ("model.classification_head=false", "data.samples_per_epoch=48", "loss.positive_weights=[3,3,3,3]")


@pytest.fixture
def request_(tiny_recipe: Path, data_folder: Path, tmp_path: Path) -> TrainRequest:
    """Two epochs on the shared data, into a folder that is not there yet."""
    return TrainRequest(recipe=load_recipe(str(tiny_recipe)), data=data_folder, out=tmp_path / "run", device="cpu")


def _with(request: TrainRequest, tiny_recipe: Path, *overrides: str, **changes: Any) -> TrainRequest:
    return replace(request, recipe=load_recipe(str(tiny_recipe), overrides), **changes)


def _stop_at(step: int) -> Any:
    def advance(done: int, total: int, text: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return advance


def _digest(run: Path) -> str:
    return weights_digest(read_bundle(run / "model.safetensors")[1])


def _last_digest(run: Path) -> str:
    return weights_digest(torch.load(run / "last.ckpt", weights_only=True)["network"])


def _timeless(run: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl without what a clock measured."""
    return [
        {key: value for key, value in entry.items() if not key.endswith("_s")}
        for entry in read_history(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def finished(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    """A run of three epochs in the precision of this machine."""
    recipe = load_recipe(str(tiny_recipe), ["training.epochs=3", "training.precision=auto"])
    request = TrainRequest(
        recipe=recipe, data=data_folder, out=tmp_path_factory.mktemp("finished") / "run", device="cpu"
    )
    return request, train(request)


# What a run leaves


def test_the_run_folder_holds_what_is_documented(finished: tuple[TrainRequest, TrainResult]) -> None:
    request, result = finished
    assert {path.name for path in request.out.iterdir()} == RUN_FILES
    assert result.model == request.out / "model.safetensors"
    assert result.failed == ()


def test_the_resolved_recipe_and_the_split_are_kept(finished: tuple[TrainRequest, TrainResult]) -> None:
    request, _ = finished
    assert load_recipe(str(request.out / "config.yaml")) == request.recipe
    folds = read_split(request.out / "split.csv")
    assert sorted(folds) == list(open_data_folder(request.data).image_ids)
    assert set(folds.values()) == {0, 1, 2, 3}


def test_the_bundle_describes_its_training(finished: tuple[TrainRequest, TrainResult]) -> None:
    request, result = finished
    data = open_data_folder(request.data)
    _, info = load_bundle(result.model)
    folds = read_split(request.out / "split.csv")
    assert info.class_names == data.class_names
    assert info.recipe == request.recipe
    assert info.fold == 0
    assert info.data_fingerprint == data.fingerprint()
    trained = {image_digest(data.image_path(image_id)) for image_id in data.image_ids if folds[image_id] != 0}
    assert set(info.trained_on) == trained
    assert info.thresholds.chosen_by == "search on the 6 validation images of fold 0"
    assert info.versions["torch"] == importlib.metadata.version("torch")
    assert info.created.endswith("+00:00")


def test_each_epoch_has_an_entry(finished: tuple[TrainRequest, TrainResult]) -> None:
    entries = read_history(finished[0].out / "metrics.jsonl")
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    expected = {
        "epoch",
        "loss",
        "bce",
        "dice",
        "gate",
        "lr_encoder",
        "lr_decoder",
        "data_s",
        "step_s",
        "val",
        "elapsed_s",
    }
    assert all(set(entry) == expected for entry in entries)
    assert all(set(entry["val"]) == {"kaggle_dice", "all_empty", "positive_dice", "miou"} for entry in entries)


def test_the_curves_are_a_picture(finished: tuple[TrainRequest, TrainResult]) -> None:
    picture = cv2.imread(str(finished[0].out / "curves.png"))
    assert picture is not None
    assert picture.std() > 1


def _score(request: TrainRequest, thresholds: Thresholds | None) -> Metrics:
    """Score the saved bundle on the validation images as evaluate does."""
    data = open_data_folder(request.data)
    runtime = load_runtime(request.out / "model.safetensors", "cpu")
    folds = read_split(request.out / "split.csv")
    val_ids = [image_id for image_id in data.image_ids if folds[image_id] == 0]
    counts = score_images(runtime, data, val_ids, thresholds=thresholds or runtime.info.thresholds).counts
    assert {image_id for image_id, _ in counts} == set(val_ids)
    return summarise(counts, data.class_names)


def test_evaluating_the_bundle_gives_the_figures_of_the_training(finished: tuple[TrainRequest, TrainResult]) -> None:
    request, result = finished
    tuned = _score(request, None)
    assert result.metrics is not None
    assert tuned.to_json() == result.metrics.to_json()
    info = read_bundle(result.model)[0]
    assert info.metrics["tuned"] == headline(tuned)
    best = read_history(request.out / "metrics.jsonl")[info.metrics["best_epoch"] - 1]
    assert headline(_score(request, Thresholds.default(4))) == best["val"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_computes_as_prediction_will_whatever_training_does(
    request_: TrainRequest, tiny_recipe: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype | None] = set()

    class Spy(TorchRuntime):
        def __init__(self, network: Any, info: Any, *, dtype: torch.dtype | None = None) -> None:
            seen.add(dtype)
            super().__init__(network, info, dtype=dtype)

    monkeypatch.setattr("defectseg.training.loop.TorchRuntime", Spy)
    train(_with(request_, tiny_recipe, f"training.precision={precision}", "training.epochs=1"))
    assert seen == {half_precision(torch.device("cpu"))}


def test_tensorboard_events_lie_in_the_run_folder(request_: TrainRequest, tiny_recipe: Path) -> None:
    train(_with(request_, tiny_recipe, "training.trackers=[tensorboard]", "training.epochs=1"))
    others = {path.name for path in request_.out.iterdir()} - RUN_FILES
    assert others == {"tensorboard"}
    assert list((request_.out / "tensorboard").glob("**/events.out.tfevents.*"))


# Chance


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_seed_repeats_a_run_and_another_does_not(request_: TrainRequest, tmp_path: Path) -> None:
    first, again = request_, replace(request_, out=tmp_path / "again")
    train(first)
    torch.manual_seed(77)  # what happened before plays no part
    np.random.seed(77)
    train(again)
    assert _digest(again.out) == _digest(first.out)
    assert _last_digest(again.out) == _last_digest(first.out)
    assert _timeless(again.out) == _timeless(first.out)
    other = replace(first, out=tmp_path / "other", recipe=first.recipe.model_copy(update={"seed": 4}))
    train(other)
    assert _last_digest(other.out) != _last_digest(first.out)


def test_trainings_in_one_process_do_not_disturb_each_other(request_: TrainRequest, tiny_recipe: Path) -> None:
    settings = (("bf16", 1), ("fp32", 2), ("bf16", 1))
    runs = [request_.out.with_name(f"run{index}") for index in range(3)]
    for out, (precision, accumulation) in zip(runs, settings, strict=True):
        overrides = (f"training.precision={precision}", f"training.accumulation={accumulation}", "training.epochs=1")
        train(_with(request_, tiny_recipe, *overrides, out=out))
    assert _last_digest(runs[0]) == _last_digest(runs[2]) != _last_digest(runs[1])


# Interruptions


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH + 2, 2 * STEPS_PER_EPOCH + 1])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(
    finished: tuple[TrainRequest, TrainResult], tmp_path: Path, step: int
) -> None:
    whole = finished[0]
    broken = replace(whole, out=tmp_path / "run", advance=_stop_at(step))
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert not (broken.out / "model.safetensors").exists()
    assert len(read_history(broken.out / "metrics.jsonl")) == step // STEPS_PER_EPOCH
    torch.manual_seed(1)
    train(replace(broken, resume=True, advance=lambda done, total, text: None))
    assert _digest(broken.out) == _digest(whole.out)
    assert _last_digest(broken.out) == _last_digest(whole.out)
    assert _timeless(broken.out) == _timeless(whole.out)
    assert {path.name for path in broken.out.iterdir()} == RUN_FILES


def test_an_interruption_between_training_and_the_bundle_is_mended(
    finished: tuple[TrainRequest, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(finished[0], out=tmp_path / "run")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_search_thresholds", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert (broken.out / "best.safetensors").is_file()
    train(replace(broken, resume=True))
    assert _digest(broken.out) == _digest(finished[0].out)
    assert {path.name for path in broken.out.iterdir()} == RUN_FILES


def _interrupted(request: TrainRequest, step: int = STEPS_PER_EPOCH + 1) -> TrainRequest:
    with pytest.raises(KeyboardInterrupt):
        train(replace(request, advance=_stop_at(step)))
    return replace(request, resume=True)


@pytest.mark.parametrize("fold", [2, None])
def test_resuming_keeps_the_fold_that_the_run_began_with(request_: TrainRequest, fold: int | None) -> None:
    resumed = _interrupted(replace(request_, fold=fold))
    train(replace(resumed, fold=0))
    info = read_bundle(request_.out / "model.safetensors")[0]
    assert info.fold == fold


def test_resuming_keeps_the_recipe_that_the_run_began_with(request_: TrainRequest, tiny_recipe: Path) -> None:
    resumed = _interrupted(request_)
    train(replace(resumed, recipe=load_recipe(str(tiny_recipe), ["training.epochs=1", "model.encoder=resnet18"])))
    assert read_bundle(request_.out / "model.safetensors")[0].recipe == request_.recipe
    assert len(read_history(request_.out / "metrics.jsonl")) == 2


def test_resuming_on_other_data_is_refused(request_: TrainRequest, tmp_path: Path) -> None:
    resumed = _interrupted(request_)
    other = _copy(request_.data, tmp_path)
    lines = (other / "train.csv").read_text().splitlines()
    (other / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"not the data that .*run began with: images or labels differ"):
        train(replace(resumed, data=other))


def test_a_run_that_ended_is_not_resumed(finished: tuple[TrainRequest, TrainResult]) -> None:
    with pytest.raises(UsageError, match=r"this run has ended; its model is model.safetensors"):
        train(replace(finished[0], resume=True))


def test_where_there_is_no_run_there_is_nothing_to_resume(request_: TrainRequest) -> None:
    with pytest.raises(UsageError, match=r"no config.yaml, so there is no run to resume"):
        train(replace(request_, resume=True))
    assert not request_.out.exists()


def test_a_run_without_its_checkpoint_is_not_resumed(request_: TrainRequest) -> None:
    resumed = _interrupted(request_)
    (request_.out / "last.ckpt").unlink()
    with pytest.raises(ModelError, match=r"last.ckpt: no checkpoint to resume from"):
        train(resumed)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_is_not_empty_is_left_alone(request_: TrainRequest, kind: str) -> None:
    if kind == "folder":
        request_.out.mkdir()
        (request_.out / "notes.txt").write_text("mine")
    else:
        request_.out.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"run: not empty. Choose another --out, or continue .* --resume"):
        train(request_)
    kept = request_.out / "notes.txt" if kind == "folder" else request_.out
    assert kept.read_text() == "mine"


# Data


def _copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "train.csv").open(newline="") as handle:
        return list(csv.reader(handle))


def _write_rows(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    with (folder / "train.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def test_with_fold_none_every_image_is_trained_on(request_: TrainRequest) -> None:
    result = train(replace(request_, fold=None))
    _, info = load_bundle(result.model)
    assert result.metrics is None
    assert info.fold is None
    assert len(info.trained_on) == 24
    assert info.thresholds == Thresholds.default(4)
    assert info.metrics == {}
    assert not any("val" in entry for entry in read_history(request_.out / "metrics.jsonl"))
    assert _digest(request_.out) == _last_digest(request_.out)
    assert {path.name for path in request_.out.iterdir()} == RUN_FILES


def test_the_split_of_the_data_folder_is_used(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    image_ids = open_data_folder(data).image_ids
    folds = {image_id: 7 if index % 5 == 0 else 1 for index, image_id in enumerate(image_ids)}
    write_split(data / "split.csv", {**folds, "gone.jpg": 7})
    train(replace(request_, data=data, fold=7))
    assert read_split(request_.out / "split.csv") == folds
    info = read_bundle(request_.out / "model.safetensors")[0]
    assert info.fold == 7
    assert len(info.trained_on) == 24 - 5


def test_a_fold_that_there_is_not_is_told(request_: TrainRequest) -> None:
    with pytest.raises(UsageError, match=r"--fold 9: the split has folds \[0, 1, 2, 3\]"):
        train(replace(request_, fold=9))
    assert is_empty_folder(request_.out)


def test_images_that_the_split_does_not_name_are_refused(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", dict.fromkeys(image_ids[2:], 0))
    with pytest.raises(DataError, match=rf"split.csv: gives no fold for 2 images \(first: {image_ids[0]}\)"):
        train(replace(request_, data=data))
    assert is_empty_folder(request_.out)


def test_an_image_that_cannot_be_read_is_left_out_and_listed(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    broken = data / "train_images" / "sheet_00004.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    result = train(replace(request_, data=data))
    assert [image_id for image_id, _ in result.failed] == ["sheet_00004.jpg"]
    assert {path.name for path in request_.out.iterdir()} == RUN_FILES | {"errors.csv"}
    with (request_.out / "errors.csv").open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row["ImageId"] == "sheet_00004.jpg"
    assert row["error"] == result.failed[0][1]
    assert "sheet_00004.jpg" in row["error"]
    info = read_bundle(result.model)[0]
    assert image_digest(broken) not in info.trained_on
    assert len(info.trained_on) in (17, 18)


def test_a_run_length_beyond_its_image_stops_the_run(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    header, first, *others = _rows(data)
    _write_rows(data, [header, [*first[:2], f"{64 * 128} 5"], *others])
    with pytest.raises(LabelError, match=first[0]):
        train(replace(request_, data=data))
    assert is_empty_folder(request_.out)


def test_labels_of_images_that_are_not_there_are_told(
    request_: TrainRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _copy(request_.data, tmp_path)
    first = _rows(data)[1][0]
    (data / "train_images" / first).unlink()
    train(replace(request_, data=data))
    assert f"1 images of the label table are not in the folder (first: {first})" in caplog.text


def test_a_folder_without_any_mask_is_refused(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    _write_rows(data, _rows(data)[:1])
    with pytest.raises(DataError, match=r"none of the 18 images to train on has a mask"):
        train(replace(request_, data=data))


def test_whole_images_are_trained_on_where_they_are_of_one_size(request_: TrainRequest, tiny_recipe: Path) -> None:
    train(_with(request_, tiny_recipe, "data.crop_hw=null", "training.epochs=1"))
    assert (request_.out / "model.safetensors").is_file()


def test_whole_images_of_different_sizes_are_refused(request_: TrainRequest, tiny_recipe: Path, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    clean = next(
        image_id for image_id in open_data_folder(data).image_ids if not open_data_folder(data).classes_of(image_id)
    )
    cv2.imwrite(str(data / "train_images" / clean), np.zeros((96, 96), np.uint8))
    whole = _with(request_, tiny_recipe, "data.crop_hw=null", data=data, fold=None)
    with pytest.raises(
        ConfigError, match=r"crop_hw is null, but the images differ in size \(for example 64x128 and 96x96"
    ):
        train(whole)
    assert is_empty_folder(request_.out)


def test_quarter_turns_of_whole_images_that_are_not_square_are_refused(
    request_: TrainRequest, tiny_recipe: Path
) -> None:
    with pytest.raises(ConfigError, match=r"quarter_turns needs square crops, but data.crop_hw is null .* 64x128"):
        train(_with(request_, tiny_recipe, "data.crop_hw=null", "augment.quarter_turns=0.5"))


def test_crops_may_be_larger_than_the_images(request_: TrainRequest, tiny_recipe: Path) -> None:
    train(_with(request_, tiny_recipe, "data.crop_hw=[96,160]", "training.epochs=1"))
    assert (request_.out / "model.safetensors").is_file()


def test_a_batch_larger_than_the_epoch_is_made_to_fit(request_: TrainRequest, tiny_recipe: Path) -> None:
    steps: list[tuple[int, int]] = []
    overrides = ("training.batch_size=64", "data.samples_per_epoch=5")
    train(_with(request_, tiny_recipe, *overrides, advance=lambda done, total, text: steps.append((done, total))))
    assert steps == [(1, 2), (2, 2)]


# Settings that make no sense


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.positive_weights=[1,2]", r"loss.positive_weights: 2 values for 4 classes"),
        ("training.precision=fp16", r"training.precision: fp16 needs a GPU"),
        ("model.encoder=tu-test_resnett", r"Did you mean 'tu-test_resnet'"),
        ("data.folds=99", r"99 folds of 24 images"),
    ],
)
def test_a_setting_that_does_not_fit_leaves_no_run_folder_behind(
    request_: TrainRequest, tiny_recipe: Path, override: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(_with(request_, tiny_recipe, "training.trackers=[tensorboard]", override))
    assert is_empty_folder(request_.out)


def test_an_architecture_that_cannot_take_the_crops_is_told_before_training(
    request_: TrainRequest, tiny_recipe: Path
) -> None:
    options = '{"dynamic_img_size": false}'
    request = _with(
        request_, tiny_recipe, "model.architecture=DPT", "model.encoder=tu-test_vit", f"model.options={options}"
    )
    with pytest.raises(ConfigError, match=r"cannot take images of 64x64 px"):
        train(request)
    assert is_empty_folder(request_.out)


def test_a_tracker_that_is_not_installed_is_told(
    request_: TrainRequest, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"trackers: mlflow needs .*defectseg\[mlflow\]"):
        train(_with(request_, tiny_recipe, "training.trackers=[mlflow]"))


# Starting from something


def test_a_bundle_is_tuned_to_other_classes(
    finished: tuple[TrainRequest, TrainResult], request_: TrainRequest, tiny_recipe: Path, tmp_path: Path
) -> None:
    data = _copy(request_.data, tmp_path)
    (data / "classes.txt").write_text("cracks\nother\nscratches\npatches\nnew\n")
    request = _with(
        request_,
        tiny_recipe,
        "model.encoder=resnet18",  # the network is the bundle's, whatever the recipe says
        "training.epochs=1",
        "optimizer.encoder_lr=1e-12",
        "optimizer.decoder_lr=1e-12",
        data=data,
        init=finished[1].model,
    )
    train(request)
    source, tuned = read_bundle(finished[1].model), read_bundle(request.out / "model.safetensors")
    assert tuned[0].recipe.model == source[0].recipe.model
    assert tuned[0].class_names == ("cracks", "other", "scratches", "patches", "new")
    old, new = (weights["net.segmentation_head.0.weight"] for weights in (source[1], tuned[1]))
    assert new.shape[0] == 5
    # pits, cracks, scratches, patches before; cracks, other, scratches, patches, new after.
    torch.testing.assert_close(new[[0, 2, 3]], old[[1, 2, 3]], atol=1e-6, rtol=0)
    assert (new[[1, 4]] - old[0]).abs().max() > 1e-3


def test_a_tuned_bundle_can_be_resumed(finished: tuple[TrainRequest, TrainResult], request_: TrainRequest) -> None:
    resumed = _interrupted(replace(request_, init=finished[1].model))
    train(replace(resumed, init=None))
    assert read_bundle(request_.out / "model.safetensors")[0].recipe.model == finished[0].recipe.model


def test_encoder_weights_come_from_a_file(request_: TrainRequest, tiny_recipe: Path, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "weights.pth")
    still = ("optimizer.encoder_lr=1e-12", "training.epochs=1", f"model.encoder_weights={tmp_path / 'weights.pth'}")
    train(_with(request_, tiny_recipe, *still))
    weights = read_bundle(request_.out / "model.safetensors")[1]
    expected = torch.load(tmp_path / "weights.pth", weights_only=True)["layer1.0.conv1.weight"]
    torch.testing.assert_close(weights["net.encoder.model.layer1.0.conv1.weight"], expected, atol=1e-6, rtol=0)


# Several processes


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_every_image_once(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path
) -> None:
    data = _copy(data_folder, tmp_path)
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {image_id: int(index % 3 != 1) for index, image_id in enumerate(image_ids)})
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "defectseg"]
    longer = [f"--set={override}" for override in ("training.epochs=10", "training.batch_size=2", *LEARNS)]
    arguments = ["train", str(tiny_recipe), "--data", str(data), "--out", str(out), "--device=cpu", "--json", *longer]
    done = subprocess.run(
        [*launch, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # one process speaks for both
    assert done.stderr.count("epoch 10/10") == 1
    assert {path.name for path in out.iterdir()} == RUN_FILES

    request = TrainRequest(recipe=load_recipe(str(tiny_recipe)), data=data, out=out)
    info = read_bundle(out / "model.safetensors")[0]
    assert len(info.trained_on) == 24 - 8
    best = read_history(out / "metrics.jsonl")[info.metrics["best_epoch"] - 1]
    assert best["val"]["positive_dice"] > 0.05, "figures of empty masks would compare nothing"
    alone = headline(_score(request, Thresholds.default(4)))
    assert best["val"]["all_empty"] == alone["all_empty"], "all eight validation images are counted, each once"
    assert best["val"] == pytest.approx(alone, abs=1e-3)
    tuned = _score(request, None)
    assert printed["validation"]["kaggle_dice"] == pytest.approx(tuned.kaggle_dice, abs=1e-3)
    assert printed["validation"]["all_empty"] == tuned.all_empty
