"""Predictions as a submission to the Severstal competition: the rows, order and columns of its sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from defectseg.data.table import label_cells
from defectseg.errors import DataError, LabelError
from defectseg.files import atomic_csv
from defectseg.formats.predictions import read_run_lengths
from defectseg.predict.tables import STATUS_UNREADABLE
from defectseg.progress import some
from defectseg.text import CsvTable, read_csv

_LAYOUTS = ("ImageId", "ClassId", "EncodedPixels"), ("ImageId_ClassId", "EncodedPixels")
_PLACEHOLDER = "0"  # the sample of the competition has one row for each image, with ClassId 0


@dataclass(frozen=True)
class SubmissionReport:
    """What was written: images, rows, and rows with a mask; and the images that the sample does not name."""

    images: int
    rows: int
    masks: int
    unlisted: tuple[str, ...]


def export_submission(root: Path, sample: Path, out: Path) -> SubmissionReport:
    """Write the results in an output folder of `predict` as a submission.

    A row of the sample whose ClassId is 0 stands for its image: a row for each class of the model takes its place.

    Args:
        root: the output folder of a finished run.
        sample: sample_submission.csv, with the columns ImageId, ClassId and EncodedPixels in any order, or
            ImageId_ClassId and EncodedPixels.
        out: the file to write; it must not exist.

    Raises:
        DataError: the folder is not the output of a finished run, or was written without run-lengths; an image of the
            sample was not predicted; a mask has no row in the sample.
        LabelError: the sample has other columns.
        OutputExistsError: `out` exists.
    """
    run, records = read_run_lengths(root, out)
    readable = [record for record in records if record.status != STATUS_UNREADABLE]
    predicted = {one.image_id: {str(number): runs for _, number, runs in one.predictions if runs} for one in readable}
    table = read_csv(sample)
    class_ids = [str(number) for number in range(1, len(run["class_names"]) + 1)]
    asked = list(_asked(table, class_ids))
    if not asked or len(set(asked)) < len(asked):
        raise LabelError(f"{sample}: has no row, or two of one image and ClassId. Take the competition's own file.")
    images = dict.fromkeys(image_id for image_id, _ in asked)
    if missing := [image_id for image_id in images if image_id not in predicted]:
        lack = f"has no result for {len(missing)} of the {len(images)} images in {sample.name}: {some(missing)}"
        raise DataError(f"{root}: {lack}. Predict all images of the sample. Names are paths below their folder.")
    masks = {(image_id, class_id) for image_id in images for class_id in predicted[image_id]}
    if without := masks.difference(asked):
        image_id, class_id = min(without)
        raise DataError(f"{sample}: has no row for {image_id} with ClassId {class_id}, which {root} has a mask of.")
    with atomic_csv(out, table.header) as write:
        write(_row(table, image_id, class_id, predicted[image_id].get(class_id, "")) for image_id, class_id in asked)
    return SubmissionReport(len(images), len(asked), len(masks), tuple(sorted(predicted.keys() - images)))


def _asked(table: CsvTable, class_ids: list[str]) -> Iterator[tuple[str, str]]:
    """ImageId and ClassId of each row to write, in the order of the sample."""
    if table.ragged:
        raise LabelError(f"{table.path}, line {table.ragged[0][0]}: has another number of fields than the header.")
    if set(table.header) not in map(set, _LAYOUTS):
        expected = " or ".join(map(", ".join, _LAYOUTS))
        raise LabelError(f"{table.path}: has the columns {', '.join(table.header)}; expected {expected}.")
    for line, image_id, class_text, _ in label_cells(table):
        if (class_id := class_text.strip()) not in (_PLACEHOLDER, *class_ids):
            raise LabelError(f"{table.path}, line {line}: ClassId {class_id!r}; the model has 1 to {len(class_ids)}.")
        yield from ((image_id, one) for one in (class_ids if class_id == _PLACEHOLDER else [class_id]))


def _row(table: CsvTable, image_id: str, class_id: str, encoded: str) -> list[str]:
    values = {"ImageId": image_id, "ClassId": class_id, "EncodedPixels": encoded}
    return [values.get(name, f"{image_id}_{class_id}") for name in table.header]
