"""`defectseg predict`."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, Model, Overwrite, Runtime, Tta, Verbose, entries
from defectseg.cli.show import print_json, shown, warn
from defectseg.errors import UsageError


def predict(
    model: Model,
    inputs: Annotated[
        list[str],
        Argument(help="Folders, images or glob patterns; - reads paths from standard input.", metavar="INPUT..."),
    ],
    out: Annotated[Path, Option(help="Folder to write. Results with the same settings are continued.", metavar="DIR")],
    recursive: Annotated[bool, Option("--recursive/--no-recursive", help="Search subfolders.")] = True,
    classes: Annotated[
        str | None, Option(help="Report only these classes, by number or name, e.g. 1,scratch.", metavar="LIST")
    ] = None,
    overwrite: Overwrite = False,
    fail_on_defect: Annotated[
        bool, Option("--fail-on-defect", help="Exit with 10 if any image in --out has a defect.")
    ] = False,
    fail_on_blank: Annotated[
        bool, Option("--fail-on-blank", help="Exit with 3 if any image in --out is blank (shows nothing).")
    ] = False,
    outputs: Annotated[
        str | None, Option(help="Write only these; rle is predictions.csv.", metavar="overlays,masks,rle,regions")
    ] = None,
    overlays: Annotated[
        Literal["all", "defects", "none"] | None, Option(help="Images that get an overlay. Default: all.")
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    workers: Annotated[
        int | None,
        Option(help="Images in the network at once; with --engine ray, cores of each process.", min=1, metavar="N"),
    ] = None,
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    engine: Annotated[
        Literal["local", "ray"],
        Option(help="ray: on the cluster that RAY_ADDRESS names, or in several processes here. See docs/ray.md."),
    ] = "local",
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find defects in images and paint them red.

    The folder --out receives overlays/, masks/, predictions.csv, images.csv, regions.csv, errors.csv, run.json and
    journal.jsonl; --outputs leaves some out. Run the same command again after an interruption, or when there are new
    images: it processes only what is missing.

    Exit codes: 0 done; 10 a defect was found (--fail-on-defect); 3 some images are unreadable (see errors.csv) or blank
    (--fail-on-blank); 4 could not continue. If both 10 and 3 apply, it is 10.

    Example: defectseg predict runs/1/model.safetensors night_shift/ --out results/

    Faster, with an exported model: defectseg predict fast.xml night_shift/ --out results/ --overlays defects
    """
    from defectseg.image.find import find_images
    from defectseg.model.locate import model_paths
    from defectseg.predict.predict import LOCAL, RAY, exit_code_of
    from defectseg.predict.predict import predict as run_prediction
    from defectseg.predict.s3 import SCHEME, find_stored

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
            outputs=entries(outputs),
            overlays=overlays,
            device=device,
            runtime=runtime,
            workers=workers,
            tta=tta,
            bit_depth=bit_depth,
            engine=engine,
            progress=progress,
        )
    warn(run["warnings"])
    if json_output:
        print_json(run)
    else:
        speed = f", {run['images_per_second']} images/s" if run["images_per_second"] else ""
        blank = f", {run['blank']} blank" if run["blank"] else ""
        print(
            f"{run['processed']} images processed{speed}: {run['with_defect']} with a defect{blank}, "
            f"{run['unreadable']} unreadable; {run['already_done']} were done before."
        )
        print(f"Results: {shown(out)}")
    raise typer.Exit(exit_code_of(run, fail_on_defect=fail_on_defect, fail_on_blank=fail_on_blank))


def expand(inputs: Sequence[str]) -> tuple[list[Path], Iterator[Path]]:
    """The paths that the arguments name, with patterns expanded; and the paths that `-` reads from standard input."""
    paths: list[Path] = []
    lines: Iterable[bytes] = ()
    for entry in inputs:
        if not entry.strip():
            raise UsageError("an INPUT is empty, perhaps a shell variable that is not set. Name a folder or an image.")
        if entry == "-":
            lines = sys.stdin.buffer
        elif not Path(entry).exists() and glob.has_magic(entry):
            paths += [Path(match) for match in sorted(glob.glob(entry, recursive=True))] or [Path(entry)]  # noqa: PTH207
        else:
            paths.append(Path(entry))
    return paths, (Path(os.fsdecode(line.rstrip(b"\r\n"))) for line in lines if line.strip())
