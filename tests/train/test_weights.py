"""The weights that validated best: which are kept, and what is on disk."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from defectseg.config import ModelConfig, Recipe, TrainingConfig
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.bundle import read_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.train.checkpoint import BEST_NAME, TrainingState
from defectseg.train.validation import Validation
from defectseg.train.weights import MovingAverage, average_of_best, offer, tidy

MODEL = ModelConfig(encoder="tu-test_resnet", options={"decoder_channels": [8] * 5})
NORMALIZATION = Normalization(mean=0.4, std=0.2)
BIAS = "net.segmentation_head.0.bias"
MEAN, COUNT = (f"net.encoder.model.bn1.{name}" for name in ("running_mean", "num_batches_tracked"))


@pytest.fixture(scope="module")
def networks() -> dict[str, DefectNetwork]:
    return {kind: DefectNetwork(MODEL, 1, NORMALIZATION) for kind in ("epoch", "ema")}


def _run(folder: Path, average_best: int, *, writes: bool = True) -> Any:
    """The parts of a Run that are about its best weights."""
    recipe = Recipe(model=MODEL, training=TrainingConfig(average_best=average_best))
    info = ModelInfo(
        class_names=("pits",), normalization=NORMALIZATION, thresholds=Thresholds.default(1), recipe=recipe
    )
    accelerator = SimpleNamespace(is_main_process=writes)
    return SimpleNamespace(folder=folder, recipe=recipe, info=info, state=TrainingState(), accelerator=accelerator)


def _offer(run: Any, networks: dict[str, DefectNetwork], **percents: int) -> str:
    """Offers what the validation of the next epoch found, when the kinds of weights have such a Dice in percent; the
    bias and the counter tell the epoch, the bias the kind.
    """
    run.state.epoch += 1
    scored = {}
    for kind, percent in percents.items():
        metrics = summarise({("a", 1): PairCounts(true_px=100, predicted_px=100, both_px=percent)}, ("pits",))
        with torch.no_grad():
            networks[kind].get_parameter(BIAS).fill_(run.state.epoch + (0.5 if kind == "ema" else 0.0))
            networks[kind].get_buffer(MEAN).fill_(10 * run.state.epoch)
            networks[kind].get_buffer(COUNT).fill_(run.state.epoch)
        scored[kind] = (Validation(metrics, 0.25), networks[kind])
    return offer(run, scored)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_best_is_kept_and_of_equals_the_later(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    run, best = _run(tmp_path, 1), []
    for percent in (80, 80, 70, 90, 85, 90):
        _offer(run, networks, epoch=percent)
        best.append(read_bundle(tmp_path / BEST_NAME)[1][BIAS].item())
    assert best == [1, 2, 2, 4, 4, 6]
    assert run.state.best_epoch == 6
    assert run.state.best_score == pytest.approx(0.9 + 0.25)
    assert run.state.kept == []
    assert _names(tmp_path) == {BEST_NAME}


def test_of_an_epoch_and_its_moving_average_the_better_is_kept(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    run = _run(tmp_path, 1)
    kept, better = [], []
    for epoch, ema in ((50, 60), (70, 65), (40, 75), (74, 30)):
        better.append(_offer(run, networks, epoch=epoch, ema=ema))
        info, weights = read_bundle(tmp_path / BEST_NAME)
        kept.append((weights[BIAS].item(), info.metrics["weights"], info.metrics["best_epoch"]))
    assert kept == [(1.5, "ema", 1), (2.0, "epoch", 2), (3.5, "ema", 3), (3.5, "ema", 3)]
    assert better == ["ema", "epoch", "ema", "epoch"], "of each epoch, whether or not it is kept"
    assert (info.metrics["kaggle_dice"], info.metrics["ungated_dice"]) == (0.75, 0.25)


def test_of_several_epochs_to_be_averaged_the_best_stay_on_disk(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    run = _run(tmp_path, 2)
    seen: list[list[str]] = []
    for percent in (50, 40, 60, 50, 30):
        _offer(run, networks, epoch=percent, ema=99)
        if len(seen) == 2:
            assert len(list(tmp_path.glob("best-*"))) == 3, "a run killed now goes on from a checkpoint that wants all"
        tidy(run)
        seen.append(sorted(path.name for path in tmp_path.glob("best-*")))
        assert (average_of_best(run) is None) == (len(seen) == 1), "a single epoch is not averaged"
    names = [f"best-{epoch}.safetensors" for epoch in range(6)]
    # Epochs 1 and 4 are equals: the later stays.
    assert seen == [[names[1]], [names[1], names[2]], [names[1], names[3]], [names[3], names[4]], [names[3], names[4]]]
    assert [epoch for _, epoch in run.state.kept] == [3, 4]
    averaged = average_of_best(run)
    assert averaged is not None
    assert averaged[BIAS].item() == 3.5, "the epochs' own weights, not their moving averages"
    assert averaged[MEAN][0].item() == 35.0
    assert (averaged[COUNT].item(), averaged[COUNT].dtype) == (3, torch.int64), "of the best epoch"


def test_a_process_that_does_not_write_comes_to_the_same_ranking(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    (tmp_path / "other").mkdir()
    main, other = _run(tmp_path, 2), _run(tmp_path / "other", 2, writes=False)
    for percent in (50, 40, 60):
        for run in (main, other):
            _offer(run, networks, epoch=percent)
    assert main.state == other.state
    assert _names(tmp_path / "other") == set()


# The moving average, by hand


def _set(layer: Any, value: float, count: int) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.running_mean.fill_(10 * value)
        layer.num_batches_tracked.fill_(count)


def _values(layer: Any) -> tuple[float, float, int]:
    return layer.weight[0].item(), layer.running_mean[1].item(), layer.num_batches_tracked.item()


@pytest.mark.parametrize(
    ("decay", "second", "third"),
    [
        # Step 1: a copy, 1. Step 2: 2/11 of the old and 9/11 of the new value 2. Step 3: 3/12 of that, 9/12 of 4.
        (0.9, (2 * 1 + 9 * 2) / 11, (3 * (20 / 11) + 9 * 4) / 12),
        # The decay itself, where it is the smaller one: 0.1 at both steps.
        (0.1, 0.1 * 1 + 0.9 * 2, 0.1 * 1.9 + 0.9 * 4),
        # Of 2/11 and 0.2 the former at step 2, of 3/12 and 0.2 the latter at step 3.
        (0.2, (2 * 1 + 9 * 2) / 11, 0.2 * (20 / 11) + 0.8 * 4),
    ],
)
def test_the_first_steps_of_a_moving_average_count_for_more(decay: float, second: float, third: float) -> None:
    layer: Any = nn.BatchNorm1d(2)  # weights, batch statistics and a counter
    ema = MovingAverage(layer, decay)
    for value, count, expected in ((1.0, 5, 1.0), (2.0, 7, second), (4.0, 8, third)):
        _set(layer, value, count)
        ema.update_parameters(layer)
        assert _values(ema.module) == pytest.approx((expected, 10 * expected, count))
    assert _values(layer) == (4.0, 40.0, 8), "the weights that learn stay as they are"
