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
    tiles = max(1, round(window.shape[0] / _TILE_PX)), max(1, round(window.shape[1] / _TILE_PX))
    fourth = window[::4]
    level = _means(fourth, tiles, 4)
    variance = _means(np.multiply(fourth, fourth, dtype=np.uint16), tiles, 4) - level**2
    rows = [level, np.sqrt(np.maximum(variance, 0))]
    for lag in (1, 2, 4):
        rows.append(_means(_change(window[::2, lag:], window[::2, :-lag]), tiles, 2))
        rows.append(_means(_change(window[lag::2], window[:-lag:2]), tiles, 2))
    rows.append(_means(_mixed(window), tiles, 4))
    scaled = window
    for size_px in (2, 4, 8):
        half_wh = max(1, scaled.shape[1] // 2), max(1, scaled.shape[0] // 2)
        scaled = np.asarray(cv2.resize(scaled, half_wh, interpolation=cv2.INTER_AREA), np.uint8)
        rows.append(_means(_change(scaled[:, 1:], scaled[:, :-1]), tiles, size_px, size_px))
        rows.append(_means(_change(scaled[1:], scaled[:-1]), tiles, size_px, size_px))
        rows += [_means(_mixed(scaled), tiles, 4 * size_px, size_px)] if size_px == 2 else []
    return np.stack(rows).reshape(len(rows), -1)


def _change(one: Picture, other: Picture) -> Picture:
    """The size of the difference of two pictures; 0 if the image is too small to have one."""
    if not one.size:
        return np.zeros(np.maximum(one.shape, 1), np.uint8)
    change: Picture = cv2.absdiff(one, other)  # type: ignore[assignment]
    return change


def _mixed(picture: NDArray[np.uint8]) -> Picture:
    """How much the change from row to row differs from a pixel to the next, for every second pair of rows."""
    across = np.subtract(picture[1::4], picture[:-1:4], dtype=np.int16)
    return _change(across[:, 1:], across[:, :-1])


def _means(picture: Picture, tiles: tuple[int, int], row_px: int, column_px: int = 1) -> NDArray[np.float32]:
    """The mean of each tile, float32 (rows of tiles, columns of tiles).

    Args:
        picture: rows and columns that are `row_px` and `column_px` apart in the image.
        tiles: how many rows and columns of tiles. The last row and column hold the rest.
        row_px, column_px: divisors of the side of a tile.
    """
    height = _TILE_PX // row_px
    above = height * (tiles[0] - 1)
    sums = np.empty((tiles[0], picture.shape[1]), np.uint32 if picture.dtype == np.uint16 else np.uint16)
    picture[:above].reshape(-1, height, picture.shape[1]).sum(axis=1, dtype=sums.dtype, out=sums[:-1])
    picture[above:].sum(axis=0, dtype=sums.dtype, out=sums[-1])
    lefts, areas = _grid(picture.shape, tiles, height, _TILE_PX // column_px)
    return np.asarray(np.add.reduceat(sums, lefts, axis=1, dtype=np.uint32) / areas, np.float32)


@lru_cache(64)
def _grid(
    size_hw: tuple[int, ...], tiles: tuple[int, int], height: int, width: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The first columns of tiles of this height and width, and the areas of tiles."""
    heights, widths = (
        np.append(np.full(number - 1, side), whole - side * (number - 1))
        for number, side, whole in zip(tiles, (height, width), size_hw, strict=True)
    )
    return np.arange(tiles[1]) * width, np.outer(heights, widths).astype(np.float32)
