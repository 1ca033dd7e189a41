"""`defectseg train`: what its flags ask the library for, and what it prints of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from defectseg.cli.main import app
from defectseg.config import DataConfig, Recipe, load_recipe, shipped_recipes
from defectseg.errors import ConfigError, DataError, DefectsegError, ExitCode, ModelError, UsageError
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.info import Thresholds
from defectseg.train import train as run_module
from defectseg.train.run_folder import Request, read_request
from defectseg.train.train import TrainResult
from defectseg.tune.file import write_thresholds

METRICS = summarise({("a.jpg", 1): PairCounts(4, 4, 2), ("b.jpg", 1): PairCounts(0, 0, 0)}, ("pits",))
Invoke = Callable[..., Result]
Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the library is asked for: a run, or a run for each fold. Nothing is trained."""
    calls: Calls = []

    def train(data: Path | None, out: Path, **arguments: Any) -> list[TrainResult]:
        every_fold = read_request(out).every_fold if arguments["resume"] else arguments["every_fold"]
        calls.append(("folds" if every_fold else "train", {"data": data, **arguments}))
        if not every_fold:
            return [TrainResult(out / "model.safetensors", METRICS, ())]
        ended = TrainResult(out / "fold-0" / "model.safetensors", None, ())
        return [ended, TrainResult(out / "fold-1" / "model.safetensors", METRICS, (("c.jpg", "torn"),))]

    monkeypatch.setattr(run_module, "train", train)
    return calls


@pytest.fixture
def invoke(data_folder: Path, tmp_path: Path, tiny_recipe: Path) -> Invoke:
    def call(*arguments: str | Path) -> Result:
        paths = ("--data", data_folder, "--out", tmp_path / "run")
        return CliRunner().invoke(app, [str(argument) for argument in ("train", tiny_recipe, *paths, *arguments)])

    return call


def _recipe(invoke: Invoke, asked: Calls, *arguments: str | Path) -> Recipe:
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    ((kind, called),) = asked
    assert kind == "train"
    recipe: Recipe = called["recipe"]
    return recipe


def _refused(invoke: Invoke, *arguments: str | Path) -> DefectsegError:
    done = invoke(*arguments)
    assert isinstance(done.exception, DefectsegError), done.output
    return done.exception


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], []),
        (["--batch-size", "auto"], ["training.fit_memory=true"]),
        (["--batch-size", "3"], ["training.batch_size=3"]),
        (["--max-minutes", "2.5"], ["training.max_minutes=2.5"]),
        (["--bit-depth", "12"], ["data.bit_depth=12"]),
        (["--cache"], ["data.cache=true"]),
        (["--no-cache"], ["data.cache=false"]),
        (["--fold", "2"], ["data.fold=2"]),
        (["--fold", "none"], ["data.fold=null"]),
        (["--encoder-weights", "no: thing.pth"], ['model.encoder_weights="no: thing.pth"']),
        (["--set", "training.epochs=9", "--batch-size", "8"], ["training.epochs=9", "training.batch_size=8"]),
        (["--batch-size", "8", "--set", "training.batch_size=5"], ["training.batch_size=8"]),
    ],
)
def test_flags_change_keys_of_the_recipe(
    invoke: Invoke,
    asked: Calls,
    tiny_recipe: Path,
    arguments: list[str],
    overrides: list[str],
) -> None:
    assert _recipe(invoke, asked, *arguments) == load_recipe(str(tiny_recipe), overrides)


def test_the_recipe_with_its_flags_can_be_shown(invoke: Invoke, asked: Calls) -> None:
    done = invoke("--batch-size", "auto", "--max-minutes", "7", "--no-cache", "--fold", "none", "--print-config")
    shown = yaml.safe_load(done.stdout)
    assert (shown["training"]["fit_memory"], shown["training"]["max_minutes"]) == (True, 7.0)
    assert (shown["data"]["cache"], shown["data"]["fold"]) == (False, None)
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-size", "many"], "--batch-size many: expected a number from 1, or auto"),
        (["--batch-size", "-1"], "--batch-size -1: expected a number from 1, or auto"),
        (["--batch-size", "0"], "training.batch_size"),
        (["--fold", "first"], "--fold first: expected a number from 0, none or all"),
        (["--max-minutes", "0"], "training.max_minutes"),
    ],
)
def test_values_that_make_no_sense_are_refused(invoke: Invoke, arguments: list[str], told: str) -> None:
    error = _refused(invoke, *arguments)
    assert isinstance(error, UsageError)
    assert told in str(error)


@pytest.mark.parametrize(
    "flag",
    [
        ["--set", "training.epochs=3"],
        ["--batch-size", "auto"],
        ["--max-minutes", "3"],
        ["--no-cache"],
        ["--encoder-weights", "none"],
        ["--init", "model.safetensors"],
        ["--thresholds", "thresholds.json"],
    ],
)
def test_resuming_takes_nothing_that_would_change_the_run(invoke: Invoke, asked: Calls, flag: list[str]) -> None:
    assert "leave out what would change it" in str(_refused(invoke, "--resume", *flag))
    assert asked == []


@pytest.mark.parametrize(
    ("begun", "kind", "fold"), [("0", "train", "0"), ("none", "train", "none"), ("all", "folds", "all")]
)
@pytest.mark.parametrize("given", [None, "same", "2"])
def test_resuming_needs_the_run_folder_alone(
    asked: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture, begun: str, kind: str, fold: str, given: str | None
) -> None:
    recipe = Recipe(data=DataConfig(fold=int(begun) if begun.isdigit() else None))
    request = Request(recipe=recipe, data=tmp_path / "data", every_fold=begun == "all")
    (tmp_path / "request.json").write_text(request.model_dump_json())
    flags = [] if given is None else ["--fold", fold if given == "same" else given]
    done = CliRunner().invoke(app, ["train", "--resume", "--out", str(tmp_path), *flags])
    assert done.exit_code == (3 if kind == "folds" else 0), done.output
    ((called, arguments),) = asked
    assert called == kind
    assert {"data": None, "resume": True}.items() <= arguments.items()
    assert not {"recipe", "init", "thresholds", "every_fold"} & arguments.keys()
    assert ("passed over" in done.output + caplog.text) == (given == "2")


def test_all_folds_are_told_one_by_one(invoke: Invoke, asked: Calls, tmp_path: Path) -> None:
    done = invoke("--fold", "all")
    assert [kind for kind, _ in asked] == ["folds"]
    assert asked[0][1]["recipe"].data.fold == 0, "the library sets the fold of each"
    assert done.exit_code == 3, "an image was left out"
    models = [line for line in done.stdout.splitlines() if line.startswith("Model: ")]
    assert models == [f"Model: {tmp_path / 'run' / f'fold-{fold}' / 'model.safetensors'}" for fold in (0, 1)]
    assert done.stdout.count("Validation images") == 1, "what had ended before is not validated again"


def test_json_has_an_entry_for_each_fold_and_for_one_run_is_that_entry(
    invoke: Invoke, asked: Calls, tmp_path: Path
) -> None:
    several: list[dict[str, Any]] = json.loads(invoke("--fold", "all", "--json").stdout)
    alone: dict[str, Any] = json.loads(invoke("--json").stdout)
    out = tmp_path / "run"
    assert [entry["model"] for entry in several] == [str(out / f"fold-{fold}/model.safetensors") for fold in (0, 1)]
    assert several[0]["validation"] is None
    assert several[1]["unreadable"] == [["c.jpg", "torn"]]
    assert alone == {"model": str(out / "model.safetensors"), "validation": METRICS.to_json(), "unreadable": []}
    assert alone["validation"]["kaggle_dice"] == 0.75


@pytest.mark.parametrize("kind", ["file", "model"])
def test_thresholds_come_from_a_file_or_a_model(
    invoke: Invoke, asked: Calls, tmp_path: Path, trained_run: Path, kind: str
) -> None:
    names = ("pits", "cracks", "scratches", "patches")
    thresholds = Thresholds(gate=(0.1,) * 4, pixel=(0.2,) * 4, min_area_px=(3,) * 4)
    path = tmp_path / "thresholds.json"
    if kind == "file":
        write_thresholds(path, names, thresholds)
    else:
        from defectseg.model.info import read_model_info

        path = trained_run / "model.safetensors"
        thresholds = read_model_info(path).thresholds
    assert invoke("--thresholds", path).exit_code == 0
    assert asked[0][1]["thresholds"] == thresholds


def test_thresholds_for_other_classes_are_refused(invoke: Invoke, asked: Calls, tmp_path: Path) -> None:
    write_thresholds(tmp_path / "thresholds.json", ("pits",), Thresholds.default(1))
    error = _refused(invoke, "--thresholds", tmp_path / "thresholds.json")
    assert isinstance(error, ConfigError)
    assert "thresholds for the classes pits" in str(error)
    assert asked == []


@pytest.mark.parametrize(("name", "kind"), [("absent.json", DataError), ("absent.safetensors", ModelError)])
def test_thresholds_that_are_not_there_are_told_as_everything_missing(
    invoke: Invoke, asked: Calls, tmp_path: Path, name: str, kind: type[DefectsegError]
) -> None:
    error = _refused(invoke, "--thresholds", tmp_path / name)
    assert isinstance(error, kind)
    assert error.exit_code == ExitCode.CANNOT_CONTINUE
    assert str(tmp_path / name) in str(error)
    assert asked == []


def test_a_model_to_start_from_may_be_named_by_its_run_folder(invoke: Invoke, asked: Calls, trained_run: Path) -> None:
    assert invoke("--init", trained_run).exit_code == 0
    assert asked[0][1]["init"] == trained_run / "model.safetensors"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--set", "model.encoder=resnet18"], ["model.encoder", "'tu-test_resnet'", "'resnet18'"]),
        (["--set", "model={in_channels: 3}"], ["model.in_channels", "1", "3"]),
        (["--encoder-weights", "imagenet"], ["model.encoder_weights", "'none'", "'imagenet'"]),
        (["--set", "model.options.decoder_channels=[8,8,8,8,8]"], ["model.options", "32", "[8, 8, 8, 8, 8]"]),
        (["--set", "model.encoder=tu-test_resnet", "--set", "training.epochs=1"], []),
    ],
)
def test_a_network_that_the_model_to_start_from_does_not_have_is_refused(
    invoke: Invoke, asked: Calls, trained_run: Path, flags: list[str], told: list[str]
) -> None:
    if told:
        error = _refused(invoke, "--init", trained_run, *flags)
        assert isinstance(error, UsageError)
        assert all(part in str(error) for part in ["--init", *told])
    else:
        assert invoke("--init", trained_run, *flags).exit_code == 0
    assert bool(asked) != bool(told)


def test_the_help_names_each_shipped_recipe() -> None:
    told = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    missing = [name for name in shipped_recipes() if f"{name}," not in told and f"{name})" not in told]
    assert not missing
