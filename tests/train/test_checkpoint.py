"""Checkpoints: a run goes on from one as if nothing had happened."""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from defectseg.config import Recipe
from defectseg.errors import ModelError, ResourceError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.train import checkpoint
from defectseg.train.checkpoint import BEST_NAME, TrainingState, read_checkpoint, restore, save_checkpoint

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


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """Accelerate's gathering finds out about processes, and remembers it."""
    yield
    PartialState._reset_state()


def _run(folder: Path, seed: int, *, is_main_process: bool = True, scaler: Any = None) -> Any:
    """The parts of a Run that a checkpoint is about."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    return SimpleNamespace(
        folder=folder,
        network=network,
        ema=AveragedModel(network),
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.1),
        accelerator=SimpleNamespace(
            scaler=scaler, is_main_process=is_main_process, process_index=0 if is_main_process else 1
        ),
        state=STATE,
        info=INFO,
    )


def _train(run: Any, steps: int) -> None:
    for _ in range(steps):
        run.optimizer.zero_grad()
        run.network(torch.randn(6, 3)).square().sum().backward()
        run.optimizer.step()
        run.ema.update_parameters(run.network)


def test_a_restored_run_continues_bit_for_bit(tmp_path: Path) -> None:
    run, other = _run(tmp_path, 0), _run(tmp_path, 99)
    _train(run, 3)
    save_checkpoint(run)
    _train(run, 3)
    after = torch.rand(1).item()

    _train(other, 5)
    other.state = TrainingState()
    info, saved = read_checkpoint(tmp_path)
    restore(other, saved)
    assert (info, other.state) == (INFO, STATE)
    _train(other, 3)
    for kind in ("network", "ema"):
        expected, found = getattr(run, kind).state_dict(), getattr(other, kind).state_dict()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (kind, key)
    assert int(other.ema.n_averaged) == 6
    assert torch.rand(1).item() == after


def test_other_processes_write_nothing_and_each_takes_its_own_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Any] = []

    def gather(own: list[Any]) -> list[Any]:
        states.extend(own)
        return states

    monkeypatch.setattr(checkpoint, "gather_object", gather)
    main, other = _run(tmp_path, 11), _run(tmp_path, 12, is_main_process=False)
    expected = {}
    for run, seed in ((main, 11), (other, 12)):
        torch.manual_seed(seed)
        save_checkpoint(run)
        expected[seed] = torch.rand(1).item()
        (tmp_path / "last.ckpt").unlink(missing_ok=True)
    save_checkpoint(other)
    assert not list(tmp_path.iterdir())
    save_checkpoint(main)
    saved = read_checkpoint(tmp_path)[1]
    for run, seed in ((other, 12), (main, 11)):
        restore(run, saved)
        assert torch.rand(1).item() == expected[seed]


def test_the_scaler_of_half_precision_is_restored(tmp_path: Path) -> None:
    first, second = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (512.0, 4.0))
    save_checkpoint(_run(tmp_path, 0, scaler=first))
    restore(_run(tmp_path, 0, scaler=second), read_checkpoint(tmp_path)[1])
    assert second.get_scale() == 512.0


def _sum_added(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def _torch_file(saved: Any) -> bytes:
    file = io.BytesIO()
    torch.save(saved, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["truncated", "empty", "foreign", "without a sum"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(_run(tmp_path, 0))
    whole = path.read_bytes()
    kinds = {"truncated": whole[:-500], "empty": b"", "foreign": _sum_added(_torch_file({"epoch": 3}))}
    path.write_bytes(kinds.get(kind, whole[:-32]))
    with pytest.raises(ModelError, match=r"last.ckpt: the run cannot be resumed from it \(.+\). Start again"):
        read_checkpoint(tmp_path)


def test_one_changed_byte_anywhere_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(_run(tmp_path, 0))
    whole = path.read_bytes()
    best = path.with_name(BEST_NAME)
    best.touch()
    for place in (*range(0, len(whole), len(whole) // 60), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ModelError, match=r"checksum.*Start again in a new folder") as caught:
            read_checkpoint(tmp_path)
        assert str(caught.value).endswith(f"with init={str(best)!r}.")


class _Command:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path: Path, as_zip: bool) -> None:
    mark = tmp_path / "code ran"
    content = _torch_file({"network": _Command(mark)}) if as_zip else pickle.dumps(_Command(mark))
    (tmp_path / "last.ckpt").write_bytes(_sum_added(content))
    with pytest.raises(ModelError):
        read_checkpoint(tmp_path)
    assert not mark.exists()


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(_torch_file({"network": torch.zeros(2**20)})))
    with source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    (tmp_path / "last.ckpt").write_bytes(_sum_added(packed.getvalue()))
    with pytest.raises(ModelError, match="larger in memory than on the disk"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_checkpoint(_run(tmp_path, 0))
    other = _run(tmp_path, 0)
    other.network = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="cannot be resumed from it") as caught:
        restore(other, read_checkpoint(tmp_path)[1])
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_an_error_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(_run(tmp_path, 0))
    before = (tmp_path / "last.ckpt").read_bytes()

    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ResourceError, match="no space left on the disk"):
        save_checkpoint(_run(tmp_path, 1))
    assert (tmp_path / "last.ckpt").read_bytes() == before
