"""Overlapping windows, for sheets larger than the model's field."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.inference.runtimes.base import Answer, Runtime
from defectseg.inference.views import answer_views


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image: probabilities float32 (C, H, W) and gate float32 (C,), both 0..1."""

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


def predict_image(runtime: Runtime, image: NDArray[np.uint8]) -> Prediction:
    """Answer for one grey image uint8 (H, W) of any size.

    Where it is larger than the model's tile, probabilities of overlapping tiles are blended with weights that fall
    off towards inner borders, and the gate is the largest over the tiles. Each tile is answered in all the views that
    the recipe's `inference.tta` asks for.

    Raises:
        ModelError: the network answers with something that is not a number.
        ResourceError: memory ran out.
    """
    settings = runtime.info.recipe.inference
    height, width = image.shape
    tile_h, tile_w = min(settings.tile_hw[0], height), min(settings.tile_hw[1], width)
    if (tile_h, tile_w) == (height, width):
        answer = _answer(runtime, image)
        return Prediction(answer.probabilities[0], answer.gate[0])
    num_classes = runtime.info.num_classes
    total = np.zeros((num_classes, height, width), np.float32)
    weight_sum = np.zeros((height, width), np.float32)
    gate = np.zeros(num_classes, np.float32)
    for top, left in windows((height, width), (tile_h, tile_w), settings.tile_overlap_px):
        rows, columns = slice(top, top + tile_h), slice(left, left + tile_w)
        answer = _answer(runtime, np.ascontiguousarray(image[rows, columns]))
        weight = np.outer(
            _ramp(tile_h, settings.tile_overlap_px, at_start=top > 0, at_end=top + tile_h < height),
            _ramp(tile_w, settings.tile_overlap_px, at_start=left > 0, at_end=left + tile_w < width),
        )
        total[:, rows, columns] += answer.probabilities[0] * weight
        weight_sum[rows, columns] += weight
        np.maximum(gate, answer.gate[0], out=gate)
    total /= weight_sum
    return Prediction(total, gate)


def _answer(runtime: Runtime, tile: NDArray[np.uint8]) -> Answer:
    """The answer for a tile (h, w). One that is not a number would pass for clean steel, as it reaches no threshold."""
    answer = answer_views(runtime, tile[None, None], runtime.info.recipe.inference.tta)
    if np.isnan(answer.probabilities.min()) or np.isnan(answer.gate.min()):
        raise ModelError(
            "the network's answer is not a number: its weights are damaged, or 16-bit numbers do not suffice for it. "
            "Train it again with training.precision=fp32."
        )
    return answer


def windows(size_hw: tuple[int, int], tile_hw: tuple[int, int], overlap_px: int) -> Iterator[tuple[int, int]]:
    """Top-left corners (row, column) of tiles that cover an image; neighbours share at least `overlap_px`.

    The last tile of a row or column is moved back so as to end with the image; none is larger than the image.
    """
    for top in _starts(size_hw[0], tile_hw[0], overlap_px):
        for left in _starts(size_hw[1], tile_hw[1], overlap_px):
            yield top, left


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if tile >= length:
        return [0]
    step = tile - min(overlap, tile - 1)
    return [*range(0, length - tile, step), length - tile]


def _ramp(length: int, overlap: int, *, at_start: bool, at_end: bool) -> NDArray[np.float32]:
    """Weights of a tile along one axis: linear over the overlap, never zero, flat towards the image's own border."""
    positions = np.arange(length, dtype=np.float32)
    distance = np.full(length, np.float32(overlap + 1))
    if at_start:
        distance = np.minimum(distance, positions + 1)
    if at_end:
        distance = np.minimum(distance, length - positions)
    return distance / np.float32(overlap + 1)
