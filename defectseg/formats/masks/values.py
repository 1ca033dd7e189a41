"""The values in masks: how many pixels have each, and which of them count, numbers or colours."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
from defectseg.formats.masks.names import COLOUR, VOC_NUMBERS
from defectseg.image import read, whole
from defectseg.machine import cores

_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
_COLOUR_TYPE_AT, _PALETTE = 25, 3  # of a PNG
_MOST_COLOUR_IN_GREY = 48  # what JPEG adds to grey pixels
_MARK, _MARK_AT = (b"Software", b"defectseg"), 37  # a text chunk behind the header of a PNG


def write_mask(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG with a text that says that defectseg wrote it. Editors drop it when they save."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text(*_MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, pnginfo=text)


@dataclass(frozen=True)
class MaskValues:
    """What one mask holds.

    Attributes:
        path: the file.
        size_hw: height and width in px.
        px: value -> number of pixels. Values are grey values, indices of a palette, numbers in VOC's table, or colours.
        stored: value -> what is stored for it.
        is_voc: all values have the colours of VOC's table.
        lossy: the format changes values.
        own: defectseg wrote the file, and nothing has saved it since.
    """

    path: Path
    size_hw: tuple[int, int]
    px: Mapping[int, int]
    stored: Mapping[int, Sequence[int]]
    is_voc: bool
    lossy: bool
    own: bool

    def shapes(self, meaning: Mapping[int, str]) -> list[Shape]:
        """The shapes; `meaning` is value -> class. Other values are sound steel."""
        values: dict[str, list[int]] = {}
        for value in meaning.keys() & self.px.keys():
            values.setdefault(meaning[value], []).extend(self.stored[value])
        return [Shape(name, partial(_paint, self.path, found), str(self.path)) for name, found in values.items()]


def read_values(paths: Sequence[Path], *, by_colour: bool = False) -> list[MaskValues]:
    """Decode masks, in threads, and count their values. Raises ImageError.

    Args:
        paths: the masks.
        by_colour: the colours of palettes count, and of grey values. Else indices and grey values count.
    """
    with ThreadPoolExecutor(min(8, cores())) as pool:
        return list(pool.map(partial(_read_values, by_colour=by_colour), paths))


def _read_values(path: Path, *, by_colour: bool) -> MaskValues:
    pixels, palette, lossy, own = _decode(path)
    if pixels.dtype == np.uint8:  # ten times as fast
        counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        found = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    else:
        found = dict(zip(*(part.tolist() for part in np.unique(pixels, return_counts=True)), strict=True))
    px, stored, is_voc = Counter[int](), defaultdict[int, list[int]](list), True
    for value, count in found.items():
        grey = value if value >= COLOUR or not value else min(value, 255) * 0x010101 + COLOUR
        colour, number = palette.get(value, grey), VOC_NUMBERS.get(value, value)
        is_voc &= VOC_NUMBERS.get(colour) == number
        px[colour if by_colour else number] += count
        stored[colour if by_colour else number].append(value)
    return MaskValues(path, (pixels.shape[0], pixels.shape[1]), px, stored, is_voc, lossy, own)


def _paint(path: Path, values: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode again: all masks of a large set would not fit into memory. Their size has been compared before."""
    return np.asarray(np.isin(_decode(path)[0], values), np.bool_)


def _decode(path: Path) -> tuple[NDArray[Any], dict[int, int], bool, bool]:
    """What is stored in a mask of any format, (H, W); its palette, index -> colour; whether it is lossy, and our own.

    In a PNG with a palette, as labelling tools write it, the indices are taken; if its first colour is not black but
    another one that occurs is, the colours. Three equal channels count as one. Alpha is ignored.

    Raises:
        ImageError: the file cannot be read, is not complete, or its values are no whole numbers of up to 16 bits.
    """
    content = read.read_file(path)
    container = whole.inspect(content, name=str(path))
    lossy, payload = container.kind not in _LOSSLESS, container.payload
    pixels = read.decode_payload(payload, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION, name=str(path))
    palette: dict[int, int] = {}
    if container.kind == "PNG" and payload[_COLOUR_TYPE_AT] == _PALETTE:
        pixels, palette = _read_palette(payload, pixels, str(path))
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ImageError(f"{path}: holds {pixels.dtype} values; expected whole numbers of 8 or 16 bits.")
    pixels = ~pixels if container.inverted else pixels
    if pixels.ndim == 3:
        pixels = _one_channel(pixels, str(path), lossy=lossy)
    return pixels, palette, lossy, content.startswith(b"tEXt" + b"\0".join(_MARK), _MARK_AT)


def _read_palette(png: bytes, colours: NDArray[Any], name: str) -> tuple[NDArray[Any], dict[int, int]]:
    """Indices, and index -> colour; or colours as they are."""
    from PIL.PngImagePlugin import PngImageFile

    with whole.as_image_errors(name):
        picture = PngImageFile(io.BytesIO(png))
        entries = np.array(picture.getpalette() or (), np.int32).reshape(-1, 3)
        indices = np.asarray(picture)
    palette = dict(enumerate(_colours(entries).tolist()))
    if palette[0] and any(palette[index] == 0 for index in np.unique(indices).tolist()):
        return colours, {}
    return indices, palette


def _one_channel(pixels: NDArray[Any], name: str, *, lossy: bool) -> NDArray[Any]:
    """Grey values, or colours."""
    first, *others = cv2.split(pixels)[:3]
    if max(cv2.absdiff(first, other).max() for other in others) <= (_MOST_COLOUR_IN_GREY if lossy else 0):
        return np.asarray(others[0])  # green is next to the grey value
    if lossy or pixels.dtype != np.uint8 or len(others) != 2:
        raise ImageError(f"{name}: colours that are smeared, or of 16 bits. Save masks as PNG of 8 bits.")
    return _colours(pixels[:, :, 2::-1])


def _colours(rgb: NDArray[Any]) -> NDArray[np.int32]:
    """0xRRGGBB + COLOUR of pixels (..., 3), 0 for black."""
    colours = rgb.astype(np.int32) @ np.array([0x10000, 0x100, 1], np.int32)
    return np.asarray(colours + COLOUR * (colours > 0), np.int32)
