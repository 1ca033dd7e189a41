"""`defectseg watch`."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer import Argument, Option

from defectseg.cli import options
from defectseg.cli.options import entries
from defectseg.cli.show import print_json, shown
from defectseg.errors import ExitCode

_SWITCH_S = 0.0005  # else each system call of an image may wait 5 ms for the thread that writes tables


def watch(
    model: options.Model,
    folder: Annotated[Path, Argument(help="Folder that the camera writes into; subfolders, too.", metavar="FOLDER")],
    out: Annotated[Path, Option(help="Folder to write: one folder for each day, and health.json.", metavar="DIR")],
    fail_on: Annotated[
        str | None, Option(help="Tell --webhook about sheets that meet one of these.", metavar="CLASS[:FIELD=NUMBER]")
    ] = None,
    webhook: Annotated[
        str | None, Option(help="http(s) address. A secret one belongs in", metavar="URL", envvar="DEFECTSEG_WEBHOOK")
    ] = None,
    classes: options.Classes = None,
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
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Find defects in the images that a camera writes into a folder, as they come.

    Results are in DIR/YYYY-MM-DD, by the local date of the image's time, and look like those of predict. Pictures are
    written at once, tables at most once a minute. Half-written files are waited for. DIR/health.json tells how it goes.

    SIGTERM and Ctrl-C finish the images in work and write the tables. The same command continues, and handles each
    image once. docs/watch.md has a service that starts by itself.

    Exit codes: 0 stopped by SIGTERM; 130 by Ctrl-C; 2 wrong usage; 4 it could not go on.

    Example: defectseg watch line8.xml /mnt/camera --out /data/line1
    """
    from defectseg.model.locate import model_paths
    from defectseg.predict.predict import load
    from defectseg.predict.tables import choose_outputs
    from defectseg.predict.watch import check_folders
    from defectseg.predict.watch import watch as run_watch

    sys.setswitchinterval(_SWITCH_S)
    requests: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if len(requests) > 2:  # one request may come twice, for the process and for its group
            os._exit(ExitCode.INTERRUPTED)  # costs no result, as little as kill -9
        requests.append(number)

    check_folders(folder, out)
    choice = choose_outputs(entries(outputs), overlays, options.parse_mm_per_px(mm_per_px), group)
    loaded = load(
        model_paths(model),
        classes=entries(classes),
        device=device,
        runtime=runtime,
        workers=workers,
        tta=tta,
        bit_depth=bit_depth,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    health = run_watch(loaded, folder, out, choice, fail_on=fail_on, webhook=webhook, stopped=lambda: bool(requests))
    if json_output:
        print_json(health)
    else:
        counts = ", ".join(
            f"{health[name]} {name.replace('_', ' ')}" for name in ("with_defect", "blank", "unreadable")
        )
        latency = "".join(f", {name} {value_s} s" for name, value_s in health["latency_s"].items())
        print(f"{health['processed']} images processed: {counts}. From file to result{latency}.")
        print(f"Results: {shown(out)}")
    raise typer.Exit(ExitCode.INTERRUPTED if signal.SIGINT in requests else ExitCode.DONE)
