"""`defectseg compare`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import DATA, BitDepth, Device, Group, Json, MaxPixels, Overwrite, Verbose
from defectseg.cli.show import finish, print_json, print_rows, shown, warn
from defectseg.errors import ExitCode, UsageError

_KINDS = "model, run folder of train --fold all (out of fold), output folder of predict, or prediction file (CSV)."


def compare(
    a: Annotated[str, Argument(help=f"What runs today: {_KINDS}", metavar="A")],
    b: Annotated[str, Argument(help="What may replace it.", metavar="B")],
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, Option(help="Folder to write; absent or empty.", metavar="DIR")] = None,
    subset: Annotated[
        Literal["all", "val", "test"], Option(help="Images to compare on: all, or a part of split.csv.")
    ] = "all",
    group: Group = None,
    margin: Annotated[float, Option(help="Loss of Kaggle Dice that counts as none.", min=0, max=1)] = 0.01,
    require: Annotated[
        Literal["better", "not-worse"] | None, Option(help="Exit with 12 unless this is certain and there is no veto.")
    ] = None,
    allow_seen: Annotated[
        bool, Option("--allow-seen", help="Compare even on images that a model was trained on.")
    ] = False,
    allow_unknown: Annotated[
        bool, Option("--allow-unknown", help="With --require: also take results whose model is not known.")
    ] = False,
    images: Annotated[
        Path | None, Option(help="Without --data: folder of the images, for pictures.", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say whether B is better than A, how sure that is, and which images changed.

    The verdict is about the Kaggle Dice on labelled images, by groups: --group, or split.csv, or groups.csv. A clear
    rise of missed or stopped sheets is a veto. The folder --out receives compare.html, compare.json, images.csv and
    pictures/.

    Without --data, two results are compared that nobody has labelled: which sheets change between sound and defective,
    and which of them to label to decide (to_label.csv).

    Exit codes: 0 done; 12 --require is not met; 3 some images are unreadable; 2 wrong usage; 4 could not go on.

    Example: defectseg compare old.safetensors new.safetensors --data mill --subset test --require not-worse
    """
    from defectseg.compare.compare import compare as compare_labelled
    from defectseg.compare.report import PAGE, check_output, write_result_folder
    from defectseg.compare.unlabelled import compare_unlabelled

    if out is not None:
        check_output(out, overwrite=overwrite)
    if data is None:
        if require is not None or subset != "all":
            raise UsageError("--require and --subset need labels: give --data DIR.")
        result = compare_unlabelled(a, b, images=images, group=group)
    elif images is not None:
        raise UsageError("--images goes without --data DIR, which has its own images.")
    else:
        asked: Any = {"require": require, "allow_seen": allow_seen, "allow_unknown": allow_unknown, "device": device}
        asked |= {"subset": subset, "group": group, "margin": margin, "bit_depth": bit_depth}
        with progress_bar("comparing") as progress:
            result = compare_labelled(a, b, data, progress=progress, **asked)
    warn(result.warnings)
    if out is not None:
        write_result_folder(out, result, overwrite=overwrite)
    if json_output:
        print_json(result.content)
    else:
        if result.table:
            print_rows(result.table)
        print("\n".join(result.sentences))
        if out is not None:
            print(f"Report: {shown(out / PAGE)}")
    if require is not None and result.verdict is not None and not result.verdict.meets(require):
        warn([f"--require {require} is not met"])
        raise typer.Exit(ExitCode.NOT_MET)
    finish(partial=result.unreadable > 0)
