"""Measure what an image looks like, see `image.appearance`."""

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image.appearance import QUANTILES

_TILE_PX = 64
_WINDOW_PX = 256
_MOST_PX = 2**20  # a larger image is described by windows that lie evenly over it
_DARK_LEVEL = 16  # a tile with a lower mean is black: no steel, or no light
_LEAST = 0.05  # grey levels; the logarithm of less says nothing


def appearance_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe a grey image, uint8 (H, W), in 36 numbers, float32 (36,), most of them logarithms of grey levels.

    Its time and memory are those of an image of one megapixel at most.
    """
    tiles = np.concatenate([_tiles_of(window) for window in _windows_of(pixels)], axis=1)
    level = tiles[0]
    lit = tiles[:, level >= _DARK_LEVEL] if np.any(level >= _DARK_LEVEL) else tiles
    logs = np.log(np.maximum(lit, _LEAST))
    quantiles = np.quantile(logs, QUANTILES, axis=1).T.ravel()
    shares = np.mean(level < _DARK_LEVEL), np.mean(level > 240), np.std(level) / max(1.0, np.mean(level))
    return np.concatenate([quantiles, shares]).astype(np.float32)


def _windows_of(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The whole image, or windows that lie evenly over it."""
    if pixels.size <= _MOST_PX:
        return [pixels]
    tops, lefts = (np.linspace(0, max(0, side - _WINDOW_PX), 4).astype(int) for side in pixels.shape)
    return [pixels[top : top + _WINDOW_PX, left : left + _WINDOW_PX] for top in tops for left in lefts]


def _tiles_of(window: NDArray[np.uint8]) -> NDArray[np.float32]:
    """MEASURES of each tile of a window, float32 (11, tiles)."""
    height, width = window.shape
    size_wh = max(1, round(width / _TILE_PX)), max(1, round(height / _TILE_PX))

    def mean(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.float32).ravel()

    grey = window.astype(np.float32)
    level = mean(grey)
    rows = [level, np.sqrt(np.maximum(mean(grey * grey) - level**2, 0))]
    scaled = grey
    for _ in range(3):
        rows += [mean(np.abs(np.diff(scaled, axis=1, append=scaled[:, -1:])))]
        rows += [mean(np.abs(np.diff(scaled, axis=0, append=scaled[-1:])))]
        half_wh = max(1, scaled.shape[1] // 2), max(1, scaled.shape[0] // 2)
        scaled = np.asarray(cv2.resize(scaled, half_wh, interpolation=cv2.INTER_AREA), np.float32)
    for axis in (1, 0):
        rows.append(mean(np.abs(cv2.Sobel(grey, cv2.CV_32F, int(axis == 1) * 2, int(axis == 0) * 2, ksize=1))))
    rows.append(mean(np.abs(cv2.resize(scaled, (width, height)) - level.mean())))
    return np.stack(rows)
