"""How large crops are, how many make a step, and steps that fit into memory."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from defectseg.config import load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.errors import ConfigError, ResourceError
from defectseg.files import is_empty_folder
from defectseg.model.network import DefectNetwork, build_network
from defectseg.train.images import Part
from defectseg.train.loaders import crop_size, fit_memory
from defectseg.train.schedule import stages_of
from defectseg.train.train import TrainResult

Start = Callable[..., TrainResult]


@pytest.mark.parametrize(
    ("settings", "sizes", "crop_hw"),
    [
        (("data.crop_hw=[96,160]",), [(64, 128)], (64, 128)),
        (("data.crop_hw=[32,160]",), [(64, 128)], (32, 128)),
        (("data.crop_hw=[96,160]",), [(64, 128), (128, 64)], (96, 128)),
        (("data.crop_hw=null",), [(64, 128)], (64, 128)),
        (("data.crop_hw=[160,160]", "augment.quarter_turns=0.5"), [(64, 128)], (64, 64)),
        (("data.crop_hw=[160,160]", "augment.quarter_turns=0.5"), [(64, 128), (128, 70)], (70, 70)),
        (("data.crop_hw=[32,32]", "augment.quarter_turns=0.5"), [(64, 128)], (32, 32)),
    ],
)
def test_crops_are_no_larger_than_the_images(
    tiny_recipe: Path, settings: tuple[str, ...], sizes: list[tuple[int, int]], crop_hw: tuple[int, int]
) -> None:
    recipe = load_recipe(str(tiny_recipe), settings)
    assert crop_size(stages_of(recipe)[0], set(sizes), recipe) == crop_hw


@pytest.mark.parametrize("settings", [("data.crop_hw=null",), ("data.crop_hw=[96,96]", "augment.quarter_turns=1")])
def test_crops_as_large_as_the_images_can_be_trained_on(start: Start, settings: tuple[str, ...]) -> None:
    assert start(*settings, "training.epochs=1", "data.samples_per_epoch=4").model.is_file()


WHOLE = ("data.fold=null", "data.crop_hw=null")
LATER = ("data.fold=null", "training.second_stage.epochs=1")


@pytest.mark.parametrize(
    ("settings", "one_differs", "message"),
    [
        (WHOLE, True, r"data.crop_hw is null, but the images differ in size \(for example 64x128 and 96x96"),
        (LATER, True, r"second_stage.crop_hw is null, but the images differ .* training.second_stage.crop_hw=\["),
        (
            (*WHOLE, "augment.quarter_turns=0.5"),
            False,
            r"data.crop_hw is null, but .*square crops .* 64x128",
        ),
        ((*LATER, "augment.quarter_turns=0.5"), False, r"training.second_stage.crop_hw is null, but .*square"),
    ],
    ids=["sizes", "sizes of the second stage", "turns", "turns of the second stage"],
)
def test_whole_images_that_make_no_batch_are_an_error_before_training(
    start: Start, out: Path, data: Path, settings: tuple[str, ...], one_differs: bool, message: str
) -> None:
    if one_differs:
        folder = open_data_folder(data)
        clean = next(image_id for image_id in folder.image_ids if not folder.classes_of(image_id))
        cv2.imwrite(str(data / "train_images" / clean), np.zeros((96, 96), np.uint8))
    with pytest.raises(ConfigError, match=message):
        start(*settings, data=data)
    assert is_empty_folder(out)


def test_a_batch_is_no_larger_than_the_epoch(start: Start) -> None:
    steps: list[tuple[int, int]] = []
    settings = ("training.batch_size=64", "data.samples_per_epoch=5")
    start(*settings, progress=lambda done, total, text: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]


# Steps that fit into memory


class Full:
    """Makes memory run out in networks on more than so many crops; counts the crops of each try."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.tried: list[int] = []
        forward = DefectNetwork.forward

        def limited(network: DefectNetwork, grey: torch.Tensor, **options: Any) -> Any:
            if network.training:
                self.tried.append(len(grey))
                if len(grey) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(network, grey, **options)

        monkeypatch.setattr(DefectNetwork, "forward", limited)


PART = Part(train=("a.png",), val=(), train_sizes=frozenset({(64, 128)}))


def test_the_batch_size_is_divided_until_it_fits_and_accumulation_multiplied(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, most=3)
    recipe = load_recipe(str(tiny_recipe), ["training.batch_size=12", "training.accumulation=2"])
    network = build_network(recipe.model, 4, "none")
    before = deepcopy(network.state_dict())
    chance = torch.get_rng_state()
    resolved = fit_memory(recipe, network, accelerator, PART).training
    assert (resolved.batch_size, resolved.accumulation, resolved.fit_memory) == (3, 8, False)
    assert full.tried == [12, 6, 4, 3], "parts of equal size only"
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_both_stages_must_fit_in_memory(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, most=4)
    second = ("training.second_stage.epochs=1", "training.second_stage.batch_size=6")
    recipe = load_recipe(str(tiny_recipe), second)
    resolved = fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, PART).training
    assert full.tried == [4, 6, 2, 3]
    assert (resolved.batch_size, resolved.second_stage.batch_size, resolved.accumulation) == (2, 3, 2)


def test_what_fits_is_left_as_it_is(tiny_recipe: Path, accelerator: Accelerator) -> None:
    recipe = load_recipe(str(tiny_recipe), ["training.fit_memory=true"])
    resolved = fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, PART)
    assert resolved == load_recipe(str(tiny_recipe))


def test_a_failed_trial_is_an_error(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(tiny_recipe))
    network = build_network(recipe.model, 4, "none")
    Full(monkeypatch, most=0)
    with pytest.raises(ResourceError, match=r"cpu: out of memory on one crop. Lower data.crop_hw or model.encoder"):
        fit_memory(recipe, network, accelerator, PART)
    monkeypatch.delattr(DefectNetwork, "forward")
    with pytest.raises(NotImplementedError):
        fit_memory(recipe, network, accelerator, PART)


def test_a_run_made_to_fit_equals_one_with_that_batch_size_also_when_resumed(
    start: Start,
    interrupt: Callable[..., None],
    out: Path,
    go_on: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Full(monkeypatch, most=2)
    interrupt(9, "training.fit_memory=true")
    full.tried.clear()
    go_on()
    assert max(full.tried) == 2, "it is not tried again"
    start("training.batch_size=2", "training.accumulation=2", out=tmp_path / "explicit")
    for name in ("config.yaml", "split.csv"):
        assert (out / name).read_bytes() == (tmp_path / "explicit" / name).read_bytes()
    assert load_recipe(str(out / "config.yaml")).training.accumulation == 2
    one, other = (torch.load(run / "last.ckpt", weights_only=True) for run in (out, tmp_path / "explicit"))
    torch.testing.assert_close(one["network"], other["network"], rtol=0, atol=0)
    assert one["state"]["step"] == 2 * 8
