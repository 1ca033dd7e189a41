"""What other command lines have taught people to expect: completion, colours, JSON, and the same on other systems."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main

import defectseg
from defectseg.cli.main import app
from defectseg.config import shipped_recipes

Call = Callable[..., Any]
OnTerminal = Callable[..., tuple[subprocess.CompletedProcess[bytes], bytes]]

COMMAND = [sys.executable, "-m", "defectseg"]
UNSET = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in UNSET} | {
    "PYTHONPATH": str(Path(defectseg.__file__).parents[1]),
    "TERM": "xterm",
}


def _commands(group: Any, *names: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


# Completion


def _completed(shell: str, typed: str) -> str:
    """What pressing Tab offers, as the script of the shell asks for it."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - (not typed.endswith(" ")))}
    asked = {"_DEFECTSEG_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": typed}
    done = subprocess.run(
        COMMAND,
        env={**ENVIRONMENT, **words, **asked, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completes_commands_recipes_choices_and_flags(shell: str) -> None:
    for typed, offered, others in (
        ("defectseg ev", ["evaluate"], ["explain"]),
        ("defectseg train ", [*shipped_recipes()], ["--fold"]),
        ("defectseg train sev", ["severstal", "severstal-small"], ["neu900"]),
        ("defectseg predict --runtime ", ["auto", "torch", "openvino", "onnx"], ["flips"]),
        ("defectseg data split --fol", ["--folds"], ["--seed"]),
    ):
        told = _completed(shell, typed)
        assert [word for word in offered if word not in told] == [], typed
        assert [word for word in others if word in told] == [], typed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_completion_can_be_shown_for_each_shell(shell: str) -> None:
    environment = {**ENVIRONMENT, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [*COMMAND, "--show-completion", shell], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "_DEFECTSEG_COMPLETE" in shown.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_completes_after_installing(tmp_path: Path) -> None:
    """The installed file is read by a real bash, which then asks a real `defectseg`."""
    environment = {**ENVIRONMENT, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    subprocess.run([*COMMAND, "--install-completion", "bash"], env=environment, timeout=60, check=True)
    (tmp_path / "defectseg").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m defectseg "$@"\n')
    (tmp_path / "defectseg").chmod(0o755)
    script = (
        'PATH="$HOME:$PATH"; . ~/.bashrc; COMP_WORDS=(defectseg train sev); COMP_CWORD=2; '
        "$(complete -p defectseg | sed 's/.*-F \\([^ ]*\\).*/\\1/') defectseg; echo \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert sorted(done.stdout.split()) == ["severstal", "severstal-small"], done.stderr


def test_completion_loads_no_library_of_the_trade() -> None:
    code = (
        "import atexit, sys; from defectseg.cli.main import main; sys.argv = ['defectseg'];"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    asked = {"_DEFECTSEG_COMPLETE": "complete_bash", "COMP_WORDS": "defectseg train sev", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, **asked}, capture_output=True, text=True, check=True
    )
    assert "severstal" in done.stdout
    loaded = set(done.stderr.split())
    assert "defectseg.cli.train" in loaded
    assert loaded.isdisjoint({"torch", "openvino", "numpy", "cv2", "scipy", "pandas", "rich"})


# Colours


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["data"],
        ["predcit"],
        ["predict", "m", "nowhere", "--out", "o"],
        ["data", "synthesize", "--out", "s"],
    ],
    ids=" ".join,
)
def test_a_pipe_gets_no_escape_codes(arguments: list[str], variables: dict[str, str], tmp_path: Path) -> None:
    environment = ENVIRONMENT | variables
    size = ["--images", "2", "--size", "64x128"] if "synthesize" in arguments else []
    done = subprocess.run(
        [*COMMAND, *arguments, *size], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.stdout + done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("variables", "colours", "escapes"),
    [({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
    ids=str,
)
def test_a_terminal_gets_colours_unless_it_or_its_user_wants_none(
    variables: dict[str, str], colours: bool, escapes: bool, on_terminal: OnTerminal, tmp_path: Path
) -> None:
    command = [*COMMAND, "data", "synthesize", "--out", "sheets", "--images", "3", "--size", "64x128"]
    done, shown = on_terminal(command, cwd=tmp_path, env=ENVIRONMENT | variables)
    assert done.returncode == 0
    assert shown.endswith(b"3 sheets: sheets\r\n")
    assert (b"m\xe2\x94\x81" in shown) is colours, "a bar that begins with a colour"
    assert (b"\x1b[" in shown) is escapes


# JSON

# Its steps are for reading, and its results are files: run/, evaluation/metrics.json, predictions/run.json.
WITHOUT_JSON = {"demo"}


def test_every_command_that_reports_can_do_so_in_json() -> None:
    lacking = {
        name
        for name, command in _commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert lacking == WITHOUT_JSON


def test_synthesize_tells_in_json_what_it_made(call: Call) -> None:
    made = call("data", "synthesize", "--out", "sheets", "--images", "2", "--size", "64x128", "--json")
    assert (made.code, json.loads(made.out)) == (0, {"images": 2, "out": "sheets"})


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_watch_tells_in_json_how_it_went(call: Call, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8))
    health, patience_s = tmp_path / "out" / "health.json", time.monotonic() + 120

    def stop() -> None:
        while time.monotonic() < patience_s and '"processed": 1' not in (health.read_text() if health.exists() else ""):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    done = call("watch", trained_run, "in", "--out", "out", "--json")
    thread.join()
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["processed"], told["unreadable"], told["state"]) == (1, 0, "stopped")


@pytest.mark.parametrize(
    ("encoding", "told"), [("utf-8", '"schön−"'), ("cp1252", r'"sch\u00f6n\u2212"'), ("ascii", r'"sch\u00f6n\u2212"')]
)
def test_json_can_be_read_as_utf8_whatever_the_encoding_of_stdout(encoding: str, told: str) -> None:
    code = "from defectseg.cli.show import print_json; print_json('schön−')"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env={**ENVIRONMENT, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode("utf-8").strip() == told


# Other systems


POSIX_ONLY = {
    "os": (
        *("fork", "forkpty", "killpg", "getpgid", "setsid", "getuid", "geteuid", "getloadavg", "sysconf", "uname"),
        *("sched_getaffinity", "mkfifo", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "statvfs", "pread", "chown"),
    ),
    "signal": (
        "setitimer",
        "getitimer",
        "ITIMER_REAL",
        "SIGALRM",
        "SIGKILL",
        "SIGHUP",
        "sigwaitinfo",
        "pthread_sigmask",
    ),
    "time": ("tzset",),
}
WITHOUT = """
import json, os, signal, sys, time, types
import cv2, filelock, matplotlib.figure, numpy, openvino, pandas, platformdirs, rich.console, scipy.ndimage, typer
import subprocess, tempfile, multiprocessing, ctypes.util, PIL.Image, jinja2, pydantic, safetensors.numpy, zipfile

# The lock for Unix is loaded already, so it keeps what it needs.
sys.modules[filelock.FileLock.__module__].os = types.SimpleNamespace(**vars(os))
for module, names in json.loads(sys.argv[1]).items():
    for name in names:
        delattr(sys.modules[module], name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
from defectseg.cli.main import main
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["defectseg", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what only Linux and its relatives have")
def test_commands_work_without_what_only_posix_has(call: Call, trained_run: Path, tmp_path: Path) -> None:
    """The nearest that Linux can say about Windows: paths and open files still behave as on Linux."""
    assert call("export", trained_run, "--format", "openvino", "--out", "line.xml").code == 0
    calls = [
        ["data", "synthesize", "--out", "sheets", "--images", "6", "--size", "64x128"],
        ["data", "check", "sheets", "--out", "check"],
        ["data", "split", "sheets", "--folds", "2"],
        ["data", "export", "coco", "sheets", "--out", "coco"],
        ["data", "import", "coco", "--out", "again"],
        ["predict", "line.xml", "sheets/train_images", "--out", "results", "--device", "cpu"],
        ["evaluate", "--predictions", "results", "--data", "sheets", "--out", "report"],
        ["info", "line.xml"],
        ["info"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(POSIX_ONLY), json.dumps(calls)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "index.html").is_file()
    assert (tmp_path / "report" / "report.html").is_file()
