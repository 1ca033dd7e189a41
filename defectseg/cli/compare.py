"""`defectseg compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import (
    DATA,
    BitDepth,
    Device,
    Group,
    Json,
    MaxPixels,
    Overwrite,
    Runtime,
    Split,
    Tta,
    Verbose,
)
from defectseg.cli.show import finish, print_json, print_rows, shown, warn
from defectseg.errors import ExitCode, UsageError

_SIDE = "model, run folder of train --fold all (out of fold), output folder of predict, or predictions.csv."


def compare(
    a: Annotated[str, Argument(help=f"What runs today: {_SIDE}", metavar="A")],
    b: Annotated[str, Argument(help="What may replace it: as A.", metavar="B")],
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, Option(help="Folder to write; absent or empty.", metavar="DIR")] = None,
    subset: Annotated[
        Literal["all", "train", "val", "test"], Option(help="Images to compare on: all, or a part of split.csv.")
    ] = "all",
    split: Split = None,
    group: Group = None,
    margin: Annotated[float, Option(help="Loss of Kaggle Dice that counts as none.", min=0, max=1)] = 0.01,
    require: Annotated[
        Literal["better", "not-worse"] | None,
        Option(help="Exit with 12 unless B is better, or certainly not worse by more than --margin; no veto."),
    ] = None,
    allow_seen: Annotated[
        bool, Option("--allow-seen", help="Also compare a model on images that it was trained on.")
    ] = False,
    allow_unknown: Annotated[
        bool, Option("--allow-unknown", help="With --require, also take results whose model is not known.")
    ] = False,
    images: Annotated[
        Path | None, Option(help="Without --data: folder of the images, for pictures.", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say whether B is better than A on labelled images, and how sure that is.

    The unit is the group of images: --group, or split.csv, or groups.csv, or else each image. The verdict is about the
    Kaggle Dice; a clear rise of missed or stopped sheets is a veto. The folder --out receives compare.html,
    compare.json, images.csv (the images that changed) and pictures/ (A, label, B).

    Without --data, two results are compared that nobody has labelled: the sheets whose answer changes, and which of
    them to label to decide (to_label.csv).

    Example: defectseg compare old.safetensors new.safetensors --data mill --subset test --require not-worse
    """
    if data is None:
        if require is not None or subset != "all" or split is not None:
            raise UsageError("--require, --subset and --split need labels: give --data DIR.")
        _compare_unlabelled(a, b, out, images, group, overwrite, json_output)
        return
    if images is not None:
        raise UsageError("--images goes without --data DIR, which has its own images.")
    from defectseg.compare.compare import compare as compare_sources
    from defectseg.compare.report import PAGE, sentences, table

    with progress_bar("comparing") as progress:
        done = compare_sources(
            a,
            b,
            data,
            out,
            subset=subset,
            split=split,
            group=group,
            margin=margin,
            require=require,
            allow_seen=allow_seen,
            allow_unknown=allow_unknown,
            overwrite=overwrite,
            device=device,
            runtime=runtime,
            tta=tta,
            bit_depth=bit_depth,
            progress=progress,
        )
    warn([*done.warnings, *(f"left out, {why}" for why in done.unreadable)])
    if json_output:
        print_json(done.to_json())
    else:
        print_rows(table(done.verdict))
        print("\n".join([f"{done.images} images in {done.verdict.groups} groups", *sentences(done.verdict)]))
        if out is not None:
            print(f"Report: {shown(out / PAGE)}")
    if require is not None and not done.verdict.meets(require):
        warn([f"--require {require}: not met"])
        raise typer.Exit(ExitCode.NOT_MET)
    finish(partial=bool(done.unreadable))


def _compare_unlabelled(
    a: str, b: str, out: Path | None, images: Path | None, group: str | None, overwrite: bool, json_output: bool
) -> None:
    from defectseg.compare.report import PAGE
    from defectseg.compare.unlabelled import compare_unlabelled

    done = compare_unlabelled(a, b, out, images=images, group=group, overwrite=overwrite)
    warn(done.warnings)
    if json_output:
        print_json(done.to_json())
        return
    print("\n".join(done.sentences()))
    if out is not None:
        print(f"Report: {shown(out / PAGE)}")
