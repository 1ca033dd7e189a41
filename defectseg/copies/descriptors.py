"""Descriptors of images: some 20 KiB that identify a copy, whether turned, re-encoded or under other light.

Raw pixels cannot be compared, since flat steel resembles flat steel. Each image is averaged to 128 x 128 cells whatever
its shape. The local mean is subtracted, which removes the light, and the result is divided by the local deviation,
which removes the contrast. The grain remains, and no two pieces of steel share it. For a quick search there is also a
whitened thumbnail of 32 x 32 cells: its spectrum is flattened, so that edges and streaks common to many images do not
dominate.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError
from defectseg.image import read
from defectseg.machine import cores
from defectseg.progress import Progress, silent

Floats = NDArray[np.float32]
_Array = TypeVar("_Array", bound=NDArray[Any])

# "mirror" swaps left and right; a number then turns counter-clockwise by that many degrees, as np.rot90 does.
TURNS = ("0", "90", "180", "270", "mirror", "mirror+90", "mirror+180", "mirror+270")

DETAIL_CELLS = 128
THUMB_CELLS = 32
STRIP_CELLS = 400
WHITENING = 0.7  # exponent; 0 leaves a spectrum unchanged, 1 makes it flat

_SURROUNDINGS_CELLS = 3.0
_NOISE_LEVELS = 2.0  # fainter structure, in grey levels, counts for little: JPEG creates and destroys it
_STEPS_PER_DEVIATION = 32  # int8 steps of `Descriptor.detail`
_SATURATED_LEVEL = 250
_LEAST_ENERGY = 0.02  # images with less structure (black, blank) are not compared
_SHORTEST_SIDE_PX = 32

_STRIP_SURROUNDINGS_CELLS = 8.0
_STRIP_NOISE_LEVELS = 0.5
_STRIP_WHITENING = 0.5
_STRIP_LEAST_LIT = 0.5  # share of the columns that show steel, not the dark beyond its end
DARK_LEVEL = 12
EDGE_SHARE = 1 / 16  # of the height: the rows that are compared across a seam


@dataclass(frozen=True)
class Descriptor:
    """The descriptor of one image.

    Attributes:
        log_aspect: natural logarithm of height / width.
        detail: int8 (128, 128), 32 for one local standard deviation; 0 exactly where the picture is saturated.
        thumb: float32 (32, 32) with norm 1; all 0 if the image has too little structure.
        strip: float32 (3, 400): profiles across the strip of the top edge, the bottom edge and the whole image, each
            with norm 1, or all 0 if it is short or dark.
    """

    log_aspect: float
    detail: NDArray[np.int8]
    thumb: Floats
    strip: Floats


class Descriptors:
    """The descriptors of n images in a few large arrays, with zeros for images that could not be read.

    Attributes:
        log_aspect: float32 (n,).
        detail: int8 (n, 128, 128).
        thumb: float16 (n, 32, 32).
        strip: float16 (n, 3, 400).
    """

    def __init__(self, count: int) -> None:
        self.log_aspect = np.zeros(count, np.float32)
        self.detail = np.zeros((count, DETAIL_CELLS, DETAIL_CELLS), np.int8)
        self.thumb = np.zeros((count, THUMB_CELLS, THUMB_CELLS), np.float16)
        self.strip = np.zeros((count, 3, STRIP_CELLS), np.float16)

    def __setitem__(self, index: int, one: Descriptor) -> None:
        for name, value in vars(one).items():
            getattr(self, name)[index] = value


def turned(picture: _Array, turn: str) -> _Array:
    """Turn the last two axes of an array by one of `TURNS`."""
    number = TURNS.index(turn)
    mirrored = picture[..., ::-1] if number >= 4 else picture
    return np.ascontiguousarray(np.rot90(mirrored, number % 4, axes=(-2, -1)))  # type: ignore[return-value]


def turned_back(turn: str) -> str:
    """The inverse of a turn. Mirroring, with any rotation after it, is its own inverse."""
    return {"90": "270", "270": "90"}.get(turn, turn)


def describe(pixels: NDArray[np.uint8]) -> Descriptor:
    """Describe a grey image, uint8 (H, W)."""
    height, width = pixels.shape
    size_wh = (DETAIL_CELLS, DETAIL_CELLS)
    means = np.asarray(cv2.resize(pixels.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA), np.float32)
    detail = _structure(means)
    steps = np.clip(np.rint(detail * _STEPS_PER_DEVIATION), -127, 127)
    steps[steps == 0] = 1
    steps[means >= _SATURATED_LEVEL] = 0
    thumb = np.zeros((THUMB_CELLS, THUMB_CELLS), np.float32)
    if min(height, width) >= _SHORTEST_SIDE_PX and float((detail**2).mean()) >= _LEAST_ENERGY:
        block = DETAIL_CELLS // THUMB_CELLS
        coarse = means.reshape(THUMB_CELLS, block, THUMB_CELLS, block).mean(axis=(1, 3))
        thumb = _unit(_whiten(_structure(coarse), WHITENING))
    return Descriptor(math.log(height / width), steps.astype(np.int8), thumb, _strip_profiles(pixels))


def describe_all(
    paths: Sequence[Path], *, reduced: bool = True, bit_depth: int | None = None, progress: Progress = silent
) -> tuple[Descriptors, dict[int, str]]:
    """Read and describe images, on all cores.

    Args:
        paths: the files.
        reduced: decode JPEGs at a reduced size. This is quicker, but an exact copy that was decoded at full size then
            scores slightly below 1.
        bit_depth: of 16-bit files, see `decode_bytes`.
        progress: counts the images.

    Returns:
        the descriptors in the order of `paths`, and index -> message for files that cannot be read.
    """
    descriptors, unreadable = Descriptors(len(paths)), {}

    def read_and_describe(path: Path) -> Descriptor | str:
        try:
            if reduced:
                sides_px = {"shorter_px": DETAIL_CELLS, "longer_px": STRIP_CELLS}
                return describe(read.decode_small(path, **sides_px, bit_depth=bit_depth))
            return describe(read.decode(path, bit_depth=bit_depth).pixels)
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=cores()) as pool:
        for index, found in enumerate(pool.map(read_and_describe, paths)):
            if isinstance(found, str):
                unreadable[index] = found
            else:
                descriptors[index] = found
            progress(index + 1, len(paths))
    return descriptors, unreadable


def whitened(detail: NDArray[np.int8]) -> Floats:
    """A detail picture, int8 (128, 128), with a flattened spectrum and norm 1."""
    return _unit(_whiten(detail.astype(np.float32), WHITENING))


def _structure(means: Floats) -> Floats:
    """Grey means, float32 (h, w), minus the local mean, in local standard deviations; clipped to -4..4."""
    above = means - cv2.GaussianBlur(means, (0, 0), _SURROUNDINGS_CELLS)
    variance = cv2.GaussianBlur(above * above, (0, 0), 2 * _SURROUNDINGS_CELLS)
    return np.asarray(np.clip(above / np.sqrt(variance + _NOISE_LEVELS**2), -4, 4), np.float32)


def _whiten(picture: Floats, exponent: float) -> Floats:
    """Divide each frequency of a picture, float32 (h, w), by a power of its magnitude; the mean is dropped."""
    spectrum = cv2.dft(picture, flags=cv2.DFT_COMPLEX_OUTPUT)
    spectrum[0, 0] = 0
    strength = spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2
    # A frequency that is nearly absent must not be amplified: it is rounding, not steel.
    spectrum *= np.power(strength + (1e-6 * float(strength.mean()) + 1e-20), -exponent / 2)[..., None]
    return np.asarray(cv2.idft(spectrum, flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT), np.float32)


def _unit(picture: Floats) -> Floats:
    """Scale to norm 1; zeros stay zeros."""
    return picture / max(float(np.linalg.norm(picture)), 1e-12)


def _strip_profiles(pixels: NDArray[np.uint8]) -> Floats:
    """Whitened profiles along the longer side, float32 (3, 400): top edge, bottom edge, whole image; norm 1 each."""
    lying = pixels if pixels.shape[1] >= pixels.shape[0] else np.ascontiguousarray(pixels.T)
    profiles = np.zeros((3, STRIP_CELLS), np.float32)
    height, width = lying.shape
    if width < STRIP_CELLS:
        return profiles
    rows = max(1, round(height * EDGE_SHARE))
    for index, part in enumerate((lying[:rows], lying[-rows:], lying)):
        columns = cv2.reduce(part, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)
        means = np.asarray(cv2.resize(columns, (STRIP_CELLS, 1), interpolation=cv2.INTER_AREA), np.float32)
        if float((means >= DARK_LEVEL).mean()) < _STRIP_LEAST_LIT:
            continue
        above = np.asarray(means - _blur_along(means, _STRIP_SURROUNDINGS_CELLS), np.float32)
        deviation = np.sqrt(_blur_along(above * above, 2 * _STRIP_SURROUNDINGS_CELLS) + _STRIP_NOISE_LEVELS**2)
        profiles[index] = _unit(_whiten(np.clip(above / deviation, -3, 3), _STRIP_WHITENING))[0]
    return profiles


def _blur_along(profile: Floats, sigma_cells: float) -> Floats:
    """Blur a profile, float32 (1, n), along its length."""
    size = 2 * math.ceil(3 * sigma_cells) + 1
    return np.asarray(cv2.GaussianBlur(profile, (size, 1), sigma_cells), np.float32)
