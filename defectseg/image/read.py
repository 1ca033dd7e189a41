"""Decode images to grey, strictly."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg import errors
from defectseg.errors import ImageError
from defectseg.files import open_regular
from defectseg.image import whole
from defectseg.image.find import FoundImage

MAX_FILE_BYTES = 2**31 - 1  # OpenCV decodes from no larger buffer: 268 megapixels of 8 bytes each, uncompressed

_FULL_BIT_DEPTH = 16
_CAMERA_BIT_DEPTHS = (10, 12, 14)
_BLANK_SPAN, _BLANK_LEVEL = 2, 16
_FLAGS = {
    "JPEG": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,  # the luma as JPEG stores it
    "AVIF": cv2.IMREAD_COLOR,  # scales 10 and 12 bits to 8, which IMREAD_UNCHANGED does not
}
_REDUCED_FLAGS = {divisor: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{divisor}") for divisor in (8, 4, 2)}


@dataclass(frozen=True)
class DecodedImage:
    """An image as the rest of the program sees it.

    Attributes:
        pixels: uint8 (H, W), grey, C-contiguous.
        notes: what was changed or ignored, for people to read.
        bit_depth: bits of the values of a 16-bit file, if known.
        brightest16: the largest value of a 16-bit file whose bit depth is not known.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]
    bit_depth: int | None = None
    brightest16: int | None = None


def bit_depth_warnings(brightest: Mapping[int | None, int]) -> list[str]:
    """A warning where most 16-bit images of a run seem to come from a camera with fewer bits.

    Args:
        brightest: `DecodedImage.brightest16` -> number of images. Images whose largest value is at most 255 are black
            with any camera and do not count.
    """
    telling = {value: count for value, count in brightest.items() if value is not None and value > 255}
    low = {value: count for value, count in telling.items() if value < 2 ** _CAMERA_BIT_DEPTHS[-1]}
    images, of = sum(low.values()), sum(telling.values())
    if 2 * images <= of:  # a few dark images among others that use the full range
        return []
    bits = next(bits for bits in _CAMERA_BIT_DEPTHS if max(low) < 2**bits)
    fewer, full = (errors.spelling("bit_depth", number) for number in (bits, _FULL_BIT_DEPTH))
    message = (
        f"{images} of {of} 16-bit images hold no value above {max(low)}, as from a camera with {bits} bits. They were "
        f"read over the full range, so that they are nearly black. If so, give {fewer}; if the range is full, {full}."
    )
    return [message]


def decode(
    image: Path | FoundImage, *, bit_depth: int | None = None, model_bit_depth: int | None = None
) -> DecodedImage:
    """Read an image file as grey uint8; see `decode_bytes`.

    Raises:
        ImageError: the file has a fault, cannot be read, is not an image, is not complete, or has too many pixels.
    """
    if isinstance(image, FoundImage):
        if image.fault:
            raise ImageError(image.fault)
        image = image.path
    return decode_bytes(read_file(image), name=str(image), bit_depth=bit_depth, model_bit_depth=model_bit_depth)


def read_file(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        ImageError: it is missing, not a regular file, larger than MAX_FILE_BYTES, or cannot be read.
    """
    try:
        with open_regular(path) as handle:
            size_bytes = os.fstat(handle.fileno()).st_size
            if size_bytes > MAX_FILE_BYTES:
                raise ImageError(
                    f"{path}: {size_bytes:,} bytes; files of up to {MAX_FILE_BYTES:,} bytes are read. "
                    "Cut it into smaller images."
                )
            return handle.read(size_bytes) or b""  # None if reading would block, as in parts of /proc
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or "out of memory"
        raise ImageError(f"{path}: cannot be read ({why}).") from error


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image in px, from its header alone: the rest of the file may be damaged.

    Raises:
        ImageError: the file cannot be read, is not an image, or its header is incomplete.
    """
    try:
        with open_regular(path) as handle:
            return whole.read_size(handle, name=str(path))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from error


def decode_bytes(
    content: bytes, *, name: str, bit_depth: int | None = None, model_bit_depth: int | None = None
) -> DecodedImage:
    """Decode the content of an image file to grey uint8.

    Colour becomes luma (0.299 R + 0.587 G + 0.114 B). Alpha is dropped. Values of a 16-bit file are scaled by their bit
    depth, never by the values in the image, so that the same steel has the same grey in every image.
    EXIF orientation is ignored, since masks do not turn with the image. The format is recognised by the content, not by
    the suffix.

    Args:
        content: the file's bytes.
        name: the file, for error messages.
        bit_depth: bits of the values of 16-bit files, 9 to 16. None: as a tag of the TIFF file says.
        model_bit_depth: what the model was trained with, used if neither is known. None: 16.

    Raises:
        ImageError: it is not an image, is not complete, has too many pixels (see `limits.allow_pixels`), has values
            that are neither 8 nor 16 bit, or a value beyond the bit depth.
    """
    container = whole.inspect(content, name=name)
    pixels = decode_payload(container.payload, _FLAGS.get(container.kind, cv2.IMREAD_UNCHANGED), name=name)
    if container.bits is not None:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / (2**container.bits - 1))
    known = next((bits for bits in (bit_depth, container.bit_depth, model_bit_depth) if bits is not None), None)
    if container.spread:
        known = _FULL_BIT_DEPTH
    elif bit_depth is None and container.bit_depth == _FULL_BIT_DEPTH != model_bit_depth:
        known = None  # programs write this default without knowing the camera
    decoded = to_grey(pixels, name, bit_depth=known)
    grey = ~decoded.pixels if container.inverted else decoded.pixels
    return replace(decoded, pixels=grey, notes=container.notes + decoded.notes)


def decode_payload(payload: bytes, flags: int, *, name: str) -> NDArray[Any]:
    """Decode the payload of a Container with OpenCV, with these flags.

    Raises:
        ImageError: OpenCV cannot decode it.
    """
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(payload, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        why = getattr(error, "err", "") or "out of memory"
        raise ImageError(f"{name}: cannot be decoded ({why}). Cut it into smaller ones if it is very large.") from error
    if pixels is None:
        raise ImageError(
            f"{name}: cannot be decoded; its picture data are damaged, cut short or of an unusual kind. "
            "Copy the file again, or save it as an 8-bit grey PNG."
        )
    return pixels


def decode_stored(content: bytes, *, name: str) -> NDArray[Any]:
    """The pixels of an image in its own depth and colours (BGR), its EXIF orientation ignored.

    Raises:
        ImageError: as `decode_bytes` does.
    """
    return decode_payload(whole.inspect(content, name=name, factor=2).payload, cv2.IMREAD_UNCHANGED, name=name)


def decode_small(path: Path, *, shorter_px: int, longer_px: int, bit_depth: int | None = None) -> NDArray[np.uint8]:
    """Read an image as grey uint8 (H, W), a JPEG at 1/2, 1/4 or 1/8 of its size if that is large enough.

    Args:
        path: the file.
        shorter_px, longer_px: the least length of the shorter and the longer side, unless the image itself is smaller.
        bit_depth: see `decode_bytes`.

    Raises:
        ImageError: as `decode` does.
    """
    content = read_file(path)
    container = whole.inspect(content, name=str(path))
    if container.kind == "JPEG":
        shorter, longer = sorted(container.size_hw)
        for divisor, flag in _REDUCED_FLAGS.items():
            if shorter >= divisor * shorter_px and (longer >= divisor * longer_px or longer < longer_px):
                pixels = decode_payload(container.payload, flag | cv2.IMREAD_IGNORE_ORIENTATION, name=str(path))
                return np.ascontiguousarray(pixels, np.uint8)
    return decode_bytes(content, name=str(path), bit_depth=bit_depth).pixels


def to_grey(pixels: NDArray[Any], name: str, *, bit_depth: int | None = None) -> DecodedImage:
    """Convert pixels to grey uint8, as `decode_bytes` does.

    Args:
        pixels: uint8 or uint16, (H, W) or (H, W, 1, 3 or 4), BGR as from OpenCV.
        name: the image, for error messages.
        bit_depth: bits of uint16 values, 9 to 16; None: not known, 16 are assumed.

    Raises:
        ImageError: neither uint8 nor uint16, another number of channels, or a value beyond the bit depth.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name}: holds {pixels.dtype} values; expected 8 or 16 bit without sign. Save it as such.")
    notes: tuple[str, ...] = ()
    colours, size_hw = pixels, pixels.shape[:2]
    if pixels.ndim == 3:
        channels = pixels.shape[2]
        if channels not in (1, 3, 4):
            raise ImageError(f"{name}: has {channels} channels; expected 1, 3 or 4.")
        if channels == 4:
            notes += ("alpha dropped",)
            colours = pixels[..., :3]
        if channels > 1:
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))  # takes four channels, too
    pixels = pixels.reshape(size_hw)
    if pixels.dtype == np.uint8:
        return DecodedImage(np.ascontiguousarray(pixels, np.uint8), notes)
    bits, brightest = bit_depth or _FULL_BIT_DEPTH, int(colours.max())
    largest = 2**bits - 1
    if brightest > largest:
        raise ImageError(
            f"{name}: holds the value {brightest}, above the {largest} of the {bits} bits that were stated for it, "
            "by its TIFF tag or by the model. State how many bits it has, 9 to 16."
        )
    note = "16-bit scaled by 1/257" if bits == _FULL_BIT_DEPTH else f"16-bit scaled from {bits} bits"
    if bit_depth is None and 255 < brightest < 2 ** _CAMERA_BIT_DEPTHS[-1]:
        note += f"; brightest value {brightest} of {largest}"
    scaled = np.asarray(cv2.convertScaleAbs(pixels, alpha=255 / largest), np.uint8).reshape(size_hw)
    return DecodedImage(scaled, (*notes, note), bit_depth, brightest if bit_depth is None else None)


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Whether a grey image (H, W) is empty: its levels span at most 2, or 99.5 % of its pixels are at most 16."""
    if int(pixels.max()) - int(pixels.min()) <= _BLANK_SPAN:
        return True
    return 200 * int(np.count_nonzero(pixels > _BLANK_LEVEL)) <= pixels.size
