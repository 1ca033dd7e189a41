"""Copies as `check` reports them: pairs of ImageIds, and whether their masks agree once turned onto each other."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import DETAIL_CELLS, turned
from defectseg.copies.find import Copy
from defectseg.data.folder import IMAGES_NAME
from defectseg.data.table import TABLE_NAMES, Fault, LabelRow, error, scan_label_rows
from defectseg.errors import ImageError, LabelError
from defectseg.image import read, rle
from defectseg.image.find import FoundImage

_LEAST_SCORE = 0.7  # below it, the second image is only part of what is visible: its masks need not be the same
_LEAST_IOU = 0.5  # two people's outlines of one defect agree better than this, even those of a thin scratch

RowsByImage = Mapping[str, Sequence[LabelRow]]


@dataclass(frozen=True)
class CopyPair:
    """Two images that show the same piece of steel.

    Attributes:
        image: ImageId in the folder that is checked.
        other: ImageId of the other image, in the folder compared with or in the same one.
        turn: what was done to `other` to get `image`: one of "0", "90", "180", "270", "mirror", "mirror+90",
            "mirror+180", "mirror+270"; "mirror" swaps left and right, the number then turns counter-clockwise.
        score: 0 to 1, correlation of the grain; 1 for an exact copy.
        masks_agree: whether both have the same classes, at the same place; None if unknown.
    """

    image: str
    other: str
    turn: str
    score: float
    masks_agree: bool | None = None


@dataclass(frozen=True)
class LabelledImages:
    """Images, and ImageId -> sound rows of their label table; None where they have no labels."""

    found: Sequence[FoundImage]
    rows_of: RowsByImage | None


def rows_by_image(rows: Sequence[LabelRow]) -> RowsByImage:
    """ImageId -> its rows."""
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    for row in rows:
        rows_of[row.image_id].append(row)
    return dict(rows_of)


def find_labels(root: Path) -> tuple[Path, RowsByImage | None]:
    """The folder of the images of a data folder, and its sound rows; for a plain folder, itself and None."""
    if not (root / IMAGES_NAME).is_dir():
        return root, None
    tables = [root / name for name in TABLE_NAMES if (root / name).is_file()]
    return root / IMAGES_NAME, rows_by_image(scan_label_rows(tables[0]).rows) if tables else None


def name_pairs(copies: Sequence[Copy], images: LabelledImages, others: LabelledImages) -> list[CopyPair]:
    """Give the images of each copy their names, and compare their masks."""
    pairs = []
    for copy in copies:
        image, other = images.found[copy.first], others.found[copy.second]
        agree = None
        if images.rows_of is not None and others.rows_of is not None and copy.score >= _LEAST_SCORE:
            agree = _masks_agree(copy, _masks(image, images.rows_of), _masks(other, others.rows_of))
        pairs.append(CopyPair(image.image_id, other.image_id, copy.turn, round(min(copy.score, 1.0), 4), agree))
    return pairs


def disagreements(pairs: Sequence[CopyPair], others_name: str = "") -> list[Fault]:
    """A fault for each pair whose masks do not agree; `others_name` names another folder of the other images."""
    return [
        error(
            "mask-disagreement",
            f"{pair.image} and {others_name}{pair.other} show the same steel (turn {pair.turn}, "
            f"score {pair.score:.2f}), but their masks differ.",
            "Decide which masks are right, and take the other image out with its rows.",
            image=pair.image,
        )
        for pair in pairs
        if pair.masks_agree is False
    ]


_Masks = dict[int, NDArray[np.bool_]] | None


def _masks(image: FoundImage, rows_of: RowsByImage) -> _Masks:
    """ClassId -> mask, bool (H, W), of the classes that occur; None where the image or a row is faulty."""
    try:
        size_hw = read.read_size(image.path)
        rows = [row for row in rows_of.get(image.image_id, ()) if row.has_mask]
        return {row.class_id: rle.decode(row.encoded, size_hw) for row in rows}
    except (ImageError, LabelError):
        return None


def _masks_agree(copy: Copy, own: _Masks, theirs: _Masks) -> bool | None:
    if own is None or theirs is None:
        return None
    return own.keys() == theirs.keys() and all(
        _iou(mask, _fit(turned(theirs[class_id], copy.turn), mask.shape, copy.shift)) >= _LEAST_IOU
        for class_id, mask in own.items()
    )


def _fit(mask: NDArray[np.bool_], size_hw: tuple[int, ...], shift: tuple[int, int]) -> NDArray[np.bool_]:
    """Bring a mask, bool (h, w), to the size of another image, and move it by a shift in detail cells."""
    height, width = size_hw
    scale_x, scale_y = width / mask.shape[1], height / mask.shape[0]
    down_px, right_px = (shift[0] * height / DETAIL_CELLS, shift[1] * width / DETAIL_CELLS)
    # A pixel's middle lies at half: its place in the other size is (x + 0.5) * scale - 0.5.
    moved = np.array([[scale_x, 0, scale_x / 2 - 0.5 + right_px], [0, scale_y, scale_y / 2 - 0.5 + down_px]])
    return cv2.warpAffine(mask.view(np.uint8), moved, (width, height), flags=cv2.INTER_NEAREST).astype(np.bool_)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(one & other)) / max(int(np.count_nonzero(one | other)), 1)
