"""Trainings, tiny ones: that they repeat, what they start from, runs on folds, and several processes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

import defectseg
from defectseg.config import load_recipe
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.split import make_folds, read_split, write_split
from defectseg.errors import DataError, UsageError
from defectseg.evaluate.metrics import headline
from defectseg.image.read import decode
from defectseg.model.bundle import load_bundle, read_bundle, weights_digest
from defectseg.model.info import Thresholds
from defectseg.train import train as train_module
from defectseg.train.curves import read_history
from defectseg.train.train import TrainResult, train, train_folds
from defectseg.tune.tune import tune, tune_out_of_fold

Asked = Callable[..., dict[str, Any]]
GoOn = Callable[..., TrainResult]
StopAt = Callable[..., Callable[[int, int, str], None]]
Finished = tuple[dict[str, Any], TrainResult]

GIVEN = Thresholds(gate=(0.1,) * 4, pixel=(0.2, 0.3, 0.4, 0.5), min_area_px=(1, 2, 3, 4), chosen_by="hand")
QUICK = ("training.epochs=1", "data.samples_per_epoch=4")
STILL = ("training.epochs=1", "optimizer.encoder_lr=1e-12", "optimizer.decoder_lr=1e-12")


def _digest(model: Path) -> str:
    return weights_digest(read_bundle(model)[1])


def _copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


# Chance


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_seed_repeats_a_run_and_another_does_not(asked: Asked, tmp_path: Path) -> None:
    first = train(**asked())
    torch.manual_seed(77)  # what happened before plays no part
    np.random.seed(77)
    again, other = train(**asked(out=tmp_path / "again")), train(**asked("seed=4", out=tmp_path / "other"))
    assert _digest(again.model) == _digest(first.model) != _digest(other.model)


def test_trainings_in_one_process_do_not_disturb_each_other(asked: Asked, tmp_path: Path) -> None:
    digests = []
    for index, (precision, accumulation) in enumerate((("bf16", 1), ("fp32", 2), ("bf16", 1))):
        settings = (f"training.precision={precision}", f"training.accumulation={accumulation}", "training.epochs=1")
        digests.append(_digest(train(**asked(*settings, out=tmp_path / f"run{index}")).model))
    assert digests[0] == digests[2] != digests[1]


# What it is trained on, and what it starts from


def test_with_fold_none_every_image_is_trained_on(asked: Asked, out: Path) -> None:
    result = train(**asked("data.fold=null"))
    _, info = load_bundle(result.model)
    assert result.metrics is None
    assert (info.fold, len(info.trained_on)) == (None, 24)
    assert info.thresholds == Thresholds.default(4)
    assert info.metrics == {"weights": "epoch", "epoch": 2}
    assert not any("val" in entry for entry in read_history(out / "metrics.jsonl"))
    assert _digest(result.model) == weights_digest(torch.load(out / "last.ckpt", weights_only=True)["network"])


def test_thresholds_that_are_given_are_those_of_the_model(asked: Asked, tmp_path: Path) -> None:
    for out, fold in ((tmp_path / "one", "0"), (tmp_path / "all", "null")):
        settings = (*QUICK, f"data.fold={fold}", "training.threshold_folds=2")
        assert read_bundle(train(**asked(*settings, out=out, thresholds=GIVEN)).model)[0].thresholds == GIVEN
        assert not (out / "folds").exists()


def test_a_run_ends_with_what_tune_says_of_its_model(
    asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _copy(asked()["data"], tmp_path)
    image_ids = open_data_folder(data).image_ids
    groups = [f"{image_id},strip {index // 3}" for index, image_id in enumerate(image_ids)]
    (data / "groups.csv").write_text("\n".join(["ImageId,Group", *groups]) + "\n")
    result = train(**asked(data=data))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    tuning = tune(result.model, data, device="cpu", runtime="torch", dry_run=True)
    assert any("only " in warning for warning in tuning.choice.warnings)
    assert told == list(tuning.choice.warnings)
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()


def test_a_bundle_is_trained_on_for_other_classes(finished: Finished, asked: Asked, tmp_path: Path) -> None:
    data = _copy(asked()["data"], tmp_path)
    (data / "classes.txt").write_text("cracks\nother\nscratches\npatches\nnew\n")
    # The network is the bundle's, whatever the recipe says.
    result = train(**asked("model.encoder=resnet18", *STILL, data=data, init=finished[1].model))
    source, tuned = read_bundle(finished[1].model), read_bundle(result.model)
    assert tuned[0].recipe.model == source[0].recipe.model
    assert tuned[0].class_names == ("cracks", "other", "scratches", "patches", "new")
    old, new = (weights["net.segmentation_head.0.weight"] for weights in (source[1], tuned[1]))
    assert new.shape[0] == 5
    # pits, cracks, scratches, patches before; cracks, other, scratches, patches, new after.
    torch.testing.assert_close(new[[0, 2, 3]], old[[1, 2, 3]], atol=1e-6, rtol=0)
    assert (new[[1, 4]] - old[0]).abs().max() > 1e-3


def test_encoder_weights_come_from_a_file(asked: Asked, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "weights.pth")
    result = train(**asked(*STILL, f"model.encoder_weights={tmp_path / 'weights.pth'}"))
    expected = torch.load(tmp_path / "weights.pth", weights_only=True)["layer1.0.conv1.weight"]
    learnt = read_bundle(result.model)[1]["net.encoder.model.layer1.0.conv1.weight"]
    torch.testing.assert_close(learnt, expected, atol=1e-6, rtol=0)


# A run for each fold


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was decoded for training, and how often copies were searched for."""
    done: Counter[str] = Counter()

    def count_decoding(path: Path, **options: Any) -> Any:
        done[path.name] += 1
        return decode(path, **options)

    def count_search(data: DataFolder, **settings: Any) -> Any:
        done["searches"] += 1
        return make_folds(data, **settings)

    monkeypatch.setattr(DataFolder, "decode", lambda data, image_id: count_decoding(data.image_path(image_id)))
    monkeypatch.setattr("defectseg.train.images.make_folds", count_search)
    return done


@pytest.mark.parametrize("everything", [False, True])
def test_images_are_decoded_and_copies_searched_for_once_for_all_folds(
    asked: Asked, work: Counter[str], everything: bool
) -> None:
    settings = (*QUICK, "data.folds=2", "data.cache=true")
    if everything:
        train(**asked(*settings, "data.fold=null", "training.threshold_folds=2"))
    else:
        assert len(train_folds(**asked(*settings))) == 2
    assert len(work) == 24 + 1
    assert set(work.values()) == {1}


@pytest.fixture(scope="module")
def folds_run(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[int, TrainResult]]:
    """A run for each of two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.folds=2"])
    out = tmp_path_factory.mktemp("folds") / "runs"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu"}
    return arguments, train_folds(**arguments)


def test_each_fold_is_held_out_once_as_by_a_run_on_it_alone(
    folds_run: tuple[dict[str, Any], dict[int, TrainResult]], asked: Asked
) -> None:
    arguments, results = folds_run
    assert list(results) == [0, 1]
    held_out = []
    for fold, result in results.items():
        assert result.model == arguments["out"] / f"fold-{fold}" / "model.safetensors"
        assert result.metrics is not None
        info = read_bundle(result.model)[0]
        assert info.fold == info.recipe.data.fold == fold
        folds = read_split(result.model.with_name("split.csv"))
        held_out += [image_id for image_id, number in folds.items() if number == fold]
    assert sorted(held_out) == sorted(open_data_folder(arguments["data"]).image_ids)
    alone = train(**asked("data.folds=2", "data.fold=1"))
    assert _digest(alone.model) == _digest(results[1].model) != _digest(results[0].model)
    assert list(arguments["out"].rglob("request.json")) == [arguments["out"] / "request.json"]


def test_processes_stay_together_from_run_to_run_and_part_in_the_end(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second meeting of the processes of torchrun would hang on what the first has left behind."""
    met: list[int] = []
    meet = PartialState.__init__

    def count(state: PartialState, *args: Any, **kwargs: Any) -> None:
        met.append(len(state._shared_state))
        meet(state, *args, **kwargs)

    monkeypatch.setattr(PartialState, "__init__", count)
    train_folds(**asked("data.folds=2", *QUICK))
    assert [known for known in met if known == 0] == [0], "they meet once"
    assert PartialState._shared_state == {}


def test_the_folds_are_those_of_the_data_folder(asked: Asked, tmp_path: Path) -> None:
    data = _copy(asked()["data"], tmp_path)
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {image_id: (3, 5, 9)[index % 3] for index, image_id in enumerate(image_ids)})
    assert list(train_folds(**asked(*QUICK, data=data))) == [3, 5, 9]


@pytest.mark.parametrize("run", [1, 2], ids=["first fold", "second fold"])
def test_interrupted_folds_go_on_as_they_began(
    folds_run: tuple[dict[str, Any], dict[int, TrainResult]], out: Path, stop_at: StopAt, work: Counter[str], run: int
) -> None:
    whole, expected = folds_run
    with pytest.raises(KeyboardInterrupt):
        train_folds(**whole | {"out": out, "thresholds": GIVEN, "progress": stop_at(6, run=run)})
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert len(stamps) == run - 1
    with pytest.raises(UsageError, match=r"began as runs on each fold"):
        train(None, out, resume=True)
    with pytest.raises(UsageError, match=rf"It is a part of {out}: resume that"):
        train(None, out / "fold-0", resume=True)
    results = train_folds(None, out, device="cpu", resume=True)
    assert [_digest(result.model) for result in results.values()] == [_digest(one.model) for one in expected.values()]
    assert all(read_bundle(result.model)[0].thresholds == GIVEN for result in results.values())
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "what has ended is left alone"
    assert work["searches"] == 1


def test_folds_of_other_data_are_not_joined(asked: Asked, out: Path, stop_at: StopAt, tmp_path: Path) -> None:
    data = _copy(asked()["data"], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_folds(**asked("data.folds=2", *QUICK, data=data, progress=stop_at(1, run=2)))
    lines = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="not the data that this training began with"):
        train_folds(None, out, device="cpu", resume=True)


def test_folds_that_begin_after_an_interruption_start_from_the_same_model(
    finished: Finished, asked: Asked, out: Path, stop_at: StopAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished[1].model.parent)
    with pytest.raises(KeyboardInterrupt):
        train_folds(**asked("data.folds=2", *STILL, init=Path("model.safetensors"), progress=stop_at(2)))
    monkeypatch.chdir(out)
    key = "net.encoder.model.layer1.0.conv1.weight"
    source = read_bundle(finished[1].model)[1][key]
    for result in train_folds(None, out, device="cpu", resume=True).values():
        assert (read_bundle(result.model)[1][key] - source).abs().max() < 1e-6


# Everything, with thresholds from folds


@pytest.fixture(scope="module")
def on_everything(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], TrainResult]:
    """A run on all images whose thresholds come from two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.fold=null", "data.folds=3", "training.threshold_folds=2"])
    out = tmp_path_factory.mktemp("everything") / "run"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu"}
    return arguments, train(**arguments)


def test_a_model_of_everything_has_thresholds_from_images_that_its_folds_held_out(
    on_everything: tuple[dict[str, Any], TrainResult], asked: Asked
) -> None:
    arguments, result = on_everything
    out = arguments["out"]
    info = read_bundle(result.model)[0]
    assert (info.fold, len(info.trained_on)) == (None, 24)
    models = [out / "folds" / f"fold-{fold}" / "model.safetensors" for fold in (0, 1)]
    assert sorted((out / "folds").glob("*/model.safetensors")) == models
    tuning = tune_out_of_fold(models, arguments["data"], device="cpu")
    assert info.thresholds == tuning.thresholds
    assert "16 out-of-fold images of 2 models" in info.thresholds.chosen_by
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()
    assert result.held_out.startswith("Images that the models of 2 folds held out")
    scores = {**headline(tuning.metrics), "images": 16, "folds": 2}
    assert set(scores) == {"kaggle_dice", "all_empty", "positive_dice", "miou", "images", "folds"}
    assert info.metrics == {"weights": "epoch", "epoch": 2, "out_of_fold": scores}
    alone = train(**asked("data.fold=null", "data.folds=3"))
    assert _digest(alone.model) == _digest(result.model), "the folds change nothing but the thresholds"


def test_the_warnings_of_the_choice_on_folds_are_told(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    train(**asked(*QUICK, "data.fold=null", "training.threshold_folds=1"))
    told = [record.getMessage() for record in caplog.records if record.name == train_module.__name__]
    assert any("only " in line for line in told)
    assert not any("thresholds are the defaults" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("run", "step"),
    [(1, 6), (2, 1), (3, 6), (0, 0)],
    ids=["first fold", "second fold", "on all images", "between folds and everything"],
)
def test_a_run_on_everything_goes_on_where_it_was_interrupted(
    on_everything: tuple[dict[str, Any], TrainResult],
    out: Path,
    go_on: GoOn,
    stop_at: StopAt,
    monkeypatch: pytest.MonkeyPatch,
    run: int,
    step: int,
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    whole, expected = on_everything
    with monkeypatch.context() as patch:
        if not run:
            patch.setattr(train_module, "tune_out_of_fold", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(**whole | {"out": out, "progress": stop_at(step, run=run)})
    info, weights = read_bundle(go_on().model)
    known, expected_weights = read_bundle(expected.model)
    assert weights_digest(weights) == weights_digest(expected_weights)
    assert (info.thresholds, info.metrics) == (known.thresholds, known.metrics)


def test_the_time_budget_is_shared_by_the_runs(asked: Asked, out: Path) -> None:
    train(**asked(*QUICK, "data.fold=null", "training.threshold_folds=1", "training.max_minutes=60"))
    for folder in (out, out / "folds" / "fold-0"):
        assert load_recipe(str(folder / "config.yaml")).training.max_minutes == 30.0
        assert len(read_history(folder / "metrics.jsonl")) == 1
    assert json.loads((out / "request.json").read_text())["recipe"]["training"]["max_minutes"] == 60.0


# Several processes


# torchrun of the command line; with a first argument other than 0, each process sends itself SIGTERM after that step.
# Copies are searched for in the main process alone.
DISTRIBUTED = """
import os, signal, sys
from defectseg.train import images, loop

account, at, make_folds = loop._account, int(sys.argv.pop(1)), images.make_folds

def count(run, *args):
    account(run, *args)
    if run.state.step == at:
        os.kill(os.getpid(), signal.SIGTERM)

def search(*args, **settings):
    assert os.environ["RANK"] == "0"
    return make_folds(*args, **settings)

loop._account, images.make_folds = count, search
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
    "data.folds=3",
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
    """Trainings by two processes: the program that they run, the data, and the recipe."""

    program: Path
    data: Path
    recipe: Path

    def train(self, out: Path, *arguments: str, stop_at: int = 0) -> subprocess.CompletedProcess[str]:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", self.program, str(stop_at))
        return _call(*launch, "train", self.recipe, "--data", self.data, "--out", out, "--device=cpu", *arguments)


@pytest.fixture(scope="module")
def distributed(tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributed:
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "program.py").write_text(DISTRIBUTED)
    return Distributed(folder / "program.py", data_folder, tiny_recipe)


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


@pytest.mark.slow
def test_two_processes_that_are_terminated_go_on_as_if_they_had_not_been(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], distributed: Distributed, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stopped = distributed.train(out, *(f"--set={key}" for key in LEARNS), stop_at=24 + 5)
    assert stopped.returncode != 0
    assert "Continue it with --resume" in stopped.stderr
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    assert (checkpoint["state"]["epoch"], checkpoint["state"]["batch"]) == (1, 5)
    resumed = distributed.train(out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert _digest(out / "model.safetensors") == _digest(by_two[0] / "model.safetensors")
    assert [entry["loss"] for entry in read_history(out / "metrics.jsonl")] == [
        entry["loss"] for entry in read_history(by_two[0] / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_a_fault_that_the_main_process_finds_ends_both(distributed: Distributed, tmp_path: Path) -> None:
    failed = distributed.train(tmp_path / "run", "--set=data.folds=99")
    assert failed.returncode != 0
    assert failed.stderr.count("error: 99 folds of 24 images") == 2
