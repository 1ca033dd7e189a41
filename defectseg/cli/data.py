"""`defectseg data`: synthetic sheets, checks, splits; imports and exports are in `data_exchange.py`."""

from pathlib import Path
from typing import Annotated

import typer

from defectseg.cli import data_exchange
from defectseg.cli.common import Json, Verbose, finish, print_json, print_rows, progress, shown
from defectseg.errors import ExitCode, OutputExistsError, UsageError

app = typer.Typer(help="Make, fetch, import, export, check and split data folders.", no_args_is_help=True)
app.add_typer(data_exchange.import_app, name="import")
app.add_typer(data_exchange.export_app, name="export")
app.add_typer(data_exchange.download_app, name="download")

DataFolderArgument = Annotated[Path, typer.Argument(help="Data folder: train.csv beside train_images/.", metavar="DIR")]


@app.command("demo")
def make_demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; absent or empty.", metavar="DIR")],
    images: Annotated[int, typer.Option("--images", help="Number of sheets.", min=1, metavar="N")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal sheets.", min=0, metavar="S")] = 0,
    size: Annotated[str, typer.Option("--size", help="Rows x columns in px.", metavar="HxW")] = "256x1600",
    verbose: Verbose = False,
) -> None:
    """Make synthetic steel sheets in the Severstal layout."""
    from defectseg.data.synthetic import write_data_folder

    with progress("making sheets") as bar:
        write_data_folder(out, images=images, seed=seed, size_hw=_parse_size(size), report=bar.move)
    print(f"{images} sheets: {shown(out)}")


@app.command("check")
def check(root: DataFolderArgument, json_output: Json = False, verbose: Verbose = False) -> None:
    """List what is wrong with a data folder: file, row and remedy. Exits with 3 where something is.

    Example: defectseg data check severstal/
    """
    from defectseg.data.check import check_data_folder

    with progress("checking") as bar:
        report = check_data_folder(root, report=bar.move)
    if json_output:
        print_json(report.to_dict())
    else:
        sizes = ", ".join(f"{count} of {size}" for size, count in report.sizes.items())
        print(f"{report.images} images ({sizes}), {report.clean_images} taken as clean: no row has a mask for them")
        head = ["class", "images", "smallest px", "median px", "largest px"]
        rows = [
            [one.name, *map(str, (one.images, one.smallest_px, round(one.median_px), one.largest_px))]
            for one in report.classes
        ]
        print_rows([head, *rows])
        for fault in report.faults:
            print(f"{fault.severity}: {fault.message} {fault.remedy}")
        print(f"{report.errors} errors, {len(report.faults) - report.errors} warnings")
    finish(ExitCode.PARTIAL if report.errors else ExitCode.DONE)


@app.command("split")
def split(
    root: DataFolderArgument,
    folds: Annotated[int, typer.Option("--folds", help="Number of folds.", min=2, metavar="K")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal splits.", min=0, metavar="S")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Default: split.csv in DIR.", metavar="FILE")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    verbose: Verbose = False,
) -> None:
    """Divide the images into folds with the same mixture of defects; groups of groups.csv stay together."""
    from defectseg.data.labels import open_data_folder
    from defectseg.data.splits import make_folds, write_split

    path = root / "split.csv" if out is None else out
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists. Choose another --out, or use --overwrite.")
    folder = open_data_folder(root)
    chosen = make_folds(folder, folds=folds, seed=seed)
    write_split(path, chosen)
    rows = [["fold", "images", "clean", *folder.class_names]]
    for fold in range(folds):
        members = [image_id for image_id, number in chosen.items() if number == fold]
        present = [folder.classes_of(image_id) for image_id in members]
        counts = [sum(number in found for found in present) for number in range(1, folder.num_classes + 1)]
        rows.append([str(fold), str(len(members)), str(sum(not found for found in present)), *map(str, counts)])
    print_rows(rows)
    print(f"Split: {shown(path)}")


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UsageError(f"--size {text}: expected rows x columns, for example 256x1600.")
    return int(height), int(width)
