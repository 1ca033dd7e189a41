"""labelme JSON, in both directions: one file for each image, with outlines and masks."""

import base64
import json
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.errors import LabelError
from defectseg.files import new_folder
from defectseg.formats.common import place_image, stem_of
from defectseg.formats.exporting import ExportReport, Source
from defectseg.formats.labels import Box, Choices, Kind, LabelSet, Record, Shape, Status, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.polygons import Piece, check_outline, cut_pieces, pixel_outline
from defectseg.formats.reading import paint_bitmap, points_of, reaches_beyond, size_of, value_at
from defectseg.formats.source import LabelSource
from defectseg.progress import Progress, silent
from defectseg.text import read_text

NAMES_FILE = "labels.txt"
_IGNORE_NAME, _BACKGROUND_NAME = "__ignore__", "_background_"
_WRITER = "defectseg"  # labelme keeps keys that it does not know
_LINE_WIDTH_PX = 10
_LEAST_POINTS = dict.fromkeys(("polygon", "oriented_rectangle", "rotation"), 3)
_LEAST_POINTS |= dict.fromkeys(("rectangle", "circle", "mask", "line", "linestrip"), 2)
_TOLD = {"rectangle": "rectangles", "line": "wide_lines", "linestrip": "wide_lines"}


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    return source.evidence(".json", _is_labels, "has 'shapes' and 'imagePath'")


def _is_labels(content: Any) -> bool:
    return isinstance(value_at(content, "shapes"), list) and "imagePath" in content


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`. Classes are in the order of labels.txt, else in that in which they first appear."""
    lists = [read_text(source.path(file), "expected a class in each line") for file in source.named(NAMES_FILE)]
    names = [line.strip() for text in lists for line in text.splitlines() if line.strip()]
    records, own = [], True
    for file, where, content in source.of_kind(".json", _is_labels, tally):
        if source.means_another(file, str(path := content["imagePath"])):
            raise LabelError(f"{where}: its 'imagePath', {path}, is another image than that of its name. Correct it.")
        records.append(_record(file, where, content, choices, tally))
        names += [shape.name for shape in records[-1].shapes]
        own &= content.get("writer") == _WRITER
    roots = [choices.images or source.root] if own else []
    return LabelSet(records, list(dict.fromkeys(names)), own=own, roots=roots, file_each=True)


def _record(file: str, where: str, content: dict[str, Any], choices: Choices, tally: Tally) -> Record:
    size_hw = size_of(content.get("imageHeight"), content.get("imageWidth"))
    entries = enumerate(content["shapes"], start=1)
    made = [_shape(one, f"{where}, shape {number}", size_hw, choices, tally) for number, one in entries]
    shapes = [shape for shape in made if shape is not None]
    own_name, path = PurePosixPath(file).with_suffix(""), content["imagePath"]
    image = f"{own_name.parent}/{path}" if isinstance(path, str) else str(own_name)
    status: Status = "unclear" if made and not shapes else "labelled"
    return Record(image, where, shapes, size_hw, part_among(own_name.parts[:-1]), status, (str(own_name),))


def _shape(one: Any, where: str, size_hw: tuple[int, int] | None, choices: Choices, tally: Tally) -> Shape | Box | None:
    name, form = value_at(one, "label"), str(value_at(one, "shape_type") or "polygon")
    example = where.rpartition(": ")[2]
    if not isinstance(name, str):
        raise LabelError(f"{where}: has no 'label'; expected the name of its class.")
    if form not in _LEAST_POINTS or len(points := points_of(one.get("points"), where)) < _LEAST_POINTS[form]:
        tally.add("other_shape", example=f"{example} ({form})")
        return None
    if form == "circle":  # centre and a point on the edge
        points = points[0] + np.array([[-1], [1]]) * np.linalg.norm(points[0] - points[1])
    corners = np.array([points.min(axis=0), points.max(axis=0)])
    if form == "mask":
        return Shape(name, partial(paint_bitmap, one.get("mask"), corners[0], where), where)
    if form == "rectangle" and choices.boxes == "ignore":
        return Box(name, (*corners[0].tolist(), *np.ptp(corners, axis=0).tolist()), where)
    if form in _TOLD:
        tally.add(_TOLD[form], example=example)
    if reaches_beyond(points, size_hw):
        tally.add("clipped", example=example)
    check_outline(points, where)
    return Shape(name, partial(draw, form, corners if form == "rectangle" else points), where, covers=True)


def draw(form: str, points: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a shape as labelme's own `shape_to_mask` does it, bool (H, W).

    Args:
        form: "polygon", "rectangle", "circle", "line", "linestrip", or a rotated rectangle.
        points: x, y in px, int or float (N, 2); of a rectangle or circle, the least and the greatest.
        size_hw: height and width of the image.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("L", size_hw[::-1])
    pen, corners = ImageDraw.Draw(picture), [(x, y) for x, y in points.tolist()]
    if form in ("line", "linestrip"):
        pen.line(corners, fill=1, width=_LINE_WIDTH_PX)
    else:
        draw_area = {"circle": pen.ellipse, "rectangle": pen.rectangle}.get(form, pen.polygon)
        draw_area(corners, fill=1, outline=1)
    return np.array(picture, np.bool_)


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
    class_names = source.folder.class_names
    with new_folder(out, last=NAMES_FILE) as building:
        for image in source.images(progress):
            path = building / image.image_id
            place_image(image.path, path, link=link)
            named = zip((*class_names, _IGNORE_NAME), (*image.masks, image.ignore), strict=True)
            shapes = [_entry(name, piece) for name, mask in named for piece in cut_pieces(mask)]
            height, width = image.ignore.shape
            document: dict[str, Any] = {"version": "5.5.0", "writer": _WRITER, "flags": {}, "shapes": shapes}
            document |= {"imagePath": path.name, "imageData": None, "imageHeight": height, "imageWidth": width}
            text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
            (building / f"{stem_of(image.image_id)}.json").write_text(text, encoding="utf-8")
        lines = [_IGNORE_NAME, _BACKGROUND_NAME, *class_names, ""]
        (building / NAMES_FILE).write_text("\n".join(lines), encoding="utf-8")
    return source.report()


def _entry(name: str, piece: Piece) -> dict[str, Any]:
    """A region as an entry of 'shapes'."""
    left, top, width, height = piece.box_xywh
    entry: dict[str, Any] = {"label": name, "group_id": None, "description": "", "flags": {}}
    points = pixel_outline(piece)
    if len(points) > 2 and np.array_equal(draw("polygon", points - (left, top), (height, width)), piece.mask):
        return entry | {"points": points.tolist(), "shape_type": "polygon", "mask": None}
    corners = [[left, top], [left + width - 1, top + height - 1]]
    content = cv2.imencode(".png", piece.mask.view(np.uint8))[1].tobytes()
    return entry | {"points": corners, "shape_type": "mask", "mask": base64.b64encode(content).decode("ascii")}


KIND = Kind("labelme", "labelme: Save, a JSON file for each image", recognise, read)
