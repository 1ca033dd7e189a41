"""Label Studio JSON: the full export and JSON-MIN, with polygons, brushes, bitmasks and ellipses."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError, LabelError
from defectseg.formats.bitmaps import decode_base64, decode_bitmap, is_number, points_of, reaches_beyond, size_of
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.source import LabelSource
from defectseg.image.find import IMAGE_SUFFIXES

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_AREAS = ("polygon", "brush", "magicwand", "bitmask", "ellipse", "rectangle")
_NO_AREAS = ("keypoint", "vector")
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
_VALUE_BITS = 8


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, content in source.jsons(most=5) if _is_export(content))
    return next((f"{file} is a list of tasks with 'annotations' or 'annotation_id'" for file in found), "")


def _is_export(content: Any) -> bool:
    task = content[0] if isinstance(content, list) and content else None
    keys = task.keys() if isinstance(task, dict) else set()
    return "annotation_id" in keys or ("data" in keys and bool(keys & {"annotations", "completions", "predictions"}))


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order in which they first appear."""
    records: list[Record] = []
    kinds = Counter[str]()
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if _is_export(content):
            tasks = _tasks(content, f"{source.given}: {file}")
            records += [_record(task, where, kinds, tally) for where, task in tasks.items()]
        else:
            tally.add("other_file", example=file)
    shapes = [shape for record in records for shape in record.shapes]
    if kinds and not any(isinstance(shape, Shape) for shape in shapes) and not (shapes and choices.boxes):
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise DataError(
            f"{source.given}: holds {found}. Masks need polygonlabels, brushlabels, bitmasklabels or ellipselabels: "
            f"label the images with one of these.{' The pixels in boxes can be ignored.' if shapes else ''}",
            go_on={"boxes": "ignore"} if shapes else None,
        )
    if nameless := [record.where for record in records if not record.image]:
        raise LabelError(f"{nameless[0]}: its data name no image; expected a text such as '/data/upload/1/a.jpg'.")
    names = list(dict.fromkeys(shape.name for shape in shapes))
    hint = "Label Studio exports no images with its JSON."
    return LabelSet(records, names, file_each=True, absent_hint=hint)


def _tasks(content: list[Any], where: str) -> dict[str, dict[str, Any]]:
    """Where it is -> task, in the form of the full export. Rows of JSON-MIN for one task are united."""
    tasks: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(content, start=1):
        if not isinstance(task, dict):
            raise LabelError(f"{where}: entry {number} is {str(task)[:60]}; expected a task.")
        name = f"{where}, task {str(task.get('id', number))[:60]}"
        if "annotation_id" not in task:
            if name in tasks:
                raise LabelError(f"{name}: is there twice. Export it again.")
            tasks[name] = task
        elif task["annotation_id"] is None:
            tasks.setdefault(name, {"data": task})
        else:
            values = [one for given in task.values() for one in _list(given) if isinstance(one, dict)]
            kinds = [next((key for key in value if key.endswith("labels")), "choices") for value in values]
            results = [{**value, "value": value, "type": kind} for value, kind in zip(values, kinds, strict=True)]
            tasks.setdefault(name, {"data": task, "annotations": []})["annotations"].append({**task, "result": results})
    return tasks


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _record(task: dict[str, Any], where: str, kinds: Counter[str], tally: Tally) -> Record:
    names = _image_names(task, where)
    annotation = _annotation(task, where, tally)
    if annotation is None:
        return Record(names[0], where, status="unlabelled", also=names[1:])
    results = [one for one in _list(annotation.get("result")) if isinstance(one, dict)]
    sizes = [size_of(one.get("original_height"), one.get("original_width")) for one in results]
    size_hw = next((size for size in sizes if size is not None), None)
    forms = [str(one.get("type")).removesuffix("labels") for one in results]
    shapes: list[Shape | Box] = []
    for number, (one, form) in enumerate(zip(results, forms, strict=True), start=1):
        kind, value, entry = str(one.get("type")), one.get("value"), f"{where}, result {number}"
        if kind == "labels" and set(_AREAS).intersection(forms):  # names a region, which is a result of its own
            continue
        kinds[kind] += 1
        if form in _AREAS and isinstance(value, dict):
            labels = _list(value.get(kind)) or _labels_of(one.get("id"), results)
            if not labels or not all(isinstance(name, str) for name in labels):
                raise LabelError(f"{entry}: has no label. Give this region a label in Label Studio, or delete it.")
            if one.get("image_rotation"):
                raise LabelError(f"{entry}: has an image_rotation. Turn the image back in Label Studio.")
            shapes += [_shape(name, form, value, size_hw, entry, tally) for name in labels]
        else:
            tally.add("other_shape", example=f"{entry.rpartition(': ')[2]} ({kind})")
    status: Status = "labelled" if shapes or not any(form in _NO_AREAS for form in forms) else "unclear"
    return Record(names[0], where, shapes, size_hw, status=status, also=names[1:])


def _labels_of(region: Any, results: Sequence[dict[str, Any]]) -> list[Any]:
    """The labels that results of the type "labels" give to a region."""
    values = [one.get("value") for one in results if one.get("type") == "labels" and one.get("id") == region]
    return [label for value in values if isinstance(value, dict) for label in _list(value.get("labels"))]


def _annotation(task: dict[str, Any], where: str, tally: Tally) -> dict[str, Any] | None:
    """The annotation that counts: the one marked as ground truth, else the newest. Raises LabelError."""
    given = _list(task.get("annotations", task.get("completions")))
    if not all(isinstance(one, dict) for one in given):
        raise LabelError(f"{where}: its annotations are only numbered. Export the project as JSON.")
    valid = [one for one in given if not one.get("was_cancelled") and not one.get("skipped")]
    valid.sort(key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
    chosen: dict[str, Any] | None = next(reversed([one for one in valid if one.get("ground_truth")] or valid), None)
    others = len(given) - (chosen is not None) + len(_list(task.get("drafts"))) + len(_list(task.get("predictions")))
    if others:
        tally.add("not_counted", others, example=where.rpartition(": ")[2])
    if (
        chosen
        and not chosen.get("ground_truth")
        and not chosen.get("result")
        and any(one.get("result") for one in valid)
    ):
        raise LabelError(
            f"{where}: the newest of its {len(valid)} annotations has no region, but another has. Delete the wrong "
            "one in Label Studio, or mark the right one as ground truth."
        )
    return chosen


def _image_names(task: dict[str, Any], where: str) -> tuple[str, ...]:
    """The names under which the image of a task may be found; "" if it has none. Raises LabelError for several."""
    data = task.get("data")
    texts = {key: text for key, text in data.items() if isinstance(text, str)} if isinstance(data, dict) else {}
    texts = {key: text if "?d=" in text else text.partition("?")[0] for key, text in texts.items()}
    images = [text for text in texts.values() if PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES]
    if len(set(images)) > 1:
        raise LabelError(f"{where}: its data name several images ({', '.join(texts)}); expected one image a task.")
    names = [name for name in (*images, texts.get("image"), task.get("file_upload")) if isinstance(name, str) and name]
    names += [_UPLOAD_PREFIX.sub("", PurePosixPath(name).name) for name in names]
    return tuple(names) or ("",)


def _shape(
    name: str, form: str, value: dict[str, Any], size_hw: tuple[int, int] | None, where: str, tally: Tally
) -> Shape | Box:
    if form == "polygon":
        points = points_of(value.get("points"), where)
        if reaches_beyond(points, (100, 100)):
            tally.add("clipped", example=where.rpartition(": ")[2])
        return Shape(name, partial(_paint_polygon, points, where), where)
    if form == "bitmask":
        return Shape(name, partial(_paint_bitmask, value.get("imageDataURL"), where), where)
    if form not in ("ellipse", "rectangle"):
        return Shape(name, partial(paint_brush, value.get("rle"), where), where)
    keys = ("x", "y", "radiusX", "radiusY") if form == "ellipse" else ("x", "y", "width", "height")
    numbers: list[Any] = [*(value.get(key) for key in keys), value.get("rotation", 0)]
    if not all(map(is_number, numbers)) or size_hw is None:
        needed = ", ".join((*keys, "original_width", "original_height"))
        raise LabelError(f"{where}: {needed} are not all numbers. Export it again.")
    scale = np.array(size_hw[::-1]) / 100
    place, extent, degrees = np.array(numbers[:2]) * scale, np.array(numbers[2:4]) * scale, numbers[4]
    if form == "ellipse":
        return Shape(name, partial(_paint_ellipse, place, extent, degrees), where)
    if degrees:
        tally.add("rotated", example=where.rpartition(": ")[2])
    corners = _turned(_CORNERS * extent, degrees) + place
    return Box(name, (*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()), where)


def _turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points x, y turned clockwise on the screen around 0, 0."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))


def _paint_polygon(points: NDArray[np.float64], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Points in percent, filled by COCO's rule, as in Label Studio's own COCO export."""
    return paint_outlines([(points * size_hw[::-1] / 100).ravel().tolist()], size_hw, where=where)


def _paint_ellipse(
    centre: NDArray[np.float64], radii: NDArray[np.float64], degrees: float, size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """The pixels whose centres lie in an ellipse."""
    pixels = np.stack(np.meshgrid(np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0]) + 0.5), axis=-1)
    from_centre = _turned(pixels - centre, -degrees) / np.maximum(radii, 1e-9)
    return np.asarray((from_centre**2).sum(axis=-1) <= 1)


def _paint_bitmask(url: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = decode_bitmap(decode_base64(str(url).rpartition(",")[2], where), where)
    if mask.shape != size_hw:
        raise LabelError(f"{where}: its bitmask has the size {mask.shape}, its image {size_hw}. Export it again.")
    return mask


def paint_brush(run_lengths: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a brush region, bool (H, W): the pixels that are not fully transparent.

    The run-lengths are bytes, whose bits are read in turn (thi.ng/rle-pack): 32 for the number of values, which are
    red, green, blue and alpha of each pixel; 5 for the bits of a value minus 1; 4 times 4 for the bits of a length
    minus 1. Then come runs: 1 bit that says whether one value is repeated, 2 that choose the bits of the length, the
    length minus 1, and the values.

    Raises:
        LabelError: the run-lengths are damaged, or for another image size.
    """
    bits, place, values = "", 0, bytearray()

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
        if take(5) != _VALUE_BITS - 1:
            raise ValueError
        length_bits = [take(4) + 1 for _ in range(4)]
        while len(values) < length:
            repeated, count = take(1), take(length_bits[take(2)]) + 1
            values += bytes([take(_VALUE_BITS)]) * count if repeated else take(_VALUE_BITS * count).to_bytes(count)
    except (ValueError, TypeError) as error:
        raise LabelError(f"{where}: its brush run-lengths are damaged. Export it again.") from error
    return np.frombuffer(values, np.uint8)[3:length:4].reshape(size_hw) > 0


KIND = Kind("label-studio", "Label Studio: Export as JSON or JSON-MIN", recognise, read)
