"""Measure what an image looks like, see `image.appearance`."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.appearance import BOTH_QUARTILES, MEASURES, OF_LIGHT, QUANTILES, RATIOS, SOFTENED

_TILE_PX = 32
_WINDOW_PX = 256
_MOST_PX = 2**20  # a larger image is described by windows that lie evenly over it
_BLACK_LEVEL = 16  # a tile with a lower mean is black: no steel, or no light
_LIT_LEVEL = 8  # a tile is lit if its mean is more than its deviation above this: without an edge of the steel
_CALM = 0.05  # quantile over the tiles, for what the camera adds to even the smoothest steel
_UPPER, _LOWER = (np.array([MEASURES.index(pair[part]) for pair in RATIOS], np.intp) for part in (0, 1))

Picture = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16]


def appearance_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe a grey image, uint8 (H, W), in 45 numbers, float32 (45,), see `image.appearance.NUMBERS`.

    Its time and memory are those of an image of one megapixel at most.
    """
    tiles = np.concatenate([_tiles_of(window) for window in _windows_of(pixels)], axis=1)
    level, deviation = tiles[:2]
    is_lit = level - deviation >= _LIT_LEVEL
    logs = np.log((tiles[:, is_lit] if is_lit.any() else tiles) + np.float32(SOFTENED))
    sorted_logs, ratios = np.sort(logs, axis=1), np.sort(logs[_UPPER] - logs[_LOWER], axis=1)
    calm = _quantile(sorted_logs, _CALM)
    return np.concatenate(
        [
            *(_quantile(sorted_logs[:OF_LIGHT], share) for share in QUANTILES),
            _quantile(ratios, 0.25),
            calm[_UPPER] - calm[_LOWER],
            _quantile(ratios[: len(BOTH_QUARTILES)], 0.75),
            [np.mean(level < _BLACK_LEVEL)],
        ]
    ).astype(np.float32)


def _quantile(ordered: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """As np.quantile of sorted rows, which takes 20 times as long."""
    place = share * (ordered.shape[1] - 1)
    below, part = int(place), np.float32(place % 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below] * (1 - part) + ordered[:, above] * part


def _windows_of(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The whole image, or windows that lie evenly over it."""
    if pixels.size <= _MOST_PX:
        return [pixels]
    tops, lefts = (np.linspace(0, max(0, side - _WINDOW_PX), 4).astype(int) for side in pixels.shape)
    return [
        pixels[top : top + _WINDOW_PX, left : left + _WINDOW_PX] for top in np.unique(tops) for left in np.unique(lefts)
    ]


def _tiles_of(window: NDArray[np.uint8]) -> NDArray[np.float32]:
    """MEASURES of each tile of a window, float32 (16, tiles); of every second or fourth row, which suffices."""
    height, width = window.shape
    tiles = max(1, round(height / _TILE_PX)), max(1, round(width / _TILE_PX))
    level = _means(window[::4], tiles)
    variance = _means(np.multiply(window[::4], window[::4], dtype=np.uint16), tiles) - level**2
    rows = [level, np.sqrt(np.maximum(variance, 0))]
    for lag in (1, 2, 4):
        rows.append(_means(_change(window[::2, lag:], window[::2, :-lag]), tiles))
        rows.append(_means(_change(window[lag::2], window[:-lag:2]), tiles))
    rows.append(_means(_mixed(window), tiles))
    scaled = window
    for is_first in (True, False, False):
        half_wh = max(1, scaled.shape[1] // 2), max(1, scaled.shape[0] // 2)
        scaled = np.asarray(cv2.resize(scaled, half_wh, interpolation=cv2.INTER_AREA), np.uint8)
        rows.append(_means(_change(scaled[:, 1:], scaled[:, :-1]), tiles))
        rows.append(_means(_change(scaled[1:], scaled[:-1]), tiles))
        rows += [_means(_mixed(scaled), tiles)] if is_first else []
    return np.stack(rows).reshape(len(rows), -1)


def _change(one: Picture, other: Picture) -> Picture:
    """The size of the difference of two pictures; 0 if the image is too small to have one."""
    change: Picture = cv2.absdiff(one, other) if one.size else np.zeros((1, 1), np.uint8)  # type: ignore[assignment]
    return change


def _mixed(picture: NDArray[np.uint8]) -> Picture:
    """How much the change from row to row differs from a pixel to the next, for every second pair of rows."""
    if min(picture.shape) < 2:
        return np.zeros((1, 1), np.uint8)
    across = np.subtract(picture[1::4], picture[:-1:4], dtype=np.int16)
    return _change(across[:, 1:], across[:, :-1])


def _means(picture: Picture, tiles: tuple[int, int]) -> NDArray[np.float32]:
    """The mean of each tile, float32 (rows of tiles, columns of tiles)."""
    bands, lefts, areas = _grid(picture.shape, tiles)
    sums = np.concatenate(
        [cv2.reduce(picture[top:bottom], 0, cv2.REDUCE_SUM, dtype=cv2.CV_32F) for top, bottom in bands]
    )
    return np.asarray(np.add.reduceat(sums, lefts, axis=1) / areas, np.float32)


@lru_cache(64)
def _grid(
    size_hw: tuple[int, ...], tiles: tuple[int, int]
) -> tuple[list[tuple[int, int]], NDArray[np.intp], NDArray[np.float32]]:
    """How a picture is divided: first and last row of bands, first column of tiles, and the areas of tiles."""
    tops, lefts = (np.arange(number) * side // number for side, number in zip(size_hw, tiles, strict=True))
    bottoms, rights = (
        np.maximum(np.append(starts[1:], side), starts + 1) for starts, side in zip((tops, lefts), size_hw, strict=True)
    )
    areas = np.outer(bottoms - tops, rights - lefts).astype(np.float32)
    return list(zip(tops.tolist(), bottoms.tolist(), strict=True)), lefts, areas
