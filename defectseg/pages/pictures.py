"""Pictures embedded in a page, which then needs no other file."""

import base64

import numpy as np
from numpy.typing import NDArray

from defectseg.image.overlay import encode_jpeg


def data_uri(bgr: NDArray[np.uint8], *, largest_px: int) -> str:
    """A picture, uint8 (H, W, 3), BGR, as a JPEG of at most `largest_px` width and height, for the src of an <img>."""
    jpeg = encode_jpeg(bgr, quality=85, longest_px=largest_px)  # a third of the size of quality 95
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
