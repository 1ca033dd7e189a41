"""Recipes: defaults, overrides, and mistakes in them, all told at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from defectseg.config import Recipe, dump_recipe, load_recipe, parse_recipe, shipped_recipes
from defectseg.errors import ConfigError
from defectseg.model.info import FORMAT_VERSION, ModelInfo, Normalization, Thresholds


def _write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _problems(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(content, source="here")
    message = str(caught.value)
    assert message.startswith("here: ")
    return message.removeprefix("here: ")


def test_an_empty_recipe_has_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, ""))
    assert recipe == Recipe()
    assert recipe.model.architecture == "Unet"
    assert recipe.model.in_channels == 1
    assert recipe.data.crop_hw == (256, 512)
    assert recipe.loss.empty_weight == 0.2


def test_keys_of_a_file_replace_the_defaults_and_leave_the_others(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, "training: {epochs: 7}\ndata: {crop_hw: null}\n"))
    assert (recipe.training.epochs, recipe.data.crop_hw) == (7, None)
    assert recipe.training.batch_size == Recipe().training.batch_size


def test_a_dumped_recipe_loads_as_itself(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"loss": {"positive_weights": [2, 1.5]}, "model": {"options": {"decoder_channels": [8, 4]}}, "seed": 9},
        source="here",
    )
    assert load_recipe(_write(tmp_path, dump_recipe(recipe))) == recipe


def test_a_dumped_recipe_names_every_key() -> None:
    content = yaml.safe_load(dump_recipe(Recipe()))
    assert set(content) == set(Recipe.model_fields)
    assert set(content["training"]) == set(type(Recipe().training).model_fields)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=5", lambda recipe: recipe.training.epochs == 5),
        ("optimizer.encoder_lr=1e-3", lambda recipe: recipe.optimizer.encoder_lr == 0.001),
        ("data.crop_hw=[64,128]", lambda recipe: recipe.data.crop_hw == (64, 128)),
        ("data.crop_hw=null", lambda recipe: recipe.data.crop_hw is None),
        ("data.crop_hw=", lambda recipe: recipe.data.crop_hw is None),
        ("data.workers=2", lambda recipe: recipe.data.workers == 2),
        ("model.classification_head=false", lambda recipe: recipe.model.classification_head is False),
        ("model.encoder_weights=a=b.pth", lambda recipe: recipe.model.encoder_weights == "a=b.pth"),
        ("model.options.decoder_channels=[8,4]", lambda recipe: recipe.model.options == {"decoder_channels": [8, 4]}),
        (" seed =11", lambda recipe: recipe.seed == 11),
    ],
)
def test_an_override_changes_one_key(tmp_path: Path, override: str, read: Any) -> None:
    assert read(load_recipe(_write(tmp_path, "seed: 3\n"), [override, "training.batch_size=4"]))


def test_an_override_fills_a_section_that_the_file_names_without_keys(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, "model:\n"), ["model.encoder=resnet18"]).model.encoder == "resnet18"


def test_the_last_override_of_a_key_counts(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, ""), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed=[1", "not valid YAML"),
        ("seed.more=1", "'seed' holds a value, not keys"),
        ("trainig.epochs=1", "unknown key 'trainig', did you mean 'training'"),
        ("training.epoch=1", "unknown key 'training.epoch', did you mean 'epochs'"),
        ("wholly.unlike=1", "unknown key 'wholly'$"),
    ],
)
def test_an_override_with_a_mistake_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(_write(tmp_path, "seed: 3"), [override])
    assert override in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    message = _problems(
        {"seed": -1, "training": {"epochs": 0, "epoch": 3}, "loss": {"bce": -2}, "optimizr": {"clip_norm": 1}}
    )
    for part in (
        "seed: Input should be greater than or equal to 0, found -1",
        "training.epochs: Input should be greater than or equal to 1, found 0",
        "unknown key 'training.epoch', did you mean 'epochs'?",
        "loss.bce: Input should be greater than or equal to 0, found -2",
        "unknown key 'optimizr', did you mean 'optimizer'?",
    ):
        assert part in message
    assert message.count(";") == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"encoder_lr": float("nan")}}, "optimizer.encoder_lr: Input should be a finite number"),
        ({"loss": {"positive_weights": [1, 0]}}, "loss.positive_weights.1: Input should be greater than 0"),
        ({"data": {"crop_hw": [256]}}, "data.crop_hw.1: Field required"),
        ({"model": {"in_channels": 2}}, "model.in_channels: Input should be 1 or 3"),
        ({"model": None}, "model: Input should be a valid dictionary"),
        ({"training": {"trackers": ["wandb"]}}, "training.trackers.0: Input should be 'tensorboard'"),
        ({"inference": {"tile_hw": [128, 512]}}, "tile_overlap_px must be smaller than both sides of tile_hw"),
        (
            {"augment": {"quarter_turns": 0.5}},
            r"augment.quarter_turns needs square crops, but data.crop_hw is [256, 512]",
        ),
        ({1: 2}, "1: Keys should be strings"),
    ],
)
def test_a_value_that_is_not_valid_is_named(content: dict[str, Any], message: str) -> None:
    assert message in _problems(content)


def test_quarter_turns_go_with_square_crops() -> None:
    recipe = parse_recipe({"augment": {"quarter_turns": 0.5}, "data": {"crop_hw": [64, 64]}}, source="here")
    assert recipe.augment.quarter_turns == 0.5


def test_a_recipe_that_is_not_there_is_told_with_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"severstl: no such file, nor a shipped recipe .*Did you mean 'severstal'"):
        load_recipe("severstl")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(tmp_path))


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1\n- 2", "found a list"), ("training", "found a str")],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(_write(tmp_path, text))


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(_write(tmp_path, "seed: !!python/object/apply:os.getpid []"))


def test_shipped_recipes_are_named_after_their_files() -> None:
    recipes = shipped_recipes()
    assert list(recipes) == sorted(recipes)
    assert {"demo", "severstal"} <= set(recipes)
    assert all(path.stem == name and path.is_file() for name, path in recipes.items())


def test_default_thresholds_are_one_half_and_no_minimum_area() -> None:
    thresholds = Thresholds.default(2)
    assert (thresholds.gate, thresholds.pixel, thresholds.min_area_px) == ((0.5, 0.5), (0.5, 0.5), (0, 0))


def test_thresholds_need_one_value_for_each_class() -> None:
    with pytest.raises(ValidationError, match="one value for each class"):
        Thresholds(gate=(0.5,), pixel=(0.5, 0.5), min_area_px=(0, 0))


def _info(**changes: Any) -> ModelInfo:
    content = {
        "class_names": ("pits", "cracks"),
        "normalization": Normalization(mean=0.4, std=0.2),
        "thresholds": Thresholds.default(2),
        "recipe": Recipe(),
    }
    return ModelInfo(**{**content, **changes})


def test_a_description_survives_json() -> None:
    info = _info(fold=2, trained_on=("0123456789ab",), metrics={"kaggle_dice": 0.9})
    assert ModelInfo.model_validate_json(info.model_dump_json()) == info
    assert (info.format_version, info.num_classes) == (FORMAT_VERSION, 2)


def test_a_description_needs_thresholds_for_its_classes() -> None:
    with pytest.raises(ValidationError, match="thresholds for 3 classes, but 2 class names"):
        _info(thresholds=Thresholds.default(3))
