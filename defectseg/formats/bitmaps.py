"""Small mask pictures inside label files, and numbers that may be anything."""

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError, LabelError
from defectseg.image.read import decode_stored

_FARTHEST_PX = 1e6  # far beyond any image; OpenCV and Pillow take no larger numbers


def points_of(value: Any, where: str) -> NDArray[np.float64]:
    """Points x, y in px, float64 (N, 2), from a list of pairs. Raises LabelError where it is anything else."""
    pairs = value if isinstance(value, list) else []
    is_pair = [isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs]
    if not pairs or not all(is_pair):
        raise LabelError(f"{where}: its points are {str(value)[:60]}; expected pairs of numbers x, y in px.")
    return np.array(pairs, np.float64)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a coordinate in px can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FARTHEST_PX  # not nan


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width as a label file states them; None where it states no whole numbers."""
    return (height, width) if type(height) is int and type(width) is int else None


def reaches_beyond(points: NDArray[np.float64], size_hw: tuple[int, int] | None) -> bool:
    """Whether points x, y in px, (N, 2), leave an image of known size."""
    return size_hw is not None and bool((points < 0).any() or (points > size_hw[::-1]).any())


def parse_numbers(texts: Sequence[str], what: str) -> list[float]:
    """Numbers that a tool writes as text, such as attributes in XML. Raises LabelError, which begins with `what`."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(is_number, numbers)):
        raise LabelError(f"{what} are '{' '.join(texts)[:60]}'; expected numbers in px.")
    return numbers


def decode_base64(text: Any, where: str) -> bytes:
    """The bytes of base64 text. Raises LabelError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise LabelError(f"{where}: its bitmap is no base64 text ({error}). Export it again.") from error


def decode_bitmap(content: bytes, where: str) -> NDArray[np.bool_]:
    """The mask in a PNG, bool (h, w): alpha where it has that, else everything that is not black. Raises LabelError."""
    try:
        pixels = decode_stored(content, name=where)
    except ImageError as error:
        raise LabelError(f"{where}: its bitmap is no picture that can be decoded. Export it again.") from error
    if pixels.ndim == 3:
        pixels = pixels[..., 3] if pixels.shape[2] == 4 else pixels.max(axis=2)
    return np.asarray(pixels != 0)


def place_bitmap(
    bitmap: NDArray[np.bool_], left_top: tuple[int, int], size_hw: tuple[int, int], where: str
) -> NDArray[np.bool_]:
    """A mask, bool (h, w), laid onto an empty image, bool (H, W). Raises LabelError where it reaches beyond it."""
    left, top = left_top
    height, width = bitmap.shape
    if left < 0 or top < 0 or top + height > size_hw[0] or left + width > size_hw[1]:
        raise LabelError(
            f"{where}: a bitmap of {width}x{height} px at {left}, {top} reaches beyond its image of "
            f"{size_hw[1]}x{size_hw[0]}. Export the labels again at the images' own size."
        )
    whole = np.zeros(size_hw, np.bool_)
    whole[top : top + height, left : left + width] = bitmap
    return whole
