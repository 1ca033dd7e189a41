"""The recipes that come with the package."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from defectseg import config
from defectseg.config import Recipe, dump_recipe, load_recipe, shipped_recipes

RECIPES = sorted(shipped_recipes())


def test_every_file_in_the_folder_is_shipped() -> None:
    folder = Path(__file__).parent.parent / "configs"
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is_for_and_survives_dumping(name: str, tmp_path: Path) -> None:
    path, recipe = shipped_recipes()[name], load_recipe(name)
    assert path.read_text(encoding="utf-8").startswith("# ")
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe(str(copy)) == recipe
    assert _keys(yaml.safe_load(copy.read_text(encoding="utf-8"))) == _keys(Recipe().model_dump())


@pytest.mark.parametrize("name", RECIPES)
def test_network_of_the_recipe_can_be_built(name: str) -> None:
    torch = pytest.importorskip("torch")
    from defectseg.model.network import build_network

    model = load_recipe(name).model
    network = build_network(model, num_classes=3, weights="none").eval()
    with torch.inference_mode():
        mask_logits, gate_logits = network(torch.zeros(1, 1, 64, 64))
    assert mask_logits.shape == (1, 3, 64, 64)
    assert (gate_logits is not None) == model.classification_head
    assert gate_logits is None or gate_logits.shape == (1, 3)


# Keys that no shipped recipe sets, since they go with a machine or a camera and not with a recipe.
OF_THE_MACHINE = {
    *("data.bit_depth", "data.workers", "data.cache", "training.accumulation", "training.fit_memory"),
    *("inference.tile_hw", "inference.tile_overlap_px"),
}


def _keys(content: dict[str, Any], prefix: str = "") -> set[str]:
    nested = {key for key, value in content.items() if isinstance(value, dict) and key != "options"}
    own = {prefix + key for key in content.keys() - nested}
    return own.union(*(_keys(content[key], f"{prefix}{key}.") for key in nested))


def test_every_key_is_set_by_a_shipped_recipe() -> None:
    written = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in shipped_recipes().values()]
    assert _keys(Recipe().model_dump()) - set().union(*map(_keys, written)) == OF_THE_MACHINE


def test_the_demo_downloads_nothing_and_keeps_to_its_time() -> None:
    recipe = load_recipe("demo")
    assert recipe.model.encoder_weights == "none"
    assert recipe.training.max_minutes == 3.5


@pytest.mark.parametrize("installed", [True, False])
def test_recipes_are_found_beside_the_modules_of_an_installed_package_or_in_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    package = tmp_path / "defectseg"
    for folder in (package / "configs", tmp_path / "configs")[not installed :]:  # the latter another package's
        folder.mkdir(parents=True)
    own = (package if installed else tmp_path) / "configs" / "mill.yaml"
    own.write_text("seed: 7\n", encoding="utf-8")
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    assert shipped_recipes() == {"mill": own}
    assert load_recipe("mill").seed == 7
