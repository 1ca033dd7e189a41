"""Single training runs, tiny ones: what they leave, that they repeat, and how they go on after an interruption."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import defectseg
from defectseg.config import load_recipe
from defectseg.data.folder import image_digest, open_data_folder
from defectseg.data.split import read_split, write_split
from defectseg.errors import DataError, ModelError, UsageError
from defectseg.evaluate.metrics import Metrics, headline, summarise
from defectseg.evaluate.score import score_images
from defectseg.inference.settings import Settings
from defectseg.model.bundle import load_bundle, read_bundle, weights_digest
from defectseg.model.info import Thresholds
from defectseg.runtime.load import load_runtime
from defectseg.train import run_folder as single_module
from defectseg.train.curves import read_history
from defectseg.train.request import TrainRequest, TrainResult
from defectseg.train.train import train
from defectseg.tune.search import ThresholdSearch
from defectseg.tune.tune import TuneRequest, tune

RUN_FILES = {"model.safetensors", "last.ckpt", "config.yaml", "split.csv", "metrics.jsonl", "curves.png"}
STEPS_PER_EPOCH = 4


def _with(request: TrainRequest, tiny_recipe: Path, *overrides: str, **changes: Any) -> TrainRequest:
    return replace(request, recipe=load_recipe(str(tiny_recipe), overrides), **changes)


def _on_fold(request: TrainRequest, fold: int | None, **changes: Any) -> TrainRequest:
    data = request.recipe.data.model_copy(update={"fold": fold})
    return replace(request, recipe=request.recipe.model_copy(update={"data": data}), **changes)


def _stop_at(step: int) -> Any:
    def advance(done: int, total: int, text: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return advance


def _digest(run: Path) -> str:
    return weights_digest(read_bundle(run / "model.safetensors")[1])


def _last_digest(run: Path) -> str:
    return weights_digest(torch.load(run / "last.ckpt", weights_only=True)["network"])


def _copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def _timeless(run: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl without what a clock measured."""
    return [
        {key: value for key, value in entry.items() if not key.endswith("_s")}
        for entry in read_history(run / "metrics.jsonl")
    ]


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
        "lovasz",
        "gate",
        "lr_encoder",
        "lr_decoder",
        "data_s",
        "step_s",
        "val",
        "elapsed_s",
    }
    assert all(set(entry) == expected for entry in entries)
    figures = {"kaggle_dice", "all_empty", "positive_dice", "miou", "ungated_dice", "weights"}
    assert all(set(entry["val"]) == figures for entry in entries)


def test_the_curves_are_a_picture(finished: tuple[TrainRequest, TrainResult]) -> None:
    picture = cv2.imread(str(finished[0].out / "curves.png"))
    assert picture is not None
    assert picture.std() > 1


def _score(request: TrainRequest, thresholds: Thresholds | None) -> Metrics:
    """Score the saved bundle on the validation images as evaluate does."""
    data = open_data_folder(request.data)
    runtime, info = load_runtime(request.out / "model.safetensors", "cpu", "torch")
    folds = read_split(request.out / "split.csv")
    val_ids = [image_id for image_id in data.image_ids if folds[image_id] == 0]
    counts = score_images(runtime, data, val_ids, Settings.of(info, thresholds=thresholds)).counts
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
    untuned = headline(_score(request, Thresholds.default(4)))
    assert untuned == {key: best["val"][key] for key in untuned} == {key: info.metrics[key] for key in untuned}


def test_tensorboard_gets_figures_and_pictures_of_validation_images(request_: TrainRequest, tiny_recipe: Path) -> None:
    train(_with(request_, tiny_recipe, "training.trackers=[tensorboard]", "training.ema_decay=0.9"))
    others = {path.name for path in request_.out.iterdir()} - RUN_FILES
    assert others == {"tensorboard"}
    (events,) = (request_.out / "tensorboard" / "defectseg").glob("events.out.tfevents.*")
    told = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert {"train/loss", "train/lovasz", "train/lr_decoder", "val/kaggle_dice"} <= set(told.Tags()["scalars"])
    assert [event.step for event in told.Scalars("val/kaggle_dice")] == [1, 2]

    data, folds = open_data_folder(request_.data), read_split(request_.out / "split.csv")
    shown = [tag.removeprefix("validation/") for tag in told.Tags()["images"]]
    assert len(shown) == 4
    assert all(folds[image_id] == 0 for image_id in shown)
    for image_id in shown:
        entries = told.Images(f"validation/{image_id}")
        assert [entry.step for entry in entries] == [1, 2]
        picture = cv2.imdecode(np.frombuffer(entries[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape[1] == 128
        if data.classes_of(image_id):  # what is labelled and not found is blue
            blue, green, red = np.moveaxis(picture.astype(int), -1, 0)
            assert np.count_nonzero((blue > red + 50) & (blue > green + 50)) > 20


def test_a_run_ends_with_what_tune_says_of_its_model(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = _copy(request_.data, tmp_path)
    image_ids = open_data_folder(data).image_ids
    groups = [f"{image_id},strip {index // 3}" for index, image_id in enumerate(image_ids)]
    (data / "groups.csv").write_text("\n".join(["ImageId,Group", *groups]) + "\n")
    best = ThresholdSearch.best
    folds: list[int] = []

    def choose(*args: Any, **options: Any) -> Any:
        choice = best(*args, **options)
        folds.append(choice.folds)
        return choice

    monkeypatch.setattr(ThresholdSearch, "best", choose)
    result = train(replace(request_, data=data))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    tuning = tune(TuneRequest(models=[result.model], data=data, device="cpu", runtime="torch", dry_run=True))
    assert folds == [2, 2], "six images of two strips, in the training and in tune"
    assert any("only " in warning for warning in tuning.choice.warnings)
    assert told == list(tuning.choice.warnings)
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()


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
        patch.setattr(single_module, "_search_thresholds", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert (broken.out / "best.safetensors").is_file()
    train(replace(broken, resume=True))
    assert _digest(broken.out) == _digest(finished[0].out)
    assert {path.name for path in broken.out.iterdir()} == RUN_FILES


def _killed_before_checkpoint(request: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """A run that stopped where it would have written its first checkpoint, as `kill -9` leaves it."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(single_module, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(request)
    (request.out / ".lock").touch()
    (request.out / ".tmp-1234-last.ckpt").write_bytes(b"torn")
    return replace(request, init=None, thresholds=None, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(
    finished: tuple[TrainRequest, TrainResult],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed = _killed_before_checkpoint(replace(finished[0], out=tmp_path / "run"), monkeypatch)
    with caplog.at_level("INFO"):
        train(_with(killed, tiny_recipe, "training.epochs=1", "seed=99"))
    assert f"{killed.out}: stopped before its first checkpoint, so it starts from the beginning" in caplog.messages
    assert _digest(killed.out) == _digest(finished[0].out)
    assert _timeless(killed.out) == _timeless(finished[0].out)
    assert {path.name for path in killed.out.iterdir()} == RUN_FILES


def test_a_run_that_starts_from_the_beginning_keeps_its_first_weights_and_its_thresholds(
    finished: tuple[TrainRequest, TrainResult], request_: TrainRequest, tiny_recipe: Path, monkeypatch: Any
) -> None:
    still = ("training.epochs=1", "optimizer.encoder_lr=1e-12", "optimizer.decoder_lr=1e-12")
    given = Thresholds(gate=(0.1,) * 4, pixel=(0.2,) * 4, min_area_px=(3,) * 4, chosen_by="hand")
    begun = _with(request_, tiny_recipe, *still, init=finished[1].model, thresholds=given)
    train(_killed_before_checkpoint(begun, monkeypatch))
    info, weights = read_bundle(request_.out / "model.safetensors")
    key = "net.encoder.model.layer1.0.conv1.weight"
    torch.testing.assert_close(weights[key], read_bundle(finished[1].model)[1][key], atol=1e-6, rtol=0)
    assert info.thresholds == given
    assert {path.name for path in request_.out.iterdir()} == RUN_FILES | {"thresholds.json"}


def _interrupted(request: TrainRequest, step: int = STEPS_PER_EPOCH + 1) -> TrainRequest:
    with pytest.raises(KeyboardInterrupt):
        train(replace(request, advance=_stop_at(step)))
    return replace(request, resume=True)


@pytest.mark.parametrize("fold", [2, None])
def test_resuming_keeps_the_fold_that_the_run_began_with(request_: TrainRequest, fold: int | None) -> None:
    resumed = _interrupted(_on_fold(request_, fold))
    train(_on_fold(resumed, 0))
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


# What it is trained on


def test_with_fold_none_every_image_is_trained_on(request_: TrainRequest) -> None:
    result = train(_on_fold(request_, None))
    _, info = load_bundle(result.model)
    assert result.metrics is None
    assert info.fold is None
    assert len(info.trained_on) == 24
    assert info.thresholds == Thresholds.default(4)
    assert info.metrics == {"weights": "epoch", "epoch": 2}
    assert not any("val" in entry for entry in read_history(request_.out / "metrics.jsonl"))
    assert _digest(request_.out) == _last_digest(request_.out)
    assert {path.name for path in request_.out.iterdir()} == RUN_FILES


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


# torchrun of the command line; with a first argument other than 0, each process sends itself SIGTERM after that step.
DISTRIBUTED = """
import os, signal, sys
from defectseg.train import loop

account, at = loop._account, int(sys.argv.pop(1))

def count(run, *args):
    account(run, *args)
    if run.progress.step == at:
        os.kill(os.getpid(), signal.SIGTERM)

loop._account = count
from defectseg.cli.main import main
main()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
# Enough for a network this small to find something; with a head, the gate would still stop every image. Earlier epochs
# are not validated, since empty masks would be the best of them.
LEARNS = (
    "training.epochs=8",
    "training.batch_size=2",
    "training.validate_every=8",
    "data.samples_per_epoch=96",
    "model.classification_head=false",
)


def _call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@dataclass(frozen=True)
class Distributed:
    """Trainings by two processes: the program that they run, the data, 8 of whose images validate, and the recipe."""

    program: Path
    data: Path
    recipe: Path

    def train(self, out: Path, *arguments: str, stop_at: int = 0) -> subprocess.CompletedProcess[str]:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", self.program, str(stop_at))
        return _call(*launch, "train", self.recipe, "--data", self.data, "--out", out, "--device=cpu", *arguments)


@pytest.fixture(scope="module")
def distributed(tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributed:
    folder = tmp_path_factory.mktemp("distributed")
    data = _copy(data_folder, folder)
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {image_id: int(index % 3 != 1) for index, image_id in enumerate(image_ids)})
    (folder / "program.py").write_text(DISTRIBUTED)
    return Distributed(folder / "program.py", data, tiny_recipe)


@pytest.fixture(scope="module")
def by_two(
    distributed: Distributed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two processes, and what they printed."""
    out = tmp_path_factory.mktemp("by_two") / "run"
    done = distributed.train(out, "--json", *(f"--set={key}" for key in LEARNS))
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_every_image_once(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], distributed: Distributed, tmp_path: Path
) -> None:
    out, done = by_two
    printed = json.loads(done.stdout)  # one process speaks for both
    assert done.stderr.count("epoch 8/8") == 1
    assert {path.name for path in out.iterdir()} == RUN_FILES
    info = read_bundle(out / "model.safetensors")[0]
    assert len(info.trained_on) == 24 - 8

    alone = ("evaluate", out, "--data", distributed.data, "--subset", "val", "--device=cpu", "--runtime=torch")
    evaluated = _call("-m", "defectseg", *alone, "--out", tmp_path / "val")
    assert evaluated.returncode == 0, evaluated.stderr
    score = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert score["images"] == 8
    assert score["positive_dice"] > 0.05, "figures of empty masks would compare nothing"
    for name in ("kaggle_dice", "positive_dice", "miou", "all_empty"):
        assert info.metrics["tuned"][name] == pytest.approx(score[name], abs=1e-6), name
        assert printed["validation"][name] == pytest.approx(score[name], abs=1e-6), name

    request = TrainRequest(recipe=load_recipe(str(distributed.recipe)), data=distributed.data, out=out)
    best = read_history(out / "metrics.jsonl")[info.metrics["best_epoch"] - 1]
    untuned = headline(_score(request, Thresholds.default(4)))
    assert {key: best["val"][key] for key in untuned} == pytest.approx(untuned, abs=1e-6)


@pytest.mark.slow
def test_two_processes_that_are_terminated_go_on_as_if_they_had_not_been(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], distributed: Distributed, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stopped = distributed.train(out, *(f"--set={key}" for key in LEARNS), stop_at=24 + 5)
    assert stopped.returncode != 0
    assert "Continue it with --resume" in stopped.stderr
    progress = torch.load(out / "last.ckpt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 5)
    resumed = distributed.train(out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert _last_digest(out) == _last_digest(by_two[0])
    assert _digest(out) == _digest(by_two[0])
    assert _timeless(out) == _timeless(by_two[0])
