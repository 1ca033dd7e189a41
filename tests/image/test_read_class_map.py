"""Mask images as the numbers in them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from defectseg.errors import ImageError
from defectseg.image.read import read_class_map

NUMBERS = np.array([[0, 1, 2, 3], [3, 2, 1, 255]], np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_class_map_holds_the_same_numbers_in_every_format(tmp_path: Path, suffix: str, channels: int) -> None:
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), NUMBERS if channels == 1 else cv2.merge([NUMBERS] * channels))
    np.testing.assert_array_equal(read_class_map(path), NUMBERS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_coloured_palette_gives_its_indices(tmp_path: Path, bits: int) -> None:
    picture = Image.fromarray(NUMBERS % 4).convert("L")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_class_map(tmp_path / "a.png"), NUMBERS % 4)


def test_grey_palette_gives_its_greys_since_savers_reorder_them(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    picture.putpalette([2, 2, 2, 0, 0, 0, 1, 1, 1])
    picture.save(tmp_path / "a.png")
    assert read_class_map(tmp_path / "a.png").tolist() == [[2, 0, 1]]


def test_sixteen_bit_class_map_is_read_while_its_numbers_fit(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), NUMBERS.astype(np.uint16))
    np.testing.assert_array_equal(read_class_map(tmp_path / "a.png"), NUMBERS)
    cv2.imwrite(str(tmp_path / "b.png"), NUMBERS.astype(np.uint16) + 1)
    with pytest.raises(ImageError, match="values up to 256; expected class numbers, 0 to 255"):
        read_class_map(tmp_path / "b.png")


def test_coloured_masks_and_jpegs_under_the_name_of_png_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[[0, 0, 255], [0, 0, 0]]], np.uint8))
    with pytest.raises(ImageError, match="a coloured mask"):
        read_class_map(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.jpg"), NUMBERS)
    with pytest.raises(ImageError, match="a mask in JPEG"):
        read_class_map((tmp_path / "b.jpg").rename(tmp_path / "b.png"))
