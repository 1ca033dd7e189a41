"""COCO JSON, both ways: as CVAT, Label Studio, Roboflow and others write it, a file or one for each part of a set."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import LabelError
from defectseg.files import new_folder, write_text
from defectseg.formats.common import IGNORE_NAME, place_image
from defectseg.formats.exporting import ExportReport, Source
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import count_hole_px, cut_pieces, decode_rle, encode_rle, outline, paint_outlines
from defectseg.formats.reading import is_number, list_at, numbers_of, reaches_beyond, size_of, value_at
from defectseg.formats.source import LabelSource
from defectseg.progress import Progress, silent, some

FILE_NAME = "annotations.json"
COMPLETE_INFO = {"description": "written by defectseg", "complete": True}
"""`info` of a file whose images without an annotation are sound."""

_LISTS = ("images", "annotations", "categories")
_EXPECTED = "expected COCO: one object with the lists 'images', 'annotations' and 'categories'"
_HINT = "COCO holds no brush strokes of Label Studio: export 'JSON' there, and import that."

_Id = int | str
_Entry = tuple[str, Mapping[str, Any]]
"""Where an entry of a list stands, for messages, and what it says."""


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    what = "has lists of COCO, such as 'annotations'"
    evidence = source.evidence(".json", lambda content: len(_lists(content)) >= 2, what)
    return evidence or source.evidence(".json", _is_results, "is a list of results with 'image_id' and 'category_id'")


def _lists(content: Any) -> list[str]:
    return [key for key in _LISTS if key in content] if isinstance(content, dict) else []


def _is_results(content: Any) -> bool:
    """Whether it is what detectors write: https://cocodataset.org/#format-results."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and first.keys() >= {"image_id", "category_id"}


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    entries = [entry for _, content in source.first(".json") for entry in list_at(content, "annotations")]
    return bool(entries) and not any(value_at(entry, "segmentation") for entry in entries)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Files are united; their classes are the same if they have the same name."""
    contents = {file: source.content(file) for file in source.with_suffix(".json")}
    files = [file for file, content in contents.items() if len(_lists(content)) == len(_LISTS)]
    if not files:
        way_on = "Predictions can be put into such a file as its 'annotations'."
        raise LabelError(f"{source.given}: {_EXPECTED}, not {some(list(contents))}. {way_on}")
    for file in (file for file in contents if file not in files):
        tally.add("predictions_file" if _is_results(contents[file]) else "other_file", example=file)
    records: list[Record] = []
    names: dict[str, None] = {}
    corners: set[int] = set()
    for file in files:
        path = PurePosixPath(file)
        # Of several files, the name may tell the part, and the folder of its images: instances_val2017.json
        words = re.findall("[a-z]+", path.stem.lower()) if len(files) > 1 else []
        subset = path.stem.rpartition("_")[2] if part_among(words) else ""
        folder = "".join(f"{one}/" for one in (*path.parts[:-1], subset) if one)
        part = part_among([*words, *path.parts[-2::-1]])
        found, categories = _read_file(source.path(file), contents[file], choices, tally, corners)
        records += [replace(record, part=part, image=f"{folder}{record.image}") for record in found]
        names |= dict.fromkeys(categories)
    if corners == {4}:
        tally.add("like_boxes")
    own = all(contents[file].get("info") == COMPLETE_INFO for file in files)
    return LabelSet(records, list(names), own=own, hint=_HINT)


def _read_file(
    path: Path, content: Mapping[str, Any], choices: Choices, tally: Tally, corners: set[int]
) -> tuple[list[Record], Sequence[str]]:
    """The images of one file and its classes; and how many corners its outlines have. Raises LabelError."""
    images, annotations = _by_id(path, content, "images"), _entries(path, content, "annotations")
    names = _names(_by_id(path, content, "categories"), annotations)
    shapes: dict[_Id, list[Shape | Box | None]] = {image_id: [] for image_id in images}
    for where, entry in annotations:
        try:
            name, found, (_, image) = names[entry["category_id"]], shapes[entry["image_id"]], images[entry["image_id"]]
        except (KeyError, TypeError) as error:
            ids = f"'image_id' {brief(entry.get('image_id'))} and 'category_id' {brief(entry.get('category_id'))}"
            raise LabelError(f"{where}: has {ids}, which are not both in the lists. Export it again.") from error
        found.append(_shape(entry, name, size_of(image.get("height"), image.get("width")), where, tally, corners))
    records = [_record(entry, shapes[image_id], where, choices) for image_id, (where, entry) in images.items()]
    return records, list(names.values())


def _entries(path: Path, content: Mapping[str, Any], key: str) -> list[_Entry]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LabelError(f"{path}: has no list '{key}' of objects; {_EXPECTED}.")
    return [(f"{path}: {key}[{index}] with id {brief(one.get('id'))}", one) for index, one in enumerate(entries)]


def _by_id(path: Path, content: Mapping[str, Any], key: str) -> dict[_Id, _Entry]:
    found: dict[_Id, _Entry] = {}
    for where, entry in _entries(path, content, key):
        if not isinstance(entry.get("id"), _Id) or found.setdefault(entry["id"], (where, entry))[1] is not entry:
            raise LabelError(f"{where}: expected an 'id' that no other entry of '{key}' has. Export it again.")
    return found


def _names(categories: Mapping[_Id, _Entry], annotations: Sequence[_Entry]) -> dict[_Id, str]:
    """Id -> name, without Roboflow's id 0: it is the whole project, and every other category belongs to it."""
    for number, (where, entry) in categories.items():
        if not isinstance(number, int) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise LabelError(f"{where}: expected an 'id' that is a whole number, and a 'name'.")
    names: dict[_Id, str] = {number: categories[number][1]["name"] for number in sorted(categories, key=int)}
    parents = [entry.get("supercategory") for number, (_, entry) in categories.items() if number != 0]
    is_used = any(entry.get("category_id") == 0 for _, entry in annotations)
    if 0 in names and parents and all(parent == names[0] for parent in parents) and not is_used:
        del names[0]
    return names


def _record(entry: Mapping[str, Any], found: Sequence[Shape | Box | None], where: str, choices: Choices) -> Record:
    name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    size_hw = size_of(*size)
    if not isinstance(name, str) or not name.strip() or (size_hw is None and size != (None, None)):
        said = f"'file_name' {brief(name)}, 'height' and 'width' {brief(size)}"
        raise LabelError(f"{where}: has {said}; expected the name of a file, and its size in px.")
    where = f"{where} ({name})"
    shapes = [shape for shape in found if shape is not None]
    if found and not shapes and choices.unlabelled != "skip":
        why = "none of its annotations has a box, or an outline of three or more points, all numbers"
        raise LabelError(f"{where}: {why}; it would become sound. Draw them again.", go_on={"unlabelled": "skip"})
    status: Status = "labelled" if shapes else "unlabelled" if found else "unclear"
    return Record(name, where, shapes, size_hw, status=status)


def _shape(
    entry: Mapping[str, Any], name: str, size_hw: tuple[int, int] | None, where: str, tally: Tally, corners: set[int]
) -> Shape | Box | None:
    """The best that an annotation has: run-lengths, outlines, else its box. The rest is told."""
    segmentation, given_box = entry.get("segmentation") or [], entry.get("bbox") or []
    example = where.rpartition(": ")[2]
    if is_number(entry.get("score")):
        tally.add("score", example=example)
    if isinstance(segmentation, dict):
        corners.add(0)
        return Shape(name, partial(decode_rle, segmentation, where=where), where)
    is_nested = isinstance(segmentation, list) and all(isinstance(one, list) for one in segmentation[:1])
    polygons = [_numbers(one, example, tally) for one in (segmentation if is_nested else [segmentation]) if one]
    outlines = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    box = _numbers(given_box, example, tally)
    has_box = len(box) == 4 and min(box[2:]) > 0
    if len(outlines) < len(polygons) or (outlines and given_box and not has_box):
        tally.add("faulty_part", example=example)
    if outlines:
        points = np.concatenate(outlines).reshape(-1, 2)
        corners.add(len(set(map(tuple, points.tolist()))))
        if reaches_beyond(points, size_hw):
            tally.add("clipped", example=example)
        return Shape(name, partial(paint_outlines, [one.tolist() for one in outlines], where=where), where)
    if not has_box:
        tally.add("no_shape", example=example)
        return None
    left, top, width, height = box.tolist()
    return Box(name, (left, top, width, height), where)


def _numbers(values: Any, example: str, tally: Tally) -> NDArray[np.float64]:
    """A list of numbers in px, some of which may be written as text; an empty one if it is anything else."""
    numbers = numbers_of(values)
    if numbers.ndim != 1:
        return np.empty(0)
    if len(numbers) and any(isinstance(one, str) for one in values):
        tally.add("text_numbers", example=example)
    return numbers


class CocoDocument:
    """A COCO file in the making: one annotation for each connected region of each class.

    Args:
        class_names: name n-1 becomes category n.
        tally: receives the pixels of holes that outlines fill.
        tolerance_px: leave out points of an outline while the line moves by no more than this; 0 keeps the outline
            exact; None writes run-lengths instead.
    """

    def __init__(self, class_names: Sequence[str], tally: Tally, *, tolerance_px: float | None) -> None:
        self._tally, self._tolerance_px = tally, tolerance_px
        self._categories = dict(enumerate(class_names, start=1))
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(
        self, file_name: str, size_hw: tuple[int, int], masks: Mapping[int, NDArray[np.bool_]]
    ) -> list[dict[str, Any]]:
        """Add an image and every region of its masks, ClassId -> bool (H, W). Returns their annotations."""
        before, (height, width) = len(self.annotations), size_hw
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width})
        for class_id, piece in ((class_id, piece) for class_id, mask in masks.items() for piece in cut_pieces(mask)):
            if self._tolerance_px is None:
                segmentation: Any = encode_rle(piece.place(size_hw))
            else:
                segmentation = [outline(piece, tolerance_px=self._tolerance_px).ravel().tolist()]
            ids = {"id": len(self.annotations) + 1, "image_id": len(self.images), "category_id": class_id}
            shape = {"segmentation": segmentation, "area": piece.area_px, "bbox": list(piece.box_xywh), "iscrowd": 0}
            self.annotations.append({**ids, **shape})
        if self._tolerance_px is not None:
            self._tally.add("hole_px", sum(map(count_hole_px, masks.values())), example=file_name)
        return self.annotations[before:]

    def write(self, path: Path, *, complete: bool) -> None:
        """Write the file. Raises ResourceError.

        Args:
            path: the file.
            complete: somebody has labelled every image, so that those without an annotation are sound.
        """
        if any(annotation["category_id"] == IGNORE_CLASS_ID for annotation in self.annotations):
            self._categories[IGNORE_CLASS_ID] = IGNORE_NAME
        document = {
            "info": COMPLETE_INFO if complete else {},
            "categories": [{"id": one, "name": name, "supercategory": ""} for one, name in self._categories.items()],
            "images": self.images,
            "annotations": self.annotations,
        }
        write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def export_coco(
    root: Path, out: Path, *, polygons: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `annotations.json` beside `images/`.

    The ids of categories are ClassIds. Pixels to ignore become a category "ignore" with the id 255. Run-lengths keep
    every mask exact, and so do polygons except for holes. `info` says that the file is complete: images without an
    annotation are sound.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        polygons: outlines instead of run-lengths.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root)
    document = CocoDocument(source.folder.class_names, source.tally, tolerance_px=0.0 if polygons else None)
    with new_folder(out, last=FILE_NAME) as building:
        for image in source.images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            masks = dict(enumerate(image.masks, start=1)) | {IGNORE_CLASS_ID: image.ignore}
            document.add_image(image.image_id, image.ignore.shape, masks)
        document.write(building / FILE_NAME, complete=True)
    return source.report()


_MENU = "CVAT: COCO 1.0; Label Studio: COCO; Roboflow: COCO Segmentation; defectseg"
KIND = Kind("coco", _MENU, recognise, read, boxes_only)
