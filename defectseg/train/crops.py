"""Choosing the position of a crop and cutting it out."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Place = Literal["defect", "anywhere"]

# In Severstal images, 99 % of the pixels beyond the end of a sheet are at most 14; the brightest reach 16 to 19.
BLACK_LEVEL = 16
_TRIES = 10


def place_crop(
    pixels: NDArray[np.uint8],
    masks: Mapping[int, NDArray[np.bool_]],
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
        masks: ClassId -> bool (H, W); other classes are not in the image.
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
        seen = pixels[_inside(size_hw, corner, crop_hw)]
        black_share = np.count_nonzero(seen <= BLACK_LEVEL) / seen.size if black_limit < 1 else 0.0
        if black_share <= black_limit:
            return corner
        tries.append((black_share, corner))
    return min(tries)[1]


def cut(
    pixels: NDArray[np.uint8],
    layers: Mapping[int, NDArray[np.uint8]],
    corner: tuple[int, int],
    crop_hw: tuple[int, int],
    *,
    num_layers: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A copy of a part (h, w) of an image (H, W), and of its layers (num_layers, h, w).

    Outside the image: black, 1 in the last layer.

    Args:
        layers: index -> (H, W); other layers are 0.
    """
    inside = _inside(pixels.shape, corner, crop_hw)
    rows, columns = (slice(part.start - first, part.stop - first) for part, first in zip(inside, corner, strict=True))
    image, cut_layers = np.zeros(crop_hw, np.uint8), np.zeros((num_layers, *crop_hw), np.uint8)
    cut_layers[-1] = 1
    image[rows, columns], cut_layers[-1, rows, columns] = pixels[inside], 0
    for index, layer in layers.items():
        cut_layers[index, rows, columns] = layer[inside]
    return image, cut_layers


def _targets(
    masks: Mapping[int, NDArray[np.bool_]], class_id: int | None, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Flat indices of the pixels of one class; without `class_id`, of a random class of the image."""
    present = [number for number in sorted(masks) if masks[number].any()]
    if class_id is None and present:
        class_id = int(rng.choice(present))
    return np.flatnonzero(masks[class_id]) if class_id in present else np.array([], np.intp)


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
