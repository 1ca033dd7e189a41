"""SIGTERM and Ctrl-C, kept until the end of a step."""

import multiprocessing
import os
import signal
import subprocess
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from defectseg.train import interrupts as interrupts_module
from defectseg.train.interrupts import Interrupts, leave_signals_to_main

ALONE: Any = SimpleNamespace(num_processes=1)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=50.0)
    monkeypatch.setattr(interrupts_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_recorded(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(number)
    interrupts = Interrupts()
    with interrupts.held():
        assert not interrupts.came(ALONE)
        os.kill(os.getpid(), number)
        assert interrupts.came(ALONE)
        assert interrupts.came(ALONE), "and is not forgotten"
    assert signal.getsignal(number) is before
    assert "stopping after this step; once more to stop at once" in caplog.text


@pytest.mark.parametrize(("later_s", "at_once"), [(0.9, False), (1.0, True)], ids=["one request twice", "another"])
def test_a_second_signal_a_second_later_interrupts_at_once(
    clock: SimpleNamespace, later_s: float, at_once: bool
) -> None:
    interrupts = Interrupts()
    with interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        clock.now_s += later_s
        with pytest.raises(KeyboardInterrupt) if at_once else nullcontext():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.came(ALONE)


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ValueError, match="a bug"), Interrupts().held():
        raise ValueError("a bug")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_signals_are_not_caught_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def hold() -> None:
        with Interrupts().held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [before]


class _Workers(Dataset[int]):
    """The process that reads each item."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_a_worker_obeys_only_signals_of_its_parent() -> None:
    loader = DataLoader(_Workers(), num_workers=1, worker_init_fn=leave_signals_to_main, multiprocessing_context="fork")
    told = iter(loader)
    worker = int(next(told))
    assert worker != os.getpid()
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, str(worker)], check=True)
    assert [int(pid) for pid in told] == [worker] * 29

    told = iter(loader)
    pid = int(next(told))
    (process,) = (child for child in multiprocessing.active_children() if child.pid == pid)
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == 0
