"""How good a network is while it learns."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.data.split import read_split
from defectseg.errors import ResourceError
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
from defectseg.train.train import TrainResult
from defectseg.train.validation import Pictures, Validation, validate

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
def trained(trained_run: Path, data_folder: Path, accelerator: Accelerator) -> Any:
    """The parts of a Run that validation is about: a network that finds some defects, and its validation images."""
    network, info = load_bundle(trained_run / "model.safetensors")
    folds = read_split(trained_run / "split.csv")
    val_ids = tuple(image_id for image_id, fold in folds.items() if fold == 0)
    data = open_data_folder(data_folder)
    return SimpleNamespace(accelerator=accelerator, network=network, info=info, data=data, val_ids=val_ids)


def test_validation_counts_what_evaluate_counts_and_leaves_the_network_as_it_was(trained: Any) -> None:
    trained.network.train()
    before = {key: value.clone() for key, value in trained.network.state_dict().items()}
    found = validate(trained, trained.network)
    assert trained.network.training
    assert all(torch.equal(value, before[key]) for key, value in trained.network.state_dict().items())
    runtime = TorchRuntime(trained.network, trained.info, dtype=half_precision(torch.device("cpu")))
    score = score_images(runtime, trained.data, trained.val_ids, Settings.of(trained.info))
    assert headline(found.metrics) == headline(summarise(score.counts, trained.data.class_names))
    assert found.metrics.positive_dice is not None
    assert found.metrics.positive_dice > 0.05, "figures of empty masks would compare nothing"


def test_closed_gates_leave_the_dice_with_open_gates_as_it_is(trained: Any) -> None:
    opened, shut = (
        Thresholds(gate=(gate,) * 4, pixel=(0.4, 0.5, 0.6, 0.5), min_area_px=(0,) * 4) for gate in (0.0, 1.0)
    )
    free, stopped = (validate(trained, trained.network, thresholds=thresholds) for thresholds in (opened, shut))
    assert stopped.metrics.positive_dice == 0.0
    assert stopped.ungated_dice == free.ungated_dice == pytest.approx(free.metrics.positive_dice)
    assert free.ungated_dice is not None
    assert free.ungated_dice > 0.05


def test_no_image_is_left_out_of_a_score_because_memory_was_short(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchRuntime, "_send", lambda self, images: bytearray(2**62))
    with pytest.raises(ResourceError, match=r"validation: .*memory does not suffice"):
        validate(trained, trained.network)


@pytest.mark.parametrize(("precision", "predicts_in"), [("fp32", torch.bfloat16), ("bf16", None)])
def test_validation_uses_the_precision_of_predict_whatever_training_uses(
    start: Callable[..., TrainResult],
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
    start(f"training.precision={precision}", "training.epochs=1", "data.samples_per_epoch=4")
    assert answers
    assert all(answers)


def test_a_run_validates_with_one_view_and_ends_with_all(
    start: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Spy(TorchRuntime):
        def __call__(self, images: NDArray[np.uint8]) -> Answer:
            calls[-1] += 1
            assert self.dtype == half_precision(torch.device("cpu"))
            return super().__call__(images)

    def watched(*arguments: Any, **options: Any) -> Score:
        calls.append(0)
        return score_images(*arguments, **options)

    monkeypatch.setattr(validation_module, "TorchRuntime", Spy)
    monkeypatch.setattr(validation_module, "score_images", watched)
    start("inference.tta=flips", "data.samples_per_epoch=4")
    # Two epochs with one view; then the search for thresholds, which gives the last figures too, with four.
    assert calls == [6, 6, 4 * 6]


# Pictures


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


def test_pictures_show_images_with_most_classes_and_paint_found_missed_and_false_pixels() -> None:
    classes = {"a": (), "b": (1,), "c": (1, 2), "d": (), "e": (3,), "f": ()}
    data: Any = SimpleNamespace(classes_of=lambda image_id: classes[image_id])
    pictures = Pictures(data, list("abcdef"))
    for image_id in "cebdaf":
        pictures(_scored(image_id))
    assert set(pictures.bgr) == {"c", "b", "e", "a"}
    blue, green, red = pictures.bgr["a"][8, 8::16].astype(int).T
    assert (blue > green).tolist() == [True, True, False, False]  # labelled
    assert (red > green).tolist() == [True, False, True, False]  # predicted
    sent: list[tuple[str, int]] = []

    def log_images(images: dict[str, NDArray[np.uint8]], step: int, dataformats: str) -> None:
        ((name, picture),) = images.items()
        sent.append((name, step))
        np.testing.assert_array_equal(picture[0, ..., ::-1], pictures.bgr[name.removeprefix("validation/")])
        assert dataformats == "NHWC"

    accelerator: Any = SimpleNamespace(trackers=[SimpleNamespace(log_images=log_images)])
    pictures.log(accelerator, 7)
    assert sent == [(f"validation/{image_id}", 7) for image_id in "ceba"]
