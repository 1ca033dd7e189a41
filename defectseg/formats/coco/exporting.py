"""A data folder as COCO JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.files import check_is_free, new_folder, write_text
from defectseg.formats.coco import masks
from defectseg.formats.common import IGNORE_NAME, ExportReport, Source, place_image
from defectseg.formats.polygons import Piece, count_hole_px, cut_pieces, outline
from defectseg.progress import Progress, silent

FILE_NAME = "annotations.json"


class CocoDocument:
    """A COCO file while it grows: one annotation for each connected region of each class.

    Args:
        classes: name n-1 becomes category n.
        polygons: outlines instead of run-lengths.
        tolerance_px: with polygons: leave out points while the line moves by no more than this; 0 is exact.
    """

    def __init__(self, class_names: Sequence[str], *, polygons: bool, tolerance_px: float = 0.0) -> None:
        self._polygons = polygons
        self._tolerance_px = tolerance_px
        self._categories = dict(enumerate(class_names, start=1))
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    @property
    def num_annotations(self) -> int:
        """Number of annotations so far."""
        return len(self._annotations)

    def add_image(self, file_name: str, size_hw: tuple[int, int]) -> None:
        """Begin an image; the regions that follow are its own."""
        height, width = size_hw
        self._images.append(
            {"id": len(self._images) + 1, "file_name": file_name, "height": height, "width": width, "license": 0}
        )

    def add_mask(self, class_id: int, mask: NDArray[np.bool_]) -> int:
        """Add every region of a mask, bool (H, W); the number of pixels in holes that polygons fill."""
        for piece in cut_pieces(mask):
            self.add_region(class_id, piece)
        return count_hole_px(mask) if self._polygons else 0

    def add_region(self, class_id: int, piece: Piece, *, score: float | None = None) -> None:
        """Add one region of the image begun last."""
        image = self._images[-1]
        if class_id == IGNORE_CLASS_ID:
            self._categories[IGNORE_CLASS_ID] = IGNORE_NAME
        segmentation: Any
        if self._polygons:
            segmentation = [outline(piece, tolerance_px=self._tolerance_px).ravel().tolist()]
        else:
            segmentation = masks.encode(piece.place((image["height"], image["width"])))
        annotation = {
            "id": len(self._annotations) + 1,
            "image_id": image["id"],
            "category_id": class_id,
            "segmentation": segmentation,
            "area": piece.area_px,
            "bbox": list(piece.box_xywh),
            "iscrowd": 0,
        }
        self._annotations.append(annotation if score is None else {**annotation, "score": score})

    def as_json(self) -> str:
        """The text of the file."""
        document = {
            "info": {"description": "written by defectseg"},
            "licenses": [{"id": 0, "name": "", "url": ""}],
            "categories": [
                {"id": number, "name": name, "supercategory": ""} for number, name in self._categories.items()
            ],
            "images": self._images,
            "annotations": self._annotations,
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def export_coco(
    root: Path, out: Path, *, polygons: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `annotations.json` beside `images/`.

    Categories have the ClassIds for ids. Pixels to ignore become a category "ignore" with the id 255. Run-lengths keep
    every mask exact; polygons do but for holes.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        polygons: outlines instead of run-lengths.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used.
        ImageError: an image is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    source = Source(root)
    document = CocoDocument(source.folder.class_names, polygons=polygons)
    with new_folder(out, last=FILE_NAME) as building:
        for image in source.labelled_images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            document.add_image(image.image_id, image.size_hw)
            for class_id, mask in [*enumerate(image.masks, start=1), (IGNORE_CLASS_ID, image.ignore)]:
                source.tally.add("hole_px", document.add_mask(class_id, mask), example=image.image_id)
        write_text(building / FILE_NAME, document.as_json())
    return source.report()
