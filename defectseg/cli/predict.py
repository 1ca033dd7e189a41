"""`defectseg predict`."""

import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, Overwrite, RuntimeName, Tta, Verbose, entries
from defectseg.cli.show import bit_depth_hint, finish, print_json, shown
from defectseg.errors import UsageError


def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file, the run folder of train, or several, comma-separated, whose answers are averaged."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Folders, images, glob patterns, or - for paths on standard input.", metavar="INPUT..."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write; continued if the settings are the same.", metavar="DIR")
    ],
    recursive: Annotated[bool, typer.Option("--recursive/--no-recursive", help="Look into subfolders.")] = True,
    classes: Annotated[
        str | None,
        typer.Option("--classes", help="Report only these, by number or name, e.g. 1,scratch.", metavar="LIST"),
    ] = None,
    overwrite: Overwrite = False,
    fail_on_defect: Annotated[
        bool, typer.Option("--fail-on-defect", help="Exit with 10 if any image in --out has a defect.")
    ] = False,
    fail_on_blank: Annotated[
        bool, typer.Option("--fail-on-blank", help="Exit with 3 if any image in --out is blank: it shows nothing.")
    ] = False,
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            help="Write only these. rle is predictions.csv, regions is regions.csv. Default: all four.",
            metavar="overlays,masks,rle,regions",
        ),
    ] = None,
    overlays: Annotated[
        str | None,
        typer.Option("--overlays", help="Images that get an overlay. Default: all.", metavar="all|defects|none"),
    ] = None,
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Images that the network works on at once. Default: what suits the machine. Results are the same.",
            min=1,
            metavar="N",
        ),
    ] = None,
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find defects in images and paint them red.

    DIR receives overlays/, masks/, predictions.csv, images.csv, regions.csv, errors.csv, run.json and journal.jsonl, or
    less: see --outputs. Run again after an interruption, or with new images, and only what is missing is done.

    Exit codes: 0 done, 10 see --fail-on-defect, 3 some images are unreadable (errors.csv) or see --fail-on-blank,
    4 could not go on. Where both apply, 10 comes before 3.

    Example: defectseg predict runs/1/model.safetensors night_shift/ --out results/

    Quick, from an exported model: defectseg predict fast.xml night_shift/ --out results/ --overlays defects
    """
    from defectseg.image.find import find_images
    from defectseg.image.read import LowBitDepth
    from defectseg.model.locate import model_paths
    from defectseg.predict.predict import exit_code_of
    from defectseg.predict.predict import predict as run_prediction

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
            progress=progress,
        )
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
    if run["low_bit_depth"] is not None:
        low = LowBitDepth(**run["low_bit_depth"])
        logging.getLogger("defectseg").warning("%s %s", low, bit_depth_hint(low.bit_depth))
    finish(exit_code_of(run, fail_on_defect=fail_on_defect, fail_on_blank=fail_on_blank))


def expand(inputs: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Paths that the arguments mean, patterns expanded; and those that `-` means, the lines of standard input."""
    paths: list[Path] = []
    listed: list[Path] = []
    for entry in inputs:
        if not entry.strip():
            raise UsageError("an INPUT is empty, perhaps a shell variable that is not set. Name a folder or an image.")
        if entry == "-":
            listed += [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
        elif not Path(entry).exists() and glob.has_magic(entry):
            paths += [Path(match) for match in sorted(glob.glob(entry, recursive=True))] or [Path(entry)]  # noqa: PTH207
        else:
            paths.append(Path(entry))
    return paths, listed
