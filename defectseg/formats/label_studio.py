"""Label Studio JSON: the full export, with polygons and brushes; ellipses count as boxes."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError, LabelError
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import paint_outlines
from defectseg.formats.reading import is_number, list_at, points_of, reaches_beyond, size_of
from defectseg.formats.source import LabelSource
from defectseg.image.find import IMAGE_SUFFIXES

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_Size = tuple[int, int] | None
_FORMS = ("polygon", "brush", "ellipse", "rectangle")
_HINT = "Predictions and drafts do not count: submit them as annotations in Label Studio, and export again."


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    return source.evidence(".json", _is_export, "is a list of tasks with 'annotations'")


def _is_export(content: Any) -> bool:
    task = content[0] if isinstance(content, list) and content else content
    keys = set(task) if isinstance(task, dict) else set()
    return {"annotations", "data"} <= keys or not keys.isdisjoint(("annotation_id", "completions"))  # else refused


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order in which they first appear."""
    kinds = Counter[str]()
    exports = source.of_kind(".json", _is_export, tally)
    tasks = [task for _, where, content in exports for task in _tasks(content, where)]
    records = [_record(where, task, kinds, tally) for where, task in tasks]
    shapes = [shape for record in records for shape in record.shapes]
    if kinds and not any(isinstance(shape, Shape) for shape in shapes) and not (shapes and choices.boxes):
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        wanted = "Label the images with polygonlabels or brushlabels."
        raise DataError(f"{source.given}: holds {found}. {wanted}", go_on={"boxes": "ignore"} if shapes else None)
    return LabelSet(records, list(dict.fromkeys(shape.name for shape in shapes)), file_each=True, hint=_HINT)


def _tasks(content: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where it is and task."""
    for number, task in enumerate(content if isinstance(content, list) else [content], start=1):
        if not isinstance(task, dict) or "annotations" not in task:
            expected = "a task with 'annotations'. Export JSON, not JSON-MIN, from Label Studio 1.0 or later"
            raise LabelError(f"{where}: entry {number} is {str(task)[:60]}; expected {expected}.")
        yield f"{where}, task {str(task.get('id', number))[:60]}", task


def _record(where: str, task: dict[str, Any], kinds: Counter[str], tally: Tally) -> Record:
    image, *also = _image_names(task, where)
    annotations = _annotations(task, where, tally)
    if not annotations:
        return Record(image, where, status="unlabelled", also=tuple(also))
    results = [one for one in list_at(annotations[-1], "result") if isinstance(one, dict)]
    regions = [{**one, **value} if isinstance(value := one.get("value"), dict) else one for one in results]
    sizes = [size_of(one.get("original_height"), one.get("original_width")) for one in regions]
    size_hw = next((size for size in sizes if size is not None), None)
    shapes: list[Shape | Box] = []
    for number, region in enumerate(regions, start=1):
        kind, entry = str(region.get("type")), f"{where}, result {number}"
        form, labels = next((form for form in _FORMS if form in kind), ""), list_at(region, kind)
        kinds[kind] += 1
        if not form:
            tally.add("other_shape", example=f"{entry.rpartition(': ')[2]} ({kind})")
        elif labels and all(isinstance(label, str) for label in labels):
            shapes += [_shape(name, form, region, size_hw, entry, tally) for name in labels]
        else:
            raise LabelError(
                f"{entry}: has no label of its own. Give it one, as polygonlabels or brushlabels, or delete it."
            )
    if not results and any(list_at(one, "result") for one in annotations) and not annotations[-1].get("ground_truth"):
        raise LabelError(f"{where}: the newest annotation is empty, an older one is not. Mark one as ground truth.")
    status: Status = "labelled" if shapes or not regions else "unclear"
    return Record(image, where, shapes, size_hw, status=status, also=tuple(also))


def _annotations(task: dict[str, Any], where: str, tally: Tally) -> list[dict[str, Any]]:
    """The annotations of a task, the last of which counts: the one marked as ground truth, else the newest."""
    given = list_at(task, "annotations")
    if not all(isinstance(one, dict) for one in given):
        raise LabelError(f"{where}: its annotations are only numbered. Export the project as JSON.")
    valid = [one for one in given if not one.get("was_cancelled")]
    valid.sort(key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at", one.get("created_at", "")))))
    others = len(given) - bool(valid) + len(list_at(task, "drafts")) + len(list_at(task, "predictions"))
    if others:
        tally.add("not_counted", others, example=where.rpartition(": ")[2])
    return valid


def _image_names(task: dict[str, Any], where: str) -> list[str]:
    """The names under which the image of a task may be found. Raises LabelError if it has several images."""
    data = task["data"] if isinstance(task.get("data"), dict) else {}
    texts = [text if "?d=" in text else text.partition("?")[0] for text in data.values() if isinstance(text, str)]
    images = sorted({text for text in texts if PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES})
    if len(images) > 1:
        raise LabelError(f"{where}: its data name several images ({', '.join(images)[:200]}); expected one a task.")
    names = [name for name in (*images, data.get("image"), task.get("file_upload")) if isinstance(name, str) and name]
    return [*names, *(_UPLOAD_PREFIX.sub("", PurePosixPath(name).name) for name in names)] or [f"no image in {where}"]


def _shape(name: str, form: str, region: dict[str, Any], size_hw: _Size, where: str, tally: Tally) -> Shape | Box:
    if region.get("image_rotation"):
        raise LabelError(f"{where}: has an image_rotation. Turn the image back in Label Studio.")
    if form == "brush":
        return Shape(name, partial(paint_brush, region.get("rle"), where), where)
    if size_hw is None:
        raise LabelError(f"{where}: its original_width and original_height are not both whole numbers.")
    if form == "polygon":  # filled by COCO's rule, as in Label Studio's own COCO export; given in percent
        points = points_of(region.get("points"), where)
        if reaches_beyond(points, (100, 100)):
            tally.add("clipped", example=where.rpartition(": ")[2])
        outline = (points * size_hw[::-1] / 100).ravel().tolist()
        return Shape(name, partial(paint_outlines, [outline], where=where), where)
    keys = ["x", "y", *(("radiusX", "radiusY") if form == "ellipse" else ("width", "height"))]
    numbers: list[Any] = [*map(region.get, keys), region.get("rotation", 0)]
    if not all(map(is_number, numbers)):
        raise LabelError(f"{where}: {', '.join(keys)}, rotation are not all numbers.")
    x, y, width, height = (np.array(numbers[:4]) * np.tile(size_hw[::-1], 2) / 100).tolist()
    if numbers[4]:
        tally.add("rotated", example=where.rpartition(": ")[2])
    least = -1 if form == "ellipse" else 0  # an ellipse turns around its centre, a box around its left upper corner
    sides = np.array([complex(right * width, down * height) for right in (least, 1) for down in (least, 1)])
    corners = complex(x, y) + sides * np.exp(1j * np.radians(numbers[4]))
    return Box(name, (corners.real.min(), corners.imag.min(), np.ptp(corners.real), np.ptp(corners.imag)), where)


def paint_brush(run_lengths: Any, where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a brush region, bool (H, W): the pixels that are not fully transparent.

    The run-lengths are bytes, whose bits are read in turn (thi.ng/rle-pack): 32 for the number of values, which are
    red, green, blue and alpha of each pixel; 5 for the bits of a value minus 1; 4 times 4 for the bits of a length
    minus 1. Then come runs: 1 bit that says whether one value is repeated, 2 that choose the bits of the length, the
    length minus 1, and the values.

    Raises:
        LabelError: the run-lengths are damaged, or for another image size.
    """
    bits, values, length = io.StringIO(), bytearray(), 4 * size_hw[0] * size_hw[1]

    def take(count: int) -> int:
        return int(bits.read(count).ljust(count, "?"), 2)  # ValueError at the end

    try:
        bits = io.StringIO(
            "".join(f"{byte:08b}" for byte in bytes(run_lengths if isinstance(run_lengths, list) else ()))
        )
        if (take(32), take(5)) != (length, 7):
            raise ValueError
        length_bits = [take(4) + 1 for _ in range(4)]
        while len(values) < length:
            repeated, count = take(1), take(length_bits[take(2)]) + 1
            values += bytes([take(8)]) * count if repeated else take(8 * count).to_bytes(count)
    except (ValueError, TypeError) as error:
        raise LabelError(f"{where}: its brush is damaged, or for another image size. Export it again.") from error
    return np.frombuffer(values, np.uint8)[3:length:4].reshape(size_hw) > 0


KIND = Kind("label-studio", "Label Studio: Export as JSON", recognise, read)
