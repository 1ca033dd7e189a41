"""`defectseg merge`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from defectseg.cli import options
from defectseg.cli.bars import progress_bar
from defectseg.cli.show import print_run


def merge(
    folders: Annotated[list[Path], Argument(help="Folders that predict --shard wrote, all of them.", metavar="OUT...")],
    out: Annotated[Path, Option(help="Folder to write.", metavar="DIR")],
    overwrite: options.Overwrite = False,
    fail_on: options.FailOn = None,
    fail_on_defect: options.FailOnDefect = False,
    fail_on_blank: options.FailOnBlank = False,
    max_unreadable: options.MaxUnreadable = "0",
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Put the results of predict --shard together, as if predict had done all images in one go.

    The folder --out receives the files that predict writes; `predict --out DIR` continues it. Pictures are hard links
    where the file system permits it: they take no space, and the folders of the shards may be deleted. Nothing is
    written if a shard is missing or unfinished, or if shards differ in their model, settings or list of images.

    Exit codes: as those of predict; 4 if something is missing or does not fit.

    Example: defectseg merge results/shards/* --out results/all
    """
    from defectseg.predict.merge import merge as put_together
    from defectseg.predict.rules import Tolerance, exit_code_of

    rules, tolerance = options.all_rules(fail_on, fail_on_defect), Tolerance.parse(max_unreadable)
    with progress_bar("merging", after_interrupt="The same command does it again.") as progress:
        run = put_together(folders, out, overwrite=overwrite, fail_on=rules, progress=progress)
    print_run(run, out, f"{run['processed']} images of {len(run['shards'])} shards", json_output=json_output)
    raise typer.Exit(exit_code_of(run, fail_on_blank=fail_on_blank, max_unreadable=tolerance))
