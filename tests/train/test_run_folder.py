"""What a run leaves, what its folder may hold before, and how it goes on after an interruption."""

import csv
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from defectseg.config import load_recipe
from defectseg.data.folder import image_digest, open_data_folder
from defectseg.data.split import read_split
from defectseg.errors import DataError, ModelError, OutputExistsError, UsageError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.evaluate.score import score_images
from defectseg.files import is_empty_folder
from defectseg.inference.settings import Settings
from defectseg.model.bundle import read_bundle
from defectseg.model.info import Thresholds
from defectseg.runtime.load import load_runtime
from defectseg.train.curves import read_history
from defectseg.train.run_folder import Request, run_folder
from defectseg.train.train import TrainResult, train

Start = Callable[..., TrainResult]
GoOn = Callable[..., list[TrainResult]]
Interrupt = Callable[..., None]
Finished = tuple[dict[str, Any], TrainResult]

RUN_FILES = {
    "request.json",
    "model.safetensors",
    "last.ckpt",
    "config.yaml",
    "split.csv",
    "metrics.jsonl",
    "curves.png",
}
STILL = ("training.epochs=1", "optimizer.encoder_lr=1e-12", "optimizer.decoder_lr=1e-12")
QUICK = ("training.epochs=1", "data.samples_per_epoch=4")
GIVEN = Thresholds(gate=(0.1,) * 4, pixel=(0.2,) * 4, min_area_px=(3,) * 4, chosen_by="hand")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What a run leaves


def test_a_run_leaves_what_is_documented(finished: Finished) -> None:
    arguments, result = finished
    out, data = arguments["out"], open_data_folder(arguments["data"])
    assert (_names(out), result.model, result.unreadable) == (RUN_FILES, out / "model.safetensors", ())
    request = json.loads((out / "request.json").read_text())
    assert request["recipe"] == arguments["recipe"].model_dump(mode="json")
    assert Path(request["data"]).samefile(arguments["data"])
    assert (request["init"], request["thresholds"], request["every_fold"]) == (None, None, False)
    assert load_recipe(str(out / "config.yaml")) == arguments["recipe"]
    folds = read_split(out / "split.csv")
    assert sorted(folds) == list(data.image_ids)
    assert set(folds.values()) == {0, 1, 2, 3}
    picture = cv2.imread(str(out / "curves.png"))
    assert picture is not None
    assert picture.std() > 1

    entries = read_history(out / "metrics.jsonl")
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    expected = {*("epoch", "loss", "bce", "dice", "lovasz", "gate", "lr_encoder", "lr_decoder"), "data_s", "step_s"}
    for entry in entries:
        assert set(entry) == expected | {"val", "elapsed_s"}
        assert set(entry["val"]) == {"kaggle_dice", "all_empty", "positive_dice", "miou", "ungated_dice", "weights"}

    info = read_bundle(result.model)[0]
    assert info.class_names == data.class_names
    assert (info.recipe, info.fold, info.data_fingerprint) == (arguments["recipe"], 0, data.fingerprint())
    trained = {image_digest(data.image_path(image_id)) for image_id in data.image_ids if folds[image_id] != 0}
    assert set(info.trained_on) == trained
    assert info.thresholds.chosen_by == "search on the 6 validation images of fold 0"
    assert info.versions["torch"] == importlib.metadata.version("torch")
    assert info.created.endswith("+00:00")


def _score(arguments: dict[str, Any], thresholds: Thresholds | None) -> Metrics:
    """Score the saved bundle on the validation images as evaluate does."""
    data = open_data_folder(arguments["data"])
    runtime, info = load_runtime(arguments["out"] / "model.safetensors", "cpu", "torch")
    folds = read_split(arguments["out"] / "split.csv")
    val_ids = [image_id for image_id in data.image_ids if folds[image_id] == 0]
    counts = score_images(runtime, data, val_ids, Settings.of(info, thresholds=thresholds)).counts
    assert {image_id for image_id, _ in counts} == set(val_ids)
    return summarise(counts, data.class_names)


def test_evaluating_the_bundle_gives_the_figures_of_the_training(finished: Finished) -> None:
    arguments, result = finished
    tuned = _score(arguments, None)
    assert result.metrics is not None
    assert tuned.to_json() == result.metrics.to_json()
    info = read_bundle(result.model)[0]
    assert info.metrics["tuned"] == headline(tuned)
    best = read_history(arguments["out"] / "metrics.jsonl")[info.metrics["best_epoch"] - 1]
    untuned = headline(_score(arguments, Thresholds.default(4)))
    assert untuned == {key: best["val"][key] for key in untuned} == {key: info.metrics[key] for key in untuned}


def test_tensorboard_gets_figures_and_pictures_of_validation_images(start: Start, out: Path) -> None:
    start("training.trackers=[tensorboard]", "training.ema_decay=0.9")
    assert _names(out) - RUN_FILES == {"tensorboard"}
    (events,) = (out / "tensorboard" / "defectseg").glob("events.out.tfevents.*")
    told = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert {"train/loss", "train/lovasz", "train/lr_decoder", "val/kaggle_dice"} <= set(told.Tags()["scalars"])
    assert [event.step for event in told.Scalars("val/kaggle_dice")] == [1, 2]

    folds = read_split(out / "split.csv")
    shown = [tag.removeprefix("validation/") for tag in told.Tags()["images"]]
    assert len(shown) == 4
    assert all(folds[image_id] == 0 for image_id in shown)
    for image_id in shown:
        entries = told.Images(f"validation/{image_id}")
        assert [entry.step for entry in entries] == [1, 2]
        picture = cv2.imdecode(np.frombuffer(entries[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape[1] == 128


def test_an_image_that_cannot_be_read_is_left_out_and_listed(start: Start, out: Path, data: Path) -> None:
    broken = data / "train_images" / "sheet_00004.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    (broken.parent / "-gone.jpg").symlink_to("nowhere.jpg")
    (broken.parent / "a\\b.jpg").touch()
    os.mkfifo(broken.parent / "pipe.jpg")
    result = start(*QUICK, data=data)
    assert [image_id for image_id, _ in result.unreadable] == ["a%5Cb.jpg", "-gone.jpg", "pipe.jpg", "sheet_00004.jpg"]
    assert _names(out) == RUN_FILES | {"errors.csv"}
    with (out / "errors.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[1].pop("ImageId") == "'-gone.jpg"  # spreadsheets would run the name as a formula
    told = [(row.get("ImageId", "-gone.jpg"), row["error"]) for row in rows]
    assert told == list(result.unreadable)
    assert all(image_id in reason for image_id, reason in result.unreadable)
    info = read_bundle(result.model)[0]
    assert image_digest(broken) not in info.trained_on
    assert len(info.trained_on) in (17, 18)


# What the folder may hold before


@pytest.mark.parametrize("kind", ["folder", "file", "folder of folds"])
def test_an_output_that_is_not_empty_is_left_alone(start: Start, out: Path, kind: str) -> None:
    kept = out
    if kind != "file":
        kept = out / ("notes.txt" if kind == "folder" else "fold-0/notes.txt")
        kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"run: not empty\. Choose another run folder") as caught:
        start()
    assert caught.value.go_on == {"resume": True}
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "every_fold", "message"),
    [
        (("loss.positive_weights=[1,2]",), False, r"loss.positive_weights: 2 values; expected 4"),
        (("training.precision=fp16",), False, r"training.precision: fp16 needs a GPU"),
        (("model.encoder=tu-test_resnett",), False, r"Did you mean 'tu-test_resnet'"),
        (("data.folds=99",), False, r"99 folds of 24 images"),
        (("data.fold=9",), False, r"data.fold: 9, but the split has the folds \[0, 1, 2, 3\]"),
        (("data.fold=null", "training.threshold_folds=5"), False, r"threshold_folds: 5, but there are 4 f"),
        (("data.fold=null", "training.threshold_folds=1", "loss.positive_weights=[1]"), False, r"1 values; expected 4"),
        (("data.folds=2", "loss.positive_weights=[1]"), True, r"1 values; expected 4"),
        (
            ("model.architecture=DPT", "model.encoder=tu-test_vit", 'model.options={"dynamic_img_size": false}'),
            False,
            r"cannot take images of 64x64 px",
        ),
    ],
)
def test_an_invalid_setting_is_an_error_and_leaves_an_empty_folder(
    start: Start, out: Path, settings: tuple[str, ...], every_fold: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        start("training.trackers=[tensorboard]", *settings, every_fold=every_fold)
    assert is_empty_folder(out)
    with pytest.raises(UsageError, match=r"no request\.json"):
        train(None, out, resume=True)


# Resuming; test_processes.py has runs that are killed or signalled


@pytest.mark.parametrize("name", ["tensorboard", "folds", "fold-0", "fold-1/tensorboard"])
def test_a_link_in_a_run_folder_that_leads_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    outside.mkdir()
    (run / name).symlink_to(outside)
    request = Request(recipe=load_recipe("fast"), data=tmp_path)
    with pytest.raises(OutputExistsError, match=f"{name}: is a link"), run_folder(run, request, resume=True):
        pass
    assert not list(outside.iterdir())


@pytest.mark.parametrize("step", [None, 1], ids=["before the first checkpoint", "in the last epoch"])
def test_a_resumed_run_uses_its_first_recipe_model_and_thresholds(
    finished: Finished,
    asked: Callable[..., dict[str, Any]],
    out: Path,
    interrupt: Interrupt,
    go_on: GoOn,
    monkeypatch: pytest.MonkeyPatch,
    step: int | None,
) -> None:
    def stop(run: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(finished[1].model.parent)
    settings = (*STILL, "data.fold=2", "model.encoder=resnet18")  # the network is the bundle's all the same
    given: dict[str, Any] = {"init": Path("model.safetensors"), "thresholds": GIVEN}
    with monkeypatch.context() as patch:
        if step is None:
            patch.setattr("defectseg.train.run.save_checkpoint", stop)
        interrupt(step or 0, *settings, **given)
    monkeypatch.chdir(out)
    for name in ("recipe", "thresholds"):
        with pytest.raises(UsageError, match="goes on as it began"):
            go_on(**{name: asked(*settings, **given)[name]})
    info, weights = read_bundle(go_on()[0].model)
    key = "net.encoder.model.layer1.0.conv1.weight"
    torch.testing.assert_close(weights[key], read_bundle(finished[1].model)[1][key], atol=1e-6, rtol=0)
    assert (info.recipe.model, info.recipe.training.epochs) == (finished[0]["recipe"].model, 1)
    assert (info.fold, info.thresholds) == (2, GIVEN)
    assert _names(out) == RUN_FILES


def test_moved_data_can_be_named_anew_and_changed_data_are_refused(
    interrupt: Interrupt, go_on: GoOn, data: Path, tmp_path: Path
) -> None:
    interrupt(5, data=data)
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"data: no such folder"):
        go_on()
    table = (moved / "train.csv").read_text()
    (moved / "train.csv").write_text("\n".join(table.splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"not the data that .*training began with: images or labels differ"):
        go_on(data=moved)
    (moved / "train.csv").write_text(table)
    first = next((moved / "train_images").iterdir())
    new = first.rename(first.with_name("new.jpg"))
    with pytest.raises(DataError, match=r"not the data that .*training began with: new.jpg is new"):
        go_on(data=moved)
    new.rename(first)
    assert go_on(data=moved)[0].model.is_file()


def test_resuming_without_a_usable_run_is_an_error(
    finished: Finished, out: Path, interrupt: Interrupt, go_on: GoOn
) -> None:
    with pytest.raises(UsageError, match=r"no request.json, so there is no training to resume"):
        go_on()
    assert not out.exists()
    with pytest.raises(UsageError, match=r"this run has ended; its model is model.safetensors"):
        go_on(out=finished[0]["out"])
    interrupt(1)
    (out / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"last.ckpt: the run cannot be resumed from it"):
        go_on()
    (out / "request.json").write_text("{")
    with pytest.raises(UsageError, match=r"request.json: cannot be read"):
        go_on()
