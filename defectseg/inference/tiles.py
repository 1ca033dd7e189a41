"""Overlapping windows, for sheets larger than the model's field."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.settings import Settings
from defectseg.inference.views import answer_views
from defectseg.runtime.base import Answer, Runtime

# A network answers in steps of its stride: moved by 1 px, a trained one differed by more than 0.05 on a third of the
# pixels, moved by a whole stride on hardly any. The stride is 32 px, or 64 where the image is seen at half its size.
GRID_PX = 64

_Kind = TypeVar("_Kind", bound=np.generic)
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class ImageAnswer:
    """What the network says of one image: probabilities float32 (C, H, W) and gate float32 (C,), both 0..1."""

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


@dataclass(frozen=True)
class Band:
    """A part of an image from edge to edge, and what the network says of it.

    Attributes:
        box: rows and columns of the part within the image.
        probabilities: float32 (C, h, w), 0..1, contiguous.
        gate: float32 (C,), 0..1, the largest over the tiles so far: that of the image once the last band has come.
    """

    box: tuple[slice, slice]
    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


def predict_image(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> ImageAnswer:
    """Answer for one grey image uint8 (H, W) of any size; all of it is held as float32, see `predict_bands`.

    Raises:
        ModelError: the network answers with something that is not a number.
        ResourceError: memory ran out.
    """
    if fits_one_tile(image, settings):
        answer = answer_tile(runtime, image, settings.tta)
        return ImageAnswer(answer.probabilities[0], answer.gate[0])
    num_classes = len(runtime.class_names)
    probabilities, gate = np.empty((num_classes, *image.shape), np.float32), np.zeros(num_classes, np.float32)
    for band in predict_bands(runtime, image, settings):
        probabilities[:, *band.box] = band.probabilities
        gate = band.gate
    return ImageAnswer(probabilities, gate)


def fits_one_tile(image: NDArray[np.uint8], settings: Settings) -> bool:
    """Whether the network sees an image (H, W) as a whole."""
    (tile_h, tile_w), (height, width) = settings.tile_hw, image.shape
    return bool(height <= tile_h and width <= tile_w)


def predict_bands(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> Iterator[Band]:
    """Answer for a large grey image uint8 (H, W), band after band along its longer side.

    Probabilities of overlapping tiles are blended with weights that fall off towards inner borders. Each tile is
    answered in all views that the settings ask for; as many tiles are in work at once as the runtime has use for. At no
    time is more held than one tile's length of the image and the answers in work.

    All tiles of an image have one shape, since a runtime may have to prepare itself for each: one that reaches beyond
    the image repeats its last row and column, as the network itself does up to its stride.

    Raises:
        ModelError: the network answers with something that is not a number.
        ResourceError: memory ran out.
    """
    # Here the first axis is the longer one: a wide image is looked at transposed, and nothing is copied for that.
    wide = image.shape[1] > image.shape[0]
    height, width = _turned(image, wide).shape
    (tile_h, tile_w), tops, lefts = _tiling((height, width), settings, wide)
    overlap_px, num_classes = settings.tile_overlap_px, len(runtime.class_names)
    answers = _answers(runtime, cut_tiles(image, settings), settings.tta)
    gate = np.zeros(num_classes, np.float32)
    blend = _Blend((num_classes, tile_h, width), wide=wide)
    across = [_ramp(left, tile_w, width, overlap_px) for left in lefts]
    for top, following in pairwise((*tops, height)):
        down = _ramp(top, tile_h, height, overlap_px)
        for left, weights in zip(lefts, across, strict=True):
            answer = next(answers)
            blend.add(_turned(answer.probabilities[0], wide), np.outer(down, weights), left)
            gate = np.maximum(gate, answer.gate[0])
        along, whole = slice(top, following), slice(None)
        probabilities = np.ascontiguousarray(_turned(blend.take(following - top), wide))
        yield Band((whole, along) if wide else (along, whole), probabilities, gate)


def cut_tiles(image: NDArray[np.uint8], settings: Settings) -> Iterator[NDArray[np.uint8]]:
    """The tiles (h, w) of an image (H, W), all of one shape, in the order of their answers in `predict_bands`."""
    wide = image.shape[1] > image.shape[0]
    source = _turned(image, wide)
    (tile_h, tile_w), tops, lefts = _tiling(source.shape, settings, wide)
    for top in tops:
        for left in lefts:
            tile = source[top : top + tile_h, left : left + tile_w]
            yield _turned(_filled(tile, (tile_h, tile_w)), wide)


def _tiling(size_hw: tuple[int, ...], settings: Settings, wide: bool) -> tuple[tuple[int, int], list[int], list[int]]:
    """Size of the tiles of an image, and where they begin along either axis; all of it transposed where `wide`."""
    sides = settings.tile_hw[::-1] if wide else settings.tile_hw
    tile_h, tile_w = map(min, sides, size_hw)
    tops, lefts = (
        tile_starts(length, tile, settings.tile_overlap_px)
        for length, tile in zip(size_hw, (tile_h, tile_w), strict=True)
    )
    return (tile_h, tile_w), tops, lefts


def _filled(tile: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A tile of exactly this size: where it is smaller, its last row and column repeat."""
    missing = [(0, wanted - length) for wanted, length in zip(size_hw, tile.shape, strict=True)]
    return np.pad(tile, missing, mode="edge") if any(after for _, after in missing) else tile


def _turned(array: NDArray[_Kind], wide: bool) -> NDArray[_Kind]:
    """A view of (..., a, b) as (..., b, a), where `wide`."""
    return array.swapaxes(-2, -1) if wide else array


class _Blend:
    """The weighted mean of overlapping tiles over one tile's length of the image, which moves on as parts are done."""

    def __init__(self, shape: tuple[int, int, int], *, wide: bool) -> None:
        num_classes, height, width = shape
        # Sums lie in memory as the answers do.
        stored_hw = (width, height) if wide else (height, width)
        self.total = _turned(np.zeros((num_classes, *stored_hw), np.float32), wide)
        self.weight_sum = _turned(np.zeros((1, *stored_hw), np.float32), wide)

    def add(self, probabilities: NDArray[np.float32], weight: NDArray[np.float32], left: int) -> None:
        """Add a tile's answer (C, h, w) with weights (h, w), or fewer where the tile reaches beyond the image.

        Its first row is the first that is not done.
        """
        height, width = weight.shape
        box = np.s_[:, :height, left : left + width]
        self.total[box] += probabilities[:, :height, :width] * weight
        self.weight_sum[box] += weight

    def take(self, rows: int) -> NDArray[np.float32]:
        """The mean of the first rows (C, rows, width), which no further tile will touch; the rest moves up."""
        mean = self.total[:, :rows] / self.weight_sum[:, :rows]
        for held in (self.total, self.weight_sum):
            kept = held.shape[1] - rows
            held[:, :kept] = held[:, rows:]
            held[:, kept:] = 0.0
        return mean


def _answers(runtime: Runtime, tiles: Iterable[NDArray[np.uint8]], tta: str) -> Iterator[Answer]:
    """The answers for tiles (h, w), in their order; `runtime.parallel` of them are worked on at a time."""
    if runtime.parallel == 1:
        yield from (answer_tile(runtime, tile, tta) for tile in tiles)
        return
    with ThreadPoolExecutor(runtime.parallel) as pool:
        yield from in_order(pool, lambda tile: answer_tile(runtime, tile, tta), tiles, most=runtime.parallel + 1)


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], *, most: int
) -> Iterator[_Out]:
    """What `function` makes of each item, in their order; up to `most` items are taken ahead of the reader.

    Where the reader has had enough or an item failed, those that have not begun are given up.
    """
    waiting: deque[Future[_Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def answer_tile(runtime: Runtime, tile: NDArray[np.uint8], tta: str) -> Answer:
    """The answer for a tile uint8 (h, w), in the views of `tta`: probabilities (1, C, h, w) and gate (1, C).

    Raises:
        ModelError: it holds something that is not a number. That would pass for clean steel, as it reaches no
            threshold.
        ResourceError: memory ran out.
    """
    answer = answer_views(runtime, np.ascontiguousarray(tile)[None, None], tta)
    # numpy's maximum of numbers and a NaN is NaN; cv2.minMaxLoc would pass over it.
    if np.isnan(answer.probabilities.max()) or np.isnan(answer.gate.max()):
        raise ModelError(
            "the network's answer is not a number: its weights are damaged, or 16-bit numbers do not suffice for it. "
            "Train it again with training.precision=fp32."
        )
    return answer


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` px that cover `length` px begin along one axis; neighbours share at least `overlap` px.

    Where tiles are long enough for it, all begin on a grid of `GRID_PX`, and the last, which ends with the image, is up
    to `GRID_PX` - 1 shorter. Else the last one is moved back so as to end with the image.
    """
    if tile >= length:
        return [0]
    step = tile - min(overlap, tile - 1)
    grid = GRID_PX if step >= GRID_PX else 1
    last = -(-(length - tile) // grid) * grid
    return [*range(0, last, step - step % grid), last]


def _ramp(start: int, tile: int, length: int, overlap: int) -> NDArray[np.float32]:
    """Weights of a tile along one axis: linear over the overlap, never zero, flat towards the image's own border."""
    tile = min(tile, length - start)
    positions = np.arange(tile, dtype=np.float32)
    distance = np.full(tile, np.float32(overlap + 1))
    if start > 0:
        distance = np.minimum(distance, positions + 1)
    if start + tile < length:
        distance = np.minimum(distance, tile - positions)
    return distance / np.float32(overlap + 1)
