import contextlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from defectseg.errors import DataError, ImageError
from defectseg.image import read
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import decode_bytes

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


def tiff(data: bytes, size_hw: tuple[int, int], bits: int, *more: tuple[int, int], photometric: int = 1) -> bytes:
    """An uncompressed one-strip TIFF of short and long tags, as in section 2 of the TIFF 6.0 specification."""
    height, width = size_hw
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = sorted({**tags, **dict(more)}.items())
    padded = data + b"\0" * (len(data) % 2)
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", len(entries)) + directory + bytes(4)
    )


def with_exif_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    mark = b"II" if order == "<" else b"MM"
    block = mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_grey_values_come_through_every_lossless_format(suffix: str) -> None:
    decoded = decode_bytes(encoded(suffix, GREY), name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.notes == ()


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_three_equal_channels_are_that_grey(suffix: str) -> None:
    np.testing.assert_array_equal(decode_bytes(encoded(suffix, cv2.merge([GREY] * 3)), name="a").pixels, GREY)


def test_jpeg_is_decoded_as_opencv_reads_grey() -> None:
    content = encoded(".jpg", cv2.merge([GREY, GREY, GREY]))
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(decode_bytes(content, name="a").pixels, expected)


def test_colour_becomes_luma() -> None:
    bgr = np.zeros((1, 3, 3), np.uint8)
    bgr[0, 0, 2] = bgr[0, 1, 1] = bgr[0, 2, 0] = 255  # red, green, blue
    assert decode_bytes(encoded(".png", bgr), name="a").pixels.tolist() == [[76, 150, 29]]  # 0.299, 0.587, 0.114 of 255


def test_alpha_is_dropped_and_noted() -> None:
    bgra = cv2.merge([GREY, GREY, GREY, TEXTURE])
    decoded = decode_bytes(encoded(".png", bgra), name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert decoded.notes == ("alpha dropped",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_full_range_to_full_range_and_noted(suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    decoded = decode_bytes(encoded(suffix, values), name="a")
    assert decoded.pixels.tolist() == [[0, 0, 1, 1, 128, 255]]  # v / 257, rounded
    assert decoded.notes == ("16-bit scaled by 1/257",)


def test_sixteen_bit_colour_with_alpha_is_scaled_too() -> None:
    wide = GREY.astype(np.uint16) * 257
    decoded = decode_bytes(encoded(".png", cv2.merge([wide, wide, wide, wide])), name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert decoded.notes == ("alpha dropped", "16-bit scaled by 1/257")


def test_twelve_bit_data_in_sixteen_bits_are_scaled_alike_and_pointed_out() -> None:
    decoded = decode_bytes(encoded(".png", np.array([[0, 4095]], np.uint16)), name="a")
    assert decoded.pixels.tolist() == [[0, 16]]
    assert "brightest value 4095 of 65535, as from a 12-bit camera" in decoded.notes[0]


@pytest.mark.parametrize("mode", ["1", "P", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_palettes_and_single_bits_decode(mode: str, kind: str) -> None:
    two_tone = np.where(GREY > 127, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode_bytes(encoded_by_pillow(two_tone, kind, mode), name="a").pixels, two_tone)


def test_cmyk_jpeg_decodes_to_about_its_grey() -> None:
    content = encoded_by_pillow(cv2.merge([GREY] * 3), "JPEG", "CMYK", quality=95)
    assert np.abs(decode_bytes(content, name="a").pixels.astype(int) - GREY).mean() < 3


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_ignored_and_noted(orientation: int, order: str) -> None:
    plain = encoded(".jpg", GREY)
    decoded = decode_bytes(with_exif_orientation(plain, orientation, order), name="a")
    np.testing.assert_array_equal(decoded.pixels, decode_bytes(plain, name="a").pixels)
    assert decoded.notes == (f"EXIF orientation {orientation} ignored",)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_upright_and_senseless_exif_orientations_are_not_noted(orientation: int) -> None:
    assert decode_bytes(with_exif_orientation(encoded(".jpg", GREY), orientation), name="a").notes == ()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_orientation_of_other_formats_is_ignored_and_noted(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    decoded = decode_bytes(encoded_by_pillow(GREY, kind, exif=exif, lossless=True), name="a")
    assert decoded.pixels.shape == GREY.shape
    assert decoded.notes == ("EXIF orientation 6 ignored",)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_of_tiff_is_ignored_and_noted(orientation: int) -> None:
    decoded = decode_bytes(tiff(GREY.tobytes(), GREY.shape, 8, (274, orientation)), name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert decoded.notes == (f"EXIF orientation {orientation} ignored",)


def test_tiff_whose_zero_is_white_is_turned_round_in_eight_and_sixteen_bits() -> None:
    eight = tiff(bytes([0, 10, 255]), (1, 3), 8, photometric=0)
    sixteen = tiff(np.array([0, 2570, 65535], "<u2").tobytes(), (1, 3), 16, photometric=0)
    assert decode_bytes(eight, name="a").pixels.tolist() == [[255, 245, 0]]
    assert decode_bytes(sixteen, name="a").pixels.tolist() == [[255, 245, 0]]


def test_first_page_of_several_is_used_and_noted() -> None:
    content = encoded_by_pillow(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(TEXTURE)])
    decoded = decode_bytes(content, name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert decoded.notes == ("first page of several used",)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_used_and_noted(kind: str) -> None:
    content = encoded_by_pillow(GREY, kind, save_all=True, append_images=[Image.fromarray(TEXTURE)], lossless=True)
    decoded = decode_bytes(content, name="a")
    np.testing.assert_array_equal(decoded.pixels, GREY)
    assert "first frame of an animation used" in decoded.notes


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_other_than_eight_and_sixteen_bit_are_refused(dtype: type) -> None:
    with pytest.raises(ImageError, match=r"^a\.tif: holds (float32|int32) values; expected 8 or 16 bit"):
        decode_bytes(encoded_by_pillow(GREY.astype(dtype), "TIFF"), name="a.tif")


def test_cmyk_tiff_is_refused_rather_than_taken_for_alpha() -> None:
    with pytest.raises(ImageError, match="CMYK"):
        decode_bytes(encoded_by_pillow(cv2.merge([GREY] * 3), "TIFF", "CMYK"), name="a.tif")


WHOLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(".jpg", GREY),
    "colour jpeg": lambda: encoded(".jpg", cv2.merge([GREY, TEXTURE, GREY])),
    "progressive jpeg": lambda: encoded(".jpg", GREY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart jpeg": lambda: encoded(".jpg", GREY, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "thumbnail jpeg": lambda: with_thumbnail(encoded(".jpg", GREY)),
    "png": lambda: encoded(".png", GREY),
    "interlaced-size png": lambda: encoded(".png", TEXTURE),
    "bmp": lambda: encoded(".bmp", GREY),
    "colour bmp": lambda: encoded(".bmp", cv2.merge([GREY] * 3)),
    "tiff lzw": lambda: encoded(".tif", GREY),
    "tiff raw": lambda: encoded_by_pillow(GREY, "TIFF"),
    "tiff directory first": lambda: tiff_directory_first(GREY),
    "webp lossless": lambda: encoded(".webp", cv2.merge([GREY] * 3)),
    "webp": lambda: encoded_by_pillow(GREY, "WEBP", quality=80),
    "webp animation": lambda: encoded_by_pillow(
        GREY, "WEBP", save_all=True, append_images=[Image.fromarray(TEXTURE)], lossless=True
    ),
}


def with_thumbnail(jpeg: bytes) -> bytes:
    """The end marker of a small picture in the header must not pass for that of the picture."""
    segment = b"Exif\0\0" + encoded(".jpg", GREY[:16, :16])
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def tiff_directory_first(pixels: NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape
    tags = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        273: 8 + 2 + 9 * 12 + 4,
        277: 1,
        278: height,
        279: width * height,
    }
    directory = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + directory + bytes(4) + pixels.tobytes()


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_decode(kind: str) -> None:
    assert decode_bytes(WHOLE[kind](), name="a").pixels.shape == GREY.shape


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("left", [0.05, 0.3, 0.5, 0.9, 0.99, "all but 10 bytes", "all but the last byte"])
def test_files_cut_short_are_refused(kind: str, left: float | str) -> None:
    content = WHOLE[kind]()
    kept = {"all but 10 bytes": len(content) - 10, "all but the last byte": len(content) - 1}.get(str(left))
    if kept is None:
        kept = int(len(content) * float(left))
    if kind == "tiff raw" and kept == len(content) - 1 and content[-1:] == b"\0":
        pytest.skip("the last byte is padding")
    with pytest.raises(ImageError, match=r"^line1/a: "):
        decode_bytes(content[:kept], name="line1/a")


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp"])
@pytest.mark.parametrize("tail", [b"\0" * 512, b"\r\n", b"\xff\xd8\xff\xd9 another picture"])
def test_bytes_after_the_end_do_not_matter(kind: str, tail: bytes) -> None:
    content = WHOLE[kind]()
    np.testing.assert_array_equal(decode_bytes(content + tail, name="a").pixels, decode_bytes(content, name="a").pixels)


def test_cut_jpeg_whose_tail_became_zeros_is_refused() -> None:
    content = encoded(".jpg", GREY)
    with pytest.raises(ImageError, match="cut short"):
        decode_bytes(content[: len(content) // 2] + bytes(len(content) // 2), name="a")


def test_cut_jpeg_that_was_given_an_end_marker_is_refused() -> None:
    content = encoded(".jpg", cv2.merge([GREY, TEXTURE, GREY]))
    with pytest.raises(ImageError):
        decode_bytes(content[: len(content) // 2] + b"\xff\xd9", name="a")


def test_jpeg_with_an_impossible_marker_in_its_data_is_refused() -> None:
    content = bytearray(encoded(".jpg", GREY))
    middle = len(content) * 3 // 4
    content[middle : middle + 2] = b"\xff\x42"
    with pytest.raises(ImageError, match="damaged"):
        decode_bytes(bytes(content), name="a")


def test_png_with_a_flipped_bit_is_refused() -> None:
    content = bytearray(encoded(".png", GREY))
    content[len(content) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum of its b'IDAT' chunk"):
        decode_bytes(bytes(content), name="a")


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
        (b"GIF89a", "not a JPEG"),
    ],
)
def test_other_files_are_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        decode_bytes(content, name="a")


def test_picture_too_large_for_opencv_is_an_error_of_that_file() -> None:
    content = bytearray(encoded(".bmp", GREY))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    content[30:34] = struct.pack("<I", 1)  # said to be compressed: its size cannot be told from the header
    with pytest.raises(ImageError):
        decode_bytes(bytes(content), name="a")


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_files_give_pixels_or_an_image_error_and_nothing_else(kind: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode_bytes(bytes(content), name="a").pixels.ndim == 2


def test_missing_file_and_folder_are_image_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ImageError, match="cannot be read"):
            read.decode(path)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def ids(found: list[FoundImage]) -> list[str]:
    return [image.image_id for image in found]


def test_images_are_found_by_suffix_in_any_case_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.JPG", "a.jpeg", "c.Tiff", "notes.txt", ".d.jpg", ".cache/e.jpg", "sub/f.webp", "jpg", "g.jpg.part"
    )
    assert ids(find_images([tmp_path])) == ["a.jpeg", "b.JPG", "c.Tiff", "sub/f.webp"]
    assert ids(find_images([tmp_path], recursive=False)) == ["a.jpeg", "b.JPG", "c.Tiff"]


def test_every_image_id_leads_to_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg")
    assert [image.path for image in find_images([tmp_path / "in"])] == [
        tmp_path / "in/a.jpg",
        tmp_path / "in/sub/b.jpg",
    ]


def test_file_given_directly_has_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.jpg")
    assert ids(find_images([tmp_path / "in/b.jpg"])) == ["b.jpg"]


def test_same_file_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.jpg")
    monkeypatch.chdir(tmp_path)
    inputs = [Path("in"), Path("in/a.jpg"), tmp_path / "in", Path("in/../in/b.jpg"), Path("./in/")]
    assert ids(find_images(inputs)) == ["a.jpg", "b.jpg"]


def test_folder_inside_another_input_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    assert ids(find_images([tmp_path, tmp_path / "sub"])) == ["a.jpg", "sub/b.jpg"]


def test_folder_names_tell_clashing_inputs_apart(tmp_path: Path) -> None:
    touch(tmp_path, "north/a.jpg", "south/a.jpg", "south/b.jpg", "west/c.jpg")
    found = find_images([tmp_path / "north", tmp_path / "south", tmp_path / "west"])
    assert ids(found) == ["c.jpg", "north/a.jpg", "south/a.jpg", "south/b.jpg"]


def test_more_parents_tell_inputs_of_the_same_name_apart(tmp_path: Path) -> None:
    touch(tmp_path, "monday/line1/a.jpg", "tuesday/line1/a.jpg")
    found = find_images([tmp_path / "monday/line1", tmp_path / "tuesday/line1"])
    assert ids(found) == ["monday/line1/a.jpg", "tuesday/line1/a.jpg"]
    assert [image.path.parent.parent.name for image in found] == ["monday", "tuesday"]


def test_files_given_directly_are_told_apart_too(tmp_path: Path) -> None:
    touch(tmp_path, "north/a.jpg", "south/a.jpg")
    assert ids(find_images([tmp_path / "north/a.jpg", tmp_path / "south/a.jpg"])) == ["north/a.jpg", "south/a.jpg"]


def test_prefix_that_meets_a_real_subfolder_grows(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/north/a.jpg", "y/north/a.jpg")
    found = find_images([tmp_path / "y/north", tmp_path / "x"])
    assert len(set(ids(found))) == 3
    assert {image.path.relative_to(tmp_path).as_posix() for image in found} == {
        "x/a.jpg",
        "x/north/a.jpg",
        "y/north/a.jpg",
    }


def test_output_folder_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/overlays/a.jpg", "output/b.jpg")
    assert ids(find_images([tmp_path], skip=tmp_path / "out")) == ["a.jpg", "output/b.jpg"]
    assert ids(find_images([tmp_path / "a.jpg", tmp_path / "out/overlays/a.jpg"], skip=tmp_path / "out")) == ["a.jpg"]


def test_loops_of_links_end_and_each_folder_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/z/a.jpg")
    (tmp_path / "in/z/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/also").symlink_to(tmp_path / "in/z")
    assert ids(find_images([tmp_path / "in"])) == ["z/a.jpg"]


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.jpg", "store/b.jpg", "in/c.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "store")
    (tmp_path / "in/d.jpg").symlink_to(tmp_path / "store/a.jpg")
    assert ids(find_images([tmp_path / "in"])) == ["c.jpg", "d.jpg", "linked/a.jpg", "linked/b.jpg"]


def test_broken_link_is_listed_so_that_it_gets_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (found,) = find_images([tmp_path])
    with pytest.raises(ImageError):
        read.decode(found.path)


def test_inputs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"none\.jpg: no such file or folder"):
        find_images([tmp_path / "none.jpg"])
    with pytest.raises(DataError, match=r"notes.txt: not an image by its name; expected .*\.jpeg"):
        find_images([tmp_path / "notes.txt"])
    with pytest.raises(DataError, match=r"No image in .*end in \.bmp, \.jpeg, \.jpg"):
        find_images([tmp_path])


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
@pytest.mark.parametrize("name", [b"a\\b.jpg", b"a\nb.jpg", b"a\xff.jpg"])
def test_file_names_that_cannot_be_an_image_id_are_refused(tmp_path: Path, name: bytes) -> None:
    try:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system refuses the name")
    with pytest.raises(DataError, match="Rename it"):
        find_images([tmp_path])


def test_many_inputs_take_linear_time(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number % 50}/{number}.jpg" for number in range(3000)))
    files = [tmp_path / f"{number % 50}/{number}.jpg" for number in range(3000)]
    assert len(find_images([tmp_path, *files])) == 3000
