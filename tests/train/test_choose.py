"""The recipe that `train` chooses: from fingerprints, without images; and from folders, without training."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectseg.config import Recipe, dump_recipe, load_recipe
from defectseg.data.synthetic import write_data_folder
from defectseg.errors import ConfigError, DataError
from defectseg.train.choose import Fingerprint, SizeHW, choose, choose_recipe, look

SEVERSTAL = Fingerprint(
    sizes={(256, 1600): 12_568},
    clean=5_902,
    classes={"class 1": 897, "class 2": 247, "class 3": 5_150, "class 4": 801},
    units=12_568,
    device="cuda",
)
SAMPLE = Fingerprint(sizes={(256, 1600): 87}, clean=31, classes={"a": 15, "b": 9, "c": 25, "d": 13}, units=87)
NEU = Fingerprint(sizes={(200, 200): 600}, clean=0, classes=dict.fromkeys("abc", 200), units=600)
TILES = Fingerprint(  # as magtile: each image has a size of its own, and most are clean
    sizes={(229 + number // 5, 103 + number): 1 for number in range(674)},
    clean=477,
    classes={"blowhole": 58, "break": 43, "crack": 29, "fray": 16, "uneven": 51},
    units=674,
)


def fingerprint(base: Fingerprint, **changes: Any) -> Fingerprint:
    return dataclasses.replace(base, **changes)


def told(found: Fingerprint, *overrides: str) -> str:
    return " ".join(choose(found, overrides)[1])


def steps(recipe: Recipe, images: int) -> int:
    """Steps of the first stage."""
    return recipe.training.epochs * (recipe.data.samples_per_epoch or images) // recipe.training.batch_size


@pytest.mark.parametrize(
    ("found", "name", "crop", "batch"),
    [
        (SEVERSTAL, "severstal", (256, 512), 24),
        (SAMPLE, "severstal-small", (256, 512), 8),
        (fingerprint(SAMPLE, device="cuda"), "severstal-small", (256, 512), 8),
        (NEU, "neu900", None, 16),
        (fingerprint(NEU, device="cuda"), "neu900", None, 16),
    ],
)
def test_data_of_the_documentation_get_the_documented_recipe(
    found: Fingerprint, name: str, crop: tuple[int, int] | None, batch: int
) -> None:
    recipe, why = choose(found)
    assert (recipe.data.crop_hw, recipe.training.batch_size) == (crop, batch)
    fits = recipe.model_copy(update={"training": recipe.training.model_copy(update={"fit_memory": False})})
    assert fits == load_recipe(name), "nothing else is changed"
    assert recipe.training.fit_memory == (name == "severstal"), "cards with less memory take smaller batches"
    assert why[0].startswith(f"Recipe {name}, chosen from the data: {found.images:,} images of ")


def test_sheets_of_the_demo_are_known_by_what_they_say_and_get_its_recipe(tmp_path: Path) -> None:
    write_data_folder(tmp_path / "demo", images=6, seed=0)
    found = look(tmp_path / "demo", device="cpu")
    assert found.sizes == {(256, 1600): 6}
    assert found.synthetic
    as_many = fingerprint(found, sizes={(256, 1600): 1000}, clean=450, units=1000)
    recipe, why = choose(as_many)
    assert recipe == load_recipe("demo")
    assert (recipe.data.crop_hw, recipe.training.batch_size) == ((256, 256), 4)
    assert why[0] == (
        "Recipe demo, chosen from the data: 1,000 images of 256x1600 px, 45% clean, 4 classes, device cpu."
    )
    assert why[1] == "Crop 256x256, batch 4, 13 epochs of 640 crops, at most 3.5 minutes."


def test_one_photograph_among_synthetic_sheets_is_enough_to_doubt(
    tmp_path: Path, write_data: Callable[..., Path]
) -> None:
    write_data_folder(tmp_path / "demo", images=2, seed=0, size_hw=(64, 64))
    write_data(tmp_path / "demo", {"photo.jpg": np.full((64, 64), 90, np.uint8)}, ["sheet_00001.jpg,1,1 9"])
    assert not look(tmp_path / "demo", device="cpu").synthetic


def test_images_of_many_sizes_get_crops_of_their_usual_size_and_as_many_pixels_and_steps() -> None:
    found = fingerprint(TILES, sizes={(337, 304): 400, (229, 103): 137, (399, 632): 137})
    recipe, plain = choose(found)[0], load_recipe("severstal-small")
    assert recipe.model == plain.model
    assert recipe.data.crop_hw == (352, 320), "the median, in whole steps of 32 px"
    assert recipe.training.batch_size == 9, "8 x 256 x 512 px / (352 x 320 px) = 9.3"
    assert steps(recipe, 674) == steps(plain, 674) == 480
    assert recipe.training.second_stage.epochs == 0, "it would show the same again"
    assert (recipe.data.fold, recipe.data.folds) == ("auto", 5), "674 images are enough to hold some out"
    assert "229x103 to 399x632 px, 71% clean, 5 classes" in told(found)


@pytest.mark.parametrize("images", [12, 19])
def test_a_dozen_images_hold_nothing_out_and_say_so(images: int) -> None:
    found = fingerprint(SAMPLE, sizes={(256, 1600): images}, clean=4, classes={"a": 5, "b": 3}, units=images)
    recipe, _ = choose(found)
    assert (recipe.data.fold, recipe.training.threshold_folds) == (None, 0)
    assert "Too few images or groups to hold some out" in told(found)
    assert "Fewer than 5 images show b (3)" in told(found)
    assert choose(fingerprint(found, sizes={(256, 1600): 20}, units=20))[0].training.threshold_folds == 3


def test_too_few_images_with_a_defect_are_refused() -> None:
    found = fingerprint(SAMPLE, sizes={(256, 1600): 12}, clean=8, units=12)
    with pytest.raises(DataError, match=r"4 of 12 images show a defect.* 5 or more.*name a recipe"):
        choose(found)
    assert choose(fingerprint(found, clean=7))


def test_images_of_twelve_megapixels_are_cropped_and_predicted_in_the_tiles_that_training_ends_with() -> None:
    found = fingerprint(SAMPLE, sizes={(3000, 4000): 200}, clean=80, units=200)
    recipe, _ = choose(found)
    assert recipe.data.crop_hw == (352, 352), "as many px as 256 x 512, in a square"
    assert recipe.training.batch_size == 8
    second = recipe.training.second_stage
    assert second.crop_hw == recipe.inference.tile_hw == (896, 896), "as many px as two images of 256 x 1600"
    assert (second.batch_size, second.samples_per_epoch) == (1, 30)
    assert "tiles of 896x896" in told(found)
    turned = choose(fingerprint(found, sizes={(1600, 256): 200}))[0]
    assert (turned.data.crop_hw, turned.inference.tile_hw) == ((512, 256), (1600, 256))
    assert turned.training.second_stage.crop_hw == (1600, 256)


def test_twenty_thousand_images_take_the_large_recipe_with_fewer_epochs_or_say_what_is_missing() -> None:
    many = fingerprint(SEVERSTAL, sizes={(256, 1600): 20_000}, units=20_000)
    recipe = choose(many)[0]
    assert recipe.training.epochs == 25, "40 x 12,568 / 20,000"
    assert recipe.data.samples_per_epoch is None
    assert recipe.model == load_recipe("severstal").model
    for device in ("cpu", "mps"):
        without = fingerprint(many, device=device)
        recipe = choose(without)[0]
        assert recipe.model == load_recipe("severstal-small").model
        assert recipe.training.epochs * (recipe.data.samples_per_epoch or 0) == 6 * 20_000, "six looks at each"
        assert (recipe.data.fold, recipe.training.max_minutes) == ("auto", 50)
        assert "needs a CUDA device" in told(without)


@pytest.mark.parametrize(
    ("base", "name"), [(NEU, "neu900"), (SAMPLE, "severstal-small"), (fingerprint(SEVERSTAL), "severstal")]
)
def test_without_a_clean_image_there_is_no_gate_and_a_warning(base: Fingerprint, name: str) -> None:
    found = fingerprint(base, clean=0)
    recipe, why = choose(found)
    assert why[0].startswith(f"Recipe {name},")
    assert not recipe.model.classification_head
    assert "0 images are clean, so no gate is trained. Sound steel may raise false alarms" in told(found)


def test_small_images_of_many_sizes_are_not_turned_by_90_degrees() -> None:
    found = fingerprint(NEU, sizes={(128, 150): 40, (160, 170): 560})
    recipe = choose(found)[0]
    assert (recipe.data.crop_hw, recipe.augment.quarter_turns, recipe.inference.tta) == ((160, 192), 0, "flips")
    assert recipe.training.batch_size == 21, "16 x 200 x 200 px / (160 x 192 px) = 20.8"
    assert "Nothing is turned" in told(found)


def test_weights_of_classes_are_kept_only_where_the_same_class_is_the_frequent_one() -> None:
    assert choose(SEVERSTAL)[0].loss.positive_weights == (2.0, 2.0, 1.0, 1.5)
    for classes in ({"a": 900, "b": 10}, {"a": 5_000, "b": 900, "c": 800, "d": 200}):
        assert choose(fingerprint(SEVERSTAL, classes=classes))[0].loss.positive_weights is None


def test_few_groups_make_few_folds() -> None:
    assert choose(fingerprint(SAMPLE, units=2))[0].training.threshold_folds == 2
    assert choose(fingerprint(SEVERSTAL, units=3))[0].data.folds == 3
    alone = choose(fingerprint(SEVERSTAL, units=1))[0]
    assert (alone.data.fold, alone.training.threshold_folds) == (None, 0)


def test_little_time_goes_to_one_model_instead_of_four() -> None:
    assert choose(fingerprint(SAMPLE, minutes=60.0))[0].data.fold is None
    short = fingerprint(SAMPLE, minutes=20.0)
    assert choose(short)[0].data.fold == "auto"
    assert "The time is short: one fold is held out" in told(short)


def test_what_is_asked_for_wins_over_the_choice() -> None:
    overrides = ["training.batch_size=3", "data.fold=2", "training.max_minutes=9"]
    recipe, why = choose(SAMPLE, overrides)
    assert (recipe.training.batch_size, recipe.data.fold, recipe.training.max_minutes) == (3, 2, 9)
    assert why[1] == "Crop 256x512, batch 3, 24 epochs of 160 crops, at most 9 minutes."
    assert why[-3:] == tuple(f"As asked: {override}" for override in overrides)
    with pytest.raises(ConfigError, match=r"severstal-small with training\.epoch=3: unknown key"):
        choose(SAMPLE, ["training.epoch=3"])


@pytest.mark.parametrize("base", [SEVERSTAL, SAMPLE, NEU, TILES, fingerprint(SAMPLE, synthetic=True)])
@pytest.mark.parametrize("size_hw", [(64, 64), (100, 1301), (1301, 100), (480, 640), (1000, 1000), (9000, 40)])
def test_every_choice_is_a_valid_recipe_whose_crops_lie_in_the_images(base: Fingerprint, size_hw: SizeHW) -> None:
    for images in (20, 3_000, 30_000):
        found = fingerprint(base, sizes={size_hw: images}, clean=min(base.clean, images // 2), units=images)
        recipe = choose(found)[0]
        assert Recipe.model_validate(recipe.model_dump()) == recipe
        second = recipe.training.second_stage
        for crop_hw in (recipe.data.crop_hw or size_hw, (second.epochs and second.crop_hw) or size_hw):
            assert all(side <= whole for side, whole in zip(crop_hw, size_hw, strict=True))
        assert 1 <= recipe.training.batch_size <= 32


def test_a_folder_is_looked_at_without_test_images_and_with_those_that_nobody_can_read(
    tmp_path: Path, write_data: Callable[..., Path]
) -> None:
    grey = np.full((40, 50), 90, np.uint8)
    root = write_data(
        tmp_path / "mill",
        {"a.png": grey, "b.png": grey, "c.png": grey.T, "d.png": grey, "e.png": grey},
        ["a.png,1,1 9", "b.png,2,1 9", "b.png,1,30 9", "d.png,2,1 9"],
        classes=["pit", "crack"],
    )
    (root / "split.csv").write_text("ImageId,fold,group\na.png,0,x\nb.png,1,x\nc.png,2,y\nd.png,test,\ne.png,2,\n")
    (root / "train_images" / "e.png").write_bytes(b"torn")
    assert look(root, device="cpu", minutes=7) == Fingerprint(
        sizes={(40, 50): 2, (50, 40): 1}, clean=1, classes={"pit": 2, "crack": 1}, units=2, minutes=7
    )


def test_the_time_is_read_from_what_is_asked_for(data_folder: Path) -> None:
    recipe, why = choose_recipe(data_folder, "cpu", ["training.max_minutes=2", "training.epochs=5"])
    assert (recipe.training.max_minutes, recipe.training.epochs) == (2, 5)
    assert why[0].startswith("Recipe demo, chosen from the data: 24 images of 64x128 px")


@pytest.mark.slow
def test_the_run_folder_says_what_was_chosen_and_why_also_after_resuming(
    data_folder: Path, tmp_path: Path, interrupt: Callable[..., None], go_on: Callable[..., Any], out: Path
) -> None:
    tiny = ["model.encoder=tu-test_resnet", "model.options={decoder_channels: [32, 16, 16, 8, 8]}", "data.folds=4"]
    short = ["training.epochs=2", "data.samples_per_epoch=32", "training.precision=fp32", "training.max_minutes=null"]
    recipe, why = choose_recipe(data_folder, "cpu", [*tiny, "model.input_scale=1", *short])
    interrupt(1, recipe=recipe, why=why)
    written = (out / "config.yaml").read_text(encoding="utf-8")
    assert written == dump_recipe(recipe, why)
    assert written.startswith("# Recipe demo, chosen from the data: 24 images of 64x128 px, ")
    assert load_recipe(str(out / "config.yaml")) == recipe
    assert json.loads((out / "request.json").read_text())["why"] == list(why)
    (out / "config.yaml").unlink()
    (result,) = go_on()
    assert result.metrics is not None
    assert (out / "config.yaml").read_text(encoding="utf-8") == written
