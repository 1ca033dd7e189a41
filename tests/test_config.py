"""Recipes: defaults, overrides, and mistakes in them, all told at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from defectseg.config import Recipe, dump_recipe, load_recipe
from defectseg.errors import ConfigError


def _write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_an_empty_recipe_has_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, ""))
    assert recipe == Recipe()
    assert recipe.model.architecture == "Unet"
    assert (recipe.model.in_channels, recipe.model.classification_head) == (1, True)
    assert recipe.data.crop_hw == (256, 512)
    assert recipe.loss.empty_weight == 0.2


def test_a_dumped_recipe_loads_as_itself_and_names_every_key(tmp_path: Path) -> None:
    text = "{loss: {positive_weights: [2, 1.5]}, model: {options: {decoder_channels: [8, 4]}}, seed: 9}"
    recipe = load_recipe(_write(tmp_path, text))
    dumped = dump_recipe(recipe)
    assert load_recipe(_write(tmp_path, dumped)) == recipe
    content = yaml.safe_load(dumped)
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
        ("model.classification_head=false", lambda recipe: recipe.model.classification_head is False),
        ("model.encoder_weights=a=b.pth", lambda recipe: recipe.model.encoder_weights == "a=b.pth"),
        ("model.options.decoder_channels=[8,4]", lambda recipe: recipe.model.options == {"decoder_channels": [8, 4]}),
        (" seed =11", lambda recipe: recipe.seed == 11),
    ],
)
def test_an_override_changes_one_key_and_the_last_one_counts(tmp_path: Path, override: str, read: Any) -> None:
    # A section that the file names without keys is filled.
    recipe = load_recipe(_write(tmp_path, "seed: 3\nloss:\n"), ["seed=1", "data.workers=7", override, "loss.bce=4"])
    assert read(recipe)
    assert recipe.loss.bce == 4


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


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path, "{seed: -1, training: {epochs: 0, epoch: 3}, loss: {bce: -2}, optimizr: {clip_norm: 1}}")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
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
    ("text", "message"),
    [
        ("optimizer: {encoder_lr: .nan}", "optimizer.encoder_lr: Input should be a finite number"),
        ("loss: {positive_weights: [1, 0]}", "loss.positive_weights.1: Input should be greater than 0"),
        ("data: {balance_until: 0}", "data.balance_until: Input should be greater than 0"),
        ("model: {in_channels: 2}", "model.in_channels: Input should be 1 or 3"),
        ("model:", "model: Input should be a valid dictionary"),
        ("inference: {tile_hw: [128, 512]}", "tile_overlap_px must be smaller than both sides of tile_hw"),
        ("augment: {quarter_turns: 0.5}", "augment.quarter_turns needs square crops, but data.crop_hw is [256, 512]"),
        (
            "augment: {quarter_turns: 1}\ndata: {crop_hw: null}\ntraining: {second_stage: {epochs: 1, crop_hw: [8,9]}}",
            "but training.second_stage.crop_hw is [8, 9]",
        ),
        ("1: 2", "1: Keys should be strings"),
        ("a: [", "not valid YAML"),
        ("- 1\n- 2", "found a list"),
        ("training", "found a str"),
        ("seed: !!python/object/apply:os.getpid []", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(_write(tmp_path, text))
    assert message in str(caught.value)


def test_quarter_turns_go_with_square_crops_and_whole_images(tmp_path: Path) -> None:
    for crop in ("[64, 64]", "null"):
        recipe = load_recipe(_write(tmp_path, f"{{augment: {{quarter_turns: 0.5}}, data: {{crop_hw: {crop}}}}}"))
        assert recipe.augment.quarter_turns == 0.5


def test_a_missing_recipe_is_an_error_that_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"severstl: no such file, nor a shipped recipe .*Did you mean 'severstal'"):
        load_recipe("severstl")


def test_a_folder_or_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    binary = tmp_path / "recipe.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, binary):
        with pytest.raises(ConfigError, match=r"cannot be read|not UTF-8"):
            load_recipe(str(path))
