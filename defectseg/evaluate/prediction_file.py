"""Score predictions that come as a table in the Kaggle format, whoever made them."""

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder, LabelTable, read_label_table
from defectseg.errors import LabelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.image import read, rle

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
# Start-of-frame markers: C0 to CF without the tables DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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
) -> tuple[Counts, list[str]]:
    """Count a predictions table against the labels of a data folder.

    An image that the table does not list counts as predicted empty; a row for an image that the folder does not hold
    is left out. A warning counts either.

    Args:
        path: the table, .csv or .csv.gz.
        folder: the labelled images.
        image_ids: the images to score, a subset of the folder's; None scores them all.

    Returns:
        The counts, and warnings in words for people.

    Raises:
        LabelError: the table or a run-length in it is not valid, or it lists none of the folder's images.
        ImageError: the size of an image cannot be told.
    """
    table = read_predictions(path, num_classes=folder.num_classes)
    scored = folder.image_ids if image_ids is None else sorted(image_ids)
    warnings = _compare_names(path, table, folder, scored)
    counts: Counts = {}
    for image_id in scored:
        encoded = table.rles.get(image_id, {})
        if not encoded and not folder.table.rles.get(image_id):
            counts |= {(image_id, class_id): PairCounts(0, 0, 0) for class_id in range(1, folder.num_classes + 1)}
            continue
        size_hw = _image_size(folder.image_path(image_id))
        truth, ignore = folder.masks_of(image_id, size_hw)
        predicted: NDArray[np.bool_] = np.zeros_like(truth)
        for class_id, pairs in encoded.items():
            predicted[class_id - 1] = rle.decode(pairs, size_hw, where=f"{path}: {image_id}, class {class_id}")
        counts |= count_pairs(image_id, predicted, truth, ignore)
    return counts, warnings


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


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels: from the header of a JPEG or PNG, else by decoding the image.

    Raises:
        ImageError: it cannot be decoded either.
    """
    try:
        with path.open("rb") as handle:
            size_hw = _size_in_header(handle)
    except OSError:
        size_hw = None
    if size_hw is None:
        height, width = read.decode(path).pixels.shape
        size_hw = height, width
    return size_hw


def _size_in_header(handle: BinaryIO) -> tuple[int, int] | None:
    start = handle.read(len(_PNG_START))
    if start == _PNG_START:
        header = handle.read(16)
        sized = len(header) == 16 and header[4:8] == b"IHDR"
        return (int.from_bytes(header[12:16]), int.from_bytes(header[8:12])) if sized else None
    if not start.startswith(_JPEG_START):
        return None
    handle.seek(len(_JPEG_START))
    while True:
        marker = handle.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            return None
        if marker[1] in _JPEG_FRAMES:
            frame = handle.read(5)
            return (int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])) if len(frame) == 5 else None
        handle.seek(int.from_bytes(marker[2:4]) - 2, 1)
