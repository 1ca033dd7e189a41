"""A data folder through the stream -> counts: what `evaluate`, threshold search and validation share."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, count_pairs, merge
from defectseg.image.find import FoundImage
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.inference.tiles import ImageAnswer
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime


@dataclass(frozen=True)
class Scored:
    """One labelled image after the pipeline: its pixels, the answer, the result and the truth.

    C counts the classes of the data folder, which may name fewer than the model knows.

    Attributes:
        image_id: ImageId.
        pixels: uint8 (H, W).
        answer: what the network says; None where nobody asked for it.
        masks: bool (C, H, W), what is reported.
        truth: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels that count for nothing.
    """

    image_id: str
    pixels: NDArray[np.uint8]
    answer: ImageAnswer | None
    masks: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_]


Visitor = Callable[[Scored], object]
"""Sees an image while it is in memory (an overlay writer, a threshold search) and must not keep the arrays.

It is called from several threads at once, in any order."""


@dataclass(frozen=True)
class Score:
    """Counts of the images that could be read, those that could not, and how many have each `brightest16`."""

    counts: Counts
    unreadable: tuple[Unreadable, ...]
    brightest: Counter[int | None]


def score_images(
    runtime: Runtime,
    folder: DataFolder,
    image_ids: Sequence[str],
    settings: Settings,
    *,
    visitors: Sequence[Visitor] = (),
    keep_answers: bool = False,
    progress: Progress = silent,
) -> Score:
    """Predict labelled images as `predict` does and count the pixels of each (image, class) pair.

    16-bit files are read by the bit depth of the folder, of the file itself, or of the model, whichever is known first.

    Args:
        runtime: the model.
        folder: where images and labels are; of the model's answer, only its classes count.
        image_ids: which of its images.
        settings: of the inference; the bit depth is that of the folder.
        visitors: called with each image.
        keep_answers: give the visitors the probabilities, too; of a large image these take much memory.
        progress: told after each image.

    Raises:
        LabelError: a run-length that does not fit its image.
        ResourceError: memory ran out.
    """
    own = runtime.class_names
    # All classes in order as a slice, which copies nothing.
    classes = slice(None) if folder.class_names == own else [own.index(name) for name in folder.class_names]

    def count(one: Segmented) -> tuple[Counts, int | None]:
        image_id, pixels = one.found.image_id, one.decoded.pixels
        truth, ignore = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
        masks = one.segmentation.masks[classes]
        answer = one.segmentation.answer
        answer = answer and ImageAnswer(answer.probabilities[classes], answer.gate[classes])
        scored = Scored(image_id, pixels, answer, masks, truth, ignore)
        for visit in visitors:
            visit(scored)
        return count_pairs(image_id, masks, truth, ignore), one.decoded.brightest16

    images = [FoundImage(image_id, folder.image_path(image_id)) for image_id in image_ids]
    parts: list[Counts] = []
    unreadable: list[Unreadable] = []
    brightest: Counter[int | None] = Counter()
    progress(0, len(images))
    settings = replace(settings, bit_depth=folder.bit_depth)
    with closing(stream(images, runtime, settings, count, keep_answers=keep_answers)) as results:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Unreadable):
                unreadable.append(result)
            else:
                parts.append(result[0])
                brightest[result[1]] += 1
            progress(done, len(images))
    return Score(merge(*parts), tuple(unreadable), brightest)


def all_unreadable(folder: DataFolder, unreadable: Sequence[Unreadable], *, scored: int) -> tuple[Unreadable, ...]:
    """The unreadable images, with those that were faulty from the start.

    Raises:
        DataError: none was `scored`, since none could be read.
    """
    if unreadable and not scored:
        raise DataError(
            f"{folder.root}: none of the {len(unreadable)} images can be read. The first: {unreadable[0].message}"
        )
    return (*(Unreadable(image.image_id, image.path, image.fault) for image in folder.faulty), *unreadable)
