"""What an image looks like, in 45 numbers: its light, contrast and sharpness. `image.measure` computes them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

VERSION = 2  # raised whenever the same image gets other numbers
SOFTENED = 0.3  # grey levels, added before a logarithm, because pixels are whole numbers
BOTH_QUARTILES = (
    *(("along_2", "along_1"), ("across_2", "across_1"), ("along_1", "along_half"), ("across_1", "across_half")),
    *(("along_1", "across_1"), ("mixed_1", "along_1")),
)
RATIOS = (
    *BOTH_QUARTILES,  # these also by their upper quartile
    *(("along_4", "along_2"), ("across_4", "across_2")),
    *(("along_half", "along_quarter"), ("across_half", "across_quarter")),
    *(("along_quarter", "along_eighth"), ("across_quarter", "across_eighth"), ("mixed_1", "mixed_half")),
)
MEASURES = (
    *("level", "deviation", "along_1", "across_1", "along_2", "across_2", "along_4", "across_4", "mixed_1"),
    *("along_half", "across_half", "mixed_half", "along_quarter", "across_quarter", "along_eighth", "across_eighth"),
)
"""Of a tile of 32 x 32 px, in grey levels: the mean; the standard deviation; the mean change over 1, 2 and 4 px along
the rows and across them; the same from a pixel to the next after the image was halved once, twice and three times; and
`mixed`: how much the change across differs from a pixel to the next along."""
OF_LIGHT, QUANTILES = 4, (0.05, 0.5, 0.95)
LIGHT = len(QUANTILES) * OF_LIGHT
"""So many of the first numbers grow by the logarithm of a factor of the light; the others are ratios, and stay."""

NUMBERS = LIGHT + 2 * len(RATIOS) + len(BOTH_QUARTILES) + 1
"""Over the tiles that are lit, natural logarithms: of the first 4 measures, the QUANTILES; the lower quartile of each
of RATIOS; the ratio of their two measures in calm tiles (the 5 % quantile); the upper quartile of BOTH_QUARTILES.
Last, the share of black tiles."""

_LEVEL, _DEVIATION = OF_LIGHT, OF_LIGHT + 1  # their medians


class Readable(NamedTuple):
    """The numbers of an appearance that people can check with their eyes.

    Attributes:
        brightness: grey level of the steel, 0..255.
        contrast: standard deviation within tiles of 32 x 32 px, in grey levels.
        sharpness_along, sharpness_across: the change from a pixel to the next, in percent of the change over 2 px:
            along the rows of the image, and from row to row.
        black_percent: share of black.
    """

    brightness: float
    contrast: float
    sharpness_along: float
    sharpness_across: float
    black_percent: float


def readable(appearance: ArrayLike) -> Readable:
    """The readable numbers of an appearance (45,)."""
    numbers = np.asarray(appearance, np.float64)
    ratios = np.exp(numbers[LIGHT : LIGHT + len(RATIOS)])
    return Readable(
        brightness=max(0.0, float(np.exp(numbers[_LEVEL])) - SOFTENED),
        contrast=max(0.0, float(np.exp(numbers[_DEVIATION])) - SOFTENED),
        sharpness_along=100 / float(ratios[RATIOS.index(("along_2", "along_1"))]),
        sharpness_across=100 / float(ratios[RATIOS.index(("across_2", "across_1"))]),
        black_percent=100 * max(0.0, float(numbers[-1])),
    )
