"""COCO JSON into a data folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.table import IGNORE_CLASS_ID, Labels
from defectseg.errors import DataError
from defectseg.files import check_is_free
from defectseg.formats.coco import masks
from defectseg.formats.coco.file import CocoAnnotation, CocoFile, CocoImage, read_coco
from defectseg.formats.common import (
    IGNORE_NAME,
    Canvas,
    ImportReport,
    Tally,
    read_size,
    tidy_names,
    write_data_folder,
)
from defectseg.image.find import FoundImage, find_images
from defectseg.progress import Progress, silent, some

LOSSES = {
    "boxes": "{count} annotations have a box and no outline; the pixels in these boxes are marked to be ignored, "
    "where no mask explains them (for example {examples}).",
    "no_shape": "{count} annotations have neither an outline nor a box and were left out (for example {examples}).",
    "no_pixel": "{count} annotations are too thin to hold the centre of a pixel, or lie outside their image "
    "(for example {examples}).",
    "united": "{count} annotations were united with others of their class in their image, since a label table has "
    "one mask for each class.",
    "unlisted_images": "{count} images in the folder are not listed in the file and were left out "
    "(for example {examples}).",
}


def import_coco(
    file: Path,
    images: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from a COCO file and the folder with its images.

    ClassIds follow the order of the categories' ids, or of `classes`. A category called "ignore" marks pixels to
    ignore, as does the box of an annotation that has no outline: there is a defect, but nobody knows where. Images
    that the file lists are imported, with or without annotations; ImageIds are paths below `images`.

    Args:
        file: the JSON file.
        images: where the images are; `file_name` is compared with the ends of the paths in it.
        out: the data folder to make; it must be absent or empty.
        classes: names of ClassId 1, 2 and so on; they must include every category that has annotations.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        LabelError: the file is not COCO, or an annotation is not valid; names it.
        DataError: none of the images is there, or one has another size than the file says.
        ImageError: an image is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    coco = read_coco(file)
    names = _class_names(coco, classes, file)
    placed, missing, unlisted = _place(coco, images, file)
    tally = Tally()
    for image_id in unlisted:
        tally.add("unlisted_images", example=image_id)
    labels: Labels = {}
    for done, (image, found) in enumerate(placed, start=1):
        canvas = Canvas(read_size(found, image.size_hw, where=image.where))
        for annotation in image.annotations:
            category = " ".join(annotation.category.split())
            class_id = names.index(category) + 1 if category in names else IGNORE_CLASS_ID
            _paint(canvas, class_id, annotation, tally)
        labels[found.image_id] = canvas.labels()
        progress(done, len(placed))
    return write_data_folder(
        out,
        [found for _, found in placed],
        names,
        labels,
        link=link,
        missing_images=missing,
        lost=tally.losses(LOSSES),
    )


def _class_names(coco: CocoFile, classes: Sequence[str] | None, file: Path) -> tuple[str, ...]:
    if classes is None:
        return tidy_names(
            [name for name in coco.categories if name.strip() != IGNORE_NAME], where=f"{file}: categories"
        )
    names = tidy_names(classes, where="the given list of classes")
    used = {" ".join(annotation.category.split()) for image in coco.images for annotation in image.annotations}
    if unknown := used - {*names, IGNORE_NAME}:
        raise DataError(
            f"{file}: has annotations of {some(unknown)}, but only {', '.join(names)} are given.", argument="classes"
        )
    return names


def _place(coco: CocoFile, folder: Path, file: Path) -> tuple[list[tuple[CocoImage, FoundImage]], list[str], list[str]]:
    """The images that the file lists and the folder has, the file names of those it has not, and ImageIds of others."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the images of {file.name} there.")
    there = {found.image_id: found for found in find_images([folder])}
    placed: dict[str, tuple[CocoImage, FoundImage]] = {}
    missing = []
    for image in coco.images:
        image_id = next((end for end in image.path_ends() if end in there), None)
        if image_id is None:
            missing.append(image.file_name)
            continue
        if image_id in placed:
            raise DataError(
                f"{image.where} and {placed[image_id][0].file_name} both stand for {there[image_id].path}. "
                "Keep one of the two in the file, or give a folder of images that tells them apart."
            )
        placed[image_id] = image, there[image_id]
    if not placed:
        raise DataError(
            f"{file}: none of its {len(missing)} images is in {folder}: it names '{missing[0]}', the folder holds "
            f"'{min(there)}'. Give the folder that holds them.",
            argument="images",
        )
    return [placed[image_id] for image_id in sorted(placed)], missing, sorted(there.keys() - placed.keys())


def _paint(canvas: Canvas, class_id: int, annotation: CocoAnnotation, tally: Tally) -> None:
    example = annotation.where.rpartition(": ")[2]
    if annotation.segmentation is None:
        if annotation.box_xywh is None:
            tally.add("no_shape", example=example)
            return
        tally.add("boxes", example=example)
        left, top, width, height = annotation.box_xywh
        canvas.add_box(left, top, left + width, top + height)
        return
    mask = _mask(annotation, canvas.size_hw)
    if not mask.any():
        tally.add("no_pixel", example=example)
    elif not canvas.add(class_id, mask):
        tally.add("united")


def _mask(annotation: CocoAnnotation, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    assert annotation.segmentation is not None
    if isinstance(annotation.segmentation, list):
        return masks.paint(annotation.segmentation, size_hw, where=annotation.where)
    return masks.decode(annotation.segmentation, size_hw, where=annotation.where)
