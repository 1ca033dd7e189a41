"""`defectseg data import` and `data export`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import DataFolder, Json, NewFolder, Verbose, entries
from defectseg.cli.show import print_json, print_rows, shown

if TYPE_CHECKING:
    from defectseg.formats.data_import import ImportReport
    from defectseg.formats.exporting import ExportReport
    from defectseg.formats.losses import Loss

export_app = typer.Typer(help="Turn a data folder, or predictions, into another label format.", no_args_is_help=True)

Link = Annotated[bool, typer.Option("--link", help="Link the images instead of copying them.")]


def _print_kinds(value: bool) -> None:
    if value:
        from defectseg.formats.kinds import KINDS

        print_rows([["kind", "written by"], *([kind.name, kind.menu] for kind in KINDS)], align_right=False)
        raise typer.Exit


def import_labels(
    src: Annotated[
        Path, typer.Argument(help="Labels: a file, a folder, or a ZIP archive as the tools write it.", metavar="SRC")
    ],
    out: NewFolder,
    kind: Annotated[
        str | None, typer.Option("--as", help="Kind of the labels. Default: recognised by the content.", metavar="KIND")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, if they are not in SRC.", metavar="DIR")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="All classes in the wanted order. OLD=NEW renames one, OLD= drops one. For labels without names, "
            "entry n names the value n.",
            metavar="A,B,C",
        ),
    ] = None,
    unlabelled: Annotated[
        Literal["clean", "skip"] | None,
        typer.Option(help="Images without labels: clean takes them as sound, skip keeps them out of training."),
    ] = None,
    boxes: Annotated[
        Literal["ignore"] | None, typer.Option(help="Boxes without an outline: their pixels are ignored.")
    ] = None,
    absent: Annotated[
        Literal["skip"] | None, typer.Option(help="Labels whose image is not there are left out.")
    ] = None,
    dropped: Annotated[
        Literal["sound"] | None, typer.Option(help="Pixels of dropped classes count as sound. Default: ignored.")
    ] = None,
    exif: Annotated[
        Literal["keep", "turn"] | None,
        typer.Option(help="Images with an EXIF orientation: labels were drawn as stored (keep) or displayed (turn)."),
    ] = None,
    sound: Annotated[str, typer.Option(help="Folder of sound images, by its name.", metavar="NAME")] = "",
    background: Annotated[
        str, typer.Option(help="Value or class that means sound steel.", metavar="N", show_default=False)
    ] = "",
    ignore: Annotated[
        str, typer.Option(help="Value or class that marks pixels to ignore.", metavar="N", show_default=False)
    ] = "",
    unite: Annotated[
        bool, typer.Option("--unite", help="Unite the rows of a label table that have the same image and class.")
    ] = False,
    link: Link = False,
    list_kinds: Annotated[
        bool, typer.Option("--list", help="Show the kinds of labels and exit.", callback=_print_kinds, is_eager=True)
    ] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn labels of another tool into a data folder.

    The kind of the labels is recognised by their content. Where labels may mean two things, the import stops and names
    the option that decides.

    Example: defectseg data import cvat_export.zip --out data/mill
    """
    from defectseg.formats.data_import import import_labels
    from defectseg.formats.labels import Choices

    choices = Choices(
        images=images,
        absent=absent,
        classes=entries(classes),
        unlabelled=unlabelled,
        boxes=boxes,
        dropped=dropped,
        exif=exif,
        sound=sound,
        background=background,
        ignore=ignore,
        unite=unite,
    )
    with progress_bar("importing") as progress:
        report = import_labels(src, out, choices, kind=kind, link=link, progress=progress)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
    else:
        _print_import(report, out)


def _print_import(report: "ImportReport", out: Path) -> None:
    head = ["ClassId", "class", "in the labels", "images", "regions", "px"]
    rows = [
        [str(one.class_id), one.name, ", ".join(one.source_names), str(one.images), str(one.regions), str(one.px)]
        for one in report.classes
    ]
    print_rows([head, *rows])
    _print_losses(report.lost)
    if report.missing_images:
        named = ", ".join(report.missing_images[:5])
        print(f"note: {len(report.missing_images)} labels have no image and were left out. For example: {named}.")
    if report.not_labelled:
        print(
            f"note: {report.not_labelled} images have no label. They are in not_labelled.csv, and neither train nor "
            "count. If they are sound: --unlabelled clean."
        )
    if report.parts:
        print("split.csv: " + ", ".join(f"{count} {part}" for part, count in report.parts.items()))
    print(
        f"{report.images} images, {report.defect_images} with a defect, {report.sound_images} sound, "
        f"{report.not_labelled} not labelled; {report.ignored_px} px to ignore: {shown(out)}"
    )


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


@export_app.command("labelme")
def export_labelme(
    root: DataFolder, out: NewFolder, link: Link = False, json_output: Json = False, verbose: Verbose = False
) -> None:
    """Write the images with a JSON file of labelme beside each. Every mask stays exact.

    Example: defectseg data export labelme data/mill --out to_correct/
    """
    from defectseg.formats import labelme

    _export(partial(labelme.export_labelme, root, out, link=link), out, json_output)


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
    from defectseg.formats.masks import write

    _export(partial(write.export_masks, root, out, per_class=per_class, link=link), out, json_output)


@export_app.command("yolo")
def export_yolo(
    root: DataFolder,
    out: NewFolder,
    fold: Annotated[
        int | None,
        typer.Option(help="Fold of split.csv that becomes val. Default: its part val, else 0.", min=0, metavar="I"),
    ] = None,
    link: Link = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a YOLO segmentation data set: data.yaml beside images/ and labels/. Holes are filled.

    Example: defectseg data export yolo data/mill --out yolo/
    """
    from defectseg.formats.yolo import write

    _export(partial(write.export_yolo, root, out, fold=fold, link=link), out, json_output)


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

    _export(partial(predictions_to_coco, output, out, run_lengths=run_lengths), out, json_output)
    if json_output:
        return
    again = f"defectseg data import {shown(out)} --images DIR --out DIR --unlabelled clean"
    print(f"Once corrected: {again} (or skip, if nobody has looked at the images without a region)")


@export_app.command("submission")
def export_submission(
    output: Annotated[Path, typer.Argument(help="Output folder of predict.", metavar="OUT")],
    sample: Annotated[Path, typer.Option(help="sample_submission.csv of the competition.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="CSV to write; it must not exist.", metavar="FILE")],
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into a submission to the Severstal competition, in the rows, order and columns of its sample.

    Example: defectseg data export submission results/ --sample sample_submission.csv --out submission.csv
    """
    from defectseg.formats.submission import export_submission as export

    report = export(output, sample, out)
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    if report.unlisted:
        print(f"note: {len(report.unlisted)} images are not in the sample and were left out.")
    print(f"{report.images} images, {report.rows} rows, {report.masks} of them with a mask: {shown(out)}")


def _print_losses(lost: Sequence["Loss"]) -> None:
    for loss in lost:
        print(f"note: {loss.message}")
