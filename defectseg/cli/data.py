"""`defectseg data`: synthesize, download, check and split; import and export are in `data_formats.py`."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from defectseg.cli import options
from defectseg.cli.bars import progress_bar
from defectseg.cli.data_formats import export_app, import_labels, print_report
from defectseg.cli.show import finish, print_json, print_rows, shown
from defectseg.errors import OutputExistsError, printable

if TYPE_CHECKING:
    from defectseg.check.pairs import CopyPair
    from defectseg.check.report import CheckReport

_MOST_PAIRS_PRINTED = 100

app = typer.Typer(help="Make, download, import, export, check and split data folders.", no_args_is_help=True)
download_app = typer.Typer(help="Download public data.", no_args_is_help=True)
app.command("import")(import_labels)
app.add_typer(export_app, name="export")
app.add_typer(download_app, name="download")


@app.command()
def synthesize(
    out: options.NewFolder,
    images: Annotated[int, Option(help="Number of sheets.", min=1, metavar="N")] = 100,
    seed: options.Seed = 0,
    size: Annotated[str, Option(help="Height x width in px.", metavar="HxW")] = "256x1600",
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Make synthetic steel sheets in the Severstal layout.

    Example: defectseg data synthesize --images 200 --out sheets/
    """
    from defectseg.data.synthetic import write_data_folder

    with progress_bar("making sheets") as progress:
        write_data_folder(out, images=images, seed=seed, size_hw=options.parse_size(size), progress=progress)
    if json_output:
        print_json({"images": images, "out": str(out)})
    else:
        print(f"{images} sheets: {shown(out)}")


@download_app.command("severstal")
def download_severstal(
    out: Annotated[Path, Option(help="Data folder to write; an interrupted download is continued.", metavar="DIR")],
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Download the Severstal data (1.7 GB) from Kaggle and check them. The competition's rules apply.

    This needs the extra kaggle, the token of a Kaggle account, and accepted rules. If one is missing, the command says
    what to do.

    Example: defectseg data download severstal --out severstal/
    """
    import sys

    from defectseg.data import download

    with progress_bar("unpacking") as progress:
        report = download.download_severstal(out, show_progress=sys.stderr.isatty(), progress=progress)
    masks = " / ".join(map(str, report.masks_per_class))
    labelled = f"{report.images} images, {report.defect_images} with a defect; masks per class {masks}"
    done = f"{'Was complete already' if report.was_there else 'Complete'}: {shown(out)}"
    print_report(report, out, json_output, labelled, f"{report.test_images} test images without labels", done)


@app.command()
def check(
    root: options.DataFolder,
    against: Annotated[Path | None, Option(help="Other folder that must share no image.", metavar="OTHER_DIR")] = None,
    out: Annotated[Path | None, Option(help="Write JSON, a contact sheet and a report here.", metavar="OUT")] = None,
    overwrite: options.Overwrite = False,
    bit_depth: options.BitDepth = None,
    strict: Annotated[bool, Option("--strict", help="Exit with 3 for warnings, too.")] = False,
    max_pixels: options.MaxPixels = None,
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """List faults in a data folder, and duplicate images.

    Duplicates are found even if they are rotated, mirrored or re-encoded. A leak is a copy in the other folder
    (--against) or in another fold of split.csv.

    Exit codes: 0 none found, or warnings alone, which may be intended; 3 an error, a duplicate or a leak; 2 wrong
    usage; 4 could not go on.

    Example: defectseg data check test/ --against train/ --out check/
    """
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
    finish(partial=report.has_problems or (strict and bool(report.faults)))


def _print_check(report: "CheckReport", against: Path | None) -> None:
    sizes = ", ".join(f"{count} of {size}" for size, count in report.sizes.items())
    counts = report.counts
    print(f"{counts['images']} images ({sizes}), {counts['unreadable']} unreadable")
    print(
        f"{counts['clean']} taken as clean: no row has a mask or ignored pixels for them "
        f"({counts['without_rows']} have no row)"
    )
    if counts["not_labelled"]:
        print(f"{counts['not_labelled']} more are in not_labelled.csv: neither clean nor defective, and left out")
    print(f"{counts['sheet_end']} show an end of the sheet, {counts['mostly_black']} are mostly black")
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
        print(f"{fault.severity}: {printable(fault.message)} {fault.remedy}")
    where = "across the folds of split.csv" if against is None else f"shared with {against}"
    _print_pairs(report.duplicates, "copies within the folder")
    _print_pairs(report.leaks, f"copies {where}")
    print(
        f"{counts['errors']} errors, {counts['warnings']} warnings, "
        f"{counts['duplicates']} pairs of copies within the folder, {counts['leaks']} {where}"
    )


def _print_pairs(pairs: "Sequence[CopyPair]", title: str) -> None:
    if not pairs:
        return
    print(f"{title}:")
    rows = [
        [pair.image, pair.other, pair.turn, f"{pair.score:.3f}", "masks differ" if pair.masks_agree is False else ""]
        for pair in pairs[:_MOST_PAIRS_PRINTED]
    ]
    print_rows([["image", "other", "turn", "score", ""], *rows], align_right=False)
    if len(pairs) > _MOST_PAIRS_PRINTED:
        print(f"... and {len(pairs) - _MOST_PAIRS_PRINTED} more; --json and --out list all")


_PAIRS = ("pairs of images", "in all", "across folds", "across in a random split")


@app.command()
def split(
    root: options.DataFolder,
    folds: Annotated[int, Option(help="Number of folds.", min=2, metavar="K")] = 5,
    seed: options.Seed = 0,
    group: options.Group = None,
    out: Annotated[Path | None, Option(help="Default: split.csv in DIR.", metavar="FILE")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an existing file.")] = False,
    bit_depth: options.BitDepth = None,
    max_pixels: options.MaxPixels = None,
    json_output: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Divide the images into folds, and write split.csv.

    All folds get the same mix of defects. Copies (also rotated or mirrored), images that look like the same strip, and
    the groups of groups.csv, or of --group instead, stay together in one fold, and share a name in the column group.
    Images that an existing split.csv has in val or test stay there.

    Example: defectseg data split data/mill --group "coil[0-9]+"
    """
    from defectseg.data import split as splits
    from defectseg.data.folder import open_data_folder
    from defectseg.data.names import match_groups

    own = root / splits.SPLIT_NAME
    path = own if out is None else out
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists. Choose another --out.", go_on={"overwrite": True})
    folder = open_data_folder(root, bit_depth=bit_depth)
    if group is not None:
        folder = replace(folder, groups=match_groups(group, folder.image_ids))
    old = splits.read_split(own, {*folder.image_ids, *folder.not_labelled}) if own.exists() else {}
    kept = {image_id: fold for image_id, fold in old.items() if fold in ("val", "test")}
    rest = replace(folder, image_ids=tuple(image_id for image_id in folder.image_ids if image_id not in kept))
    apart = replace(folder, image_ids=tuple(image_id for image_id in folder.image_ids if image_id in kept))
    with progress_bar("looking for copies") as progress:
        related = splits.find_related(folder, progress=progress)
    chosen = {**kept, **splits.divide(rest, related, folds=folds, seed=seed)}
    groups = dict(folder.groups)
    for part in (apart, rest):
        groups |= splits.name_groups(part, related, folds=folds)
    splits.write_split(path, chosen, groups)
    rows: list[dict[str, Any]] = []
    for fold in (*range(folds), *sorted(set(kept.values()), key=str)):
        members = [image_id for image_id in folder.image_ids if chosen[image_id] == fold]
        present = [folder.classes_of(image_id) for image_id in members]
        counts = [sum(number in found for found in present) for number in range(1, folder.num_classes + 1)]
        clean = sum(not found and one not in folder.unknown for one, found in zip(members, present, strict=True))
        of_class = dict(zip(folder.class_names, counts, strict=True))
        rows.append({"fold": fold, "images": len(members), "clean": clean, **of_class})
    usual = {**kept, **splits.divide(replace(rest, groups={}), splits.RelatedImages(), folds=folds, seed=seed)}
    table: list[dict[str, Any]] = []
    for name, both in {
        "copies": related.copies,
        "of the same strip, by their looks": related.neighbours.keys(),
    }.items():
        across, across_usual = (splits.count_apart(both, folds_of) for folds_of in (chosen, usual))
        table.append(dict(zip(_PAIRS, (name, len(both), across, across_usual), strict=True)))
    if json_output:
        print_json({"split": str(path), "folds": rows, "pairs": table, "ignored": len(folder.unknown)})
        return
    _print_dicts(rows)
    if folder.unknown:
        print(f"In {len(folder.unknown)} images, ignored pixels may hide a defect of some class; none is clean.")
    _print_dicts(table)
    print(f"Split: {shown(path)}")


def _print_dicts(rows: Sequence[dict[str, Any]]) -> None:
    print_rows([[*rows[0]], *([str(value) for value in row.values()] for row in rows)])
