"""Score predictions from a table in the Kaggle format, made by any program."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defectseg.data.folder import IMAGES_NAME, DataFolder, check_class_ids
from defectseg.data.table import IGNORE_CLASS_ID, read_label_table, scan_label_rows
from defectseg.errors import ImageError, LabelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import read_size
from defectseg.inference.stream import Unreadable
from defectseg.progress import some


def score_predictions(path: Path, folder: DataFolder) -> tuple[Counts, list[str], list[Unreadable]]:
    """Count a predictions table against the labels of a data folder.

    An image that the table does not list counts as predicted empty; rows for an image that the folder does not hold
    are left out. Warnings count both.

    Args:
        path: the table, .csv or .csv.gz, in any layout that a label table may have.
        folder: the labelled images.

    Returns:
        The counts, the warnings, and the images that were left out because their size cannot be read.

    Raises:
        LabelError: the table or a run-length in it is not valid, it names a class that the folder does not have, or it
            lists none of the folder's images.
    """
    table = read_label_table(path, {*folder.image_ids, *folder.not_labelled}, class_names=folder.class_names)
    check_class_ids(table, folder.class_names, path)
    listed, images = table.listed - folder.not_labelled, set(folder.image_ids)
    warnings = _compare_names(path, listed, images, folder.root / IMAGES_NAME)
    counts: Counts = {}
    unreadable = []
    for image_id in folder.image_ids:
        encoded = table.rles.get(image_id, {})
        if not encoded and not folder.table.rles.get(image_id):  # neither side needs the size of the image
            counts |= {(image_id, class_id): PairCounts(0, 0, 0) for class_id in range(1, folder.num_classes + 1)}
            continue
        try:
            size_hw = read_size(folder.image_path(image_id))
        except ImageError as error:
            unreadable.append(Unreadable(image_id, folder.image_path(image_id), str(error)))
            continue
        truth, ignore = folder.masks_of(image_id, size_hw)
        predicted = np.zeros_like(truth)
        for class_id, pairs in encoded.items():
            predicted[class_id - 1] = rle.decode(pairs, size_hw, where=f"{path}: {image_id}, class {class_id}")
        counts |= count_pairs(image_id, predicted, truth, ignore)
    return counts, warnings, unreadable


@dataclass(frozen=True)
class PredictionFile:
    """What a file of predictions holds.

    Attributes:
        images, empty_images: number of its images, and of those without a mask.
        masks, px: ClassId -> number of masks, and of their pixels.
        warnings: about images that only the file or only the folder has.
    """

    images: int
    empty_images: int
    masks: Mapping[int, int]
    px: Mapping[int, int]
    warnings: list[str]


def check_predictions(path: Path, images: Path | None = None) -> PredictionFile:
    """Check the form of a predictions table, and with `images` its names and whether each run lies in its image.

    Args:
        path: the table, as in `score_predictions`.
        images: the folder of the images, or None.

    Raises:
        LabelError: a row is not valid, or the table lists none of the images; the message names the row.
        DataError, ImageError: the folder has no images, or one with a mask cannot be read.
    """
    found = {} if images is None else {image.image_id: image.path for image in find_images([images])}
    rows = scan_label_rows(path, image_ids=found.keys()).sound()
    listed = frozenset(row.image_id for row in rows)
    warnings = [] if images is None else _compare_names(path, listed, set(found), images)
    masks, px = Counter[int](), Counter[int]()
    filled = [row for row in rows if row.encoded]
    for row in sorted(filled, key=lambda row: row.class_id):
        where, file = f"{path}, line {row.line}: {row.image_id}, ClassId", found.get(row.image_id)
        if row.class_id == IGNORE_CLASS_ID:
            raise LabelError(f"{where} {IGNORE_CLASS_ID} marks pixels to ignore in labels; it is no prediction.")
        size_hw = None if file is None else read_size(file)
        masks[row.class_id] += 1
        px[row.class_id] += int(rle.parse_pairs(row.encoded, size_hw, where=f"{where} {row.class_id}")[:, 1].sum())
    return PredictionFile(len(listed), len(listed) - len({row.image_id for row in filled}), masks, px, warnings)


def _compare_names(path: Path, listed: frozenset[str], images: set[str], folder: Path) -> list[str]:
    """Warnings of ImageIds that only the table or only the folder has. Raises LabelError where they share none."""
    unlisted, unknown = images - listed, listed - images
    if unlisted == images:
        first = f"; its first ImageId is {min(listed)!r}, theirs {min(images)!r}" if listed else ""
        raise LabelError(f"{path}: lists none of the {len(images)} images{first}. Expected paths relative to {folder}.")
    warnings = []
    if unlisted:
        warnings.append(f"{len(unlisted)} images are not in {path.name} and count as empty: {some(unlisted)}.")
    if unknown:
        warnings.append(f"{len(unknown)} images of {path.name} are not in {folder} and are left out: {some(unknown)}.")
    return warnings
