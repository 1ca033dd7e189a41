"""Supervisely JSON: one file for each image, with bitmaps and polygons."""

import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.bitmaps import decode_base64, decode_bitmap, is_number, place_bitmap, points_of, size_of
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.source import LabelSource

_META_NAME = "meta.json"
_ABSENT_HINT = "Supervisely has them in img/ beside ann/."
_MOST_BITMAP_BYTES = 2**28


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, content in source.jsons(most=5) if _is_annotation(content))
    return next((f"{file} has 'objects' and 'size'" for file in found), "")


def _is_annotation(content: Any) -> bool:
    is_image = isinstance(content, dict) and isinstance(content.get("size"), dict)
    return is_image and isinstance(content.get("objects"), list)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of meta.json, else in that in which they first appear."""
    names: dict[str, Any] = {}  # and the geometry that all objects of a class have, if they do not state it
    for file in source.named(_META_NAME):
        content = source.json(file)
        classes = content.get("classes") if isinstance(content, dict) else None
        for one in classes if isinstance(classes, list) else ():
            if isinstance(one, dict) and isinstance(one.get("title"), str):
                names[one["title"]] = one.get("shape")
    records = []
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if _is_annotation(content):
            records.append(_record(file, content, f"{source.given}: {file}", names, tally))
        elif PurePosixPath(file).name != _META_NAME:
            tally.add("other_file", example=file)
    names |= {shape.name: None for record in records for shape in record.shapes}
    return LabelSet(records, list(names), file_each=source.file is None, absent_hint=_ABSENT_HINT)


def _record(file: str, content: dict[str, Any], where: str, shape_of: Mapping[str, Any], tally: Tally) -> Record:
    shapes = [
        shape
        for number, one in enumerate(content["objects"], start=1)
        if (shape := _shape(one, f"{where}, object {number}", shape_of, tally)) is not None
    ]
    folders = ["img" if folder == "ann" else folder for folder in PurePosixPath(file).parts[:-1]]
    image = "/".join([*folders, PurePosixPath(file).stem])
    size_hw = size_of(content["size"].get("height"), content["size"].get("width"))
    # Supervisely writes a file without objects for images that nobody has looked at, too.
    return Record(image, where, shapes, size_hw, part_among(folders), "labelled" if shapes else "unclear")


def _shape(one: Any, where: str, shape_of: Mapping[str, Any], tally: Tally) -> Shape | Box | None:
    name = one.get("classTitle") if isinstance(one, dict) else None
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'classTitle'; expected the name of its class.")
    geometry, points = one.get("geometryType") or one.get("shape") or shape_of.get(name), one.get("points")
    if geometry in ("bitmap", "alpha_mask"):
        return Shape(name, partial(_paint_bitmap, one.get("bitmap"), where), where)
    if geometry == "polygon":
        return Shape(name, partial(_paint_polygons, [_outlines(points, where)]), where)
    if geometry == "multipolygon" and isinstance(one.get("parts"), list):
        return Shape(name, partial(_paint_polygons, [_outlines(part, where) for part in one["parts"]]), where)
    if geometry == "rectangle":
        corners = _outlines(points, where)[0]
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return Box(name, (left, top, right - left + 1, bottom - top + 1), where)
    tally.add("other_shape", example=f"{where.rpartition(': ')[2]} ({geometry})")
    return None


def _outlines(points: Any, where: str) -> list[NDArray[np.float64]]:
    """The outline of a polygon, then those of its holes."""
    exterior, interior = (points.get("exterior"), points.get("interior")) if isinstance(points, dict) else (None, None)
    holes = interior if isinstance(interior, list) else []
    return [points_of(exterior, where), *(points_of(hole, where) for hole in holes)]


def _paint_bitmap(bitmap: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A bitmap is a PNG in base64, usually deflated; `origin` is where its left upper corner lies: x, y."""
    origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
    if not isinstance(origin, list) or len(origin) != 2 or not all(map(is_number, origin)):
        raise LabelError(f"{where}: its bitmap has the origin {str(origin)[:60]}; expected x, y in px.")
    content = decode_base64(bitmap.get("data"), where)
    with suppress(zlib.error):  # not deflated
        content = zlib.decompressobj().decompress(content, _MOST_BITMAP_BYTES)
    return place_bitmap(decode_bitmap(content, where), (int(origin[0]), int(origin[1])), size_hw, where)


def _paint_polygons(polygons: list[list[NDArray[np.float64]]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Filled as Supervisely's own SDK does it: pixels on the outline belong to the shape, those on a hole's do not."""
    whole = np.zeros(size_hw, np.bool_)
    for polygon in polygons:
        exterior, *holes = (np.floor(outline).astype(np.int32) for outline in polygon)
        mask = cv2.fillPoly(np.zeros(size_hw, np.uint8), [exterior], 1)
        if holes:
            mask = cv2.fillPoly(mask, holes, 0)
        whole |= np.asarray(mask, np.uint8).view(np.bool_)
    return whole


KIND = Kind("supervisely", "Supervisely: Download as > .json + images", recognise, read)
