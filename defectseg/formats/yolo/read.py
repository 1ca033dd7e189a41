"""YOLO segmentation data sets as Ultralytics, CVAT, Label Studio and Roboflow write them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any

import yaml

from defectseg.data.classes import MAX_CLASSES, check_class_names
from defectseg.errors import DataError, LabelError
from defectseg.formats.common import Tally, index_unique, read_text
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_of
from defectseg.formats.locate import ImageFinder
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo.lines import looks_like_labels, parse_line
from defectseg.formats.yolo.parts import divide, place_of
from defectseg.formats.yolo.write import OWN_LINE, label_path
from defectseg.image.find import FoundImage

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_YAML_SUFFIXES = (".yaml", ".yml")
_NAMES_FILES = ("obj.names", "classes.txt")
_FEW = 20
_LONGEST_YAML = 1_000_000  # which takes PyYAML half a minute


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    if source.file is None and not source.with_suffix(".txt") and _masks(source):
        return ""
    if found := _yamls(source) or source.named("obj.data", "obj.names"):
        return f"there is {found[0]}"
    labels = _some_labels(source)
    return f"{labels[0]} has lines of a class and fractions" if labels else ""


def _yamls(source: LabelSource) -> list[str]:
    """data.yaml, else other YAML files that describe a data set."""
    found = source.named(*_YAML_NAMES)
    for file in [] if found else source.with_suffix(*_YAML_SUFFIXES)[:_FEW]:
        with suppress(LabelError):
            document = _read_yaml(source.path(file))
            found += [file] if "names" in document and any(map(part_of, document)) else []
    return found


def _some_labels(source: LabelSource) -> list[str]:
    """A few files in folders called `labels`, or beside a list of classes, that hold lines of labels."""
    has_names = bool(source.named(*_NAMES_FILES))
    found = [file for file in _texts(source) if has_names or "labels" in PurePosixPath(file).parts]
    return [file for file in found[:_FEW] if looks_like_labels(source.path(file))]


def _texts(source: LabelSource) -> list[str]:
    """The files that may be label files."""
    return [file for file in source.with_suffix(".txt") if PurePosixPath(file).name.lower() not in _NAMES_FILES]


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    lines = [read_text(source.path(file), "").split("\n")[0].split() for file in _some_labels(source)]
    return bool(lines) and all(len(words) in (5, 6) for words in lines)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in YOLO's order, or numbered from 1 if there are no names."""
    file, document = _describe(source)
    source = source if source.file is None else LabelSource(source.given, source.root)  # the folder of data.yaml
    given_names = _names(source, file, document)
    names = given_names or list(map(str, range(1, MAX_CLASSES + 1)))
    try:
        finder = ImageFinder([choices.images or source.root])
    except DataError as error:
        raise DataError(f"{error} Give the folder that holds the images.", argument="images") from error
    label_of, lonely = _pair(source, finder, by_name=choices.images is not None)
    places = {image.path: place_of(label_of.get(image.path, image.image_id)) for image in finder.images}
    parts, absent = divide(source, file, document, places, finder, tally)
    images = [image for image in finder.images if image.path in parts]
    labelled = [image.path for image in images if image.path in label_of]
    if not labelled:
        raise _no_labels(source, file, [image.image_id for image in images])
    shapes = dict(zip(labelled, _read_all(source, [label_of[path] for path in labelled], names, tally), strict=True))
    records = [
        Record(
            image.path,
            f"{source.given}: {label_of.get(image.path, image.image_id)}",
            shapes.get(image.path, ()),
            part=parts[image.path],
            status="labelled" if image.path in shapes else "unclear",
        )
        for image in images
    ]
    used = {shape.name for one in shapes.values() for shape in one}
    return LabelSet(
        records,
        given_names or [name for name in names if name in used],
        numbered=not given_names,
        roots=_roots(source, images) if choices.images is None else (),
        own=len(labelled) == len(images) and file != "" and read_text(source.path(file), "").startswith(OWN_LINE),
        lonely=[*lonely, *absent],
    )


def _describe(source: LabelSource) -> tuple[str, Mapping[str, Any]]:
    """data.yaml or obj.data, and what it says; "" if there is neither."""
    found = (_yamls(source) or source.named("obj.data")) if source.file is None else list(source.files)
    found.sort(key=lambda file: (file.count("/"), file))
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise LabelError(
            f"{source.given}: {found[0]} and {found[1]} both describe a data set. Give the one that is meant itself."
        )
    if not found or _is_yaml(found[0]):
        return (found[0], _read_yaml(source.path(found[0]))) if found else ("", {})
    lines = read_text(source.path(found[0]), "expected lines such as train = train.txt").splitlines()
    pairs = [line.partition("=") for line in lines]
    return found[0], {key.strip(): value.strip() for key, _, value in pairs if key.strip() != "names"}  # in obj.names


def _is_yaml(file: str) -> bool:
    return file.lower().endswith(_YAML_SUFFIXES)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, all of whose values are texts, lists and mappings. Raises LabelError."""
    expected = "expected a mapping with train, val and names"
    text = read_text(path, expected)
    if len(text) > _LONGEST_YAML:
        raise LabelError(f"{path}: {len(text)} letters; {expected}, and long lists of images in a text file.")
    try:
        document = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - makes no objects, only texts
    except (yaml.YAMLError, RecursionError) as error:
        raise LabelError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]}); {expected}.") from error
    if not isinstance(document, dict) or "kpt_shape" in document:
        raise LabelError(f"{path}: {expected}, for outlines and not for key points ('kpt_shape').")
    return document


def _names(source: LabelSource, file: str, document: Mapping[str, Any]) -> list[str]:
    """The classes, from data.yaml, else from a file with a name on each line; none if nobody named them."""
    where = source.path(file)
    names: Any = document.get("names")
    if not names and (files := source.named(*_NAMES_FILES)):
        lists = [read_text(source.path(one), "expected a class on each line").split("\n") for one in files]
        stripped = [[line.strip() for line in lines if line.strip()] for lines in lists]
        if any(lines != stripped[0] for lines in stripped):
            raise LabelError(f"{source.given}: {' and '.join(files)} name different classes. Keep one of them.")
        where, names = source.path(files[0]), stripped[0]
    elif not _is_yaml(file):
        return []
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    count = document.get("nc", document.get("classes"))
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or count not in (None, str(len(names))):
        raise LabelError(
            f"{where}: 'names' is {brief(names)}, and their number {brief(count)}; expected a list of class names, or "
            "a mapping from 0 on, and their number or nothing."
        )
    check_class_names(names, where=str(where))
    return list(names)


def _pair(source: LabelSource, finder: ImageFinder, *, by_name: bool) -> tuple[dict[Path, str], list[str]]:
    """Image -> its label file; and the label files without an image.

    Their paths must be alike, see `place_of`. Images elsewhere are found by the names of the label files.
    """
    image_at = index_unique(((str(place_of(image.image_id)), image.path) for image in finder.images), "images")
    label_of: dict[Path, str] = {}
    lonely = []
    for file in _texts(source):
        path = image_at.get(str(place_of(file)))
        if path is None and by_name and (image := finder.find(file.removesuffix(".txt"), where=file)):
            path = image.path
        if path is None:
            lonely.append(file)
        elif label_of.setdefault(path, file) != file:
            raise LabelError(f"{source.given}: {file} and {label_of[path]} both fit {path}. Keep one of the two.")
    return label_of, [file for file in lonely if looks_like_labels(source.path(file))]


def _read_all(source: LabelSource, files: Sequence[str], names: Sequence[str], tally: Tally) -> list[list[Shape | Box]]:
    """The outlines and boxes in each label file.

    Predictions have a confidence on each line. If a few lines have one, they are cut short.
    """
    shapes: list[list[Shape | Box]] = []
    scored = []
    for file in files:
        lines = read_text(source.path(file), "expected lines of labels").splitlines()
        parsed = [
            parse_line(line, names, tally, where=f"{source.given}: {file}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        shapes.append([shape for shape, _ in parsed])
        scored += [shape.where for shape, has_score in parsed if has_score]
    if 0 < len(scored) < (count := sum(map(len, shapes))):
        raise LabelError(
            f"{scored[0]}: an odd number of values after the class, as in {len(scored)} of {count} lines; expected "
            "x, y pairs on all lines, or a confidence at the end of all. Write the labels again."
        )
    for where in scored:
        tally.add("score", example=where.rpartition(": ")[2])
    return shapes


def _no_labels(source: LabelSource, file: str, images: Sequence[str]) -> DataError:
    example = f"; expected those of {images[0]} in {label_path(images[0])}" if images else ""
    hint = f" {_masks(source)[0]} looks like a mask." if _masks(source) else ""
    return DataError(
        f"{source.path(file)}: none of the {len(images)} images has a label file{example}.{hint}",
        go_on={"as": "masks"} if hint else None,
    )


def _masks(source: LabelSource) -> list[str]:
    return [file for file in source.files if "mask" in file.lower().rpartition("/")[0]]


def _roots(source: LabelSource, images: Sequence[FoundImage]) -> list[Path]:
    """The folders called images, or images/train and so on; none if one of the images lies in no such folder."""
    roots = set()
    for image in images:
        folders = PurePosixPath(image.image_id).parts[:-1]
        depths = [depth for depth, name in enumerate(folders, start=1) if name.lower() == "images"]
        if not depths:
            return []
        below = folders[depths[-1] : depths[-1] + 1]
        roots.add(source.root.joinpath(*folders[: depths[-1]], *filter(part_of, below)))
    return sorted(roots)


_MENU = "CVAT: Ultralytics YOLO Segmentation 1.0; Label Studio: YOLO with Images; Roboflow: YOLOv8; defectseg"
KIND = Kind("yolo", _MENU, recognise, read, boxes_only)
