"""The command line, called in this process: quick, since torch is imported once for all tests."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from defectseg import errors
from defectseg.cli.main import main


class Ended(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def _call_in(folder: Path, *arguments: object, stdin: str = "") -> Ended:
    """Call `defectseg` in a folder, and put back what it sets for the whole process."""
    logger = logging.getLogger("defectseg")
    before = logger.handlers, logger.level, logger.propagate
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("GOMP_SPINCOUNT", "1")
        patch.setenv("COLUMNS", "200")
        patch.setattr(errors, "spelling", errors.spelling)
        patch.setattr(sys, "argv", ["defectseg", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            logger.handlers, logger.level, logger.propagate = before
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Ended]:
    """`defectseg` in the test's own folder."""
    return lambda *arguments, **options: _call_in(tmp_path, *arguments, **options)


@pytest.fixture
def on_terminal() -> Callable[..., tuple[subprocess.CompletedProcess[bytes], bytes]]:
    """Run a command with stderr, and stdout if it is not given, on a terminal; return it, and what was shown there."""
    import pty

    def run(
        command: list[str], *, stdout: int | None = None, **options: Any
    ) -> tuple[subprocess.CompletedProcess[bytes], bytes]:
        screen, terminal = pty.openpty()
        stdout = terminal if stdout is None else stdout
        done = subprocess.run(command, stdout=stdout, stderr=terminal, timeout=120, check=False, **options)
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(screen, 65536):
                shown += chunk
        except OSError:  # Linux ends the other side so
            pass
        os.close(screen)
        return done, shown

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Calls `defectseg` and wants an exit code, nothing on stdout, and one line on stderr that holds all of `told`."""

    def check(*arguments: object, code: int, told: str | list[str]) -> None:
        ended = _call_in(tmp_path, *arguments)
        assert (ended.code, ended.out) == (code, ""), ended.err
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        for words in [told] if isinstance(told, str) else told:
            assert words in line

    return check
