"""Copies as `check` reports them: pairs of ImageIds, and whether their masks agree once turned onto each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import DETAIL_CELLS, turned
from defectseg.copies.find import Copy
from defectseg.data.table import IGNORE_CLASS_ID, Fault, LabelRow, error
from defectseg.errors import LabelError
from defectseg.image import rle

_LEAST_SCORE = 0.7  # below it, the second image is but a part of what is to be seen: its masks need not be the same
_LEAST_IOU = 0.5  # two people's outlines of one defect agree better than this, a thin scratch's too


@dataclass(frozen=True)
class CopyPair:
    """Two images that show the same piece of steel.

    Attributes:
        image: ImageId in the folder that is checked.
        other: ImageId of the other image, in the folder compared with or in the same one.
        turn: what was done to `other` to get `image`: one of "0", "90", "180", "270", "mirror", "mirror+90",
            "mirror+180", "mirror+270"; "mirror" swaps left and right, the number then turns counter-clockwise.
        score: 0 to 1, correlation of the grain; 1 for an exact copy.
        masks_agree: whether both have the same classes, at the same place; None where that cannot be told.
    """

    image: str
    other: str
    turn: str
    score: float
    masks_agree: bool | None = None

    def to_dict(self) -> dict[str, str | float]:
        """The four keys of a leak, for JSON."""
        return {"image": self.image, "other": self.other, "turn": self.turn, "score": self.score}


@dataclass(frozen=True)
class LabelledImages:
    """What is known of one set of images.

    Attributes:
        ids: ImageId of each index.
        size_of: ImageId -> height and width in px, of the images that can be read.
        rows_of: ImageId -> rows of the label table; None where the images have no labels.
    """

    ids: Sequence[str]
    size_of: Mapping[str, tuple[int, int]]
    rows_of: Mapping[str, Sequence[LabelRow]] | None


def name_pairs(copies: Sequence[Copy], images: LabelledImages, others: LabelledImages) -> list[CopyPair]:
    """Give the images of each copy their names, and compare their masks."""
    pairs = []
    for copy in copies:
        image, other = images.ids[copy.first], others.ids[copy.second]
        agree = _masks_agree(copy, image, other, images, others)
        pairs.append(CopyPair(image, other, copy.turn, round(min(copy.score, 1.0), 4), agree))
    return pairs


def disagreements(pairs: Sequence[CopyPair], others_name: str = "") -> list[Fault]:
    """A fault for each pair whose masks do not agree; `others_name` is the folder of the other images, if another."""
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


def _masks_agree(copy: Copy, image: str, other: str, images: LabelledImages, others: LabelledImages) -> bool | None:
    if images.rows_of is None or others.rows_of is None or copy.score < _LEAST_SCORE:
        return None
    if image not in images.size_of or other not in others.size_of:
        return None
    size_hw = images.size_of[image]
    own = _masks(images.rows_of.get(image, ()), size_hw)
    theirs = _masks(others.rows_of.get(other, ()), others.size_of[other])
    if own is None or theirs is None:
        return None
    if own.keys() != theirs.keys():
        return False
    return all(
        _iou(mask, _fit(turned(theirs[class_id], copy.turn), size_hw, copy.shift)) >= _LEAST_IOU
        for class_id, mask in own.items()
    )


def _masks(rows: Sequence[LabelRow], size_hw: tuple[int, int]) -> dict[int, NDArray[np.bool_]] | None:
    """ClassId -> mask, bool (H, W), of the classes that occur; None where a row is faulty, which is told elsewhere."""
    try:
        return {
            row.class_id: rle.decode(row.encoded, size_hw)
            for row in rows
            if row.encoded and row.class_id != IGNORE_CLASS_ID
        }
    except LabelError:
        return None


def _fit(mask: NDArray[np.bool_], size_hw: tuple[int, int], shift: tuple[int, int]) -> NDArray[np.bool_]:
    """Bring a mask, bool (h, w), to the size of another image, and move it by a shift in detail cells."""
    height, width = size_hw
    scale_x, scale_y = width / mask.shape[1], height / mask.shape[0]
    down_px, right_px = (shift[0] * height / DETAIL_CELLS, shift[1] * width / DETAIL_CELLS)
    if (scale_x, scale_y, down_px, right_px) == (1, 1, 0, 0):
        return mask
    # A pixel's middle lies at half: its place in the other size is (x + 0.5) * scale - 0.5.
    moved = np.array([[scale_x, 0, scale_x / 2 - 0.5 + right_px], [0, scale_y, scale_y / 2 - 0.5 + down_px]])
    return cv2.warpAffine(mask.view(np.uint8), moved, (width, height), flags=cv2.INTER_NEAREST).astype(np.bool_)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(one & other)) / max(int(np.count_nonzero(one | other)), 1)
