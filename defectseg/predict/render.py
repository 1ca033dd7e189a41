"""From the segmentation of one image to the bytes of its pictures and the rows of its tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle
from defectseg.image.find import FoundImage, escaped
from defectseg.image.overlay import JPEG_LONGEST_SIDE_PX, encode_jpeg, paint_prediction
from defectseg.image.read import DecodedImage, is_blank
from defectseg.inference.segment import Segmentation
from defectseg.inference.stream import Unreadable
from defectseg.predict.tables import (
    MASKS,
    REGIONS,
    RLE,
    STATUS_BLANK,
    STATUS_CLEAN,
    STATUS_DEFECT,
    STATUS_UNREADABLE,
    OutputChoice,
    Record,
)

# With OpenCV's own filter and level; asking for a level makes libpng try every filter, which takes four times as long.
_PNG = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


@dataclass(frozen=True)
class Rendered:
    """What is to be written of one image; None for a picture that is not wanted. `brightest16` as in DecodedImage."""

    record: Record
    overlay_jpeg: bytes | None
    class_map_png: bytes | None
    brightest16: int | None = None


def render(
    found: FoundImage,
    stamp: tuple[int, int],
    decoded: DecodedImage,
    segmentation: Segmentation,
    class_names: Sequence[str],
    choice: OutputChoice,
) -> Rendered:
    """Make the pictures and rows that `choice` asks for.

    `stamp` is the file's size and time from before it was read, see `files.size_and_time`.
    """
    notes, overlay_jpeg, class_map_png = decoded.notes, None, None
    if choice.has_overlay(with_defect=bool(segmentation.regions)):
        masks = segmentation.masks if segmentation.regions else segmentation.masks[:0]
        picture, more_notes = fit_jpeg(paint_prediction(decoded.pixels, masks, class_names))
        notes, overlay_jpeg = (*notes, *more_notes), encode_jpeg(picture)
    if MASKS in choice.names:
        class_map = segmentation.class_map
        class_map_png = encode_png(class_map) if segmentation.regions else _blank_png(*class_map.shape)
    status = STATUS_DEFECT if segmentation.regions else STATUS_BLANK if is_blank(decoded.pixels) else STATUS_CLEAN
    record = _record(found, stamp, status, segmentation, class_names, notes, choice)
    return Rendered(record, overlay_jpeg, class_map_png, decoded.brightest16)


def render_unreadable(unreadable: Unreadable) -> Rendered:
    """The rows of an unreadable image."""
    blank = dict.fromkeys(
        ("height", "width", "classes", "regions", "defect_area_px", "defect_area_percent", "top_score"), ""
    )
    image_id, path, message = unreadable.image_id, unreadable.path, unreadable.message
    image = {**_identity(FoundImage(image_id, path), unreadable.stamp, STATUS_UNREADABLE, message), **blank}
    return Rendered(Record(image, [], [], [[image_id, escaped(path), message]]), None, None)


def fit_jpeg(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Shrink a picture that is too long for a JPEG, and say so."""
    longest = max(picture.shape[:2])
    if longest <= JPEG_LONGEST_SIDE_PX:
        return picture, ()
    factor = JPEG_LONGEST_SIDE_PX / longest
    size_wh = (max(1, int(picture.shape[1] * factor)), max(1, int(picture.shape[0] * factor)))
    shrunk = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return shrunk, (f"overlay shrunk to {size_wh[0]} x {size_wh[1]} px to fit a JPEG",)


def encode_png(class_map: NDArray[np.uint8]) -> bytes:
    """Encode a class map uint8 (H, W), losslessly."""
    done, content = cv2.imencode(".png", class_map, _PNG)
    assert done, "cv2 encodes every uint8 picture as PNG"
    return content.tobytes()


@lru_cache(maxsize=8)
def _blank_png(height: int, width: int) -> bytes:
    """The class map of clean steel; images of a run are mostly of one size."""
    return encode_png(np.zeros((height, width), np.uint8))


def _record(
    found: FoundImage,
    stamp: tuple[int, int],
    status: str,
    segmentation: Segmentation,
    class_names: Sequence[str],
    notes: Sequence[str],
    choice: OutputChoice,
) -> Record:
    height, width = segmentation.class_map.shape
    class_ids = sorted({region.class_id for region in segmentation.regions})
    area_px = int(np.count_nonzero(segmentation.class_map)) if class_ids else 0
    top_score = max((region.score for region in segmentation.regions), default=None)
    image = {
        **_identity(found, stamp, status, "; ".join(notes)),
        "height": height,
        "width": width,
        "classes": "; ".join(class_names[class_id - 1] for class_id in class_ids),
        "regions": len(segmentation.regions),
        "defect_area_px": area_px,
        "defect_area_percent": f"{100.0 * area_px / (height * width):.4f}",
        "top_score": "" if top_score is None else f"{top_score:.4f}",
    }
    predictions = [
        [found.image_id, index + 1, rle.encode(mask) if index + 1 in class_ids else ""]
        for index, mask in enumerate(segmentation.masks)
        if RLE in choice.names
    ]
    regions = [
        [
            *(found.image_id, region.class_id, class_names[region.class_id - 1], region.area_px, *region.box_xywh),
            *(f"{region.centroid_xy[0]:.1f}", f"{region.centroid_xy[1]:.1f}", f"{region.score:.4f}"),
        ]
        for region in segmentation.regions
        if REGIONS in choice.names
    ]
    return Record(image, predictions, regions, [])


def _identity(found: FoundImage, stamp: tuple[int, int], status: str, notes: str) -> dict[str, object]:
    """The columns that every image has."""
    size_bytes, modified_ns = stamp
    return {
        "ImageId": found.image_id,
        "status": status,
        "notes": notes,
        "size_bytes": size_bytes,
        "modified_ns": modified_ns,
    }
