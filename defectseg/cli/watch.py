"""`defectseg watch`."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from defectseg.cli.options import BitDepth, Device, MaxPixels, Model, Runtime, Tta, Verbose, entries
from defectseg.cli.show import log, shown
from defectseg.errors import ExitCode

_ONE_REQUEST_S = 1.0  # one request can arrive twice, for the process and for its group


def watch(
    model: Model,
    folder: Annotated[Path, Argument(help="Folder that the camera writes into; subfolders are searched.")],
    out: Annotated[Path, Option(help="Folder to write: one folder a day, and health.json.", metavar="DIR")],
    classes: Annotated[
        str | None, Option(help="Report only these classes, by number or name, e.g. 1,scratch.", metavar="LIST")
    ] = None,
    webhook: Annotated[
        str | None,
        Option(
            help="Address that is told about sheets that meet --fail-on. Better given by the environment variable, "
            "which other users of the machine do not see.",
            metavar="URL",
            envvar="DEFECTSEG_WEBHOOK",
        ),
    ] = None,
    outputs: Annotated[
        str | None, Option(help="Write only these; rle is predictions.csv.", metavar="overlays,masks,rle,regions")
    ] = None,
    overlays: Annotated[
        Literal["all", "defects", "none"] | None, Option(help="Images that get an overlay. Default: all.")
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    workers: Annotated[
        int | None, Option(help="Images in the network at once; results stay the same.", min=1, metavar="N")
    ] = None,
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    verbose: Verbose = False,
) -> None:
    """Find defects in the images that a camera writes into a folder, as they come.

    Results are in DIR/YYYY-MM-DD, the local date of the image's time, as those of predict. Pictures are written at
    once, tables at most once a minute. Half-written files are waited for. Start the same command again at any time:
    each image is handled once. DIR/health.json tells how it goes.

    It runs until SIGTERM (exit code 0) or Ctrl-C (130), finishes the images in work, and writes the tables. Exit
    code 4: it cannot go on. See docs/watch.md for a service that starts by itself.

    Example: defectseg watch line8.xml /mnt/camera --out /data/line1
    """
    from defectseg.model.locate import model_paths
    from defectseg.predict.watch import watch as run_watch

    with _stop_requests() as requests:
        health = run_watch(
            model_paths(model),
            folder,
            out,
            classes=entries(classes),
            device=device,
            runtime=runtime,
            workers=workers,
            outputs=entries(outputs),
            overlays=overlays,
            tta=tta,
            bit_depth=bit_depth,
            webhook=webhook,
            stopped=lambda: bool(requests),
        )
    latency = health["latency_s"]
    told = f"; from file to result, p50 {latency['p50']} s, p95 {latency['p95']} s" if latency else ""
    print(
        f"{health['processed']} images processed: {health['with_defect']} with a defect, {health['unreadable']} "
        f"unreadable{told}."
    )
    print(f"Results: {shown(out)}")
    raise typer.Exit(ExitCode.INTERRUPTED if signal.SIGINT in requests else ExitCode.DONE)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The signals that asked to stop so far; a later one ends the process at once, which costs no result."""
    requests: list[int] = []
    first_s = 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if requests and time.monotonic() - first_s > _ONE_REQUEST_S:
            os._exit(ExitCode.INTERRUPTED)
        if not requests:
            first_s = time.monotonic()
            requests.append(number)
            log.info("stopping: images in work are finished, and tables written; once more to stop at once")

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]
    before: list[tuple[int, Callable[[int, FrameType | None], object] | int | None]] = []
    before = [(number, signal.signal(number, remember)) for number in numbers]
    try:
        yield requests
    finally:
        for number, handler in before:
            signal.signal(number, handler)
