"""Pictures embedded in a page, which then needs no other file."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

_JPEG_QUALITY = 85  # with 4:4:4 sampling: a third of an overlay's own size, and red stays inside its border


def data_uri(bgr: NDArray[np.uint8], *, largest_px: int) -> str:
    """A picture, uint8 (H, W, 3), BGR, as a JPEG of at most `largest_px` width and height, for the src of an <img>."""
    scale = largest_px / max(bgr.shape[:2])
    if scale < 1:
        bgr = np.asarray(cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    quality = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    _, jpeg = cv2.imencode(".jpg", bgr, [*quality, *sampling])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
