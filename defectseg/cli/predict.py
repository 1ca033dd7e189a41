"""`defectseg predict`."""

import glob
import logging
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import typer
from typer import Argument, Option

from defectseg.cli import options
from defectseg.cli.bars import progress_bar
from defectseg.cli.options import entries
from defectseg.cli.show import log, print_run
from defectseg.errors import DataError, UsageError
from defectseg.machine import check_memory

_LONGEST_LINE_BYTES = 2**16
_BYTES_OF_A_PATH = 400  # in memory, besides its letters


def predict(
    model: options.Model,
    inputs: Annotated[
        list[str],
        Argument(help="Folders, images or glob patterns; - reads paths from standard input.", metavar="INPUT..."),
    ],
    out: Annotated[Path, Option(help="Folder to write. Results with the same settings are continued.", metavar="DIR")],
    recursive: Annotated[bool, Option("--recursive/--no-recursive", help="Search subfolders.")] = True,
    classes: options.Classes = None,
    overwrite: options.Overwrite = False,
    fail_on: options.FailOn = None,
    fail_on_defect: options.FailOnDefect = False,
    fail_on_blank: options.FailOnBlank = False,
    max_unreadable: options.MaxUnreadable = "0",
    outputs: options.Outputs = None,
    overlays: options.Overlays = None,
    mm_per_px: options.MmPerPx = None,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    workers: options.Workers = None,
    tta: options.Tta = None,
    bit_depth: options.BitDepth = None,
    group: options.Group = None,
    max_pixels: options.MaxPixels = None,
    shard: Annotated[
        str | None,
        Option(help="Do part i of n; merge puts all together. auto: from a SLURM array or RANK.", metavar="i/n|auto"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        Option(help="ray: on the cluster that RAY_ADDRESS names, or in several processes here. See docs/ray.md."),
    ] = "local",
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Find defects in images and paint them red.

    The folder --out receives index.html, a page to look through the results, overlays/, masks/, predictions.csv,
    images.csv, regions.csv, errors.csv, run.json and journal.jsonl; --outputs leaves some out, --group adds
    by_group.csv. Run the same command again after an interruption, or when there are new images: it processes only
    what is missing.

    Exit codes: 0 done; 10 a rule is met (--fail-on, --fail-on-defect); 3 more images are unreadable (see errors.csv)
    than --max-unreadable, or some are blank (--fail-on-blank); 2 wrong usage; 4 could not go on; 130 interrupted.
    If both 10 and 3 apply, it is 10.

    Example: defectseg predict runs/1/model.safetensors night_shift/ --out results/

    Faster, with an exported model: defectseg predict fast.xml night_shift/ --out results/ --overlays defects
    """
    if model.endswith(".xml"):
        import defectseg.model.openvino_io  # noqa: F401  # its plugin loads while the others are imported

    from defectseg.image.find import find_images
    from defectseg.model.locate import model_paths
    from defectseg.predict.predict import LOCAL, RAY
    from defectseg.predict.predict import predict as run_prediction
    from defectseg.predict.rules import Tolerance, exit_code_of
    from defectseg.predict.s3 import SCHEME, find_stored
    from defectseg.predict.shards import parse_shard
    from defectseg.predict.tables import choose_outputs

    tolerance = Tolerance.parse(max_unreadable)
    choice = choose_outputs(entries(outputs), overlays, options.parse_mm_per_px(mm_per_px), group)
    own_shard = None if shard is None else parse_shard(shard)
    if own_shard is not None:
        log.setLevel(min(log.level, logging.INFO))  # each shard reports its own, not only the process of RANK 0
    stored = [entry for entry in inputs if entry.startswith(SCHEME)]
    if stored and engine == LOCAL:
        raise UsageError(f"{stored[0]}: object stores are read by Ray only.", go_on={"engine": RAY})
    if stored:
        images = find_stored(inputs, recursive=recursive)
    else:
        images = find_images(*expand(inputs), recursive=recursive, skip=out, keep_faulty=True)
    again = "The same command, without --overwrite," if overwrite else "The same command"
    with progress_bar("predicting", after_interrupt=f"{again} continues it.") as progress:
        run = run_prediction(
            model_paths(model),
            images,
            out,
            classes=entries(classes),
            overwrite=overwrite,
            choice=choice,
            fail_on=options.all_rules(fail_on, fail_on_defect),
            device=device,
            runtime=runtime,
            workers=workers,
            tta=tta,
            bit_depth=bit_depth,
            shard=own_shard,
            engine=engine,
            progress=progress,
        )
    speed = f", {run['images_per_second']} images/s" if run["images_per_second"] else ""
    done, more = f"{run['processed']} images processed{speed}", f"; {run['already_done']} were done before"
    print_run(run, out, done, more=more, json_output=json_output)
    raise typer.Exit(exit_code_of(run, fail_on_blank=fail_on_blank, max_unreadable=tolerance))


def expand(inputs: Sequence[str]) -> tuple[list[Path], Iterator[Path]]:
    """The paths that the arguments name, with patterns expanded; and the paths that `-` reads from standard input."""
    paths: list[Path] = []
    listed: Iterator[Path] = iter(())
    for entry in inputs:
        if not entry.strip():
            raise UsageError("an INPUT is empty, perhaps a shell variable that is not set. Name a folder or an image.")
        if entry == "-":
            listed = _paths_in(sys.stdin.buffer)
        elif not Path(entry).exists() and glob.has_magic(entry):
            paths += [Path(match) for match in sorted(glob.glob(entry, recursive=True))] or [Path(entry)]  # noqa: PTH207
        else:
            paths.append(Path(entry))
    return paths, listed


def _paths_in(lines: BinaryIO) -> Iterator[Path]:
    """The paths in a list that may be long, but neither endless nor something else. Raises DataError."""
    needed_bytes = 0
    while line := lines.readline(_LONGEST_LINE_BYTES):
        needed_bytes += _BYTES_OF_A_PATH + 4 * len(line)
        check_memory("the list on standard input", needed_bytes)
        if len(line) == _LONGEST_LINE_BYTES or b"\0" in line:
            raise DataError("standard input: no list of paths; expected one a line, in UTF-8 and without zero bytes.")
        if line.strip():
            # A list that Windows wrote may begin with a mark.
            yield Path(os.fsdecode(line.removeprefix(BOM_UTF8).rstrip(b"\r\n")))
