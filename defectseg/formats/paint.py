"""The masks of one image, painted shape by shape, and the image itself, placed in the data folder."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import DataError
from defectseg.formats.classes import SOUND_CLASS_ID, Classes
from defectseg.formats.common import place_image, stem_of, write_png
from defectseg.formats.labels import Box, Choices, Part, Shape
from defectseg.formats.locate import Placed
from defectseg.formats.losses import Tally
from defectseg.image import limits, read, rle


@dataclass(frozen=True)
class Painted:
    """The masks of one image as run-lengths, with their pixels and regions, by ClassId.

    `doubtful_px` counts the pixels of annotations of the class that marks pixels to ignore.
    """

    image_id: str
    part: Part
    labels: dict[int, str]
    px: Counter[int]
    regions: Counter[int]
    doubtful_px: int


def paint(placed: Placed, classes: Classes, choices: Choices, tally: Tally, folder: Path, *, link: bool) -> Painted:
    """Place an image in a folder, turned if that is asked for, and paint its masks.

    Raises:
        ImageError: the image is not whole.
        LabelError: a shape is not valid.
        DataError: the labels are for another size, or it is not known how the image was turned.
    """
    record = placed.record
    image_id, size_hw = _place(placed, choices, folder, tally, link=link)
    named = len({shape.name for shape in record.shapes if isinstance(shape, Shape)})
    limits.check_masks(size_hw, shapes=len(record.shapes), classes=named, where=record.where)
    masks, doubtful_px, missed = _paint_shapes(record.shapes, image_id, size_hw, classes, tally)
    if missed and not masks and choices.unlabelled != "clean":
        raise DataError(
            f"{record.where}: {missed[0]} covers no pixel of {placed.path}, nor does another label, so that the image "
            "would count as sound. Draw it again, or delete it if the steel is sound.",
            go_on={"unlabelled": "clean"},
        )
    labels = {class_id: rle.encode(mask) for class_id, mask in masks.items()}
    px = Counter({class_id: int(np.count_nonzero(mask)) for class_id, mask in masks.items()})
    regions = Counter({one: cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for one, mask in masks.items()})
    return Painted(image_id, record.part, labels, px, regions, doubtful_px)


def _paint_shapes(
    shapes: Sequence[Shape | Box], image_id: str, size_hw: tuple[int, int], classes: Classes, tally: Tally
) -> tuple[dict[int, NDArray[np.bool_]], int, list[str]]:
    """Masks, bool (H, W), by ClassId; pixels that a class marks to be ignored; the shapes that cover no pixel."""
    masks: dict[int, NDArray[np.bool_]] = {}
    boxes, doubtful_px, missed = np.zeros(size_hw, np.bool_), 0, []
    for shape in shapes:
        entry = shape.where.rpartition(": ")[2]
        count = partial(tally.add, example=f"{image_id}: {entry}")
        if isinstance(shape, Box):
            count("boxes")
            boxes |= shape.paint(size_hw)
            missed += [] if boxes.any() else [entry]
            continue
        class_id, is_dropped = classes.ids[shape.name], shape.name in classes.dropped
        if class_id == SOUND_CLASS_ID:
            count("as_sound")
        elif is_dropped or not shape.name:
            count("dropped" if is_dropped else "no_class")
        if class_id == SOUND_CLASS_ID and (is_dropped or not shape.covers):
            continue
        mask = shape.paint(size_hw)
        if class_id == SOUND_CLASS_ID:
            masks = {other: earlier & ~mask for other, earlier in masks.items()}
        elif mask.any():
            tally.add("united", int(class_id in masks))
            masks[class_id] = mask | masks.get(class_id, False)
            if class_id == IGNORE_CLASS_ID and shape.name and not is_dropped:
                doubtful_px += int(np.count_nonzero(mask))
        else:
            count("no_pixel")
            missed.append(entry)
    for mask in masks.values():
        boxes &= ~mask
    masks[IGNORE_CLASS_ID] = boxes | masks.get(IGNORE_CLASS_ID, False)
    return {class_id: mask for class_id, mask in sorted(masks.items()) if mask.any()}, doubtful_px, missed


def _place(placed: Placed, choices: Choices, folder: Path, tally: Tally, *, link: bool) -> tuple[str, tuple[int, int]]:
    """Place an image; its ImageId and its size (H, W)."""
    path, image_id, record = placed.path, placed.image_id, placed.record
    decoded = read.decode(path)
    size_hw = decoded.pixels.shape
    noted = re.search(r"EXIF orientation ([2-8])", " ".join(decoded.notes))
    turn = int(noted[1]) if noted and (record.shapes or record.size_hw not in (None, size_hw)) else 1
    if turn != 1 and choices.exif is None:
        raise DataError(
            f"{path}: has the EXIF orientation {turn}, and nobody can tell from the file whether the labels were drawn "
            "on the picture as it is stored (keep) or as viewers display it (turn).",
            go_on={"exif": "keep|turn"},
        )
    if turn == 1 or choices.exif == "keep":
        place_image(path, folder / image_id, link=link)
    else:
        pixels = _turned(read.decode_stored(read.read_file(path), name=str(path)), turn)
        image_id, size_hw = f"{stem_of(image_id)}.png", pixels.shape[:2]
        write_png(folder / image_id, pixels)
        tally.add("turned", example=image_id)
    if record.size_hw is not None and record.size_hw != size_hw:
        height, width = record.size_hw
        raise DataError(
            f"{record.where}: the labels are for {width}x{height} px, but {path} has {size_hw[1]}x{size_hw[0]}. Use "
            "the images that the labels were drawn on."
        )
    return image_id, size_hw


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels as their EXIF orientation says, 2 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
