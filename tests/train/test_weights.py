"""The weights that validated best: which are kept, and what is on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defectseg.config import ModelConfig, Recipe
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.bundle import load_bundle, read_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.train.checkpoint import TrainingState
from defectseg.train.validation import Validation
from defectseg.train.weights import BEST_NAME, Candidates, average, make_ema

MODEL = ModelConfig(encoder="tu-test_resnet", options={"decoder_channels": [8] * 5})
INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.4, std=0.2),
    thresholds=Thresholds.default(1),
    recipe=Recipe(model=MODEL),
)
BIAS = "net.segmentation_head.0.bias"


@pytest.fixture(scope="module")
def networks() -> dict[str, DefectNetwork]:
    return {kind: DefectNetwork(MODEL, 1, INFO.normalization) for kind in ("epoch", "ema")}


def _scored(
    networks: dict[str, DefectNetwork], at: int, /, **percents: int
) -> dict[str, tuple[Validation, DefectNetwork]]:
    """What a validation found, when the kinds of weights have such a Dice in percent; the bias tells epoch and kind."""
    scored = {}
    for kind, percent in percents.items():
        metrics = summarise({("a", 1): PairCounts(true_px=100, predicted_px=100, both_px=percent)}, ("pits",))
        with torch.no_grad():
            networks[kind].get_parameter(BIAS).fill_(at + (0.5 if kind == "ema" else 0.0))
        scored[kind] = (Validation(metrics, None), networks[kind])
    return scored


def _offer(candidates: Candidates, state: TrainingState, networks: dict[str, DefectNetwork], **percents: int) -> str:
    state.epoch += 1
    better = candidates.offer(state, _scored(networks, state.epoch, **percents), INFO)
    candidates.tidy(state)
    return better


def _bias(path: Path) -> float:
    return read_bundle(path)[1][BIAS].item()


def test_the_best_is_kept_and_of_equals_the_later(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, state = Candidates(tmp_path, 1, writes=True), TrainingState()
    best = []
    for percent in (80, 80, 70, 90, 85, 90):
        _offer(candidates, state, networks, epoch=percent)
        best.append(_bias(tmp_path / BEST_NAME))
    assert best == [1, 2, 2, 4, 4, 6]
    assert state.best_epoch == 6
    assert state.best_score == pytest.approx(0.9)
    assert state.kept == []
    assert [path.name for path in tmp_path.iterdir()] == [BEST_NAME]


def test_of_an_epoch_and_its_moving_average_the_better_is_kept(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, state = Candidates(tmp_path, 1, writes=True), TrainingState()
    kept, better = [], []
    for epoch, ema in ((50, 60), (70, 65), (40, 75), (74, 30)):
        better.append(_offer(candidates, state, networks, epoch=epoch, ema=ema))
        info = read_bundle(tmp_path / BEST_NAME)[0]
        kept.append((_bias(tmp_path / BEST_NAME), info.metrics["weights"], info.metrics["best_epoch"]))
    assert kept == [(1.5, "ema", 1), (2.0, "epoch", 2), (3.5, "ema", 3), (3.5, "ema", 3)]
    assert better == ["ema", "epoch", "ema", "epoch"], "of each epoch, whether or not it is kept"


def test_the_bundle_on_disk_tells_how_it_scored(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, state = Candidates(tmp_path, 1, writes=True), TrainingState()
    _offer(candidates, state, networks, epoch=50)
    network, info = load_bundle(tmp_path / BEST_NAME)
    assert info.metrics["kaggle_dice"] == info.metrics["positive_dice"] == 0.5
    assert info.class_names == INFO.class_names
    assert not network.training


def test_of_several_epochs_to_be_averaged_the_best_stay_on_disk(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, state = Candidates(tmp_path, 2, writes=True), TrainingState()
    assert candidates.averaged(state) is None
    seen = []
    for percent in (50, 40, 60, 50, 30):
        _offer(candidates, state, networks, epoch=percent, ema=99)
        seen.append(sorted(path.name for path in tmp_path.glob("best-*")))
    names = [f"best-{epoch}.safetensors" for epoch in range(6)]
    # Epochs 1 and 4 are equals: the later stays.
    assert seen == [[names[1]], [names[1], names[2]], [names[1], names[3]], [names[3], names[4]], [names[3], names[4]]]
    assert [epoch for _, epoch in state.kept] == [3, 4]
    averaged = candidates.averaged(state)
    assert averaged is not None
    assert averaged[BIAS].item() == 3.5, "the epochs' own weights, not their moving averages"


def test_a_single_epoch_is_not_averaged(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, state = Candidates(tmp_path, 3, writes=True), TrainingState()
    _offer(candidates, state, networks, epoch=50)
    assert candidates.averaged(state) is None


def test_what_the_checkpoint_speaks_of_stays_until_it_is_written_anew(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, state = Candidates(tmp_path, 2, writes=True), TrainingState()
    for percent in (50, 60, 70):
        state.epoch += 1
        candidates.offer(state, _scored(networks, state.epoch, epoch=percent), INFO)
    assert len(list(tmp_path.glob("best-*"))) == 3, "a run killed now goes on from a checkpoint that wants the first"
    candidates.tidy(state)
    assert len(list(tmp_path.glob("best-*"))) == 2


def test_in_the_end_all_are_deleted_and_nothing_else(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, state = Candidates(tmp_path, 2, writes=True), TrainingState()
    for percent in (50, 60):
        _offer(candidates, state, networks, epoch=percent)
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    candidates.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_process_that_does_not_write_comes_to_the_same_ranking(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "other").mkdir()
    ranks = []
    for name in ("main", "other"):
        candidates, state = Candidates(tmp_path / name, 2, writes=name == "main"), TrainingState()
        for percent in (50, 40, 60):
            state.epoch += 1
            candidates.offer(state, _scored(networks, state.epoch, epoch=percent), INFO)
        ranks.append(state)
    assert ranks[0] == ranks[1]
    assert list((tmp_path / "other").iterdir()) == []


# Averages, by hand


def _norm() -> Any:
    """A layer with weights, batch statistics and a counter."""
    return nn.BatchNorm1d(2)


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
    layer = _norm()
    ema = make_ema(layer, decay)
    for value, count, expected in ((1.0, 5, 1.0), (2.0, 7, second), (4.0, 8, third)):
        _set(layer, value, count)
        ema.update_parameters(layer)
        assert _values(ema.module) == pytest.approx((expected, 10 * expected, count))
    assert _values(layer) == (4.0, 40.0, 8), "the weights that learn stay as they are"


def test_the_mean_of_several_epochs_takes_counters_from_the_first() -> None:
    parts: list[dict[str, Tensor]] = []
    for value, count in ((1.0, 5), (2.0, 6), (6.0, 9)):
        layer = _norm()
        _set(layer, value, count)
        parts.append(layer.state_dict())
    mean = average(parts)
    assert mean["weight"].tolist() == [3.0, 3.0]
    assert mean["running_mean"].tolist() == [30.0, 30.0]
    assert mean["num_batches_tracked"].item() == 5
    assert mean["num_batches_tracked"].dtype == torch.int64
    assert parts[0]["weight"].tolist() == [1.0, 1.0]
