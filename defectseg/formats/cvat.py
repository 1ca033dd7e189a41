"""CVAT for images 1.1: an XML file for a task, a job or a project, with polygons, masks and boxes.

Polygons are filled as CVAT's own mask exports do it, by pycocotools. Ellipses count as boxes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_of
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.reading import parse_numbers, place_bitmap, reaches_beyond
from defectseg.formats.source import LabelSource

_AREAS = ("polygon", "mask")
_BOXES = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    return source.evidence(".xml", _is_export, "has 'annotations', as CVAT writes them")


def _is_export(root: Element) -> bool:
    return root.tag == "annotations"


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    return not any(root.find(f"image/{tag}") is not None for _, root in source.first(".xml") for tag in _AREAS)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of the labels of the task or project.

    CVAT writes every image of a task, whether anybody has looked at it or not: one without an area is unclear.
    """
    names: dict[str, None] = {}
    records = []
    for file, _, root in source.of_kind(".xml", _is_export, tally):
        where = str(source.path(file))
        if root.find("track") is not None:
            raise LabelError(f"{where}: 'CVAT for video 1.1' is not read. Export the task as 'CVAT for images 1.1'.")
        labels = (label for label in root.iterfind("meta/*/labels/label") if label.find("parent") is None)
        names |= {name: None for label in labels if (name := label.findtext("name"))}
        folder, subset = PurePosixPath(file).parent, root.findtext("meta/task/subset") or ""
        records += [_record(image, folder, subset, where, tally) for image in root.iterfind("image")]
    return LabelSet(records, list(names), hint="Polylines, points and cuboids cover no area.")


def _record(image: Element, folder: PurePosixPath, subset: str, where: str, tally: Tally) -> Record:
    subset = image.get("subset", subset)
    name = PurePosixPath(subset, image.get("name", ""))
    where = f"{where}: {name}"
    height, width = map(int, _numbers(image, where, "height", "width"))
    size_hw, numbered = (height, width), enumerate(image, start=1)
    shapes = [made for number, one in numbered if (made := _shape(one, size_hw, f"{where}: {one.tag} {number}", tally))]
    return Record(str(folder / name), where, shapes, size_hw, part_of(subset), "labelled" if shapes else "unclear")


def _shape(one: Element, size_hw: tuple[int, int], where: str, tally: Tally) -> Shape | Box | None:
    name = one.get("label", "")
    if one.tag not in (*_AREAS, *_BOXES) or one.get("outside") == "1":
        tally.add("no_pixel" if one.get("outside") == "1" else "other_shape", example=where)
        return None
    if one.tag == "mask":
        return Shape(name, _mask(one, where), where)
    points = _polygon(one, where) if one.tag == "polygon" else _box(one, where)
    if reaches_beyond(points, size_hw):
        tally.add("clipped", example=where)
    if one.tag == "polygon":
        return Shape(name, partial(paint_outlines, [points.ravel().tolist()], where=where), where)
    if one.get("rotation"):
        tally.add("rotated", example=where)
    (left, top), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
    return Box(name, (left, top, width, height), where)


def _numbers(element: Element, where: str, *names: str) -> list[float]:
    """Attributes that are numbers, in px or degrees. Only a rotation may be missing. Raises LabelError."""
    texts = [element.get(name, "0" if name == "rotation" else "") for name in names]
    return parse_numbers(texts, f"{where}: {', '.join(names)}")


def _box(one: Element, where: str) -> NDArray[np.float64]:
    """The corners of a box that may be turned, or of that around an ellipse; rounded as CVAT rounds, too."""
    first, second, third, fourth, degrees = _numbers(one, where, *_BOXES[one.tag], "rotation")
    centre, sides = (first, second), (2 * third, 2 * fourth)
    if one.tag == "box":
        centre, sides = ((first + third) / 2, (second + fourth) / 2), (third - first, fourth - second)
    return np.array(cv2.boxPoints((centre, sides, degrees)), np.float64).round(2)


def _polygon(one: Element, where: str) -> NDArray[np.float64]:
    pairs = [point.split(",") for point in one.get("points", "").split(";")]
    texts = [text for pair in pairs for text in (pair if len(pair) == 2 else ("?",))]
    return np.reshape(parse_numbers(texts, f"{where}: its points"), (-1, 2))


def _mask(one: Element, where: str) -> Callable[[tuple[int, int]], NDArray[np.bool_]]:
    """Run-lengths, row by row within a box, beginning with a run outside the mask."""
    left, top, width, height = map(int, _numbers(one, where, "left", "top", "width", "height"))
    try:
        runs = [int(text) for text in one.get("rle", "").split(",")]
    except ValueError:
        runs = [-1]
    if min(runs) < 0 or sum(runs) != width * height:
        raise LabelError(f"{where}: its run-lengths are not whole numbers that add up to its {width}x{height} px.")

    def paint(size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        if not (0 < height <= size_hw[0] and 0 < width <= size_hw[1]):
            raise LabelError(f"{where}: has {width}x{height} px, but its image {size_hw[1]}x{size_hw[0]}.")
        box = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return place_bitmap(box, (left, top), size_hw, where)

    return paint


KIND = Kind("cvat", "CVAT: Export task dataset > CVAT for images 1.1", recognise, read, boxes_only)
