"""Label tables in Severstal's layouts: to unite the rows of instances, to rename classes, or with images elsewhere."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from defectseg.data.classes import CLASSES_NAME, read_class_names
from defectseg.data.folder import GROUPS_NAME, IMAGES_NAME, read_not_labelled
from defectseg.data.split import SPLIT_NAME
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES, scan_label_rows
from defectseg.errors import LabelError
from defectseg.formats.classes import IGNORE_NAMES
from defectseg.formats.labels import Choices, Kind, LabelSet, Record, Shape, Status
from defectseg.formats.losses import Tally
from defectseg.formats.source import LabelSource
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.text import read_csv

_SAMPLE_NAME = "sample_submission.csv"


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    table = _find_table(source)
    return f"{table} is a table of run-lengths" if table else ""


def _find_table(source: LabelSource) -> str:
    """train.csv, or else the only table of labels; "" if there is none."""
    files = source.named(*TABLE_NAMES) or [one for one in source.files if one.lower().endswith((".csv", ".csv.gz"))]
    tables = [file for file in files if file != _SAMPLE_NAME and _has_labels(source.path(file))]
    return tables[0] if len(tables) == 1 else ""


def _has_labels(path: Path) -> bool:
    with suppress(LabelError):
        table, layouts = read_csv(path), (["ImageId_ClassId"], ["ImageId", "EncodedPixels"])
        return path.name in TABLE_NAMES or any(table.columns(*names) for names in layouts)
    return False


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Images without a row are sound, as in a data folder; its other files come along."""
    if not (table := _find_table(source)):
        raise LabelError(f"{source.given}: no label table; expected one, in CSV with commas, with a column ImageId.")
    path = source.path(table)
    beside = path.parent / IMAGES_NAME
    roots = [choices.images or (beside if beside.is_dir() else source.root)]
    image_of = {image.image_id: image.path for image in find_images(roots)}
    if read_csv(path).columns("fold"):
        tally.add("fold_column", example=path.name)
    rows = scan_label_rows(path, image_ids=image_of, unite=choices.unite).sound()
    largest = max((row.class_id for row in rows if row.class_id != IGNORE_CLASS_ID), default=1)
    named = (path.parent / CLASSES_NAME).is_file()
    names = list(read_class_names(path.parent, largest) if named else map(str, range(1, largest + 1)))
    name_of = dict(enumerate(names, start=1)) | {IGNORE_CLASS_ID: IGNORE_NAMES[0]}
    shapes: dict[str, list[Shape]] = {image_id: [] for image_id in image_of}
    for row in rows:
        listed, where = shapes.setdefault(row.image_id, []), f"{path}, line {row.line}"
        if row.encoded and row.class_id not in name_of:
            raise LabelError(f"{where}: ClassId {row.class_id}, but {CLASSES_NAME} names {len(names)} classes.")
        if row.encoded:
            listed.append(Shape(name_of[row.class_id], partial(rle.decode, row.encoded, where=where), where))
    unlabelled, records = read_not_labelled(path.parent, image_of), []
    for image_id, listed in shapes.items():
        status: Status = "unlabelled" if image_id in unlabelled else "labelled"
        records.append(Record(image_of.get(image_id, image_id), f"{path}: {image_id}", listed, status=status))
    keep = [file for name in (SPLIT_NAME, GROUPS_NAME) if (file := path.parent / name).is_file()]
    return LabelSet(records, names, numbered=not named, roots=roots, keep=keep)


KIND = Kind("severstal", "Kaggle: train.csv of Severstal, or a table like it", recognise, read)
