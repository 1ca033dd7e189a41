"""What commands print: tables, JSON and paths to stdout, warnings to stderr."""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from defectseg.errors import ExitCode

log = logging.getLogger("defectseg")

_NAMED = 3  # images that meet a rule


def print_json(content: Any) -> None:
    """Print one JSON value. Programs read it as UTF-8, so it is ASCII where stdout has another encoding (Windows)."""
    encoding = sys.stdout.encoding or "utf-8"  # none: a string of a test
    print(json.dumps(content, indent=2, ensure_ascii=encoding.lower() not in ("utf-8", "utf8")))


def print_rows(rows: Sequence[Sequence[str]], *, align_right: bool = True) -> None:
    """Print a table in aligned columns without a frame, all but the first column to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column and align_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def shown(path: Path) -> str:
    """A path for people: relative to the current folder if it lies there."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else path)


def print_run(run: Mapping[str, Any], out: Path, done: str, *, more: str = "", json_output: bool) -> None:
    """Print the run.json of an output folder of predict; or what was done, the counts, and the rules that are met."""
    from defectseg.predict.tables import INDEX

    warn(run["warnings"])
    if json_output:
        print_json(run)
        return
    blank = f", {run['blank']} blank" if run["blank"] else ""
    print(f"{done}: {run['with_defect']} with a defect{blank}, {run['unreadable']} unreadable{more}.")
    if count := run["unlike"]["images"]:
        of = run["unlike"]["differs"]
        print(f"{count} images in {shown(out)} look unlike those that the model was trained on: {of}.")
    if rules := run.get("fail_on"):
        named = f": {', '.join(rules['first'][:_NAMED])}" if rules["first"] else ""
        others = f" and {rules['images'] - _NAMED} more" if rules["images"] > _NAMED else ""
        print(f"{rules['images']} images in {shown(out)} meet {rules['rules']}{named}{others}.")
    page = out / INDEX
    print(f"Results: {shown(page if page.exists() else out)}")


def warn(warnings: Iterable[str]) -> None:
    """Log warnings of the library."""
    for warning in warnings:
        log.warning("%s", warning)


def finish(*, partial: bool) -> None:
    """End the command, with exit code 3 if some of its inputs could not be processed."""
    if partial:
        raise typer.Exit(ExitCode.PARTIAL)
