"""The recipes that come with the package."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from defectseg import config
from defectseg.cli.main import app
from defectseg.config import Recipe, dump_recipe, load_recipe, shipped_recipes

RECIPES = sorted(shipped_recipes())


def test_every_file_in_the_folder_is_shipped() -> None:
    folder = Path(__file__).parent.parent / "configs"
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is_for_and_survives_dumping(name: str, tmp_path: Path) -> None:
    path, recipe = shipped_recipes()[name], load_recipe(name)
    assert re.match(r"# [A-Z].{20,}", path.read_text(encoding="utf-8"))
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe(str(copy)) == recipe
    assert _keys(yaml.safe_load(copy.read_text(encoding="utf-8"))) == _keys(Recipe().model_dump())


ROOT = Path(__file__).parent.parent
CHECK = runpy.run_path(str(ROOT / "scripts" / "check_recipes.py"))


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that `words` call, and its parameters as the real parser reads them; raises where it would."""
    command: Any = typer.main.get_command(app)
    names = []
    while hasattr(command, "commands"):
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    return " ".join(names), command.make_context(" ".join(names), words).params


@pytest.mark.parametrize("name", RECIPES)
def test_head_of_the_recipe_tells_commands_data_score_and_time(name: str) -> None:
    head = CHECK["read_head"](shipped_recipes()[name].read_text(encoding="utf-8"))
    called = [parse(list(command)) for command in head.commands]
    (trained,) = (asked for command, asked in called if command == "train")
    command, scored = called[-1]
    assert trained["config"] == name
    assert (command, scored["model"].partition("/")[0]) in {
        ("evaluate", str(trained["out"])),
        ("tune", str(trained["out"])),
    }
    assert (head.folder or "sheets") == str(trained["data"])
    assert head.data
    assert re.search(r"\d (minutes|GB)", head.time)
    assert re.search(r"cores \(|not measured", head.time)
    if head.figure is not None:
        assert head.low < head.expected < head.high
        measured = "".join(
            (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("accuracy.md", "benchmarks.md")
        )
        low, high = re.findall(r"interval (\S+) to (\S+)\)", shipped_recipes()[name].read_text(encoding="utf-8"))[0]
        assert f"{low} to {high}" in measured
        assert re.search(rf"\b{re.escape(str(head.expected))}\b", measured)


def test_heads_of_another_layout_are_refused() -> None:
    good = shipped_recipes()["neu900"].read_text(encoding="utf-8")
    for text, told in (
        ("# What it is for.\nseed: 0\n", "has nothing"),
        (re.sub("# Time: .*", "", good), "has Command, Data, Score; expected"),
        (re.sub("# Time: .*", "# Time:", good), "has Command, Data, Score; expected"),
        (good.replace("Command: defectseg", "Command: kitchen"), "expected a command of defectseg"),
        (re.sub(r"\(95 % interval .*\)", "", good), "Score: expected"),
        (re.sub("# Score: .*", "# Score:   good", good), "Score: expected"),
    ):
        with pytest.raises(ValueError, match=told):
            CHECK["read_head"](text)


@pytest.fixture
def check_recipes(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """`check_recipes.py` with a stub in the place of `defectseg` that tells a score: its exit code and lines."""
    images = tmp_path / "data" / "severstal" / "train_images"
    images.mkdir(parents=True)
    for number in range(87):
        (images / f"{number}.jpg").touch()
    (images.parent / "split.csv").touch()
    stub = tmp_path / "bin" / "defectseg"
    stub.parent.mkdir()

    def call(*names: str, kaggle_dice: float = 0.9, code: int = 0) -> tuple[int, list[str]]:
        told = f'{{"validated": {{"kaggle_dice": {kaggle_dice}, "positive_dice": 0.4}}}}'
        stub.write_text(
            f"#!/bin/sh\necho \"$@\" >>'{tmp_path}/calls'\nls severstal >'{tmp_path}/seen'\n"
            f"echo '{told}'\nexit {code}\n"
        )
        stub.chmod(0o755)
        command = [sys.executable, str(ROOT / "scripts" / "check_recipes.py"), *names, "--set", "training.epochs=1"]
        environment = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, "--data-root", str(tmp_path / "data")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()[1:]]

    return call


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_scores_are_compared_with_the_interval_of_the_head(
    check_recipes: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    figure = "severstal-small sum of Kaggle and positive Dice 1.306"
    assert check_recipes("severstal-small") == (0, [f"{figure} 1.300 inside: 1.224 to 1.39 0.0"])
    train, tune = (tmp_path / "calls").read_text().splitlines()
    assert train == "train severstal-small --data severstal --out run --set training.epochs=1"
    assert tune == "tune run/folds --data severstal --dry-run --json"
    assert (tmp_path / "seen").read_text().split() == ["train_images"], "without split.csv"
    assert check_recipes("severstal-small", kaggle_dice=0.7) == (1, [f"{figure} 1.100 OUTSIDE: 1.224 to 1.39 0.0"])


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_recipes_that_fail_are_told_apart_from_those_that_cannot_be_run_here(
    check_recipes: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    code, (failed,) = check_recipes("severstal-small", code=4)
    assert code == 1
    assert "failed: defectseg train severstal-small" in failed
    assert "(exit code 4)" in failed
    code, (neu900, severstal) = check_recipes("neu900", "severstal")
    assert code == 0
    assert neu900.endswith(f"not run: {tmp_path}/data/neu900 has 0 of 600 images")
    assert severstal.endswith(f"not run: {tmp_path}/data/severstal has 87 of 12568 images")


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
