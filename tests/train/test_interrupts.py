"""SIGTERM and Ctrl-C within a run, and runs that are killed: they go on and end as if nothing had been."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import defectseg
from defectseg.config import load_recipe
from defectseg.model.bundle import read_bundle, weights_digest
from defectseg.train import interrupts as interrupts_module
from defectseg.train.interrupts import Interrupts, leave_signals_to_main
from defectseg.train.train import train

ALONE: Any = SimpleNamespace(num_processes=1)
with_signals = pytest.mark.skipif(os.name == "nt", reason="needs signals")

# Within an epoch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=50.0)
    monkeypatch.setattr(interrupts_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@with_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_until_it_is_asked_for(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(number)
    interrupts = Interrupts()
    with interrupts.held():
        assert not interrupts.came(ALONE)
        os.kill(os.getpid(), number)
        assert interrupts.came(ALONE)
        assert interrupts.came(ALONE), "and is not forgotten"
    assert signal.getsignal(number) is before
    assert "stopping after this step; once more to stop at once" in caplog.text


@with_signals
def test_a_second_signal_interrupts_at_once(clock: SimpleNamespace) -> None:
    interrupts = Interrupts()
    with interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        clock.now_s += 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@with_signals
def test_one_request_that_comes_twice_is_one(clock: SimpleNamespace) -> None:
    interrupts = Interrupts()
    with interrupts.held():
        os.kill(os.getpid(), signal.SIGTERM)
        clock.now_s += 0.9
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.came(ALONE)


@with_signals
def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ValueError, match="a bug"), Interrupts().held():
        raise ValueError("a bug")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_the_main_thread_nothing_is_caught() -> None:
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


@with_signals
def test_a_worker_goes_on_when_its_whole_group_is_signalled_and_ends_when_main_says_so() -> None:
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


@with_signals
def test_one_process_that_is_told_to_stop_tells_the_others() -> None:
    flags = {"set": False}
    several: Any = SimpleNamespace(
        num_processes=2,
        set_trigger=lambda: flags.update(set=True),
        check_trigger=lambda: torch.tensor(flags["set"]),
    )
    told, other = Interrupts(), Interrupts()
    assert not other.came(several)
    with told.held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.came(several)
    assert other.came(several)


# Whole runs. Each has chance in the network, a moving average, the mean of several epochs, steps whose gradients are
# added up, both losses, and two stages: two epochs of eight steps, then one of six.

SETTINGS = (
    "training.batch_size=2",
    "training.accumulation=2",
    "training.ema_decay=0.9",
    "training.average_best=2",
    "training.second_stage.epochs=1",
    "training.second_stage.crop_hw=[64,96]",
    "training.second_stage.batch_size=3",
    "loss.lovasz_from=0.4",
    "data.class_balance=0.5",
    "data.balance_until=0.5",
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

# The command line in a process whose whole group gets SIGTERM right after a step.
TERMINATED = """
import os, subprocess, sys
from defectseg.train import loop

account, at = loop._account, int(sys.argv.pop(1))

def count(run, *args):
    account(run, *args)
    if run.state.step == at:
        # As torchrun does: workers get it too, and not from their parent.
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"])

loop._account = count
from defectseg.cli.main import main
main()
"""

# For each number, a fork that is killed in the middle of writing that file, the n-th of the run; then another that
# resumes. Prints whether the first was killed, and the digests of the second.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from defectseg.config import load_recipe
from defectseg.model.bundle import read_bundle, weights_digest
from defectseg.train.train import train

recipe, data, out, numbers = load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])

def killed_at(number):
    replace, written = Path.replace, []
    def count(self, target):
        written.append(target)
        if len(written) == number:
            half = self.read_bytes()
            self.write_bytes(half[: len(half) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    Path.replace = count

def in_a_fork(number, **asked):
    child = os.fork()
    if child == 0:
        if number:
            killed_at(number)
        train(data, device="cpu", **asked)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for number in numbers:
    folder = out / str(number)
    codes = [in_a_fork(number, out=folder, recipe=recipe), in_a_fork(0, out=folder, resume=True)]
    print(json.dumps([number, codes]), flush=True)
"""


def _python(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=ENVIRONMENT,
        start_new_session=True,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def _digests(run: Path) -> dict[str, str]:
    """Of all weights that a run leaves."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    weights = {"network": checkpoint["network"], "ema": checkpoint["ema"]}
    weights["model"] = read_bundle(run / "model.safetensors")[1]
    return {name: weights_digest(state) for name, state in weights.items()}


def _state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)["state"]
    return state


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from defectseg.config import dump_recipe

    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(dump_recipe(load_recipe(str(tiny_recipe), SETTINGS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe_file: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(data_folder, out, recipe=load_recipe(str(recipe_file)), device="cpu")
    assert _state(out)["step"] == 8 + 8 + 6
    return out


@with_signals
@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_after", "epoch", "batch", "workers"),
    [
        (11, 1, 4, 0),  # the third step of the second epoch: its gradients still want those of the fourth
        (16, 1, 8, 0),  # the last step of an epoch
        (18, 2, 2, 1),  # in the second stage, with a worker that has read ahead
    ],
    ids=["between two steps", "at the end of an epoch", "second stage with a worker"],
)
def test_a_terminated_run_stops_after_a_whole_step_and_ends_as_if_it_had_not_been(
    uninterrupted: Path,
    recipe_file: Path,
    data_folder: Path,
    tmp_path: Path,
    signal_after: int,
    epoch: int,
    batch: int,
    workers: int,
) -> None:
    out = tmp_path / "run"
    common: Sequence[str | Path] = ("train", recipe_file, "--data", data_folder, "--out", out, "--device=cpu")
    stopped = _python(TERMINATED, str(signal_after), *common, f"--set=data.workers={workers}")
    assert stopped.returncode == 130, stopped.stderr
    assert "Continue it with --resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    state = _state(out)
    assert (state["epoch"], state["batch"], state["step"]) == (epoch, batch, 8 * epoch + batch)
    assert not (out / "model.safetensors").exists()

    resumed = _python("from defectseg.cli.main import main; main()", *common, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert _digests(out) == _digests(uninterrupted)
    assert {path.name for path in out.iterdir()} == {path.name for path in uninterrupted.iterdir()}


@with_signals
@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_save_ends_as_if_it_had_not_been(
    uninterrupted: Path, recipe_file: Path, data_folder: Path, tmp_path: Path
) -> None:
    # Files in turn: request.json, split.csv, config.yaml, split.csv, last.ckpt; each of three epochs: last.ckpt,
    # best.safetensors (where it is one), its own best-N.safetensors, metrics.jsonl, last.ckpt; curves.png,
    # model.safetensors.
    numbers = [2, 3, 5, 6, 7, 9, 10, 11, 14, 17, 19]
    done = _python(KILLED, recipe_file, data_folder, tmp_path, json.dumps(numbers))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [[number, [-signal.SIGKILL, 0]] for number in numbers], done.stderr
    for number in numbers:
        assert _digests(tmp_path / str(number)) == _digests(uninterrupted), number
        left = {path.name for path in (tmp_path / str(number)).iterdir()}
        assert left == {path.name for path in uninterrupted.iterdir()}, number
