"""Pascal VOC XML: one file for each image, with boxes."""

from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

from defectseg.errors import LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Part, Record, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.masks.layouts import key_of, listed_parts
from defectseg.formats.reading import parse_numbers, reaches_beyond
from defectseg.formats.source import LabelSource

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_POLYGONS = (
    "has polygons, which are not read. Export COCO from Roboflow; load those of the old LabelMe into CVAT first."
)


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    return source.evidence(".xml", _is_voc, "has an 'annotation' as in Pascal VOC")


def _is_voc(root: Element) -> bool:
    return root.tag == "annotation" and any(root.find(tag) is not None for tag in ("object", "size"))


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order in which they first appear. A file without objects is a sound image."""
    records = []
    listed = listed_parts(source, {key_of(file[: -len(".xml")]) for file in source.with_suffix(".xml")}, tally)
    for file, _, root in source.of_kind(".xml", _is_voc, tally):
        named = root.findtext("filename") or ""
        if root.find("object/polygon/*") is not None:
            raise LabelError(f"{source.path(file)}: {_POLYGONS}")
        if source.means_another(file, named):
            raise LabelError(f"{source.path(file)}: its 'filename', {named}, is another image. Correct it.")
        records.append(_record(root, PurePosixPath(file), listed, str(source.path(file)), tally))
    names = dict.fromkeys(shape.name for record in records for shape in record.shapes)
    return LabelSet(records, list(names), file_each=True)


def _record(root: Element, file: PurePosixPath, listed: dict[str, Part], where: str, tally: Tally) -> Record:
    texts = [root.findtext(f"size/{side}") or "0" for side in ("height", "width")]
    height, width = map(int, parse_numbers(texts, f"{where}: height, width"))
    size_hw = (height, width) if height and width else None
    objects = enumerate(root.findall("object"), start=1)
    boxes = [_box(one, size_hw, f"{where}: object {number}", tally) for number, one in objects]
    part = listed.get(key_of(str(file.with_suffix("")))) or part_among(file.parts[:-1])
    image = f"{file.parent}/{root.findtext('filename') or file.stem}"
    return Record(image, where, boxes, size_hw, part, also=(str(file.with_suffix("")),))


def _box(one: Element, size_hw: tuple[int, int] | None, where: str, tally: Tally) -> Box:
    texts = [one.findtext(f"bndbox/{edge}") or "" for edge in _EDGES]
    points = np.reshape(parse_numbers(texts, f"{where}: {', '.join(_EDGES)}"), (2, 2))
    if reaches_beyond(points, size_hw):
        tally.add("clipped", example=where)
    (left, top), (right, bottom) = np.sort(points, axis=0).tolist()
    name = (one.findtext("name") or "").strip()
    return Box(name, (left - 1, top - 1, right - left + 1, bottom - top + 1), where)  # VOC counts from 1


KIND = Kind("voc", "Pascal VOC XML: LabelImg, Roboflow, CVAT: PASCAL VOC 1.1", recognise, read, lambda source: True)
