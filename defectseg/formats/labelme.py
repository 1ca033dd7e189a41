"""labelme JSON, in both directions: one file for each image, with outlines and masks."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import LabelError
from defectseg.files import new_folder
from defectseg.formats.bitmaps import decode_base64, decode_bitmap, place_bitmap, points_of, reaches_beyond, size_of
from defectseg.formats.classes import is_background
from defectseg.formats.common import ExportReport, Source, Tally, place_image, read_text, stem_of
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status, part_among
from defectseg.formats.polygons import Piece, cut_pieces, pixel_outline
from defectseg.formats.source import LabelSource
from defectseg.progress import Progress, silent

NAMES_FILE = "labels.txt"
_SPECIAL_NAMES = ("__ignore__", "_background_")
_OWN = {"writer": "defectseg"}  # labelme keeps keys that it does not know
_LINE_WIDTH_PX = 10
_LEAST_POINTS = {"polygon": 3, "oriented_rectangle": 3, "rotation": 3}
_LEAST_POINTS |= {"rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "mask": 2}


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, content in source.jsons(most=5) if _is_labels(content))
    return next((f"{file} has 'shapes' and 'imagePath'" for file in found), "")


def _is_labels(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of labels.txt, else in that in which they first appear."""
    names: dict[str, None] = {}
    for file in source.named(NAMES_FILE)[:1]:
        lines = read_text(source.path(file), "expected the name of a class in each line").splitlines()
        names |= {line.strip(): None for line in lines if line.strip()}
    records, own, embedded = [], True, 0
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if not _is_labels(content):
            tally.add("other_file", example=file)
            continue
        records.append(_record(file, content, f"{source.given}: {file}", choices, tally))
        names |= {shape.name: None for shape in records[-1].shapes}
        own = own and _OWN.items() <= content.items()
        embedded += bool(content.get("imageData"))
    hint = f"{embedded} of the JSON files hold their picture (imageData), which is not read: save it as a file."
    return LabelSet(
        records,
        list(names),
        own=own,
        roots=[choices.images or source.root] if own else (),
        file_each=source.file is None,
        absent_hint=hint if embedded else "",
    )


def _record(file: str, content: dict[str, Any], where: str, choices: Choices, tally: Tally) -> Record:
    size_hw = size_of(content.get("imageHeight"), content.get("imageWidth"))
    shapes: list[Shape | Box] = []
    _tell_flags(content, file, tally)
    for number, one in enumerate(content["shapes"], start=1):
        shape = _shape(one, f"{where}, shape {number}", size_hw, choices, tally)
        shapes += [shape] if shape is not None else []
    folders = PurePosixPath(file).parts[:-1]
    own_name = file.removesuffix(".json")
    path = content["imagePath"]
    image = "/".join([*folders, path]) if isinstance(path, str) else own_name
    status: Status = "unclear" if content["shapes"] and not shapes else "labelled"
    return Record(image, where, _erased(shapes, choices), size_hw, part_among(folders), status, (own_name,))


def _tell_flags(entry: dict[str, Any], where: str, tally: Tally) -> None:
    flags = entry.get("flags")
    for name, value in flags.items() if isinstance(flags, dict) else ():
        if value:
            tally.add("flags", example=f"{name} of {where}")


def _shape(one: Any, where: str, size_hw: tuple[int, int] | None, choices: Choices, tally: Tally) -> Shape | Box | None:
    name = one.get("label") if isinstance(one, dict) else None
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'label'; expected the name of its class.")
    form, example = str(one.get("shape_type") or "polygon"), where.rpartition(": ")[2]
    _tell_flags(one, example, tally)
    if form not in _LEAST_POINTS:
        tally.add("other_shape", example=f"{example} ({form})")
        return None
    points = points_of(one.get("points"), where)
    if len(points) < _LEAST_POINTS[form]:
        tally.add("no_shape", example=example)
        return None
    left_top = (int(points[:, 0].min()), int(points[:, 1].min()))
    if form == "mask":
        return Shape(name, partial(_paint_mask, one.get("mask"), left_top, where), where)
    if form == "rectangle" and choices.boxes == "ignore":
        width, height = np.ptp(points, axis=0).tolist()
        return Box(name, (points[:, 0].min(), points[:, 1].min(), width, height), where)
    if form == "rectangle":
        tally.add("rectangles", example=example)
    if form in ("line", "linestrip"):
        tally.add("wide_lines", example=example)
    extent = points[0] + np.hypot(*(points[1] - points[0])) * np.array([[-1], [1]]) if form == "circle" else points
    if reaches_beyond(extent, size_hw):
        tally.add("clipped", example=example)
    return Shape(name, partial(draw, form, points), where)


def draw(form: str, points: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a shape as labelme's own `shape_to_mask` does it, bool (H, W).

    Args:
        form: "polygon", "rectangle", "circle", "line", "linestrip", or a rotated rectangle.
        points: x, y in px, float64 (N, 2). A circle is its centre and a point on it.
        size_hw: height and width of the image.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("L", size_hw[::-1])
    pen = ImageDraw.Draw(picture)
    corners = [(x, y) for x, y in points.tolist()]
    if form == "circle":
        (x, y), (edge_x, edge_y) = corners[:2]
        radius = math.sqrt((x - edge_x) ** 2 + (y - edge_y) ** 2)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif form == "rectangle":
        pen.rectangle((*points.min(axis=0).tolist(), *points.max(axis=0).tolist()), fill=1, outline=1)
    elif form in ("line", "linestrip"):
        pen.line(corners, fill=1, width=_LINE_WIDTH_PX)
    else:
        pen.polygon(corners, fill=1, outline=1)
    return np.array(picture, np.bool_)


def _paint_mask(text: Any, left_top: tuple[int, int], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    return place_bitmap(decode_bitmap(decode_base64(text, where), where), left_top, size_hw, where)


def _erased(shapes: Sequence[Shape | Box], choices: Choices) -> list[Shape | Box]:
    """The same shapes, without the pixels that later ones of the background cover: so holes are drawn in labelme."""
    erasers: list[Shape] = []
    result: list[Shape | Box] = []
    for shape in reversed(shapes):
        if isinstance(shape, Shape) and is_background(shape.name, choices):
            erasers.append(shape)
        elif isinstance(shape, Shape) and erasers:
            shape = replace(shape, paint=partial(_paint_erased, shape, tuple(erasers)))
        result.append(shape)
    return result[::-1]


def _paint_erased(shape: Shape, erasers: Sequence[Shape], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = shape.paint(size_hw)
    for eraser in erasers:
        mask &= ~eraser.paint(size_hw)
    return mask


def export_labelme(root: Path, out: Path, *, link: bool = False, progress: Progress = silent) -> ExportReport:
    """Write a data folder as images with a JSON file beside each, and the names of the classes as `labels.txt`.

    Each region is a polygon where labelme draws exactly its pixels from it, and a mask otherwise. Pixels to ignore
    are called `__ignore__`. Sound images have a file without shapes.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root, by_stem=True)
    names = dict(enumerate(source.folder.class_names, start=1)) | {IGNORE_CLASS_ID: _SPECIAL_NAMES[0]}
    with new_folder(out, last=NAMES_FILE) as building:
        for image in source.images(progress):
            place_image(image.path, building / image.image_id, link=link)
            height, width = image.ignore.shape
            masks = {**dict(enumerate(image.masks, start=1)), IGNORE_CLASS_ID: image.ignore}
            document = {
                "version": "5.5.0",
                "flags": {},
                "shapes": [_entry(names[number], piece) for number in masks for piece in cut_pieces(masks[number])],
                "imagePath": PurePosixPath(image.image_id).name,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
                **_OWN,
            }
            text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
            (building / f"{stem_of(image.image_id)}.json").write_text(text, encoding="utf-8")
        lines = [*_SPECIAL_NAMES, *source.folder.class_names]
        (building / NAMES_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return source.report()


def _entry(name: str, piece: Piece) -> dict[str, Any]:
    """A region as an entry of 'shapes'."""
    left, top, width, height = piece.box_xywh
    points = pixel_outline(piece)
    exact = len(points) > 2 and np.array_equal(
        draw("polygon", points.astype(np.float64) - (left, top), (height, width)), piece.mask
    )
    mask = None
    if not exact:
        points = np.array([(left, top), (left + width - 1, top + height - 1)])
        _, content = cv2.imencode(".png", piece.mask.view(np.uint8))
        mask = base64.b64encode(content.tobytes()).decode("ascii")
    return {
        "label": name,
        "points": points.astype(np.float64).tolist(),
        "group_id": None,
        "description": "",
        "shape_type": "polygon" if exact else "mask",
        "flags": {},
        "mask": mask,
    }


KIND = Kind("labelme", "labelme: Save, a JSON file for each image", recognise, read)
