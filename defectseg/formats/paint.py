"""The masks of one image, painted shape by shape, and the image itself, placed in the data folder."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import DataError
from defectseg.formats.classes import SOUND_CLASS_ID, Classes
from defectseg.formats.common import place_image, stem_of, write_png
from defectseg.formats.labels import Box, Choices, Part
from defectseg.formats.locate import Placed
from defectseg.formats.losses import Tally
from defectseg.image import read, rle

_ROUNDING_PX = 0.01  # 0.3 of 10 px may be 2.9999 px


class Canvas:
    """The masks of one image, painted annotation by annotation.

    Args:
        size_hw: height and width of the image in pixels.
        tally: receives what is lost.
    """

    def __init__(self, size_hw: tuple[int, int], tally: Tally) -> None:
        self.size_hw = size_hw
        self._tally = tally
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._boxes = np.zeros(size_hw, np.bool_)
        self.missed: list[str] = []

    def add_mask(self, class_id: int, mask: NDArray[np.bool_], *, example: str) -> None:
        """Unite a mask, bool (H, W), with the earlier ones of its class. The canvas keeps the array."""
        if not mask.any():
            self._tally.add("no_pixel", example=example)
            self.missed.append(example)
        elif class_id in self._masks:
            self._masks[class_id] |= mask
            self._tally.add("united")
        else:
            self._masks[class_id] = mask

    def erase(self, hole: NDArray[np.bool_]) -> None:
        """Take pixels, bool (H, W), out of the masks so far."""
        for mask in self._masks.values():
            mask &= ~hole

    def add_box(self, left: float, top: float, width: float, height: float, *, example: str) -> None:
        """Mark a box, in pixels, that holds a defect of unknown shape."""
        self._tally.add("boxes", example=example)
        first = np.floor(np.array([top, left]) + _ROUNDING_PX).astype(int).clip(0)
        end = np.ceil(np.array([top + height, left + width]) - _ROUNDING_PX).astype(int).clip(0)
        rows, columns = slice(first[0], end[0]), slice(first[1], end[1])
        self._boxes[rows, columns] = True

    def masks(self) -> dict[int, NDArray[np.bool_]]:
        """ClassId -> mask, bool (H, W), by ClassId. Pixels in boxes are ignored unless a mask covers them."""
        masks = {class_id: mask for class_id, mask in self._masks.items() if mask.any()}
        for mask in self._masks.values():
            self._boxes &= ~mask
        if self._boxes.any():
            masks[IGNORE_CLASS_ID] = self._boxes | masks.get(IGNORE_CLASS_ID, False)
        return dict(sorted(masks.items()))


@dataclass(frozen=True)
class Painted:
    """The masks of one image, and what was counted on the way."""

    image_id: str
    part: Part
    labels: dict[int, str]
    px: Counter[int]
    regions: Counter[int]
    doubtful_px: int
    tally: Tally


def paint(placed: Placed, classes: Classes, choices: Choices, folder: Path, *, link: bool) -> Painted:
    """Place an image in a folder, turned if that is asked for, and paint its masks.

    Raises:
        ImageError: the image is not whole.
        LabelError: a shape is not valid.
        DataError: the labels are for another size, or it is not known how the image was turned.
    """
    record, tally = placed.record, Tally()
    image_id, size_hw = _place(placed, choices, folder, tally, link=link)
    if record.size_hw is not None and record.size_hw != size_hw:
        height, width = record.size_hw
        raise DataError(
            f"{record.where}: the labels are for {width}x{height} px, but {placed.path} has {size_hw[1]}x{size_hw[0]}. "
            "Use the images that the labels were drawn on."
        )
    canvas, doubtful_px = Canvas(size_hw, tally), 0
    for shape in record.shapes:
        example = f"{image_id}: {shape.where.rpartition(': ')[2]}"
        if isinstance(shape, Box):
            canvas.add_box(*shape.in_px(size_hw), example=example)
            continue
        class_id, is_dropped = classes.ids[shape.name], shape.name in classes.dropped
        if class_id == SOUND_CLASS_ID:
            tally.add("as_sound", example=example)
            if shape.covers and not is_dropped:
                canvas.erase(shape.paint(size_hw))
            continue
        mask = shape.paint(size_hw)
        if class_id == IGNORE_CLASS_ID and (is_dropped or not shape.name):
            tally.add("dropped" if is_dropped else "no_class", example=example)
        elif class_id == IGNORE_CLASS_ID:
            doubtful_px += int(np.count_nonzero(mask))
        canvas.add_mask(class_id, mask, example=example)
    masks = canvas.masks()
    if not masks and choices.unlabelled != "clean" and (nowhere := canvas.missed):
        raise DataError(
            f"{record.where}: {nowhere[0].rpartition(': ')[2]} covers no pixel of {placed.path}, nor does another "
            "label, so that the image would count as sound. Draw it again, or delete it if the steel is sound.",
            go_on={"unlabelled": "clean"},
        )
    labels = {class_id: rle.encode(mask) for class_id, mask in masks.items()}
    px = Counter({class_id: int(np.count_nonzero(mask)) for class_id, mask in masks.items()})
    regions = Counter({class_id: _count_regions(mask) for class_id, mask in masks.items()})
    return Painted(image_id, record.part, labels, px, regions, doubtful_px, tally)


def _place(placed: Placed, choices: Choices, folder: Path, tally: Tally, *, link: bool) -> tuple[str, tuple[int, int]]:
    """Place an image; its ImageId and its size (H, W)."""
    path, image_id, record = placed.path, placed.image_id, placed.record
    decoded = read.decode(path)
    size_hw = (decoded.pixels.shape[0], decoded.pixels.shape[1])
    turn = _orientation(decoded.notes) if record.shapes or record.size_hw not in (None, size_hw) else 1
    if turn != 1 and choices.exif is None:
        raise DataError(
            f"{path}: has the EXIF orientation {turn}, and nobody can tell from the file whether the labels were drawn "
            "on the picture as it is stored (keep) or as viewers display it (turn).",
            go_on={"exif": "keep|turn"},
        )
    if turn == 1 or choices.exif == "keep":
        place_image(path, folder / image_id, link=link)
        return image_id, size_hw
    pixels = _turned(read.decode_stored(read.read_file(path), name=str(path)), turn)
    image_id = f"{stem_of(image_id)}.png"
    write_png(folder / image_id, pixels)
    tally.add("turned", example=image_id)
    return image_id, (pixels.shape[0], pixels.shape[1])


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels as their EXIF orientation says, 2 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _count_regions(mask: NDArray[np.bool_]) -> int:
    """Number of 8-connected regions of a mask, bool (H, W)."""
    return cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)[0] - 1


def _orientation(notes: Sequence[str]) -> int:
    """The EXIF orientation that decoding ignored; 1 if there is none."""
    found = (re.search(r"EXIF orientation ([2-8])", note) for note in notes)
    return next((int(match[1]) for match in found if match), 1)
