"""A COCO file, read and checked: CVAT, Label Studio and Roboflow write it, each in its own way."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from defectseg.errors import LabelError

_EXPECTED = "expected COCO: one object with the lists 'images', 'annotations' and 'categories'"
_LARGEST_PX = 1e9
_LOCAL_FILES = "?d="  # the paths of Label Studio's local storage: /data/local-files/?d=folder/a.jpg


@dataclass(frozen=True)
class CocoImage:
    """An entry of the list `images`.

    Attributes:
        file_name: as it stands there.
        size_hw: height and width in pixels, None where the file does not say.
        annotations: the image's annotations.
        where: how messages name it.
    """

    file_name: str
    size_hw: tuple[int, int] | None
    annotations: tuple["CocoAnnotation", ...]
    where: str

    def path_ends(self) -> list[str]:
        """Relative paths under which the image may lie in a folder, the longest first.

        Tools write backslashes, URLs, absolute paths, and paths that climb out of the folder. Nothing of that is
        followed: names are only compared with the files that a folder holds.
        """
        text = self.file_name
        if _LOCAL_FILES in text:
            text = unquote(text.partition(_LOCAL_FILES)[2])
        elif "://" in text:
            text = unquote(urlsplit(text).path)
        parts = [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..")]
        return ["/".join(parts[start:]) for start in range(len(parts))]


@dataclass(frozen=True)
class CocoAnnotation:
    """An entry of the list `annotations`.

    Attributes:
        category: name of its category.
        segmentation: polygons, run-lengths or None.
        box_xywh: left, top, width, height in pixels, None where there is none.
        where: how messages name it.
    """

    category: str
    segmentation: list[Any] | Mapping[str, Any] | None
    box_xywh: tuple[float, float, float, float] | None
    where: str


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says.

    Attributes:
        images: in the order of the file.
        categories: their names in the order of their ids, without Roboflow's placeholder.
    """

    images: tuple[CocoImage, ...]
    categories: tuple[str, ...]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file, with or without a byte-order mark.

    Raises:
        LabelError: it cannot be read, is not COCO, or its entries do not fit together; names the entry.
    """
    document = _read_json(path)
    image_records, annotation_records, category_records = (
        _records(document, key, path) for key in ("images", "annotations", "categories")
    )
    if not image_records:
        raise LabelError(f"{path}: the list 'images' is empty; there is nothing to import.")
    categories = _categories(category_records, annotation_records, path)
    by_image: dict[Any, list[CocoAnnotation]] = defaultdict(list)
    image_ids = {_identity(record, "id", f"{path}: image {n}") for n, record in enumerate(image_records, start=1)}
    for number, record in enumerate(annotation_records, start=1):
        where = f"{path}: annotation {record.get('id', f'number {number}')}"
        image_id = _identity(record, "image_id", where)
        if image_id not in image_ids:
            raise LabelError(f"{where}: belongs to image {image_id!r}, which the list 'images' lacks. Export it again.")
        by_image[image_id].append(_annotation(record, categories, where))
    images = []
    seen = set()
    for record in image_records:
        where = f"{path}: image {record['id']}"
        if record["id"] in seen:
            raise LabelError(f"{where}: stands in the list 'images' twice. Ids must differ; export it again.")
        seen.add(record["id"])
        images.append(_image(record, tuple(by_image[record["id"]]), where))
    return CocoFile(tuple(images), tuple(categories.values()))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text; {_EXPECTED}. Unpack it first if it is an archive.") from error
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not valid JSON ({error}); {_EXPECTED}.") from error
    if not isinstance(document, dict):
        hint = " Label Studio's own JSON is such a list: export as COCO." if isinstance(document, list) else ""
        raise LabelError(f"{path}: holds a JSON {type(document).__name__}; {_EXPECTED}.{hint}")
    return document


def _records(document: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        found = ", ".join(map(repr, document)) or "nothing"
        raise LabelError(f"{path}: has no list '{key}' of objects (it has {found[:200]}); {_EXPECTED}.")
    return records


def _identity(record: Mapping[str, Any], key: str, where: str) -> int | str:
    value = record.get(key)
    if not isinstance(value, int | str):
        raise LabelError(f"{where}: '{key}' is {value!r}; expected a number or a text.")
    return value


def _categories(
    records: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], path: Path
) -> dict[Any, str]:
    """Id -> name, by id. Roboflow's id 0 is the whole project: no annotation has it, all others belong to it."""
    names: dict[Any, str] = {}
    for number, record in enumerate(records, start=1):
        where = f"{path}: category {record.get('id', f'number {number}')}"
        category_id, name = record.get("id"), record.get("name")
        if not isinstance(category_id, int) or not isinstance(name, str):
            raise LabelError(f"{where}: expected an id that is a whole number and a name that is a text.")
        if category_id in names:
            raise LabelError(f"{where}: stands in the list 'categories' twice. Ids must differ; export it again.")
        names[category_id] = name
    others = [record.get("supercategory") for record in records if record.get("id") != 0]
    used = any(annotation.get("category_id") == 0 for annotation in annotations)
    if 0 in names and not used and others and set(others) == {names[0]}:
        del names[0]
    return dict(sorted(names.items()))


def _annotation(record: Mapping[str, Any], categories: Mapping[Any, str], where: str) -> CocoAnnotation:
    category_id = _identity(record, "category_id", where)
    if category_id not in categories:
        known = ", ".join(f"{number} ({name})" for number, name in categories.items())
        raise LabelError(f"{where}: has category {category_id!r}; the list 'categories' has {known or 'none'}.")
    return CocoAnnotation(categories[category_id], _segmentation(record, where), _box(record, where), where)


def _segmentation(record: Mapping[str, Any], where: str) -> list[Any] | Mapping[str, Any] | None:
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict):
        return segmentation
    if not segmentation:
        return None
    if not isinstance(segmentation, list):
        raise LabelError(f"{where}: 'segmentation' is {type(segmentation).__name__}; expected polygons or run-lengths.")
    if not isinstance(segmentation[0], list):
        return [segmentation]  # one polygon without the list around it
    return [polygon for polygon in segmentation if polygon] or None


def _box(record: Mapping[str, Any], where: str) -> tuple[float, float, float, float] | None:
    box = record.get("bbox")
    if not box:
        return None
    numbers = isinstance(box, list) and all(isinstance(n, int | float) and abs(n) < _LARGEST_PX for n in box)
    if not numbers or len(box) != 4:
        raise LabelError(f"{where}: 'bbox' is {str(box)[:60]}; expected left, top, width and height in pixels.")
    left, top, width, height = map(float, box)
    return left, top, width, height


def _image(record: Mapping[str, Any], annotations: tuple[CocoAnnotation, ...], where: str) -> CocoImage:
    name = record.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise LabelError(f"{where}: 'file_name' is {name!r}; expected the name of its file.")
    size = (record.get("height"), record.get("width"))
    size_hw = None
    if isinstance(size[0], int) and isinstance(size[1], int):
        size_hw = (size[0], size[1])
    return CocoImage(name, size_hw, annotations, f"{where} ({name})")
