"""Changes of a crop that only flat steel knows: the end of the sheet, and defects that have been covered up.

Each takes an image, uint8 (H, W), layers, uint8 (H, W, C + 1) with what to ignore last, and a source of
chance, and gives changed copies, or the arrays themselves where there is nothing to change.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.train.crops import BLACK_LEVEL

# Measured past the ends of 23 sheets in the Severstal images: the levels' mean is 0.6 to 7.6, their standard deviation
# about a third of it, and the steel fades within a few pixels, along an edge that leans by a few pixels at most.
_DARK_LEVELS = (0.5, 8.0)
_NOISE_SHARE = 0.33
_END_SHARES = (0.05, 0.5)
_SOFT_PX = (1.0, 4.0)
_LEAN_PX = 4.0
_WAVE_PX = 1.5

_MARGIN_PX = (2, 8)


def sheet_end(
    image: NDArray[np.uint8], layers: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """End the sheet inside the crop: 5 to 50 % of it turn black, from the left or the right, and lose their labels.

    If more than half of the labelled pixels were lost, the other side is taken, or nothing changes.
    """
    steel = _steel_share(image.shape, rng)
    dark = _dark(image.shape, rng)
    labelled = _labelled(layers)
    for share in (steel, steel[:, ::-1]) if rng.random() < 0.5 else (steel[:, ::-1], steel):
        kept = share >= 0.5
        if 2 * np.count_nonzero(labelled & kept) >= np.count_nonzero(labelled):
            mixed = share * image + (1 - share) * dark
            return np.rint(mixed).astype(np.uint8), _unlabelled(layers, ~kept)
    return image, layers


def black_out(
    image: NDArray[np.uint8], layers: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cover every defect with a dark patch, a box or a convex outline a few pixels larger, and remove its label."""
    covered = _labelled(layers).view(np.uint8)
    if not covered.any():
        return image, layers
    contours, _ = cv2.findContours(covered, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        if rng.random() < 0.5:
            cv2.rectangle(covered, cv2.boundingRect(contour), 1, cv2.FILLED)
        else:
            cv2.fillConvexPoly(covered, cv2.convexHull(contour), 1)
    size_px = 2 * int(rng.integers(*_MARGIN_PX, endpoint=True)) + 1
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size_px, size_px))
    patch = np.asarray(cv2.dilate(covered, around)) > 0
    changed = image.copy()
    changed[patch] = np.rint(_dark(image.shape, rng)[patch])
    return changed, _unlabelled(layers, patch)


def _steel_share(size_hw: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """How much of each pixel is steel, float32 (H, W) in 0..1: none on the left, all on the right."""
    height, width = size_hw
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32)
    lean_px, wave_px = rng.uniform(-_LEAN_PX, _LEAN_PX), rng.uniform(0, _WAVE_PX)
    waves, phase = rng.uniform(0.5, 4), rng.uniform(0, 2 * np.pi)
    edge_px = rng.uniform(*_END_SHARES) * width + lean_px * down + wave_px * np.sin(2 * np.pi * waves * down + phase)
    columns = np.arange(width, dtype=np.float32) + 0.5
    share = (columns - edge_px[:, None].astype(np.float32)) / np.float32(rng.uniform(*_SOFT_PX)) + np.float32(0.5)
    return np.asarray(np.clip(share, 0, 1), np.float32)


def _dark(size_hw: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """What the camera sees past the end of a sheet, float32 (H, W) grey levels up to BLACK_LEVEL."""
    level = np.float32(rng.uniform(*_DARK_LEVELS))
    noise = rng.standard_normal(size_hw, dtype=np.float32)
    return np.asarray(np.clip(level * (1 + np.float32(_NOISE_SHARE) * noise), 0, BLACK_LEVEL), np.float32)


def _labelled(layers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where there is a defect of any class, bool (H, W)."""
    return np.asarray(np.logical_or.reduce([layers[..., index] for index in range(layers.shape[-1] - 1)]), np.bool_)


def _unlabelled(layers: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The layers without labels there; what was ignored still is."""
    changed = layers.copy()
    changed[where, :-1] = 0
    return changed
