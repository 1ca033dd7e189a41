"""Runs commands of defectseg in forked processes, and lets one file operation of a command go wrong.

`conftest.py` starts this file as a process of its own, which loads the libraries once. It reads tasks as JSON lines
from stdin and answers each with a line:

- {"argv": [...], "grey": bool, "fault": {...}}: run a command line in a fork; `grey`: the network is a GreyRuntime;
- `defectseg watch` gets SIGTERM once its journals hold a line for each image, or after `end_s` of the fault;
- with "warm_up": call it in this process, so that forks find made what is made at the first use;
- {"go_on": pid}: let a command that stopped itself go on.

The answer holds the exit code (negative: the signal that killed it; None: it stopped itself), the events that were
counted, the process id, and what the command wrote to stdout and stderr.

Events concern files below the folder `under`: `mkdir`, `create` (opened for writing, or linked), `write`, `fsync` and
`rename` (to this name); `open` (for reading) and `read`. They are those of Python. What C libraries write themselves is
not seen, that is, OpenVINO's `save_model` alone: tests on small disks that are really full cover it. At the n-th of
the events the fault raises an OSError, sends a signal to the own process, kills its children, deletes the file, or lets
reads be short.
A lasting fault happens at every later event, too, as on a full disk.
"""

import _io
import builtins
import gc
import importlib
import io
import json
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

WRITING = ("mkdir", "create", "write", "fsync", "rename")


class Watch:
    """Counts events in the memory `shared`, which outlives the process, and lets the fault happen."""

    def __init__(self, shared: mmap.mmap, *, under: str, events: list[str], at: int = 0, lasting: bool = False) -> None:
        self.shared, self.under, self.events, self.at, self.lasting = shared, under, events, at, lasting
        self.errno = self.signal = 0
        self.unlink = self.short = self.kill_children = False
        self._pid, self._lock = os.getpid(), threading.Lock()

    def is_due(self, event: str, path: Any) -> bool:
        """Count an event; whether the fault happens at it."""
        if event not in self.events or os.getpid() != self._pid or not os.fsdecode(path).startswith(self.under):
            return False
        with self._lock:
            count = int.from_bytes(self.shared[:8], "little") + 1
            self.shared[:8] = count.to_bytes(8, "little")
        return count == self.at or (self.lasting and count > self.at > 0)

    def strike(self, path: Any) -> None:
        """Let the fault happen."""
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno), os.fsdecode(path))
        if self.unlink:
            os.unlink(path)  # noqa: PTH108
        for child in multiprocessing.active_children() if self.kill_children else ():
            child.kill()
        if self.signal:
            os.kill(os.getpid(), self.signal)

    def come(self, event: str, path: Any) -> None:
        """An event."""
        if self.is_due(event, path):
            self.strike(path)


class WatchedFile(io.FileIO):
    """A file whose reads and writes are events."""

    watch: Watch
    path: str

    def write(self, content: Any) -> int:
        """Write, or fail; when it kills, after one half."""
        if self.watch.is_due("write", self.path):
            if self.watch.signal == signal.SIGKILL:
                super().write(memoryview(content)[: len(content) // 2])
            self.watch.strike(self.path)
        return int(super().write(content) or 0)

    def readinto(self, buffer: Any) -> int:
        """Read, or fail, or read less than there is, as network shares do."""
        if self.watch.is_due("read", self.path):
            self.watch.strike(self.path)
            if self.watch.short:
                buffer = memoryview(buffer)[: max(1, len(buffer) // 3)]
        return int(super().readinto(buffer) or 0)

    def readall(self) -> bytes:
        """Read everything, or fail."""
        self.watch.come("read", self.path)
        return super().readall()


def arm(watch: Watch) -> None:
    """Make the file operations of this process events of `watch`."""
    real_open, WatchedFile.watch = io.open, watch

    def watched_open(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Callable[[str, int], int] | None = None,
    ) -> Any:
        if isinstance(file, int) or not os.fsdecode(file).startswith(watch.under):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        writes = bool(set("wax+") & set(mode))
        watch.come("create" if set("wax") & set(mode) else "open", file)
        raw = WatchedFile(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.path = os.fsdecode(file)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
        kind = io.BufferedReader if not writes else io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffer = kind(raw, size)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    builtins.open = io.open = _io.open = watched_open

    def watched(name: str, event: str, place: int) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            path = arguments[place]
            watch.come(event, os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)  # noqa: PTH115
            return real(*arguments, **options)

        setattr(os, name, call)

    changes = (("rename", "rename", 1), ("replace", "rename", 1), ("link", "create", 1), ("mkdir", "mkdir", 0))
    for name, event, place in changes:
        watched(name, event, place)
    vars(os)["fsync"] = lambda number: None  # takes longer than everything else, and no power cut follows
    watched("fsync", "fsync", 0)
    watched("sendfile", "read", 1)


def load(kind: str) -> None:
    """Import what the commands need, but compute nothing: threads of libraries would not survive the fork."""
    import cv2
    import typer

    import defectseg.cli.main
    import defectseg.evaluate.report
    import defectseg.formats.coco
    import defectseg.formats.data_import
    import defectseg.predict.merge
    import defectseg.predict.predict
    import defectseg.predict.watch
    import defectseg.runtime.load
    import defectseg.tune.tune

    sys.path.insert(0, str(Path(__file__).parents[1]))
    importlib.import_module("conftest")  # that of all tests

    cv2.setNumThreads(1)
    main = vars(defectseg.cli.main)
    main["app"] = typer.main.get_command(main["app"])  # else made anew for every command
    if kind == "torch":
        import torch

        import defectseg.export.export
        import defectseg.runtime.cache
        import defectseg.runtime.openvino
        import defectseg.runtime.torch
        import defectseg.train.run
        import defectseg.train.train

        torch.set_num_threads(1)
        # Drawing takes longer than the training.
        vars(defectseg.train.run)["draw_curves"] = lambda path, history: path.touch()


def use_grey_levels() -> None:
    """Let the network be the GreyRuntime of the tests, which knows its answer from the grey level of each pixel."""
    import defectseg.evaluate.evaluate
    import defectseg.predict.camera
    import defectseg.predict.predict
    import defectseg.predict.watch
    import defectseg.tune.tune
    from defectseg.config import InferenceConfig
    from defectseg.model.info import Thresholds

    make = importlib.import_module("conftest").GreyRuntime
    runtime = make(Thresholds(gate=(0.5, 0.5), pixel=(0.5, 0.5), min_area_px=(0, 0)), InferenceConfig())
    for module in (defectseg.predict.predict, defectseg.evaluate.evaluate, defectseg.tune.tune):
        vars(module)["load_runtime"] = lambda *arguments, **options: (runtime, runtime.info)
    vars(defectseg.predict.camera).update(POLL_S=0.01, REST=0, STEADY_S=0.005, BROKEN_S=0.03)
    vars(defectseg.predict.watch).update(FULL_S=0.02, NOTICE_S=0.01)


def run(task: dict[str, Any], shared: mmap.mmap, said: Path) -> int:
    """In the fork: run the command. Returns its exit code."""
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.setsid()
    signal.alarm(120)
    fault = {name: value for name, value in task["fault"].items() if name != "end_s"}
    action = {
        name: fault.pop(name) for name in ("errno", "signal", "unlink", "short", "kill_children") if name in fault
    }
    watch = Watch(shared, **fault)
    vars(watch).update(action)
    arm(watch)
    return call(task)


def call(task: dict[str, Any]) -> int:
    """Call the command line. Returns its exit code."""
    from defectseg.cli.main import main

    if task["grey"]:
        use_grey_levels()
    sys.argv = ["defectseg", *task["argv"]]
    if sys.argv[1] == "watch":
        end_s = task.get("fault", {}).get("end_s", 60)
        threading.Thread(target=end_watch, args=[time.monotonic() + end_s], daemon=True).start()
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def end_watch(end_s: float) -> None:
    """Send SIGTERM to this process once every image is in a journal, and at the latest at a time."""
    images, out = Path(sys.argv[3]), Path(sys.argv[sys.argv.index("--out") + 1])
    count = len(list(images.iterdir()))
    time.sleep(0.2)  # it first has to wait for this signal
    while time.monotonic() < end_s:
        lines = {line for path in out.glob("*/journal.jsonl") for line in path.read_bytes().splitlines(keepends=True)}
        if sum(line.endswith(b"\n") for line in lines) >= count:
            break
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def answer(pid: int, shared: mmap.mmap, said: Path) -> dict[str, Any]:
    """Wait until a fork ends or stops itself."""
    status = os.waitpid(pid, os.WUNTRACED)[1]
    code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
    events = int.from_bytes(shared[:8], "little")
    return {"code": code, "events": events, "pid": pid, "said": said.read_text(errors="replace")}


def serve() -> None:
    """Read tasks and answer them."""
    load(sys.argv[1])
    gc.freeze()  # what forks do not touch is not copied
    forks: dict[int, tuple[mmap.mmap, Path]] = {}
    folder = Path(tempfile.mkdtemp(prefix="defectseg-faults-"))
    for line in sys.stdin:
        task = json.loads(line)
        if task.get("warm_up"):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as told:
                code = call(task)
            print(json.dumps({"code": code, "events": 0, "pid": 0, "said": told.getvalue()}), flush=True)
            continue
        if "go_on" in task:
            pid = task["go_on"]
            os.kill(pid, signal.SIGCONT)
        else:
            shared, said = mmap.mmap(-1, 8), folder / str(len(forks))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = run(task, shared, said)
                finally:
                    sys.stderr.flush()
                    sys.stdout.flush()
                    os._exit(code)
            forks[pid] = shared, said
        print(json.dumps(answer(pid, *forks[pid])), flush=True)


if __name__ == "__main__":
    serve()
