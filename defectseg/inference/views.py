"""Test-time augmentation: the answers for mirrored and turned views of an image, turned back and averaged.

It lies above the Runtime, so that every kind of runtime has it, exported files included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectseg.runtime.base import Answer, Runtime


@dataclass(frozen=True)
class View:
    """One way to look at an image: rows and columns exchanged or not, then either order reversed (-1) or not (1)."""

    transposed: bool = False
    row_step: int = 1
    column_step: int = 1

    def turn(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The view of images (..., H, W), contiguous, as a runtime wants it."""
        turned = images.swapaxes(-2, -1) if self.transposed else images
        return np.ascontiguousarray(turned[..., :: self.row_step, :: self.column_step])

    def turn_back(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """What was answered for the view, as an answer for the image; it shares memory with its argument."""
        upright = probabilities[..., :: self.row_step, :: self.column_step]
        return upright.swapaxes(-2, -1) if self.transposed else upright


# Neighbours in this order are added up first, then neighbouring pairs, and so on. Each image and its half turn stand
# together, since the half turn commutes with all others: so the sum for a mirrored or turned image has the same terms
# in the same brackets, and is the same to the last bit.
_FLIPS = (
    View(),
    View(row_step=-1, column_step=-1),
    View(column_step=-1),
    View(row_step=-1),
)
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View(),),
    "flips": _FLIPS,
    "turns": (*_FLIPS, *(replace(view, transposed=True) for view in _FLIPS)),
}


def answer_views(runtime: Runtime, images: NDArray[np.uint8], tta: str) -> Answer:
    """The mean answer for all views of images (N, 1, H, W): probabilities (N, C, H, W) and gate (N, C), float32.

    `tta` is a key of VIEWS. The runtime is called once for each view: on a CPU, where time matters most, a batch gains
    nothing. Quarter turns would show the network another format of image, so that `turns` are flips where H is not W.
    """
    height, width = images.shape[-2:]
    views = VIEWS["flips" if tta == "turns" and height != width else tta]
    if len(views) == 1:
        return runtime(images)
    total = _sum(runtime, images, views)
    share = np.float32(1 / len(views))
    np.multiply(total.probabilities, share, out=total.probabilities)
    return Answer(total.probabilities, total.gate * share)


def _sum(runtime: Runtime, images: NDArray[np.uint8], views: Sequence[View]) -> Answer:
    """Sum over the views, pair by pair; `probabilities` is the caller's own to write to."""
    if len(views) == 1:
        answer = runtime(views[0].turn(images))
        return Answer(np.array(views[0].turn_back(answer.probabilities), order="C"), answer.gate)
    half = len(views) // 2
    first, second = _sum(runtime, images, views[:half]), _sum(runtime, images, views[half:])
    np.add(first.probabilities, second.probabilities, out=first.probabilities)
    return Answer(first.probabilities, first.gate + second.gate)
