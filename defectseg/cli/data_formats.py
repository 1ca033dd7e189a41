"""`defectseg data import` and `data export`."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import DataFolder, Json, MaxPixels, NewFolder, Verbose, entries
from defectseg.cli.show import print_json, print_rows, shown
from defectseg.progress import some

if TYPE_CHECKING:
    from defectseg.formats.exporting import ExportReport

export_app = typer.Typer(help="Turn a data folder, or predictions, into another label format.", no_args_is_help=True)

Link = Annotated[bool, Option("--link", help="Link the images instead of copying them.")]
Output = Annotated[Path, Argument(help="Output folder of predict.", metavar="OUT")]


def _print_kinds(value: bool) -> None:
    if value:
        from defectseg.formats.kinds import KINDS

        print_rows([["kind", "written by"], *([kind.name, kind.menu] for kind in KINDS)], align_right=False)
        raise typer.Exit


def import_labels(
    src: Annotated[Path, Argument(help="Labels: a file, a folder, or a ZIP archive of a tool.", metavar="SRC")],
    out: NewFolder,
    kind: Annotated[str | None, Option("--as", help="Kind of the labels. Default: by content.", metavar="KIND")] = None,
    images: Annotated[Path | None, Option(help="Folder of the images, if not SRC.", metavar="DIR")] = None,
    absent: Annotated[Literal["skip"] | None, Option(help="Leave out labels whose image is not there.")] = None,
    classes: Annotated[
        str | None,
        Option(help="All classes in order. OLD=NEW renames, OLD= drops. Entry n names the value n.", metavar="A,B,C"),
    ] = None,
    unlabelled: Annotated[
        Literal["clean", "skip"] | None,
        Option(help="Images without labels: clean takes them as sound, skip keeps them out of training."),
    ] = None,
    boxes: Annotated[Literal["ignore"] | None, Option(help="Ignore the pixels of boxes without an outline.")] = None,
    dropped: Annotated[Literal["sound"] | None, Option(help="Dropped classes are sound steel, not ignored.")] = None,
    exif: Annotated[
        Literal["keep", "turn"] | None,
        Option(help="Images with an EXIF orientation: labels were drawn as stored (keep) or displayed (turn)."),
    ] = None,
    sound: Annotated[str, Option(help="Folder of sound images, by its name.", metavar="NAME")] = "",
    background: Annotated[str, Option(help="Value or class that means sound steel.", metavar="N")] = "",
    ignore: Annotated[str, Option(help="Value or class that marks pixels to ignore.", metavar="N")] = "",
    unite: Annotated[bool, Option("--unite", help="Unite rows of a table that have the same image and class.")] = False,
    follow_links: Annotated[
        bool, Option("--follow-links", help="Also take files behind links that lead out of the folder.")
    ] = False,
    link: Link = False,
    max_pixels: MaxPixels = None,
    list_kinds: Annotated[
        bool, Option("--list", help="Show the kinds of labels and exit.", callback=_print_kinds, is_eager=True)
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

    named = entries(classes)
    choices = Choices(
        images, absent, named, unlabelled, boxes, dropped, exif, sound, background, ignore, unite, follow_links
    )
    with progress_bar("importing") as progress:
        report = import_labels(src, out, choices, kind=kind, link=link, progress=progress)
    if not json_output:
        rows = [["ClassId", "class", "in the labels", "images", "regions", "px"]]
        for one in report.classes:
            sources = ", ".join(one.source_names)
            rows.append([str(one.class_id), one.name, sources, str(one.images), str(one.regions), str(one.px)])
        print_rows(rows)
    parts = ", ".join(f"{count} {part}" for part, count in report.parts.items())
    notes = {
        f"note: labels without an image, left out: {some(report.missing_images)}": report.missing_images,
        f"note: images without a label: {report.not_labelled}. They are in not_labelled.csv, and neither train nor "
        "count. If they are sound: --unlabelled clean.": report.not_labelled,
        f"split.csv: {parts}": parts,
    }
    found = f"{report.images} images, {report.defect_images} with a defect, {report.sound_images} sound"
    rest = f"{report.not_labelled} not labelled; {report.ignored_px} px to ignore: {shown(out)}"
    print_report(report, out, json_output, *(note for note, holds in notes.items() if holds), f"{found}, {rest}")


def print_report(report: Any, out: Path, json_output: bool, *lines: str) -> None:
    """Print a report, a dataclass, as JSON; or what was lost, if it says that, and the lines."""
    if json_output:
        print_json({**asdict(report), "out": str(out)})
        return
    print(*(f"note: {loss.message}" for loss in getattr(report, "lost", ())), *lines, sep="\n")


@export_app.command("coco")
def export_coco(
    root: DataFolder,
    out: NewFolder,
    polygons: Annotated[bool, Option("--polygons", help="Polygons, not run-lengths; holes are filled.")] = False,
    link: Link = False,
    max_pixels: MaxPixels = None,
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
    root: DataFolder,
    out: NewFolder,
    link: Link = False,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
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
    max_pixels: MaxPixels = None,
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
        Option(help="Fold of split.csv that becomes val. Default: its part val, else 0.", min=0, metavar="I"),
    ] = None,
    link: Link = False,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a YOLO segmentation data set: data.yaml beside images/ and labels/. Holes are filled.

    Example: defectseg data export yolo data/mill --out yolo/
    """
    from defectseg.formats.yolo import write

    _export(partial(write.export_yolo, root, out, fold=fold, link=link), out, json_output)


def _export(write: "Callable[..., ExportReport]", out: Path, json_output: bool, *hints: str) -> None:
    with progress_bar("exporting") as progress:
        report = write(progress=progress)
    made = f"{report.images} images with {report.masks} masks of {len(report.class_names)} classes: {shown(out)}"
    print_report(report, out, json_output, *([] if report.lost else ["Nothing was lost."]), made, *hints)


@export_app.command("predictions")
def export_predictions(
    output: Output,
    out: Annotated[Path, Option(help="COCO JSON to write; it must not exist.", metavar="FILE")],
    run_lengths: Annotated[
        bool, Option("--rle", help="Write exact run-lengths; the default, polygons, is easier to correct.")
    ] = False,
    only: Annotated[
        Path | None, Option(help="Write the images in this table's column ImageId, such as to_label.csv of compare.")
    ] = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into COCO, to correct them in a labelling tool and import them again.

    Example: defectseg data export predictions results/ --out to_correct.json
    """
    from defectseg.formats.predictions import predictions_to_coco

    again = f"defectseg data import {shown(out)} --images DIR --out DIR --unlabelled clean"
    hint = f"Once corrected: {again} (or skip, if nobody has looked at the images without a region)"
    _export(partial(predictions_to_coco, output, out, run_lengths=run_lengths, only=only), out, json_output, hint)


@export_app.command("submission")
def export_submission(
    output: Output,
    sample: Annotated[Path, Option(help="sample_submission.csv of the competition.", metavar="FILE")],
    out: Annotated[Path, Option(help="CSV to write; it must not exist.", metavar="FILE")],
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn predictions into a submission to the Severstal competition, in the rows, order and columns of its sample.

    Example: defectseg data export submission results/ --sample sample_submission.csv --out submission.csv
    """
    from defectseg.formats.submission import export_submission as export

    report = export(output, sample, out)
    unlisted = len(report.unlisted)
    notes = [f"note: images that are not in the sample, and were left out: {unlisted}"] if unlisted else []
    made = f"{report.images} images, {report.rows} rows, {report.masks} of them with a mask: {shown(out)}"
    print_report(report, out, json_output, *notes, made)
