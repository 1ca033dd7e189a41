"""One image of a data folder and its masks, decoded and measured."""

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
_WHOLE_IMAGE = 0.95  # the largest of Severstal's masks covers 0.90
_FEW_PX = 16  # the smallest of Severstal's masks has 115
_FEW_SHARE = 0.005  # of the image, so that tiny pictures may have tiny masks
_SHEET_END = 0.02  # share of the image's width or height


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
        size_hw: height and width in px; None where the image cannot be read, and then only `faults` is known.
        notes: what decoding changed or left out.
        faults: of the image and its masks.
        masks: figures of the sound masks, pixels to ignore (class 255) included.
        sheet_end: whether the dark beyond an end of the sheet reaches in from a side.
        levels: number of pixels of each grey level, int64 (256,).
        brightest16: see `DecodedImage`.
    """

    image_id: str
    size_hw: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    faults: Sequence[Fault] = ()
    masks: Sequence[MaskFigures] = ()
    sheet_end: bool = False
    levels: NDArray[np.int64] | None = None
    brightest16: int | None = None

    @property
    def size_text(self) -> str:
        """Height and width as "HxW"; "" where the image cannot be read."""
        return "" if self.size_hw is None else f"{self.size_hw[0]}x{self.size_hw[1]}"

    @property
    def dark_share(self) -> float:
        """Share of the pixels that are darker than steel, 0 to 1."""
        return 0.0 if self.levels is None else float(self.levels[:DARK_LEVEL].sum() / self.levels.sum())


def inspect_image(
    image: FoundImage,
    rows: Sequence[LabelRow],
    class_names: Sequence[str],
    table_path: Path,
    bit_depth: int | None = None,
) -> tuple[Inspection, Descriptor | None]:
    """Decode an image and its masks, measure them, and describe the image for the search for copies.

    Args:
        image: the file and its ImageId.
        rows: the sound rows of the label table about this image.
        class_names: of ClassId 1 and so on.
        table_path: names the table in messages.
        bit_depth: of 16-bit files, see `decode_bytes`.

    Returns:
        what was found, and the descriptor; None where the image cannot be read.
    """
    try:
        decoded = read.decode(image, bit_depth=bit_depth)
    except ImageError as problem:
        remedy = "Until then it is left out." if image.fault else "Replace the file, or take it out, and its rows too."
        return Inspection(image.image_id, faults=[error("image", str(problem), remedy, image=image.image_id)]), None
    pixels = decoded.pixels
    faults: list[Fault] = []
    masks: list[MaskFigures] = []
    taken = np.zeros(pixels.shape, np.bool_)
    for row in (row for row in rows if row.encoded):
        mask = _decode(row, pixels.shape, class_names, table_path)
        if isinstance(mask, Fault):
            faults.append(mask)
        else:
            _, regions = find_regions(mask, class_id=row.class_id)
            masks.append(MaskFigures(row.class_id, sum(region.area_px for region in regions), len(regions)))
            if row.class_id != IGNORE_CLASS_ID:
                faults += _odd_mask(row, mask, masks[-1].area_px, class_names[row.class_id - 1], taken)
                taken |= mask
    levels = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    sheet_end = _has_sheet_end(pixels)
    inspection = Inspection(
        image.image_id, pixels.shape, decoded.notes, faults, masks, sheet_end, levels, decoded.brightest16
    )
    return inspection, describe(pixels)


def _decode(
    row: LabelRow, size_hw: tuple[int, int], class_names: Sequence[str], table_path: Path
) -> NDArray[np.bool_] | Fault:
    """The mask of a row, bool (H, W); the fault of a row that does not fit the image or the classes."""
    where = f"{table_path}, line {row.line}: {row.image_id}, ClassId {row.class_id}"
    if len(class_names) < row.class_id != IGNORE_CLASS_ID:
        message = f"{where}: there are {len(class_names)} classes ({', '.join(class_names)})."
        remedy = "Mend the ClassId, or add its name to classes.txt."
        return error("class", message, remedy, image=row.image_id, row=row.line)
    try:
        return rle.decode(row.encoded, size_hw, where=where)
    except LabelError as problem:
        remedy = f"Export this mask again, or {NOT_CLEAN}."
        return error("rle", str(problem), remedy, image=row.image_id, row=row.line)


def _odd_mask(
    row: LabelRow, mask: NDArray[np.bool_], area_px: int, name: str, taken: NDArray[np.bool_]
) -> Iterator[Fault]:
    """Warnings about a mask that shares pixels with the masks before it, `taken`, or has an unusual area."""

    def odd(kind: str, message: str, remedy: str) -> Fault:
        return warning(kind, f"{row.image_id}: {message}", remedy, image=row.image_id, row=row.line)

    if shared_px := int(np.count_nonzero(mask & taken)):
        remedy = "Leave it if one spot can be of two classes; else mend the masks."
        yield odd("overlap", f"{shared_px} px of '{name}' belong to another class too.", remedy)
    if area_px >= _WHOLE_IMAGE * mask.size:
        message = f"the mask of '{name}' covers {100 * area_px / mask.size:.0f} % of the image."
        remedy = "Make sure that it is not inverted, or drawn around the image instead of the defect."
        yield odd("mask-size", message, remedy)
    elif area_px < min(_FEW_PX, _FEW_SHARE * mask.size):
        yield odd("mask-size", f"the mask of '{name}' has only {area_px} px.", "Look for a stray click.")


def _has_sheet_end(pixels: NDArray[np.uint8]) -> bool:
    """Whether dark columns or rows reach in from a side, and brighter steel is there too."""
    for axis in (0, 1):
        means = cv2.reduce(pixels, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        lit = np.flatnonzero(means >= DARK_LEVEL)
        if len(lit) and max(int(lit[0]), len(means) - 1 - int(lit[-1])) >= max(1.0, _SHEET_END * len(means)):
            return True
    return False
