"""Masks as COCO writes them: polygons and run-lengths.

COCO's run-lengths are the lengths of alternating runs of 0 and 1, column by column, beginning with 0. They stand as a
list ("uncompressed"), or as text in six-bit digits ("compressed"; pycocotools, common/maskApi.c, rleToString).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError

_LONGEST_NUMBER_BITS = 40


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, bool (H, W), as compressed run-lengths: `{"size": [H, W], "counts": text}`."""
    from pycocotools import mask as coco

    return _as_text(coco.encode(np.asfortranarray(mask, np.uint8)))


def _as_text(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """What pycocotools gives, fit for JSON."""
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(run_lengths: Mapping[str, Any], size_hw: tuple[int, int], *, where: str) -> NDArray[np.bool_]:
    """Turn run-lengths, compressed or not, into a mask, bool (H, W).

    Not by pycocotools, which takes what it is given on trust: with runs that do not fill the image, the rest of the
    mask is whatever was in memory.

    Raises:
        LabelError: the run-lengths are of another image size, are no numbers, or do not add up to the image; names
            `where`.
    """
    height, width = size_hw
    if run_lengths.get("size") != [height, width]:
        raise LabelError(
            f"{where}: run-lengths of size {run_lengths.get('size')}; its image has [{height}, {width}] "
            "(rows, columns). Export the labels again at the images' own size."
        )
    counts = run_lengths.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts, where)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise LabelError(f"{where}: 'counts' is neither a text nor a list of whole numbers from 0. Export it again.")
    if sum(counts) != height * width:
        raise LabelError(
            f"{where}: the run-lengths add up to {sum(counts)} px; an image of {height} x {width} has "
            f"{height * width}. The annotation is damaged; export it again."
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _unpack(text: str, where: str) -> list[int]:
    """The numbers in compressed run-lengths; from the fourth on, each is the difference to the one two before it."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or bits > _LONGEST_NUMBER_BITS:
            raise LabelError(f"{where}: {letter!r} in compressed run-lengths; the annotation is damaged.")
        value |= (digit & 31) << bits
        bits += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise LabelError(f"{where}: the compressed run-lengths are cut short; the annotation is damaged.")
    return counts


def paint(polygons: Sequence[Any], size_hw: tuple[int, int], *, where: str) -> NDArray[np.bool_]:
    """The union of polygons, bool (H, W), as pycocotools fills them: pixels whose centre lies inside.

    Args:
        polygons: each a list x1, y1, x2, y2 and so on, in pixels; the pixel in column x covers x to x + 1. Those with
            fewer than three points hold nothing and are passed over.
        size_hw: height and width of the image in pixels.
        where: how messages name the annotation.

    Raises:
        LabelError: a polygon is not a list of numbers in pairs, or lies far outside the image.
    """
    from pycocotools import mask as coco

    sound = [polygon for polygon in polygons if _check_polygon(polygon, size_hw, where)]
    if not sound:
        return np.zeros(size_hw, np.bool_)
    return decode(_as_text(coco.merge(coco.frPyObjects(sound, *size_hw))), size_hw, where=where)


def _check_polygon(polygon: Any, size_hw: tuple[int, int], where: str) -> bool:
    """Whether a polygon has an inside. What pycocotools gets must be sound: it crashes on nan and on huge numbers."""
    height, width = size_hw
    numbers = polygon if isinstance(polygon, list) else [None]
    if len(numbers) % 2 or not all(isinstance(n, int | float) for n in numbers):
        raise LabelError(f"{where}: a polygon that is not a list of numbers x1, y1, x2, y2 and so on. Draw it again.")
    for number, length in zip(numbers, [width, height] * (len(numbers) // 2), strict=True):
        if not -length <= number <= 2 * length:  # nan too
            raise LabelError(
                f"{where}: a polygon with a point at {str(number)[:20]}, far outside its image of {width} x {height}. "
                "Export the labels again at the images' own size."
            )
    return len(numbers) >= 6
