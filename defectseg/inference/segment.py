"""From what the network says to what is reported: gate, pixel threshold, minimum area."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.regions import Region, find_regions
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import Band, ImageAnswer, fits_one_tile, predict_bands, predict_image
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Runtime

# Large images go one at a time, each over all that the runtime can do at once: the memory is that of one of them.
_ONE_LARGE_IMAGE = Lock()


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


def segment_image(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> Segmentation:
    """What a network finds in one grey image uint8 (H, W) of any size; equal to `segment(predict_image(...))`.

    An image larger than the model's tile is processed band after band. Held for each pixel are one byte for each class
    at the end, before that about 8 bytes while the regions of a class are found, and 4 for each class whose threshold
    the pixel reaches. A region that crosses tiles is one region.

    Raises:
        ModelError: the network answers with something that is not a number.
        ResourceError: memory ran out.
    """
    if fits_one_tile(image, settings):
        return segment(predict_image(runtime, image, settings), settings.thresholds, only_classes=settings.classes)
    with _ONE_LARGE_IMAGE:
        return _segment_bands(runtime, image, settings)


def segment(
    prediction: ImageAnswer, thresholds: Thresholds, *, only_classes: Collection[int] | None = None
) -> Segmentation:
    """Apply the thresholds of a model to its answer for one image.

    Args:
        prediction: the answer.
        thresholds: one value for each class.
        only_classes: ClassIds to report; None reports all.
    """
    masks = np.zeros(prediction.probabilities.shape, np.bool_)
    class_map = np.zeros(masks.shape[1:], np.uint8)
    regions: list[Region] = []
    present: list[int] = []
    for index in _passing(prediction.gate, thresholds, only_classes):
        probabilities, least = prediction.probabilities[index], np.float32(thresholds.pixel[index])
        if probabilities.size == 0 or probabilities.max() < least:
            continue
        masks[index], found = find_regions(
            probabilities >= least,
            class_id=index + 1,
            probabilities=probabilities,
            min_area_px=thresholds.min_area_px[index],
        )
        regions += found
        present += [index] if found else []
    _paint(class_map, masks, prediction.probabilities, present)
    return Segmentation(masks, tuple(regions), class_map)


def _passing(gate: NDArray[np.float32], thresholds: Thresholds, only_classes: Collection[int] | None) -> list[int]:
    """The indices of the classes that are asked for and that the gate lets pass."""
    return [
        index
        for index, least in enumerate(thresholds.gate)
        if _is_wanted(index, only_classes) and not gate[index] < np.float32(least)
    ]


def _is_wanted(index: int, only_classes: Collection[int] | None) -> bool:
    return only_classes is None or index + 1 in only_classes


def _paint(
    class_map: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
    present: Sequence[int],
) -> None:
    """Write a class map uint8 (h, w), zero so far: in each pixel the most probable class whose mask holds it.

    `masks` and `probabilities` are (C, h, w); `present` are the indices of the classes to paint, ascending: of two that
    are as probable, the first is named.
    """
    if len(present) == 1:
        np.multiply(masks[present[0]].view(np.uint8), np.uint8(present[0] + 1), out=class_map)
        return
    best = np.full(class_map.shape if present else (0, 0), -1.0, np.float32)
    for index in present:
        mask = masks[index].view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = np.s_[top : top + height, left : left + width]
        # cv2.copyTo is many times as quick as numpy's assignment through a mask.
        ours = cv2.copyTo(probabilities[index][box], mask[box], np.full((height, width), -1.0, np.float32))
        better = ours > best[box]
        cv2.copyTo(np.full((height, width), index + 1, np.uint8), better.view(np.uint8), class_map[box])
        np.maximum(best[box], ours, out=best[box])


def _segment_bands(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> Segmentation:
    thresholds = settings.thresholds
    gate = np.zeros(len(runtime.class_names), np.float32)
    held: list[_HeldBand] = []
    for band in predict_bands(runtime, image, settings):
        gate = band.gate
        held.append(_HeldBand(band, thresholds, settings.classes))
    regions: list[Region] = []
    for index in _passing(gate, thresholds, settings.classes):
        regions += _regions_across(held, index, image.shape, thresholds)
    masks = np.zeros((len(gate), *image.shape), np.bool_)
    class_map = np.zeros(image.shape, np.uint8)
    for part in held:
        part.write(masks, class_map)
    return Segmentation(masks, tuple(regions), class_map)


class _HeldBand:
    """What is held of a band until the gate of the image, and the regions across its bands, are known.

    Attributes:
        reached: for each index of a class that reaches its threshold in the band, the mask, packed.
        values: for these, the probabilities of the mask's pixels, row after row, float32 (n,).
        kept: the packed masks without the small regions, where something is left of them.
    """

    def __init__(self, band: Band, thresholds: Thresholds, only_classes: Collection[int] | None) -> None:
        self.box = band.box
        self.size_hw = band.probabilities.shape[1:]
        self.reached: dict[int, NDArray[np.uint8]] = {}
        self.values: dict[int, NDArray[np.float32]] = {}
        self.kept: dict[int, NDArray[np.uint8]] = {}
        for index, probabilities in enumerate(band.probabilities):
            least = np.float32(thresholds.pixel[index])
            if _is_wanted(index, only_classes) and probabilities.max() >= least:
                mask = probabilities >= least
                self.reached[index], self.values[index] = np.packbits(mask), probabilities[mask]

    def unpack(self, bits: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """A mask of the band, bool (h, w)."""
        count = self.size_hw[0] * self.size_hw[1]
        return np.unpackbits(bits, count=count).view(np.bool_).reshape(self.size_hw)

    def keep(self, index: int, mask: NDArray[np.bool_]) -> None:
        """Take over what is left of a class's mask (h, w)."""
        if mask.any():
            self.kept[index] = np.packbits(mask)

    def write(self, masks: NDArray[np.bool_], class_map: NDArray[np.uint8]) -> None:
        """Write the band's part of the image's masks (C, H, W) and class map (H, W), both zero so far."""
        present = sorted(self.kept)
        here = np.zeros((len(masks), *self.size_hw), np.bool_)
        probabilities = np.zeros(here.shape, np.float32)
        for index in present:
            here[index] = self.unpack(self.kept[index])
            masks[index][self.box] = here[index]
            probabilities[index][self.unpack(self.reached[index])] = self.values[index]
        painted = np.zeros(self.size_hw, np.uint8)
        _paint(painted, here, probabilities, present)
        class_map[self.box] = painted


def _regions_across(
    held: Sequence[_HeldBand], index: int, size_hw: tuple[int, ...], thresholds: Thresholds
) -> list[Region]:
    """The regions of one class in an image of `size_hw`; each band keeps what is left of its mask."""
    holding = [band for band in held if index in band.reached]
    if not holding:
        return []
    # Both take memory only where they are written to.
    mask, probabilities = np.zeros(size_hw, np.bool_), np.zeros(size_hw, np.float32)
    for band in holding:
        reached = band.unpack(band.reached[index])
        mask[band.box] = reached
        probabilities[band.box][reached] = band.values[index]
    kept, regions = find_regions(
        mask, class_id=index + 1, probabilities=probabilities, min_area_px=thresholds.min_area_px[index]
    )
    for band in holding:
        band.keep(index, kept[band.box])
    return regions
