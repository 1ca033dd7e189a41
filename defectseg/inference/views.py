"""Test-time augmentation: the mean of the answers for mirrored and turned views of an image.

It works with every kind of runtime, exported files included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectseg.inference.batches import answer_each
from defectseg.runtime.base import Answer, Runtime


@dataclass(frozen=True)
class View:
    """A mirrored or turned image: rows and columns exchanged or not, then either order reversed (-1) or not (1)."""

    transposed: bool = False
    row_step: int = 1
    column_step: int = 1

    def turn(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The view of images (..., H, W), contiguous."""
        turned = images.swapaxes(-2, -1) if self.transposed else images
        return np.ascontiguousarray(turned[..., :: self.row_step, :: self.column_step])

    def turn_back(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn the probabilities for the view back; the result shares memory with the argument."""
        upright = probabilities[..., :: self.row_step, :: self.column_step]
        return upright.swapaxes(-2, -1) if self.transposed else upright


# Neighbours in this order are added first, then neighbouring pairs, and so on. Each view is next to its half turn,
# which commutes with all others. So the sum for a mirrored or turned image has the same terms in the same brackets, and
# is equal bit for bit.
_FLIPS = (View(), View(row_step=-1, column_step=-1), View(column_step=-1), View(row_step=-1))
_TURNS = (*_FLIPS, *(replace(view, transposed=True) for view in _FLIPS))
VIEWS: dict[str, tuple[View, ...]] = {"none": (View(),), "flips": _FLIPS, "turns": _TURNS}


def views_of(tta: str, size_hw: tuple[int, ...]) -> tuple[View, ...]:
    """The views of an image (h, w); quarter turns would change its shape, so `turns` means `flips` if h is not w."""
    return VIEWS["flips" if tta == "turns" and size_hw[0] != size_hw[1] else tta]


def answer_views(runtime: Runtime, images: Sequence[NDArray[np.uint8]], tta: str) -> Iterator[Answer]:
    """For each of some images (h, w) of one shape the mean answer for all its views: an Answer of one image.

    `tta` is a key of VIEWS. All views of all images belong to one batch.
    """
    views = views_of(tta, images[0].shape)
    answers = answer_each(runtime, [view.turn(image) for image in images for view in views])
    if len(views) == 1:
        yield from answers
        return
    share = np.float32(1 / len(views))
    for _ in images:
        total = _sum(answers, views)
        np.multiply(total.probabilities, share, out=total.probabilities)
        yield Answer(total.probabilities, total.gate * share)


def _sum(answers: Iterator[Answer], views: Sequence[View]) -> Answer:
    """Sum over the next answers, pair by pair; the caller may write to `probabilities`."""
    if len(views) == 1:
        answer = next(answers)
        return Answer(np.array(views[0].turn_back(answer.probabilities), order="C"), answer.gate)
    half = len(views) // 2
    first, second = _sum(answers, views[:half]), _sum(answers, views[half:])
    np.add(first.probabilities, second.probabilities, out=first.probabilities)
    return Answer(first.probabilities, first.gate + second.gate)
