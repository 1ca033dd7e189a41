"""COCO's run-lengths.

They are the lengths of alternating runs of 0 and 1, column by column, and begin with a run of 0. A file holds them as a
list ("uncompressed") or as text in six-bit digits ("compressed"; pycocotools, common/maskApi.c, rleToString).
"""

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError

_LONGEST_NUMBER_BITS = 40


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, bool (H, W), as compressed run-lengths: `{"size": [H, W], "counts": text}`."""
    from pycocotools import mask as coco

    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def decode(run_lengths: Mapping[str, Any], size_hw: tuple[int, int], *, where: str) -> NDArray[np.bool_]:
    """Turn run-lengths, compressed or not, into a mask, bool (H, W).

    pycocotools does not check its input: where the runs do not fill the image, the rest of its mask is whatever was in
    memory. So it is not used here.

    Raises:
        LabelError: the run-lengths are for another image size, are no numbers, or do not add up to the image; names
            `where`.
    """
    height, width = size_hw
    if run_lengths.get("size") != [height, width]:
        raise LabelError(
            f"{where}: run-lengths of size {brief(run_lengths.get('size'))}; its image has [{height}, {width}] "
            "(rows, columns). Export the labels again at the images' own size."
        )
    given = run_lengths.get("counts")
    counts: Any = _unpack(given) if isinstance(given, str) else given
    is_valid = isinstance(counts, list) and all(isinstance(n, int) and 0 <= n <= height * width for n in counts)
    if not is_valid or sum(counts) != height * width:
        raise LabelError(
            f"{where}: the run-lengths are {brief(given)}; expected a text or a list of whole numbers that add up to "
            f"the {height * width} px of its image. The annotation is damaged; export it again."
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _unpack(text: str) -> list[int]:
    """The numbers in compressed run-lengths; none if they are damaged.

    From the fourth on, each is stored minus the one two before it.
    """
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or bits > _LONGEST_NUMBER_BITS:
            return []
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit & 16) << bits - 4
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = bits = 0
    return [] if bits else counts
