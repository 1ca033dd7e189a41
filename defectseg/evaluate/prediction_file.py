"""Score predictions from a table in the Kaggle format, made by any program."""

from pathlib import Path

import numpy as np

from defectseg.data.folder import IMAGES_NAME, DataFolder, LabelTable, read_label_table
from defectseg.errors import ImageError, LabelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.image import rle
from defectseg.image.read import read_size
from defectseg.inference.stream import Unreadable


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
    table = read_label_table(path)
    for image_id, encoded in table.rles.items():
        if (beyond := max(encoded)) > folder.num_classes:
            raise LabelError(
                f"{path}: {image_id}, class {beyond}: expected a ClassId from 1 to {folder.num_classes}, "
                "as many as the data folder has. Name its classes in classes.txt."
            )
    warnings = _compare_names(path, table, folder)
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


def _compare_names(path: Path, table: LabelTable, folder: DataFolder) -> list[str]:
    """Warnings of ImageIds that only one side has. Raises LabelError where the sides share none."""
    images = set(folder.image_ids)
    unlisted, unknown = images - table.listed, table.listed - images
    if unlisted == images:
        listed = f"; its first ImageId is {min(table.listed)!r}, theirs {min(images)!r}" if table.listed else ""
        raise LabelError(
            f"{path}: lists none of the {len(images)} images to score{listed}. "
            f"Expected paths relative to {folder.root / IMAGES_NAME}."
        )
    warnings = []
    if unlisted:
        warnings.append(
            f"{len(unlisted)} of {len(images)} images are not listed in {path.name} and count as predicted empty, "
            f"for instance {min(unlisted)}."
        )
    if unknown:
        warnings.append(
            f"{len(unknown)} images listed in {path.name} are not in {folder.root} and are left out, "
            f"for instance {min(unknown)}."
        )
    return warnings
