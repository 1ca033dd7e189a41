"""Large images, in overlapping tiles."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.batches import most_images
from defectseg.inference.settings import Settings
from defectseg.inference.views import answer_views
from defectseg.runtime.base import Runtime

# Tiles start at multiples of the network's stride: 32 px, or 64 if the network sees the image at half its size. Moving
# a tile by 1 px changed the answer by more than 0.05 on a third of the pixels, moving it by the stride on very few.
GRID_PX = 64

_Kind = TypeVar("_Kind", bound=np.generic)
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class ImageAnswer:
    """The network's answer for one image: probabilities float32 (C, H, W) and gate float32 (C,), both 0..1."""

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


def predict_image(runtime: Runtime, image: NDArray[np.uint8], settings: Settings) -> ImageAnswer:
    """The answer for a grey image uint8 (H, W) of any size, completely in memory; see `predict_bands`.

    Raises:
        ModelError: the network answers with NaN.
        ResourceError: memory ran out.
    """
    if fits_one_tile(image.shape, settings):
        return answer_tiles(runtime, [image], settings.tta)[0]
    num_classes = len(runtime.class_names)
    probabilities, gate = np.empty((num_classes, *image.shape), np.float32), np.zeros(num_classes, np.float32)
    for box, answer in predict_bands(runtime, image, settings):
        probabilities[:, *box] = answer.probabilities
        gate = answer.gate
    return ImageAnswer(probabilities, gate)


def fits_one_tile(size_hw: tuple[int, ...], settings: Settings) -> bool:
    """Whether an image of (H, W) px is not larger than a tile."""
    return size_hw[0] <= settings.tile_hw[0] and size_hw[1] <= settings.tile_hw[1]


def predict_bands(
    runtime: Runtime, image: NDArray[np.uint8], settings: Settings
) -> Iterator[tuple[tuple[slice, slice], ImageAnswer]]:
    """The answer for a large grey image uint8 (H, W), in bands along its longer side.

    The probabilities of overlapping tiles are averaged with weights that decrease towards inner borders. The network
    sees every tile in all views of the settings; `runtime.parallel` batches are computed at once. Memory holds one
    tile's length of the image and the answers being computed.

    All tiles of an image have the same shape, since runtimes prepare themselves for each new shape. A tile that reaches
    beyond the image is filled by repeating the last row and column, as the network itself does up to its stride.

    Yields:
        rows and columns of the band, which extends from edge to edge; and its answer. The probabilities are contiguous.
        The gate is the maximum over the tiles so far, so that the last band has that of the image.

    Raises:
        ModelError: the network answers with NaN.
        ResourceError: memory ran out.
    """
    # The first axis is the longer one here: a wide image is a transposed view, without a copy.
    wide, (tile_h, tile_w), tops, lefts = _tiling(image, settings)
    height, width = _turned(image, wide).shape
    overlap_px, num_classes = settings.tile_overlap_px, len(runtime.class_names)
    answers = answer_all(runtime, cut_tiles(image, settings), settings.tta)
    gate = np.zeros(num_classes, np.float32)
    # Weighted probabilities and, as last plane, the weights, over one tile's length; in memory like the answers.
    sums = _turned(np.zeros((num_classes + 1, *((width, tile_h) if wide else (tile_h, width))), np.float32), wide)
    across = [_ramp(left, tile_w, width, overlap_px) for left in lefts]
    for top, following in pairwise((*tops, height)):
        down = _ramp(top, tile_h, height, overlap_px)
        for left, weights in zip(lefts, across, strict=True):
            answer = next(answers)
            weight = np.outer(down, weights)
            inside = np.s_[:, : len(down), : len(weights)]  # a tile may reach beyond the image
            part = sums[:, : len(down), left : left + len(weights)]
            part[:-1] += _turned(answer.probabilities, wide)[inside] * weight
            part[-1] += weight
            gate = np.maximum(gate, answer.gate)
        rows, kept = following - top, tile_h - (following - top)
        mean = sums[:-1, :rows] / sums[-1, :rows]  # no other tile touches these rows
        sums[:, :kept] = sums[:, rows:]
        sums[:, kept:] = 0.0
        along, edge_to_edge = slice(top, following), slice(None)
        box = (edge_to_edge, along) if wide else (along, edge_to_edge)
        yield box, ImageAnswer(np.ascontiguousarray(_turned(mean, wide)), gate)


def cut_tiles(image: NDArray[np.uint8], settings: Settings) -> Iterator[NDArray[np.uint8]]:
    """The tiles (h, w) of an image (H, W), all of one shape, in the order of their answers in `predict_bands`."""
    wide, (tile_h, tile_w), tops, lefts = _tiling(image, settings)
    for top, left in product(tops, lefts):
        tile = _turned(image, wide)[top : top + tile_h, left : left + tile_w]
        missing = [(0, tile_h - tile.shape[0]), (0, tile_w - tile.shape[1])]
        yield _turned(np.pad(tile, missing, mode="edge"), wide)


def _tiling(image: NDArray[np.uint8], settings: Settings) -> tuple[bool, tuple[int, int], list[int], list[int]]:
    """Whether an image is wide; and, transposed if so, the size and the starts of its tiles on both axes."""
    wide = image.shape[1] > image.shape[0]
    step = -1 if wide else 1
    tile_h, tile_w = map(min, settings.tile_hw[::step], image.shape[::step])
    sides = zip(image.shape[::step], (tile_h, tile_w), strict=True)
    tops, lefts = (tile_starts(length, tile, settings.tile_overlap_px) for length, tile in sides)
    return wide, (tile_h, tile_w), tops, lefts


def _turned(array: NDArray[_Kind], wide: bool) -> NDArray[_Kind]:
    """A view of (..., a, b) as (..., b, a) if `wide`."""
    return array.swapaxes(-2, -1) if wide else array


def answer_all(runtime: Runtime, tiles: Iterator[NDArray[np.uint8]], tta: str) -> Iterator[ImageAnswer]:
    """The answers for tiles (h, w) of one shape, in their order; `runtime.parallel` batches are computed at once."""
    batches = ([tile, *islice(tiles, most_images(runtime, tile.shape) - 1)] for tile in tiles)
    if runtime.parallel == 1:
        for batch in batches:
            yield from answer_tiles(runtime, batch, tta)
        return
    with ThreadPoolExecutor(runtime.parallel) as pool:
        most = runtime.parallel + 1
        for answers in in_order(pool, lambda batch: answer_tiles(runtime, batch, tta), batches, most=most):
            yield from answers


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In | None], *, most: int
) -> Iterator[_Out]:
    """Apply `function` to the items in threads, and yield the results in order; at most `most` items are taken ahead.

    If an item is None, all results before it are yielded before the next item is taken, which may be long in coming.
    When the reader stops or an item fails, items that have not begun are cancelled.
    """
    waiting: deque[Future[_Out]] = deque()
    try:
        for item in items:
            if item is not None:
                waiting.append(pool.submit(function, item))
            while waiting and (item is None or len(waiting) >= most):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def answer_tiles(runtime: Runtime, tiles: Sequence[NDArray[np.uint8]], tta: str) -> list[ImageAnswer]:
    """The answers for tiles uint8 (h, w) of one shape, in the views of `tta`.

    Raises:
        ModelError: one contains NaN, which reaches no threshold and would pass for clean steel.
        ResourceError: memory ran out.
    """
    answers = list(answer_views(runtime, tiles, tta))
    refuse_nan(*(array for answer in answers for array in (answer.probabilities, answer.gate)))
    return [ImageAnswer(answer.probabilities[0], answer.gate[0]) for answer in answers]


def refuse_nan(*arrays: NDArray[np.float32]) -> None:
    """Raise ModelError if one of the network's answers contains NaN."""
    # The maximum of numbers and NaN is NaN in numpy; cv2.minMaxLoc would ignore it.
    if any(np.isnan(array.max()) for array in arrays):
        raise ModelError(
            "the network's answer is not a number: its weights are damaged, or 16-bit numbers do not suffice for it. "
            "Train it again with training.precision=fp32."
        )


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """The starts of tiles of `tile` px that cover `length` px along one axis and overlap by at least `overlap` px.

    If tiles are long enough, all start on a grid of `GRID_PX`, and the last one reaches up to `GRID_PX` - 1 px beyond
    the image. Otherwise the last one is moved back to end with the image.
    """
    if tile >= length:
        return [0]
    step = tile - min(overlap, tile - 1)
    grid = GRID_PX if step >= GRID_PX else 1
    last = -(-(length - tile) // grid) * grid
    return [*range(0, last, step - step % grid), last]


def _ramp(start: int, tile: int, length: int, overlap: int) -> NDArray[np.float32]:
    """Weights of a tile along one axis: linear over the overlap, never zero, constant at the border of the image."""
    tile = min(tile, length - start)
    positions = np.arange(tile, dtype=np.float32)
    distance = np.full(tile, np.float32(overlap + 1))
    if start > 0:
        distance = np.minimum(distance, positions + 1)
    if start + tile < length:
        distance = np.minimum(distance, tile - positions)
    return distance / np.float32(overlap + 1)
