"""One image of a data folder and its masks, decoded and measured: what `check` gathers from each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import DARK_LEVEL, Descriptor, describe
from defectseg.data.table import IGNORE_CLASS_ID, NOT_CLEAN, Fault, LabelRow, error, warning
from defectseg.errors import ImageError, LabelError
from defectseg.image import read, rle
from defectseg.image.find import FoundImage
from defectseg.image.regions import find_regions

MOSTLY_DARK = 0.5  # share of the pixels
_WHOLE_IMAGE = 0.95  # of Severstal's masks, the largest covers 0.90
_FEW_PX = 16  # of Severstal's masks, the smallest has 115
_FEW_SHARE = 0.005  # of the image, so that tiny pictures may have tiny masks
_SHEET_END = 0.02  # of the side that it takes away


@dataclass(frozen=True)
class MaskFigures:
    """ClassId, area and number of 8-connected regions of one mask."""

    class_id: int
    area_px: int
    regions: int


@dataclass(frozen=True)
class Inspection:
    """What was found in one image.

    Attributes:
        image_id: ImageId.
        size_hw: height and width in px; None where the image cannot be read, and then nothing else is known.
        notes: what decoding changed or left aside.
        brightest16: see DecodedImage.
        faults: of the image and its masks.
        masks: figures of the sound masks, pixels to ignore (class 255) included.
        dark_share: share of the pixels that are darker than steel is, 0 to 1.
        sheet_end: whether the dark beyond an end of the sheet reaches in from a side.
        levels: how many pixels have each grey level, int64 (256,).
        descriptor: for the search for copies.
    """

    image_id: str
    size_hw: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    masks: tuple[MaskFigures, ...] = ()
    dark_share: float = 0.0
    sheet_end: bool = False
    levels: NDArray[np.int64] | None = None
    descriptor: Descriptor | None = None
    brightest16: int | None = None


def inspect_image(
    image: FoundImage,
    rows: Sequence[LabelRow],
    class_names: Sequence[str],
    table_path: Path,
    bit_depth: int | None = None,
) -> Inspection:
    """Decode an image and its masks, and measure them.

    Args:
        image: the file and its ImageId.
        rows: the sound rows of the label table about this image.
        class_names: of ClassId 1 and so on.
        table_path: how messages name the table.
        bit_depth: of 16-bit files, see `decode_bytes`.
    """
    try:
        decoded = read.decode(image.path, bit_depth=bit_depth)
    except ImageError as problem:
        return Inspection(image.image_id, faults=(unreadable(image, str(problem)),))
    pixels = decoded.pixels
    faults: list[Fault] = []
    masks: list[MaskFigures] = []
    taken = np.zeros(pixels.shape, np.bool_)
    for row, mask in _sound_masks(rows, pixels.shape, class_names, table_path, faults):
        _, regions = find_regions(mask, class_id=row.class_id)
        masks.append(MaskFigures(row.class_id, sum(region.area_px for region in regions), len(regions)))
        if row.class_id == IGNORE_CLASS_ID:
            continue
        name = class_names[row.class_id - 1]
        if shared_px := int(np.count_nonzero(mask & taken)):
            message = f"{image.image_id}: {shared_px} px of '{name}' belong to another class too."
            remedy = "Leave it if one spot can be of two classes; else mend the masks."
            faults.append(warning("overlap", message, remedy, image=image.image_id, row=row.line))
        faults += _odd_area(row, masks[-1].area_px, mask.size, name)
        taken |= mask
    levels = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return Inspection(
        image.image_id,
        pixels.shape,
        decoded.notes,
        tuple(faults),
        tuple(masks),
        float(levels[:DARK_LEVEL].sum() / pixels.size),
        _has_sheet_end(pixels),
        levels,
        describe(pixels),
        decoded.brightest16,
    )


def unreadable(image: FoundImage, message: str) -> Fault:
    """The fault of an image that cannot be read."""
    remedy = "Until then it is left out." if image.fault else "Replace the file, or take it out, and its rows too."
    return error("image", message, remedy, image=image.image_id)


def _sound_masks(
    rows: Sequence[LabelRow],
    size_hw: tuple[int, int],
    class_names: Sequence[str],
    table_path: Path,
    faults: list[Fault],
) -> Iterator[tuple[LabelRow, NDArray[np.bool_]]]:
    """The rows whose masks fit the image and the classes; faults of the others are added to `faults`."""
    for row in rows:
        where = f"{table_path}, line {row.line}: {row.image_id}, ClassId {row.class_id}"
        if not row.encoded:
            continue
        if len(class_names) < row.class_id != IGNORE_CLASS_ID:
            message = f"{where}: there are {len(class_names)} classes ({', '.join(class_names)})."
            remedy = "Mend the ClassId, or add its name to classes.txt."
            faults.append(error("class", message, remedy, image=row.image_id, row=row.line))
            continue
        try:
            yield row, rle.decode(row.encoded, size_hw, where=where)
        except LabelError as problem:
            remedy = f"Export this mask again, or {NOT_CLEAN}."
            faults.append(error("rle", str(problem), remedy, image=row.image_id, row=row.line))


def _odd_area(row: LabelRow, area_px: int, image_px: int, name: str) -> Iterator[Fault]:
    what = f"{row.image_id}: the mask of '{name}'"
    if area_px >= _WHOLE_IMAGE * image_px:
        message = f"{what} covers {100 * area_px / image_px:.0f} % of the image."
        remedy = "Make sure that it is not inverted, or drawn around the image instead of the defect."
        yield warning("mask-size", message, remedy, image=row.image_id, row=row.line)
    elif area_px < min(_FEW_PX, _FEW_SHARE * image_px):
        message = f"{what} has only {area_px} px."
        yield warning("mask-size", message, "Look for a stray click.", image=row.image_id, row=row.line)


def _has_sheet_end(pixels: NDArray[np.uint8]) -> bool:
    """Whether dark columns or rows reach in from a side, and brighter steel is there too."""
    for axis in (0, 1):
        means = cv2.reduce(pixels, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        lit = np.flatnonzero(means >= DARK_LEVEL)
        if len(lit) and max(int(lit[0]), len(means) - 1 - int(lit[-1])) >= max(1.0, _SHEET_END * len(means)):
            return True
    return False
