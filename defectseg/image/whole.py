"""Recognise the format of an image file, its size, and whether it is complete, before it is decoded.

OpenCV fills the missing rest of a JPEG with grey and trusts the chunks of a PNG. So the structure of these two formats
is checked here, which takes microseconds. For the other formats the decoder refuses incomplete files, and Pillow reads
the header. Pillow is imported only for these.
"""

import io
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from defectseg.errors import ImageError
from defectseg.image.limits import check_image

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_MOST_SCANS = 100  # a progressive JPEG has about ten; each of 268 million pixels takes a quarter of a second

_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # all but stuffing, fill and restart markers
_MARKER_IN_HEADER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
# Start-of-frame markers: C0 to CF without the tables DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PNG_SIGNATURE_BYTES = 8
_ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
_FIRST_FRAME = "first frame of an animation used"
_JPEG2000_START = b"\xff\x4f\xff\x51"
# The sizes of code-blocks and precincts, of all components (COD) or of one (COC), in whichever header they stand.
_JPEG2000_BLOCKS = re.compile(
    rb"(?=\xff(?:\x52\0([\x0c-\x2d]).[\0-\x04]..[\0\x01]|\x53\0([\x09-\x2b]).[\0\x01])[\0-\x20]"
    rb"([\0-\x08])([\0-\x08]).[\0\x01](.{0,33}))",
    re.DOTALL,
)
_BLOCK_BYTES, _TILE_BYTES = 1200, 14_000  # what OpenJPEG takes at most for each
_PILLOW_WEIGHTS = {"WebP": (6.6, 8.6), "GIF": (10.5, 10.5), "AVIF": (23, 41)}  # without and with alpha
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}  # by colour type; OpenCV makes four of grey with alpha
# Little-endian or big-endian.
_EXIF_ORIENTATION = re.compile(rb"\x12\x01\x03\0\x01\0\0\0(.)\0|\x01\x12\0\x03\0\0\0\x01\0(.)", re.DOTALL)
_HEADER_BYTES = 2**16
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 1: 1, 2: 1, 6: 1, 7: 1}  # of a value
_TIFF_READ = (256, 257, 258, 262, 274, 281, 341)
_MOST_VALUES = 2**16
_REMEDY = "Copy the file again from where it came from."
_pillow_lock = threading.Lock()


@dataclass(frozen=True)
class Container:
    """The structure of an image file.

    Attributes:
        kind: "JPEG", "PNG", "BMP", "TIFF", "WebP", "GIF", "AVIF" or "JPEG 2000".
        payload: the bytes for the decoder.
        size_hw: height and width in px.
        notes: what is ignored, for people to read ("EXIF orientation 6 ignored").
        inverted: True if 0 means white.
        bit_depth: bits of the values of a 16-bit file according to its tags, else None.
        spread: True if the decoder scales 10, 12 or 14 bits to the full range of 16.
        bits: bits of the values if the decoder does not scale them to 8 or 16, else None.
        bytes_per_px: what decoding and the conversion to grey take at most, as measured.
    """

    kind: str
    payload: bytes
    size_hw: tuple[int, int]
    notes: tuple[str, ...] = ()
    inverted: bool = False
    bit_depth: int | None = None
    spread: bool = False
    bits: int | None = None
    bytes_per_px: float = 2.3


def inspect(content: bytes, *, name: str, factor: float = 1) -> Container:
    """Recognise an image file, check its size and, if the decoder does not, that it is complete.

    Args:
        content: the file's bytes.
        name: the file, for error messages.
        factor: how much more memory the caller takes than decoding to grey does.

    Raises:
        ImageError: it is empty, of another format, cut short, damaged according to a checksum or its structure, or has
            more pixels than allowed, or would take more memory than that many pixels.
    """
    kind = _kind_of(content, name)
    with as_image_errors(name):
        walk = _WALKS.get(kind)
        container = walk(content, name) if walk else _from_pillow(kind, io.BytesIO(content), content)
    height, width = container.size_hw
    file_bytes = len(content) if container.payload is content else 2 * len(content)
    check_image(container.size_hw, height * width * container.bytes_per_px * factor + file_bytes, name=name)
    return container


def read_size(handle: BinaryIO, *, name: str) -> tuple[int, int]:
    """Height and width in px of the image in an open file; only its header is read.

    Raises:
        ImageError: it is empty, of another format, or its header is cut short or damaged.
    """
    head = handle.read(_HEADER_BYTES)
    kind = _kind_of(head, name)
    with as_image_errors(name):
        if kind in _SIZES:
            try:
                return _SIZES[kind](head, name)
            except (ImageError, ValueError, IndexError, struct.error):  # behind a large colour profile?
                return _SIZES[kind](head + handle.read(), name)
        handle.seek(0)
        if kind in ("AVIF", "WebP"):  # Pillow reads these completely, which must not happen under its lock
            handle = io.BytesIO(handle.read())
        if kind == "TIFF":
            with _quiet_pillow():
                return _tiff_size(_tiff_directory(handle))
        return _from_pillow(kind, handle).size_hw


def _kind_of(content: bytes, name: str) -> str:
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes). {_REMEDY}")
    for kind, magic in _MAGIC.items():
        if magic.match(content):
            return kind
    *kinds, last = _MAGIC
    raise ImageError(f"{name}: not a {', '.join(kinds)} or {last} image (it begins with {content[:8]!r}).")


@contextmanager
def as_image_errors(name: str) -> Iterator[None]:
    """Turn whatever a reader of headers raises into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise ImageError(
            f"{name}: cannot be decoded; its header ends early, is damaged or of an unusual kind. "
            "Copy the file again, or save it as an 8-bit grey PNG."
        ) from error


def _cut_short(name: str, why: str) -> ImageError:
    return ImageError(f"{name}: the file is cut short ({why}). {_REMEDY}")


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(f"{name}: the file is damaged ({why}). {_REMEDY}")


def _walk_jpeg(content: bytes, name: str) -> Container:
    """Follow the segments from SOI to EOI. Data after EOI (padding, a second picture) are ignored."""
    notes: tuple[str, ...] = ()
    components, is_sequential, is_one_scan, scans, end = 0, False, False, 0, 0
    for marker, start, end in _jpeg_segments(content, name):
        if marker == 0xE1 and content.startswith(b"Exif\0\0", start):
            notes = _orientation_notes(content[start:end])
        elif marker in _JPEG_FRAMES:
            components, is_sequential = content[start + 5], marker in (0xC0, 0xC1)  # other types have several scans
        elif marker == 0xDA:
            scans += 1
            is_one_scan = is_sequential and scans == 1 and content[start] == components
    if scans > _MOST_SCANS:
        raise ImageError(f"{name}: has {scans:,} scans; up to {_MOST_SCANS} are decoded. Save it again, as PNG.")
    # Without the end marker, OpenCV refuses a picture whose data end before the last block, instead of filling the rest
    # with grey. The zeros are for the look-ahead of its bit reader. Several scans need the marker.
    payload = content[: end - 2] + (bytes(16) if is_one_scan else b"\xff\xd9")
    bytes_per_px = 2.3 if is_one_scan else 1.2 + 2 * components  # several scans are united as coefficients
    return Container("JPEG", payload, _jpeg_size(content, name), notes, bytes_per_px=bytes_per_px)


def _jpeg_segments(content: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte after the length, and end of each segment up to EOI; SOS includes its picture data.

    Junk and fill bytes before a marker are skipped, as decoders do.
    """
    end = 2
    while True:
        found = _MARKER_IN_HEADER.search(content, end)
        if found is None:
            raise _cut_short(name, "the end marker of JPEG is missing")
        marker, at = found.group()[1], found.end()
        if marker == 0xD9:
            yield marker, at, at
            return
        end = at + struct.unpack_from(">H", content, at)[0]
        if marker == 0xDA:
            end = _end_of_scan(content, end, name)
        yield marker, at + 2, end


def _jpeg_size(content: bytes, name: str) -> tuple[int, int]:
    for marker, start, _ in _jpeg_segments(content, name):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, start + 1)
            return height, width
    raise _damaged(name, "it declares no picture")


def _end_of_scan(content: bytes, position: int, name: str) -> int:
    marker = _MARKER_IN_SCAN.search(content, position)
    if marker is None:
        raise _cut_short(name, "the end marker of JPEG is missing")
    # A scan is followed by EOI, or by tables and another scan. Any other marker is damaged picture data.
    if marker.group()[1] not in (0xD9, 0xDA, 0xC4, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)):
        raise _damaged(name, f"an impossible marker at byte {marker.start()}")
    return marker.start()


def _walk_png(content: bytes, name: str) -> Container:
    """Follow the chunks to IEND, check their checksums, and remove the chunks of an animation.

    OpenCV 5.0 crashes on some animations, and decodes others although their first picture is incomplete.
    """
    notes: tuple[str, ...] = ()
    has_alpha = False
    kept = [memoryview(content)[:PNG_SIGNATURE_BYTES]]
    view = memoryview(content)
    for kind, start, length in png_chunks(content):
        end = start + length + 4
        if end > len(content):
            raise _cut_short(name, f"its {kind!r} chunk ends beyond the file")
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(view[start - 4 : end - 4]) != checksum:
            raise _damaged(name, f"the checksum of its {kind!r} chunk at byte {start - 8} is wrong")
        if kind not in _ANIMATION_CHUNKS:
            kept.append(view[start - 8 : end])
        has_alpha |= kind == b"tRNS"
        if kind == b"eXIf":
            notes += _orientation_notes(content[start : end - 4])
        elif kind == b"acTL":
            notes += (_FIRST_FRAME,)
        elif kind == b"IEND":
            is_still = sum(map(len, kept)) == end
            size_hw, payload = _png_size(content, name), content if is_still else b"".join(kept)
            depth, colour_type = content[24:26]
            channels = 4 if has_alpha and colour_type else _PNG_CHANNELS.get(colour_type, 4)
            return Container("PNG", payload, size_hw, notes, bytes_per_px=_decoded_bytes(channels, depth))
    raise _cut_short(name, "the end chunk of PNG is missing")


def png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and length of each chunk of a PNG file."""
    start = PNG_SIGNATURE_BYTES
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        yield kind, start + 8, length
        start += 12 + length


def _png_size(content: bytes, name: str) -> tuple[int, int]:
    if content[12:16] != b"IHDR":
        raise _damaged(name, "its header chunk is missing")
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def _decoded_bytes(channels: int, bits: int) -> float:
    """Bytes per pixel of an image that is decoded and then converted, whose values have at least 8 bits."""
    return 2 * channels * max(bits, 8) / 8 + 0.3


def _walk_jpeg2000(content: bytes, name: str) -> Container:
    """Check the end marker, which OpenCV ignores. Data contain no marker from FF90 on (ISO 15444-1, B.10.1)."""
    start = content.index(_JPEG2000_START)
    if content.find(b"\xff\xd9", content.find(b"\xff\x90\0\n", start)) < 0:
        raise _cut_short(name, "the end marker of JPEG 2000 is missing")
    (components,) = struct.unpack_from(">H", content, start + 40)
    bits, *others = {1 + depth for depth in content[start + 42 : start + 42 + 3 * components : 3]}
    if bits > 16 or others:
        raise ImageError(f"{name}: holds values with a sign, above 16 bits or of several depths. Save as 8 or 16 bit.")
    is_scaled = bits in (8, 16) or b"pclr" in content[:start]
    size_hw, weight = _jpeg2000_size(content, name), _jpeg2000_bytes_per_px(content, start, components)
    return Container("JPEG 2000", content, size_hw, bits=None if is_scaled else bits, bytes_per_px=weight)


def _jpeg2000_bytes_per_px(content: bytes, start: int, components: int) -> float:
    """OpenJPEG takes int32 for each component, and memory for each tile and code-block, also if it is empty."""
    width, height, _, _, tile_width, tile_height = struct.unpack_from(">IIIIII", content, start + 8)
    palette = content.find(b"pclr", 0, start)
    channels = components + (content[palette + 6] if palette >= 0 else 0)
    blocks_per_px = 0.0
    for found in _JPEG2000_BLOCKS.finditer(content):
        largest = 4 + ord(found[3]) + ord(found[4])  # of a block, as a power of 2
        precincts = found[5][: ord(found[1]) - 12 if found[1] else ord(found[2]) - 9] or b"\xff"
        sizes = [min(largest, max(0, (one & 15) + (one >> 4) - 2)) for one in reversed(precincts)]
        blocks_per_px = max(blocks_per_px, math.fsum(0.25**level * 0.5**size for level, size in enumerate(sizes)))
    tiles = math.ceil(width / tile_width) * math.ceil(height / tile_height)
    tile_bytes: float = _TILE_BYTES * min(tiles, 2**16) / (width * height)
    return channels * (6.3 + _BLOCK_BYTES * blocks_per_px) + tile_bytes


def _jpeg2000_size(content: bytes, name: str) -> tuple[int, int]:
    right, bottom, left, top = struct.unpack_from(">IIII", content, content.index(_JPEG2000_START) + 8)
    return bottom - top, right - left


def _walk_tiff(content: bytes, name: str) -> Container:
    """Read the tags of the first page, and neutralise those that OpenCV handles differently.

    OpenCV always obeys the orientation, and inverts 8-bit but not 16-bit images.
    """
    with _quiet_pillow():
        directory = _tiff_directory(io.BytesIO(content))
        payload, photometric, orientation = content, directory.get(262), directory.get(274)
        notes: tuple[str, ...] = ("first page of several used",) if directory.next else ()
        if photometric == 5:
            raise ImageError(f"{name}: a TIFF in printing inks (CMYK). Save it as grey or RGB.")
        if photometric == 0:
            payload = _with_tag_of_one(payload, directory, 262)
        if orientation in range(2, 9):
            payload = _with_tag_of_one(payload, directory, 274)
            notes += (f"EXIF orientation {orientation} ignored",)
        spread = (directory.get(258) or (0,))[0] in (10, 12, 14)
        size_hw, bit_depth = _tiff_size(directory), _tiff_bit_depth(directory)
        channels = 3 if photometric == 3 else directory.get(277, 1)  # 3: a palette
        weight = _decoded_bytes(channels, max(directory.get(258) or (1,)))
        return Container("TIFF", payload, size_hw, notes, photometric == 0, bit_depth, spread, bytes_per_px=weight)


def _tiff_bit_depth(directory: "ImageFileDirectory_v2") -> int | None:
    """The bit depth according to MaxSampleValue or SMaxSampleValue, 9 to 16.

    Only 2**bits - 1 counts: another value is the brightest of this image, not of the camera.
    """
    for tag in (281, 341):
        values = directory.get(tag, 0)
        largest = max(values) if isinstance(values, tuple) else values
        for bits in range(9, 17):
            if largest == 2**bits - 1:
                return bits
    return None


def _tiff_directory(handle: BinaryIO) -> "ImageFileDirectory_v2":
    """The tags of the first page of a TIFF file."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    start = handle.read(16)
    # Pillow reads big-endian BigTIFF only if the byte order is given separately.
    header = b"II+\0" + start[4:] if 43 in start[2:4] else b"II*\0" + start[4:8]
    directory = ImageFileDirectory_v2(header, prefix=start[:2])
    _check_tags(handle, directory.next, "<" if start[:2] == b"II" else ">", *("QQ" if 43 in start[2:4] else "HI"))
    handle.seek(directory.next)
    directory.load(handle)
    if directory.next == directory.offset:  # load() did not reach the offset of the next page
        raise ValueError("its list of tags is cut short")
    return directory


def _check_tags(handle: BinaryIO, start: int, order: str, number: str, count: str) -> None:
    """Refuse tags that hold more bytes together than the file, as they do if they share them, before they are read."""
    entry = struct.Struct(f"{order}HH{count}{struct.calcsize(count)}x")
    size_bytes = handle.seek(0, 2)
    handle.seek(start)
    (entries,) = struct.unpack(order + number, handle.read(struct.calcsize(order + number)))
    held_bytes = 0
    for tag, kind, values in entry.iter_unpack(handle.read(min(entries, 2**16) * entry.size)):
        held_bytes += _TIFF_BYTES.get(kind, 0) * values
        if held_bytes > size_bytes or (tag in _TIFF_READ and values > _MOST_VALUES):
            raise ValueError("its tags share their bytes")


def _tiff_size(directory: "ImageFileDirectory_v2") -> tuple[int, int]:
    return int(directory[257]), int(directory[256])


def _with_tag_of_one(content: bytes, directory: "ImageFileDirectory_v2", tag: int) -> bytes:
    """The content of a TIFF file with the value 1 for a tag of its first page that has one whole number."""
    order = "<" if directory.prefix == b"II" else ">"
    count = "Q" if 43 in content[2:4] else "I"
    entry = struct.pack(f"{order}HH{count}", tag, directory.tagtype[tag], 1)
    changed = bytearray(content)
    value_format = {1: "B", 3: "H", 4: "I", 16: "Q"}[directory.tagtype[tag]]
    struct.pack_into(order + value_format, changed, content.index(entry, directory.offset) + len(entry), 1)
    return bytes(changed)


def _from_pillow(kind: str, handle: BinaryIO, content: bytes = b"") -> Container:
    """What Pillow's reader of a format finds in the header; `content` becomes the payload."""
    from PIL import Image

    with _quiet_pillow():
        picture = Image.open(handle, formats=[kind])
        notes = _orientation_notes(picture.info.get("exif", b""))
        weight = _decoded_bytes({"1": 1, "L": 1, "RGBA": 4}.get(picture.mode, 3), 8)
        if kind in _PILLOW_WEIGHTS:
            weight = _PILLOW_WEIGHTS[kind][picture.mode == "RGBA"]
        if getattr(picture, "is_animated", False):
            notes += (_FIRST_FRAME,)
            weight += 6 * (kind == "WebP")
        return Container(kind, content, (picture.height, picture.width), notes, bytes_per_px=weight)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Switch off Pillow's warnings and its limit of pixels, which are settings of the whole process."""
    from PIL import Image

    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation_notes(exif: bytes) -> tuple[str, ...]:
    """A note if an EXIF block has an orientation; a broken block has none."""
    found = _EXIF_ORIENTATION.search(exif)
    orientation = 0 if found is None else ord(found[1] or found[2])
    return (f"EXIF orientation {orientation} ignored",) if orientation in range(2, 9) else ()


_MAGIC = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "AVIF": re.compile(rb"....ftyp(.{0,40})avi[fs]", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|" + re.escape(_JPEG2000_START)),
}
_WALKS = {"JPEG": _walk_jpeg, "PNG": _walk_png, "TIFF": _walk_tiff, "JPEG 2000": _walk_jpeg2000}
_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "JPEG 2000": _jpeg2000_size}
