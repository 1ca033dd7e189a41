"""`defectseg drift`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Group, Json, Verbose
from defectseg.cli.show import print_json, print_rows, shown, warn
from defectseg.errors import ExitCode


def drift(
    results: Annotated[list[Path], Argument(help="Output folders of predict, of one model.", metavar="RESULTS...")],
    group: Group = None,
    out: Annotated[
        Path | None,
        Option(help="Folder for drift.json, which remembers what was judged, and drift.html.", metavar="DIR"),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Forget what was judged: all images are new.")] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say whether the camera or the light changed, or more sheets have a defect than usual.

    Groups of images, such as coils, are compared with the groups that the model was trained on. Judged are the images
    that are new since the last verdict in --out; without --out, all. With fewer than 10 new groups, there is no
    verdict, and they stay new.

    Exit codes: 0 no change, or it cannot tell; 11 the camera or the light changed, or there are more defects; 2 wrong
    usage; 4 could not go on.

    Example: defectseg drift /data/results/* --group 'coil[0-9]+' --out /data/drift
    """
    from defectseg.drift.drift import drift as judge
    from defectseg.drift.report import PAGE

    with progress_bar("reading") as progress:
        result = judge(results, group=group, out=out, overwrite=overwrite, progress=progress)
    warn(result.content["warnings"])
    if json_output:
        print_json(result.content)
    else:
        if result.table:
            print_rows(result.table)
        print("\n".join(result.content["sentences"]))
        if out is not None:
            print(f"Report: {shown(out / PAGE)}")
    if result.is_alarm:
        raise typer.Exit(ExitCode.DRIFT)
