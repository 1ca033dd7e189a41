"""`defectseg data import` and `data export`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import DataFolder, Json, NewFolder, Verbose, entries
from defectseg.cli.show import finish, print_json, print_rows, shown

if TYPE_CHECKING:
    from defectseg.formats.common import ExportReport, ImportReport, Loss

import_app = typer.Typer(help="Turn labels in another format into a data folder.", no_args_is_help=True)
export_app = typer.Typer(help="Turn a data folder, or predictions, into another label format.", no_args_is_help=True)

Link = Annotated[bool, typer.Option("--link", help="Link the images instead of copying them.")]
Classes = Annotated[
    str | None, typer.Option(help="Names of the classes, comma-separated; the first is class 1.", metavar="A,B,C")
]


@import_app.command("masks")
def import_masks(
    src: Annotated[Path, typer.Argument(help="Folder with images/ and masks/, paired by file name.", metavar="SRC")],
    out: NewFolder,
    classes: Classes = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import mask PNGs: class maps (0 sound, 1..C, 255 ignore), 0/255 masks, or masks/CLASS/STEM.png.

    Example: defectseg data import masks neu900/ --out data/neu --classes inclusion,patches,scratches
    """
    from defectseg.formats import masks

    _import(partial(masks.import_masks, src, out, classes=entries(classes), link=link), out, json_output)


@import_app.command("coco")
def import_coco(
    file: Annotated[Path, typer.Argument(help="COCO JSON of CVAT, Label Studio or Roboflow.", metavar="FILE")],
    images: Annotated[Path, typer.Option(help="Folder of the images that FILE names.", metavar="DIR")],
    out: NewFolder,
    classes: Classes = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import COCO JSON: polygons and run-lengths become masks, the pixels of boxes are marked to be ignored.

    Exits with 3 if images that FILE names are missing.

    Example: defectseg data import coco instances.json --images images/ --out data/mill
    """
    from defectseg.formats import coco

    _import(partial(coco.import_coco, file, images, out, classes=entries(classes), link=link), out, json_output)


@import_app.command("yolo")
def import_yolo(
    src: Annotated[Path, typer.Argument(help="Folder with data.yaml, or that file.", metavar="SRC")],
    out: NewFolder,
    classes: Classes = None,
    part: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Import only this part. Default: train and val, and a split.csv."),
    ] = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import a YOLO segmentation data set. In split.csv, val is fold 0 and train is fold 1.

    Example: defectseg data import yolo exported/ --out data/mill
    """
    from defectseg.formats import yolo

    read = partial(yolo.import_yolo, src, out, classes=entries(classes), part=part, link=link)
    _import(read, out, json_output)


def _import(read: "Callable[..., ImportReport]", out: Path, json_output: bool) -> None:
    """Import, say what was made, and exit with 3 if images are missing."""
    with progress_bar("importing") as progress:
        report = read(progress=progress)
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
    finish(partial=bool(report.missing_images))


@export_app.command("coco")
def export_coco(
    root: DataFolder,
    out: NewFolder,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Write polygons instead of run-lengths; holes are filled.")
    ] = False,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write annotations.json beside images/. Run-lengths keep every mask exactly.

    Example: defectseg data export coco data/mill --out coco/ --polygons
    """
    from defectseg.formats import coco

    _export(partial(coco.export_coco, root, out, polygons=polygons, link=link), out, json_output)


@export_app.command("masks")
def export_masks(
    root: DataFolder,
    out: NewFolder,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Write masks/CLASS/STEM.png with 0 and 255 instead of class maps.")
    ] = False,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write mask PNGs to masks/, beside images/ and classes.txt: class maps, or one mask for each class.

    Example: defectseg data export masks data/mill --out masks/
    """
    from defectseg.formats import masks

    _export(partial(masks.export_masks, root, out, per_class=per_class, link=link), out, json_output)


@export_app.command("yolo")
def export_yolo(
    root: DataFolder,
    out: NewFolder,
    fold: Annotated[int, typer.Option(help="Fold of split.csv that becomes val.", min=0, metavar="I")] = 0,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a YOLO segmentation data set: data.yaml beside images/ and labels/. Holes are filled.

    Example: defectseg data export yolo data/mill --out yolo/
    """
    from defectseg.formats import yolo

    _export(partial(yolo.export_yolo, root, out, fold=fold, link=link), out, json_output)


def _export(write: "Callable[..., ExportReport]", out: Path, json_output: bool) -> None:
    with progress_bar("exporting") as progress:
        report = write(progress=progress)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    _print_losses(report.lost)
    if not report.lost:
        print("Nothing was lost.")
    print(f"{report.images} images with {report.masks} masks of {len(report.class_names)} classes: {shown(out)}")


@export_app.command("predictions")
def export_predictions(
    output: Annotated[Path, typer.Argument(help="Output folder of predict.", metavar="OUT")],
    out: Annotated[Path, typer.Option(help="COCO JSON to write; it must not exist.", metavar="FILE")],
    run_lengths: Annotated[
        bool, typer.Option("--rle", help="Write exact run-lengths; the default, polygons, is easier to correct.")
    ] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into COCO, to correct them in a labelling tool and import them again.

    Example: defectseg data export predictions results/ --out to_correct.json
    """
    from defectseg.formats.predictions import predictions_to_coco

    with progress_bar("converting") as progress:
        report = predictions_to_coco(output, out, run_lengths=run_lengths, progress=progress)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    _print_losses(report.lost)
    print(f"{report.images} images with {report.annotations} regions: {shown(out)}")
    print(f"Once corrected: defectseg data import coco {shown(out)} --images DIR --out DIR")


def _print_losses(lost: Sequence["Loss"]) -> None:
    for loss in lost:
        print(f"note: {loss.message}")
