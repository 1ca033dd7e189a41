"""Connected components of a mask: area, box, centroid, score."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# 16-bit labels are several times as fast; OpenCV refuses more regions than this with them.
_MOST_LABELS_16_BIT = 65_000


@dataclass(frozen=True)
class Region:
    """One connected component of one class.

    Attributes:
        class_id: ClassId, from 1.
        area_px: number of its pixels.
        box_xywh: left, top, width, height in pixels.
        centroid_xy: mean column and row of its pixels; the centre of the top left pixel is (0, 0).
        score: mean probability of its pixels, 0..1; nan without probabilities.
    """

    class_id: int
    area_px: int
    box_xywh: tuple[int, int, int, int]
    centroid_xy: tuple[float, float]
    score: float


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of the smallest box that holds all pixels of a mask, bool (H, W); empty if it has none."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return np.s_[top : top + height, left : left + width]


def find_regions(
    mask: NDArray[np.bool_], *, class_id: int, probabilities: NDArray[np.float32] | None = None, min_area_px: int = 0
) -> tuple[NDArray[np.bool_], list[Region]]:
    """Split a mask into its 8-connected regions and drop the small ones.

    Args:
        mask: bool (H, W).
        class_id: ClassId of the regions.
        probabilities: float32 (H, W), 0..1, for the scores.
        min_area_px: regions with fewer pixels are dropped.

    Returns:
        The mask without the small regions, bool (H, W), and the regions, largest first, then by top and left edge.
        The mask is `mask` itself if nothing was dropped.
    """
    if mask.size == 0:
        return mask, []
    box = box_of(mask)
    found = np.ascontiguousarray(mask[box])
    if found.size == 0:
        return mask, []
    top, left = box[0].start, box[1].start
    _, label_map, stats, centroids = cv2.connectedComponentsWithStatsWithAlgorithm(
        found.view(np.uint8), 8, label_type(found), cv2.CCL_SPAGHETTI
    )
    labels: NDArray[Any] = np.asarray(label_map).reshape(found.shape)
    areas_px = np.asarray(stats[:, cv2.CC_STAT_AREA])
    kept = areas_px >= min_area_px
    kept[0] = False  # label 0 is the background
    scores = np.full(len(areas_px), np.nan)
    if probabilities is not None:
        sums = np.bincount(labels[found], weights=probabilities[box][found], minlength=len(areas_px))
        scores = sums / np.maximum(areas_px, 1)
    regions = [
        Region(class_id, area_px, (x + left, y + top, w, h), (cx + left, cy + top), score)
        for (x, y, w, h, area_px), (cx, cy), score in zip(
            stats[kept].tolist(), centroids[kept].tolist(), scores[kept].tolist(), strict=True
        )
    ]
    regions.sort(key=lambda region: (-region.area_px, region.box_xywh[1], region.box_xywh[0]))
    if len(regions) == len(areas_px) - 1:
        return mask, regions
    kept_mask = np.zeros(mask.shape, np.bool_)
    if regions:
        kept_mask[box] = kept.take(labels)
    return kept_mask, regions


def label_type(mask: NDArray[np.bool_]) -> int:
    """The smaller of OpenCV's types that holds the labels of all regions of a mask (H, W)."""
    return cv2.CV_16U if _most_regions(mask) < _MOST_LABELS_16_BIT else cv2.CV_32S


def _most_regions(mask: NDArray[np.bool_]) -> int:
    """An upper bound of the number of regions: each has a pixel without a left neighbour."""
    height, width = mask.shape
    most: int = (height + 1) // 2 * ((width + 1) // 2)
    if most < _MOST_LABELS_16_BIT:
        return most
    in_first_column, after_a_gap = np.count_nonzero(mask[:, 0]), np.count_nonzero(mask[:, 1:] > mask[:, :-1])
    return int(in_first_column) + int(after_a_gap)
