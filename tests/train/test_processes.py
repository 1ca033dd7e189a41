"""Trainings in processes of their own: by two at once, killed, and signalled as a group."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import defectseg
from defectseg.evaluate.evaluate import evaluate
from defectseg.model.info import read_model_info
from defectseg.model.locate import model_identity
from defectseg.train.curves import read_history

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs fork and signals")]

# Imports torch once. For each task on stdin it forks the processes of one training and prints their exit codes. A task
# can say after which step the process group gets SIGTERM, and during which write (file name, n-th time) it is killed.
SERVER = """
import json, logging, os, signal, subprocess, sys, time
from pathlib import Path
from torch.distributed import TCPStore
from defectseg.config import load_recipe
from defectseg.data import split
from defectseg.errors import DefectsegError
from defectseg.train import images, run
from defectseg.train.train import train

run.draw_curves = lambda path, history: path.touch()

def make_folds(*args, **settings):
    assert os.environ.get("RANK", "0") == "0", "copies are searched for in the main process alone"
    return split.make_folds(*args, **settings)

images.make_folds = make_folds
heard = []  # the log line with which a training says that it was signalled
logging.getLogger("defectseg.train.interrupts").addFilter(lambda line: heard.append(line) or True)

def work(task, rank, port):
    os.dup2(2, 1)
    os.setsid()
    signal.alarm(900)
    count = str(task["processes"])
    if count != "1":  # as torchrun does
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=count, LOCAL_WORLD_SIZE=count)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    replace, written = Path.replace, []

    def killed(self, target):
        written.append(target.name)
        if [target.name, written.count(target.name)] == task["kill_at"]:
            half = self.read_bytes()
            self.write_bytes(half[: len(half) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    def progress(done, total, text=""):
        if done == task["signal_at"]:  # workers get it too, and not from their parent
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"])
            while not heard:  # another thread may have taken the signal, and not have run since
                time.sleep(0.01)

    Path.replace = killed
    init, asked = task["init"], {"data": None, "resume": True}
    if task["recipe"]:
        init = Path(init) if init else None
        overrides = [*task["overrides"], *(task["others"] if rank else ())]
        asked = {"data": Path(task["data"]), "recipe": load_recipe(task["recipe"], overrides), "init": init}
    try:
        train(out=Path(task["out"]), device="cpu", progress=progress, **asked)
    except KeyboardInterrupt:
        return 130
    except DefectsegError as error:
        print(error)
        return error.exit_code

for line in sys.stdin:
    task, children = json.loads(line), []
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a port that nobody else can take
    for rank in range(task["processes"]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = work(task, rank, store.port) or 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""
# Chance in the network, a moving average, the mean of several epochs, steps whose gradients are added up, both losses,
# and two stages: two epochs of eight steps, then one of six.
RICH = (
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
# Learning rates so low that a trained network stays good.
GENTLE = ("training.batch_size=2", "optimizer.encoder_lr=1e-5", "optimizer.decoder_lr=1e-5")

Train = Callable[..., list[int]]


@pytest.fixture(scope="module")
def train_in_fork(tiny_recipe: Path, data_folder: Path) -> Iterator[Train]:
    """Trains the tiny recipe with overrides in processes of their own, or resumes it; gives their exit codes."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(
        out: Path, *overrides: str, resume: bool = False, processes: int = 1, init: str = "", **at: Any
    ) -> list[int]:
        assert server.stdin is not None
        assert server.stdout is not None
        asked = {"recipe": "" if resume else str(tiny_recipe), "overrides": overrides, "init": init}
        task = {"data": str(data_folder), "out": str(out), "processes": processes, "signal_at": 0, "kill_at": None}
        task["others"] = []  # further overrides in all processes but the first
        task |= asked | at
        print(json.dumps(task), file=server.stdin, flush=True)
        codes: list[int] = json.loads(server.stdout.readline())
        return codes

    yield run
    server.stdin.close()
    server.stdout.close()
    assert server.wait(timeout=60) == 0


def _left(run: Path) -> dict[str, Any]:
    """What a run leaves: digests of all weights, the entries of metrics.jsonl without what a clock measured, names."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    digests = {
        kind: sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights))).hexdigest()
        for kind, weights in (("network", checkpoint["network"]), ("ema", checkpoint["ema"] or {}))
    }
    digests["model"] = model_identity(run / "model.safetensors")
    history = [
        {key: value for key, value in entry.items() if not key.endswith("_s")}
        for entry in read_history(run / "metrics.jsonl")
    ]
    return {**digests, "history": history, "names": sorted(path.name for path in run.iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(train_in_fork: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_in_fork(out, *RICH) == [0]
    return _left(out)


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("split.csv", 1),
        ("last.ckpt", 1),
        ("last.ckpt", 2),  # of the first epoch, before it is validated
        ("best.safetensors", 1),
        ("metrics.jsonl", 1),
        ("last.ckpt", 3),
        ("model.safetensors", 1),
    ],
)
def test_a_run_killed_while_saving_resumes_bit_for_bit(
    train_in_fork: Train, uninterrupted: dict[str, Any], tmp_path: Path, file: str, number: int
) -> None:
    out = tmp_path / "run"
    assert train_in_fork(out, *RICH, kill_at=[file, number]) == [-signal.SIGKILL]
    assert train_in_fork(out, *RICH) == [2], "the folder is not empty"
    assert train_in_fork(out, resume=True) == [0]
    assert _left(out) == uninterrupted


@pytest.mark.parametrize(
    ("signal_at", "epoch", "batch", "workers"),
    [
        (11, 1, 4, 0),  # the third step of the second epoch: its gradients still want those of the fourth
        (16, 1, 8, 0),  # the last step of an epoch
        (18, 2, 2, 1),  # in the second stage, with a worker that has read ahead
    ],
    ids=["between two steps", "at the end of an epoch", "second stage with a worker"],
)
def test_a_terminated_run_stops_after_a_step_and_resumes_bit_for_bit(
    train_in_fork: Train,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    signal_at: int,
    epoch: int,
    batch: int,
    workers: int,
) -> None:
    out = tmp_path / "run"
    assert train_in_fork(out, *RICH, f"data.workers={workers}", signal_at=signal_at) == [130]
    state = torch.load(out / "last.ckpt", weights_only=True)["state"]
    assert (state["epoch"], state["batch"], state["step"]) == (epoch, batch, 8 * epoch + batch)
    assert train_in_fork(out, resume=True) == [0]
    assert _left(out) == uninterrupted


@pytest.fixture(scope="module")
def by_two(train_in_fork: Train, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that begins with a network that finds something."""
    out = tmp_path_factory.mktemp("by_two") / "run"
    assert train_in_fork(out, *GENTLE, processes=2, init=str(trained_run / "model.safetensors")) == [0, 0]
    return out


def test_two_processes_train_one_model_and_count_every_image_once(
    by_two: Path, trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    model = by_two / "model.safetensors"
    info = read_model_info(model)
    assert model_identity(model) != model_identity(trained_run / "model.safetensors")
    assert len(info.trained_on) == 24 - 6
    assert [entry["epoch"] for entry in read_history(by_two / "metrics.jsonl")] == [1, 2]
    # Steps of 2 crops on each of two processes.
    assert torch.load(by_two / "last.ckpt", weights_only=True)["state"]["step"] == 2 * 16 // (2 * 2)
    score = evaluate(model, data_folder, tmp_path / "val", subset="val", device="cpu", runtime="torch").metrics
    assert score.images == 6
    assert score.positive_dice is not None
    assert score.positive_dice > 0.05, "figures of empty masks would compare nothing"
    for name in ("kaggle_dice", "positive_dice", "miou", "all_empty"):
        assert info.metrics["tuned"][name] == pytest.approx(getattr(score, name), abs=1e-6), name


def test_two_processes_stop_when_one_is_terminated_and_resume_bit_for_bit(
    by_two: Path, train_in_fork: Train, trained_run: Path, tmp_path: Path
) -> None:
    out, init = tmp_path / "run", str(trained_run / "model.safetensors")
    assert train_in_fork(out, *GENTLE, processes=2, init=init, signal_at=4 + 2) == [130, 130]
    state = torch.load(out / "last.ckpt", weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) == (1, 2)
    assert train_in_fork(out, processes=2, resume=True) == [0, 0]
    assert _left(out) == _left(by_two)


def test_processes_whose_machines_chose_otherwise_train_the_recipe_of_the_first(
    by_two: Path, train_in_fork: Train, trained_run: Path, tmp_path: Path
) -> None:
    out, init = tmp_path / "run", str(trained_run / "model.safetensors")
    others = ["training.batch_size=4", "training.epochs=7", "data.crop_hw=[32,32]"]
    assert train_in_fork(out, *GENTLE, processes=2, init=init, others=others) == [0, 0]
    assert _left(out) == _left(by_two)


def test_an_error_of_the_main_process_ends_both(train_in_fork: Train, tmp_path: Path) -> None:
    assert train_in_fork(tmp_path / "run", "data.folds=99", processes=2) == [2, 2]
