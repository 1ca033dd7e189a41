"""The command line: a map from commands to functions, and from errors to exit codes."""

import io
import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from defectseg.cli import benchmark, data, demo, evaluate, export, info, predict, train, tune
from defectseg.cli.bars import set_up_logging
from defectseg.cli.options import Verbose, state
from defectseg.errors import DefectsegError, ExitCode
from defectseg.machine import __version__

# Threads of torch wait for each other by spinning, a tenth of a second long unless told otherwise. On a PC where other
# programs run too, that made a training step up to ten times as slow; this is long enough where nothing else runs.
_SPIN_COUNT = "30000"

_TyperUsageError: Any = typer.BadParameter.__base__  # click's or typer's own, by the version of typer

app = typer.Typer(
    name="defectseg",
    help="Find surface defects on steel, pixel by pixel, and paint them red.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("tune")(tune.tune)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("benchmark")(benchmark.benchmark)
app.add_typer(data.app, name="data")
app.command("info")(info.info)


def _print_version(value: bool) -> None:
    if value:
        print(f"defectseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Find surface defects on steel, pixel by pixel, and paint them red."""


def main() -> None:
    """Run the command line; every error ends in one message and an exit code of its own."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # it logs each file that it cannot decode; so do we, in words
    set_up_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no file name may break the output
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(app(standalone_mode=False))
    except _TyperUsageError as error:
        _fail_usage(error)
    except DefectsegError as error:
        _fail(error.worded(_flag), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", ExitCode.INTERRUPTED)
    except MemoryError:
        _fail("out of memory. Close other programs, or use smaller images or tiles.", ExitCode.CANNOT_CONTINUE)
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        _fail(
            f"{what}{error.strerror or error}. Check the path, its permissions and the space on the disk.",
            ExitCode.CANNOT_CONTINUE,
        )
    except Exception as error:
        _fail(
            f"unexpected {type(error).__name__}: {error}. This is a bug in defectseg; please report it"
            + ("." if state.verbose else " with the output of the same command with --verbose."),
            ExitCode.BUG,
        )


def _fail_usage(error: Any) -> NoReturn:
    """One line in place of typer's box of five; the help itself, where a command was given nothing at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(int(ExitCode.USAGE))
    command = "defectseg" if error.ctx is None else error.ctx.command_path
    message = error.format_message()
    stop = "" if message.endswith((".", "?")) else "."
    _fail(f"{message}{stop} See: {command} --help", ExitCode.USAGE)


def _flag(name: str, value: object) -> str:
    """A keyword argument of the library as people type it."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {value}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: ExitCode) -> NoReturn:
    if state.verbose and code is not ExitCode.INTERRUPTED:
        traceback.print_exc()
    logging.getLogger("defectseg").error("%s", " ".join(message.split()))
    sys.exit(int(code))
