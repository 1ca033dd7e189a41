"""CVAT for images 1.1: an XML file for a task, a job or a project, with polygons, masks, ellipses and boxes.

Polygons are filled as CVAT's own mask exports do it, by pycocotools; ellipses by OpenCV, with a rounded centre and
rounded radii (cvat/apps/dataset_manager/formats/transformations.py).
"""

from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status, part_of
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.reading import parse_numbers, place_bitmap, reaches_beyond
from defectseg.formats.source import LabelSource

_NO_SUBSET = "default"  # CVAT's word
_Paint = Callable[[tuple[int, int]], NDArray[np.bool_]]
_Reader = Callable[[Element, str], tuple[NDArray[np.float64], _Paint | None]]
"""Element, where -> points x, y in px that enclose it, and what paints it, None for a box."""


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, root in source.xmls() if root.tag == "annotations")
    return next((f"{file} has 'annotations', as CVAT writes them" for file in found), "")


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    areas = [f"image/{tag}" for tag in _READERS if tag != "box"]
    return not any(root.find(area) is not None for _, root in source.xmls() for area in areas)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of the labels of the task or project.

    CVAT writes every image of a task, whether anybody has looked at it or not: one without an area is unclear.
    """
    names: dict[str, None] = {}
    records = []
    for file in source.with_suffix(".xml"):
        root, where = source.xml(file), str(source.path(file))
        if root.tag != "annotations":
            tally.add("other_file", example=file)
            continue
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
    if subset not in ("", _NO_SUBSET) and not part_of(subset):
        tally.add("other_part", example=str(name))
    size_hw, numbered = (height, width), enumerate(image, start=1)
    shapes = [made for number, one in numbered if (made := _shape(one, size_hw, f"{where}: {one.tag} {number}", tally))]
    status: Status = "labelled" if shapes else "unclear"
    return Record(str(folder / name), where, shapes, size_hw, part_of(subset), status)


def _shape(one: Element, size_hw: tuple[int, int], where: str, tally: Tally) -> Shape | Box | None:
    if one.tag not in _READERS or one.get("outside") == "1":
        tally.add("no_pixel" if one.tag in _READERS else "other_shape", example=where)
        return None
    points, paint = _READERS[one.tag](one, where)
    if reaches_beyond(points, size_hw):
        tally.add("clipped", example=where)
    if paint is not None:
        return Shape(one.get("label", ""), paint, where)
    if one.get("rotation"):
        tally.add("rotated", example=where)
    (left, top), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
    return Box(one.get("label", ""), (left, top, width, height), where)


def _numbers(element: Element, where: str, *names: str) -> list[float]:
    """Attributes that are numbers, in px or degrees. Only a rotation may be missing. Raises LabelError."""
    texts = [element.get(name, "0" if name == "rotation" else "") for name in names]
    return parse_numbers(texts, f"{where}: {', '.join(names)}")


def _corners(centre: tuple[float, float], sides: tuple[float, float], degrees: float) -> NDArray[np.float64]:
    """The corners of a turned box, float64 (4, 2), rounded as CVAT rounds, too."""
    return np.array(cv2.boxPoints((centre, sides, degrees)), np.float64).round(2)


def _box(one: Element, where: str) -> tuple[NDArray[np.float64], None]:
    left, top, right, bottom, degrees = _numbers(one, where, "xtl", "ytl", "xbr", "ybr", "rotation")
    centre, sides = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
    return _corners(centre, sides, degrees), None


def _polygon(one: Element, where: str) -> tuple[NDArray[np.float64], _Paint]:
    pairs = [point.split(",") for point in one.get("points", "").split(";")]
    texts = [text for pair in pairs for text in (pair if len(pair) == 2 else ("?",))]
    flat = parse_numbers(texts, f"{where}: its points")
    return np.reshape(flat, (-1, 2)), partial(paint_outlines, [flat], where=where)


def _ellipse(one: Element, where: str) -> tuple[NDArray[np.float64], _Paint]:
    x, y, x_radius, y_radius, degrees = _numbers(one, where, "cx", "cy", "rx", "ry", "rotation")

    def paint(size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        center, axes = (round(x), round(y)), (abs(round(x_radius)), abs(round(y_radius)))
        mask = cv2.ellipse(np.zeros(size_hw, np.uint8), center, axes, degrees, 0, 360, 1, thickness=-1)
        return np.asarray(mask).view(np.bool_)

    return _corners((x, y), (2 * x_radius, 2 * y_radius), degrees), paint


def _mask(one: Element, where: str) -> tuple[NDArray[np.float64], _Paint]:
    """Run-lengths, row by row within a box, beginning with a run outside the mask."""
    left, top, width, height = map(int, _numbers(one, where, "left", "top", "width", "height"))
    try:
        runs = [int(text) for text in one.get("rle", "").split(",")]
    except ValueError:
        runs = [-1]
    if min(runs) < 0 or sum(runs) != width * height:
        raise LabelError(f"{where}: its run-lengths are not whole numbers that add up to its {width}x{height} px.")

    def paint(size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        if not (0 < height <= 2 * size_hw[0] and 0 < width <= 2 * size_hw[1]):
            raise LabelError(f"{where}: has {width}x{height} px, but its image {size_hw[1]}x{size_hw[0]}.")
        box = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        inside = box[max(0, -top) : max(0, size_hw[0] - top), max(0, -left) : max(0, size_hw[1] - left)]
        return place_bitmap(inside, (min(max(0, left), size_hw[1]), min(max(0, top), size_hw[0])), size_hw, where)

    return np.array([(left, top), (left + width, top + height)]), paint


_READERS: dict[str, _Reader] = {"polygon": _polygon, "mask": _mask, "ellipse": _ellipse, "box": _box}

KIND = Kind("cvat", "CVAT: Export task dataset > CVAT for images 1.1", recognise, read, boxes_only)
