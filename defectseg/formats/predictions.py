"""Predictions as COCO, to be corrected in a labelling tool: new labels grow from a first model."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defectseg.data.names import read_by_image
from defectseg.errors import DataError, OutputExistsError
from defectseg.formats.coco import CocoDocument
from defectseg.formats.exporting import ExportReport
from defectseg.formats.losses import Tally
from defectseg.image import rle
from defectseg.image.limits import check_masks
from defectseg.predict.output import read_results
from defectseg.predict.tables import RLE, STATUS_UNREADABLE, Record
from defectseg.progress import Progress, silent, some

TOLERANCE_PX = 1.0  # outlines may deviate so far, so that people move a few dozen points, not hundreds


def read_run_lengths(root: Path, out: Path) -> tuple[dict[str, Any], Iterator[Record]]:
    """run.json and the records of a finished run of `predict` that has run-lengths, for an export to `out`.

    Raises:
        DataError: `root` is not the output folder of such a run.
        OutputExistsError: `out` exists.
    """
    if out.exists():
        raise OutputExistsError(f"{out}: exists. Choose another output file.")
    run, outputs, records = read_results(root)
    if RLE not in outputs.names:
        raise DataError(f"{root}: was written without predictions.csv. Predict again, with rle among the outputs.")
    return run, records


def predictions_to_coco(
    root: Path, file: Path, *, run_lengths: bool = False, only: Path | None = None, progress: Progress = silent
) -> ExportReport:
    """Write the results in an output folder of `predict` as one COCO file.

    Each connected region becomes an annotation with its score. Every image is listed, so that people see what was
    missed. `file_name` is the ImageId. `data import` reads the corrected file, and asks what the images without an
    annotation are: sound if people have looked at all of them, not labelled otherwise.

    Args:
        root: the output folder of a finished run.
        file: the JSON file to write; it must not exist.
        run_lengths: write exact run-lengths instead of outlines that people can correct.
        only: a table whose column ImageId lists the images to write; None: all.
        progress: counts the images; the total is not known in advance.

    Raises:
        DataError: the folder is not the output of a finished run, or was written without run-lengths; or it lacks an
            image of the list.
        OutputExistsError: `file` exists.
        ResourceError: it cannot be written.
    """
    run, records = read_run_lengths(root, file)
    class_names, tally = tuple(map(str, run["class_names"])), Tally()
    wanted = None if only is None else {image_id for _, image_id, _ in read_by_image(only, "ImageId")}
    absent = set(wanted or ())
    document = CocoDocument(class_names, tally, tolerance_px=None if run_lengths else TOLERANCE_PX)
    for record in records:
        absent.discard(record.image_id)
        if wanted is not None and record.image_id not in wanted:
            continue
        if record.status == STATUS_UNREADABLE:
            tally.add("unreadable_images", example=record.image_id)
            continue
        size_hw = record.size_hw
        encoded = {class_id: text for _, class_id, text in record.predictions}
        check_masks(size_hw, shapes=len(encoded), classes=len(encoded), where=f"{root}: {record.image_id}")
        masks = {class_id: rle.decode(text, size_hw, where=record.image_id) for class_id, text in encoded.items()}
        scores: dict[tuple[int, ...], list[float]] = defaultdict(list)
        for _, class_id, _, area_px, left, top, width, height, _, _, *rest in record.regions:
            scores[class_id, area_px, left, top, width, height] += map(float, rest[:1])
        for annotation in document.add_image(record.image_id, size_hw, masks):
            if found := scores[annotation["category_id"], annotation["area"], *annotation["bbox"]]:
                annotation["score"] = found.pop(0)  # regions of one class, area and box take their scores in turn
        progress(len(document.images), 0)
    if absent:
        raise DataError(f"{root}: has no {some(absent)}, which {only} lists. Give the results of these images.")
    if not run_lengths and document.annotations:
        tally.add("simplified", round(TOLERANCE_PX))
    document.write(file, complete=False)
    masked = {(one["image_id"], one["category_id"]) for one in document.annotations}
    return ExportReport(len(document.images), len(masked), class_names, tally.losses())
