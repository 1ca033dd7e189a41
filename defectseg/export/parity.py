"""Does an exported model answer as the network in PyTorch does?"""

import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
from defectseg.runtime.base import Answer, Runtime

log = logging.getLogger(__name__)

REAL_IMAGES = 16
SYNTHETIC_IMAGES = 8
SYNTHETIC_HW = (256, 1600)  # as Severstal's
ODD_HW = (200, 330)  # no multiple of any network's stride, and of another shape than the images
SEED = 0


@dataclass(frozen=True)
class Limits:
    """What an export may differ by: probabilities and gates in fp32, and the least Dice of the final masks.

    The Dice is measured in the precision that the processor will use, where single probabilities may differ by more.
    """

    difference: float = 0.01
    dice: float = 0.98


@dataclass(frozen=True)
class Comparison:
    """How the answers of one runtime differ from another's, over some images.

    Attributes:
        images: how many.
        probability: largest |difference| of a probability.
        gate: largest |difference| of a gate.
        dice: of the final masks, pooled over all images.
        anything_found: whether either found a defect; without, `dice` is 1 and says little.
    """

    images: int
    probability: float
    gate: float
    dice: float
    anything_found: bool

    def with_differences_of(self, other: "Comparison") -> "Comparison":
        """The same with the images and the differences of another, too; Dice of the masks stays as it is."""
        return replace(
            self,
            images=self.images + other.images,
            probability=float(np.maximum(self.probability, other.probability)),
            gate=float(np.maximum(self.gate, other.gate)),
        )


def compare(
    reference: Runtime,
    candidates: Mapping[str, Runtime],
    images: Iterable[NDArray[np.uint8]],
    thresholds: Thresholds,
) -> dict[str, Comparison]:
    """Ask all runtimes about the same images, grey uint8 (H, W), each as a whole and in a single view.

    Returns:
        the comparison with the reference of each candidate, by its name.
    """
    tallies = {name: _Tally() for name in candidates}
    for number, image in enumerate(images):
        expected = reference(image[None, None])
        for name, runtime in candidates.items():
            tallies[name].add(str(number), runtime(image[None, None]), expected, thresholds)
    return {name: tally.result() for name, tally in tallies.items()}


def check(exact: Comparison, shipped: Comparison, limits: Limits, *, what: str) -> None:
    """Hold an export to the limits.

    Args:
        exact: the comparison in fp32.
        shipped: the comparison in the precision that the processor will use.
        limits: the limits.
        what: the file, for the error.

    Raises:
        ModelError: it differs by more.
    """
    difference = float(np.maximum(exact.probability, exact.gate))
    # Written so that a difference that is not a number fails.
    if not difference <= limits.difference:
        raise ModelError(
            f"{what}: not written, since the export differs from the network in PyTorch: by up to {difference:.3g} in "
            f"fp32, where {limits.difference:g} is allowed. Try the other format, and report this network."
        )
    if not shipped.dice >= limits.dice:
        raise ModelError(
            f"{what}: not written, since in the precision that this processor uses the export's masks agree with the "
            f"network's in PyTorch at Dice {shipped.dice:.4f} only, where {limits.dice:g} is needed. "
            "Compare on a data folder with images like those that the model was trained on."
        )


def pooled_dice(counts: Counts) -> float:
    """Dice of the pixels of all images and classes together; 1 where there is none on either side."""
    pairs = counts.values()
    return PairCounts(
        sum(pair.true_px for pair in pairs),
        sum(pair.predicted_px for pair in pairs),
        sum(pair.both_px for pair in pairs),
    ).dice


def real_images(
    data: Path,
    limit_hw: SizeHW,
    *,
    bit_depth: int | None = None,
    model_bit_depth: int | None = None,
    count: int = REAL_IMAGES,
    seed: int = SEED,
) -> list[NDArray[np.uint8]]:
    """Some images, grey uint8 (H, W), of a data folder or of any folder of images; of large ones, a window.

    Args:
        data: the folder.
        limit_hw: the largest size.
        bit_depth, model_bit_depth: of 16-bit files, see `decode_bytes`.
        count: how many at most.
        seed: of the choice.

    Raises:
        DataError: no image is there, or none of them can be read.
    """
    folder = data / IMAGES_NAME
    found = find_images([folder if folder.is_dir() else data], keep_faulty=True)
    rng = random.Random(seed)  # noqa: S311  # chooses images, guards nothing
    images: list[NDArray[np.uint8]] = []
    for image in rng.sample(found, len(found)):
        try:
            pixels = decode(image, bit_depth=bit_depth, model_bit_depth=model_bit_depth).pixels
        except ImageError as error:
            log.warning("left out of the comparison: %s", error)
            continue
        images.append(cut(pixels, limit_hw, rng))
        if len(images) == count:
            break
    if not images:
        raise DataError(f"{data}: none of its {len(found)} images can be read, so there is nothing to compare on.")
    return images


def synthetic_images(limit_hw: SizeHW, *, count: int = SYNTHETIC_IMAGES) -> list[NDArray[np.uint8]]:
    """Some synthetic sheets, grey uint8 (H, W), of Severstal's size or, where that is larger, of `limit_hw`."""
    height, width = (min(side, limit) for side, limit in zip(SYNTHETIC_HW, limit_hw, strict=True))
    drawn_hw = (max(height, SMALLEST_SIDE_PX), max(width, SMALLEST_SIDE_PX))
    return [fit(make_sheet(SEED, index, drawn_hw).image, (height, width)) for index in range(count)]


def cut(image: NDArray[np.uint8], limit_hw: SizeHW, rng: random.Random) -> NDArray[np.uint8]:
    """A window anywhere in an image (H, W), at most of size `limit_hw`; smaller images are returned whole."""
    height, width = (min(side, limit) for side, limit in zip(image.shape, limit_hw, strict=True))
    top, left = rng.randint(0, image.shape[0] - height), rng.randint(0, image.shape[1] - width)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def fit(image: NDArray[np.uint8], size_hw: SizeHW) -> NDArray[np.uint8]:
    """The upper left of an image (H, W) in exactly this size; where it is smaller, its last row and column repeat."""
    height, width = size_hw
    part = image[:height, :width]
    missing = ((0, height - part.shape[0]), (0, width - part.shape[1]))
    return np.ascontiguousarray(np.pad(part, missing, mode="edge"))


class _Tally:
    """Adds up the differences of one candidate."""

    def __init__(self) -> None:
        self.counts: Counts = {}
        self.images = 0
        self.probability = self.gate = 0.0
        self.anything_found = False

    def add(self, image_id: str, answer: Answer, expected: Answer, thresholds: Thresholds) -> None:
        self.images += 1
        # np.maximum keeps what is not a number, where max() would depend on the order.
        self.probability = float(
            np.maximum(self.probability, np.abs(answer.probabilities - expected.probabilities).max())
        )
        self.gate = float(np.maximum(self.gate, np.abs(answer.gate - expected.gate).max()))
        masks, expected_masks = (
            segment(ImageAnswer(one.probabilities[0], one.gate[0]), thresholds).masks for one in (answer, expected)
        )
        self.counts |= count_pairs(image_id, masks, expected_masks)
        self.anything_found |= bool(masks.any() or expected_masks.any())

    def result(self) -> Comparison:
        return Comparison(self.images, self.probability, self.gate, pooled_dice(self.counts), self.anything_found)
