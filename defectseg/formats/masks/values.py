"""The values in masks: how many pixels have each, and which of them count, numbers or colours."""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError, LabelError
from defectseg.formats.labels import Shape
from defectseg.formats.masks.names import VOC_NAMES, VOC_NUMBERS, Names
from defectseg.image import read, whole
from defectseg.machine import cores
from defectseg.progress import some

_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
_HEADER_BYTES, _COLOUR_TYPE_AT, _PALETTE = 33, 25, 3  # of a PNG
_VOC_FOLDER = "SegmentationClass"
_MOST_COLOUR_IN_GREY = 48  # what JPEG adds to grey pixels
_MARK = b"tEXtSoftware\0defectseg"
_MARK_CHUNK = struct.pack(">I", len(_MARK) - 4) + _MARK + struct.pack(">I", zlib.crc32(_MARK))


def marked_as_own(png: bytes) -> bytes:
    """A PNG with a text chunk behind its header that says that defectseg wrote it. Editors drop it when they save."""
    return png[:_HEADER_BYTES] + _MARK_CHUNK + png[_HEADER_BYTES:]


@dataclass(frozen=True)
class MaskValues:
    """What one mask holds.

    Attributes:
        path: the file.
        size_hw: height and width in px.
        px: stored value -> number of pixels. Stored are grey values, indices of a coloured palette, or 0xRRGGBB.
        meant: stored value -> the value that counts, where that is another: a colour (0xRRGGBB) or its number.
        in_colour: colours are stored.
        lossy: the format changes values.
        own: defectseg wrote the file, and nothing has saved it since.
    """

    path: Path
    size_hw: tuple[int, int]
    px: Mapping[int, int]
    meant: Mapping[int, int]
    in_colour: bool
    lossy: bool
    own: bool

    def count(self) -> Counter[int]:
        """Value that counts -> number of pixels."""
        counts = Counter[int]()
        for value, px in self.px.items():
            counts[self.meant.get(value, value)] += px
        return counts

    def shapes(self, meaning: Mapping[int, str]) -> list[Shape]:
        """The shapes; `meaning` is value that counts -> class. Other values are sound steel."""
        values: dict[str, list[int]] = {}
        for value in self.px:
            if name := meaning.get(self.meant.get(value, value)):
                values.setdefault(name, []).append(value)
        return [Shape(name, partial(_paint, self.path, found), str(self.path)) for name, found in values.items()]


def read_values(paths: Sequence[Path]) -> list[MaskValues]:
    """Decode masks, in threads, and count their values. Raises ImageError."""
    with ThreadPoolExecutor(min(8, cores())) as pool:
        return list(pool.map(lambda path: _read_mask(path)[1], paths))


def _paint(path: Path, values: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode again: all masks of a large set would not fit into memory. Their size has been compared before."""
    return np.asarray(np.isin(_read_mask(path)[0], values), np.bool_)


def _read_mask(path: Path) -> tuple[NDArray[Any], MaskValues]:
    """What is stored in a mask of any format, (H, W), and its values.

    In a PNG with a coloured palette, as labelling tools write it, the indices count; with a grey palette, or one that
    has black at another place than the first, the colours. Three equal channels count as one. Alpha is ignored.

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
    in_colour = False
    if pixels.ndim == 3:
        pixels, in_colour = _one_channel(pixels[:, :, :3], str(path), lossy=lossy)
    if pixels.dtype.kind == "f" or pixels.min() < 0 or (pixels.max() > 0xFFFF and not in_colour):
        raise ImageError(f"{path}: holds {pixels.dtype} values; expected whole numbers of 8 or 16 bits.")
    pixels = ~pixels if container.inverted else pixels
    if pixels.dtype == np.uint8:  # ten times as fast
        every = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        values, counts = np.flatnonzero(every), every[every > 0]
    else:
        values, counts = np.unique(pixels, return_counts=True)
    px = dict(zip(values.tolist(), counts.tolist(), strict=True))
    own = content[_HEADER_BYTES:].startswith(_MARK_CHUNK)
    meant = {value: palette.get(value, 0) for value in px} if palette else {}
    return pixels, MaskValues(path, (pixels.shape[0], pixels.shape[1]), px, meant, in_colour, lossy, own)


def _read_palette(png: bytes, colours: NDArray[Any], name: str) -> tuple[NDArray[Any], dict[int, int]]:
    """Indices, and index -> colour; or colours as they are."""
    from PIL.PngImagePlugin import PngImageFile

    with whole.as_image_errors(name):
        picture = PngImageFile(io.BytesIO(png))
        entries = np.array(picture.getpalette() or (), np.int32).reshape(-1, 3)
        indices = np.asarray(picture)
    palette = dict(enumerate((entries @ [0x10000, 0x100, 1]).tolist()))
    is_grey = not np.ptp(entries, axis=1).any()
    black = [index for index, colour in palette.items() if colour == 0]
    return (colours, {}) if is_grey or (palette[0] and np.isin(indices, black).any()) else (indices, palette)


def _one_channel(bgr: NDArray[Any], name: str, *, lossy: bool) -> tuple[NDArray[Any], bool]:
    """Grey values; or 0xRRGGBB, and True."""
    if (bgr == bgr[:, :, :1]).all():
        return np.ascontiguousarray(bgr[:, :, 0]), False
    if lossy and np.ptp(bgr, axis=2).max() <= _MOST_COLOUR_IN_GREY:
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)), False
    if lossy or bgr.dtype != np.uint8 or bgr.shape[2] != 3:
        raise ImageError(f"{name}: colours that are smeared, or of 16 bits. Save masks as PNG of 8 bits.")
    return bgr.astype(np.int32) @ np.array([1, 0x100, 0x10000], np.int32), True


def choose_values(masks: Sequence[MaskValues], names: Names) -> tuple[list[MaskValues], Names]:
    """Choose for all masks together whether colours or numbers count, and what names them.

    Colours of VOC's table become its numbers; where nothing else names them in SegmentationClass/, its classes do.

    Raises:
        LabelError: there are colours that nothing explains.
    """
    is_voc = all(VOC_NUMBERS.get(mask.meant.get(value, -1)) == value for mask in masks for value in mask.px)
    if not names.by_colour and not any(mask.in_colour for mask in masks):
        masks = [replace(mask, meant={}) for mask in masks]
    else:
        masks = [replace(mask, meant={value: _colour(mask, value) for value in mask.px}) for mask in masks]
        example = {colour: mask.path for mask in masks for colour in mask.meant.values() if colour}
        unknown = example.keys() - (names.of_value.keys() if names.by_colour else set())
        is_voc = not names.by_colour and unknown <= VOC_NUMBERS.keys()
        if is_voc:
            numbers = [{value: VOC_NUMBERS[colour] for value, colour in mask.meant.items()} for mask in masks]
            masks = [replace(mask, meant=meant) for mask, meant in zip(masks, numbers, strict=True)]
        elif unknown and (names.by_colour or len(unknown) > 1):
            shown = some({",".join(map(str, colour.to_bytes(3, "big"))) for colour in unknown})
            raise LabelError(
                f"{example[min(unknown)]}: nothing explains the colours {shown}. Give each a line "
                "'name:red,green,blue::' in labelmap.txt, beside the folders of images and masks."
            )
    if is_voc and not names.where and all(mask.path.parent.name == _VOC_FOLDER for mask in masks):
        used = {value for mask in masks for value in mask.count()}
        of_value = {value: name for value, name in enumerate(VOC_NAMES.split(",")) if value in used}
        names = Names("the table of Pascal VOC", of_value)
    return list(masks), names


def _colour(mask: MaskValues, value: int) -> int:
    return mask.meant.get(value, value if mask.in_colour else min(value, 255) * 0x010101)
