"""From the segmentation of an image to its encoded pictures and its rows in the tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle
from defectseg.image.find import FoundImage
from defectseg.image.measure import appearance_of
from defectseg.image.overlay import JPEG_LONGEST_SIDE_PX, encode_jpeg, paint_prediction
from defectseg.image.read import is_blank
from defectseg.image.rectangles import rectangles_by_box
from defectseg.inference.stream import Segmented
from defectseg.model.appearance import Appearance
from defectseg.predict import tables
from defectseg.predict.tables import OutputChoice, Record
from defectseg.predict.unlike import judged

# A fifth quicker and a third smaller than with OpenCV's default filter. A given level would not be quicker.
_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)


@dataclass(frozen=True)
class Rendered:
    """The arguments of `OutputFolder.write` for one image; `brightest16` as in DecodedImage."""

    record: Record
    pictures: dict[str, bytes] | None
    brightest16: int | None = None


def render(
    one: Segmented, class_names: Sequence[str], choice: OutputChoice, trained: Appearance | None = None
) -> Rendered:
    """Make the pictures and rows of an image according to `choice`.

    `trained`: how the training images look, to compare; None: not known.
    """
    image_id, regions, class_map = one.found.image_id, one.segmentation.regions, one.segmentation.class_map
    notes = one.decoded.notes
    pictures: dict[str, bytes] = {}
    if choice.has_overlay(with_defect=bool(regions)):
        masks = one.segmentation.masks if regions else one.segmentation.masks[:0]
        picture = paint_prediction(one.decoded.pixels, masks, class_names)
        if max(picture.shape) > JPEG_LONGEST_SIDE_PX:
            notes = (*notes, "overlay shrunk to fit a JPEG")
        pictures[tables.OVERLAYS] = encode_jpeg(picture, is_grey=not regions)
    if tables.MASKS in choice.names:
        pictures[tables.MASKS] = _encode_png(class_map) if regions else _blank_png(*class_map.shape)
    class_ids = sorted({region.class_id for region in regions})
    area_px = int(np.count_nonzero(class_map)) if regions else 0
    status = tables.STATUS_DEFECT
    if not regions:
        status = tables.STATUS_BLANK if is_blank(one.decoded.pixels) else tables.STATUS_CLEAN
    appearance = () if status == tables.STATUS_BLANK else appearance_of(one.decoded.pixels)
    row = _row(one.found, one.stamp, status, "; ".join(notes)) | {
        "height": class_map.shape[0],
        "width": class_map.shape[1],
        "classes": "; ".join(class_names[class_id - 1] for class_id in class_ids),
        "regions": len(regions),
        "defect_area_px": area_px,
        "defect_area_percent": f"{100.0 * area_px / class_map.size:.4f}",
        "top_score": f"{max(region.score for region in regions):.4f}" if regions else "",
        "sheet_score": f"{one.segmentation.sheet_score:.4f}",
        **judged(appearance, trained, has_defect=bool(regions)),
    }
    predictions = [
        [image_id, class_id, rle.encode(mask) if class_id in class_ids else ""]
        for class_id, mask in enumerate(one.segmentation.masks, start=1)
        if tables.RLE in choice.names
    ]
    region_rows = [
        [
            *(image_id, region.class_id, class_names[region.class_id - 1], region.area_px, *region.box_xywh),
            *(f"{region.centroid_xy[0]:.1f}", f"{region.centroid_xy[1]:.1f}", f"{region.score:.4f}", *in_mm),
        ]
        for region, in_mm in zip(regions, _in_mm(one, choice), strict=True)
        if tables.REGIONS in choice.names
    ]
    record = Record(row, predictions, region_rows, [], [round(float(number), 4) for number in appearance])
    return Rendered(record, pictures, one.decoded.brightest16)


def render_unreadable(found: FoundImage, message: str) -> Rendered:
    """The rows of an unreadable image; the message says why it is."""
    row = _row(found, found.stamp, tables.STATUS_UNREADABLE, message)
    return Rendered(Record(row, [], [], [[found.image_id, found.shown, message]]), {})


def _row(found: FoundImage, stamp: tuple[int, int], status: str, notes: str) -> dict[str, Any]:
    """The row of an image in images.csv, with what is known of every image; the other cells are empty."""
    row: dict[str, Any] = dict.fromkeys(tables.IMAGE_COLUMNS, "")
    row |= {"ImageId": found.image_id, "status": status, "notes": notes}
    return row | {"size_bytes": stamp[0], "modified_ns": stamp[1]}


def _in_mm(one: Segmented, choice: OutputChoice) -> list[list[str]]:
    """The cells of MM_COLUMNS for each region; none if they were not asked for."""
    masks, regions = one.segmentation.masks, one.segmentation.regions
    if choice.mm_per_px is None:
        return [[]] * len(regions)
    of_class = {index: rectangles_by_box(masks[index - 1], choice.mm_per_px) for index in {r.class_id for r in regions}}
    rows = []
    for region in regions:
        length_mm, width_mm, direction_deg = of_class[region.class_id][region.box_xywh]
        sizes = length_mm, width_mm, region.area_px * math.prod(choice.mm_per_px)
        digits = [np.format_float_positional(size, precision=6, fractional=False, trim="-") for size in sizes]
        rows.append([*digits, f"{round(direction_deg, 1) % 180:.1f}"])
    return rows


def _encode_png(class_map: NDArray[np.uint8]) -> bytes:
    done, content = cv2.imencode(".png", class_map, _PNG)
    assert done, "cv2 encodes every uint8 picture as PNG"
    return content.tobytes()


@lru_cache(maxsize=8)
def _blank_png(height: int, width: int) -> bytes:
    """The class map of clean steel; most images of a run have one size."""
    return _encode_png(np.zeros((height, width), np.uint8))
