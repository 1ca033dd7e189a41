"""The lines of YOLO's label files: a class, an outline or a box in fractions of the image, perhaps a confidence."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.common import Tally, read_text
from defectseg.formats.labels import Box, Shape
from defectseg.formats.polygons import lies_within, paint_pixel_outline

_EXPECTED = (
    "expected numbers: a class, then x, y pairs of three points or more, or the four of a box, and perhaps a "
    "confidence from 0 to 1"
)
_BEYOND = 1.0  # tools let points stray over the border; farther out, the numbers are pixels
_ROUNDING_PX = 0.01  # 333 of 1000 px written as 0.333000 must not become pixel 332; five digits do for 2000 px


def parse_line(text: str, names: Sequence[str], tally: Tally, *, where: str) -> tuple[Shape | Box, bool]:
    """Read one line of a label file.

    Args:
        text: the line.
        names: the classes.
        tally: told, once it is painted, if an outline reaches beyond its image.
        where: names the line in messages.

    Returns:
        What it describes, and whether a confidence follows.

    Raises:
        LabelError: it is no outline and no box, its class is unknown, or its numbers are no fractions.
    """
    numbers = _numbers(text)
    has_score = len(numbers) % 2 == 0
    if len(numbers) < 5 or (has_score and not 0 <= numbers[-1] <= 1):
        raise LabelError(f"{where}: {text[:60]!r}; {_EXPECTED}.")
    if numbers[0] not in range(len(names)):
        raise LabelError(f"{where}: class {numbers[0]:g}; expected 0 to {len(names) - 1}.")
    points = numbers[1 : len(numbers) - has_score].reshape(-1, 2)
    is_box = len(points) == 2
    if not lies_within(points, (1, 1), beyond_px=(_BEYOND, _BEYOND)) or (is_box and points[1].min() <= 0):
        raise LabelError(
            f"{where}: {text[:60]!r}; expected fractions of width and height, 0 to 1, not pixels, and boxes that are "
            "not empty."
        )
    name = names[int(numbers[0])]
    if not is_box:
        return Shape(name, partial(_paint, points, where, tally), where), has_score
    (x, y), (width, height) = points.tolist()
    return Box(name, (x - width / 2, y - height / 2, width, height), where, in_fractions=True), has_score


def looks_like_labels(path: Path) -> bool:
    """Whether the first line of a file may be one of a label file. Raises nothing."""
    with suppress(LabelError):
        return len(_numbers(read_text(path, "").lstrip().partition("\n")[0])) > 4
    return False


def _numbers(line: str) -> NDArray[np.float64]:
    """The numbers in a line; none if there is anything else."""
    try:
        return np.array(line.split(), np.float64)
    except ValueError:
        return np.empty(0)


def _paint(points: NDArray[np.float64], where: str, tally: Tally, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    points_px = points * size_hw[::-1]
    if not lies_within(points_px, size_hw):
        tally.add("clipped", example=where.rpartition(": ")[2])
    return paint_pixel_outline(np.floor(points_px + _ROUNDING_PX).astype(np.intp), size_hw)
