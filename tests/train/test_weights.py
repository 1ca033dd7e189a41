"""The weights that validated best: which are kept, and what is on disk."""

from pathlib import Path

import pytest
import torch

from defectseg.config import ModelConfig, Recipe
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.bundle import load_bundle, read_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.train.checkpoint import Progress
from defectseg.train.validation import Validation
from defectseg.train.weights import BEST_NAME, Candidates

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


def _offer(candidates: Candidates, progress: Progress, networks: dict[str, DefectNetwork], **percents: int) -> str:
    progress.epoch += 1
    better = candidates.offer(progress, _scored(networks, progress.epoch, **percents), INFO)
    candidates.tidy(progress)
    return better


def _bias(path: Path) -> float:
    return read_bundle(path)[1][BIAS].item()


def test_the_best_is_kept_and_of_equals_the_later(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, progress = Candidates(tmp_path, 1, writes=True), Progress()
    best, stale = [], []
    for percent in (80, 80, 70, 90, 85, 90):
        _offer(candidates, progress, networks, epoch=percent)
        best.append(_bias(tmp_path / BEST_NAME))
        stale.append(progress.validations_since_best)
    assert best == [1, 2, 2, 4, 4, 6]
    assert stale == [0, 1, 2, 0, 1, 2], "a score that is only equalled is no progress"
    assert progress.best_epoch == 6
    assert progress.best_score == pytest.approx(0.9)
    assert progress.kept == []
    assert [path.name for path in tmp_path.iterdir()] == [BEST_NAME]


def test_of_an_epoch_and_its_moving_average_the_better_is_kept(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, progress = Candidates(tmp_path, 1, writes=True), Progress()
    kept, better = [], []
    for epoch, ema in ((50, 60), (70, 65), (40, 75), (74, 30)):
        better.append(_offer(candidates, progress, networks, epoch=epoch, ema=ema))
        info = read_bundle(tmp_path / BEST_NAME)[0]
        kept.append((_bias(tmp_path / BEST_NAME), info.metrics["weights"], info.metrics["best_epoch"]))
    assert kept == [(1.5, "ema", 1), (2.0, "epoch", 2), (3.5, "ema", 3), (3.5, "ema", 3)]
    assert better == ["ema", "epoch", "ema", "epoch"], "of each epoch, whether or not it is kept"


def test_the_bundle_on_disk_tells_how_it_scored(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, progress = Candidates(tmp_path, 1, writes=True), Progress()
    _offer(candidates, progress, networks, epoch=50)
    network, info = load_bundle(tmp_path / BEST_NAME)
    assert info.metrics["kaggle_dice"] == info.metrics["positive_dice"] == 0.5
    assert info.class_names == INFO.class_names
    assert not network.training


def test_of_several_epochs_to_be_averaged_the_best_stay_on_disk(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, progress = Candidates(tmp_path, 2, writes=True), Progress()
    assert candidates.averaged(progress) is None
    seen = []
    for percent in (50, 40, 60, 50, 30):
        _offer(candidates, progress, networks, epoch=percent, ema=99)
        seen.append(sorted(path.name for path in tmp_path.glob("best-*")))
    names = [f"best-{epoch}.safetensors" for epoch in range(6)]
    # Epochs 1 and 4 are equals: the later stays.
    assert seen == [[names[1]], [names[1], names[2]], [names[1], names[3]], [names[3], names[4]], [names[3], names[4]]]
    assert [epoch for _, epoch in progress.kept] == [3, 4]
    averaged = candidates.averaged(progress)
    assert averaged is not None
    assert averaged[BIAS].item() == 3.5, "the epochs' own weights, not their moving averages"


def test_a_single_epoch_is_not_averaged(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, progress = Candidates(tmp_path, 3, writes=True), Progress()
    _offer(candidates, progress, networks, epoch=50)
    assert candidates.averaged(progress) is None


def test_what_the_checkpoint_speaks_of_stays_until_it_is_written_anew(
    tmp_path: Path, networks: dict[str, DefectNetwork]
) -> None:
    candidates, progress = Candidates(tmp_path, 2, writes=True), Progress()
    for percent in (50, 60, 70):
        progress.epoch += 1
        candidates.offer(progress, _scored(networks, progress.epoch, epoch=percent), INFO)
    assert len(list(tmp_path.glob("best-*"))) == 3, "a run killed now goes on from a checkpoint that wants the first"
    candidates.tidy(progress)
    assert len(list(tmp_path.glob("best-*"))) == 2


def test_in_the_end_all_are_deleted_and_nothing_else(tmp_path: Path, networks: dict[str, DefectNetwork]) -> None:
    candidates, progress = Candidates(tmp_path, 2, writes=True), Progress()
    for percent in (50, 60):
        _offer(candidates, progress, networks, epoch=percent)
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
        candidates, progress = Candidates(tmp_path / name, 2, writes=name == "main"), Progress()
        for percent in (50, 40, 60):
            progress.epoch += 1
            candidates.offer(progress, _scored(networks, progress.epoch, epoch=percent), INFO)
        ranks.append(progress)
    assert ranks[0] == ranks[1]
    assert list((tmp_path / "other").iterdir()) == []
