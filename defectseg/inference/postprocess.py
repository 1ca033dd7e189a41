"""From what the network says to what is reported: gate, pixel threshold, minimum area."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectseg.config import Thresholds
from defectseg.data.regions import Region, find_regions
from defectseg.inference.tiling import Prediction


@dataclass(frozen=True)
class Segmentation:
    """What is reported of one image.

    Attributes:
        masks: bool (C, H, W).
        regions: of all classes, in the order of the classes, the largest first.
        class_map: uint8 (H, W): 0 sound, else the ClassId of the most probable class among those whose mask holds
            the pixel.
    """

    masks: NDArray[np.bool_]
    regions: tuple[Region, ...]
    class_map: NDArray[np.uint8]


def segment(
    prediction: Prediction, thresholds: Thresholds, *, only_classes: Collection[int] | None = None
) -> Segmentation:
    """Apply the thresholds of a model to its answer for one image.

    Args:
        prediction: the answer.
        thresholds: one value for each class.
        only_classes: ClassIds to report; None reports all.
    """
    masks = np.zeros(prediction.probabilities.shape, np.bool_)
    regions: list[Region] = []
    for index, probabilities in enumerate(prediction.probabilities):
        class_id = index + 1
        wanted = only_classes is None or class_id in only_classes
        if not wanted or prediction.gate[index] < np.float32(thresholds.gate[index]):
            continue
        masks[index], found = find_regions(
            probabilities >= np.float32(thresholds.pixel[index]),
            class_id=class_id,
            probabilities=probabilities,
            min_area_px=thresholds.min_area_px[index],
        )
        regions += found
    return Segmentation(masks, tuple(regions), _class_map(masks, prediction.probabilities))


def _class_map(masks: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    present = np.flatnonzero(masks.any(axis=(1, 2)))
    class_map = np.zeros(masks.shape[1:], np.uint8)
    if len(present) == 1:
        class_map[masks[present[0]]] = present[0] + 1
    elif len(present) > 1:
        held = np.where(masks[present], probabilities[present], np.float32(-1.0))
        best = (present[held.argmax(axis=0)] + 1).astype(np.uint8)
        anywhere = masks[present].any(axis=0)
        class_map[anywhere] = best[anywhere]
    return class_map
