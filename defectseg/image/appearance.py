"""What an image looks like, in 36 numbers: its light, contrast and sharpness. `image.measure` computes them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

VERSION = 1  # raised whenever the same image gets other numbers
NUMBERS = 36
QUANTILES = (0.1, 0.5, 0.9)  # over the tiles, of the logarithm of each measure; then come three other numbers
MEASURES = (
    *("level", "deviation", "along_1", "across_1", "along_2", "across_2", "along_4", "across_4"),
    *("curved_along", "curved_across", "slow"),
)


class Readable(NamedTuple):
    """The numbers of an appearance that people can check with their eyes.

    Attributes:
        brightness: grey level of the steel, 0..255.
        contrast: standard deviation within tiles of 64 x 64 px, in grey levels.
        sharpness_along, sharpness_across: the change from a pixel to the next, in percent of the change from a block of
            4 x 4 px to the next: along the rows of the image, and from row to row.
        black_percent: share of black.
    """

    brightness: float
    contrast: float
    sharpness_along: float
    sharpness_across: float
    black_percent: float


def readable(appearance: ArrayLike) -> Readable:
    """The readable numbers of an appearance (36,)."""
    numbers = np.asarray(appearance, np.float64)
    median = dict(zip(MEASURES, numbers[1 : 3 * len(MEASURES) : 3].tolist(), strict=True))
    return Readable(
        brightness=float(np.exp(median["level"])),
        contrast=float(np.exp(median["deviation"])),
        sharpness_along=100 * float(np.exp(median["along_1"] - median["along_4"])),
        sharpness_across=100 * float(np.exp(median["across_1"] - median["across_4"])),
        black_percent=100 * float(numbers[3 * len(MEASURES)]),
    )
