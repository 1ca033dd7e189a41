"""Comparison of an exported model with the network in PyTorch."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.config import SizeHW
from defectseg.data.folder import IMAGES_NAME
from defectseg.data.synthetic import SMALLEST_SIDE_PX, make_sheet
from defectseg.errors import DataError, ImageError, ModelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.inference.segment import segment
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Runtime

log = logging.getLogger(__name__)

# How far an export may differ: probabilities and gates in fp32; final masks in the precision that the processor will
# use, where single probabilities may differ by more.
MAX_DIFFERENCE = 0.01
MIN_DICE = 0.98

IMAGES = 16  # of a data folder
SHEETS = 8  # synthetic ones
SHEET_HW = (256, 1600)  # as Severstal's
ODD_HW = (200, 330)  # no multiple of any stride, and another aspect ratio than the images
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """How the answers of a runtime differ from those of another.

    Attributes:
        images: the number of images.
        probability: the largest |difference| of a probability.
        gate: the largest |difference| of a gate.
        dice: of the final masks, pooled over all images.
        anything_found: whether either found a defect. If not, `dice` is 1 and says little.
    """

    images: int
    probability: float
    gate: float
    dice: float
    anything_found: bool


def compare(
    reference: Runtime,
    candidates: Mapping[str, Runtime],
    images: Sequence[NDArray[np.uint8]],
    odd: Sequence[NDArray[np.uint8]],
    thresholds: Thresholds,
) -> dict[str, Comparison]:
    """Give all runtimes the same images, grey uint8 (H, W), each as a whole and in a single view.

    The images of an `odd` size show whether values that depend on height and width were converted correctly. Their
    masks do not count: on a snippet, which the network was not trained for, rounding may move the gate across the
    threshold.

    Returns:
        the comparison of each candidate with the reference, by the candidate's name.
    """
    probability, gate = dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0.0)
    counts: dict[str, Counts] = {name: {} for name in candidates}
    for number, image in enumerate([*images, *odd]):
        expected = reference(image[None, None])
        for name, runtime in candidates.items():
            answer = runtime(image[None, None])
            # np.maximum keeps NaN; with max(), the result would depend on the order.
            difference = np.abs(answer.probabilities - expected.probabilities).max()
            probability[name] = float(np.maximum(probability[name], difference))
            gate[name] = float(np.maximum(gate[name], np.abs(answer.gate - expected.gate).max()))
            if number < len(images):
                masks, expected_masks = (
                    segment(ImageAnswer(one.probabilities[0], one.gate[0]), thresholds).masks
                    for one in (answer, expected)
                )
                counts[name] |= count_pairs(str(number), masks, expected_masks)
    return {
        name: Comparison(
            images=len(images) + len(odd),
            probability=probability[name],
            gate=gate[name],
            dice=pooled_dice(counts[name]),
            anything_found=any(pair.true_px or pair.predicted_px for pair in counts[name].values()),
        )
        for name in candidates
    }


def check(exact: Comparison, shipped: Comparison, *, what: str) -> None:
    """Refuse an export that differs too much.

    Args:
        exact: the comparison in fp32.
        shipped: the comparison in the precision that the processor uses.
        what: the file, for the error.

    Raises:
        ModelError: it differs by more than MAX_DIFFERENCE, or its masks agree less than MIN_DICE.
    """
    difference = float(np.maximum(exact.probability, exact.gate))
    # Not `>`, so that NaN is refused.
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"{what}: not written, since the export differs from the network in PyTorch: by up to {difference:.3g} in "
            f"fp32, where {MAX_DIFFERENCE:g} is allowed. Try the other format, and report this network."
        )
    if not shipped.dice >= MIN_DICE:
        raise ModelError(
            f"{what}: not written, since in the precision that this processor uses the export's masks agree with the "
            f"network's in PyTorch at Dice {shipped.dice:.4f} only, where {MIN_DICE:g} is needed. "
            "Compare on a data folder with images like those that the model was trained on."
        )


def pooled_dice(counts: Counts) -> float:
    """Dice over the pixels of all images and classes together; 1 if there are none."""
    figures = [(pair.true_px, pair.predicted_px, pair.both_px) for pair in counts.values()]
    true_px, predicted_px, both_px = map(sum, zip(*figures, strict=True))
    return PairCounts(true_px, predicted_px, both_px).dice


def real_images(
    data: Path, limit_hw: SizeHW, *, bit_depth: int | None = None, model_bit_depth: int | None = None
) -> list[NDArray[np.uint8]]:
    """Draw up to IMAGES images, grey uint8 (H, W), from a data folder or any folder of images.

    Args:
        data: the folder.
        limit_hw: the largest size; of a larger image, a random window is taken.
        bit_depth, model_bit_depth: of 16-bit files, see `decode_bytes`.

    Raises:
        DataError: there is no image, or none can be read.
    """
    folder = data / IMAGES_NAME
    found = find_images([folder if folder.is_dir() else data], keep_faulty=True)
    rng = random.Random(SEED)  # noqa: S311  # chooses images, guards nothing
    images: list[NDArray[np.uint8]] = []
    for image in rng.sample(found, len(found)):
        try:
            pixels = decode(image, bit_depth=bit_depth, model_bit_depth=model_bit_depth).pixels
        except ImageError as error:
            log.warning("left out of the comparison: %s", error)
            continue
        images.append(cut(pixels, limit_hw, rng))
        if len(images) == IMAGES:
            break
    if not images:
        raise DataError(f"{data}: none of its {len(found)} images can be read, so there is nothing to compare on.")
    return images


def synthetic_images(limit_hw: SizeHW) -> list[NDArray[np.uint8]]:
    """SHEETS synthetic sheets, grey uint8 (H, W), of Severstal's size cut down to `limit_hw`."""
    height, width = (min(side, limit) for side, limit in zip(SHEET_HW, limit_hw, strict=True))
    drawn_hw = (max(height, SMALLEST_SIDE_PX), max(width, SMALLEST_SIDE_PX))
    return [fit(make_sheet(SEED, index, drawn_hw).image, (height, width)) for index in range(SHEETS)]


def cut(image: NDArray[np.uint8], limit_hw: SizeHW, rng: random.Random) -> NDArray[np.uint8]:
    """A random window of an image (H, W), at most of size `limit_hw`. Smaller images are returned whole."""
    height, width = (min(side, limit) for side, limit in zip(image.shape, limit_hw, strict=True))
    top, left = rng.randint(0, image.shape[0] - height), rng.randint(0, image.shape[1] - width)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def fit(image: NDArray[np.uint8], size_hw: SizeHW) -> NDArray[np.uint8]:
    """The upper left part of an image (H, W) in exactly this size. A smaller image is padded with its last pixels."""
    height, width = size_hw
    part = image[:height, :width]
    missing = ((0, height - part.shape[0]), (0, width - part.shape[1]))
    return np.ascontiguousarray(np.pad(part, missing, mode="edge"))
