"""Supervisely JSON: one file for each image, with bitmaps and polygons."""

import zlib
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.bitmaps import decode_base64, decode_bitmap, is_number, place_bitmap, points_of
from defectseg.formats.common import Tally
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_of
from defectseg.formats.source import LabelSource

_META_NAME = "meta.json"
_MOST_BITMAP_BYTES = 2**28


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, content in source.jsons(most=5) if _is_annotation(content))
    return next((f"{file} has 'objects' and 'size'" for file in found), "")


def _is_annotation(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of meta.json, else in that in which they first appear."""
    names: dict[str, None] = {}
    for file in source.named(_META_NAME):
        classes = source.json(file).get("classes") if isinstance(source.json(file), dict) else None
        for one in classes if isinstance(classes, list) else ():
            names |= {str(one.get("title")): None} if isinstance(one, dict) else {}
    records = []
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if _is_annotation(content):
            records.append(_record(file, content, str(source.path(file)), tally))
            names |= {shape.name: None for shape in records[-1].shapes}
        elif PurePosixPath(file).name != _META_NAME:
            tally.add("other_file", example=file)
    return LabelSet(records, list(names))


def _record(file: str, content: dict[str, Any], where: str, tally: Tally) -> Record:
    height, width = content["size"].get("height"), content["size"].get("width")
    size_hw = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    shapes = [
        shape
        for number, one in enumerate(content["objects"], start=1)
        if (shape := _shape(one, f"{where}: object {number}", tally)) is not None
    ]
    folders = PurePosixPath(file).parts[:-1]
    part = next((part for folder in folders if (part := part_of(folder))), "")
    return Record(file.removesuffix(".json"), where, shapes, size_hw, part)


def _shape(one: Any, where: str, tally: Tally) -> Shape | Box | None:
    name = one.get("classTitle") if isinstance(one, dict) else None
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'classTitle'; expected the name of its class.")
    geometry, points = one.get("geometryType"), one.get("points")
    exterior, interior = (points.get("exterior"), points.get("interior")) if isinstance(points, dict) else (None, None)
    if geometry == "bitmap":
        return Shape(name, partial(_paint_bitmap, one.get("bitmap"), where), where)
    if geometry == "polygon":
        holes = interior if isinstance(interior, list) else []
        outlines = [points_of(outline, where) for outline in (exterior, *holes)]
        return Shape(name, partial(_paint_polygon, outlines), where)
    if geometry == "rectangle":
        corners = points_of(exterior, where)
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return Box(name, (left, top, right - left + 1, bottom - top + 1), where)
    tally.add("other_shape", example=where)
    return None


def _paint_bitmap(bitmap: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A bitmap is a PNG, deflated, in base64; `origin` is where its left upper corner lies: x, y."""
    origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
    if not isinstance(origin, list) or len(origin) != 2 or not all(map(is_number, origin)):
        raise LabelError(f"{where}: its bitmap has the origin {origin!r}; expected x, y in px.")
    try:
        content = zlib.decompressobj().decompress(decode_base64(bitmap.get("data"), where), _MOST_BITMAP_BYTES)
    except zlib.error as error:
        raise LabelError(f"{where}: its bitmap is damaged ({error}). Export it again.") from error
    return place_bitmap(decode_bitmap(content, where), (int(origin[0]), int(origin[1])), size_hw, where)


def _paint_polygon(outlines: list[NDArray[np.float64]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Filled as Supervisely's own SDK does it: pixels on the outline belong to the shape, those on a hole's do not."""
    exterior, *holes = (np.rint(outline).astype(np.int32) for outline in outlines)
    mask = cv2.fillPoly(np.zeros(size_hw, np.uint8), [exterior], 1)
    if holes:
        mask = cv2.fillPoly(mask, holes, 0)
    return np.asarray(mask, np.uint8).view(np.bool_)


KIND = Kind("supervisely", "Supervisely: Download as > .json + images", recognise, read)
