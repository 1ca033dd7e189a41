"""What the command line writes to stderr: log messages and progress."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from defectseg.errors import ExitCode, printable
from defectseg.machine import is_main_process
from defectseg.progress import Progress

LINE_EVERY_S = 15.0
PATIENCE_S = 1.0

log = logging.getLogger("defectseg")


def set_up_logging() -> None:
    """Send the log messages of the library to stderr; warnings and errors are marked."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    log.handlers = [handler]
    log.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    log.propagate = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage())
        return f"{record.levelname.lower()}: {message}" if record.levelno >= logging.WARNING else message


@contextmanager
def progress_bar(what: str, *, after_interrupt: str = "") -> Iterator[Progress]:
    """Show progress: a bar on a terminal that can draw one, otherwise a plain line every 15 seconds.

    Args:
        what: the work, such as "predicting".
        after_interrupt: advice that is logged after Ctrl-C.
    """
    on_screen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and is_main_process()
    try:
        with _drawn(what) if on_screen else nullcontext(_lines(what)) as progress, _interrupted_at(progress) as step:
            yield step
    except KeyboardInterrupt:
        log.warning("%s was interrupted. %s", what, after_interrupt)
        raise


@contextmanager
def _interrupted_at(progress: Progress) -> Iterator[Progress]:
    """Raise KeyboardInterrupt for Ctrl-C and SIGTERM at the next step, or after PATIENCE_S if there is none.

    Raised anywhere, it could leave a lock inside a thread pool taken, and the command would never end. A signal that
    follows does not disturb the clean-up; after PATIENCE_S more, it ends the process at once.
    """
    if sys.platform == "win32":  # has no timers
        yield progress
        return
    came_s: float | None = None

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came_s
        if came_s is None:
            came_s = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        elif time.monotonic() - came_s > 2 * PATIENCE_S:
            os._exit(ExitCode.INTERRUPTED)

    def step(done: int, total: int, text: str = "") -> None:
        progress(done, total, text)
        if came_s is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    handlers = {signal.SIGINT: remember, signal.SIGTERM: remember, signal.SIGALRM: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield step
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _drawn(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    console = Console(stderr=True)
    name, text_column = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text_column)
    before = log.handlers
    log.handlers = [RichHandler(console=console, show_time=False, show_path=False, markup=False)]
    try:
        with Display(*columns, console=console, transient=True) as display:
            task = display.add_task(what, total=None, text="")

            def move(done: int, total: int, text: str = "") -> None:
                display.update(task, completed=done, total=total or None, text=text)

            yield move
    finally:
        log.handlers = before


def _lines(what: str) -> Progress:
    spoke = time.monotonic()

    def say(done: int, total: int, text: str = "") -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= LINE_EVERY_S:
            spoke = time.monotonic()
            of = f" of {total}" if total else ""
            log.info("%s", f"{what}: {done}{of} {text}".rstrip())

    return say
