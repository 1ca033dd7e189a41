"""Pascal VOC XML: one file for each image, with boxes, and with polygons as Roboflow writes them."""

from functools import partial
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

from defectseg.errors import LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Part, Record, Shape, Status, part_of
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.reading import parse_numbers, reaches_beyond
from defectseg.formats.source import LabelSource
from defectseg.text import read_text

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, root in source.xmls() if _is_voc(root))
    return next((f"{file} has an 'annotation' as in Pascal VOC" for file in found), "")


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    return all(root.find("object/polygon") is None for _, root in source.xmls())


def _is_voc(root: Element) -> bool:
    has_points = root.find("object/polygon/pt") is not None  # LabelMe's XML, see `foreign`
    return root.tag == "annotation" and not has_points and any(root.find(tag) is not None for tag in ("object", "size"))


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order in which they first appear. A file without objects is a sound image."""
    records, listed = [], _listed_parts(source)
    names: dict[str, None] = {}
    for file in source.with_suffix(".xml"):
        if _is_voc(root := source.xml(file)):
            named = root.findtext("filename") or ""
            if source.means_another(file, named):
                raise LabelError(f"{source.path(file)}: its 'filename', {named}, is another image. Correct it.")
            records.append(_record(root, PurePosixPath(file), listed, str(source.path(file)), tally))
            names |= {shape.name: None for shape in records[-1].shapes}
        else:
            tally.add("other_file", example=file)
    return LabelSet(records, list(names), file_each=True)


def _listed_parts(source: LabelSource) -> dict[str, Part]:
    """Name of an image without suffix -> its part, from ImageSets/Main/train.txt and so on."""
    parts: dict[str, Part] = {}
    for file in source.with_suffix(".txt"):
        path = PurePosixPath(file.lower())
        part = part_of(path.stem) if path.parts[-3:-1] == ("imagesets", "main") else ""
        for line in read_text(source.path(file), "expected names of images").splitlines() if part else ():
            if line.strip() and parts.setdefault(line.strip(' "'), part) != part:
                raise LabelError(f"{source.path(file)}: '{line.strip()}' is in the list of another part, too.")
    return parts


def _record(root: Element, file: PurePosixPath, listed: dict[str, Part], where: str, tally: Tally) -> Record:
    texts = [root.findtext(f"size/{side}") or "0" for side in ("height", "width")]
    height, width = map(int, parse_numbers(texts, f"{where}: height, width"))
    size_hw = (height, width) if height and width else None
    objects = enumerate(root.findall("object"), start=1)
    made = [_shape(one, size_hw, f"{where}: object {number}", tally) for number, one in objects]
    shapes = [shape for shape in made if shape is not None]
    status: Status = "labelled" if shapes or root.find("object") is None else "unclear"
    parts = [listed.get(file.stem, ""), *map(part_of, file.parts[:-1])]
    part: Part = next(filter(None, parts), "")
    image = f"{file.parent}/{root.findtext('filename') or file.stem}"
    return Record(image, where, shapes, size_hw, part, status, also=(str(file.with_suffix("")),))


def _shape(one: Element, size_hw: tuple[int, int] | None, where: str, tally: Tally) -> Shape | Box | None:
    name, polygon, box = (one.findtext("name") or "").strip(), one.find("polygon"), one.find("bndbox")
    if polygon is not None and len(polygon):
        text_of = {child.tag: child.text or "" for child in polygon}
        texts = [text_of.get(f"{axis}{number}", "") for number in range(1, len(polygon) // 2 + 1) for axis in "xy"]
        flat = parse_numbers(texts, f"{where}: x1, y1, x2 and so on")
        points = np.reshape(flat, (-1, 2))
        shape: Shape | Box = Shape(name, partial(paint_outlines, [flat], where=where), where)
    elif box is not None:
        texts = [box.findtext(edge) or "" for edge in _EDGES]
        points = np.reshape(parse_numbers(texts, f"{where}: {', '.join(_EDGES)}"), (2, 2))
        (left, top), (right, bottom) = np.sort(points, axis=0).tolist()
        shape = Box(name, (left - 1, top - 1, right - left + 1, bottom - top + 1), where)  # VOC counts from 1
    else:
        tally.add("no_shape", example=where)
        return None
    if size_hw and reaches_beyond(points, size_hw):
        tally.add("clipped", example=where)
    return shape


KIND = Kind("voc", "Pascal VOC XML: LabelImg, Roboflow, CVAT: PASCAL VOC 1.1", recognise, read, boxes_only)
