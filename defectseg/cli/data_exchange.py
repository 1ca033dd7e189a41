"""`defectseg data import`, `data export` and `data download`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectseg.cli.common import Json, Verbose, finish, print_json, print_rows, progress, shown
from defectseg.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from defectseg.formats.common import ExportReport, ImportReport, Loss

import_app = typer.Typer(help="Turn labels of another kind into a data folder.", no_args_is_help=True)
export_app = typer.Typer(help="Turn a data folder into labels of another kind.", no_args_is_help=True)
download_app = typer.Typer(help="Fetch public data.", no_args_is_help=True)

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

    with progress("importing") as bar:
        report = masks.import_masks(src, out, class_names=_names(classes), link=link, report=bar.move)
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
    from defectseg.formats.coco import importing

    with progress("importing") as bar:
        report = importing.import_coco(file, images, out, class_names=_names(classes), link=link, report=bar.move)
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
    from defectseg.formats.yolo import importing

    if part not in (None, "train", "val", "test"):
        raise UsageError(f"--part {part}: expected train, val or test.")
    with progress("importing") as bar:
        report = importing.import_yolo(src, out, class_names=_names(classes), part=part, link=link, report=bar.move)
    _finish_import(report, out, json_output)


@import_app.command("predictions")
def import_predictions(
    output: Annotated[Path, typer.Argument(help="Output folder of predict.", metavar="OUT")],
    file: Annotated[Path, typer.Option("--out", help="COCO JSON to write; must not be there.", metavar="FILE")],
    run_lengths: Annotated[
        bool, typer.Option("--rle", help="Exact run-lengths instead of outlines that people can correct.")
    ] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into COCO, to be corrected in a labelling tool and read again by `import coco`.

    Example: defectseg data import predictions results/ --out to_correct.json
    """
    from dataclasses import asdict

    from defectseg.formats.predictions import predictions_to_coco

    with progress("converting") as bar:
        report = predictions_to_coco(output, file, run_lengths=run_lengths, progress=bar.move)
    if json_output:
        print_json({**asdict(report), "out": str(file)})
        return
    _print_losses(report.lost)
    print(f"{report.images} images with {report.annotations} regions: {shown(file)}")
    print(f"Once corrected: defectseg data import coco {shown(file)} --images DIR --out DIR")


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
    from defectseg.formats.coco import exporting

    with progress("exporting") as bar:
        report = exporting.export_coco(root, out, polygons=polygons, link=link, report=bar.move)
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

    with progress("exporting") as bar:
        report = masks.export_masks(root, out, per_class=per_class, link=link, report=bar.move)
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
    from defectseg.formats.yolo import exporting

    with progress("exporting") as bar:
        report = exporting.export_yolo(root, out, val_fold=fold, link=link, report=bar.move)
    _finish_export(report, out, json_output)


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

    with progress("unpacking") as bar:
        report = download.download_severstal(out, show_progress=sys.stderr.isatty(), report=bar.move)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    masks = " / ".join(map(str, report.masks_per_class))
    print(f"{report.images} images, {report.defect_images} with a defect; masks per class {masks}")
    print(f"{report.test_images} test images without labels")
    print(f"{'Was complete already' if report.was_there else 'Complete'}: {shown(out)}")


def _names(classes: str | None) -> list[str] | None:
    return None if classes is None else [name.strip() for name in classes.split(",")]


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
