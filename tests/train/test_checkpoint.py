"""Checkpoints: a run goes on from one as if nothing had happened."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from defectseg.config import Recipe
from defectseg.errors import ModelError, ResourceError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.train import checkpoint
from defectseg.train.checkpoint import TrainingState, load_checkpoint, read_description, save_checkpoint

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.4, std=0.2),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
    fold=3,
)
STATE = TrainingState(
    epoch=2,
    batch=3,
    step=7,
    sums={"loss": 0.1 + 0.2, "factor": 0.5},
    total_epochs=5,
    elapsed_s=1.5,
    best_score=0.75,
    best_epoch=1,
    kept=[(0.75, 1), (0.7, 2)],
)
PLAIN: Any = SimpleNamespace(scaler=None, is_main_process=True, process_index=0)


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """Accelerate's gathering finds out about processes, and remembers it."""
    yield
    PartialState._reset_state()


def _parts(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def _load(path: Path) -> TrainingState:
    network, optimizer = _parts(0)
    return load_checkpoint(path, network, None, optimizer, PLAIN)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps that draw on every source of chance."""
    for _ in range(steps):
        inputs = torch.randn(6, 3) + random.random() + float(np.random.rand())
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()


def test_a_run_goes_on_from_its_checkpoint_as_if_there_had_been_no_break(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    random.seed(1)
    np.random.seed(1)
    np.random.randn()  # leaves half a pair of normal numbers behind, which is part of the state
    _train(network, optimizer, 3)
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, STATE, INFO)
    _train(network, optimizer, 3)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    next_numbers = (random.random(), float(np.random.randn()), torch.rand(1).item())

    network, optimizer = _parts(99)
    _train(network, optimizer, 5)
    assert load_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN) == STATE
    _train(network, optimizer, 3)
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert (random.random(), float(np.random.randn()), torch.rand(1).item()) == next_numbers


def test_averaged_weights_and_how_many_went_into_them_are_kept(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    averaged, restored = AveragedModel(network), AveragedModel(network)
    for _ in range(3):
        _train(network, optimizer, 1)
        averaged.update_parameters(network)
    save_checkpoint(tmp_path / "last.ckpt", network, averaged, optimizer, PLAIN, STATE, INFO)
    load_checkpoint(tmp_path / "last.ckpt", network, restored, optimizer, PLAIN)
    assert int(restored.n_averaged) == 3
    for key, value in averaged.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value), key


def test_other_processes_write_nothing_and_each_takes_its_own_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, optimizer = _parts(0)
    states = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        states.append(checkpoint._random_state())
    monkeypatch.setattr(checkpoint, "gather_object", lambda own: states)
    other: Any = SimpleNamespace(scaler=None, is_main_process=False, process_index=1)
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, other, STATE, INFO)
    assert not (tmp_path / "last.ckpt").exists()
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, STATE, INFO)
    for accelerator, seed in ((other, 12), (PLAIN, 11)):
        load_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, accelerator)
        drawn = torch.rand(1).item()
        torch.manual_seed(seed)
        assert drawn == torch.rand(1).item()


def test_the_scaler_of_half_precision_is_kept(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    scaled: Any = SimpleNamespace(**{**vars(PLAIN), "scaler": torch.amp.GradScaler("cpu", init_scale=512.0)})
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, scaled, STATE, INFO)
    other: Any = SimpleNamespace(**{**vars(PLAIN), "scaler": torch.amp.GradScaler("cpu", init_scale=4.0)})
    load_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, other)
    assert other.scaler.get_scale() == 512.0


def test_what_the_run_began_with_is_read_without_its_weights(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, STATE, INFO)
    assert read_description(tmp_path / "last.ckpt") == INFO


def test_a_checkpoint_replaces_the_last_one_whole(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, TrainingState(epoch=epoch), INFO)
    assert load_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN).epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    for read in (read_description, lambda path: _load(path)):
        with pytest.raises(ModelError, match=r"last.ckpt: no checkpoint to resume from"):
            read(tmp_path / "last.ckpt")


def _damaged(path: Path, kind: str) -> None:
    network, optimizer = _parts(0)
    save_checkpoint(path, network, None, optimizer, PLAIN, STATE, INFO)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"epoch": 3}, path)


@pytest.mark.parametrize("kind", ["truncated", "empty", "foreign"])
def test_a_checkpoint_that_cannot_be_used_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.ckpt"
    _damaged(path, kind)
    for read in (read_description, lambda path: _load(path)):
        with pytest.raises(ModelError, match=r"last.ckpt: the run cannot be resumed from it \(.+\). Start again"):
            read(path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, STATE, INFO)
    other = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="cannot be resumed from it") as caught:
        load_checkpoint(tmp_path / "last.ckpt", other, None, torch.optim.AdamW(other.parameters()), PLAIN)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    network, optimizer = _parts(0)
    save_checkpoint(tmp_path / "last.ckpt", network, None, optimizer, PLAIN, STATE, INFO)
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=True)) >= {"network", "optimizer", "state", "random"}


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    network, optimizer = _parts(0)
    save_checkpoint(path, network, None, optimizer, PLAIN, STATE, INFO)
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ResourceError, match="no space left on the disk"):
        save_checkpoint(path, network, None, optimizer, PLAIN, TrainingState(), INFO)
    assert path.read_bytes() == before
