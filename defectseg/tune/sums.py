"""Pixel sums of an image under every pixel threshold and minimum area, for the search for thresholds.

They equal the results of the real post-processing, and take a few hundred bytes a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import unknown_classes
from defectseg.evaluate.score import Scored
from defectseg.image.regions import box_of, label_type


@dataclass(frozen=True)
class ImageSums:
    """The sums of one image over the pixels outside its ignored area.

    `gate` float32 (C,); `true_px` int64 (C,); `known` bool (C,), False where ignored pixels may hide the class;
    `kept_px` int32 (C, 2, P, A): predicted pixels, and the true ones among them, which P pixel thresholds and A
    minimum areas keep where the gate lets the class pass; `image_px` all pixels of the image. `regions_px` int32
    (R, 2 + P) holds for each labelled region its class index, its area and, for each pixel threshold, the area of the
    largest predicted region that touches it, or 0.
    """

    gate: NDArray[np.float32]
    true_px: NDArray[np.int64]
    known: NDArray[np.bool_]
    kept_px: NDArray[np.int32]
    image_px: int
    regions_px: NDArray[np.int32]


def sum_image(scored: Scored, pixel_grid: Sequence[float], area_grid_px: Sequence[int]) -> ImageSums:
    """Sum up one image with its answer. Ignored pixels do not count, but belong to the area of a predicted region.

    Args:
        scored: the image.
        pixel_grid: pixel thresholds, rising.
        area_grid_px: minimum areas, rising.
    """
    assert scored.answer is not None
    truth, ignore = scored.truth, scored.ignore
    known = ~unknown_classes(truth, ignore)
    if ignore.any():
        truth = truth & ~ignore
    kept_px, regions_px = [], []
    for index, (probability, mask) in enumerate(zip(scored.answer.probabilities, truth, strict=True)):
        kept, regions = _sum_class(probability, mask, ignore, pixel_grid, area_grid_px)
        kept_px.append(kept)
        regions_px.append(np.insert(regions, 0, index, axis=1))
    return ImageSums(
        gate=scored.answer.gate.astype(np.float32),
        true_px=np.array([np.count_nonzero(mask) for mask in truth], np.int64),
        known=known,
        kept_px=np.stack(kept_px),
        image_px=ignore.size,
        regions_px=np.concatenate(regions_px),
    )


def _sum_class(
    probability: NDArray[np.float32],
    truth: NDArray[np.bool_],
    ignore: NDArray[np.bool_],
    pixel_grid: Sequence[float],
    area_grid_px: Sequence[int],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Kept pixels (2, P, A) and labelled regions (R, 1 + P) of one class; 0 from the first threshold that no pixel
    reaches.
    """
    kept_px = np.zeros((2, len(pixel_grid), len(area_grid_px)), np.int32)
    true_places, ignored_places = np.flatnonzero(truth), np.flatnonzero(ignore)
    region_of_place = _label(truth).take(true_places) - 1 if len(true_places) else true_places
    true_areas_px = np.bincount(region_of_place)
    regions_px = np.zeros((len(true_areas_px), 1 + len(pixel_grid)), np.int32)
    regions_px[:, 0] = true_areas_px
    for row, threshold in enumerate(pixel_grid):
        mask = probability >= np.float32(threshold)
        if not mask.any():
            break
        labels = _label(mask)
        areas_px = np.bincount(labels[mask])
        of_true, of_ignored = labels.take(true_places), labels.take(ignored_places)
        np.maximum.at(regions_px[:, 1 + row], region_of_place, areas_px[of_true].astype(np.int32))
        ignored_px, both_px = (np.bincount(found, minlength=len(areas_px)) for found in (of_ignored, of_true))
        # How many of the minimum areas each region reaches; label 0 is the background.
        met = np.searchsorted(area_grid_px, areas_px[1:], side="right")
        for kind, px in enumerate((areas_px - ignored_px, both_px)):
            by_met = np.bincount(met, px[1:], minlength=len(area_grid_px) + 1)
            kept_px[kind, row] = by_met[:0:-1].cumsum()[::-1]
    return kept_px, regions_px


def _label(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The number of its 8-connected component for each pixel, from 1; 0 outside the mask."""
    # Counting labels later is three times as quick as OpenCV's own statistics.
    box = box_of(mask)
    found = np.ascontiguousarray(mask[box])
    kind = label_type(found)
    labels = np.zeros(mask.shape, np.uint16 if kind == cv2.CV_16U else np.int32)
    cv2.connectedComponentsWithAlgorithm(found.view(np.uint8), 8, kind, cv2.CCL_SPAGHETTI, labels[box])
    return labels
