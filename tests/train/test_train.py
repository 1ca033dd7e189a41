"""Trainings, tiny ones: that they repeat, what they start from, and runs on folds."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from defectseg.config import load_recipe
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.split import make_folds, read_split, write_split
from defectseg.errors import DataError, UsageError
from defectseg.evaluate.metrics import headline
from defectseg.image.read import DecodedImage, decode
from defectseg.model.bundle import read_bundle
from defectseg.model.info import Thresholds, read_model_info
from defectseg.model.locate import model_identity
from defectseg.train import train as train_module
from defectseg.train.curves import read_history
from defectseg.train.train import TrainResult, train
from defectseg.tune.tune import tune

Asked = Callable[..., dict[str, Any]]
Start = Callable[..., TrainResult]
GoOn = Callable[..., list[TrainResult]]
Interrupt = Callable[..., None]
Finished = tuple[dict[str, Any], TrainResult]
Several = tuple[dict[str, Any], list[TrainResult]]

GIVEN = Thresholds(gate=(0.1,) * 4, pixel=(0.2, 0.3, 0.4, 0.5), min_area_px=(1, 2, 3, 4), chosen_by="hand")
QUICK = ("training.epochs=1", "data.samples_per_epoch=4")
STILL = ("training.epochs=1", "optimizer.encoder_lr=1e-12", "optimizer.decoder_lr=1e-12")


# Chance


def test_a_seed_repeats_a_run_and_another_does_not_whatever_was_trained_before(start: Start, tmp_path: Path) -> None:
    first = start(*QUICK)
    start(*QUICK, "training.precision=bf16", "training.accumulation=2", out=tmp_path / "between")
    torch.manual_seed(77)
    np.random.seed(77)
    again, other = start(*QUICK, out=tmp_path / "again"), start(*QUICK, "seed=4", out=tmp_path / "other")
    assert model_identity(again.model) == model_identity(first.model) != model_identity(other.model)


# What it is trained on, and what it starts from


def test_with_fold_none_every_image_is_trained_on(start: Start, out: Path) -> None:
    result = start("data.fold=null", *QUICK)
    info, weights = read_bundle(result.model)
    assert result.metrics is None
    assert (info.fold, len(info.trained_on)) == (None, 24)
    assert info.thresholds == Thresholds.default(4)
    assert info.metrics == {"weights": "epoch", "epoch": 1}
    assert not any("val" in entry for entry in read_history(out / "metrics.jsonl"))
    last = torch.load(out / "last.ckpt", weights_only=True)["network"]
    torch.testing.assert_close(weights, last, rtol=0, atol=0)


def test_given_thresholds_are_stored_in_the_model(start: Start, out: Path) -> None:
    result = start(*QUICK, "data.fold=null", "training.threshold_folds=2", thresholds=GIVEN)
    assert read_model_info(result.model).thresholds == GIVEN
    assert not (out / "folds").exists()


def test_a_run_chooses_the_thresholds_that_tune_chooses(
    start: Start, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_ids = open_data_folder(data).image_ids
    groups = [f"{image_id},strip {index // 3}" for index, image_id in enumerate(image_ids)]
    (data / "groups.csv").write_text("\n".join(["ImageId,Group", *groups]) + "\n")
    result = start(*QUICK, data=data)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    tuning = tune(result.model, data, device="cpu", runtime="torch", dry_run=True)
    assert any("only " in warning for warning in tuning.choice.warnings)
    assert told == list(tuning.choice.warnings)
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()


def test_a_bundle_is_trained_on_for_other_classes(finished: Finished, start: Start, data: Path) -> None:
    (data / "classes.txt").write_text("cracks\nother\nscratches\npatches\nnew\n")
    # The network is the bundle's, whatever the recipe says.
    result = start("model.encoder=resnet18", *STILL, data=data, init=finished[1].model)
    source, tuned = read_bundle(finished[1].model), read_bundle(result.model)
    assert tuned[0].recipe.model == source[0].recipe.model
    assert tuned[0].class_names == ("cracks", "other", "scratches", "patches", "new")
    old, new = (weights["net.segmentation_head.0.weight"] for weights in (source[1], tuned[1]))
    assert new.shape[0] == 5
    # pits, cracks, scratches, patches before; cracks, other, scratches, patches, new after.
    torch.testing.assert_close(new[[0, 2, 3]], old[[1, 2, 3]], atol=1e-6, rtol=0)
    assert (new[[1, 4]] - old[0]).abs().max() > 1e-3


def test_encoder_weights_come_from_a_file(start: Start, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "weights.pth")
    result = start(*STILL, f"model.encoder_weights={tmp_path / 'weights.pth'}")
    expected = torch.load(tmp_path / "weights.pth", weights_only=True)["layer1.0.conv1.weight"]
    learnt = read_bundle(result.model)[1]["net.encoder.model.layer1.0.conv1.weight"]
    torch.testing.assert_close(learnt, expected, atol=1e-6, rtol=0)


# A run for each fold


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded for training, and how often copies were searched for."""
    done: Counter[str] = Counter()

    def count_decoding(data: DataFolder, image_id: str) -> DecodedImage:
        done[image_id] += 1
        return decode(data.image_path(image_id))

    def count_search(data: DataFolder, **settings: Any) -> tuple[dict[str, int], dict[str, str]]:
        done["searches"] += 1
        return make_folds(data, **settings)

    monkeypatch.setattr(DataFolder, "decode", count_decoding)
    monkeypatch.setattr("defectseg.train.images.make_folds", count_search)
    return done


@pytest.fixture(scope="module")
def folds_run(tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Several:
    """A run for each of two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.folds=2"])
    out = tmp_path_factory.mktemp("folds") / "runs"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "every_fold": True}
    return arguments, train(**arguments)


def test_each_fold_is_held_out_once_as_by_a_run_on_it_alone(folds_run: Several, start: Start) -> None:
    arguments, results = folds_run
    assert len(results) == 2
    held_out = []
    for fold, result in enumerate(results):
        assert result.model == arguments["out"] / f"fold-{fold}" / "model.safetensors"
        assert result.metrics is not None
        info = read_model_info(result.model)
        assert info.fold == info.recipe.data.fold == fold
        folds = read_split(result.model.with_name("split.csv"))
        held_out += [image_id for image_id, number in folds.items() if number == fold]
    assert sorted(held_out) == sorted(open_data_folder(arguments["data"]).image_ids)
    alone = start("data.folds=2", "data.fold=1")
    assert model_identity(alone.model) == model_identity(results[1].model) != model_identity(results[0].model)
    assert list(arguments["out"].rglob("request.json")) == [arguments["out"] / "request.json"]


def test_runs_share_processes_decoded_images_and_the_search_for_copies(
    asked: Asked, work: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second meeting of the processes of torchrun would hang on what the first has left behind."""
    met: list[int] = []
    meet = PartialState.__init__

    def count(state: PartialState, *args: Any, **kwargs: Any) -> None:
        met.append(len(state._shared_state))
        meet(state, *args, **kwargs)

    monkeypatch.setattr(PartialState, "__init__", count)
    assert len(train(**asked("data.folds=2", "data.cache=true", *QUICK, every_fold=True))) == 2
    assert [known for known in met if known == 0] == [0], "they meet once"
    assert PartialState._shared_state == {}
    assert len(work) == 24 + 1
    assert set(work.values()) == {1}


def test_the_folds_are_those_of_the_data_folder(asked: Asked, data: Path) -> None:
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {image_id: (3, 5, 9)[index % 3] for index, image_id in enumerate(image_ids)})
    results = train(**asked(*QUICK, data=data, every_fold=True))
    assert [read_model_info(result.model).fold for result in results] == [3, 5, 9]


@pytest.mark.parametrize("run", [1, 2], ids=["first fold", "second fold"])
def test_interrupted_folds_resume_bit_for_bit(
    folds_run: Several, out: Path, interrupt: Interrupt, go_on: GoOn, work: Counter[str], run: int
) -> None:
    whole, expected = folds_run
    interrupt(6, in_run=run, **whole | {"out": out, "thresholds": GIVEN})
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert len(stamps) == run - 1
    with pytest.raises(UsageError, match=rf"It is a part of {out}: resume that"):
        go_on(out=out / "fold-0")
    results = go_on()
    assert [model_identity(result.model) for result in results] == [model_identity(one.model) for one in expected]
    assert all(read_model_info(result.model).thresholds == GIVEN for result in results)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "what has ended is left alone"
    assert work["searches"] == 1


def test_folds_of_other_data_are_not_joined(interrupt: Interrupt, go_on: GoOn, data: Path) -> None:
    interrupt(1, "data.folds=2", *QUICK, in_run=2, data=data, every_fold=True)
    lines = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"not the data that .*training began with"):
        go_on()


# Everything, with thresholds from folds


@pytest.fixture(scope="module")
def on_everything(tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run on all images whose thresholds come from two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.fold=null", "data.folds=3", "training.threshold_folds=2"])
    out = tmp_path_factory.mktemp("everything") / "run"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu"}
    return arguments, train(**arguments)[0]


def test_a_model_of_everything_has_thresholds_from_images_that_its_folds_held_out(
    on_everything: Finished, start: Start
) -> None:
    arguments, result = on_everything
    out = arguments["out"]
    info = read_model_info(result.model)
    assert (info.fold, len(info.trained_on)) == (None, 24)
    models = [out / "folds" / f"fold-{fold}" / "model.safetensors" for fold in (0, 1)]
    assert sorted((out / "folds").glob("*/model.safetensors")) == models
    tuning = tune(models, arguments["data"], device="cpu", dry_run=True)
    assert info.thresholds == tuning.choice.thresholds
    assert "16 out-of-fold images of 2 models" in info.thresholds.chosen_by
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()
    assert result.held_out.startswith("Images that the models of 2 folds held out")
    scores = {**headline(tuning.metrics), "images": 16, "folds": 2}
    assert set(scores) == {"kaggle_dice", "all_empty", "positive_dice", "miou", "images", "folds"}
    assert info.metrics == {"weights": "epoch", "epoch": 2, "out_of_fold": scores}
    alone = start("data.fold=null", "data.folds=3")
    assert model_identity(alone.model) == model_identity(result.model), "the folds change nothing but the thresholds"


@pytest.mark.parametrize(("run", "step"), [(2, 1), (3, 6)], ids=["second fold", "on all images"])
def test_an_interrupted_run_on_everything_resumes_bit_for_bit(
    on_everything: Finished, interrupt: Interrupt, out: Path, go_on: GoOn, run: int, step: int
) -> None:
    whole, expected = on_everything
    interrupt(step, in_run=run, **whole | {"out": out})
    model = go_on()[0].model
    info, known = read_model_info(model), read_model_info(expected.model)
    assert model_identity(model) == model_identity(expected.model)
    assert (info.thresholds, info.metrics) == (known.thresholds, known.metrics)


def test_runs_share_the_time_and_warnings_about_thresholds_are_logged(
    start: Start, out: Path, work: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    start(*QUICK, "data.fold=null", "training.threshold_folds=1", "training.max_minutes=60", "data.cache=true")
    assert set(work.values()) == {1}
    for folder in (out, out / "folds" / "fold-0"):
        assert load_recipe(str(folder / "config.yaml")).training.max_minutes == 30.0
        assert len(read_history(folder / "metrics.jsonl")) == 1
    assert json.loads((out / "request.json").read_text())["recipe"]["training"]["max_minutes"] == 60.0
    told = [record.getMessage() for record in caplog.records if record.name == train_module.__name__]
    assert any("only " in line for line in told)
    assert not any("thresholds are the defaults" in line for line in caplog.messages)
