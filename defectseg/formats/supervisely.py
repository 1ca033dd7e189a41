"""Supervisely JSON: one file for each image, with bitmaps and polygons."""

from functools import partial
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import check_outline
from defectseg.formats.reading import list_at, paint_bitmap, points_of, size_of, value_at
from defectseg.formats.source import LabelSource


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    return source.evidence(".json", _is_annotation, "has 'objects' and 'size'")


def _is_annotation(content: Any) -> bool:
    return isinstance(value_at(content, "objects"), list) and isinstance(value_at(content, "size"), dict)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of meta.json, else in that in which they first appear."""
    metas = source.named("meta.json")
    titles = [value_at(one, "title") for file in metas for one in list_at(source.content(file), "classes")]
    found = source.of_kind(".json", _is_annotation, tally, without=metas)
    records = [_record(*one, tally) for one in found]
    names = [name for name in titles if isinstance(name, str)]
    names += [shape.name for record in records for shape in record.shapes]
    return LabelSet(records, list(dict.fromkeys(names)), file_each=True)


def _record(file: str, where: str, content: dict[str, Any], tally: Tally) -> Record:
    objects = enumerate(content["objects"], start=1)
    shapes = [made for number, one in objects if (made := _shape(one, f"{where}, object {number}", tally))]
    image = PurePosixPath(f"/{file}".replace("/ann/", "/img/")[1:]).with_suffix("")
    size_hw = size_of(content["size"].get("height"), content["size"].get("width"))
    # Supervisely writes a file without objects for images that nobody has looked at, too.
    return Record(str(image), where, shapes, size_hw, part_among(image.parts[:-1]), "labelled" if shapes else "unclear")


def _shape(one: Any, where: str, tally: Tally) -> Shape | Box | None:
    name, geometry = value_at(one, "classTitle"), value_at(one, "geometryType")
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'classTitle'; expected the name of its class.")
    if geometry in ("bitmap", "alpha_mask"):
        corner = points_of([value_at(one, "bitmap", "origin")], where)[0]
        return Shape(name, partial(paint_bitmap, value_at(one, "bitmap", "data"), corner, where), where)
    if geometry not in ("polygon", "rectangle"):
        tally.add("other_shape", example=f"{where.rpartition(': ')[2]} ({geometry})")
        return None
    exterior = points_of(value_at(one, "points", "exterior"), where)
    if geometry == "polygon":
        holes = [points_of(hole, where) for hole in list_at(one, "points", "interior")]
        return Shape(name, partial(_paint_polygon, exterior, holes, where), where)
    (left, top), (width, height) = exterior.min(axis=0).tolist(), (np.ptp(exterior, axis=0) + 1).tolist()
    return Box(name, (left, top, width, height), where)


def _paint_polygon(
    exterior: NDArray[np.float64], holes: list[NDArray[np.float64]], where: str, size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Filled as Supervisely's own SDK does it: pixels on the outline belong to the shape, those on a hole's do not."""
    mask = np.zeros(size_hw, np.uint8)
    for outline in (exterior, *holes):
        check_outline(outline, where)
    for outlines, value in (([exterior], 1), (holes, 0)):
        cv2.fillPoly(mask, [np.floor(outline).astype(np.int32) for outline in outlines], value)
    return mask.view(np.bool_)


KIND = Kind("supervisely", "Supervisely: Download as > .json + images", recognise, read)
