"""`defectseg data`: sheets, downloads, checks, splits; imports and exports are in `data_formats.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.data_formats import export_app, import_app
from defectseg.cli.options import BitDepth, Json, MaxPixels, Overwrite, Verbose, parse_size
from defectseg.cli.show import bit_depth_hint, finish, print_json, print_rows, shown
from defectseg.errors import ExitCode, OutputExistsError

if TYPE_CHECKING:
    from defectseg.check.pairs import CopyPair
    from defectseg.check.report import CheckReport

_MOST_PAIRS_PRINTED = 100

app = typer.Typer(help="Make, fetch, import, export, check and split data folders.", no_args_is_help=True)
download_app = typer.Typer(help="Fetch public data.", no_args_is_help=True)
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")
app.add_typer(download_app, name="download")

DataFolderArgument = Annotated[Path, typer.Argument(help="Data folder: train.csv beside train_images/.", metavar="DIR")]


@app.command("synthesize")
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; absent or empty.", metavar="DIR")],
    images: Annotated[int, typer.Option("--images", help="Number of sheets.", min=1, metavar="N")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal sheets.", min=0, metavar="S")] = 0,
    size: Annotated[str, typer.Option("--size", help="Rows x columns in px.", metavar="HxW")] = "256x1600",
    verbose: Verbose = False,
) -> None:
    """Make synthetic steel sheets in the Severstal layout."""
    from defectseg.data.synthetic import write_data_folder

    with progress_bar("making sheets") as progress:
        write_data_folder(out, images=images, seed=seed, size_hw=parse_size(size), progress=progress)
    print(f"{images} sheets: {shown(out)}")


@download_app.command("severstal")
def download_severstal(
    out: Annotated[
        Path, typer.Option("--out", help="Data folder to write; an interrupted run goes on.", metavar="DIR")
    ],
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fetch the Severstal data (1.7 GB) from Kaggle and check them; the competition's rules apply.

    Needs the extra kaggle, a token of a Kaggle account, and the rules accepted; says how, where one is missing.

    Example: defectseg data download severstal --out severstal/
    """
    import sys
    from dataclasses import asdict

    from defectseg.data import download

    with progress_bar("unpacking") as progress:
        report = download.download_severstal(out, show_progress=sys.stderr.isatty(), progress=progress)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    masks = " / ".join(map(str, report.masks_per_class))
    print(f"{report.images} images, {report.defect_images} with a defect; masks per class {masks}")
    print(f"{report.test_images} test images without labels")
    print(f"{'Was complete already' if report.was_there else 'Complete'}: {shown(out)}")


@app.command("check")
def check(
    root: DataFolderArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="Another data folder, or a folder of images, that must share no picture with DIR.",
            metavar="OTHER_DIR",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write check.json, a contact sheet and a page of pairs here.", metavar="OUT"),
    ] = None,
    overwrite: Overwrite = False,
    bit_depth: BitDepth = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as problems, too.")] = False,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """List what is wrong with a data folder, and pictures that are in it twice, even turned or encoded again.

    Exits with 3 where there is an error, a duplicate or a leak (a copy across two folders, or across the folds of
    split.csv). Warnings, which may be meant so, leave it at 0.

    Example: defectseg data check test/ --against train/ --out check/
    """
    from contextlib import nullcontext

    from defectseg.check.check import check_data_folder
    from defectseg.check.report import PAGE_NAME, output_folder, write_check

    with nullcontext() if out is None else output_folder(out, overwrite=overwrite):
        with progress_bar("checking") as progress:
            report = check_data_folder(root, against=against, bit_depth=bit_depth, progress=progress)
        if out is not None:
            write_check(out, root, report, against=against, bit_depth=bit_depth)
    if json_output:
        print_json(report.to_dict())
    else:
        _print_check(report, against)
        if out is not None:
            print(f"Report: {shown(out / PAGE_NAME)}")
    finish(ExitCode.PARTIAL if report.has_problems or (strict and report.faults) else ExitCode.DONE)


def _print_check(report: "CheckReport", against: Path | None) -> None:
    sizes = ", ".join(f"{count} of {size}" for size, count in report.sizes.items())
    print(f"{report.images} images ({sizes}), {report.unreadable_images} unreadable")
    print(
        f"{report.clean_images} taken as clean: no row has a mask or ignored pixels for them "
        f"({report.images_without_rows} have no row)"
    )
    dark = f", {report.dark_images} mostly black" if report.dark_images else ""
    print(f"{report.sheet_end_images} show an end of the sheet{dark}")
    print(f"grey levels: mean {report.grey_mean:.4f}, deviation {report.grey_std:.4f}")
    head = ["class", "images", "% of images", "% of pixels", "smallest px", "median px", "largest px", "regions"]
    rows = [
        [one.name, str(one.images), f"{100 * one.image_share:.1f}", f"{100 * one.px_share:.2f}"]
        + [str(number) for number in (one.smallest_px, round(one.median_px), one.largest_px, one.regions)]
        for one in report.classes
    ]
    print_rows([head, *rows])
    for title, histograms in (
        ("masks by area in px", [one.area_histogram_px for one in report.classes]),
        ("masks by number of regions", [one.region_histogram for one in report.classes]),
    ):
        bins = [[one.name, *map(str, bars.values())] for one, bars in zip(report.classes, histograms, strict=True)]
        print_rows([[title, *histograms[0]], *bins])
    for fault in report.faults:
        remedy = fault.remedy
        if report.low_bit_depth is not None and fault.kind == "bit-depth":
            remedy = bit_depth_hint(report.low_bit_depth.bit_depth)
        print(f"{fault.severity}: {fault.message} {remedy}")
    where = "across the folds of split.csv" if against is None else f"shared with {against}"
    _print_pairs(report.duplicates, "copies within the folder")
    _print_pairs(report.leaks, f"copies {where}")
    print(
        f"{report.errors} errors, {report.warnings} warnings, "
        f"{len(report.duplicates)} pairs of copies within the folder, {len(report.leaks)} {where}"
    )


def _print_pairs(pairs: "Sequence[CopyPair]", title: str) -> None:
    if not pairs:
        return
    print(f"{title}:")
    marks = {False: "masks differ", True: "", None: ""}
    rows = [
        [pair.image, pair.other, pair.turn, f"{pair.score:.3f}", marks[pair.masks_agree]]
        for pair in pairs[:_MOST_PAIRS_PRINTED]
    ]
    print_rows([["image", "other", "turn", "score", ""], *rows], align_right=False)
    if len(pairs) > _MOST_PAIRS_PRINTED:
        print(f"... and {len(pairs) - _MOST_PAIRS_PRINTED} more; --json and --out list all")


@app.command("split")
def split(
    root: DataFolderArgument,
    folds: Annotated[int, typer.Option("--folds", help="Number of folds.", min=2, metavar="K")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal splits.", min=0, metavar="S")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Default: split.csv in DIR.", metavar="FILE")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    bit_depth: BitDepth = None,
    verbose: Verbose = False,
) -> None:
    """Divide the images into folds with the same mixture of defects, and nothing in two folds that belongs together.

    Copies, also turned ones, images that look like the same strip, and groups of groups.csv stay together.
    """
    from defectseg.data.folder import open_data_folder
    from defectseg.data.split import SPLIT_NAME, divide, divide_each_alone, find_related, write_split

    path = root / SPLIT_NAME if out is None else out
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists. Choose another --out.", go_on={"overwrite": True})
    folder = open_data_folder(root, bit_depth=bit_depth)
    with progress_bar("looking for copies") as progress:
        related = find_related(folder, progress=progress)
    chosen = divide(folder, related, folds=folds, seed=seed)
    write_split(path, chosen)
    rows = [["fold", "images", "clean", *folder.class_names]]
    for fold in range(folds):
        members = [image_id for image_id, number in chosen.items() if number == fold]
        present = [folder.classes_of(image_id) for image_id in members]
        counts = [sum(number in found for found in present) for number in range(1, folder.num_classes + 1)]
        clean = sum(not found and one not in folder.unknown for one, found in zip(members, present, strict=True))
        rows.append([str(fold), str(len(members)), str(clean), *map(str, counts)])
    print_rows(rows)
    if folder.unknown:
        print(
            f"In {len(folder.unknown)} images, ignored pixels may hide a defect of some class; none of them is clean."
        )
    usual = related.across_folds(divide_each_alone(folder, folds=folds, seed=seed))
    kept = related.across_folds(chosen)
    print_rows(
        [
            ["pairs of images", "in all", "across folds", "across in a random split"],
            ["copies", *(str(len(one.copies)) for one in (related, kept, usual))],
            ["of the same strip, by their looks", *(str(len(one.neighbours)) for one in (related, kept, usual))],
        ]
    )
    print(f"A random split would have leaked into {usual.images} of {len(chosen)} images; this one into {kept.images}.")
    print(f"Split: {shown(path)}")
