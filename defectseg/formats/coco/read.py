"""COCO JSON as CVAT, Label Studio, Roboflow and others write it: a file, or one for each part of a data set."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError, LabelError
from defectseg.formats import coco_rle
from defectseg.formats.bitmaps import is_number
from defectseg.formats.coco.write import COMPLETE_INFO
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Part, Record, Shape, Status, part_of
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import lies_within, paint_outlines
from defectseg.formats.source import LabelSource
from defectseg.progress import some

_LISTS = ("images", "annotations", "categories")
_EXPECTED = "expected COCO: one object with the lists 'images', 'annotations' and 'categories'"
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_HINT = (
    "COCO holds polygons, and in some tools masks, but no brush strokes of Label Studio: export 'JSON' there, and "
    "import that."
)


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    for file, content in source.jsons(most=10):
        if len(lists := _lists(content)) >= 2:
            return f"{file} has the lists {', '.join(lists)}"
        if _is_result(content):
            return f"{file} is a list of results with 'image_id' and 'category_id'"
    return ""


def _lists(content: Any) -> list[str]:
    return [key for key in _LISTS if key in content] if isinstance(content, dict) else []


def _is_result(content: Any) -> bool:
    """Whether it is what detectors write: https://cocodataset.org/#format-results."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and first.keys() >= {"image_id", "category_id"}


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    lists = [content["annotations"] for _, content in source.jsons(most=10) if "annotations" in _lists(content)]
    entries = [entry for one in lists if isinstance(one, list) for entry in one if isinstance(entry, dict)]
    return bool(entries) and not any(entry.get("segmentation") for entry in entries)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Files are united; their classes are the same if they have the same name."""
    contents = {file: source.json(file) for file in source.with_suffix(".json")}
    most = max((len(_lists(content)) for content in contents.values()), default=0)
    files = [file for file, content in contents.items() if most and len(_lists(content)) == most]
    results = [file for file, content in contents.items() if _is_result(content)]
    if results and not files:
        raise DataError(
            f"{source.path(results[0])}: holds predictions (a list of COCO results), not labels; it names neither the "
            "images nor the classes. To correct them and use them as labels, put the list into the COCO file of its "
            "images, in the place of 'annotations', and import that. To score them, write them as a table with "
            "ImageId, ClassId and EncodedPixels, and run `defectseg evaluate` with it as the predictions."
        )
    if not files:
        raise LabelError(f"{source.given}: {_EXPECTED}.")
    for file in (file for file in contents if file not in files):
        tally.add("predictions_file" if file in results else "other_file", example=file)
    records: list[Record] = []
    names: dict[str, None] = {}
    for file in files:
        document = _Document(source.path(file), contents[file], choices, tally)
        names |= dict.fromkeys(document.categories.values())
        part, folder = _part(PurePosixPath(file), several=len(files) > 1)
        records += [replace(one, part=part, image=f"{folder}{one.image}") for one in document.records()]
    own = all(contents[file].get("info") == COMPLETE_INFO for file in files)
    return LabelSet(records, list(names), own=own, hint=_HINT)


def _part(file: PurePosixPath, *, several: bool) -> tuple[Part, str]:
    """The part of a data set that a file holds by its name, if it is one of several, or its folders; and the folder
    where its images are likely to lie.
    """
    words = re.findall("[a-z]+", file.stem.lower()) if several else []
    part: Part = next(filter(None, map(part_of, (*words, *file.parts[-2::-1]))), "")
    folder = str(file.parent / (file.stem.rpartition("_")[2] if any(map(part_of, words)) else ""))
    return part, "" if folder == "." else f"{folder}/"


class _Document:
    """One COCO file.

    Args:
        path: the file, for messages.
        content: what it holds.
        choices: `unlabelled` counts.
        tally: receives changes and losses.

    Attributes:
        categories: id -> name, by id.

    Raises:
        LabelError: the file is not COCO; names the entry.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], choices: Choices, tally: Tally) -> None:
        self._path, self._content, self._choices, self._tally = path, content, choices, tally
        self.categories = self._read_categories()

    def records(self) -> Iterator[Record]:
        """The images in the order of the file, with their annotations. Raises LabelError, which names the entry."""
        images: dict[int | str, tuple[str, dict[str, Any]]] = {}
        for where, entry in self._entries("images"):
            image_id = _identity(entry, "id", where)
            if image_id in images:
                raise LabelError(f"{where}: stands in the list 'images' twice. Ids must differ; export it again.")
            images[image_id] = where, entry
        if not images:
            raise LabelError(f"{self._path}: the list 'images' is empty; there is nothing to import.")
        annotations: dict[int | str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for where, entry in self._entries("annotations"):
            image_id = _identity(entry, "image_id", where)
            if image_id not in images:
                raise LabelError(
                    f"{where}: belongs to image {brief(image_id)}, which the list 'images' lacks. Export it again."
                )
            annotations[image_id].append((where, entry))
        for image_id, (where, entry) in images.items():
            yield self._record(where, entry, annotations[image_id])

    def _entries(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where each entry of a list stands, for messages, and the entry."""
        entries = self._content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            found = ", ".join(map(repr, self._content))
            raise LabelError(f"{self._path}: has no list '{key}' of objects (it has {found[:200]}); {_EXPECTED}.")
        singular = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
        for number, entry in enumerate(entries, start=1):
            has_id = isinstance(entry.get("id"), int | str)
            yield f"{self._path}: {singular} {brief(entry['id']) if has_id else f'number {number}'}", entry

    def _read_categories(self) -> dict[int, str]:
        """Id -> name, without Roboflow's id 0: it is the whole project, and every other category belongs to it."""
        entries = list(self._entries("categories"))
        names: dict[int, str] = {}
        for where, entry in entries:
            category_id, name = entry.get("id"), entry.get("name")
            if not isinstance(category_id, int) or not isinstance(name, str) or not name.strip():
                raise LabelError(f"{where}: expected an id that is a whole number and a name that is a text.")
            if category_id in names:
                raise LabelError(f"{where}: stands in the list 'categories' twice. Ids must differ; export it again.")
            names[category_id] = name
        parents = [entry.get("supercategory") for _, entry in entries if entry["id"] != 0]
        is_root = 0 in names and parents and all(parent == names[0] for parent in parents)
        if is_root and not any(entry.get("category_id") == 0 for _, entry in self._entries("annotations")):
            del names[0]
        if len(set(names.values())) < len(names):
            raise LabelError(f"{self._path}: two categories have one name ({', '.join(names.values())}). Rename one.")
        return dict(sorted(names.items()))

    def _record(self, where: str, entry: Mapping[str, Any], entries: Sequence[tuple[str, dict[str, Any]]]) -> Record:
        name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
        if not isinstance(name, str) or not name.strip():
            raise LabelError(f"{where}: 'file_name' is {brief(name)}; expected the name of its file.")
        size_hw = None
        if height is not None or width is not None:
            if not (is_number(height) and is_number(width)):
                raise LabelError(f"{where}: has the size {brief(width)} x {brief(height)}; expected width and height.")
            size_hw = int(height or 0), int(width or 0)
        shapes = [shape for there, one in entries if (shape := self._shape(one, there)) is not None]
        if entries and not shapes and self._choices.unlabelled != "skip":
            raise LabelError(
                f"{entries[0][0]}: has no outline of three points or more that are all numbers, and no box. It is the "
                f"only label of {name}, which would become sound. Draw it again, or leave the image out of training.",
                go_on={"unlabelled": "skip"},
            )
        status: Status = "labelled" if shapes else "unlabelled" if entries else "unclear"
        return Record(name, f"{where} ({name})", shapes, size_hw, status=status)

    def _shape(self, entry: Mapping[str, Any], where: str) -> Shape | Box | None:
        """The best that an annotation has: run-lengths, outlines, else its box. The rest is told."""
        category_id = _identity(entry, "category_id", where)
        if category_id not in self.categories:
            known = [f"{brief(number)} ({name})" for number, name in self.categories.items()]
            raise LabelError(
                f"{where}: has category {brief(category_id)}; the list 'categories' has {some(known) or 'none'}."
            )
        name = self.categories[category_id]
        example = where.rpartition(": ")[2]
        if is_number(entry.get("score")):
            self._tally.add("score", example=example)
        segmentation = entry.get("segmentation") or []
        if isinstance(segmentation, dict):
            return Shape(name, partial(coco_rle.decode, segmentation, where=where), where)
        return self._outlined_or_boxed(name, segmentation, entry.get("bbox") or [], where)

    def _outlined_or_boxed(self, name: str, segmentation: Any, given_box: Any, where: str) -> Shape | Box | None:
        example = where.rpartition(": ")[2]
        is_nested = isinstance(segmentation, list) and all(isinstance(one, list) for one in segmentation[:1])
        polygons = [polygon for polygon in segmentation if polygon] if is_nested else [segmentation]
        used = [one for one in polygons if len(numbers := _numbers(one)) >= 6 and len(numbers) % 2 == 0]
        if len(used) < len(polygons):
            self._tally.add("faulty_outline", example=example)
        outlines, box = list(map(_numbers, used)), _numbers(given_box)
        has_box = len(box) == 4 and min(box[2:]) > 0
        if any(isinstance(number, str) for one in used or ([given_box] if has_box else []) for number in one):
            self._tally.add("text_numbers", example=example)
        if outlines:
            if given_box and not has_box:
                self._tally.add("faulty_box", example=example)
            return Shape(name, partial(_paint_outlines, outlines, where, self._tally), where)
        if has_box:
            return Box(name, (box[0], box[1], box[2], box[3]), where)
        self._tally.add("no_shape", example=example)
        return None


def _identity(entry: Mapping[str, Any], key: str, where: str) -> int | str:
    value = entry.get(key)
    if not isinstance(value, int | str):
        raise LabelError(f"{where}: '{key}' is {brief(value)}; expected a number or a text.")
    return value


def _numbers(values: Any) -> list[float]:
    """A list of numbers in px, some of which may be written as text; an empty one if it is anything else."""
    if not isinstance(values, list):
        return []
    numbers = [float(one) if isinstance(one, str) and _NUMBER.fullmatch(one.strip()) else one for one in values]
    return numbers if all(map(is_number, numbers)) else []


def _paint_outlines(
    outlines: list[list[float]], where: str, tally: Tally, size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    if not all(lies_within(np.reshape(outline, (-1, 2)), size_hw) for outline in outlines):
        tally.add("clipped", example=where.rpartition(": ")[2])
    return paint_outlines(outlines, size_hw, where=where)


_MENU = "CVAT: COCO 1.0; Label Studio: COCO; Roboflow: COCO Segmentation; defectseg"
KIND = Kind("coco", _MENU, recognise, read, boxes_only)
