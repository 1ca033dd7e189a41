"""What the figures about sheets and regions need of each image: its score, its regions, its confusion of classes."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.regions import box_of

FOUND_PERCENT = 10  # of the pixels of a labelled region; if as many are predicted in its class, it is found

Regions = tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """One labelled image and what was predicted there. Ignored pixels are not counted.

    Attributes:
        score: the sheet score, see `Segmentation`; None if it is not known.
        labelled: each labelled region: ClassId, area in px, and whether at least 10 % of it are predicted in its class.
        predicted: each predicted region: ClassId, area in px, and whether a pixel of it is labelled in its class. A
            region without such a pixel is left out if it reaches ignored pixels, since nobody knows if it is false.
        confusion: int64 (C + 1, C + 1), the number of pixels by labelled and predicted ClassId; 0 is sound. A pixel
            counts once: under a class that is both labelled and predicted there, else under the lowest ClassIds.
    """

    score: float | None
    labelled: Regions
    predicted: Regions
    confusion: NDArray[np.int64]


def sheet_of(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_], score: float | None = None
) -> Sheet:
    """Describe one image.

    Args:
        predicted: bool (C, H, W), final masks.
        truth: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to leave out.
        score: the sheet score.
    """
    labelled: list[tuple[int, int, bool]] = []
    found: list[tuple[int, int, bool]] = []
    for class_id, (ours, true) in enumerate(zip(predicted, truth, strict=True), start=1):
        regions = _overlaps(true, ours, ignore)
        labelled += [(class_id, px, 100 * both >= FOUND_PERCENT * px) for px, both, _ in regions if px]
        regions = _overlaps(ours, true, ignore)
        found += [(class_id, px, both > 0) for px, both, hidden in regions if px and (both or not hidden)]
    return Sheet(score, tuple(labelled), tuple(found), _confusion(predicted, truth, ignore))


def _overlaps(
    mask: NDArray[np.bool_], other: NDArray[np.bool_], ignore: NDArray[np.bool_]
) -> Iterator[tuple[int, int, int]]:
    """Of each 8-connected region of a mask: its visible pixels, those that `other` holds too, and the ignored ones."""
    box = box_of(mask)
    inside = np.ascontiguousarray(mask[box])
    if not inside.size:
        return iter(())
    count, regions = cv2.connectedComponents(inside.view(np.uint8), connectivity=8)
    region, both, hidden = np.asarray(regions)[inside], other[box][inside], ignore[box][inside]
    parts = (region[~hidden], region[both & ~hidden], region[hidden])
    return zip(*(np.bincount(part, minlength=count)[1:].tolist() for part in parts), strict=True)


def _confusion(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.int64]:
    size = len(truth) + 1
    seen = (np.any(predicted, axis=0) | np.any(truth, axis=0)) & ~ignore
    at = np.flatnonzero(seen)
    ours, true = (masks.reshape(size - 1, -1).take(at, axis=1) for masks in (predicted, truth))
    both = _first(ours & true)
    pairs = np.where(both, (size + 1) * both, size * _first(true) + _first(ours))
    confusion = np.bincount(pairs, minlength=size * size).reshape(size, size)
    confusion[0, 0] = np.count_nonzero(~ignore) - len(at)
    return confusion


def _first(masks: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The lowest ClassId whose mask, bool (C, n), holds the pixel, or 0."""
    first = np.zeros(masks.shape[1], np.intp)
    for class_id in range(len(masks), 0, -1):
        first[masks[class_id - 1]] = class_id
    return first
