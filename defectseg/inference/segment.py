"""From the answer of the network to masks and regions: gate, pixel threshold, minimum area."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.regions import Region, box_of, find_regions
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import ImageAnswer, fits_one_tile, predict_bands, predict_image, refuse_nan
from defectseg.inference.views import views_of
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Pixels, Reached, Runtime, ThresholdingRuntime

# Large images are segmented one at a time, each with all parallel calls of the runtime, to save memory.
_ONE_LARGE_IMAGE = Lock()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one image.

    Attributes:
        masks: bool (C, H, W).
        regions: of all classes, in the order of the classes, the largest first.
        class_map: uint8 (H, W): 0 sound, else the ClassId of the most probable class among those whose mask holds
            the pixel.
        sheet_score: 0..1, the largest over the wanted classes of min(gate, k-th largest probability of a pixel), where
            k is the minimum area, at least 1 and at most the whole image.
        answer: the answer of the network, if it was to be kept.
    """

    masks: NDArray[np.bool_]
    regions: tuple[Region, ...]
    class_map: NDArray[np.uint8]
    sheet_score: float
    answer: ImageAnswer | None = None


def segment_image(
    runtime: Runtime, image: NDArray[np.uint8], settings: Settings, *, keep_answer: bool = False
) -> Segmentation:
    """Segment a grey image uint8 (H, W) of any size; equal to `segment(predict_image(...))`.

    An image larger than a tile is processed in bands. Each pixel takes one byte per class at the end; before that about
    8 bytes while the regions of a class are found, and 4 for each class whose threshold it reaches. A region that
    crosses tiles is one region.

    Args:
        runtime: the network.
        image: the image.
        settings: of the inference.
        keep_answer: also return the answer; this takes 4 bytes per pixel and class.

    Raises:
        ModelError: the network answers with NaN.
        ResourceError: memory ran out.
    """
    if not keep_answer and fits_one_tile(image.shape, settings) and isinstance(runtime, ThresholdingRuntime):
        turns = [astuple(view) for view in views_of(settings.tta, image.shape)]
        (reached,) = runtime.reach(image[None, None], settings.thresholds, turns)
        return segment_reached(reached, image.shape, settings.thresholds)
    if keep_answer or fits_one_tile(image.shape, settings):
        answer = predict_image(runtime, image, settings)
        segmentation = segment(answer, settings.thresholds)
        if not keep_answer:
            return segmentation
        if runtime.batch_px:  # else it would keep those of all images of its batch in memory
            answer = ImageAnswer(answer.probabilities.copy(), answer.gate.copy())
        return replace(segmentation, answer=answer)
    with _ONE_LARGE_IMAGE:
        return _segment_bands(runtime, image, settings)


def segment(prediction: ImageAnswer, thresholds: Thresholds, sheet_score: float | None = None) -> Segmentation:
    """Apply thresholds to the answer for one image.

    Args:
        prediction: the answer.
        thresholds: one value for each class.
        sheet_score: None: computed from the answer.
    """
    if sheet_score is None:
        sheet_score = _sheet_score(prediction, thresholds)
    masks = np.zeros(prediction.probabilities.shape, np.bool_)
    class_map = np.zeros(masks.shape[1:], np.uint8)
    regions: list[Region] = []
    for index in _passing(prediction.gate, thresholds):
        probabilities, least_px = prediction.probabilities[index], thresholds.min_area_px[index]
        mask = probabilities >= np.float32(thresholds.pixel[index])
        if not mask.any():
            continue
        masks[index], found = find_regions(mask, class_id=index + 1, probabilities=probabilities, min_area_px=least_px)
        regions += found
    present = sorted({region.class_id - 1 for region in regions})
    _paint(class_map, masks, prediction.probabilities, present)
    return Segmentation(masks, tuple(regions), class_map, sheet_score)


def segment_reached(reached: Reached, size_hw: tuple[int, ...], thresholds: Thresholds) -> Segmentation:
    """Segment an image of (H, W) px after its thresholds were applied by the runtime, as `segment` would.

    Raises:
        ModelError: the network answers with NaN.
    """
    refuse_nan(reached.kth_largest, reached.gate)
    sheet_score = _highest(reached.gate, reached.kth_largest, thresholds)
    probabilities = _spread(reached.pixels, (len(reached.gate), *size_hw))
    return segment(ImageAnswer(probabilities, reached.gate), thresholds, sheet_score)


def _sheet_score(answer: ImageAnswer, thresholds: Thresholds) -> float:
    """The sheet score. A class that cannot raise it costs a glance."""
    score, gate = 0.0, answer.gate * np.isfinite(thresholds.pixel)
    for index in np.argsort(-gate).tolist():
        plane, count = answer.probabilities[index].ravel(), max(1, thresholds.min_area_px[index])
        if gate[index] > score and np.count_nonzero(plane > score) >= min(count, plane.size):
            score = float(min(gate[index], _largest(plane, count).min()))
    return score


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` largest values (n,), or all if there are fewer."""
    sample = values[::16]
    rank = min(count // 8 + 8, sample.size)  # leaves about twice as many values to sort as are wanted
    high = values[values >= np.partition(sample, -rank)[-rank]]
    values = high if high.size >= count else values
    return np.partition(values, -count)[-count:] if count < values.size else values


def _highest(gate: NDArray[np.float32], kth_largest: NDArray[np.float32], thresholds: Thresholds) -> float:
    """The sheet score, if the k-th largest probabilities (C,) are known. No pixel reaches the threshold inf."""
    return float((np.minimum(gate, kth_largest) * np.isfinite(thresholds.pixel)).max())


def _passing(gate: NDArray[np.float32], thresholds: Thresholds) -> list[int]:
    """The indices of the classes that pass the gate."""
    return [index for index, least in enumerate(thresholds.gate) if not gate[index] < np.float32(least)]


def _paint(
    class_map: NDArray[np.uint8], masks: NDArray[np.bool_], probabilities: NDArray[np.float32], present: Sequence[int]
) -> None:
    """Write the ClassId of the most probable class among those whose mask holds the pixel into a class map of zeros.

    Args:
        class_map: uint8 (h, w).
        masks, probabilities: (C, h, w).
        present: indices of the classes to paint, ascending. Of two equally probable classes the first is written.
    """
    if len(present) == 1:
        np.multiply(masks[present[0]].view(np.uint8), np.uint8(present[0] + 1), out=class_map)
        return
    best = np.full(class_map.shape if present else (0, 0), -1.0, np.float32)
    for index in present:
        box = box_of(masks[index])
        mask, size_hw = masks[index][box].view(np.uint8), masks[index][box].shape
        # cv2.copyTo is many times as fast as numpy's assignment with a mask.
        ours = cv2.copyTo(probabilities[index][box], mask, np.full(size_hw, -1.0, np.float32))
        better = ours > best[box]
        cv2.copyTo(np.full(size_hw, index + 1, np.uint8), better.view(np.uint8), class_map[box])
        np.maximum(best[box], ours, out=best[box])


# Until the gate and the regions of the image are known, a band is held as its box and the pixels that reach thresholds.
_HeldBand = tuple[tuple[slice, slice], Pixels]


def _segment_bands(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> Segmentation:
    thresholds = settings.thresholds
    gate = np.zeros(len(runtime.class_names), np.float32)
    held: list[_HeldBand] = []
    largest = [np.zeros(0, np.float32)] * len(gate)
    for box, answer in predict_bands(runtime, image, settings):
        gate = answer.gate
        held.append((box, _reaching(answer.probabilities, thresholds)))
        for index, plane in enumerate(answer.probabilities):
            count, before = max(1, thresholds.min_area_px[index]), largest[index]
            new = plane[plane > before.min()] if before.size == count else plane.ravel()
            largest[index] = _largest(np.concatenate([before, new]), count)
    regions: list[Region] = []
    packed_masks: dict[int, NDArray[np.uint8]] = {}
    for index in _passing(gate, thresholds):
        found, packed = _regions_across(held, index, image.shape, thresholds)
        regions += found
        if found:
            packed_masks[index] = packed
    masks = np.zeros((len(gate), *image.shape), np.bool_)
    class_map = np.zeros(image.shape, np.uint8)
    for index, packed in packed_masks.items():
        masks[index] = _unpack(packed, image.shape)
    for box, pixels in held:
        here = masks[:, *box]
        present = [index for index in packed_masks if here[index].any()]
        _paint(class_map[box], here, _spread({index: pixels[index] for index in present}, here.shape), present)
    kth_largest = np.array([values.min() for values in largest], np.float32)
    return Segmentation(masks, tuple(regions), class_map, _highest(gate, kth_largest, thresholds))


def _reaching(probabilities: NDArray[np.float32], thresholds: Thresholds) -> Pixels:
    """The pixels of each class that reach its threshold."""
    pixels: Pixels = {}
    for index, plane in enumerate(probabilities):
        least = np.float32(thresholds.pixel[index])
        if plane.max() >= least:
            mask = plane >= least
            pixels[index] = np.packbits(mask), plane[mask]
    return pixels


def _spread(pixels: Pixels, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The probabilities of these pixels, float32 (C, h, w); 0 elsewhere."""
    # Pages that are never written take no time and no memory. A threshold of 0 is reached by all pixels.
    probabilities = np.zeros(shape, np.float32)
    for index, (bits, values) in pixels.items():
        probabilities[index][_unpack(bits, shape[1:])] = values
    return probabilities


def _regions_across(
    held: Sequence[_HeldBand], index: int, size_hw: tuple[int, ...], thresholds: Thresholds
) -> tuple[list[Region], NDArray[np.uint8]]:
    """The regions of one class in an image of `size_hw`, and their packed mask."""
    # Both take memory only where they are written.
    mask, probabilities = np.zeros(size_hw, np.bool_), np.zeros(size_hw, np.float32)
    for box, pixels in held:
        if index in pixels:
            bits, values = pixels[index]
            mask[box] = _unpack(bits, mask[box].shape)
            probabilities[box][mask[box]] = values
    least_px = thresholds.min_area_px[index]
    mask, regions = find_regions(mask, class_id=index + 1, probabilities=probabilities, min_area_px=least_px)
    return regions, np.packbits(mask)


def _unpack(bits: NDArray[np.uint8], size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=size_hw[0] * size_hw[1]).view(np.bool_).reshape(size_hw)
