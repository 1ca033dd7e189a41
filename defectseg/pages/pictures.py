"""Pictures embedded in a page, which then needs no other file."""

import base64

import numpy as np
from numpy.typing import NDArray

from defectseg.image.overlay import encode_jpeg

_SMALLEST_PX = 64


def data_uri(bgr: NDArray[np.uint8], *, largest_px: int, most_bytes: int | None = None) -> str:
    """A picture, uint8 (H, W, 3), BGR, as a JPEG of at most `largest_px` width and height, for the src of an <img>.

    It is shrunk further where the JPEG would have more than `most_bytes`, but not below 64 px.
    """
    quality = 85  # a third of the size of quality 95
    jpeg = encode_jpeg(bgr, quality, largest_px)
    largest_px = min(largest_px, max(bgr.shape))
    while most_bytes and len(jpeg) > most_bytes and largest_px > _SMALLEST_PX:
        largest_px = max(_SMALLEST_PX, int(largest_px * min(0.9, (most_bytes / len(jpeg)) ** 0.5)))
        jpeg = encode_jpeg(bgr, quality, largest_px)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
