"""COCO JSON, in both directions. CVAT, Label Studio and Roboflow each write it in their own way."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID, Labels
from defectseg.errors import DataError, LabelError
from defectseg.files import check_is_free, new_folder, write_text
from defectseg.formats import coco_rle
from defectseg.formats.common import (
    IGNORE_NAME,
    Canvas,
    ExportReport,
    ImportReport,
    Source,
    Tally,
    number_classes,
    place_image,
    read_size,
    read_text,
    write_data_folder,
)
from defectseg.formats.polygons import count_hole_px, cut_pieces, outline, paint_outlines
from defectseg.image.find import FoundImage, find_images
from defectseg.progress import Progress, silent

FILE_NAME = "annotations.json"

_EXPECTED = "expected COCO: one object with the lists 'images', 'annotations' and 'categories'"
_LARGEST_PX = 1e9
_LOCAL_FILES = "?d="  # the paths of Label Studio's local storage: /data/local-files/?d=folder/a.jpg


def import_coco(
    file: Path,
    images: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from a COCO file and the folder with its images.

    ClassIds follow the order of the categories' ids, or of `classes`. A category called "ignore" marks pixels to
    ignore. So does the box of an annotation without an outline: there is a defect, but nobody knows where. Every image
    that the file lists is imported, with or without annotations. ImageIds are paths below `images`.

    Args:
        file: the JSON file.
        images: the folder of the images; `file_name` is compared with the ends of the paths in it.
        out: the data folder to make; it must be absent or empty.
        classes: names of ClassId 1, 2 and so on; they must include every category that has annotations.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        LabelError: the file is not COCO, or an annotation is not valid; names it.
        DataError: none of the images is there, or one has another size than the file says.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    listed, categories = _read(file)
    used = {annotation.category for image in listed for annotation in image.annotations}
    names, class_ids = number_classes(categories, classes, used, where=f"{file}: categories")
    tally = Tally()
    placed, missing = _find_listed(listed, images, file, tally)
    labels: Labels = {}
    for done, (image, found) in enumerate(placed, start=1):
        canvas = Canvas(read_size(found, image.size_hw, where=image.where), tally)
        for annotation in image.annotations:
            _paint(canvas, class_ids[annotation.category], annotation, tally)
        labels[found.image_id] = canvas.labels()
        progress(done, len(placed))
    images_found = [found for _, found in placed]
    return write_data_folder(out, images_found, names, labels, link=link, missing_images=missing, lost=tally.losses())


@dataclass(frozen=True)
class _Annotation:
    """An entry of the list `annotations`.

    Attributes:
        category: name of its category.
        segmentation: polygons, run-lengths, or an empty list.
        box_xywh: left, top, width, height in pixels; empty where the entry has no box.
        where: names it in messages.
    """

    category: str
    segmentation: list[Any] | dict[str, Any]
    box_xywh: Sequence[float]
    where: str


@dataclass(frozen=True)
class _Image:
    """An entry of the list `images`, with its annotations; `size_hw` is None where the file does not state it."""

    file_name: str
    size_hw: tuple[int, int] | None
    annotations: list[_Annotation]
    where: str


def _read(path: Path) -> tuple[list[_Image], list[str]]:
    """The images in the order of the file, and the names of the categories in the order of their ids.

    Raises:
        LabelError: the file cannot be read, is not COCO, or its entries do not fit together; names the entry.
    """
    document = _read_json(path)
    images: dict[int | str, _Image] = {}
    for number, record in enumerate(_records(document, "images", path), start=1):
        image_id = _identity(record, "id", f"{path}: image {number}")
        where = f"{path}: image {image_id}"
        if image_id in images:
            raise LabelError(f"{where}: stands in the list 'images' twice. Ids must differ; export it again.")
        name, height, width = record.get("file_name"), record.get("height"), record.get("width")
        if not isinstance(name, str) or not name.strip():
            raise LabelError(f"{where}: 'file_name' is {name!r}; expected the name of its file.")
        size_hw = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        images[image_id] = _Image(name, size_hw, [], f"{where} ({name})")
    if not images:
        raise LabelError(f"{path}: the list 'images' is empty; there is nothing to import.")
    annotations = _records(document, "annotations", path)
    categories = _categories(_records(document, "categories", path), annotations, path)
    for number, record in enumerate(annotations, start=1):
        where = f"{path}: annotation {record.get('id', f'number {number}')}"
        image_id = _identity(record, "image_id", where)
        if image_id not in images:
            raise LabelError(f"{where}: belongs to image {image_id!r}, which the list 'images' lacks. Export it again.")
        images[image_id].annotations.append(_annotation(record, categories, where))
    return list(images.values()), list(categories.values())


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(read_text(path, _EXPECTED))
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
) -> dict[int | str, str]:
    """Id -> name, by id, without Roboflow's id 0: it is the whole project, and every other category belongs to it."""
    names: dict[int | str, str] = {}
    for number, record in enumerate(records, start=1):
        where = f"{path}: category {record.get('id', f'number {number}')}"
        category_id, name = record.get("id"), record.get("name")
        if not isinstance(category_id, int) or not isinstance(name, str):
            raise LabelError(f"{where}: expected an id that is a whole number and a name that is a text.")
        if category_id in names:
            raise LabelError(f"{where}: stands in the list 'categories' twice. Ids must differ; export it again.")
        names[category_id] = name
    parents = {record.get("supercategory") for record in records if record["id"] != 0}
    if 0 in names and parents == {names[0]} and not any(one.get("category_id") == 0 for one in annotations):
        del names[0]
    return dict(sorted(names.items()))


def _annotation(record: Mapping[str, Any], categories: Mapping[int | str, str], where: str) -> _Annotation:
    category_id = _identity(record, "category_id", where)
    if category_id not in categories:
        known = ", ".join(f"{number} ({name})" for number, name in categories.items())
        raise LabelError(f"{where}: has category {category_id!r}; the list 'categories' has {known or 'none'}.")
    segmentation, box = record.get("segmentation") or [], record.get("bbox") or []
    if not isinstance(segmentation, list | dict):
        raise LabelError(f"{where}: 'segmentation' is {type(segmentation).__name__}; expected polygons or run-lengths.")
    if isinstance(segmentation, list) and segmentation:
        polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]  # one without a list around it
        segmentation = [polygon for polygon in polygons if polygon]
    in_px = isinstance(box, list) and all(isinstance(n, int | float) and abs(n) < _LARGEST_PX for n in box)
    if not in_px or len(box) not in (0, 4):
        raise LabelError(f"{where}: 'bbox' is {str(box)[:60]}; expected left, top, width and height in pixels.")
    return _Annotation(categories[category_id], segmentation, box, where)


def _find_listed(
    listed: Sequence[_Image], folder: Path, file: Path, tally: Tally
) -> tuple[list[tuple[_Image, FoundImage]], list[str]]:
    """The listed images with their files, by ImageId, and the names of those that the folder does not hold."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the images of {file.name} there.")
    there = {found.image_id: found for found in find_images([folder])}
    placed: dict[str, tuple[_Image, FoundImage]] = {}
    missing = []
    for image in listed:
        image_id = next((end for end in _path_ends(image.file_name) if end in there), None)
        if image_id is None:
            missing.append(image.file_name)
        elif image_id in placed:
            raise DataError(
                f"{image.where} and {placed[image_id][0].file_name} both stand for {there[image_id].path}. "
                "Keep one of the two in the file, or give a folder of images that tells them apart."
            )
        else:
            placed[image_id] = image, there[image_id]
    if not placed:
        raise DataError(
            f"{file}: none of its {len(missing)} images is in {folder}: it names '{missing[0]}', the folder holds "
            f"'{min(there)}'. Give the folder that holds them.",
            argument="images",
        )
    for image_id in sorted(there.keys() - placed.keys()):
        tally.add("unlisted_images", example=image_id)
    return [placed[image_id] for image_id in sorted(placed)], missing


def _path_ends(file_name: str) -> Iterator[str]:
    """Relative paths under which an image may lie in a folder, the longest first.

    Tools write backslashes, URLs, absolute paths, and paths that climb out of the folder. None of them is followed:
    the ends are only compared with the files that a folder holds.
    """
    if _LOCAL_FILES in file_name:
        file_name = unquote(file_name.partition(_LOCAL_FILES)[2])
    elif "://" in file_name:
        file_name = unquote(urlsplit(file_name).path)
    parts = [part for part in re.split(r"[\\/]", file_name) if part not in ("", ".", "..")]
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _paint(canvas: Canvas, class_id: int, annotation: _Annotation, tally: Tally) -> None:
    example = annotation.where.rpartition(": ")[2]
    if isinstance(annotation.segmentation, dict):
        mask = coco_rle.decode(annotation.segmentation, canvas.size_hw, where=annotation.where)
        canvas.add_mask(class_id, mask, example=example)
    elif annotation.segmentation:
        mask = paint_outlines(annotation.segmentation, canvas.size_hw, where=annotation.where)
        canvas.add_mask(class_id, mask, example=example)
    elif annotation.box_xywh:
        canvas.add_box(*annotation.box_xywh, example=example)
    else:
        tally.add("no_shape", example=example)


class CocoDocument:
    """A COCO file in the making: one annotation for each connected region of each class.

    Args:
        class_names: name n-1 becomes category n.
        tally: receives the pixels of holes that outlines fill.
        tolerance_px: leave out points of an outline while the line moves by no more than this; 0 keeps the outline
            exact; None writes run-lengths instead.
    """

    def __init__(self, class_names: Sequence[str], tally: Tally, *, tolerance_px: float | None) -> None:
        self._tally = tally
        self._tolerance_px = tolerance_px
        self._categories = dict(enumerate(class_names, start=1))
        self._images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, file_name: str, size_hw: tuple[int, int]) -> None:
        """Begin an image, to which the masks that follow belong."""
        height, width = size_hw
        self._images.append(
            {"id": len(self._images) + 1, "file_name": file_name, "height": height, "width": width, "license": 0}
        )

    def add_mask(
        self,
        class_id: int,
        mask: NDArray[np.bool_],
        scores: Mapping[tuple[int, ...], list[float]] | None = None,
    ) -> None:
        """Add every region of a mask, bool (H, W).

        Args:
            class_id: ClassId.
            mask: the mask.
            scores: ClassId, area, left, top, width and height of a region -> its scores, which are used up in turn.
        """
        image = self._images[-1]
        for piece in cut_pieces(mask):
            if class_id == IGNORE_CLASS_ID:
                self._categories[IGNORE_CLASS_ID] = IGNORE_NAME
            segmentation: Any
            if self._tolerance_px is None:
                segmentation = coco_rle.encode(piece.place(mask.shape))
            else:
                segmentation = [outline(piece, tolerance_px=self._tolerance_px).ravel().tolist()]
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": class_id,
                "segmentation": segmentation,
                "area": piece.area_px,
                "bbox": list(piece.box_xywh),
                "iscrowd": 0,
            }
            if scores and (found := scores.get((class_id, piece.area_px, *piece.box_xywh))):
                annotation["score"] = found.pop(0)
            self.annotations.append(annotation)
        if self._tolerance_px is not None:
            self._tally.add("hole_px", count_hole_px(mask), example=image["file_name"])

    def write(self, path: Path) -> None:
        """Write the file. Raises ResourceError."""
        document = {
            "info": {"description": "written by defectseg"},
            "licenses": [{"id": 0, "name": "", "url": ""}],
            "categories": [
                {"id": number, "name": name, "supercategory": ""} for number, name in self._categories.items()
            ],
            "images": self._images,
            "annotations": self.annotations,
        }
        write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def export_coco(
    root: Path, out: Path, *, polygons: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `annotations.json` beside `images/`.

    The ids of categories are ClassIds. Pixels to ignore become a category "ignore" with the id 255. Run-lengths keep
    every mask exact, and so do polygons except for holes.

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
            document.add_image(image.image_id, image.ignore.shape)
            for class_id, mask in [*enumerate(image.masks, start=1), (IGNORE_CLASS_ID, image.ignore)]:
                document.add_mask(class_id, mask)
        document.write(building / FILE_NAME)
    return source.report()
