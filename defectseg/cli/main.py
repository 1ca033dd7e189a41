"""The command line: maps commands to functions and errors to exit codes."""

import atexit
import gc
import io
import logging
import os
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer import Option

from defectseg import errors
from defectseg.cli import (
    benchmark,
    compare,
    data,
    demo,
    drift,
    evaluate,
    explain,
    export,
    info,
    merge,
    predict,
    train,
    tune,
    watch,
)
from defectseg.cli.bars import set_up_logging
from defectseg.cli.show import log
from defectseg.errors import DefectsegError, ExitCode
from defectseg.machine import __version__, allow_gb

# Idle threads of OpenMP and OpenBLAS spin before they sleep, a tenth of a second by default. On a PC that runs other
# programs too, that made a training step up to ten times slower. This many spins (of OpenBLAS, this power of two) are
# enough on a machine that runs nothing else.
_SPIN_COUNT, _SPIN_LOG2 = "30000", "15"

_TyperUsageError: Any = typer.BadParameter.__base__  # click's or typer's own, depending on the version of typer

app = typer.Typer(
    name="defectseg",
    help="Find surface defects on steel, pixel by pixel, and paint them red.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
for _command in (
    *(demo.demo, train.train, evaluate.evaluate, compare.compare, tune.tune, predict.predict, watch.watch),
    *(drift.drift, merge.merge, export.export, explain.explain, benchmark.benchmark, info.info),
):
    app.command()(_command)

_EXIT_CODES = (
    "Exit codes: 0 done; 1 a bug; 2 wrong usage or recipe, or something would be overwritten; 3 done, but some inputs "
    "could not be processed; 4 could not go on; 130 interrupted."
)


def _tell_exit_codes(group: typer.Typer) -> None:
    """Let the help of each command end with the exit codes, unless its text has its own."""
    for command in group.registered_commands:
        if "Exit codes:" not in (getattr(command.callback, "__doc__", "") or ""):
            command.epilog = _EXIT_CODES
    for inner in group.registered_groups:
        assert inner.typer_instance is not None, "it is added with add_typer"
        _tell_exit_codes(inner.typer_instance)


_tell_exit_codes(app)


def _print_version(value: bool) -> None:
    if value:
        print(f"defectseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    max_gb: Annotated[
        float,
        Option(
            help="Most memory for the content of one text file, or for one image in a network.", min=0.1, metavar="GB"
        ),
    ] = 1.5,
) -> None:
    allow_gb(max_gb)


def main() -> None:
    """Run the command line. Every error ends in one message and an exit code."""
    gc.set_threshold(10_000)  # the imports of a command make 50,000 objects that stay
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPIN_LOG2)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own messages name the files that it cannot decode
    errors.spelling = _flag
    set_up_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no file name may break the output
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    try:
        sys.exit(app(prog_name="defectseg", standalone_mode=False))
    except KeyboardInterrupt:  # typer turns the first into an exit code, but not one that comes while it does
        sys.exit(ExitCode.INTERRUPTED)
    except _TyperUsageError as error:
        _fail_usage(error)
    except DefectsegError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory. Close other programs, or use smaller images or tiles.", ExitCode.CANNOT_CONTINUE)
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{what}{error.strerror or error}. Check path, permissions and disk space.", ExitCode.CANNOT_CONTINUE)
    except Exception as error:
        _fail(
            f"unexpected {type(error).__name__}: {error}. This is a bug in defectseg; please report it with the output "
            "of the same command with --verbose.",
            ExitCode.BUG,
        )
    finally:
        # KeyboardInterrupt would end Python's wait for the threads of libraries, which then abort the process.
        _on_interrupt(lambda number, frame: os._exit(ExitCode.INTERRUPTED))
        exec("")  # noqa: S102  # else `python -m` ends by SIGINT, if the interrupt came within an `exec` of text
        atexit.register(_on_interrupt, signal.SIG_IGN)  # called after that wait
        atexit.register(gc.freeze)  # else Python looks through every object again at its end, for 0.06 s


def _on_interrupt(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _fail_usage(error: Any) -> NoReturn:
    """One line instead of typer's box of five; the help if a command was called without any arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(ExitCode.USAGE)
    command = "defectseg" if error.ctx is None else error.ctx.command_path
    message = error.format_message().replace("Value error, ", "")  # pydantic's words
    stop = "" if message.endswith((".", "?")) else "."
    _fail(f"{message}{stop} See: {command} --help", ExitCode.USAGE)


def _flag(name: str, value: object) -> str:
    """A keyword argument of the library as people type it."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {value}"


def _fail(message: str, code: ExitCode) -> NoReturn:
    if log.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    log.error("%s", " ".join(message.split()))
    sys.exit(code)
