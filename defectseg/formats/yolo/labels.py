"""The text files of YOLO segmentation: where they lie, and the lines in them.

A line is `class x1 y1 x2 y2 ...` in fractions of the image's width and height, class counting from 0. Outlines run
through the pixels at the border, which belong to the shape: a point lies in the pixel that its coordinates, in pixels,
are cut down to. So do Ultralytics' own tools when they make masks for training (polygon2mask).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError

_BOX_NUMBERS = 4
_FEWEST_NUMBERS = 6  # of an outline: three points
_BEYOND = 0.1  # tools let points stray over the border of the image
_ROUNDING_PX = 0.01  # 333 of 1000 px written as 0.333000 must not become pixel 332; five digits do for 2000 px
# Corners within a pixel, so that a shape of one or two pixels still has three different points.
_WITHIN_PX = np.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]])


@dataclass(frozen=True)
class YoloShape:
    """One line of a label file.

    Attributes:
        class_index: the class, from 0.
        points: float64 (N, 2), x and y in fractions of the image; for a box its centre and its size.
        is_box: True where the line has a box and no outline.
    """

    class_index: int
    points: NDArray[np.float64]
    is_box: bool

    def pixels(self, size_hw: tuple[int, int]) -> NDArray[np.intp]:
        """The pixels that an outline runs through, int (N, 2), x and y."""
        return np.floor(self.points * size_hw[::-1] + _ROUNDING_PX).astype(np.intp)


def label_path(image_path: str) -> str:
    """Where the labels of an image are, both relative to the data set: the last folder `images` becomes `labels`."""
    before, found, after = f"/{image_path}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else after
    return path.lstrip("/").rpartition(".")[0] + ".txt"


def parse_line(text: str, *, num_classes: int, where: str) -> YoloShape:
    """Read one line of a label file.

    Raises:
        LabelError: it is no outline and no box, its class is unknown, or its numbers are no fractions; names `where`.
    """
    words = text.split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        raise LabelError(f"{where}: {text[:60]!r}; expected a class and x, y pairs, all numbers.") from None
    if not float(numbers[0]).is_integer() or not 0 <= numbers[0] < num_classes:
        raise LabelError(f"{where}: class {words[0]}; data.yaml names {num_classes}, counted from 0.")
    points = numbers[1:]
    is_box = len(points) == _BOX_NUMBERS
    if len(points) % 2 or (not is_box and len(points) < _FEWEST_NUMBERS):
        raise LabelError(
            f"{where}: has {len(points)} numbers after the class; expected x, y pairs of three points or more, or the "
            "four of a box. Where the last one is a confidence, write the labels again without it."
        )
    beyond = ~((points >= -_BEYOND) & (points <= 1 + _BEYOND))  # nan too
    if beyond.any():
        raise LabelError(
            f"{where}: holds {points[beyond][0]:g}; expected fractions of width and height, 0 to 1, not pixels."
        )
    return YoloShape(int(numbers[0]), points.reshape(-1, 2), is_box)


def format_line(class_index: int, outline: NDArray[np.intp], size_hw: tuple[int, int]) -> str:
    """The line of a shape whose border pixels are `outline`, int (N, 2), x and y."""
    if len(outline) < len(_WITHIN_PX):
        last = np.repeat(outline[-1:], len(_WITHIN_PX) - len(outline), axis=0)
        points = np.concatenate([outline, last]) + _WITHIN_PX
    else:
        points = outline + 0.5
    return f"{class_index} " + " ".join(f"{number:.6f}" for number in (points / size_hw[::-1]).ravel().tolist())


def parse_lines(lines: Sequence[str], *, num_classes: int, where: str) -> list[YoloShape]:
    """Read the lines of a label file; empty ones are passed over. Raises LabelError as `parse_line`."""
    return [
        parse_line(line, num_classes=num_classes, where=f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
