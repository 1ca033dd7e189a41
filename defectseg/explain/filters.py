"""What a filter of the first layer answers to, in words."""

import numpy as np
from numpy.typing import NDArray

NO_NAME = "no simple pattern"
_ONE_SIGN, _ALIKE, _SAME_ALONG, _SYMMETRY = 0.8, 0.8, 0.6, 0.7


def name_filter(kernel: NDArray[np.float32]) -> str:
    """What a filter (k, k) answers to, if a simple measure tells it.

    - brightness: its sum is at least 80 % of what it would be if all its weights had one sign.
    - spot: turned by 90 degrees it is the same, with a correlation of at least 0.8.
    - edge or line, along the rows or across them: at least 60 % of its energy, apart from the mean, is the same all
      along. That of an edge is odd (dark, bright), that of a line even (dark, bright, dark).

    Of random filters of 3 px, one in five gets one of these names; of 7 px, hardly any.
    """
    if abs(kernel.sum()) >= _ONE_SIGN * np.abs(kernel).sum():
        return "brightness" if kernel.any() else NO_NAME
    rest = kernel - kernel.mean()
    rest /= np.linalg.norm(rest)
    if (rest * np.rot90(rest)).sum() >= _ALIKE:
        return "spot"
    for axis, way in ((1, "along"), (0, "across")):
        profile = rest.mean(axis=axis)
        share = profile @ profile
        if len(kernel) * share >= _SAME_ALONG:
            symmetry = profile @ profile[::-1] / share
            kind = "line" if symmetry > _SYMMETRY else "edge" if symmetry < -_SYMMETRY else "edge or line"
            return f"{kind} {way} the rows"
    return NO_NAME
