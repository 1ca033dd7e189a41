"""The command line itself: errors and exit codes, streams, progress, interruptions."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer

import defectseg
from defectseg.cli import bars
from defectseg.cli.main import app

Call = Callable[..., Any]
OnTerminal = Callable[..., tuple[subprocess.CompletedProcess[bytes], bytes]]

COMMAND = [sys.executable, "-m", "defectseg"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1]), "TERM": "xterm"}


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"defectseg {defectseg.__version__}\n", "")


def _commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)
        else:
            yield (*names, name)


@pytest.mark.parametrize("names", [*_commands(typer.main.get_command(app))], ids=" ".join)
def test_the_help_of_every_command_has_an_example_and_the_exit_codes(call: Call, names: tuple[str, ...]) -> None:
    told = call(*names, "--help").out
    assert f"Example: defectseg {' '.join(names)} " in " ".join(told.split())
    assert told.count("Exit codes: 0 ") + told.count("Exit codes: as those of") == 1


def test_without_arguments_the_help_is_shown(call: Call) -> None:
    done = call("data")
    assert done.code == 2
    assert "synthesize" in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["predcit"], ["No such command 'predcit'", "See: defectseg --help"]),
        (["data", "split", "d", "--folds", "1"], ["--folds", ". See: defectseg data split --help"]),
        (["data", "synthesize"], ["--out", "See: defectseg data synthesize --help"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(refused: Call, arguments: list[str], told: list[str]) -> None:
    refused(*arguments, code=2, told=told)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyError("oops"), 1, ["unexpected KeyError: 'oops'", "a bug in defectseg", "--verbose"]),
        (MemoryError(), 4, ["out of memory"]),
        (OSError(28, "No space left", "a/b.png"), 4, ["a/b.png: No space left", "disk space"]),
        (OSError("odd"), 4, ["error: odd. Check"]),
    ],
)
def test_each_error_has_its_exit_code(
    refused: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, told: list[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("defectseg.image.find.find_images", fail)
    refused("predict", "m", "in", "--out", "out", code=code, told=told)


def test_verbose_adds_the_traceback_of_an_error(call: Call) -> None:
    done = call("predict", "model.safetensors", "nowhere", "--out", "out", "--verbose")
    assert done.code == 4
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("error: nowhere: no such file or folder")


def test_progress_goes_to_stderr_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(bars, "log", logging.Logger("defectseg"))
    bars.set_up_logging()
    with bars.progress_bar("predicting") as progress:
        progress(1, 2)
        progress(2, 0, "b.jpg")
    with pytest.raises(KeyboardInterrupt), bars.progress_bar("predicting", after_interrupt="Go on."):
        raise KeyboardInterrupt

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "predicting: 1 of 2",
        "predicting: 2 b.jpg",
        "warning: predicting was interrupted. Go on.",
    ]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_at_the_next_step_or_soon_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    before = signal.getsignal(stop)
    told: list[str] = []

    def work(step: Callable[[], None]) -> None:
        signal.raise_signal(stop)
        told.append("goes on")
        step()
        told.append("not reached")

    with pytest.raises(KeyboardInterrupt), bars.progress_bar("predicting") as progress:
        work(lambda: progress(1, 2))
    monkeypatch.setattr(bars, "PATIENCE_S", 0.05)
    with pytest.raises(KeyboardInterrupt), bars.progress_bar("predicting"):
        work(lambda: time.sleep(60))
    assert told == ["goes on", "goes on"]
    assert signal.getsignal(stop) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_second_signal_does_not_disturb_the_clean_up_and_a_late_one_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "PATIENCE_S", 0.1)
    told: list[str] = []
    monkeypatch.setattr(os, "_exit", lambda code: told.append(f"exit {code}"))

    def work(progress: Callable[[int, int], None]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            progress(1, 2)
        finally:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.25)
            told.append("cleaned up")
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), bars.progress_bar("predicting") as step:
        work(step)
    assert told == ["cleaned up", "exit 130"]


INTERRUPTED_WITH_A_THREAD = """
import os, signal, threading, time
import defectseg.image.find
from defectseg.cli.main import main

def interrupted(*arguments, **options):
    threading.Thread(target=time.sleep, args=(2,)).start()  # Python waits for it at its end
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    exec("raise KeyboardInterrupt")

defectseg.image.find.find_images = interrupted
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_second_signal_while_python_waits_for_threads_exits_with_130_and_in_silence(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED_WITH_A_THREAD)
    command = [sys.executable, "-m", "script", "predict", "m", "in", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_a_pipe_gets_plain_results(on_terminal: OnTerminal, tmp_path: Path) -> None:
    command = [*COMMAND, "data", "synthesize", "--out", "sheets", "--images", "3", "--size", "64x128"]
    done, shown = on_terminal(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE)

    assert (done.returncode, done.stdout) == (0, b"3 sheets: sheets\n")
    assert b"making sheets" in shown
    assert b"\x1b[" in shown


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_prediction_exits_with_130_and_can_be_continued(
    stop: signal.Signals, call: Call, trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8)
    for number in range(120):
        cv2.imwrite(str(tmp_path / "in" / f"{number:03}.png"), picture)
    journal = tmp_path / "out" / "journal.jsonl"
    with subprocess.Popen(
        [*COMMAND, "predict", str(trained_run), "in", "--out", "out"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        patience = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.005)
        process.send_signal(stop)
        try:
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()

    assert (process.returncode, stdout) == (130, ""), stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"

    done = call("predict", trained_run, "in", "--out", "out", "--json")

    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["processed"] + summary["already_done"] == 120
    assert summary["already_done"] >= 1
