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
    counts = run_lengths.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts, where)
    if not isinstance(counts, list) or not all(isinstance(n, int) and 0 <= n <= height * width for n in counts):
        raise LabelError(f"{where}: 'counts' is neither a text nor a list of lengths from 0 to {height * width} px.")
    if sum(counts) != height * width:
        raise LabelError(
            f"{where}: the run-lengths add up to {sum(counts)} px; an image of {height} x {width} has "
            f"{height * width}. The annotation is damaged; export it again."
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _unpack(text: str, where: str) -> list[int]:
    """The numbers in compressed run-lengths. From the fourth on, each is stored minus the one two before it."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or bits > _LONGEST_NUMBER_BITS:
            raise LabelError(f"{where}: {letter!r} in compressed run-lengths; the annotation is damaged.")
        value |= (digit & 31) << bits
        bits += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise LabelError(f"{where}: the compressed run-lengths are cut short; the annotation is damaged.")
    return counts
