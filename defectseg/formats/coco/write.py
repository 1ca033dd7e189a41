"""Labels and predictions as COCO JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.files import new_folder, write_text
from defectseg.formats import coco_rle
from defectseg.formats.common import IGNORE_NAME, ExportReport, Source, Tally, place_image
from defectseg.formats.polygons import count_hole_px, cut_pieces, outline
from defectseg.progress import Progress, silent

FILE_NAME = "annotations.json"
INFO = {"description": "written by defectseg"}
COMPLETE_INFO = INFO | {"complete": True}
"""`info` of a file whose images without an annotation are sound."""


class CocoDocument:
    """A COCO file in the making: one annotation for each connected region of each class.

    Args:
        class_names: name n-1 becomes category n.
        tally: receives the pixels of holes that outlines fill.
        tolerance_px: leave out points of an outline while the line moves by no more than this; 0 keeps the outline
            exact; None writes run-lengths instead.
    """

    def __init__(self, class_names: Sequence[str], tally: Tally, *, tolerance_px: float | None) -> None:
        self._tally, self._tolerance_px = tally, tolerance_px
        self._categories = dict(enumerate(class_names, start=1))
        self._images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, file_name: str, size_hw: tuple[int, int]) -> None:
        """Begin an image, to which the masks that follow belong."""
        image = {"id": len(self._images) + 1, "file_name": file_name, "height": size_hw[0], "width": size_hw[1]}
        self._images.append(image | {"license": 0})

    def add_mask(
        self, class_id: int, mask: NDArray[np.bool_], scores: Mapping[tuple[int, ...], list[float]] | None = None
    ) -> None:
        """Add every region of a mask, bool (H, W).

        Args:
            class_id: ClassId.
            mask: the mask.
            scores: ClassId, area, left, top, width and height of a region -> its scores, which are used up in turn.
        """
        if class_id == IGNORE_CLASS_ID and mask.any():
            self._categories[IGNORE_CLASS_ID] = IGNORE_NAME
        for piece in cut_pieces(mask):
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": self._images[-1]["id"],
                "category_id": class_id,
                "segmentation": coco_rle.encode(piece.place(mask.shape))
                if self._tolerance_px is None
                else [outline(piece, tolerance_px=self._tolerance_px).ravel().tolist()],
                "area": piece.area_px,
                "bbox": list(piece.box_xywh),
                "iscrowd": 0,
            }
            if scores and (found := scores.get((class_id, piece.area_px, *piece.box_xywh))):
                annotation["score"] = found.pop(0)
            self.annotations.append(annotation)
        if self._tolerance_px is not None:
            self._tally.add("hole_px", count_hole_px(mask), example=self._images[-1]["file_name"])

    def write(self, path: Path, *, complete: bool) -> None:
        """Write the file. Raises ResourceError.

        Args:
            path: the file.
            complete: somebody has labelled every image, so that those without an annotation are sound.
        """
        document = {
            "info": COMPLETE_INFO if complete else INFO,
            "licenses": [{"id": 0, "name": "", "url": ""}],
            "categories": [{"id": one, "name": name, "supercategory": ""} for one, name in self._categories.items()],
            "images": self._images,
            "annotations": self.annotations,
        }
        write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def export_coco(
    root: Path, out: Path, *, polygons: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `annotations.json` beside `images/`.

    The ids of categories are ClassIds. Pixels to ignore become a category "ignore" with the id 255. Run-lengths keep
    every mask exact, and so do polygons except for holes. `info` says that the file is complete: images without an
    annotation are sound.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        polygons: outlines instead of run-lengths.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    source = Source(root)
    document = CocoDocument(source.folder.class_names, source.tally, tolerance_px=0.0 if polygons else None)
    with new_folder(out, last=FILE_NAME) as building:
        for image in source.images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            document.add_image(image.image_id, image.ignore.shape)
            for class_id, mask in [*enumerate(image.masks, start=1), (IGNORE_CLASS_ID, image.ignore)]:
                document.add_mask(class_id, mask)
        document.write(building / FILE_NAME, complete=True)
    return source.report()
