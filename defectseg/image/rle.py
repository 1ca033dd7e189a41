"""Severstal's run-length codec.

A mask is pairs `start length`. Starts count from 1; pixels run top to bottom, then left to right (column-major).
Source: the competition's rules (Kaggle 2019, "Severstal: Steel Defect Detection", Evaluation).
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError

# Sums of two numbers of 15 digits are exact in int64, and no image has so many pixels.
_PLAIN = re.compile(r"[0-9]{1,15}(?: [0-9]{1,15})*")
_NUMBER = re.compile(r"-?[0-9]{1,15}")


def encode(mask: NDArray[np.bool_]) -> str:
    """Encode a mask, bool (H, W), as "start length start length ..."; "" if it is empty."""
    if mask.size == 0:
        return ""
    columns = np.zeros(mask.size + 2, np.uint8)  # with a sound pixel before the first and after the last
    columns[1:-1] = cv2.transpose(np.ascontiguousarray(mask, dtype=np.bool_).view(np.uint8)).reshape(-1)
    numbers = np.flatnonzero(columns[1:] != columns[:-1]) + 1  # of the pixels that differ from the one before
    numbers[1::2] -= numbers[::2]
    return " ".join(map(str, numbers.tolist()))


def decode(encoded: str, size_hw: tuple[int, int], *, where: str = "EncodedPixels") -> NDArray[np.bool_]:
    """Decode "start length ..." to a mask, bool (H, W), C-contiguous. The empty text is the empty mask.

    Args:
        encoded: pairs separated by blanks, sorted by start, without overlap. Runs may touch.
        size_hw: height and width of the image in pixels.
        where: the row, for error messages ("train.csv, line 7: a.jpg, class 2").

    Raises:
        LabelError: as `parse_pairs`.
    """
    height, width = size_hw
    pairs = parse_pairs(encoded, size_hw, where=where)
    if len(pairs) == 0:
        return np.zeros(size_hw, np.bool_)
    boundaries = np.empty(2 * len(pairs) + 2, np.int64)
    boundaries[0], boundaries[-1] = 0, height * width
    boundaries[1:-1:2] = pairs[:, 0] - 1
    boundaries[2:-1:2] = pairs[:, 0] - 1 + pairs[:, 1]
    values = np.zeros(len(boundaries) - 1, np.uint8)
    values[1::2] = 1
    columns = np.repeat(values, np.diff(boundaries)).reshape(width, height)
    return cv2.transpose(columns).reshape(height, width).view(np.bool_)


def parse_pairs(
    encoded: str, size_hw: tuple[int, int] | None = None, *, where: str = "EncodedPixels"
) -> NDArray[np.int64]:
    """Read the pairs of a run-length text, int64 (N, 2): start (1-based) and length in pixels.

    Without `size_hw`, runs beyond the image are not noticed.

    Raises:
        LabelError: an odd count, something that is not a whole number, a start below 1, a length below 1, pairs that
            overlap or are not sorted, or a run beyond the image. The message names `where` and the pair.
    """
    pairs = _read_pairs(encoded, where)
    if len(pairs) == 0:
        return pairs
    starts, lengths = pairs[:, 0], pairs[:, 1]
    stops = starts + lengths
    pixels = np.iinfo(np.int64).max if size_hw is None else size_hw[0] * size_hw[1]
    sound = starts[0] >= 1 and lengths.min() >= 1 and bool((starts[1:] >= stops[:-1]).all()) and stops[-1] - 1 <= pixels
    if not sound:
        index, fault = _first_fault(pairs, pixels, size_hw)
        raise LabelError(f"{where}: pair {index + 1} ('{starts[index]} {lengths[index]}') {fault}.")
    return pairs


def _read_pairs(encoded: str, where: str) -> NDArray[np.int64]:
    """The pairs of numbers, int64 (N, 2), whatever they are."""
    if not _PLAIN.fullmatch(encoded):
        words = encoded.split()
        if not words:
            return np.empty((0, 2), np.int64)
        for index, word in enumerate(words):
            if not _NUMBER.fullmatch(word):
                raise LabelError(f"{where}: pair {index // 2 + 1} has {word[:40]!r}; expected a whole number.")
        encoded = " ".join(words)
    numbers = np.fromstring(encoded, np.int64, sep=" ")
    if len(numbers) % 2:
        raise LabelError(f"{where}: pair {len(numbers) // 2 + 1} ('{numbers[-1]}') lacks its length.")
    return numbers.reshape(-1, 2)


def unite(*masks: str) -> str:
    """The run-lengths of the pixels that are in any of the masks, whose pairs may overlap and stand in any order.

    Raises:
        LabelError: as `parse_pairs`, but for the order and overlaps of pairs.
    """
    pairs = _read_pairs(" ".join(masks), "EncodedPixels")
    if len(pairs) == 0:
        return ""
    for start, length in pairs[(pairs < 1).any(axis=1)][:1].tolist():
        parse_pairs(f"{start} {length}")  # raises
    pairs = pairs[np.argsort(pairs[:, 0])]
    stops = np.maximum.accumulate(pairs.sum(axis=1))
    first = np.append(True, pairs[1:, 0] > stops[:-1])  # of each run
    starts, stops = pairs[first, 0], stops[np.append(first[1:], True)]
    return " ".join(map(str, np.column_stack([starts, stops - starts]).ravel().tolist()))


def _first_fault(pairs: NDArray[np.int64], pixels: int, size_hw: tuple[int, int] | None) -> tuple[int, str]:
    last_start, last_stop = 0, 1
    for index, (start, length) in enumerate(pairs.tolist()):
        if start < 1:
            return index, "starts below 1; pixels are numbered from 1"
        if length < 1:
            return index, "has a length below 1"
        if start < last_start:
            return index, f"starts before the pair ahead of it ({last_start}); pairs must be sorted"
        if start < last_stop:
            return index, f"overlaps the pair ahead of it, which ends at {last_stop - 1}"
        if start + length - 1 > pixels:
            assert size_hw is not None
            height, width = size_hw
            return index, f"ends beyond the last pixel {pixels} of an image of {height} rows x {width} columns"
        last_start, last_stop = start, start + length
    raise AssertionError("called for pairs that have no fault")
