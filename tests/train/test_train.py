"""What `defectseg train` calls: one run, a run for each fold, or runs on folds before one on everything."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from defectseg.config import load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.data.split import read_split, write_split
from defectseg.errors import ConfigError, OutputExistsError, UsageError
from defectseg.model.bundle import read_bundle, weights_digest
from defectseg.model.info import Thresholds
from defectseg.train import train as run_module
from defectseg.train.curves import read_history
from defectseg.train.request import TrainRequest, TrainResult
from defectseg.train.train import train, train_folds
from defectseg.tune.tune import tune_out_of_fold

GIVEN = Thresholds(gate=(0.1,) * 4, pixel=(0.2, 0.3, 0.4, 0.5), min_area_px=(1, 2, 3, 4), chosen_by="hand")
STEPS = 2 * 4  # of one run


def _with(request: TrainRequest, tiny_recipe: Path, *overrides: str, **changes: Any) -> TrainRequest:
    return replace(request, recipe=load_recipe(str(tiny_recipe), overrides), **changes)


def _stop_in_run(number: int, step: int) -> Callable[[int, int, str], None]:
    """Interrupts the n-th run at a step of its own."""
    runs = 0

    def advance(done: int, total: int, text: str) -> None:
        nonlocal runs
        runs += done == 1
        if (runs, done) == (number, step):
            raise KeyboardInterrupt

    return advance


def _digest(model: Path) -> str:
    return weights_digest(read_bundle(model)[1])


# One run


@pytest.mark.parametrize("kind", ["folder", "file", "folder of folds"])
def test_an_output_that_is_not_empty_is_left_alone(request_: TrainRequest, kind: str) -> None:
    kept = request_.out
    if kind != "file":
        kept = request_.out / ("notes.txt" if kind == "folder" else "fold-0/notes.txt")
        kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    for start in (train, train_folds):
        with pytest.raises(OutputExistsError, match=r"run: not empty. Choose another --out, or continue .* --resume"):
            start(request_)
    assert kept.read_text() == "mine"


def test_the_events_of_a_run_that_was_killed_at_once_do_not_stand_in_the_way(
    request_: TrainRequest, tiny_recipe: Path
) -> None:
    events = request_.out / "tensorboard" / "defectseg" / "events.out.tfevents.1"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"")
    train(_with(request_, tiny_recipe, "training.epochs=1", "data.samples_per_epoch=4"))
    assert (request_.out / "model.safetensors").is_file()


def test_thresholds_that_are_given_are_those_of_the_model(request_: TrainRequest) -> None:
    result = train(replace(request_, thresholds=GIVEN))
    assert read_bundle(result.model)[0].thresholds == GIVEN


@pytest.mark.parametrize("step", [1, 6], ids=["first epoch", "second epoch"])
def test_thresholds_that_are_given_outlast_an_interruption(request_: TrainRequest, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(replace(request_, thresholds=GIVEN, advance=_stop_in_run(1, step)))
    result = train(replace(request_, resume=True))
    assert read_bundle(result.model)[0].thresholds == GIVEN


def test_a_checkpoint_is_never_without_the_files_that_resuming_needs(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, *args: Any) -> None:
        assert {"config.yaml", "split.csv", "thresholds.json"} <= {one.name for one in path.parent.iterdir()}
        raise KeyboardInterrupt

    monkeypatch.setattr("defectseg.train.run_folder.save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(replace(request_, thresholds=GIVEN))


# A run for each fold


@pytest.fixture(scope="module")
def folds_run(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, dict[int, TrainResult]]:
    """A run for each of two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.folds=2"])
    out = tmp_path_factory.mktemp("folds") / "runs"
    request = TrainRequest(recipe=recipe, data=data_folder, out=out, device="cpu")
    return request, train_folds(request)


def test_each_fold_is_held_out_once(folds_run: tuple[TrainRequest, dict[int, TrainResult]]) -> None:
    request, results = folds_run
    assert list(results) == [0, 1]
    held_out = []
    for fold, result in results.items():
        assert result.model == request.out / f"fold-{fold}" / "model.safetensors"
        assert result.metrics is not None
        info = read_bundle(result.model)[0]
        assert info.fold == info.recipe.data.fold == fold
        folds = read_split(result.model.with_name("split.csv"))
        held_out += [image_id for image_id, number in folds.items() if number == fold]
    assert sorted(held_out) == sorted(open_data_folder(request.data).image_ids)
    assert _digest(results[0].model) != _digest(results[1].model)


def test_processes_stay_together_from_run_to_run_and_part_in_the_end(
    request_: TrainRequest, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second meeting of the processes of torchrun would hang on what the first has left behind."""
    met: list[int] = []
    meet = PartialState.__init__

    def count(state: PartialState, *args: Any, **kwargs: Any) -> None:
        met.append(len(state._shared_state))
        meet(state, *args, **kwargs)

    monkeypatch.setattr(PartialState, "__init__", count)
    train_folds(_with(request_, tiny_recipe, "data.folds=2", "training.epochs=1", "data.samples_per_epoch=4"))
    assert [known for known in met if known == 0] == [0], "they meet once"
    assert PartialState._shared_state == {}


def test_one_fold_of_all_is_the_run_on_that_fold_alone(
    folds_run: tuple[TrainRequest, dict[int, TrainResult]], request_: TrainRequest, tiny_recipe: Path
) -> None:
    result = train(_with(request_, tiny_recipe, "data.folds=2", "data.fold=1"))
    assert _digest(result.model) == _digest(folds_run[1][1].model)


def test_the_folds_are_those_of_the_data_folder(request_: TrainRequest, tiny_recipe: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(request_.data, tmp_path / "data"))
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", {image_id: (3, 5, 9)[index % 3] for index, image_id in enumerate(image_ids)})
    results = train_folds(_with(request_, tiny_recipe, "training.epochs=1", "data.samples_per_epoch=4", data=data))
    assert list(results) == [3, 5, 9]


@pytest.mark.parametrize(("run", "step"), [(1, 6), (2, 6)], ids=["first fold", "second fold"])
def test_interrupted_folds_go_on_with_the_recipe_that_they_began_with(
    folds_run: tuple[TrainRequest, dict[int, TrainResult]], tiny_recipe: Path, tmp_path: Path, run: int, step: int
) -> None:
    whole, expected = folds_run
    broken = replace(whole, out=tmp_path / "runs", thresholds=GIVEN)
    with pytest.raises(KeyboardInterrupt):
        train_folds(replace(broken, advance=_stop_in_run(run, step)))
    stamps = {path: path.stat().st_mtime_ns for path in broken.out.glob("*/model.safetensors")}
    assert len(stamps) == run - 1
    other = load_recipe(str(tiny_recipe), ["training.epochs=1", "data.folds=3", "seed=99"])
    results = train_folds(replace(broken, recipe=other, thresholds=None, resume=True))
    assert list(results) == [0, 1]
    assert [_digest(result.model) for result in results.values()] == [_digest(one.model) for one in expected.values()]
    assert all(read_bundle(result.model)[0].thresholds == GIVEN for result in results.values())
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "what has ended is left alone"


def test_folds_that_begin_after_an_interruption_start_from_the_same_model(
    request_: TrainRequest,
    tiny_recipe: Path,
    finished: tuple[TrainRequest, TrainResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still = ("data.folds=2", "training.epochs=1", "optimizer.encoder_lr=1e-12", "optimizer.decoder_lr=1e-12")
    monkeypatch.chdir(finished[1].model.parent)
    request = _with(request_, tiny_recipe, *still, init=Path("model.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        train_folds(replace(request, advance=_stop_in_run(1, 2)))
    monkeypatch.chdir(request.data)
    results = train_folds(replace(request, init=None, resume=True))
    key = "net.encoder.model.layer1.0.conv1.weight"
    source = read_bundle(finished[1].model)[1][key]
    for result in results.values():
        assert (read_bundle(result.model)[1][key] - source).abs().max() < 1e-6


def test_where_there_are_no_folds_there_is_nothing_to_resume(request_: TrainRequest) -> None:
    with pytest.raises(UsageError, match=r"no request.json, so there are no runs on folds to resume"):
        train_folds(replace(request_, resume=True))
    assert not request_.out.exists()


@pytest.mark.parametrize("everything", [False, True])
def test_folds_that_could_not_begin_do_not_stand_in_the_way(
    request_: TrainRequest, tiny_recipe: Path, everything: bool
) -> None:
    quick = ["training.epochs=1", "data.samples_per_epoch=4", "data.folds=2"]
    start: Callable[[TrainRequest], Any] = train_folds
    if everything:
        start = train
        quick += ["data.fold=null", "training.threshold_folds=1"]
    with pytest.raises(ConfigError, match="positive_weights"):
        start(_with(request_, tiny_recipe, *quick, "loss.positive_weights=[1]"))
    start(_with(request_, tiny_recipe, *quick))


# Everything, with thresholds from folds


@pytest.fixture(scope="module")
def on_everything(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    """A run on all images whose thresholds come from two folds. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["data.fold=null", "data.folds=3", "training.threshold_folds=2"])
    out = tmp_path_factory.mktemp("everything") / "run"
    request = TrainRequest(recipe=recipe, data=data_folder, out=out, device="cpu")
    return request, train(request)


def test_the_warnings_of_the_choice_on_folds_are_told(
    request_: TrainRequest, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick = ("training.epochs=1", "data.samples_per_epoch=4", "data.fold=null", "training.threshold_folds=1")
    choices: list[tuple[str, ...]] = []

    def tune(*args: Any, **options: Any) -> Any:
        tuning = tune_out_of_fold(*args, **options)
        choices.append(tuning.warnings)
        return tuning

    monkeypatch.setattr(run_module, "tune_out_of_fold", tune)
    train(_with(request_, tiny_recipe, *quick))
    told = [record.getMessage() for record in caplog.records if record.name == run_module.__name__]
    (warnings,) = choices
    assert any("only " in warning for warning in warnings)
    assert [line for line in told if line in warnings] == list(warnings)


def test_a_model_of_everything_has_thresholds_from_images_that_its_folds_held_out(
    on_everything: tuple[TrainRequest, TrainResult],
) -> None:
    request, result = on_everything
    info = read_bundle(result.model)[0]
    assert info.fold is None
    assert len(info.trained_on) == 24
    models = [request.out / "folds" / f"fold-{fold}" / "model.safetensors" for fold in (0, 1)]
    assert sorted((request.out / "folds").glob("*/model.safetensors")) == models
    tuning = tune_out_of_fold(models, request.data, device="cpu")
    assert info.thresholds == tuning.thresholds
    assert "16 out-of-fold images of 2 models" in info.thresholds.chosen_by
    assert result.metrics is not None
    assert result.metrics.to_json() == tuning.metrics.to_json()
    assert result.held_out.startswith("Images that the models of 2 folds held out")


def test_the_weights_of_a_model_of_everything_do_not_depend_on_its_folds(
    on_everything: tuple[TrainRequest, TrainResult], request_: TrainRequest, tiny_recipe: Path
) -> None:
    alone = train(_with(request_, tiny_recipe, "data.fold=null", "data.folds=3"))
    assert _digest(alone.model) == _digest(on_everything[1].model)


@pytest.mark.parametrize(("run", "step"), [(1, 6), (2, 1), (3, 6)], ids=["first fold", "second fold", "on all images"])
def test_a_run_on_everything_goes_on_where_it_was_interrupted(
    on_everything: tuple[TrainRequest, TrainResult], tiny_recipe: Path, tmp_path: Path, run: int, step: int
) -> None:
    whole, expected = on_everything
    broken = replace(whole, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(replace(broken, advance=_stop_in_run(run, step)))
    other = load_recipe(str(tiny_recipe), ["training.epochs=1", "seed=99"])
    result = train(replace(broken, recipe=other, resume=True))
    assert _digest(result.model) == _digest(expected.model)
    assert read_bundle(result.model)[0].thresholds == read_bundle(expected.model)[0].thresholds


def test_an_interruption_between_folds_and_everything_is_mended(
    on_everything: tuple[TrainRequest, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = on_everything
    broken = replace(whole, out=tmp_path / "run")

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "tune_out_of_fold", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    result = train(replace(broken, resume=True))
    assert _digest(result.model) == _digest(expected.model)
    assert read_bundle(result.model)[0].thresholds == read_bundle(expected.model)[0].thresholds


def test_thresholds_that_are_given_need_no_folds(request_: TrainRequest, tiny_recipe: Path) -> None:
    result = train(_with(request_, tiny_recipe, "data.fold=null", "training.threshold_folds=2", thresholds=GIVEN))
    assert read_bundle(result.model)[0].thresholds == GIVEN
    assert not (request_.out / "folds").exists()


def test_more_folds_than_the_split_has_are_refused(request_: TrainRequest, tiny_recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"training.threshold_folds: 5, but the split has only 4 folds"):
        train(_with(request_, tiny_recipe, "data.fold=null", "training.threshold_folds=5"))
    assert not request_.out.exists()


def test_the_time_budget_is_shared_by_the_runs(request_: TrainRequest, tiny_recipe: Path) -> None:
    overrides = ("data.fold=null", "training.threshold_folds=1", "training.max_minutes=60", "training.epochs=1")
    train(_with(request_, tiny_recipe, *overrides))
    for folder in (request_.out, request_.out / "folds" / "fold-0"):
        assert load_recipe(str(folder / "config.yaml")).training.max_minutes == 30.0
        assert len(read_history(folder / "metrics.jsonl")) == 1
    kept = json.loads((request_.out / "folds" / "request.json").read_text())
    assert kept["recipe"]["training"]["max_minutes"] == 60.0
