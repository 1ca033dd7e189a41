"""YOLO segmentation data sets as Ultralytics, CVAT, Label Studio and Roboflow write them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any
from unicodedata import normalize

import numpy as np
import yaml
from numpy.typing import NDArray

from defectseg.data.classes import MAX_CLASSES
from defectseg.errors import DataError, LabelError
from defectseg.formats.common import index_unique, read_text
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, part_of
from defectseg.formats.locate import ImageFinder
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import lies_within, paint_pixel_outline
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo.lines import Line, looks_like_labels, read_lines
from defectseg.formats.yolo.parts import Pair, divide
from defectseg.formats.yolo.write import OWN_LINE, label_path

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_NAMES_FILES = ("obj.names", "classes.txt")
_FEW = 20
_LONGEST_YAML = 1_000_000  # which takes PyYAML half a minute
_ROUNDING_PX = 0.01  # 333 of 1000 px written as 0.333000 must not become pixel 332; five digits do for 2000 px


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
    for file in [] if found else source.with_suffix(".yaml", ".yml")[:_FEW]:
        with suppress(LabelError):
            document = _read_yaml(source.path(file))
            found += [file] if "names" in document and any(map(part_of, document)) else []
    return found


def _some_labels(source: LabelSource) -> list[str]:
    """A few files in folders called `labels`, or beside a list of classes, that hold lines of labels."""
    has_names = bool(source.named(*_NAMES_FILES))
    found = [file for file in source.with_suffix(".txt") if has_names or "labels" in PurePosixPath(file).parts]
    few = [file for file in found if PurePosixPath(file).name.lower() not in _NAMES_FILES][:_FEW]
    return [file for file in few if looks_like_labels(source.path(file))]


def boxes_only(source: LabelSource) -> bool:
    """See `Kind`."""
    lines = [read_text(source.path(file), "").split("\n")[0].split() for file in _some_labels(source)]
    return bool(lines) and all(len(words) in (5, 6) for words in lines)


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in YOLO's order, or numbered from 1 if there are no names."""
    file, document = _describe(source)
    source = source if source.file is None else LabelSource(source.given, source.root)  # the folder of data.yaml
    names = _names(source, file, document)
    try:
        finder = ImageFinder([choices.images or source.root])
    except DataError as error:
        raise DataError(f"{error} Give the folder that holds the images.", argument="images") from error
    pairs, lonely = _pair(source, finder, choices)
    parts, absent = divide(source, file, document, pairs, finder, tally)
    pairs = [pair for pair in pairs if pair.path in parts]
    lines = _read_all(source, pairs, names)
    if not lines:
        raise _no_labels(source, file, pairs)
    _check_scores([line for one in lines.values() for line in one], tally)
    records = [
        Record(
            pair.path,
            f"{source.given}: {pair.labels if pair.path in lines else pair.name}",
            [_shape(line, names, tally) for line in lines.get(pair.path, ())],
            part=parts[pair.path],
            status="labelled" if pair.path in lines else "unclear",
        )
        for pair in pairs
    ]
    used = sorted({line.class_index + 1 for one in lines.values() for line in one})
    return LabelSet(
        records,
        list(map(str, used)) if names is None else names,
        numbered=names is None,
        roots=_roots(source, pairs) if choices.images is None else (),
        own=len(lines) == len(pairs) and file != "" and read_text(source.path(file), "").startswith(OWN_LINE),
        lonely=[*lonely, *absent],
    )


def _describe(source: LabelSource) -> tuple[str, Mapping[str, Any]]:
    """data.yaml or obj.data, and what it says; "" if there is neither."""
    found = (_yamls(source) or source.named("obj.data")) if source.file is None else list(source.files)
    found.sort(key=lambda file: (file.count("/"), file))
    if not found:
        return "", {}
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise LabelError(
            f"{source.given}: {found[0]} and {found[1]} both describe a data set. Give the one that is meant itself."
        )
    path = source.path(found[0])
    if path.suffix.lower() in (".yaml", ".yml"):
        return found[0], _read_yaml(path)
    lines = read_text(path, "expected lines such as train = train.txt").splitlines()
    pairs = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    return found[0], {key: value for key, value in pairs.items() if key != "names"}  # obj.names itself is read


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, all of whose values are texts, lists and mappings. Raises LabelError."""
    expected = "expected the keys train, val and names"
    text = read_text(path, expected)
    if len(text) > _LONGEST_YAML:
        raise LabelError(f"{path}: {len(text)} letters; {expected}, and long lists of images in a text file.")
    try:
        document = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - makes no objects, only texts
    except (yaml.YAMLError, RecursionError) as error:
        raise LabelError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]}); {expected}.") from error
    if not isinstance(document, dict):
        raise LabelError(f"{path}: holds no mapping; {expected}.")
    if "kpt_shape" in document:
        raise LabelError(f"{path}: describes key points ('kpt_shape'), not outlines. Export as YOLO segmentation.")
    return document


def _names(source: LabelSource, file: str, document: Mapping[str, Any]) -> list[str] | None:
    """The classes, from data.yaml, else from a file with a name on each line; None if there is none."""
    where = str(source.path(file)) if file else str(source.given)
    names = document.get("names")
    if not names and (files := source.named(*_NAMES_FILES)):
        lists = [read_text(source.path(one), "expected a class on each line").split("\n") for one in files]
        stripped = [[line.strip() for line in lines if line.strip()] for lines in lists]
        if any(lines != stripped[0] for lines in stripped):
            raise LabelError(f"{source.given}: {' and '.join(files)} name different classes. Keep one of them.")
        where, names = str(source.path(files[0])), stripped[0]
    elif not file or (names is None and file.endswith(".data")):
        return None
    if isinstance(names, dict):
        expected = [str(number) for number in range(len(names))]
        if names.keys() != set(expected):
            raise LabelError(f"{where}: names has the keys {brief(list(names))}; expected 0 to {len(names) - 1}.")
        names = [names[number] for number in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise LabelError(f"{where}: 'names' is {brief(names)}; expected a list of class names, or a mapping from 0 on.")
    if len(set(names)) < len(names):
        raise LabelError(f"{where}: a name stands there twice ({brief(names)}). Rename one of the two.")
    count = document.get("nc", document.get("classes", len(names)))
    if str(count) != str(len(names)):
        raise LabelError(f"{where}: has {len(names)} names, but should have {brief(count)}. Mend what is wrong.")
    return names


def _pair(source: LabelSource, finder: ImageFinder, choices: Choices) -> tuple[list[Pair], list[str]]:
    """Every image with its label file, and the label files without an image.

    In the source, the path of an image tells that of its label file. Images elsewhere are found by the names of the
    label files.
    """
    texts = [file for file in source.with_suffix(".txt") if PurePosixPath(file).name.lower() not in _NAMES_FILES]
    lonely = []
    label_of: dict[Path, str] = {}
    if choices.images is None:
        spelled = {_plain(file): file for file in texts}
        label_of = {
            image.path: spelled.get(label_path(_plain(image.image_id)), label_path(image.image_id))
            for image in finder.images
        }
        there = set(texts)
        index_unique(((labels, path) for path, labels in label_of.items() if labels in there), "images")
        lonely = sorted(there - set(label_of.values()))
    else:
        for file in (file for file in texts if looks_like_labels(source.path(file), if_empty=True)):
            image = finder.find(file.removesuffix(".txt"), where=str(source.path(file)))
            if image is None:
                lonely.append(file)
            elif (other := label_of.setdefault(image.path, file)) != file:
                raise LabelError(f"{source.given}: {file} and {other} both fit {image.path}. Keep one of the two.")
    pairs = [
        Pair(image.path, image.image_id, label_of.get(image.path, label_path(image.image_id)))
        for image in finder.images
    ]
    return pairs, [file for file in lonely if looks_like_labels(source.path(file))]


def _plain(file: str) -> str:
    """A path without the differences that macOS and Windows make: accents as letters of their own, upper case."""
    return normalize("NFC", file).casefold()


def _read_all(source: LabelSource, pairs: Sequence[Pair], names: Sequence[str] | None) -> dict[Path, list[Line]]:
    """Image -> the lines of its label file, if there is one."""
    there, num_classes = set(source.files), MAX_CLASSES if names is None else len(names)
    return {
        pair.path: list(
            read_lines(source.path(pair.labels), num_classes=num_classes, where=f"{source.given}: {pair.labels}")
        )
        for pair in pairs
        if pair.labels in there
    }


def _no_labels(source: LabelSource, file: str, pairs: Sequence[Pair]) -> DataError:
    example = f"; expected those of {pairs[0].name} in {pairs[0].labels}" if pairs else ""
    hint = f" {_masks(source)[0]} looks like a mask." if _masks(source) else ""
    return DataError(
        f"{source.path(file)}: none of the {len(pairs)} images has a label file{example}.{hint}",
        go_on={"as": "masks"} if hint else None,
    )


def _masks(source: LabelSource) -> list[str]:
    return [file for file in source.files if "mask" in file.lower().rpartition("/")[0]]


def _check_scores(lines: Sequence[Line], tally: Tally) -> None:
    """Predictions have a confidence on each line. If a few lines have one, they are cut short."""
    scored = [line for line in lines if line.has_score]
    if scored and len(scored) < len(lines):
        raise LabelError(
            f"{scored[0].where}: an odd number of values after the class, as in {len(scored)} of {len(lines)} lines; "
            "expected x, y pairs on all lines, or a confidence at the end of all. Write the labels again."
        )
    for line in scored:
        tally.add("score", example=line.where.rpartition(": ")[2])


def _shape(line: Line, names: Sequence[str] | None, tally: Tally) -> Shape | Box:
    name = str(line.class_index + 1) if names is None else names[line.class_index]
    if len(line.points) > 2:
        return Shape(name, partial(_paint, line, tally), line.where)
    (x, y), (width, height) = line.points.tolist()
    return Box(name, (x - width / 2, y - height / 2, width, height), line.where, in_fractions=True)


def _paint(line: Line, tally: Tally, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    points = line.points * size_hw[::-1]
    if not lies_within(points, size_hw):
        tally.add("clipped", example=line.where.rpartition(": ")[2])
    return paint_pixel_outline(np.floor(points + _ROUNDING_PX).astype(np.intp), size_hw)


def _roots(source: LabelSource, pairs: Sequence[Pair]) -> list[Path]:
    """The folders called images, or images/train and so on; none if one of the images lies in no such folder."""
    roots = set()
    for pair in pairs:
        folders = PurePosixPath(pair.name).parts[:-1]
        depth = max((place for place, name in enumerate(folders, start=1) if name.lower() == "images"), default=0)
        if depth == 0:
            return []
        depth += bool(part_of("".join(folders[depth : depth + 1])))
        roots.add(source.root.joinpath(*folders[:depth]))
    return sorted(roots)


_MENU = "CVAT: Ultralytics YOLO Segmentation 1.0; Label Studio: YOLO with Images; Roboflow: YOLOv8; defectseg"
KIND = Kind("yolo", _MENU, recognise, read, boxes_only)
