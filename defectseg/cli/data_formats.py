"""`defectseg data import` and `data export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Json, Verbose, entries
from defectseg.cli.show import finish, print_json, print_rows, shown
from defectseg.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from defectseg.formats.common import ExportReport, ImportReport, Loss

import_app = typer.Typer(help="Turn labels of another kind into a data folder.", no_args_is_help=True)
export_app = typer.Typer(help="Turn a data folder, or predictions, into labels of another kind.", no_args_is_help=True)

DataFolder = Annotated[Path, typer.Argument(help="Data folder: train.csv beside train_images/.", metavar="DIR")]
Out = Annotated[Path, typer.Option("--out", help="Data folder to write; absent or empty.", metavar="DIR")]
ExportOut = Annotated[Path, typer.Option("--out", help="Folder to write; absent or empty.", metavar="DIR")]
Link = Annotated[bool, typer.Option("--link", help="Link the images instead of copying them.")]
Classes = Annotated[
    str | None, typer.Option("--classes", help="Names of the classes 1, 2, ... in this order.", metavar="A,B,C")
]


@import_app.command("masks")
def import_masks(
    src: Annotated[Path, typer.Argument(help="Folder with images/ and masks/, paired by file name.", metavar="SRC")],
    out: Out,
    classes: Classes = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import mask PNGs: class maps (0 sound, 1..C, 255 ignore), 0/255 masks, or masks/CLASS/STEM.png.

    Example: defectseg data import masks neu900/ --out data/neu --classes inclusion,patches,scratches
    """
    from defectseg.formats import masks

    with progress_bar("importing") as progress:
        report = masks.import_masks(src, out, classes=entries(classes), link=link, progress=progress)
    _finish_import(report, out, json_output)


@import_app.command("coco")
def import_coco(
    file: Annotated[Path, typer.Argument(help="COCO JSON, of CVAT, Label Studio or Roboflow.", metavar="FILE")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the images that FILE names.", metavar="DIR")],
    out: Out,
    classes: Classes = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import COCO JSON: polygons, run-lengths, and boxes, whose pixels are marked to be ignored.

    Exits with 3 where images that FILE names are missing.

    Example: defectseg data import coco instances.json --images images/ --out data/mill
    """
    from defectseg.formats import coco

    with progress_bar("importing") as progress:
        report = coco.import_coco(file, images, out, classes=entries(classes), link=link, progress=progress)
    _finish_import(report, out, json_output)


@import_app.command("yolo")
def import_yolo(
    src: Annotated[Path, typer.Argument(help="Folder with data.yaml, or that file.", metavar="SRC")],
    out: Out,
    classes: Classes = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", help="Import this part alone. Default: train and val, with a split.csv.", metavar="train|val|test"
        ),
    ] = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import a YOLO segmentation data set. In split.csv, val is fold 0 and train is fold 1.

    Example: defectseg data import yolo exported/ --out data/mill
    """
    from defectseg.formats import yolo

    if part not in (None, "train", "val", "test"):
        raise UsageError(f"--part {part}: expected train, val or test.")
    with progress_bar("importing") as progress:
        report = yolo.import_yolo(src, out, classes=entries(classes), part=part, link=link, progress=progress)
    _finish_import(report, out, json_output)


@export_app.command("coco")
def export_coco(
    root: DataFolder,
    out: ExportOut,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Outlines instead of run-lengths; holes are filled.")
    ] = False,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write annotations.json beside images/. Run-lengths keep every mask exact.

    Example: defectseg data export coco data/mill --out coco/ --polygons
    """
    from defectseg.formats import coco

    with progress_bar("exporting") as progress:
        report = coco.export_coco(root, out, polygons=polygons, link=link, progress=progress)
    _finish_export(report, out, json_output)


@export_app.command("masks")
def export_masks(
    root: DataFolder,
    out: ExportOut,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="masks/CLASS/STEM.png with 0 and 255 instead of class maps.")
    ] = False,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write masks/ as PNG beside images/ and classes.txt: class maps, or a picture for each class.

    Example: defectseg data export masks data/mill --out masks/
    """
    from defectseg.formats import masks

    with progress_bar("exporting") as progress:
        report = masks.export_masks(root, out, per_class=per_class, link=link, progress=progress)
    _finish_export(report, out, json_output)


@export_app.command("yolo")
def export_yolo(
    root: DataFolder,
    out: ExportOut,
    fold: Annotated[int, typer.Option("--fold", help="Fold of split.csv that becomes val.", min=0, metavar="I")] = 0,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write data.yaml beside images/ and labels/, as YOLO segmentation has them; holes are filled.

    Example: defectseg data export yolo data/mill --out yolo/
    """
    from defectseg.formats import yolo

    with progress_bar("exporting") as progress:
        report = yolo.export_yolo(root, out, fold=fold, link=link, progress=progress)
    _finish_export(report, out, json_output)


@export_app.command("predictions")
def export_predictions(
    output: Annotated[Path, typer.Argument(help="Output folder of predict.", metavar="OUT")],
    file: Annotated[Path, typer.Option("--out", help="COCO JSON to write; must not be there.", metavar="FILE")],
    run_lengths: Annotated[
        bool, typer.Option("--rle", help="Exact run-lengths instead of outlines that people can correct.")
    ] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into COCO, to be corrected in a labelling tool and imported again.

    Example: defectseg data export predictions results/ --out to_correct.json
    """
    from dataclasses import asdict

    from defectseg.formats.predictions import predictions_to_coco

    with progress_bar("converting") as progress:
        report = predictions_to_coco(output, file, run_lengths=run_lengths, progress=progress)
    if json_output:
        print_json({**asdict(report), "out": str(file)})
        return
    _print_losses(report.lost)
    print(f"{report.images} images with {report.annotations} regions: {shown(file)}")
    print(f"Once corrected: defectseg data import coco {shown(file)} --images DIR --out DIR")


def _finish_import(report: "ImportReport", out: Path, json_output: bool) -> None:
    """Say what an import made, and end with 3 where images were missing."""
    from dataclasses import asdict

    if json_output:
        print_json({**asdict(report), "out": str(out)})
    else:
        counts = zip(report.class_names, report.masks_per_class, strict=True)
        print_rows([["class", "images"], *([name, str(count)] for name, count in counts)])
        _print_losses(report.lost)
        if report.missing_images:
            named = ", ".join(report.missing_images[:5])
            print(f"missing: {len(report.missing_images)} images that the labels name are not there: {named}")
        if report.images_per_fold:
            folds = ", ".join(f"{count} images in fold {fold}" for fold, count in enumerate(report.images_per_fold))
            print(f"split.csv: {folds}")
        ignored = f", {report.ignored_px} px marked to be ignored" if report.ignored_px else ""
        print(f"{report.images} images, {report.clean_images} of them clean{ignored}: {shown(out)}")
    finish(ExitCode.PARTIAL if report.missing_images else ExitCode.DONE)


def _finish_export(report: "ExportReport", out: Path, json_output: bool) -> None:
    from dataclasses import asdict

    if json_output:
        content: dict[str, Any] = {**asdict(report), "out": str(out)}
        print_json(content)
        return
    _print_losses(report.lost)
    if not report.lost:
        print("Nothing was lost.")
    print(f"{report.images} images with {report.masks} masks of {len(report.class_names)} classes: {shown(out)}")


def _print_losses(lost: "Sequence[Loss]") -> None:
    for loss in lost:
        print(f"note: {loss.message}")
