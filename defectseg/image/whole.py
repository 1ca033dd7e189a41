"""Is an image file whole? The structure of JPEG, PNG, BMP, TIFF and WebP files, walked before anything is decoded.

OpenCV returns a truncated picture filled with grey, or prints from C; so what a container declares is compared with the
bytes that are there. Walking costs microseconds; no pixel is decoded here.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from defectseg.errors import ImageError

_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # all but stuffing, fill and restart markers
_MARKER_IN_HEADER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_REMEDY = "Copy the file again from where it came from."


@dataclass(frozen=True)
class Container:
    """What the walk over a file's structure found.

    Attributes:
        kind: "JPEG", "PNG", "BMP", "TIFF" or "WebP".
        payload: the bytes to hand to the decoder.
        notes: what is left aside, in words ("EXIF orientation 6 ignored").
        inverted: True where 0 means white.
        size_hw: height and width in px, of a JPEG; None of the others.
    """

    kind: str
    payload: bytes
    notes: tuple[str, ...] = ()
    inverted: bool = False
    size_hw: tuple[int, int] | None = None


def inspect(content: bytes, *, name: str) -> Container:
    """Recognise an image file by its first bytes and check that it is whole.

    Raises:
        ImageError: it is empty, of another kind, cut short, or damaged where a checksum or the structure shows it.
    """
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes). {_REMEDY}")
    for magic, walk in _WALKS:
        if magic.match(content):
            try:
                return walk(content, name)
            except (struct.error, IndexError):
                raise _cut_short(name, "its header ends early") from None
    raise ImageError(f"{name}: not a JPEG, PNG, BMP, TIFF or WebP image (it begins with {content[:8]!r}).")


def _cut_short(name: str, why: str) -> ImageError:
    return ImageError(f"{name}: the file is cut short ({why}). {_REMEDY}")


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(f"{name}: the file is damaged ({why}). {_REMEDY}")


def _walk_jpeg(content: bytes, name: str) -> Container:
    """Follow the segments from SOI to EOI. What follows EOI (padding, a second picture) is not looked at."""
    notes: tuple[str, ...] = ()
    components, one_scan = 0, False
    size_hw: tuple[int, int] | None = None
    position = 2
    while (marker_at := _jpeg_marker(content, position, name)) and (marker := content[marker_at]) != 0xD9:
        body = marker_at + 3
        position = marker_at + 1 + struct.unpack_from(">H", content, marker_at + 1)[0]
        if marker == 0xE1 and content.startswith(b"Exif\0\0", body):
            notes = _orientation_notes(content[body + 6 : position])
        elif marker in (0xC0, 0xC1, 0xC2):
            size_hw = struct.unpack_from(">HH", content, body + 1)
            components = content[body + 5] if marker != 0xC2 else 0  # a progressive one comes in several scans
        elif marker == 0xDA:
            one_scan = content[body] == components
            position = _end_of_scan(content, position, name)
    # Without its end marker, OpenCV's memory source refuses a picture whose data run out before its last block, instead
    # of filling the rest with grey; the zeros feed the bit reader's look-ahead. Several scans need the marker itself.
    payload = content[: marker_at - 1] + (bytes(16) if one_scan else b"\xff\xd9")
    return Container("JPEG", payload, notes, size_hw=size_hw)


def _jpeg_marker(content: bytes, position: int, name: str) -> int:
    """Where the code of the next marker lies; junk and fill bytes before it are passed over, as decoders do."""
    found = _MARKER_IN_HEADER.search(content, position)
    if found is None:
        raise _cut_short(name, "the end marker of JPEG is missing")
    return found.end() - 1


def _end_of_scan(content: bytes, position: int, name: str) -> int:
    marker = _MARKER_IN_SCAN.search(content, position)
    if marker is None:
        raise _cut_short(name, "the end marker of JPEG is missing")
    # After a scan come EOI, or tables and another scan; anything else is picture data gone wrong.
    if marker.group()[1] not in (0xD9, 0xDA, 0xC4, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)):
        raise _damaged(name, f"an impossible marker at byte {marker.start()}")
    return marker.start()


def _walk_png(content: bytes, name: str) -> Container:
    """Follow the chunks to IEND and compare their checksums."""
    notes: tuple[str, ...] = ()
    view = memoryview(content)
    for kind, start, length in png_chunks(content):
        if start + length + 4 > len(content):
            raise _cut_short(name, f"its {kind!r} chunk ends beyond the file")
        (checksum,) = struct.unpack_from(">I", content, start + length)
        if zlib.crc32(view[start - 4 : start + length]) != checksum:
            raise _damaged(name, f"the checksum of its {kind!r} chunk at byte {start - 8} is wrong")
        if kind == b"eXIf":
            notes += _orientation_notes(content[start : start + length])
        elif kind == b"acTL":
            notes += ("first frame of an animation used",)
        elif kind == b"IEND":
            return Container("PNG", content, notes)
    raise _cut_short(name, "the end chunk of PNG is missing")


def png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and length of each chunk of a PNG file."""
    return _chunks(content, ">I4s", 8, 4)


def _chunks(content: bytes, header: str, start: int, trailer: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and length of each chunk of a PNG (length first) or RIFF (kind first, even lengths) file."""
    while start + 8 <= len(content):
        first, second = struct.unpack_from(header, content, start)
        kind, length = (second, first) if isinstance(second, bytes) else (first, second)
        yield kind, start + 8, length
        start += 8 + length + trailer + (length % 2 if trailer == 0 else 0)


def _walk_webp(content: bytes, name: str) -> Container:
    notes: tuple[str, ...] = ()
    (size,) = struct.unpack_from("<I", content, 4)
    if size + 8 > len(content):
        raise _cut_short(name, f"{len(content)} of {size + 8} bytes")
    for kind, start, length in _chunks(content[: size + 8], "<4sI", 12, 0):
        if start + length > size + 8:
            raise _damaged(name, f"its {kind!r} chunk ends beyond the file")
        if kind == b"EXIF":
            notes += _orientation_notes(content[start : start + length].removeprefix(b"Exif\0\0"))
        elif kind == b"ANIM":
            notes += ("first frame of an animation used",)
    return Container("WebP", content, notes)


def _walk_bmp(content: bytes, name: str) -> Container:
    """Compare the rows that the header promises with the bytes that are there."""
    data_start, header_size = struct.unpack_from("<II", content, 10)
    if header_size < 40:  # OS/2: 16-bit sizes, never compressed
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
        data_size = (width * bits + 31) // 32 * 4 * height
    else:
        width, height, _, bits, compression, data_size = struct.unpack_from("<iiHHII", content, 18)
        if compression in (0, 3, 6):
            data_size = (width * bits + 31) // 32 * 4 * abs(height)
    if data_start + data_size > len(content):
        raise _cut_short(name, f"{len(content)} of {data_start + data_size} bytes")
    return Container("BMP", content)


@dataclass(frozen=True)
class _TiffEntry:
    value_at: int  # where an inline value lies in the file
    values: tuple[int, ...]


def _walk_tiff(content: bytes, name: str) -> Container:
    """Check that the strips or tiles of the first page lie in the file; take out what OpenCV reads in its own way."""
    order = "<" if content[:2] == b"II" else ">"
    entries, next_page = _tiff_directory(content, order)
    notes: tuple[str, ...] = ("first page of several used",) if next_page else ()
    for offsets_tag, sizes_tag in ((273, 279), (324, 325)):
        if offsets_tag in entries and sizes_tag in entries:
            parts = zip(entries[offsets_tag].values, entries[sizes_tag].values, strict=False)
            end = max((offset + size for offset, size in parts), default=0)
            if end > len(content):
                raise _cut_short(name, f"{len(content)} of at least {end} bytes")
    photometric, orientation = entries.get(262), entries.get(274)
    payload = bytearray(content)
    if photometric and photometric.values[0] == 5:
        raise ImageError(f"{name}: a TIFF in printing inks (CMYK). Save it as grey or RGB.")
    inverted = photometric is not None and photometric.values[0] == 0
    # OpenCV turns pictures by the orientation whatever the flags, and inverts 8-bit but not 16-bit ones: take both out.
    if photometric and inverted:
        struct.pack_into(f"{order}H", payload, photometric.value_at, 1)
    if orientation and orientation.values[0] in range(2, 9):
        struct.pack_into(f"{order}H", payload, orientation.value_at, 1)
        notes += (f"EXIF orientation {orientation.values[0]} ignored",)
    return Container("TIFF", bytes(payload), notes, inverted)


def _tiff_directory(content: bytes, order: str) -> tuple[dict[int, _TiffEntry], int]:
    """The whole-number entries of the first directory by tag, and the offset of the next directory (0: none)."""
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    word, count_format, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    (start,) = struct.unpack_from(order + word, content, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_format, content, start)
    first = start + struct.calcsize(count_format)
    entries = {}
    for at in range(first, first + count * entry_bytes, entry_bytes):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", content, at)
        value_format = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if value_format is None:
            continue
        value_at = at + 4 + struct.calcsize(word)
        if struct.calcsize(f"{order}{values}{value_format}") > struct.calcsize(word):
            (value_at,) = struct.unpack_from(order + word, content, value_at)
        entries[tag] = _TiffEntry(value_at, struct.unpack_from(f"{order}{values}{value_format}", content, value_at))
    return entries, struct.unpack_from(order + word, content, first + count * entry_bytes)[0]


def _orientation_notes(exif: bytes) -> tuple[str, ...]:
    """A note where an EXIF block (a small TIFF) asks to turn the picture. A broken block asks for nothing."""
    try:
        entries, _ = _tiff_directory(exif, "<" if exif[:2] == b"II" else ">")
        orientation = entries[274].values[0]
    except (struct.error, KeyError, IndexError, OverflowError, MemoryError):
        return ()
    return (f"EXIF orientation {orientation} ignored",) if orientation in range(2, 9) else ()


_WALKS = (
    (re.compile(rb"\xff\xd8\xff"), _walk_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _walk_png),
    (re.compile(rb"BM"), _walk_bmp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _walk_tiff),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _walk_webp),
)
