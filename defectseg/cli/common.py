"""What the commands share: logging, errors, progress, flags that several have."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from defectseg.errors import ExitCode, MissingExtraError
from defectseg.image.whole import MAX_PIXELS, allow_pixels

_LOG_EVERY_S = 15.0


def _set_verbose(value: bool) -> bool:
    if value:
        logging.getLogger("defectseg").setLevel(logging.DEBUG)
        state.verbose = True
    return value


def _allow_pixels(count: int | None) -> int | None:
    allow_pixels(MAX_PIXELS if count is None else count)
    return count


@dataclass
class _State:
    verbose: bool = False


state = _State()

Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show details, and the traceback of an error.", callback=_set_verbose)
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="Library that computes: auto takes torch on a GPU and openvino on a CPU.",
        metavar="auto|torch|openvino|onnx",
    ),
]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="Average over 4 mirrored views of each image, or over 8 where it is square. Default: what MODEL says.",
        metavar="none|flips|turns",
    ),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        help="Bits that 16-bit files hold. Default: what their TIFF tag says, else what the model was trained with, "
        "else 16.",
        min=9,
        max=16,
        metavar="BITS",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        help=f"Images with more pixels than this are not decoded, to save memory. Default: {MAX_PIXELS}.",
        callback=_allow_pixels,
        min=1,
        max=2**30,  # OpenCV's own limit
        metavar="N",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")]


def set_up_logging() -> None:
    """Send the library's messages to stderr, warnings marked as such."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("defectseg")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    logger.propagate = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return f"{record.levelname.lower()}: {message}" if record.levelno >= logging.WARNING else message


def is_main_process() -> bool:
    """False in all but the first of the processes that torchrun starts: one of them speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Raise MissingExtraError where one of the packages is not installed; nothing is imported."""
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(what, extra)


class Bar(Protocol):
    """A progress display."""

    def start(self, total: int) -> None:
        """Say how many steps there are."""

    def advance(self) -> None:
        """Say that one more step is done."""

    def move(self, done: int, total: int, text: str = "") -> None:
        """Say how many steps are done, of how many."""


@contextmanager
def progress(what: str, *, after_interrupt: str = "") -> Iterator[Bar]:
    """A bar on a terminal; elsewhere a plain line every 15 seconds. An interruption is told, with what to do then."""
    try:
        with _display(what) as bar:
            yield bar
    except KeyboardInterrupt:
        logging.getLogger("defectseg").warning("%s was interrupted. %s", what, after_interrupt)
        raise


@contextmanager
def _display(what: str) -> Iterator[Bar]:
    if not (sys.stderr.isatty() and is_main_process()):
        yield _PlainBar(what)
        return
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    logger = logging.getLogger("defectseg")
    before = logger.handlers
    logger.handlers = [RichHandler(console=console, show_time=False, show_path=False, markup=False)]
    try:
        with Progress(*columns, console=console, transient=True) as display:
            yield _RichBar(display, what)
    finally:
        logger.handlers = before


class _RichBar:
    def __init__(self, display: Any, what: str) -> None:
        self._display = display
        self._task = display.add_task(what, total=None, text="")

    def start(self, total: int) -> None:
        self._display.update(self._task, total=total)

    def advance(self) -> None:
        self._display.update(self._task, advance=1)

    def move(self, done: int, total: int, text: str = "") -> None:
        self._display.update(self._task, completed=done, total=total, text=text)


class _PlainBar:
    def __init__(self, what: str) -> None:
        self._what = what
        self._done = 0
        self._total = 0
        self._spoke = time.monotonic()

    def start(self, total: int) -> None:
        self._total = total

    def advance(self) -> None:
        self.move(self._done + 1, self._total)

    def move(self, done: int, total: int, text: str = "") -> None:
        self._done, self._total = done, total
        if time.monotonic() - self._spoke >= _LOG_EVERY_S:
            self._spoke = time.monotonic()
            logging.getLogger("defectseg").info("%s", f"{self._what}: {done} of {total} {text}".rstrip())


def bit_depth_hint(bit_depth: int) -> str:
    """The flag that mends what a LowBitDepth tells, and the one that says that nothing is wrong."""
    return f"If so, give --bit-depth {bit_depth}; if the range is full, --bit-depth 16."


def print_json(content: Any) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Sequence[str]], *, align_right: bool = True) -> None:
    """Print a table to stdout in aligned columns without a frame, the columns after the first to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 or not align_right else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def finish(code: ExitCode) -> None:
    """End the command with an exit code."""
    if code is not ExitCode.DONE:
        raise typer.Exit(int(code))


def shown(path: Path) -> str:
    """A path as people type it: relative to the current folder where that is shorter."""
    try:
        relative = path.resolve().relative_to(Path.cwd())
    except ValueError:
        return str(path)
    return str(relative)
