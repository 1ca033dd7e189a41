"""Label Studio JSON: the full export and JSON-MIN, with polygons, brushes, bitmasks and ellipses."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError, LabelError
from defectseg.formats.bitmaps import decode_base64, decode_bitmap, is_number, points_of, reaches_beyond, size_of
from defectseg.formats.common import Tally
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.source import LabelSource
from defectseg.image.find import IMAGE_SUFFIXES

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_MIN_KEYS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
_AREAS = ("polygon", "brush", "magicwand", "bitmask", "ellipse", "rectangle")
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    for file, content in source.jsons(most=5):
        if _is_export(content):
            return f"{file} is a list of tasks with 'annotations' or 'annotation_id'"
    return ""


def _is_export(content: Any) -> bool:
    task = content[0] if isinstance(content, list) and content else None
    return isinstance(task, dict) and (
        (isinstance(task.get("data"), dict) and ("annotations" in task or "completions" in task))
        or "annotation_id" in task
    )


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order in which they first appear."""
    records, kinds = [], Counter[str]()
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if not _is_export(content):
            tally.add("other_file", example=file)
            continue
        for name, task in _tasks(content, f"{source.given}: {file}").items():
            records.append(_record(task, f"{source.given}: {file}, {name}", kinds, tally))
    shapes = [shape for record in records for shape in record.shapes]
    _check_kinds(kinds, shapes, choices, str(source.given))
    if nameless := [record.where for record in records if not record.image]:
        raise LabelError(f"{nameless[0]}: its data name no image; expected a text such as '/data/upload/1/a.jpg'.")
    return LabelSet(
        records,
        list(dict.fromkeys(shape.name for shape in shapes)),
        file_each=True,
        absent_hint="Label Studio exports no images with its JSON.",
    )


def _check_kinds(kinds: Mapping[str, int], shapes: Sequence[Shape | Box], choices: Choices, where: str) -> None:
    """Refuse labels that cover no area. Raises DataError that says which kinds there are."""
    if any(isinstance(shape, Shape) for shape in shapes) or not kinds or (shapes and choices.boxes):
        return
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    boxes = " The pixels in boxes can be ignored." if shapes else ""
    raise DataError(
        f"{where}: holds {found}. Masks need polygonlabels, brushlabels, bitmasklabels or ellipselabels: label the "
        f"images with one of these.{boxes}",
        go_on={"boxes": "ignore"} if shapes else None,
    )


def _tasks(content: list[Any], where: str) -> dict[str, dict[str, Any]]:
    """Name -> task, in the form of the full export. Rows of JSON-MIN for one task are united."""
    tasks: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(content, start=1):
        if not isinstance(task, dict):
            raise LabelError(f"{where}: entry {number} is {str(task)[:60]}; expected a task.")
        name = f"task {task.get('id', number)}"
        if "annotation_id" in task:
            given = tasks.setdefault(name, {"data": task, "annotations": []})
            if task["annotation_id"] is not None:
                given["annotations"].append({**task, "id": task["annotation_id"], "result": list(_min_results(task))})
        elif name in tasks:
            raise LabelError(f"{where}: {name} is there twice. Export it again.")
        else:
            tasks[name] = task
    return tasks


def _min_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of a row of JSON-MIN, whose values say by a key such as 'polygonlabels' of what kind they are."""
    for key, values in task.items():
        if key in _MIN_KEYS or not isinstance(values, list):
            continue
        for value in values:
            if isinstance(value, dict):
                kind = next((name for name in value if name.endswith("labels")), key)
                yield {**value, "value": value, "type": kind}


def _record(task: dict[str, Any], where: str, kinds: Counter[str], tally: Tally) -> Record:
    annotation = _annotation(task, where, tally)
    results = [one for one in _list((annotation or {}).get("result")) if isinstance(one, dict)]
    names = _image_names(task, {str(one.get("to_name")) for one in results}, where)
    if annotation is None:
        return Record(names[0], where, status="unlabelled", also=names[1:])
    sizes = [size_of(one.get("original_height"), one.get("original_width")) for one in results]
    size_hw = next((size for size in sizes if size is not None), None)
    labels_of: dict[str, list[Any]] = defaultdict(list)
    for one in results:  # with <Labels>, the labels of a region are a result of their own
        if one.get("type") == "labels" and isinstance(one.get("value"), dict):
            labels_of[str(one.get("id"))] += _list(one["value"].get("labels"))
    shapes: list[Shape | Box] = []
    left_out = False
    for number, one in enumerate(results, start=1):
        kind, value, entry = str(one.get("type")), one.get("value"), f"{where}, result {number}"
        form = kind.removesuffix("labels")
        if not form and any(one.get("id") == other.get("id") for other in results if other is not one):
            continue
        kinds[kind] += 1
        if form in _AREAS and isinstance(value, dict):
            labels = _list(value.get(kind)) or labels_of[str(one.get("id"))]
            _check_region(one, labels, entry)
            shapes += [_shape(name, form, value, size_hw, entry, tally) for name in labels]
        else:
            tally.add("other_shape", example=f"{entry.rpartition(': ')[2]} ({kind})")
            left_out = left_out or form in ("keypoint", "vector")
    return Record(
        names[0], where, shapes, size_hw, status="unclear" if left_out and not shapes else "labelled", also=names[1:]
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _annotation(task: dict[str, Any], where: str, tally: Tally) -> dict[str, Any] | None:
    """The annotation that counts: the one marked as ground truth, else the newest. Raises LabelError."""
    given = _list(task.get("annotations", task.get("completions")))
    if not all(isinstance(one, dict) for one in given):
        raise LabelError(f"{where}: its annotations are only numbered. Export the project as JSON.")
    valid = [one for one in given if not one.get("was_cancelled") and not one.get("skipped")]
    valid.sort(key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
    chosen = ([one for one in valid if one.get("ground_truth")] or valid)[-1:]
    others = len(given) - len(chosen) + len(_list(task.get("drafts"))) + len(_list(task.get("predictions")))
    if others:
        tally.add("not_counted", others, example=where.rpartition(": ")[2])
    if not chosen:
        return None
    if any(one.get("result") for one in valid) and not chosen[0].get("result") and not chosen[0].get("ground_truth"):
        raise LabelError(
            f"{where}: the newest of its {len(valid)} annotations has no region, but another has. Delete the wrong "
            "one in Label Studio, or mark the right one as ground truth."
        )
    return dict(chosen[0])


def _image_names(task: dict[str, Any], tags: Set[str], where: str) -> tuple[str, ...]:
    """The names under which the image of a task may be found; "" if it has none. Raises LabelError for several."""
    data = task.get("data")
    texts = {key: text for key, text in data.items() if isinstance(text, str)} if isinstance(data, dict) else {}
    texts = {key: text if "?d=" in text else text.partition("?")[0] for key, text in texts.items()}
    images = {key: text for key, text in texts.items() if PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES}
    if len(images) > 1:
        images = {key: text for key, text in images.items() if key in tags}
        if len(images) != 1:
            raise LabelError(f"{where}: its data name several images ({', '.join(texts)}); expected one image a task.")
    upload = task.get("file_upload")
    names = [*images.values(), texts.get("image"), upload if isinstance(upload, str) else ""]
    names += [_UPLOAD_PREFIX.sub("", PurePosixPath(name).name) for name in names if name]
    return tuple(dict.fromkeys(name for name in names if name)) or ("",)


def _check_region(result: dict[str, Any], labels: Sequence[Any], where: str) -> None:
    if not labels or not all(isinstance(name, str) for name in labels):
        raise LabelError(f"{where}: has no label. Give this region a label in Label Studio, or delete it.")
    if result.get("image_rotation"):
        raise LabelError(f"{where}: was drawn on a turned image (image_rotation). Turn it back in Label Studio.")


def _shape(
    name: str, form: str, value: dict[str, Any], size_hw: tuple[int, int] | None, where: str, tally: Tally
) -> Shape | Box:
    example = where.rpartition(": ")[2]
    if form == "rectangle":
        x, y, width, height, angle = _numbers(value, ("x", "y", "width", "height", "rotation"), where)
        if size_hw is None:
            raise LabelError(f"{where}: does not state original_width and original_height. Export it again.")
        if angle:
            tally.add("rotated_box", example=example)
        scale = np.array(size_hw[::-1]) / 100
        corners = _turned(_CORNERS * (width, height) * scale, angle) + (x, y) * scale
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return Box(name, (left, top, right - left, bottom - top), where)
    if form == "polygon":
        points = points_of(value.get("points"), where)
        if reaches_beyond(points, (100, 100)):
            tally.add("clipped", example=example)
        return Shape(name, partial(_paint_polygon, points, where), where)
    if form == "ellipse":
        numbers = _numbers(value, ("x", "y", "radiusX", "radiusY", "rotation"), where)
        return Shape(name, partial(_paint_ellipse, numbers), where)
    if form == "bitmask":
        return Shape(name, partial(_paint_bitmask, value.get("imageDataURL"), where), where)
    return Shape(name, partial(paint_brush, value.get("rle"), where), where)


def _numbers(value: dict[str, Any], keys: Sequence[str], where: str) -> list[float]:
    numbers = [value.get(key, 0 if key == "rotation" else None) for key in keys]
    if not all(map(is_number, numbers)):
        raise LabelError(f"{where}: {', '.join(keys)} are {str(numbers)[:80]}; expected numbers.")
    return [float(number or 0) for number in numbers]


def _turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points x, y turned clockwise on the screen around 0, 0."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))


def _paint_polygon(points: NDArray[np.float64], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Filled by COCO's rule, as in Label Studio's own COCO export."""
    return paint_outlines([(points * size_hw[::-1] / 100).ravel().tolist()], size_hw, where=where)


def _paint_ellipse(numbers: Sequence[float], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in an ellipse: centre x, y and radii in percent, rotation in degrees."""
    x, y, radius_x, radius_y, angle = numbers
    scale = np.array(size_hw[::-1]) / 100
    centres = np.stack(np.meshgrid(np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0]) + 0.5), axis=-1)
    radii = np.maximum((radius_x, radius_y) * scale, 1e-9)
    return np.asarray(((_turned(centres - (x, y) * scale, -angle) / radii) ** 2).sum(axis=-1) <= 1)


def _paint_bitmask(url: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = decode_bitmap(decode_base64(url.partition(",")[2] if isinstance(url, str) else url, where), where)
    if mask.shape != size_hw:
        raise LabelError(f"{where}: its bitmask has the size {mask.shape}, its image {size_hw}. Export it again.")
    return mask


def paint_brush(run_lengths: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a brush region, bool (H, W): the pixels that are not fully transparent.

    The run-lengths are bytes; their bits are read in turn (thi.ng/rle-pack): 32 for the number of values, four for
    each pixel; 5 for the bits of a value minus 1; 4 times 4 for the bits of a length minus 1. Then come runs: 1 bit
    that says whether one value is repeated, 2 that choose the bits of the length, the length minus 1, and the values.

    Raises:
        LabelError: the run-lengths are damaged, or for another image size.
    """
    values: list[int] = []
    counts: list[int] = []
    bits, place = "", 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError
        return int(bits[place - count : place], 2)

    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(_list(run_lengths)))
        length = take(32)
        if length != 4 * size_hw[0] * size_hw[1]:
            raise LabelError(f"{where}: its brush is for {length / 4:g} px, its image has {size_hw[1]}x{size_hw[0]}.")
        value_bits, length_bits, done = take(5) + 1, [take(4) + 1 for _ in range(4)], 0
        while done < length:
            repeated, count = take(1), take(length_bits[take(2)]) + 1
            values += [take(value_bits)] if repeated else [take(value_bits) for _ in range(count)]
            counts += [count] if repeated else [1] * count
            done += count
    except (ValueError, TypeError) as error:
        raise LabelError(f"{where}: its brush run-lengths are damaged. Export it again.") from error
    return np.repeat(np.array(values) > 0, counts)[3:length:4].reshape(size_hw)


KIND = Kind("label-studio", "Label Studio: Export as JSON or JSON-MIN", recognise, read)
