"""The values in masks: how many pixels have each, and which of them count, numbers or colours."""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError
from defectseg.formats.labels import Shape
from defectseg.formats.masks.layouts import Picture
from defectseg.image import read, whole
from defectseg.machine import cores

_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
_COLOUR_TYPE_AT, _PALETTE = 25, 3  # of a PNG
_MOST_COLOUR_IN_GREY = 48  # what JPEG adds to grey pixels
MARK, _MARK_AT = (b"Software", b"defectseg"), 37  # a text chunk behind the header of a PNG
# Added to the 0xRRGGBB of every colour but black, so that colours are no numbers.
COLOUR = 1 << 24
# Colour -> number, by the colour table of Pascal VOC, which labelme has as well. The bits of a number are dealt to red,
# green and blue in turn, the highest bit of each colour first.
VOC_NUMBERS = {
    sum(((number >> bit) & 1) << (23 - 8 * (bit % 3) - bit // 3) for bit in range(8)) + COLOUR * (number > 0): number
    for number in range(256)
}


@dataclass(frozen=True)
class MaskValues:
    """What one mask holds.

    Attributes:
        picture: its file, and what its name and folders say.
        size_hw: height and width in px.
        px: value -> number of pixels. Values are grey values, indices of a palette, numbers in VOC's table, or colours.
        paint: (values, size) -> where the mask has them, bool (H, W).
        palette: index -> red, green and blue, of indices that occur, where these are the values.
        lossy: the format changes values.
        own: defectseg wrote the file, and nothing has saved it since.
    """

    picture: Picture
    size_hw: tuple[int, int]
    px: Mapping[int, int]
    paint: Callable[[Collection[int], tuple[int, int]], NDArray[np.bool_]]
    palette: Mapping[int, list[int]]
    lossy: bool
    own: bool

    def shapes(self, meaning: Mapping[str, Collection[int]]) -> list[Shape]:
        """The shapes; `meaning` is class -> values. Other values are sound steel."""
        held = {name: self.px.keys() & values for name, values in meaning.items()}
        where = str(self.picture.path)
        return [Shape(name, partial(self.paint, values), where) for name, values in held.items() if values]


def read_values(masks: Sequence[Picture], *, by_colour: bool = False) -> list[MaskValues]:
    """Decode masks, in threads, and count their values. Raises ImageError.

    Args:
        masks: the files.
        by_colour: the colours of palettes count, and of grey values. Else grey values count, and the indices of
            palettes, unless an index has several colours.
    """
    with ThreadPoolExecutor(min(8, cores())) as pool:
        values = list(pool.map(partial(_read_values, by_colour=by_colour), masks))
    colour_of: dict[int, list[int]] = {}
    if any(colour_of.setdefault(index, rgb) != rgb for one in values for index, rgb in one.palette.items()):
        return read_values(masks, by_colour=True)
    return values


def _read_values(mask: Picture, *, by_colour: bool) -> MaskValues:
    pixels, palette, lossy, own = _decode(mask.path, by_colour=by_colour)
    if pixels.dtype == np.uint8:  # ten times as fast
        counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        found = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    else:
        found = dict(zip(*(part.tolist() for part in np.unique(pixels, return_counts=True)), strict=True))
    number_of = {value: value if by_colour else VOC_NUMBERS.get(value, value) for value in found}

    def paint(values: Collection[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode again: all masks of a large set would not fit into memory. Their size has been compared before."""
        pixels, *_ = _decode(mask.path, by_colour=by_colour)
        return np.asarray(np.isin(pixels, [value for value in found if number_of[value] in values]), np.bool_)

    px = {number_of[value]: count for value, count in found.items()}
    colours = {index: rgb for index, rgb in enumerate(palette) if index in found}
    return MaskValues(mask, (pixels.shape[0], pixels.shape[1]), px, paint, colours, lossy, own)


def _decode(path: Path, *, by_colour: bool) -> tuple[NDArray[Any], list[list[int]], bool, bool]:
    """What is stored in a mask, (H, W): numbers or colours; its palette; whether it is lossy, and our own.

    In a PNG with a coloured palette, as labelling tools write it, the indices are taken; with a grey palette, or one
    whose first colour is not black while another one that occurs is, the colours. Three equal channels count as one.
    What is transparent is 0; if that is all there is to see, alpha is the mask.

    Raises:
        ImageError: the file cannot be read, is not complete, or its values are no whole numbers of up to 16 bits.
    """
    content = read.read_file(path)
    container = whole.inspect(content, name=str(path), factor=4 if by_colour else 2)  # colours are counted as int32
    lossy, payload = container.kind not in _LOSSLESS, container.payload
    palette: list[list[int]] = []
    pixels = read.decode_payload(payload, cv2.IMREAD_UNCHANGED, name=str(path))
    if not by_colour and container.kind == "PNG" and payload[_COLOUR_TYPE_AT] == _PALETTE:
        pixels, palette = _indices(payload, pixels, str(path))
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ImageError(f"{path}: holds {pixels.dtype} values; expected whole numbers of 8 or 16 bits.")
    pixels = ~pixels if container.inverted else pixels
    if pixels.ndim == 3 and pixels.shape[2] == 4 and np.ptp(alpha := pixels[..., 3]):
        is_flat = not np.ptp(pixels[..., :3].reshape(-1, 3), axis=0).any()  # then alpha is the mask
        pixels = alpha if is_flat else np.where(alpha[..., None] > 0, pixels, 0)
    if by_colour or pixels.ndim == 3:
        pixels = _one_channel(pixels, str(path), lossy=lossy, by_colour=by_colour)
    return pixels, palette, lossy, content.startswith(b"tEXt" + b"\0".join(MARK), _MARK_AT)


def _indices(png: bytes, colours: NDArray[Any], name: str) -> tuple[NDArray[Any], list[list[int]]]:
    from PIL.PngImagePlugin import PngImageFile

    with whole.as_image_errors(name):
        picture = PngImageFile(io.BytesIO(png))
        palette = np.reshape(picture.getpalette() or (0, 0, 0), (-1, 3))
        indices = np.asarray(picture)
    black_is_later = palette[0].any() and np.isin(indices, np.flatnonzero(~palette.any(axis=1))).any()
    is_grey = not np.ptp(palette, axis=1).any()
    return (colours, []) if is_grey or black_is_later else (indices, palette.tolist())


def _one_channel(pixels: NDArray[Any], name: str, *, lossy: bool, by_colour: bool) -> NDArray[Any]:
    """Grey values, or colours: 0xRRGGBB + COLOUR, 0 for black."""
    blue, green, red = cv2.split(pixels)[:3] if pixels.ndim == 3 else (pixels, pixels, pixels)
    most = max(cv2.absdiff(green, other).max() for other in (blue, red))
    if not by_colour and most <= (_MOST_COLOUR_IN_GREY if lossy else 0):
        return np.asarray(green)  # next to the grey value
    if lossy or pixels.dtype != np.uint8:
        raise ImageError(f"{name}: colours that are smeared, or of 16 bits. Save masks as PNG of 8 bits.")
    colours = np.zeros(blue.shape, np.int32)
    for channel in (red, green, blue):
        colours <<= 8
        colours |= np.asarray(channel, np.uint8)
    return np.add(colours, COLOUR, out=colours, where=colours > 0)
