"""Run a data folder through the stream and count pixels, for `evaluate`, threshold search and validation."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, Metrics, count_pairs
from defectseg.evaluate.rates import Rates
from defectseg.evaluate.sheets import Sheet, sheet_of
from defectseg.image.find import FoundImage
from defectseg.image.overlay import paint_comparison
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.inference.tiles import ImageAnswer
from defectseg.progress import Progress, silent
from defectseg.runtime.base import Runtime


@dataclass(frozen=True)
class Scored:
    """One labelled image with its answer, its predicted masks and its labels.

    C is the number of classes of the data folder, which may be fewer than the model's.

    Attributes:
        image_id: ImageId.
        pixels: uint8 (H, W).
        answer: the output of the network; None unless it was asked for.
        masks: bool (C, H, W), predicted masks.
        truth: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels that do not count.
    """

    image_id: str
    pixels: NDArray[np.uint8]
    answer: ImageAnswer | None
    masks: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_]

    def picture(self, every: int = 1) -> NDArray[np.uint8]:
        """Labels and predictions on every n-th row and column, see `paint_comparison`; without ignored pixels."""
        some = np.s_[..., ::every, ::every]
        masks, truth, counted = self.masks[some], self.truth[some], ~self.ignore[some]
        predicted, labelled, agreed = (np.any(part, axis=0) & counted for part in (masks, truth, masks & truth))
        wrong = predicted & labelled & ~agreed if len(masks) > 1 else None
        return paint_comparison(self.pixels[some], predicted, labelled, wrong)


Visitor = Callable[[Scored], object]
"""Receives each image while it is in memory, for instance to write an overlay; it must not keep the arrays.

It is called from several threads at once, in any order."""


@dataclass(frozen=True)
class Score:
    """Counts and sheets (by ImageId) of the readable images, the unreadable ones, and how many have a `brightest16`."""

    counts: Counts
    sheets: dict[str, Sheet]
    unreadable: tuple[Unreadable, ...] = ()
    brightest: Counter[int | None] = field(default_factory=Counter)

    def __add__(self, other: "Score") -> "Score":
        """The score of two sets of images together."""
        unreadable = self.unreadable + other.unreadable
        counts, sheets = self.counts | other.counts, self.sheets | other.sheets
        return Score(counts, sheets, unreadable, self.brightest + other.brightest)


@dataclass(frozen=True)
class Evaluation:
    """Figures, warnings and unreadable images."""

    metrics: Metrics
    rates: Rates
    warnings: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def to_json(self) -> dict[str, object]:
        """All figures in plain containers, numbers and None, ready for `json.dumps(..., allow_nan=False)`."""
        return {**self.metrics.to_json(), "rates": asdict(self.rates)}


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

    The bit depth of a 16-bit file is that of the folder if set, else of the file's tag, else of the model.

    Args:
        runtime: the model.
        folder: images and labels; only its classes are scored.
        image_ids: the images to score.
        settings: of the inference; the bit depth of the folder replaces its own.
        visitors: called with each image.
        keep_answers: also pass the probabilities to the visitors; those of a large image take much memory.
        progress: called after each image.

    Raises:
        LabelError: a run-length that does not fit its image.
        ResourceError: memory ran out.
    """
    own = runtime.class_names
    # A slice for all classes copies nothing.
    classes = slice(None) if folder.class_names == own else [own.index(name) for name in folder.class_names]

    def count(one: Segmented) -> tuple[Counts, Sheet, int | None]:
        image_id, pixels = one.found.image_id, one.decoded.pixels
        truth, ignore = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
        masks = one.segmentation.masks[classes]
        answer = one.segmentation.answer
        answer = answer and ImageAnswer(answer.probabilities[classes], answer.gate[classes])
        scored = Scored(image_id, pixels, answer, masks, truth, ignore)
        for visit in visitors:
            visit(scored)
        score = one.segmentation.sheet_score if folder.class_names == own else None  # it is that of all classes
        sheet = sheet_of(masks, truth, ignore, score)
        return count_pairs(image_id, masks, truth, ignore), sheet, one.decoded.brightest16

    images = [FoundImage(image_id, str(folder.image_path(image_id))) for image_id in image_ids]
    counts: Counts = {}
    sheets: dict[str, Sheet] = {}
    unreadable: list[Unreadable] = []
    brightest: Counter[int | None] = Counter()
    progress(0, len(images))
    settings = replace(settings, bit_depth=folder.bit_depth)
    with closing(stream(images, runtime, settings, count, keep_answers=keep_answers)) as results:
        for image, result in zip(images, results, strict=True):
            if isinstance(result, Unreadable):
                unreadable.append(result)
            else:
                pairs, sheets[image.image_id], brightest16 = result
                counts |= pairs
                brightest[brightest16] += 1
            progress(len(sheets) + len(unreadable), len(images))
    return Score(counts, sheets, tuple(unreadable), brightest)


def all_unreadable(
    folder: DataFolder, unreadable: Sequence[Unreadable], *, scored: int
) -> tuple[tuple[Unreadable, ...], list[str]]:
    """The unreadable images together with the faulty files of the folder, and a warning for each.

    Raises:
        DataError: none was `scored`, because none could be read.
    """
    if unreadable and not scored:
        raise DataError(f"{folder.root}: no image can be read. The first: {unreadable[0].message}")
    faulty = (Unreadable(image.image_id, image.path, image.fault) for image in folder.faulty)
    left_out = (*faulty, *unreadable)
    return left_out, [f"left out, unreadable: {one.message}" for one in left_out]
