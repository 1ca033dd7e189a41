"""`defectseg train`: what its flags ask the library for, and what it prints of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from defectseg.config import DataConfig, Recipe, load_recipe, shipped_recipes
from defectseg.data.synthetic import write_data_folder
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.info import Thresholds, read_model_info
from defectseg.train.choose import choose_recipe
from defectseg.train.run_folder import Request, read_request
from defectseg.train.train import TrainResult
from defectseg.tune.file import write_thresholds

METRICS = summarise({("a.jpg", 1): PairCounts(4, 4, 2), ("b.jpg", 1): PairCounts(0, 0, 0)}, ("pits",))
Call = Callable[..., Any]
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

    monkeypatch.setattr("defectseg.train.train.train", train)
    return calls


@pytest.fixture
def train(call: Call, data_folder: Path, tiny_recipe: Path) -> Call:
    """`defectseg train` with the tiny recipe, into the folder `run`."""
    return lambda *arguments: call("train", tiny_recipe, "--data", data_folder, "--out", "run", *arguments)


@pytest.fixture
def refuse(refused: Call, data_folder: Path, tiny_recipe: Path) -> Call:
    return lambda *arguments, **expected: refused(
        "train", tiny_recipe, "--data", data_folder, "--out", "run", *arguments, **expected
    )


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], []),
        (["--batch-size", "auto"], ["training.fit_memory=true"]),
        (["--max-minutes", "2.5"], ["training.max_minutes=2.5"]),
        (["--bit-depth", "12"], ["data.bit_depth=12"]),
        (["--fold", "2"], ["data.fold=2"]),
        (["--fold", "none"], ["data.fold=null"]),
        (["--fold", "val"], ["data.fold=val"]),
        (["--encoder-weights", "no: thing.pth"], ['model.encoder_weights="no: thing.pth"']),
        (["--set", "training.epochs=9", "--batch-size", "8"], ["training.epochs=9", "training.batch_size=8"]),
        (["--batch-size", "8", "--set", "training.batch_size=5"], ["training.batch_size=8"]),
    ],
)
def test_flags_change_keys_of_the_recipe(
    train: Call, asked: Calls, tiny_recipe: Path, arguments: list[str], overrides: list[str]
) -> None:
    assert train(*arguments).code == 0
    ((kind, called),) = asked
    assert kind == "train"
    assert called["recipe"] == load_recipe(str(tiny_recipe), overrides)


def test_without_a_recipe_one_is_chosen_from_the_data_and_flags_win(
    call: Call, asked: Calls, data_folder: Path
) -> None:
    done = call("train", "--data", data_folder, "--out", "run", "--device", "cpu", "--batch-size", "3", "--fold", "1")
    assert done.code == 0
    ((_, called),) = asked
    recipe, why = choose_recipe(data_folder, "cpu", ["training.batch_size=3", "data.fold=1"])
    assert (called["recipe"], called["why"]) == (recipe, why)
    assert (recipe.training.batch_size, recipe.data.fold) == (3, 1)
    assert "\n".join(why) in done.err
    assert done.err.startswith("Recipe demo, chosen from the data: 24 images of 64x128 px, ")


def test_a_chosen_recipe_can_be_shown_and_given_as_a_file(
    call: Call, asked: Calls, data_folder: Path, tmp_path: Path
) -> None:
    done = call("train", "--data", data_folder, "--device", "cpu", "--max-minutes", "2", "--print-config")
    recipe, why = choose_recipe(data_folder, "cpu", ["training.max_minutes=2.0"])
    assert done.out.startswith("".join(f"# {sentence}\n" for sentence in why))
    (tmp_path / "mine.yaml").write_text(done.out)
    assert load_recipe(str(tmp_path / "mine.yaml")) == recipe
    assert call("train", "mine.yaml", "--data", data_folder, "--out", "run").code == 0
    assert [(called["recipe"], called["why"]) for _, called in asked] == [(recipe, ())]


def test_a_folder_that_no_recipe_is_chosen_for_is_refused(
    call: Call, refused: Call, asked: Calls, tmp_path: Path
) -> None:
    write_data_folder(tmp_path / "few", images=4, seed=5, size_hw=(64, 128))
    asking = ("train", "--data", tmp_path / "few", "--out", "run", "--device", "cpu")
    refused(*asking, code=4, told=["of 4 images show a defect", "name a recipe, such as severstal-small"])
    refused("train", "--print-config", code=2, told="--print-config needs CONFIG, or --data DIR")
    refused("train", "--data", tmp_path / "none", "--out", "run", code=4, told="no such folder")
    assert asked == []


def test_training_on_val_is_a_wish_of_its_own(train: Call, asked: Calls) -> None:
    assert train("--fold", "none", "--use-val").code == train("--fold", "none").code == 0
    assert [called["use_val"] for _, called in asked] == [True, False]


def test_the_recipe_with_its_flags_can_be_shown(train: Call, asked: Calls) -> None:
    shown = yaml.safe_load(train("--batch-size", "auto", "--max-minutes", "7", "--fold", "none", "--print-config").out)
    assert (shown["training"]["fit_memory"], shown["training"]["max_minutes"]) == (True, 7.0)
    assert shown["data"]["fold"] is None
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-size", "many"], "training.batch_size: Input should be a valid integer"),
        (["--max-minutes", "0"], "training.max_minutes"),
        (["--set", "training.epoch=7", "--set", "seed=-1"], ["did you mean 'epochs'?", "seed"]),
        (["--init", "m.safetensors", "--set", "model.encoder=resnet18"], "--init gives the network"),
        (["--init", "m.safetensors", "--set", "model={in_channels: 3}"], "--init gives the network"),
        (["--init", "m.safetensors", "--encoder-weights", "imagenet"], "--init gives the network"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    refuse: Call, asked: Calls, arguments: list[str], told: str | list[str]
) -> None:
    refuse(*arguments, code=2, told=told)
    assert asked == []


@pytest.mark.parametrize("arguments", [["--out", "run"], ["--data", "d"]])
def test_data_and_run_folder_are_needed(refused: Call, arguments: list[str]) -> None:
    refused("train", "demo", *arguments, code=2, told="train needs --data DIR and --out RUN")


@pytest.mark.parametrize(
    "flag",
    [
        ["--set", "training.epochs=3"],
        ["--batch-size", "auto"],
        ["--fold", "0"],
        ["--fold", "all"],
        ["--init", "model.safetensors"],
        ["--thresholds", "thresholds.json"],
        ["--use-val"],
    ],
)
def test_resuming_takes_nothing_that_would_change_the_run(refuse: Call, asked: Calls, flag: list[str]) -> None:
    refuse("--resume", *flag, code=2, told="leave out what would change it")
    assert asked == []


@pytest.mark.parametrize(("fold", "every_fold"), [(0, False), (None, False), (0, True)])
def test_resuming_needs_the_run_folder_alone(
    call: Call, asked: Calls, tmp_path: Path, fold: int | None, every_fold: bool
) -> None:
    request = Request(recipe=Recipe(data=DataConfig(fold=fold)), data=tmp_path / "data", every_fold=every_fold)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    assert call("train", "--resume", "--out", tmp_path).code == (3 if every_fold else 0)
    ((called, arguments),) = asked
    assert called == ("folds" if every_fold else "train")
    del arguments["progress"]
    assert arguments == {"data": None, "resume": True, "device": "auto"}


def test_every_fold_is_reported(train: Call, asked: Calls, tmp_path: Path) -> None:
    done = train("--fold", "all")
    ((kind, called),) = asked
    assert (kind, called["recipe"].data.fold) == ("folds", "auto"), "the library sets the fold of each"
    assert done.code == 3, "an image was left out"
    models = [line for line in done.out.splitlines() if line.startswith("Model: ")]
    assert models == [f"Model: {Path('run') / f'fold-{fold}' / 'model.safetensors'}" for fold in (0, 1)]
    assert done.out.count("Validation images") == 1, "what had ended before is not validated again"


def test_only_the_main_process_of_torchrun_ends_with_3(
    train: Call, asked: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun stops all processes once one has ended with another code than 0, and the main one has yet to report."""
    monkeypatch.setenv("RANK", "1")
    done = train("--fold", "all")
    assert (done.code, done.out) == (0, "")
    monkeypatch.setenv("RANK", "0")
    assert train("--fold", "all").code == 3


def test_json_has_an_entry_for_each_fold_and_for_one_run_is_that_entry(train: Call, asked: Calls) -> None:
    several, alone = train("--fold", "all", "--json"), train("--json")
    entries = json.loads(several.out)
    assert [entry["model"] for entry in entries] == [f"run/fold-{fold}/model.safetensors" for fold in (0, 1)]
    assert entries[0]["validation"] is None
    assert entries[1]["unreadable"] == [["c.jpg", "torn"]]
    validation = json.loads(json.dumps(METRICS.to_json()))
    assert json.loads(alone.out) == {"model": "run/model.safetensors", "validation": validation, "unreadable": []}


def test_thresholds_come_from_a_file_or_a_model_for_the_same_classes(
    train: Call, refuse: Call, asked: Calls, tmp_path: Path, trained_run: Path
) -> None:
    thresholds = Thresholds(gate=(0.1,) * 4, pixel=(0.2,) * 4, min_area_px=(3,) * 4)
    write_thresholds(tmp_path / "all.json", ("pits", "cracks", "scratches", "patches"), thresholds)
    write_thresholds(tmp_path / "pits.json", ("pits",), Thresholds.default(1))
    refuse("--thresholds", "pits.json", code=2, told="thresholds for the classes pits")
    refuse("--thresholds", "absent.json", code=4, told="absent.json")
    model = trained_run / "model.safetensors"
    assert train("--thresholds", "all.json").code == train("--thresholds", model).code == 0
    assert [called["thresholds"] for _, called in asked] == [thresholds, read_model_info(model).thresholds]


def test_a_model_to_start_from_may_be_named_by_its_run_folder(train: Call, asked: Calls, trained_run: Path) -> None:
    assert train("--init", trained_run, "--set", "training.epochs=1").code == 0
    assert asked[0][1]["init"] == trained_run / "model.safetensors"


def test_the_help_names_each_shipped_recipe(call: Call) -> None:
    told = call("train", "--help").out
    missing = [name for name in shipped_recipes() if f"{name}," not in told and f"{name})" not in told]
    assert not missing


@pytest.mark.slow
def test_a_training_writes_exactly_its_run_folder_and_refuses_it_the_second_time(
    train: Call, refuse: Call, tmp_path: Path
) -> None:
    done = train("--set", "training.epochs=1", "--json", "--device", "cpu")

    assert done.code == 0, done.err
    expected = {"request.json", "model.safetensors", "last.ckpt", "config.yaml", "split.csv", "metrics.jsonl"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == expected | {"curves.png"}
    assert json.loads(done.out)["validation"]["images"] == 6
    assert "epoch 1/1" in done.err
    refuse(code=2, told=["run: not empty", "--resume"])


@pytest.mark.slow
def test_a_training_without_a_recipe_writes_what_it_took_and_why(call: Call, data_folder: Path, tmp_path: Path) -> None:
    tiny = ["model.encoder=tu-test_resnet", "model.options.decoder_channels=[32,16,16,8]", "model.input_scale=1"]
    short = ["training.epochs=1", "training.batch_size=4", "data.samples_per_epoch=16", "training.precision=fp32"]
    changes = [word for change in (*tiny, *short) for word in ("--set", change)]
    done = call("train", "--data", data_folder, "--out", "run", "--device", "cpu", *changes)

    assert done.code == 0, done.err
    told, settings = "Recipe demo, chosen from the data: 24 images of 64x128 px, ", tmp_path / "run" / "config.yaml"
    assert done.err.startswith(told)
    assert settings.read_text().startswith(f"# {told}")
    assert "# Crop 64x128, batch 4, 1 epoch of 16 crops, at most 3.5 minutes.\n" in settings.read_text()
    asked = json.loads((tmp_path / "run" / "request.json").read_text())
    assert asked["why"][0].startswith(told)
    assert asked["recipe"]["data"]["crop_hw"] == [64, 128]
    assert read_model_info(tmp_path / "run" / "model.safetensors").recipe == load_recipe(str(settings))
