"""Find images, and decode them strictly to grey."""

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError
from defectseg.image import whole

_BRIGHTEST_12_BIT = 4095
_REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}


@dataclass(frozen=True)
class DecodedImage:
    """An image as the rest of the program sees it.

    Attributes:
        pixels: uint8 (H, W), grey, C-contiguous.
        notes: what was changed or left aside on the way, in words for people.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


def decode(path: Path) -> DecodedImage:
    """Read an image file as grey uint8; see `decode_bytes`.

    Raises:
        ImageError: the file cannot be read, is not an image, or is not whole.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return decode_bytes(content, name=str(path))


def decode_bytes(content: bytes, *, name: str) -> DecodedImage:
    """Decode a whole image file held in memory to grey uint8.

    Colour becomes luma (0.299 R + 0.587 G + 0.114 B). 16-bit values are divided by 257, full range to full range, never
    by what the picture happens to contain: the same steel keeps the same grey in every picture. Alpha is dropped. An
    orientation wish is ignored, since it would turn the picture away from its masks. The kind is told from the
    content, not from the suffix.

    Args:
        content: the file's bytes.
        name: how messages name it.

    Raises:
        ImageError: it is not an image, is not whole, or has values that are neither 8 nor 16 bit.
    """
    container = whole.inspect(content, name=name)
    flags = cv2.IMREAD_UNCHANGED
    if container.kind == "JPEG":
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION  # takes the luma that JPEG stores as it is
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(container.payload, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        why = getattr(error, "err", "") or "out of memory"
        raise ImageError(
            f"{name}: cannot be decoded ({why}). Cut it into smaller images if it is very large."
        ) from error
    if pixels is None:
        raise ImageError(
            f"{name}: cannot be decoded; its picture data are damaged, cut short or of an unusual kind. "
            "Copy the file again, or save it as an 8-bit grey PNG."
        )
    grey, notes = to_grey(pixels, name)
    if container.inverted:
        grey = ~grey
    return DecodedImage(grey, container.notes + notes)


def decode_small(path: Path, *, shorter_px: int, longer_px: int) -> NDArray[np.uint8]:
    """Read an image as grey uint8 (H, W) to look at it as a whole: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    Args:
        path: the file.
        shorter_px, longer_px: what the shorter and the longer side keep at least, where they are that long at all.

    Raises:
        ImageError: as `decode` does.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    container = whole.inspect(content, name=str(path))
    if container.size_hw is not None:
        shorter, longer = sorted(container.size_hw)
        for divisor, flag in _REDUCED_FLAGS.items():
            if shorter >= divisor * shorter_px and (longer >= divisor * longer_px or longer < longer_px):
                with suppress(cv2.error):
                    pixels = cv2.imdecode(
                        np.frombuffer(container.payload, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION
                    )
                    if pixels is not None:
                        return np.ascontiguousarray(pixels, np.uint8)
                break
    return decode_bytes(content, name=str(path)).pixels


def to_grey(pixels: NDArray[Any], name: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Pixels as OpenCV decodes them, (H, W) or (H, W, 1, 3 or 4), as grey uint8 (H, W), and notes; see `decode_bytes`.

    Raises:
        ImageError: neither uint8 nor uint16, or another number of channels; `name` is in the message.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name}: holds {pixels.dtype} values; expected 8 or 16 bit without sign. Save it as one of these."
        )
    notes: tuple[str, ...] = ()
    height, width = pixels.shape[:2]
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        notes += ("alpha dropped",)
    if pixels.ndim == 3:
        codes = {1: None, 3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        if pixels.shape[2] not in codes:
            raise ImageError(f"{name}: has {pixels.shape[2]} channels; expected 1, 3 or 4.")
        code = codes[pixels.shape[2]]
        pixels = (pixels if code is None else np.asarray(cv2.cvtColor(pixels, code))).reshape(height, width)
    if pixels.dtype == np.uint16:
        note = "16-bit scaled by 1/257"
        brightest = int(pixels.max())
        if 255 < brightest <= _BRIGHTEST_12_BIT:
            note += f"; brightest value {brightest} of 65535, as from a 12-bit camera: scale it to the full range first"
        notes += (note,)
        pixels = np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257)).reshape(height, width)
    return np.ascontiguousarray(pixels, np.uint8), notes


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
    container = whole.inspect(content, name=str(path))
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
    chunks = [(kind, content[start : start + length]) for kind, start, length in whole.png_chunks(content)]
    palette = next((body for kind, body in chunks if kind == b"PLTE"), b"")
    if palette[::3] == palette[1::3] == palette[2::3]:
        return content, 1
    kept = [(b"IHDR", header[:9] + b"\0" + header[10:]), *(chunk for chunk in chunks if chunk[0] in (b"IDAT", b"IEND"))]
    rewritten = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in kept
    )
    return content[:_PNG_SIGNATURE_BYTES] + rewritten, 255 // (2**bits - 1)
