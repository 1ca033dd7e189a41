"""A data folder through the pipeline -> counts: what `evaluate`, threshold search and validation share."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.evaluate.metrics import Counts, count_pairs, merge
from defectseg.image.find import FoundImage
from defectseg.inference.segment import segment
from defectseg.inference.stream import Failure, decode_ahead
from defectseg.inference.tiles import ImageAnswer, predict_image
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Runtime


@dataclass(frozen=True)
class Scored:
    """One labelled image after the pipeline: its pixels, the answer, the result and the truth.

    C counts the classes of the data folder, which may name fewer than the model knows.

    Attributes:
        image_id: ImageId.
        pixels: uint8 (H, W).
        prediction: what the network says.
        masks: bool (C, H, W), what is reported.
        truth: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels that count for nothing.
    """

    image_id: str
    pixels: NDArray[np.uint8]
    prediction: ImageAnswer
    masks: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_]


Visitor = Callable[[Scored], None]
"""Looks at each image while it is in memory (an overlay writer, a threshold search); it must not keep the arrays."""


@dataclass(frozen=True)
class Score:
    """Counts of the images that could be read, those that could not, and how many have each `brightest16`."""

    counts: Counts
    failures: tuple[Failure, ...]
    brightest: Counter[int | None]


def score_images(
    runtime: Runtime,
    folder: DataFolder,
    image_ids: Sequence[str],
    *,
    thresholds: Thresholds,
    visitors: Sequence[Visitor] = (),
    advance: Callable[[], None] = lambda: None,
) -> Score:
    """Predict labelled images as `predict` does and count the pixels of each (image, class) pair.

    16-bit files are read by the bit depth of the folder, of the file itself, or of the model, whichever is known first.

    Args:
        runtime: the model.
        folder: where images and labels are; of the model's answer, only its classes count.
        image_ids: which of its images.
        thresholds: gate, pixel threshold and minimum area for each class of the model.
        visitors: called with each image.
        advance: called after each image.

    Raises:
        LabelError: a run-length that does not fit its image.
        ResourceError: memory ran out.
    """
    info = runtime.info
    # All classes in order as a slice, which copies nothing.
    classes = slice(None) if folder.class_names == info.class_names else info.indices_of(folder.class_names)
    parts: list[Counts] = []
    failures: list[Failure] = []
    brightest: Counter[int | None] = Counter()
    found = [FoundImage(image_id, folder.image_path(image_id)) for image_id in image_ids]
    model_bit_depth = runtime.info.recipe.data.bit_depth
    for item in decode_ahead(found, bit_depth=folder.bit_depth, model_bit_depth=model_bit_depth):
        if isinstance(item, Failure):
            failures.append(item)
        else:
            image_id, pixels = item.found.image_id, item.decoded.pixels
            brightest[item.decoded.brightest16] += 1
            truth, ignore = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
            answer = predict_image(runtime, pixels)
            masks = segment(answer, thresholds).masks[classes]
            parts.append(count_pairs(image_id, masks, truth, ignore))
            prediction = ImageAnswer(answer.probabilities[classes], answer.gate[classes])
            scored = Scored(image_id, pixels, prediction, masks, truth, ignore)
            for visit in visitors:
                visit(scored)
        advance()
    return Score(merge(*parts), tuple(failures), brightest)
