"""Read mask images as the numbers that they hold, not as the grey that they show."""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data import containers
from defectseg.errors import ImageError

MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})  # JPEG smears the numbers

_PNG_SIGNATURE_BYTES = 8
_PALETTE_COLOUR_TYPE = 3


def read_class_map(path: Path) -> NDArray[np.uint8]:
    """The numbers in a mask image, uint8 (H, W).

    Of a palette PNG with colours these are the palette's indices, as programs for drawing labels write them; of one
    that has only grey, the grey values. Three equal channels count as one; alpha is left aside.

    Raises:
        ImageError: the file cannot be read, is not whole, is coloured, or holds numbers above 255.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    container = containers.inspect(content, name=str(path))
    if container.kind in ("JPEG", "WebP"):
        raise ImageError(f"{path}: a mask in {container.kind}, which may smear numbers. Save masks as PNG.")
    payload, levels = container.payload, 1
    if container.kind == "PNG":
        payload, levels = _palette_as_grey(payload)
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        raise ImageError(f"{path}: cannot be decoded ({getattr(error, 'err', '') or 'out of memory'}).") from error
    if pixels is None:
        raise ImageError(
            f"{path}: cannot be decoded; the file is damaged or of an unusual kind. Save it as a grey PNG."
        )
    numbers = _one_channel(pixels, path)
    if numbers.dtype != np.uint8 and (numbers.min() < 0 or numbers.max() > 255 or numbers.dtype.kind == "f"):
        raise ImageError(
            f"{path}: holds {numbers.dtype} values up to {numbers.max()}; expected class numbers, 0 to 255."
        )
    numbers = numbers.astype(np.uint8) // np.uint8(levels)
    return ~numbers if container.inverted else numbers


def _one_channel(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim == 2:
        return pixels
    colours = pixels[:, :, :3]
    if (colours != colours[:, :, :1]).any():
        raise ImageError(
            f"{path}: a coloured mask; expected one number for each pixel (0 sound, 1 the first class). "
            "Save it as a grey or palette PNG."
        )
    return np.ascontiguousarray(pixels[:, :, 0])


def _palette_as_grey(content: bytes) -> tuple[bytes, int]:
    """A whole PNG whose palette indices decode as grey values, and what to divide these by.

    OpenCV knows only the colours of a palette, so the header is rewritten to say "grey". Grey of fewer than 8 bits is
    spread over 0..255 by the decoder (PNG specification, section 13.12), hence the divisor.
    """
    header = content[16:29]  # width, height, bit depth, colour type, compression, filter, interlace
    bits, colour_type = header[8], header[9]
    if colour_type != _PALETTE_COLOUR_TYPE:
        return content, 1
    chunks = [(kind, content[start : start + length]) for kind, start, length in containers.png_chunks(content)]
    palette = next((body for kind, body in chunks if kind == b"PLTE"), b"")
    if palette[::3] == palette[1::3] == palette[2::3]:
        return content, 1
    kept = [(b"IHDR", header[:9] + b"\0" + header[10:]), *(chunk for chunk in chunks if chunk[0] in (b"IDAT", b"IEND"))]
    rewritten = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in kept
    )
    return content[:_PNG_SIGNATURE_BYTES] + rewritten, 255 // (2**bits - 1)
