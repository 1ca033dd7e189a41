"""YOLO segmentation data sets as Ultralytics, CVAT, Label Studio and Roboflow write them."""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from defectseg.data.classes import MAX_CLASSES
from defectseg.errors import LabelError
from defectseg.formats.common import index_unique
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Part, Record, Shape, Status, part_among, part_of
from defectseg.formats.locate import ImageFinder, find_all
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import check_outline
from defectseg.formats.reading import numbers_of, reaches_beyond
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo.write import OWN_LINE, label_path
from defectseg.progress import some
from defectseg.text import parse_yaml, read_text

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_NAMES_FILES = ("obj.names", "classes.txt")
_FEW = 20
_EXPECTED = "expected a class, then three or more points x, y or a box, as fractions of the image's size; no confidence"
_NO_PARTS = ("names", "nc", "path", "classes", "backup", "download")
_ORDER: tuple[Part, ...] = ("train", "val", "test", "")
_ROOT = re.compile("(.*/)?images(?=/)(/(train|training|val|valid|validation|test|testing)(?=/))?", re.IGNORECASE)
_ROUNDING_PX = 0.01  # 333 of 1000 px written as 0.333000 must not become pixel 332; five digits do for 2000 px

_Document = Mapping[str, Any]
_Places = Mapping[Path, PurePosixPath]


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    if any("mask" in file.lower().rpartition("/")[0] for file in source.files) and not source.with_suffix(".txt"):
        return ""
    found = _descriptions(source) or source.named("obj.names") or _some_labels(source)
    return f"there is {found[0]}" if found else ""


def _descriptions(source: LabelSource) -> list[str]:
    """data.yaml, else other YAML files that describe a data set, else obj.data."""
    found = source.named(*_YAML_NAMES)
    for file in [] if found else source.with_suffix(".yaml", ".yml")[:_FEW]:
        with suppress(LabelError):
            document = _read_description(source.path(file))
            found += [file] if "names" in document and any(map(part_of, document)) else []
    return sorted(found or source.named("obj.data"), key=lambda file: (file.count("/"), file))


def _some_labels(source: LabelSource) -> list[str]:
    """A few files in folders called `labels`, or beside a list of classes, that hold lines of labels."""
    has_names = bool(source.named(*_NAMES_FILES))
    found = [file for file in _texts(source) if has_names or "labels" in PurePosixPath(file).parts]
    return [file for file in found[:_FEW] if len(_first_numbers(source.path(file))) > 4]


def _texts(source: LabelSource) -> list[str]:
    """The files that may be label files."""
    return [file for file in source.with_suffix(".txt") if PurePosixPath(file).name.lower() not in _NAMES_FILES]


def _first_numbers(path: Path) -> NDArray[np.float64]:
    """The numbers in the first line of a file; none if it is anything else. Raises nothing."""
    with suppress(LabelError):
        return numbers_of(read_text(path, "").lstrip().partition("\n")[0].split())
    return np.empty(0)


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    return {len(_first_numbers(source.path(file))) for file in _some_labels(source)} == {5}


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in YOLO's order, or numbered from 1 if there are no names."""
    file, document = _describe(source)
    if source.file is not None:  # data.yaml
        source = LabelSource(source.given, source.root, follow_links=choices.follow_links)
    given_names = _names(source, file, document)
    names = given_names or list(map(str, range(1, MAX_CLASSES + 1)))
    finder = find_all(source, choices, tally)
    label_of, lonely = _pair(source, finder, elsewhere=choices.images is not None)
    places = {image.path: _place_of(label_of.get(image.path, image.image_id)) for image in finder.images}
    parts, absent = _divide(source, file, document, places, finder, tally)
    images = [image for image in finder.images if image.path in parts]
    records, corners = [], set[int]()
    for image in images:
        label = label_of.get(image.path)
        shapes = _shapes(source, label, names, tally, corners) if label else []
        where = f"{source.given}: {label or image.image_id}"
        status: Status = "labelled" if label else "unclear"
        records.append(Record(image.path, where, shapes, part=parts[image.path], status=status))
    if corners == {4}:
        tally.add("like_boxes")
    used = {shape.name for record in records for shape in record.shapes}
    is_own = file != "" and read_text(source.path(file), "").startswith(OWN_LINE)
    found = [_ROOT.match(image.image_id) for image in images]
    return LabelSet(
        records,
        given_names or sorted(used, key=int),
        numbered=not given_names,
        roots=sorted({source.root / one[0] for one in found if one}) if all(found) and not choices.images else (),
        own=is_own and all(record.status == "labelled" for record in records),
        lonely=[*lonely, *absent],
        hint="".join(f"The labels of {one.image_id} should be in {label_path(one.image_id)}." for one in images[:1]),
    )


def _describe(source: LabelSource) -> tuple[str, _Document]:
    """data.yaml or obj.data, and what it says; "" if there is neither."""
    found = _descriptions(source) if source.file is None else list(source.files)
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise LabelError(f"{source.given}: {found[0]} and {found[1]} both describe a data set. Give one of them.")
    return (found[0], _read_description(source.path(found[0]))) if found else ("", {})


def _read_description(path: Path) -> _Document:
    """The mapping in data.yaml or obj.data, all of whose values are texts, lists and mappings. Raises LabelError."""
    expected = "expected a mapping with train, val and names"
    text = read_text(path, expected)
    if path.suffix == ".data":
        text = re.sub("[ \t]*=[ \t]*", ": ", text)  # train = train.txt
    try:
        document = parse_yaml(text, yaml.BaseLoader)  # which makes no numbers of texts
    except ValueError as error:
        raise LabelError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]}); {expected}.") from error
    if not isinstance(document, dict) or "kpt_shape" in document:
        raise LabelError(f"{path}: {expected}, and no key points ('kpt_shape').")
    return document


def _names(source: LabelSource, file: str, document: _Document) -> list[str]:
    """The classes, from data.yaml, else from a file with a name on each line; none if nobody named them."""
    names: Any = document.get("names")
    if not names or file.endswith(".data"):  # which has the path of obj.names
        lists = {one: _lines(source.path(one), "expected a class on each line") for one in source.named(*_NAMES_FILES)}
        if len(set(map(tuple, lists.values()))) > 1:
            raise LabelError(f"{source.given}: {' and '.join(lists)} name different classes. Keep one of them.")
        names = next(iter(lists.values()), [])
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    count = document.get("nc", document.get("classes", str(len(names))))
    are_names = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not are_names or count != str(len(names)):
        what = f"'names' is {brief(names)}; expected {brief(count)} names as a list or from 0 on"
        raise LabelError(f"{source.path(file)}: {what}.")
    return list(names)


def _lines(path: Path, expected: str) -> list[str]:
    return [line.strip() for line in read_text(path, expected).split("\n") if line.strip()]


def _pair(source: LabelSource, finder: ImageFinder, *, elsewhere: bool) -> tuple[dict[Path, str], list[str]]:
    """Image -> its label file; and the label files without an image.

    Their paths must be alike, see `_place_of`, unless the images lie elsewhere.
    """
    image_at = index_unique(((str(_place_of(image.image_id)), image.path) for image in finder.images), "images")
    label_of: dict[Path, str] = {}
    lonely = []
    for file in _texts(source):
        path = image_at.get(str(_place_of(file)))
        if path is None and elsewhere and (image := finder.find(file[: -len(".txt")], where=str(source.path(file)))):
            path = image.path
        if path is None:
            lonely.append(file)
        elif label_of.setdefault(path, file) != file:
            raise LabelError(f"{source.given}: {file} and {label_of[path]} both fit {path}. Keep one of the two.")
    return label_of, [file for file in lonely if len(_first_numbers(source.path(file))) > 4]


def _place_of(file: str) -> PurePosixPath:
    """What an image and its label file have in common: their path without the suffix, where `labels` is `images`.

    Accents and letters are spelled in one way, as they are not on macOS and Windows.
    """
    path = "/" + normalize("NFC", file.rpartition(".")[0]).casefold().replace("\\", "/")
    before, found, after = path.rpartition("/labels/")
    return PurePosixPath((f"{before}/images/{after}" if found else path).lstrip("/"))


def _divide(
    source: LabelSource, file: str, document: _Document, places: _Places, finder: ImageFinder, tally: Tally
) -> tuple[dict[Path, Part], list[str]]:
    """Find the images of each part.

    The entries of data.yaml are folders, or lists of images in a text file. Tools write them as they were on another
    machine, and people leave placeholders. If there is no such folder, the folders that are called train, val or test
    are taken; if there are none either, and no other entry fits, everything belongs to the data set.

    Args:
        source: the data set.
        file: data.yaml or obj.data; "" if there is none.
        document: what it says.
        places: all images, see `_place_of`.
        finder: finds the images that lists name.
        tally: receives what was not as the file says.

    Returns:
        image -> its part, for all images that belong to the data set; and what the data set names that is not there.

    Raises:
        DataError: a list cannot be read, or a name in it fits several images; or a part is nowhere, and the folders'
            names do not tell which images it has.
    """
    base = _place_of(f"{file}/.").parent
    by_folder = {image: part_among(place.parts[:-1]) for image, place in places.items()}
    lists = {_place_of(f"{one}/."): source.path(one) for one in source.with_suffix(".txt")}
    known = lists.keys() | {folder for place in places.values() for folder in place.parents}
    parts: dict[Path, Part] = {}
    absent: list[str] = []
    nowhere: dict[Part, str] = {}
    for part, entry, path in _part_entries(document):
        place, found = _find_place(path, base, known), []
        if place in lists:
            lines = _lines(lists[place], "expected a path on each line")
            listed = {line: finder.find(line, where=str(lists[place])) for line in lines}
            absent += [line for line, image in listed.items() if image is None]
            found = [image.path for image in listed.values() if image]
        elif place:
            found = [image for image, its_place in places.items() if place in its_place.parents]
        elif part:
            nowhere[part] = entry
        for image in found:
            if parts.setdefault(image, part) != part or not part:
                tally.add("several_parts" if parts[image] != part else "other_part", example=image.name)
    unlisted = [image for image in places if image not in parts]
    if nowhere or not (parts or absent):
        if parts and (lost := [image.name for image in unlisted if by_folder[image] not in nowhere]):
            what = f"'{some(nowhere.values())}' is not there, and may be the folder of {some(lost)}"
            raise LabelError(f"{source.path(file)}: {what}. Correct this entry, or delete it.")
        tally.add("absent_folder", len(nowhere), example=some(nowhere.values()))
        return by_folder | parts, absent
    for image in unlisted:
        tally.add("unlisted_images", example=image.name)
    return parts, absent


def _part_entries(document: _Document) -> list[tuple[Part, str, str]]:
    """Part, text and path of each entry that may be a folder or a list: train, val, test, then other names."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in document.items()}
    texts = [(key, one) for key, values in lists.items() if key not in _NO_PARTS for one in values if one]
    root = document.get("path", "")
    entries = [(part_of(key), f"{key}: {one}", f"{root}/{one}/.") for key, one in texts if isinstance(one, str)]
    return sorted(entries, key=lambda one: _ORDER.index(one[0]))


def _find_place(path: str, base: PurePosixPath, known: Collection[PurePosixPath]) -> PurePosixPath | None:
    """Which of the known places a path means.

    Roboflow writes ../train/images for train/images, and other tools the path on the machine that wrote the set. So
    leading parts are left off until something is found, but none that says train, val or test.
    """
    parts = [part for part in _place_of(path).parts if part != ".."][-_FEW:]
    most = next((start for start, part in enumerate(parts) if part_of(part)), max(0, len(parts) - 1))
    return next((one for start in range(most + 1) if (one := base.joinpath(*parts[start:])) in known), None)


def _shapes(source: LabelSource, file: str, names: Sequence[str], tally: Tally, corners: set[int]) -> list[Shape | Box]:
    """The outlines and boxes in a label file; `corners` receives the number of each outline's. Raises LabelError."""
    shapes: list[Shape | Box] = []
    for number, line in enumerate(read_text(source.path(file), _EXPECTED).splitlines(), start=1):
        if not line.strip():
            continue
        numbers, where = numbers_of(line.split()), f"{source.given}: {file}, line {number}"
        points = numbers[1:].reshape(-1, 2) if len(numbers) % 2 else np.empty((0, 2))
        is_box = len(points) == 2
        if len(points) < 2 or reaches_beyond(points, (1, 1), sizes=1) or (is_box and points[1].min() <= 0):
            raise LabelError(f"{where}: {line[:60]!r}; {_EXPECTED}.")
        if numbers[0] not in range(len(names)):
            raise LabelError(f"{where}: class {numbers[0]:g}; expected 0 to {len(names) - 1}.")
        name = names[int(numbers[0])]
        if is_box:
            (x, y), (width, height) = points.tolist()
            shapes.append(Box(name, (x - width / 2, y - height / 2, width, height), where, in_fractions=True))
            continue
        corners.add(len(set(map(tuple, points.tolist()))))
        if reaches_beyond(points, (1, 1)):
            tally.add("clipped", example=f"{file}, line {number}")
        shapes.append(Shape(name, partial(_paint, points, where), where))
    return shapes


def _paint(points: NDArray[np.float64], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    pixels = np.floor(points * size_hw[::-1] + _ROUNDING_PX).astype(np.int32)
    check_outline(pixels, where)
    return np.asarray(cv2.fillPoly(np.zeros(size_hw, np.uint8), [pixels], 1)).view(np.bool_)


_MENU = "CVAT: Ultralytics YOLO Segmentation 1.0; Label Studio: YOLO with Images; Roboflow: YOLOv8; defectseg"
KIND = Kind("yolo", _MENU, recognise, read, boxes_only)
