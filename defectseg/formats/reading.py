"""What readers of label files share: values that may be anything, and small mask pictures."""

import base64
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError, LabelError
from defectseg.image.read import decode_stored

_FARTHEST_PX = 1e6  # far beyond any image; OpenCV and Pillow take no larger numbers
_MOST_BITMAP_BYTES = 2**28


def value_at(content: Any, *keys: str) -> Any:
    """What lies in nested mappings at the end of a path of keys; None if the path ends earlier."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def list_at(content: Any, *keys: str) -> list[Any]:
    """The same if it is a list, else an empty list."""
    value = value_at(content, *keys)
    return value if isinstance(value, list) else []


def numbers_of(values: Any) -> NDArray[np.float64]:
    """The numbers in lists, some of which may be written as text, as an array; an empty one if it is anything else."""
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)
    return numbers if (np.abs(numbers) < _FARTHEST_PX).all() else np.empty(0)  # not nan


def points_of(value: Any, where: str) -> NDArray[np.float64]:
    """Points x, y in px, float64 (N, 2), from a list of pairs. Raises LabelError where it is anything else."""
    pairs = value if isinstance(value, list) else []
    if not pairs or not all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
        raise LabelError(f"{where}: its points are {str(value)[:60]}; expected pairs of numbers x, y in px.")
    return np.array(pairs, np.float64)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a coordinate in px can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FARTHEST_PX  # not nan


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width in px as a label file states them; None where it states no numbers."""
    return (int(height), int(width)) if is_number(height) and is_number(width) else None


def reaches_beyond(points: NDArray[np.float64], size_hw: tuple[int, int] | None, *, sizes: int = 0) -> bool:
    """Whether points x, y in px, (N, 2), leave an image of known size by more than so many of its sizes; nan do."""
    return size_hw is not None and not (np.abs(points / size_hw[::-1] - 0.5) <= 0.5 + sizes).all()


def parse_numbers(texts: Sequence[str], what: str) -> list[float]:
    """Numbers that a tool writes as text, such as attributes in XML. Raises LabelError, which begins with `what`."""
    numbers = numbers_of(texts)
    if len(numbers) < len(texts):
        raise LabelError(f"{what} are '{' '.join(texts)[:60]}'; expected numbers in px.")
    return [float(number) for number in numbers]


def paint_bitmap(text: Any, corner: NDArray[np.float64], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask in a picture file in base64, which may be deflated: alpha if it has that, else all that is not black.

    Args:
        text: the base64 text.
        corner: where its left upper corner lies, x and y in px.
        where: names the entry in messages.
        size_hw: height and width of the image in px.

    Returns:
        bool (H, W).

    Raises:
        LabelError: it is no such picture, or reaches beyond the image.
    """
    try:
        content = base64.b64decode(text, validate=True)
        with suppress(zlib.error):  # not deflated
            content = zlib.decompressobj().decompress(content, _MOST_BITMAP_BYTES)
        pixels = decode_stored(content, name="the bitmap")
    except (TypeError, ValueError, ImageError) as error:
        raise LabelError(f"{where}: its bitmap is no picture in base64 ({error}). Export it again.") from error
    if pixels.ndim == 3:
        pixels = pixels[..., 3] if pixels.shape[2] == 4 else pixels.max(axis=2)
    return place_bitmap(np.asarray(pixels != 0), (int(corner[0]), int(corner[1])), size_hw, where)


def place_bitmap(
    bitmap: NDArray[np.bool_], left_top: tuple[int, int], size_hw: tuple[int, int], where: str
) -> NDArray[np.bool_]:
    """A mask, bool (h, w), laid onto an empty image, bool (H, W). Raises LabelError where it reaches beyond it."""
    (left, top), (height, width), whole = left_top, bitmap.shape, np.zeros(size_hw, np.bool_)
    if left < 0 or top < 0 or top + height > size_hw[0] or left + width > size_hw[1]:
        what = f"a bitmap of {width}x{height} px at {left}, {top}"
        raise LabelError(f"{where}: {what} reaches beyond its image of {size_hw[1]}x{size_hw[0]}. Export it again.")
    whole[top : top + height, left : left + width] = bitmap
    return whole
