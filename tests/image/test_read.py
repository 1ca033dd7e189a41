import contextlib
import io
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import DOUBLE, SHORT

from defectseg.errors import ImageError
from defectseg.image.limits import MAX_PIXELS, allow_pixels
from defectseg.image.read import (
    bit_depth_warnings,
    decode_bytes,
    decode_small,
    is_blank,
    read_size,
    to_grey,
)
from defectseg.image.whole import png_chunks

TEXTURE = np.random.default_rng(1).integers(0, 256, (64, 160)).astype(np.uint8)
GREY = cv2.GaussianBlur(TEXTURE, (0, 0), 2).reshape(64, 160).astype(np.uint8)
LOSSLESS = (".png", ".bmp", ".tif", ".webp")


def encoded(suffix: str, pixels: NDArray[Any], *parameters: int) -> bytes:
    if suffix == ".webp":
        parameters = (cv2.IMWRITE_WEBP_QUALITY, 101)  # above 100: lossless
    done, content = cv2.imencode(suffix, pixels, parameters)
    assert done
    return content.tobytes()


def encoded_by_pillow(pixels: NDArray[Any], kind: str, mode: str | None = None, **options: Any) -> bytes:
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: NDArray[Any], tags: dict[int, Any]) -> bytes:
    """An uncompressed TIFF; tag 274 is the orientation, 262 where 0 means white."""
    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory.tagtype[tag] = DOUBLE if isinstance(value, float) else SHORT
        directory[tag] = value
    return encoded_by_pillow(pixels, "TIFF", tiffinfo=directory)


def patched(content: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """Other bytes at so many after the start of a mark."""
    at = content.index(mark) + offset
    return content[:at] + new + content[at + len(new) :]


def with_segment(jpeg: bytes, body: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with a segment ahead of its others."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def test_jpeg_is_decoded_as_opencv_reads_grey() -> None:
    content = encoded(".jpg", cv2.merge([GREY, GREY, GREY]))
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(decode_bytes(content, name="a").pixels, expected)


COLOURS = cv2.merge([GREY] * 3)
TWO_TONE = np.where(GREY > 127, 255, 0).astype(np.uint8)
RED_GREEN_BLUE = np.array([[[0, 0, 255], [0, 255, 0], [255, 0, 0]]], np.uint8)
SIXTEEN = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
SCALED = "16-bit scaled by 1/257"
ANIMATION: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(TEXTURE)], "lossless": True}
TURNED = Image.Exif()
TURNED[274] = 6


@pytest.mark.parametrize(
    ("content", "expected", "notes"),
    [
        *((encoded(suffix, pixels), GREY, ()) for suffix in LOSSLESS for pixels in (GREY, COLOURS)),
        *((encoded_by_pillow(GREY, kind), GREY, ()) for kind in ("GIF", "JPEG2000")),
        *((encoded_by_pillow(TWO_TONE, kind, mode), TWO_TONE, ()) for kind in ("PNG", "TIFF") for mode in ("1", "P")),
        (encoded(".png", RED_GREEN_BLUE), [[76, 150, 29]], ()),  # 0.299, 0.587, 0.114 of 255
        (encoded_by_pillow(COLOURS, "JPEG", "CMYK", quality=95), GREY, ()),
        *((encoded(".avif", COLOURS.astype(np.uint16) << bits - 8, cv2.IMWRITE_AVIF_DEPTH, bits), GREY, ())
          for bits in (10, 12)),
        (encoded(".png", cv2.merge([GREY, GREY, GREY, TEXTURE])), GREY, ("alpha dropped",)),
        (encoded_by_pillow(GREY, "PNG", "LA"), GREY, ("alpha dropped",)),
        (encoded(".png", cv2.merge([GREY.astype(np.uint16) * 257] * 4)), GREY, ("alpha dropped", SCALED)),
        *((encoded(suffix, SIXTEEN), [[0, 0, 1, 1, 128, 255]], (SCALED,)) for suffix in (".png", ".tif")),
        (encoded(".png", SIXTEEN[:, :4] * 15), [[0, 7, 8, 15]], (f"{SCALED}; brightest value 3855 of 65535",)),
        (tiff(GREY, {262: 0}), GREY, ()),  # where 0 is white; Pillow stores 8 bits so
        (tiff(SIXTEEN, {262: 0}), [[255, 255, 254, 254, 127, 0]], (SCALED,)),
        *((encoded_by_pillow(GREY, kind, exif=TURNED, lossless=True), GREY, ("EXIF orientation 6 ignored",))
          for kind in ("PNG", "WEBP", "AVIF")),
        *((encoded_by_pillow(GREY, kind, **ANIMATION), GREY, ("first frame of an animation used",))
          for kind in ("PNG", "GIF", "AVIF")),
        (encoded_by_pillow(GREY, "WEBP", **ANIMATION), GREY, ("first frame of an animation used", "alpha dropped")),
        (encoded_by_pillow(GREY, "TIFF", **ANIMATION), GREY, ("first page of several used",)),
    ],
)  # fmt: skip
def test_pixels_become_grey_and_what_was_changed_is_noted(content: bytes, expected: Any, notes: tuple[str]) -> None:
    decoded = decode_bytes(content, name="a")
    is_lossy = content.startswith(b"\xff\xd8") or content[4:8] == b"ftyp"
    assert decoded.pixels.shape == np.shape(expected)
    assert np.abs(decoded.pixels.astype(int) - expected).mean() <= (3 if is_lossy else 0)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.notes == notes


@pytest.mark.parametrize("bits", range(9, 17))
def test_every_value_of_every_bit_depth_is_scaled_to_the_nearest_grey_level(bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint16)
    decoded = to_grey(values[None], "a", bit_depth=bits)
    nearest = [(510 * value + 2**bits - 1) // (2 * (2**bits - 1)) for value in range(2**bits)]  # no value lies halfway
    assert decoded.pixels[0].tolist() == nearest
    assert (decoded.bit_depth, decoded.brightest16) == (bits, None)


LARGEST_12 = np.array([[0, 1023, 2048, 4095]], np.uint16)


def tagged(tags: dict[int, Any] = {}) -> bytes:  # noqa: B006
    return tiff(LARGEST_12, tags)


@pytest.mark.parametrize(
    ("content", "bit_depth", "model_bit_depth", "brightest"),
    [
        (tagged(), None, None, 16),
        (tagged(), 12, None, 255),
        (tagged(), None, 12, 255),
        (tagged(), 14, 12, 64),
        (tagged({281: 4095}), None, None, 255),
        (tagged({341: 4095}), None, None, 255),
        (tagged({281: 4095}), 13, 14, 127),  # what is given goes before the tag,
        (tagged({281: 4095}), None, 14, 255),  # and the tag before the model
        (tagged({281: 65535}), None, 12, 16),
        (tagged({281: 3000, 341: 4095}), None, None, 255),
        (tagged({281: 3000}), None, None, 16),  # the brightest value of a picture is no bit depth
        (encoded(".png", LARGEST_12), 12, None, 255),
        (encoded(".png", np.array([[0, 77, 255]], np.uint8)), 12, 12, 255),  # 8-bit files are left alone
    ],
)
def test_bits_are_those_given_or_of_the_files_tag_or_of_the_model(
    content: bytes, bit_depth: int | None, model_bit_depth: int | None, brightest: int
) -> None:
    decoded = decode_bytes(content, name="a", bit_depth=bit_depth, model_bit_depth=model_bit_depth)
    assert decoded.pixels.max() == brightest
    assert decoded.brightest16 == (4095 if brightest == 16 else None)


def test_bits_are_told_by_a_floating_point_tag_in_any_byte_order_and_scaled_before_zero_becomes_white() -> None:
    content = tiff(LARGEST_12.astype(">u2"), {341: 4095.0, 262: 0})
    assert content.startswith(b"MM")
    assert decode_bytes(content, name="a").pixels.tolist() == [[255, 191, 127, 0]]


def test_values_of_a_tiff_that_packs_twelve_bits_fill_the_range_whatever_is_said() -> None:
    packed = np.frombuffer(bytes.fromhex("0003ff800fff"), np.uint8)[None]
    content = tiff(packed, {281: 4095})
    for tag, before, after in ((256, 6, 4), (258, 8, 12)):  # width, bits
        pattern = re.compile(struct.pack("<H", tag) + b"..\1\0\0\0" + struct.pack("<H", before), re.DOTALL)
        entry = pattern.search(content)
        assert entry is not None
        content = content.replace(entry[0], entry[0][:8] + struct.pack("<H", after))
    for bit_depth in (None, 12):
        decoded = decode_bytes(content, name="a", bit_depth=bit_depth, model_bit_depth=12)
        assert decoded.pixels.tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize("said", [{"bit_depth": 10}, {"model_bit_depth": 11}])
def test_a_value_beyond_the_bit_depth_is_refused_and_alpha_does_not_count(said: dict[str, int]) -> None:
    with pytest.raises(ImageError, match=r"^a: holds the value 4095, .* (10|11) bits"):
        decode_bytes(tagged(), name="a", **said)
    colour = np.full((1, 1, 4), 1000, np.uint16)
    colour[..., 3] = 65535
    assert decode_bytes(encoded(".png", colour), name="a", **said).pixels.max() > 100
    colour[..., 1] = 3000
    with pytest.raises(ImageError, match="the value 3000"):
        decode_bytes(encoded(".png", colour), name="a", **said)


@pytest.mark.parametrize(
    ("brightest", "expected"),
    [
        ({}, []),
        ({None: 9}, []),  # 8-bit files, and those whose bit depth is known
        ({255: 3}, []),
        ({16384: 1}, []),
        ({16383: 1}, [(1, 1, 14)]),
        ({1023: 2, 1000: 1}, [(3, 3, 10)]),
        ({900: 2, 3000: 1, 40: 5}, [(3, 3, 12)]),
        ({12000: 1, 60000: 1}, []),  # a dark picture among others
        ({4095: 4, 65535: 3}, [(4, 7, 12)]),
    ],
)
def test_low_bit_depth_is_seen(brightest: dict[int | None, int], expected: list[tuple[int, int, int]]) -> None:
    warnings = bit_depth_warnings(brightest)
    assert [
        tuple(map(int, re.findall(r"^(\d+) of (\d+) .*bit_depth=(\d+);", text)[0])) for text in warnings
    ] == expected


@pytest.mark.parametrize(
    ("levels", "blank"),
    [
        ([7, 9] * 100, True),
        ([20, 23] * 100, False),
        ([0] * 199 + [255], True),
        ([0] * 198 + [255] * 2, False),
        ([16] * 190 + [0] * 9 + [255], True),
        ([17] * 199 + [0], False),
    ],
)
def test_a_picture_is_blank_where_its_levels_span_little_or_nearly_all_are_dark(levels: list[int], blank: bool) -> None:
    assert is_blank(np.array(levels, np.uint8).reshape(10, 20)) is blank


def test_jpeg_2000_of_twelve_bits_is_scaled_from_these() -> None:
    twelve = np.array([[0, 16, 2048, 4095]], np.uint16)
    # A file of 16 bits, but for what its headers say: values are stored minus half of their range (ISO 15444-1, G.1).
    content = patched(encoded_by_pillow(twelve + 2**15 - 2**11, "JPEG2000"), b"ihdr", 14, b"\x0b")
    content = patched(content, b"\xff\x4f\xff\x51", 42, b"\x0b")
    assert decode_bytes(content, name="a").pixels.tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_ignored_and_noted_where_it_says_something(orientation: int, order: str) -> None:
    notes = (f"EXIF orientation {orientation} ignored",) if 2 <= orientation <= 8 else ()
    plain = encoded(".jpg", GREY)
    exif = struct.pack(f"{order}2sHIHHHIHHI", b"II" if order == "<" else b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
    decoded = decode_bytes(with_segment(plain, b"Exif\0\0" + exif), name="a")
    np.testing.assert_array_equal(decoded.pixels, decode_bytes(plain, name="a").pixels)
    assert decoded.notes == notes
    oriented = decode_bytes(tiff(GREY, {274: orientation}), name="a")
    np.testing.assert_array_equal(oriented.pixels, GREY)
    assert oriented.notes == notes


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def animated_png(*frames: tuple[int, int, int, int], count: int = 2, shown: NDArray[np.uint8] = GREY) -> bytes:
    """A PNG of the size of GREY that holds `shown` as its picture, and frames (width, height, left, top) with data."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in shown))
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", 160, 64, 8, 0, 0, 0, 0))]
    chunks.append(png_chunk(b"acTL", struct.pack(">II", count, 0)))
    for number, frame in enumerate(frames):
        chunks.append(png_chunk(b"fcTL", struct.pack(">5IHHBB", max(0, 2 * number - 1), *frame, 1, 10, 0, 0)))
        body = struct.pack(">I", 2 * number) + rows if number else rows
        chunks.append(png_chunk(b"fdAT" if number else b"IDAT", body))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


WHOLE_FRAME = (160, 64, 0, 0)


@pytest.mark.parametrize(
    "frame",
    [(0, 0, 0, 0), (1, 1, 0, 0), (1600, 640, 0, 0), (160, 64, 1, 1), (160, 64, 2**31, 2**32 - 1), (2**31, 2**31, 0, 0)],
)
@pytest.mark.parametrize("count", [0, 1, 2**31 - 1])
def test_the_picture_of_an_animated_png_is_read(frame: tuple[int, int, int, int], count: int) -> None:
    for content in (animated_png(frame, frame, count=count), animated_png(WHOLE_FRAME, frame, frame, count=count)):
        np.testing.assert_array_equal(decode_bytes(content, name="a").pixels, GREY)


def test_animation_that_crashes_opencv_5_is_read_as_a_picture() -> None:
    """Its picture is no part of the animation, and its only frame has no data: a signal used to end the process."""
    content = animated_png(WHOLE_FRAME, WHOLE_FRAME)
    (header, actl, _, picture, frame, _, end) = [
        png_chunk(kind, content[start : start + length]) for kind, start, length in png_chunks(content)
    ]
    crashing = content[:8] + header + actl + picture + frame + png_chunk(b"fdAT", b"") + end
    np.testing.assert_array_equal(decode_bytes(crashing, name="a").pixels, GREY)


WHOLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(".jpg", GREY),
    "colour jpeg": lambda: encoded(".jpg", cv2.merge([GREY, TEXTURE, GREY])),
    "progressive jpeg": lambda: encoded(".jpg", GREY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart jpeg": lambda: encoded(".jpg", GREY, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    # The end marker of a small picture in the header must not pass for that of the picture.
    "thumbnail jpeg": lambda: with_segment(encoded(".jpg", GREY), b"Exif\0\0" + encoded(".jpg", GREY[:16, :16])),
    "png": lambda: encoded(".png", GREY),
    "bmp": lambda: encoded(".bmp", GREY),
    "colour bmp": lambda: encoded(".bmp", COLOURS),
    "tiff lzw": lambda: encoded(".tif", GREY),
    "tiff raw": lambda: encoded_by_pillow(GREY, "TIFF"),
    "webp lossless": lambda: encoded(".webp", COLOURS),
    "webp": lambda: encoded_by_pillow(GREY, "WEBP", quality=80),
    "webp animation": lambda: encoded_by_pillow(GREY, "WEBP", **ANIMATION),
    "gif": lambda: encoded_by_pillow(GREY, "GIF"),
    "gif animation": lambda: encoded_by_pillow(GREY, "GIF", **ANIMATION),
    "avif": lambda: encoded_by_pillow(GREY, "AVIF", quality=80),
    "jpeg 2000": lambda: encoded_by_pillow(GREY, "JPEG2000", tile_size=(32, 32)),
    "jpeg 2000 codestream": lambda: encoded_by_pillow(GREY, "JPEG2000", no_jp2=True),
    "png animation": lambda: animated_png(WHOLE_FRAME, (80, 32, 8, 8)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_files_cut_short_are_refused(kind: str) -> None:
    content = WHOLE[kind]()
    for kept in (*(int(len(content) * share) for share in (0.05, 0.3, 0.5, 0.9, 0.99)), -10, -1):
        with pytest.raises(ImageError, match=r"^line1/a: "):
            decode_bytes(content[:kept], name="line1/a")
    if kind in ("jpeg", "gif", "avif", "jpeg 2000", "jpeg 2000 codestream", "tiff lzw"):  # or the tail became zeros
        with pytest.raises(ImageError, match=r"cut short|cannot be decoded"):
            decode_bytes(content[: len(content) // 2] + bytes(len(content) // 2), name="a")


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp"])
@pytest.mark.parametrize("tail", [b"\0" * 512, b"\r\n", b"\xff\xd8\xff\xd9 another picture"])
def test_bytes_after_the_end_do_not_matter(kind: str, tail: bytes) -> None:
    content = WHOLE[kind]()
    np.testing.assert_array_equal(decode_bytes(content + tail, name="a").pixels, decode_bytes(content, name="a").pixels)


JPEG, COLOUR_JPEG, PNG = WHOLE["jpeg"](), WHOLE["colour jpeg"](), WHOLE["png"]()
HUGE = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 23_000, 23_000, 16, 6, 0, 0, 0))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "begins with b'<!DOCTYP'"),
        (b"\xff\xd8\xff", "cut short"),
        (b"BM", "header ends early"),
        (b"II*\0", "header ends early"),
        (b"RIFF\x04\0\0\0WEBP", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "end chunk"),
        (b"GIF89a", "header ends early"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "not a JPEG"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**64 - 1), "header ends early"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 2**64 - 1, 1), "header ends early"),
        (b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 2**63), "header ends early"),
        (encoded_by_pillow(GREY.astype(np.float32), "TIFF"), "^a: holds float32 values; expected 8 or 16 bit"),
        (encoded_by_pillow(GREY.astype(np.int32), "TIFF"), "^a: holds int32 values; expected 8 or 16 bit"),
        (encoded_by_pillow(COLOURS, "TIFF", "CMYK"), "CMYK"),  # not taken for alpha
        (patched(encoded_by_pillow(GREY, "JPEG2000"), b"\xff\x4f\xff\x51", 42, b"\x87"), "8 or 16 bit"),
        (patched(encoded_by_pillow(GREY, "JPEG2000"), b"\xff\x4f\xff\x51", 42, b"\x10"), "8 or 16 bit"),
        (patched(encoded(".bmp", GREY), b"BM", 18, struct.pack("<ii", 2**21, 16)), "Cut it into smaller ones"),
        (PNG[:8] + HUGE + png_chunk(b"IDAT", zlib.compress(bytes(10**6))) + PNG[-12:], "529,000,000.*268,435,456"),
        (animated_png(WHOLE_FRAME, WHOLE_FRAME, shown=GREY[:20]), "cannot be decoded"),
        (COLOUR_JPEG[: len(COLOUR_JPEG) // 2] + b"\xff\xd9", "^a: "),  # an end marker, put there
        (JPEG[: -len(JPEG) // 4] + b"\xff\x42" + JPEG[2 - len(JPEG) // 4 :], "damaged"),
        (PNG[:-30] + bytes([PNG[-30] ^ 1]) + PNG[-29:], "checksum of its b'IDAT' chunk"),
    ],
)
def test_other_files_are_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        decode_bytes(content, name="a")


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    yield allow_pixels
    allow_pixels(MAX_PIXELS)


@pytest.mark.parametrize("kind", WHOLE)
def test_more_pixels_than_allowed_are_refused_by_the_header(kind: str, limit: Callable[[int], None]) -> None:
    content = WHOLE[kind]()
    limit(64 * 160 - 1)
    with pytest.raises(ImageError, match=r"^line1/a: 160 x 64 px are 10,240.*; .* 10,239 ") as refused:
        decode_bytes(content, name="line1/a")
    way_on = int(str(refused.value.go_on["max_pixels"]))
    assert way_on >= 64 * 160
    limit(way_on)
    assert decode_bytes(content, name="line1/a").pixels.shape == GREY.shape


def constant(suffix: str, *channels: int, bits: int = 8, side_px: int = 256, **options: Any) -> bytes:
    if not options:
        return encoded(suffix, np.full((side_px, side_px, *channels), 90, np.uint16 if bits == 16 else np.uint8))
    pixels = np.full((side_px, side_px, *channels), 90, np.uint8)
    return encoded_by_pillow(pixels, {".jpg": "JPEG", ".jp2": "JPEG2000"}[suffix], **options)


@pytest.mark.parametrize(
    ("content", "bytes_per_px"),  # as VmHWM grew when images of 4096 x 4096 px were decoded to grey
    [
        (constant(".png"), 2.2),
        (constant(".png", bits=16), 4.2),
        (constant(".png", 3), 6.2),
        (constant(".png", 4), 8.2),
        (constant(".png", 3, bits=16), 12.2),
        (constant(".tif", 4, bits=16), 16.2),
        (constant(".webp", 4), 8.3),
        (constant(".jp2", 3), 15.5),
        (constant(".jp2", codeblock_size=(4, 4)), 31.6),
        (constant(".jpg", 3), 2.2),
        (constant(".jpg", 3, progressive=True), 7.2),
    ],
)
def test_an_image_counts_as_many_pixels_as_it_takes_memory(
    content: bytes, bytes_per_px: float, limit: Callable[[int], None]
) -> None:
    counted = max(1, bytes_per_px / 6.4) * 256**2
    limit(int(counted) - 1)
    with pytest.raises(ImageError, match="to save memory"):
        decode_bytes(content, name="a")
    limit(int((6.5 if bytes_per_px > 20 else 1.5) * counted))
    assert decode_bytes(content, name="a").pixels.shape == (256, 256)


def test_precincts_of_jpeg_2000_that_are_halved_with_the_resolution_count_little(limit: Callable[[int], None]) -> None:
    content = constant(".jp2", precinct_size=(64, 64))
    limit(3 * 256**2)
    assert decode_bytes(content, name="a").pixels.shape == (256, 256)


def test_a_jpeg_of_many_scans_is_refused_before_each_is_decoded() -> None:
    content = constant(".jpg", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    assert decode_bytes(content[:-2] + 50 * last + b"\xff\xd9", name="a").pixels.shape == (256, 256)
    with pytest.raises(ImageError, match=r"^a: has 20,0\d\d scans; .*Save it again"):
        decode_bytes(content[:-2] + 20_000 * last + b"\xff\xd9", name="a")


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_files_give_pixels_or_an_image_error_and_nothing_else(kind: str) -> None:
    whole = WHOLE[kind]()
    rng = random.Random(kind)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at, width = rng.randrange(min(len(content), rng.choice([64, 400, 10**6]))), rng.choice([1, 1, 2, 4, 8])
            values = [0, 1, 2**31, rng.randrange(2**64), len(content), 2**64 - 1]
            content[at : at + width] = (rng.choice(values) % 256**width).to_bytes(width, rng.choice(["little", "big"]))
            if rng.random() < 0.1:
                del content[at : at + rng.randrange(40)]
        if "png" in kind:
            content[8:] = b"".join(
                png_chunk(chunk, bytes(content[start : start + length]))
                for chunk, start, length in png_chunks(bytes(content))
            )
        with contextlib.suppress(ImageError):
            assert decode_bytes(bytes(content), name="a").pixels.ndim == 2


def test_pillow_is_loaded_for_neither_jpeg_nor_png(tmp_path: Path) -> None:
    for kind, suffix in (("jpeg", ".jpg"), ("png", ".png"), ("bmp", ".bmp")):
        (tmp_path / f"a{suffix}").write_bytes(WHOLE[kind]())
    code = (
        "import sys; from pathlib import Path; from defectseg.image.read import decode, read_size\n"
        "for path in map(Path, ('a.jpg', 'a.png', 'a.bmp')): decode(path); read_size(path); print('PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


@pytest.mark.parametrize("kind", ["bmp", "webp", "gif", "avif", "tiff lzw"])
def test_limit_of_pillow_neither_counts_nor_changes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_bytes(WHOLE[kind](), name="a").pixels.shape == GREY.shape
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("big", [False, True])
def test_tags_of_a_tiff_that_share_their_bytes_are_refused_before_they_are_read(
    big: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, values = ("<HHQQ", 1000) if big else ("<HHII", 1000)
    tags = [(256, 4, 1, 160), (257, 4, 1, 64), *((40_000 + number, 1, values, 16) for number in range(50))]
    directory = b"".join(struct.pack(entry, *tag) for tag in tags)
    start = 16 + values
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", start) if big else b"II*\0" + struct.pack("<I", start) + bytes(8)
    count = struct.pack("<Q" if big else "<H", len(tags))
    path = tmp_path / "a.tif"
    path.write_bytes(head + bytes(values) + count + directory + bytes(8))
    monkeypatch.setattr(ImageFileDirectory_v2, "load", lambda *_: pytest.fail("was read"))
    with pytest.raises(ImageError, match=r"a\.tif: cannot be decoded; its header"):
        read_size(path)
    with pytest.raises(ImageError, match=r"a\.tif: cannot be decoded; its header"):
        decode_bytes(path.read_bytes(), name=str(path))


def test_tiff_tags_that_pillow_warns_of_do_not_matter() -> None:
    content = tiff(GREY, {274: 1})
    at = content.index(struct.pack("<HHI", 274, 3, 1))
    doubled = content[:at] + struct.pack("<HHIHH", 274, 3, 2, 1, 1) + content[at + 12 :]  # an orientation too many
    np.testing.assert_array_equal(decode_bytes(doubled, name="a").pixels, GREY)


@pytest.mark.parametrize("marker", [0xE2, 0xC4, 0xC8, 0xCC], ids=hex)
@pytest.mark.parametrize("repeats", [1, 100])
def test_the_size_of_a_jpeg_is_not_that_of_something_ahead(tmp_path: Path, marker: int, repeats: int) -> None:
    inner, outer = encoded(".jpg", TEXTURE[:40, :40]), encoded(".jpg", GREY)
    for _ in range(repeats):
        outer = with_segment(outer, inner, marker)
    (tmp_path / "a").write_bytes(outer)
    assert read_size(tmp_path / "a") == (64, 160)


@pytest.mark.parametrize("kind", WHOLE)
def test_size_is_rows_then_columns_and_needs_a_whole_header(tmp_path: Path, kind: str) -> None:
    content = WHOLE[kind]()
    needs_no_picture_data = kind in ("jpeg", "png", "bmp", "gif", "jpeg 2000")
    (tmp_path / "a").write_bytes(content[: len(content) // 2] if needs_no_picture_data else content)
    assert read_size(tmp_path / "a") == (64, 160)
    for length in (0, 1, 7, 12, 20):
        (tmp_path / "a").write_bytes(content[:length])
        with pytest.raises(ImageError, match=f"^{tmp_path / 'a'}: "):
            read_size(tmp_path / "a")


def test_a_jpeg_to_look_at_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg", GREY))
    for sides, size_hw in {(8, 20): (8, 20), (8, 21): (16, 40), (9, 20): (16, 40), (33, 20): (64, 160)}.items():
        assert decode_small(tmp_path / "a.jpg", shorter_px=sides[0], longer_px=sides[1]).shape == size_hw
    assert decode_small(tmp_path / "a.jpg", shorter_px=8, longer_px=161).shape == (8, 20), "it never was that long"
