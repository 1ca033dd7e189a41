"""What commands print on stdout: tables, JSON, paths; and how they end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from defectseg.errors import ExitCode


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
