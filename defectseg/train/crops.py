"""Choosing the position of a crop and cutting it out."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Place = Literal["defect", "anywhere"]

# In Severstal images, 99 % of the pixels beyond the end of a sheet are at most 14; the brightest reach 16 to 19.
BLACK_LEVEL = 16
_TRIES = 10


def place_crop(
    pixels: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    crop_hw: tuple[int, int],
    *,
    place: Place,
    rng: np.random.Generator,
    class_id: int | None = None,
    black_limit: float = 1.0,
) -> tuple[int, int]:
    """Top-left corner (row, column) of a random crop. It is negative if the crop is larger than the image.

    Up to ten positions are drawn until one is not too black; if all are, the least black one is taken.

    Args:
        pixels: uint8 (H, W).
        masks: bool (C, H, W).
        crop_hw: size of the crop in px.
        place: `defect`: the crop contains a defect pixel, if the image has one.
        rng: random generator.
        class_id: class of that defect; None: a random class of those in the image.
        black_limit: largest allowed share of black pixels (at most BLACK_LEVEL) among the crop's pixels inside the
            image.
    """
    size_hw = pixels.shape
    targets = _targets(masks, class_id, rng) if place == "defect" else np.array([], int)
    is_choice = any(length > crop for length, crop in zip(size_hw, crop_hw, strict=True))
    tries: list[tuple[float, tuple[int, int]]] = []
    for _ in range(_TRIES if is_choice else 1):
        around = np.unravel_index(rng.choice(targets), size_hw) if targets.size else None
        corner = _random_corner(size_hw, crop_hw, rng, around)
        inside = _inside(size_hw, corner, crop_hw)
        black_share = float(np.mean(pixels[inside] <= BLACK_LEVEL)) if black_limit < 1 else 0.0
        if black_share <= black_limit:
            return corner
        tries.append((black_share, corner))
    return min(tries)[1]


def cut(
    pixels: NDArray[np.uint8], layers: NDArray[np.uint8], corner: tuple[int, int], crop_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a crop from an image (H, W) and its layers (L, H, W). Outside the image: black, 1 in the last layer."""
    top, left = corner
    inside = _inside(pixels.shape, corner, crop_hw)
    part, part_layers = pixels[inside], layers[:, *inside]
    if part.shape == crop_hw:
        return part, part_layers
    rows, columns = inside
    beyond = (rows.start - top, top + crop_hw[0] - rows.stop), (columns.start - left, left + crop_hw[1] - columns.stop)
    padded = np.pad(part_layers, ((0, 0), *beyond))
    padded[-1] = np.pad(part_layers[-1], beyond, constant_values=1)
    return np.pad(part, beyond), padded


def _targets(masks: NDArray[np.bool_], class_id: int | None, rng: np.random.Generator) -> NDArray[np.intp]:
    """Flat indices of the pixels of one class; without `class_id`, of a random class of the image."""
    present = np.flatnonzero(masks.any(axis=(1, 2)))
    if not present.size:
        return present
    return np.flatnonzero(masks[rng.choice(present) if class_id is None else class_id - 1])


def _inside(size_hw: Sequence[int], corner: tuple[int, int], crop_hw: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of the image that the crop covers."""
    sides = zip(size_hw, corner, crop_hw, strict=True)
    rows, columns = (slice(max(start, 0), min(start + crop, length)) for length, start, crop in sides)
    return rows, columns


def _random_corner(
    size_hw: Sequence[int], crop_hw: Sequence[int], rng: np.random.Generator, around: Sequence[np.intp] | None
) -> tuple[int, int]:
    corner = []
    for axis, (length, crop) in enumerate(zip(size_hw, crop_hw, strict=True)):
        first, last = min(0, length - crop), max(0, length - crop)
        if around is not None and length > crop:
            first, last = max(first, int(around[axis]) - crop + 1), min(last, int(around[axis]))
        corner.append(int(rng.integers(first, last + 1)))
    return corner[0], corner[1]
