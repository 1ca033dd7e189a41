"""labelme JSON, in both directions: one file for each image, with outlines and masks."""

import base64
import json
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
from defectseg.formats.common import place_image, read_text, stem_of
from defectseg.formats.exporting import ExportReport, Source
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import Piece, cut_pieces, pixel_outline
from defectseg.formats.source import LabelSource
from defectseg.progress import Progress, silent

NAMES_FILE = "labels.txt"
_IGNORE_NAME, _BACKGROUND_NAME = "__ignore__", "_background_"
_WRITER = "defectseg"  # labelme keeps keys that it does not know
_LINE_WIDTH_PX = 10
_LEAST_POINTS = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 3, "rotation": 3, "circle": 2, "mask": 2}
_LEAST_POINTS |= {"line": 2, "linestrip": 2}


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    found = (file for file, content in source.jsons(most=5) if _is_labels(content))
    return next((f"{file} has 'shapes' and 'imagePath'" for file in found), "")


def _is_labels(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of labels.txt, else in that in which they first appear."""
    lists = [read_text(source.path(file), "expected a class in each line") for file in source.named(NAMES_FILE)]
    names = dict.fromkeys(line.strip() for text in lists for line in text.splitlines() if line.strip())
    records, own, embedded = [], True, False
    for file in source.with_suffix(".json"):
        content = source.json(file)
        if not _is_labels(content):
            tally.add("other_file", example=file)
            continue
        records.append(_record(file, content, f"{source.given}: {file}", choices, tally))
        names |= dict.fromkeys(shape.name for shape in records[-1].shapes)
        own, embedded = own and content.get("writer") == _WRITER, embedded or bool(content.get("imageData"))
    hint = "labelme names the images in imagePath."
    if embedded:
        hint += " Pictures inside the JSON files (imageData) are not read: save them as files."
    roots = [choices.images or source.root] if own else []
    alone = source.file is not None
    return LabelSet(records, list(names), own=own, roots=roots, file_each=not alone, absent_hint=hint)


def _record(file: str, content: dict[str, Any], where: str, choices: Choices, tally: Tally) -> Record:
    size_hw = size_of(content.get("imageHeight"), content.get("imageWidth"))
    _tell_flags(content, file, tally)
    shapes = [
        shape
        for number, one in enumerate(content["shapes"], start=1)
        for shape in _shapes(one, f"{where}, shape {number}", size_hw, choices, tally)
    ]
    folders, path = PurePosixPath(file).parts[:-1], content["imagePath"]
    own_name = file.removesuffix(".json")
    image = "/".join([*folders, path]) if isinstance(path, str) else own_name
    status: Status = "unclear" if content["shapes"] and not shapes else "labelled"
    return Record(image, where, shapes, size_hw, part_among(folders), status, (own_name,))


def _tell_flags(entry: dict[str, Any], where: str, tally: Tally) -> None:
    flags = entry.get("flags")
    for name, value in flags.items() if isinstance(flags, dict) else ():
        if value:
            tally.add("flags", example=f"{name} of {where}")


def _shapes(one: Any, where: str, size_hw: tuple[int, int] | None, choices: Choices, tally: Tally) -> list[Shape | Box]:
    """An entry of 'shapes' as a shape, or nothing if it covers no area."""
    name = one.get("label") if isinstance(one, dict) else None
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'label'; expected the name of its class.")
    form, example = str(one.get("shape_type") or "polygon"), where.rpartition(": ")[2]
    _tell_flags(one, example, tally)
    if form not in _LEAST_POINTS:
        tally.add("other_shape", example=f"{example} ({form})")
        return []
    points = points_of(one.get("points"), where)
    if len(points) < _LEAST_POINTS[form]:
        tally.add("no_shape", example=example)
        return []
    if form == "circle":  # centre and a point on the edge -> box
        radius = np.sqrt(((points[0] - points[1]) ** 2).sum())
        points = np.array([points[0] - radius, points[0] + radius])
    (left, top), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
    if form == "mask":
        return [Shape(name, partial(_paint_mask, one.get("mask"), (int(left), int(top)), where), where)]
    if form == "rectangle" and choices.boxes == "ignore":
        return [Box(name, (left, top, width, height), where)]
    if form in ("rectangle", "line", "linestrip"):
        tally.add("rectangles" if form == "rectangle" else "wide_lines", example=example)
    if reaches_beyond(points, size_hw):
        tally.add("clipped", example=example)
    return [Shape(name, partial(draw, form, points), where, covers=True)]


def draw(form: str, points: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a shape as labelme's own `shape_to_mask` does it, bool (H, W).

    Args:
        form: "polygon", "rectangle", "circle", "line", "linestrip", or a rotated rectangle.
        points: x, y in px, float64 (N, 2); of a circle, the corners of its box.
        size_hw: height and width of the image.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("L", size_hw[::-1])
    pen, corners = ImageDraw.Draw(picture), [(x, y) for x, y in points.tolist()]
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    if form == "circle":
        pen.ellipse(box, fill=1, outline=1)
    elif form == "rectangle":
        pen.rectangle(box, fill=1, outline=1)
    elif form in ("line", "linestrip"):
        pen.line(corners, fill=1, width=_LINE_WIDTH_PX)
    else:
        pen.polygon(corners, fill=1, outline=1)
    return np.array(picture, np.bool_)


def _paint_mask(text: Any, left_top: tuple[int, int], where: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    return place_bitmap(decode_bitmap(decode_base64(text, where), where), left_top, size_hw, where)


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
    names = dict(enumerate(source.folder.class_names, start=1)) | {IGNORE_CLASS_ID: _IGNORE_NAME}
    with new_folder(out, last=NAMES_FILE) as building:
        for image in source.images(progress):
            path = building / image.image_id
            place_image(image.path, path, link=link)
            masks = dict(enumerate(image.masks, start=1)) | {IGNORE_CLASS_ID: image.ignore}
            shapes = [_entry(names[number], piece) for number, mask in masks.items() for piece in cut_pieces(mask)]
            height, width = image.ignore.shape
            document: dict[str, Any] = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": path.name,
                "imageData": None,
            }
            document |= {"imageHeight": height, "imageWidth": width, "writer": _WRITER}
            text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
            (building / f"{stem_of(image.image_id)}.json").write_text(text, encoding="utf-8")
        lines = [_IGNORE_NAME, _BACKGROUND_NAME, *source.folder.class_names, ""]
        (building / NAMES_FILE).write_text("\n".join(lines), encoding="utf-8")
    return source.report()


def _entry(name: str, piece: Piece) -> dict[str, Any]:
    """A region as an entry of 'shapes'."""
    left, top, width, height = piece.box_xywh
    points = pixel_outline(piece)
    entry: dict[str, Any] = {"label": name, "group_id": None, "description": "", "flags": {}}
    here = (points - (left, top)).astype(np.float64)
    if len(points) > 2 and np.array_equal(draw("polygon", here, (height, width)), piece.mask):
        return entry | {"points": points.tolist(), "shape_type": "polygon", "mask": None}
    corners = [[left, top], [left + width - 1, top + height - 1]]
    content = cv2.imencode(".png", piece.mask.view(np.uint8))[1].tobytes()
    return entry | {"points": corners, "shape_type": "mask", "mask": base64.b64encode(content).decode("ascii")}


KIND = Kind("labelme", "labelme: Save, a JSON file for each image", recognise, read)
