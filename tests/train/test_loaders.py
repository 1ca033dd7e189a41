"""What a run is put together from: images, sizes, settings, and steps that fit into memory."""

import csv
import importlib.metadata
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from numpy.typing import NDArray
from PIL import Image

from defectseg.config import load_recipe
from defectseg.data.folder import image_digest, open_data_folder
from defectseg.data.split import read_split, write_split
from defectseg.errors import ConfigError, DataError, LabelError, MissingExtraError, ResourceError, UsageError
from defectseg.files import is_empty_folder
from defectseg.image.read import decode
from defectseg.model.bundle import read_bundle, weights_digest
from defectseg.model.network import DefectNetwork, build_network
from defectseg.train import loaders
from defectseg.train.dataset import Batch, collate
from defectseg.train.loaders import Images, fit_memory
from defectseg.train.request import TrainRequest
from defectseg.train.train import train

RUN_FILES = {"model.safetensors", "last.ckpt", "config.yaml", "split.csv", "metrics.jsonl", "curves.png"}
STEPS_PER_EPOCH = 4
# Enough for a network this small to find something; with a head, the gate would still stop every image.
LEARNS = ("model.classification_head=false", "data.samples_per_epoch=48", "loss.positive_weights=[3,3,3,3]")


def _with(request: TrainRequest, tiny_recipe: Path, *overrides: str, **changes: Any) -> TrainRequest:
    return replace(request, recipe=load_recipe(str(tiny_recipe), overrides), **changes)


def _on_fold(request: TrainRequest, fold: int | None, **changes: Any) -> TrainRequest:
    data = request.recipe.data.model_copy(update={"fold": fold})
    return replace(request, recipe=request.recipe.model_copy(update={"data": data}), **changes)


# Images


def _copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "train.csv").open(newline="") as handle:
        return list(csv.reader(handle))


def _write_rows(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    with (folder / "train.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def test_the_split_of_the_data_folder_is_used(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    image_ids = open_data_folder(data).image_ids
    folds = {image_id: 7 if index % 5 == 0 else 1 for index, image_id in enumerate(image_ids)}
    write_split(data / "split.csv", {**folds, "gone.jpg": 7})
    train(_on_fold(request_, 7, data=data))
    assert read_split(request_.out / "split.csv") == folds
    info = read_bundle(request_.out / "model.safetensors")[0]
    assert info.fold == 7
    assert len(info.trained_on) == 24 - 5


def test_a_fold_that_there_is_not_is_told(request_: TrainRequest) -> None:
    with pytest.raises(UsageError, match=r"--fold 9: the split has folds \[0, 1, 2, 3\]"):
        train(_on_fold(request_, 9))
    assert is_empty_folder(request_.out)


def test_images_that_the_split_does_not_name_are_refused(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    image_ids = open_data_folder(data).image_ids
    write_split(data / "split.csv", dict.fromkeys(image_ids[2:], 0))
    with pytest.raises(DataError, match=rf"split.csv: gives no fold for 2 images \(first: {image_ids[0]}\)"):
        train(replace(request_, data=data))
    assert is_empty_folder(request_.out)


def test_an_image_that_cannot_be_read_is_left_out_and_listed(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    broken = data / "train_images" / "sheet_00004.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    (broken.parent / "gone.jpg").symlink_to("nowhere.jpg")
    (broken.parent / "a\\b.jpg").touch()
    os.mkfifo(broken.parent / "pipe.jpg")
    result = train(replace(request_, data=data))
    assert [image_id for image_id, _ in result.failed] == ["a%5Cb.jpg", "gone.jpg", "pipe.jpg", "sheet_00004.jpg"]
    assert {path.name for path in request_.out.iterdir()} == RUN_FILES | {"errors.csv"}
    with (request_.out / "errors.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["ImageId"], row["error"]) for row in rows] == list(result.failed)
    assert all(image_id in reason for image_id, reason in result.failed)
    info = read_bundle(result.model)[0]
    assert image_digest(broken) not in info.trained_on
    assert len(info.trained_on) in (17, 18)


def _in_12_bits(data: Path, tmp_path: Path, suffix: str, scale: int) -> Path:
    """The sheets without loss, in 8 or 12 bits; the names stay, since files are known by their content."""
    for path in (folder := _copy(data, tmp_path)).glob("train_images/*"):
        grey = decode(path).pixels.astype(np.float64)
        wide: NDArray[Any] = np.rint(grey / 255 * scale).astype(np.uint8 if scale == 255 else np.uint16)
        content = cv2.imencode(suffix, wide)[1].tobytes()
        if suffix == ".tif":
            buffer = io.BytesIO()
            Image.fromarray(wide).save(buffer, "TIFF", tiffinfo={281: scale})
            content = buffer.getvalue()
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize(("suffix", "bit_depth"), [(".png", 12), (".tif", None)], ids=["said", "tag"])
def test_images_of_12_bits_train_as_those_of_8_and_the_bundle_knows_it(
    request_: TrainRequest, tiny_recipe: Path, tmp_path: Path, suffix: str, bit_depth: int | None
) -> None:
    narrow = replace(request_, data=_in_12_bits(request_.data, tmp_path / "8", ".png", 255), out=tmp_path / "narrow")
    wide = _with(request_, tiny_recipe, f"data.bit_depth={bit_depth or 'null'}")
    wide = replace(wide, data=_in_12_bits(request_.data, tmp_path / "12", suffix, 4095))

    (narrow_info, expected), (info, weights) = (read_bundle(train(one).model) for one in (narrow, wide))

    assert weights_digest(weights) == weights_digest(expected)
    assert (narrow_info.recipe.data.bit_depth, info.recipe.data.bit_depth) == (None, 12)
    assert info.metrics == narrow_info.metrics
    assert read_split(wide.out / "split.csv") == read_split(narrow.out / "split.csv")


def test_images_that_look_like_12_bits_are_told_before_the_training(
    request_: TrainRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(replace(request_, data=_in_12_bits(request_.data, tmp_path, ".png", 4095)))
    assert result.low_bit_depth is not None
    assert (result.low_bit_depth.images, result.low_bit_depth.bit_depth) == (24, 12)
    (told,) = (line for line in caplog.messages if "16-bit" in line)
    assert "24 of 24" in told
    assert "data.bit_depth to 12" in told
    assert read_bundle(result.model)[0].recipe.data.bit_depth is None


def test_a_run_length_beyond_its_image_stops_the_run(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    header, first, *others = _rows(data)
    _write_rows(data, [header, [*first[:2], f"{64 * 128} 5"], *others])
    with pytest.raises(LabelError, match=first[0]):
        train(replace(request_, data=data))
    assert is_empty_folder(request_.out)


def test_labels_of_images_that_are_not_there_are_told(
    request_: TrainRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _copy(request_.data, tmp_path)
    first = _rows(data)[1][0]
    (data / "train_images" / first).unlink()
    train(replace(request_, data=data))
    assert f"1 images of the label table are not in the folder (first: {first})" in caplog.text


def test_a_folder_without_any_mask_is_refused(request_: TrainRequest, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    _write_rows(data, _rows(data)[:1])
    with pytest.raises(DataError, match=r"none of the 18 images to train on has a mask"):
        train(replace(request_, data=data))


def test_whole_images_are_trained_on_where_they_are_of_one_size(request_: TrainRequest, tiny_recipe: Path) -> None:
    train(_with(request_, tiny_recipe, "data.crop_hw=null", "training.epochs=1"))
    assert (request_.out / "model.safetensors").is_file()


def test_whole_images_of_different_sizes_are_refused(request_: TrainRequest, tiny_recipe: Path, tmp_path: Path) -> None:
    data = _copy(request_.data, tmp_path)
    clean = next(
        image_id for image_id in open_data_folder(data).image_ids if not open_data_folder(data).classes_of(image_id)
    )
    cv2.imwrite(str(data / "train_images" / clean), np.zeros((96, 96), np.uint8))
    whole = _with(request_, tiny_recipe, "data.crop_hw=null", "data.fold=null", data=data)
    with pytest.raises(
        ConfigError, match=r"crop_hw is null, but the images differ in size \(for example 64x128 and 96x96"
    ):
        train(whole)
    assert is_empty_folder(request_.out)


def test_quarter_turns_of_whole_images_that_are_not_square_are_refused(
    request_: TrainRequest, tiny_recipe: Path
) -> None:
    with pytest.raises(ConfigError, match=r"quarter_turns needs square crops, but data.crop_hw is null .* 64x128"):
        train(_with(request_, tiny_recipe, "data.crop_hw=null", "augment.quarter_turns=0.5"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"second_stage.crop_hw is null, but the images differ in size .* --set training.second_stage.crop_hw=\["),
        (("augment.quarter_turns=0.5",), r"square crops, but training.second_stage.crop_hw is null .* 64x128"),
    ],
    ids=["sizes", "turns"],
)
def test_whole_images_that_the_second_stage_cannot_take_are_told_before_the_first(
    request_: TrainRequest, tiny_recipe: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    data = _copy(request_.data, tmp_path)
    if not overrides:
        cv2.imwrite(str(data / "train_images" / "wide.png"), np.zeros((64, 160), np.uint8))
    with pytest.raises(ConfigError, match=message):
        train(_with(request_, tiny_recipe, "training.second_stage.epochs=1", "data.fold=null", *overrides, data=data))
    assert is_empty_folder(request_.out)


@pytest.mark.parametrize(
    ("overrides", "crop_hw"),
    [
        (("data.crop_hw=[96,160]",), (64, 128)),
        (("data.crop_hw=[32,160]",), (32, 128)),
        (("data.crop_hw=[160,160]", "augment.quarter_turns=0.5"), (128, 128)),
    ],
    ids=["both", "one", "square"],
)
def test_crops_are_no_larger_than_the_images(
    request_: TrainRequest,
    tiny_recipe: Path,
    overrides: tuple[str, ...],
    crop_hw: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, ...]] = []

    def look(items: Sequence[Any]) -> Batch:
        batch = collate(items)
        seen.append(tuple(batch.images.shape[2:]))
        return batch

    monkeypatch.setattr(loaders, "collate", look)
    train(_with(request_, tiny_recipe, *overrides, "training.epochs=1"))
    assert set(seen) == {crop_hw}
    assert (request_.out / "model.safetensors").is_file()


def test_a_batch_larger_than_the_epoch_is_made_to_fit(request_: TrainRequest, tiny_recipe: Path) -> None:
    steps: list[tuple[int, int]] = []
    overrides = ("training.batch_size=64", "data.samples_per_epoch=5")
    train(_with(request_, tiny_recipe, *overrides, advance=lambda done, total, text: steps.append((done, total))))
    assert steps == [(1, 2), (2, 2)]


# Settings that make no sense


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.positive_weights=[1,2]", r"loss.positive_weights: 2 values for 4 classes"),
        ("training.precision=fp16", r"training.precision: fp16 needs a GPU"),
        ("model.encoder=tu-test_resnett", r"Did you mean 'tu-test_resnet'"),
        ("data.folds=99", r"99 folds of 24 images"),
    ],
)
def test_a_setting_that_does_not_fit_leaves_no_run_folder_behind(
    request_: TrainRequest, tiny_recipe: Path, override: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(_with(request_, tiny_recipe, "training.trackers=[tensorboard]", override))
    assert is_empty_folder(request_.out)


def test_an_architecture_that_cannot_take_the_crops_is_told_before_training(
    request_: TrainRequest, tiny_recipe: Path
) -> None:
    options = '{"dynamic_img_size": false}'
    request = _with(
        request_, tiny_recipe, "model.architecture=DPT", "model.encoder=tu-test_vit", f"model.options={options}"
    )
    with pytest.raises(ConfigError, match=r"cannot take images of 64x64 px"):
        train(request)
    assert is_empty_folder(request_.out)


def test_a_tracker_that_is_not_installed_is_told(
    request_: TrainRequest, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"trackers: mlflow needs .*defectseg\[mlflow\]"):
        train(_with(request_, tiny_recipe, "training.trackers=[mlflow]"))


# Steps that fit into memory


class Full:
    """Makes memory run out in networks on more than so many crops; counts the crops of each try."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.tried: list[int] = []
        forward = DefectNetwork.forward

        def limited(network: DefectNetwork, grey: torch.Tensor) -> Any:
            if network.training:
                self.tried.append(len(grey))
                if len(grey) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(network, grey)

        monkeypatch.setattr(DefectNetwork, "forward", limited)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


IMAGES = Images(train=("a.png",), val=(), folds={"a.png": 0}, failed=(), sizes={"a.png": (64, 128)})


def test_steps_are_halved_until_they_fit_and_their_gradients_added_up(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, most=3)
    recipe = load_recipe(str(tiny_recipe), ["training.batch_size=12", "training.accumulation=2"])
    network = build_network(recipe.model, 4, "none")
    before = weights_digest(network.state_dict())
    chance = torch.get_rng_state()
    resolved = fit_memory(recipe, network, accelerator, IMAGES).training
    assert (resolved.batch_size, resolved.accumulation, resolved.fit_memory) == (3, 8, False)
    assert full.tried == [12, 6, 4, 3], "parts of equal size only"
    assert weights_digest(network.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_both_stages_must_fit(tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(monkeypatch, most=4)
    second = ("training.second_stage.epochs=1", "training.second_stage.batch_size=6")
    recipe = load_recipe(str(tiny_recipe), second)
    resolved = fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, IMAGES).training
    assert full.tried == [4, 6, 2, 3]
    assert (resolved.batch_size, resolved.second_stage.batch_size, resolved.accumulation) == (2, 3, 2)


def test_what_fits_is_left_as_it_is(tiny_recipe: Path, accelerator: Accelerator) -> None:
    recipe = load_recipe(str(tiny_recipe), ["training.fit_memory=true"])
    resolved = fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, IMAGES)
    assert resolved == load_recipe(str(tiny_recipe))


def test_where_not_even_one_crop_fits_that_is_told(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(monkeypatch, most=0)
    recipe = load_recipe(str(tiny_recipe))
    with pytest.raises(ResourceError, match=r"cpu: out of memory on one crop. Lower data.crop_hw, or choose a smaller"):
        fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, IMAGES)


def test_another_failure_of_the_trial_is_not_taken_for_memory(
    tiny_recipe: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(network: DefectNetwork, grey: torch.Tensor) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(DefectNetwork, "forward", fail)
    recipe = load_recipe(str(tiny_recipe))
    with pytest.raises(RuntimeError, match="a bug"):
        fit_memory(recipe, build_network(recipe.model, 4, "none"), accelerator, IMAGES)


def test_a_run_made_to_fit_equals_one_with_those_steps_from_the_start(
    request_: TrainRequest, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(monkeypatch, most=2)
    train(_with(request_, tiny_recipe, "training.fit_memory=true"))
    explicit = ("training.batch_size=2", "training.accumulation=2")
    train(_with(request_, tiny_recipe, *explicit, out=tmp_path / "explicit"))
    for name in ("config.yaml", "split.csv"):
        assert (request_.out / name).read_bytes() == (tmp_path / "explicit" / name).read_bytes()
    assert load_recipe(str(request_.out / "config.yaml")).training.accumulation == 2
    one, other = (torch.load(out / "last.ckpt", weights_only=True) for out in (request_.out, tmp_path / "explicit"))
    assert weights_digest(one["network"]) == weights_digest(other["network"])
    assert one["progress"]["step"] == 2 * 8
