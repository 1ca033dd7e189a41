"""Polygons and run-lengths of masks, and masks from them.

Two conventions of polygons exist, half a pixel apart. In COCO, the pixel in column x covers x to x + 1, and it belongs
to a polygon that contains its centre. In YOLO data sets, outlines run through the border pixels, as `cv2.findContours`
gives them, and these pixels belong to the shape. An outline that is drawn here and read by the rule of its own
convention gives the mask again, pixel by pixel, except for holes, which a polygon cannot have.

COCO's run-lengths are the lengths of alternating runs of 0 and 1, column by column, and begin with a run of 0. A file
holds them as a list ("uncompressed") or as text in six-bit digits ("compressed"; pycocotools, common/maskApi.c,
rleToString).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.reading import reaches_beyond

MOST_OUTLINE_PX = 5_000_000  # for which pycocotools takes half a gigabyte


@dataclass(frozen=True)
class Piece:
    """One connected region, cut out.

    Attributes:
        box_xywh: where it was cut: left, top, width, height in pixels.
        area_px: number of its pixels.
        mask: bool (height, width) of the box.
    """

    box_xywh: tuple[int, int, int, int]
    area_px: int
    mask: NDArray[np.bool_]

    def place(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """The region alone in an image of that size, bool (H, W)."""
        left, top, width, height = self.box_xywh
        return np.pad(self.mask, ((top, size_hw[0] - top - height), (left, size_hw[1] - left - width)))


def cut_pieces(mask: NDArray[np.bool_]) -> Iterator[Piece]:
    """The 8-connected regions of a mask, bool (H, W), by top, then left edge."""
    if not mask.any():
        return
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    numbered = enumerate(np.asarray(stats).tolist()[1:], start=1)  # 0 is the background
    for number, (left, top, width, height, area_px) in sorted(numbered, key=lambda one: (one[1][1], one[1][0])):
        box = np.asarray(labels)[top : top + height, left : left + width]
        yield Piece((left, top, width, height), area_px, box == number)


def outline(piece: Piece, *, tolerance_px: float = 0.0) -> NDArray[np.float64]:
    """The outer border of a region in COCO's convention, float64 (N, 2): x and y in the image, at least three points.

    It runs a quarter of a pixel inside the region's edge. So it contains the centres of the region's pixels and of no
    others, however a reader rounds. Holes are ignored.

    Args:
        piece: the region.
        tolerance_px: leave out points as long as the line moves by no more than this. 0 keeps the region exact.
    """
    doubled = np.repeat(np.repeat(piece.mask.view(np.uint8), 2, axis=0), 2, axis=1)
    (contour,), _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if tolerance_px:
        simpler = cv2.approxPolyDP(contour, 2 * tolerance_px, closed=True)
        contour = simpler if len(simpler) >= 3 else contour
    return (np.asarray(contour).reshape(-1, 2) + 0.5) / 2 + piece.box_xywh[:2]


def paint_outlines(polygons: Sequence[list[float]], size_hw: tuple[int, int], *, where: str) -> NDArray[np.bool_]:
    """The union of polygons in COCO's convention, bool (H, W), filled by pycocotools.

    Args:
        polygons: each a list x1, y1, x2, y2 and so on, in pixels. Polygons of fewer than three points are skipped.
        size_hw: height and width of the image in pixels.
        where: names the annotation in messages.

    Raises:
        LabelError: a point is not a number, or lies far outside the image. pycocotools would crash.
    """
    from pycocotools import mask as coco

    filled = [polygon for polygon in polygons if len(polygon) >= 6]
    if not filled:
        return np.zeros(size_hw, np.bool_)
    points = np.reshape(np.concatenate(filled), (-1, 2))
    if reaches_beyond(points, size_hw, sizes=1):
        what = f"has points from {points.min():g} to {points.max():g}, far outside its image of"
        raise LabelError(f"{where}: {what} {size_hw[1]} x {size_hw[0]}. Export the labels at the images' own size.")
    for polygon in filled:
        check_outline(np.reshape(polygon, (-1, 2)), where)
    counts = coco.merge(coco.frPyObjects(filled, *size_hw))["counts"].decode("ascii")
    return decode_rle({"size": list(size_hw), "counts": counts}, size_hw, where=where)


def check_outline(points: NDArray[Any], where: str) -> None:
    """Refuse an outline, x and y in px, (N, 2), that would take much memory and time to draw.

    Raises:
        LabelError: it is longer than `MOST_OUTLINE_PX`; names `where`.
    """
    length_px = np.abs(np.diff(points, axis=0)).max(axis=1, initial=0).sum()
    if length_px > MOST_OUTLINE_PX:
        most = f"up to {MOST_OUTLINE_PX:,} px are drawn. Export a mask instead."
        raise LabelError(f"{where}: its outline is {length_px:,.0f} px long; {most}")


def pixel_outline(piece: Piece) -> NDArray[np.intp]:
    """The border pixels of a region in order, int (N, 2): x and y in the image. Holes are ignored."""
    (contour,), _ = cv2.findContours(piece.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contour, np.intp).reshape(-1, 2) + piece.box_xywh[:2]


def count_hole_px(mask: NDArray[np.bool_]) -> int:
    """Number of pixels outside a mask, bool (H, W), that the outlines of its regions enclose."""
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = cv2.drawContours(np.zeros_like(pixels), contours, -1, 1, cv2.FILLED)
    return int(np.count_nonzero(filled)) - int(np.count_nonzero(mask))


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, bool (H, W), as COCO's compressed run-lengths: `{"size": [H, W], "counts": text}`."""
    from pycocotools import mask as coco

    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def decode_rle(run_lengths: Mapping[str, Any], size_hw: tuple[int, int], *, where: str) -> NDArray[np.bool_]:
    """Turn COCO's run-lengths, compressed or not, into a mask, bool (H, W).

    pycocotools does not check its input: where the runs do not fill the image, the rest of its mask is whatever was in
    memory. So it is not used here.

    Raises:
        LabelError: the run-lengths are for another image size, are no numbers, or do not add up to the image; names
            `where`.
    """
    height, width = size_hw
    size, given = run_lengths.get("size"), run_lengths.get("counts")
    counts: Any = _unpack(given).tolist() if isinstance(given, str) else given
    is_valid = isinstance(counts, list) and all(isinstance(n, int) and 0 <= n <= height * width for n in counts)
    if size != [height, width] or not is_valid or sum(counts) != height * width:
        expected = f"expected [{height}, {width}] (rows, columns), and numbers that add up to {height * width} px"
        raise LabelError(f"{where}: run-lengths of size {brief(size)}, {brief(given)}; {expected}. Export them again.")
    runs = np.array([*counts, *[0] * (len(counts) % 2)], np.int64).reshape(-1, 2)
    lengths, ends = runs[:, 1], runs.sum(axis=1).cumsum()
    if 64 * lengths.sum() < height * width:  # pixel by pixel is faster
        at = np.repeat(ends - lengths.cumsum(), lengths) + np.arange(lengths.sum())
        columns, rows = np.divmod(at, height)
        mask = np.zeros(size_hw, np.bool_)
        mask[rows, columns] = True
        return mask
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _unpack(text: str) -> NDArray[np.int64]:
    """The numbers in compressed run-lengths; none if they are damaged.

    Each consists of digits of five bits, the least first; 32 in a digit says that another follows, 16 in the last one
    that the number is negative. From the fourth on, each is stored minus the one two before it.
    """
    if not re.fullmatch("([P-o]{0,7}[0-O])+", text):
        return np.empty(0, np.int64)
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(digits < 32)
    first = np.append(0, last[:-1] + 1)
    places = np.arange(len(digits)) - np.repeat(first, last + 1 - first)
    counts: NDArray[np.int64] = np.add.reduceat((digits & 31) << 5 * places, first)
    counts -= (digits[last] & 16) << 5 * places[last] + 1
    counts[1::2], counts[2::2] = counts[1::2].cumsum(), counts[2::2].cumsum()
    return counts
