"""How good a network is while it learns."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from numpy.typing import NDArray

from defectseg.config import load_recipe
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.split import read_split
from defectseg.evaluate.metrics import PairCounts, headline, summarise
from defectseg.evaluate.score import Score, Scored, score_images
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.bundle import load_bundle
from defectseg.model.devices import half_precision
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import Answer
from defectseg.runtime.torch import TorchRuntime
from defectseg.train import validation as validation_module
from defectseg.train.request import TrainRequest
from defectseg.train.train import train
from defectseg.train.validation import Pictures, Validation, images_to_show, log_pictures, validate

Trained = tuple[DefectNetwork, ModelInfo, DataFolder, tuple[str, ...]]

# What the best epoch is chosen by


def test_the_score_is_kaggle_dice_plus_that_of_the_defects_with_open_gates() -> None:
    counts = {("a", 1): PairCounts(true_px=4, predicted_px=4, both_px=2), ("a", 2): PairCounts(0, 0, 0)}
    # Pairs: 2 * 2 / 8 = 0.5 and 1.
    assert Validation(summarise(counts, ("p", "q")), ungated_dice=0.3).score == pytest.approx(0.75 + 0.3)


def test_without_a_defect_the_score_is_the_kaggle_dice() -> None:
    for predicted_px, expected in ((3, 0.0), (0, 1.0)):
        metrics = summarise({("a", 1): PairCounts(0, predicted_px, 0)}, ("p",))
        assert Validation(metrics, ungated_dice=None).score == expected


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def trained(trained_run: Path, data_folder: Path) -> Trained:
    """A network that finds some defects, and its validation images."""
    network, info = load_bundle(trained_run / "model.safetensors")
    folds = read_split(trained_run / "split.csv")
    val_ids = tuple(image_id for image_id, fold in folds.items() if fold == 0)
    return network, info, open_data_folder(data_folder), val_ids


def test_validation_counts_what_evaluate_counts(trained: Trained, accelerator: Accelerator) -> None:
    network, info, data, image_ids = trained
    found = validate(accelerator, network, info, data, image_ids, Settings.of(info))
    runtime = TorchRuntime(network, info, dtype=half_precision(accelerator.device))
    score = score_images(runtime, data, image_ids, Settings.of(info))
    assert headline(found.metrics) == headline(summarise(score.counts, data.class_names))
    assert found.metrics.positive_dice is not None
    assert found.metrics.positive_dice > 0.05, "figures of empty masks would compare nothing"


def test_closed_gates_leave_the_dice_with_open_gates_as_it_is(trained: Trained, accelerator: Accelerator) -> None:
    network, info, data, image_ids = trained
    opened, shut = (
        Thresholds(gate=(gate,) * 4, pixel=(0.4, 0.5, 0.6, 0.5), min_area_px=(0,) * 4) for gate in (0.0, 1.0)
    )
    free, stopped = (
        validate(accelerator, network, info, data, image_ids, Settings.of(info, thresholds=thresholds))
        for thresholds in (opened, shut)
    )
    assert stopped.metrics.positive_dice == 0.0
    assert stopped.ungated_dice == free.ungated_dice == pytest.approx(free.metrics.positive_dice)
    assert free.ungated_dice is not None
    assert free.ungated_dice > 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("predicts_in", [None, torch.bfloat16])
def test_validation_computes_as_prediction_will_whatever_training_does(
    request_: TrainRequest,
    tiny_recipe: Path,
    precision: str,
    predicts_in: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[bool] = []

    class Spy(TorchRuntime):
        def __init__(self, network: DefectNetwork, info: ModelInfo, **options: Any) -> None:
            super().__init__(network, info, **options)
            self.info = info

        def __call__(self, images: NDArray[np.uint8]) -> Answer:
            fresh = DefectNetwork(self.info.recipe.model, 4, self.info.normalization)
            fresh.load_state_dict(self.network.state_dict())
            fresh.to(memory_format=torch.channels_last)
            own, expected = super().__call__(images), TorchRuntime(fresh, self.info, dtype=predicts_in)(images)
            answers.append(np.array_equal(own.probabilities, expected.probabilities))
            return own

    monkeypatch.setattr(validation_module, "TorchRuntime", Spy)
    monkeypatch.setattr(validation_module, "half_precision", lambda device: predicts_in)
    overrides = [f"training.precision={precision}", "training.epochs=1", "data.samples_per_epoch=4"]
    train(replace(request_, recipe=load_recipe(str(tiny_recipe), overrides)))
    assert answers
    assert all(answers)


def test_validation_computes_in_the_precision_of_the_device(
    trained: Trained,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, info, data, image_ids = trained
    seen: list[torch.dtype | None] = []

    class Spy(TorchRuntime):
        def __call__(self, images: NDArray[np.uint8]) -> Answer:
            seen.append(self.dtype)
            return super().__call__(images)

    monkeypatch.setattr(validation_module, "TorchRuntime", Spy)
    validate(accelerator, network, info, data, image_ids, Settings.of(info))
    assert seen == [half_precision(torch.device("cpu"))] * len(image_ids)


def test_validation_leaves_the_network_as_it_was(trained: Trained, trained_run: Path, accelerator: Accelerator) -> None:
    network, info = load_bundle(trained_run / "model.safetensors")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    validate(accelerator, network, info, *trained[2:], Settings.of(info))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_run_validates_with_one_view_and_ends_with_all(request_: TrainRequest, tiny_recipe: Path) -> None:
    calls: list[int] = []

    class Spy(TorchRuntime):
        def __call__(self, images: NDArray[np.uint8]) -> Answer:
            calls[-1] += 1
            return super().__call__(images)

    def watched(*arguments: Any, **options: Any) -> Score:
        calls.append(0)
        return score_images(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_module, "TorchRuntime", Spy)
        patch.setattr(validation_module, "score_images", watched)
        result = train(replace(request_, recipe=load_recipe(str(tiny_recipe), ["inference.tta=flips"])))
    images = 6
    # Two epochs with one view; then the search for thresholds, which gives the last figures too, with four.
    assert calls == [images, images, 4 * images]
    assert load_bundle(result.model)[1].recipe.inference.tta == "flips"


# Pictures


def test_images_with_most_classes_are_shown_first() -> None:
    classes = {"a": (), "b": (1,), "c": (1, 2), "d": (), "e": (3,), "f": ()}
    data: Any = SimpleNamespace(classes_of=lambda image_id: classes[image_id])
    assert images_to_show(data, list("abcdef")) == {"c", "b", "e", "a"}
    assert images_to_show(data, ["d"]) == {"d"}


def _scored(image_id: str) -> Scored:
    """Four squares of 16 px in a row: found, missed, a false alarm, and one to ignore."""
    masks, truth, ignore = (
        np.repeat(np.array([squares]), 16, axis=1).repeat(16, axis=0)
        for squares in ([True, False, True, True], [True, True, False, True], [False, False, False, True])
    )
    return Scored(
        image_id=image_id,
        pixels=np.full((16, 64), 100, np.uint8),
        answer=ImageAnswer(masks[None].astype(np.float32), np.ones(1, np.float32)),
        masks=masks[None],
        truth=truth[None],
        ignore=ignore,
    )


def test_pictures_paint_found_missed_and_false_pixels_of_the_images_chosen() -> None:
    pictures = Pictures(frozenset({"a"}))
    for image_id in ("a", "b"):
        pictures(_scored(image_id))
    assert set(pictures.bgr) == {"a"}
    blue, green, red = pictures.bgr["a"][8, 8::16].astype(int).T
    assert (blue > green).tolist() == [True, True, False, False]  # labelled
    assert (red > green).tolist() == [True, False, True, False]  # predicted


def test_pictures_go_to_tensorboard_alone_and_in_its_order_of_colours() -> None:
    sent: list[tuple[dict[str, NDArray[np.uint8]], int]] = []

    class Tracker:
        def __init__(self, name: str) -> None:
            self.name = name

        def log_images(self, images: dict[str, NDArray[np.uint8]], step: int, dataformats: str) -> None:
            assert (self.name, dataformats) == ("tensorboard", "NHWC")
            sent.append((images, step))

    accelerator: Any = SimpleNamespace(trackers=[Tracker("mlflow"), Tracker("tensorboard")])
    log_pictures(accelerator, {"a.png": np.array([[[1, 2, 3]]], np.uint8)}, 7)
    ((images, step),) = sent
    assert step == 7
    assert {name: picture.tolist() for name, picture in images.items()} == {"validation/a.png": [[[[3, 2, 1]]]]}
