"""Write masks as pictures: class maps, or a binary picture for each class."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME, write_class_names
from defectseg.data.folder import DataFolder
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import DataError
from defectseg.files import new_folder
from defectseg.formats.common import IGNORE_NAME, place_image, stem_of
from defectseg.formats.exporting import ExportReport, LabelledImage, Source
from defectseg.formats.losses import Tally
from defectseg.formats.masks.values import MARK
from defectseg.progress import Progress, silent

_UNFIT_FOR_A_FOLDER = re.compile(r'^\.|[<>:"/\\|?*\x00-\x1f]|[. ]$')


def export_masks(
    root: Path, out: Path, *, per_class: bool = False, link: bool = False, progress: Progress = silent
) -> ExportReport:
    """Write a data folder as `images/`, `masks/` and `classes.txt`.

    The masks carry a mark, by which an import knows that they are complete, that 255 marks pixels to ignore, and that
    line n of classes.txt names ClassId n.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        per_class: write `masks/<class name>/<stem>.png` with 0 and 255, and `masks/ignore/`, instead of
            `masks/<stem>.png` with the ClassId of each pixel, 0 for sound and 255 for pixels to ignore. A sound image
            gets an empty mask of the first class.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, two images differ only by their suffix, or a class
            cannot give a folder its name.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    from PIL import Image, PngImagePlugin

    mark = PngImagePlugin.PngInfo()  # editors drop it when they save
    mark.add_text(*MARK)
    source = Source(root, by_stem=True)
    class_names = source.folder.class_names
    if per_class:
        _check_folder_names(source.folder)
    with new_folder(out, last=CLASSES_NAME) as building:
        for image in source.images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            if per_class:
                layers = zip((*class_names, IGNORE_NAME), (*image.masks, image.ignore), strict=True)
                pictures = {name: mask.view(np.uint8) * np.uint8(255) for name, mask in layers if mask.any()}
                pictures = pictures or {class_names[0]: np.zeros(image.ignore.shape, np.uint8)}
            else:
                pictures = {"": _class_map(image, source.tally)}
            for name, pixels in pictures.items():
                path = building / "masks" / name / f"{stem_of(image.image_id)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, pnginfo=mark)
        write_class_names(building, class_names)
    return source.report()


def _class_map(image: LabelledImage, tally: Tally) -> NDArray[np.uint8]:
    """The ClassId of each pixel, uint8 (H, W). Where masks overlap, the smaller one wins; counts what that loses."""
    class_map = np.zeros(image.ignore.shape, np.uint8)
    for index in np.argsort(-image.masks.sum(axis=(1, 2)), kind="stable"):
        class_map[image.masks[index]] = index + 1
    class_map[image.ignore] = IGNORE_CLASS_ID
    layers = image.masks.sum(axis=0)
    tally.add("overlap_px", int(np.count_nonzero(layers > 1)), example=image.image_id)
    tally.add("under_ignore_px", int(np.count_nonzero((layers > 0) & image.ignore)), example=image.image_id)
    return class_map


def _check_folder_names(folder: DataFolder) -> None:
    stems, taken = set(map(stem_of, folder.image_ids)), {IGNORE_NAME}
    for name in folder.class_names:
        why = ""
        if name.casefold() in taken or _UNFIT_FOR_A_FOLDER.search(name):
            why = "cannot be the name of a folder on every system, beside 'ignore' and the other classes"
        if any(f"{name}/{stem}" in stems for stem in stems):
            why = "has the name of a folder of images, so that their masks would be ambiguous"
        if why:
            raise DataError(f"{folder.root}: the class '{name}' {why}. Rename it, or export class maps.")
        taken.add(name.casefold())
