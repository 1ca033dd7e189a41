"""The lines of YOLO's label files: a class, an outline or a box in fractions of the image, perhaps a confidence."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.common import read_text

_EXPECTED = "expected a class and x, y pairs, all numbers"
_BEYOND = 1.0  # tools let points stray over the border; farther out, the numbers are pixels


@dataclass(frozen=True)
class Line:
    """One line of a label file.

    Attributes:
        class_index: its class, from 0.
        points: float64 (N, 2), x and y in fractions of the image: an outline of three points or more, or the centre
            and the size of a box.
        has_score: whether a confidence follows.
        where: names the file and the line.
    """

    class_index: int
    points: NDArray[np.float64]
    has_score: bool
    where: str


def read_lines(path: Path, *, num_classes: int, where: str) -> Iterator[Line]:
    """The lines of a label file. Raises LabelError, see `parse_line`."""
    for number, text in enumerate(read_text(path, _EXPECTED).splitlines(), start=1):
        if text.strip():
            yield parse_line(text, num_classes=num_classes, where=f"{where}, line {number}")


def parse_line(text: str, *, num_classes: int, where: str) -> Line:
    """Read one line of a label file.

    Args:
        text: the line.
        num_classes: how many classes there are.
        where: names it in messages.

    Raises:
        LabelError: it is no outline and no box, its class is unknown, or its numbers are no fractions.
    """
    words = text.split()
    numbers = _numbers(words)
    if numbers is None:
        raise LabelError(f"{where}: {text[:60]!r}; {_EXPECTED}.")
    if numbers[0] not in range(num_classes):
        raise LabelError(f"{where}: class {words[0][:20]}; expected 0 to {num_classes - 1}.")
    count = len(words) - 1
    has_score = count % 2 == 1 and 0 <= numbers[-1] <= 1
    if count < 4 or (count % 2 and not has_score):
        raise LabelError(
            f"{where}: has {count} numbers after the class; expected x, y pairs of three points or more, or the four "
            "of a box, and perhaps a confidence from 0 to 1."
        )
    points = numbers[1 : count + 1 - has_score]
    beyond = ~((points >= -_BEYOND) & (points <= 1 + _BEYOND))  # nan too
    if beyond.any():
        raise LabelError(
            f"{where}: holds {points[beyond][0]:g}; expected fractions of width and height, 0 to 1, not pixels."
        )
    if len(points) == 4 and points[2:].min() <= 0:
        raise LabelError(f"{where}: a box of {points[2]:g} x {points[3]:g}; expected x, y, width and height.")
    return Line(int(numbers[0]), points.reshape(-1, 2), has_score, where)


def looks_like_labels(path: Path, *, if_empty: bool = False) -> bool:
    """Whether the first line of a file may be one of a label file; `if_empty` if there is none. Raises nothing."""
    try:
        words = read_text(path, "").lstrip().partition("\n")[0].split()
    except LabelError:
        return False
    return len(words) > 4 and _numbers(words) is not None if words else if_empty


def _numbers(words: list[str]) -> NDArray[np.float64] | None:
    try:
        return np.array(words, np.float64)
    except ValueError:
        return None
