"""Score predictions that come as a table in the Kaggle format, whoever made them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder, LabelTable, read_label_table
from defectseg.errors import ImageError, LabelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.image import read, rle
from defectseg.inference.stream import Unreadable


def read_predictions(path: Path, *, num_classes: int) -> LabelTable:
    """Read a predictions table, .csv or .csv.gz, in any layout that a label table may have.

    Raises:
        LabelError: the table is not valid, or names a ClassId above `num_classes`; names the file and the row.
    """
    table = read_label_table(path)
    for image_id, encoded in table.rles.items():
        if (beyond := max(encoded)) > num_classes:
            raise LabelError(
                f"{path}: {image_id}, class {beyond}: expected a ClassId from 1 to {num_classes}, "
                "as many as the data folder has. Name its classes in classes.txt."
            )
    return table


def score_predictions(
    path: Path, folder: DataFolder, *, image_ids: Collection[str] | None = None
) -> tuple[Counts, list[str], list[Unreadable]]:
    """Count a predictions table against the labels of a data folder.

    An image that the table does not list counts as predicted empty; a row for an image that the folder does not hold
    is left out. A warning counts either.

    Args:
        path: the table, .csv or .csv.gz.
        folder: the labelled images.
        image_ids: the images to score, a subset of the folder's; None scores them all.

    Returns:
        The counts, warnings in words for people, and the images left out since their size cannot be told.

    Raises:
        LabelError: the table or a run-length in it is not valid, or it lists none of the folder's images.
    """
    table = read_predictions(path, num_classes=folder.num_classes)
    scored = folder.image_ids if image_ids is None else sorted(image_ids)
    warnings = _compare_names(path, table, folder, scored)
    counts: Counts = {}
    failures = []
    for image_id in scored:
        encoded = table.rles.get(image_id, {})
        if not encoded and not folder.table.rles.get(image_id):
            counts |= {(image_id, class_id): PairCounts(0, 0, 0) for class_id in range(1, folder.num_classes + 1)}
            continue
        try:
            size_hw = read.read_size(folder.image_path(image_id))
        except ImageError as error:
            failures.append(Unreadable(image_id, folder.image_path(image_id), str(error)))
            continue
        truth, ignore = folder.masks_of(image_id, size_hw)
        predicted: NDArray[np.bool_] = np.zeros_like(truth)
        for class_id, pairs in encoded.items():
            predicted[class_id - 1] = rle.decode(pairs, size_hw, where=f"{path}: {image_id}, class {class_id}")
        counts |= count_pairs(image_id, predicted, truth, ignore)
    return counts, warnings, failures


def _compare_names(path: Path, table: LabelTable, folder: DataFolder, scored: Collection[str]) -> list[str]:
    """Warnings on ImageIds that stand on one side only; LabelError where the sides have none in common."""
    unlisted = set(scored) - table.listed
    unknown = table.listed - set(folder.image_ids)
    if len(unlisted) == len(scored) and scored:
        listed = f"; its first ImageId is {min(table.listed)!r}, theirs {min(scored)!r}" if table.listed else ""
        raise LabelError(
            f"{path}: lists none of the {len(scored)} images to score{listed}. "
            f"Expected paths relative to {folder.root / 'train_images'}."
        )
    warnings = []
    if unlisted:
        warnings.append(
            f"{len(unlisted)} of {len(scored)} images are not listed in {path.name} and count as predicted empty, "
            f"for instance {min(unlisted)}."
        )
    if unknown:
        warnings.append(
            f"{len(unknown)} images listed in {path.name} are not in {folder.root} and are left out, "
            f"for instance {min(unknown)}."
        )
    return warnings
