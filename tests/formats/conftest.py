"""Builders of small images and data folders."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.image import rle


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Writes pixels, or a grey image of rows x columns, and the folders around it."""

    def write(path: Path, pixels: Any = (4, 6)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full(pixels, 90, np.uint8) if isinstance(pixels, tuple) else np.asarray(pixels, np.uint8)
        assert cv2.imwrite(str(path), array)
        return path

    return write


@pytest.fixture(scope="session")
def make_folder(write_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a data folder. Masks are bool arrays, or texts of rows such as "#../##."; images without one are 3 x 4."""

    def make(root: Path, labels: Mapping[str, Mapping[int, Any]], names: tuple[str, ...] = ("crack", "dent")) -> Path:
        rows: list[Any] = [("ImageId", "ClassId", "EncodedPixels")]
        for image_id, by_class in labels.items():
            size_hw = (3, 4)
            for class_id, given in by_class.items():
                mask = np.array([list(row) for row in given.split("/")]) == "#" if isinstance(given, str) else given
                size_hw = mask.shape
                rows.append((image_id, class_id, rle.encode(mask)))
            write_image(root / "train_images" / image_id, size_hw)
        with (root / "train.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        return root

    return make
