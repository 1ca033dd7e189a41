"""Write masks as pictures: class maps."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME, write_class_names
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.files import new_folder
from defectseg.formats.common import place_image, stem_of
from defectseg.formats.exporting import ExportReport, LabelledImage, Source
from defectseg.formats.losses import Tally
from defectseg.formats.masks.values import MARK
from defectseg.progress import Progress, silent


def export_masks(root: Path, out: Path, *, link: bool = False, progress: Progress = silent) -> ExportReport:
    """Write a data folder as `images/`, `masks/` and `classes.txt`.

    `masks/<stem>.png` holds the ClassId of each pixel, 0 for sound steel and 255 for pixels to ignore. It carries a
    mark, by which an import knows that the masks are complete, that 255 marks pixels to ignore, and that line n of
    classes.txt names ClassId n.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        DataError, LabelError: the data folder cannot be used, or two images differ only by their suffix.
        ImageError: an image is not whole.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    from PIL import Image, PngImagePlugin

    mark = PngImagePlugin.PngInfo()  # editors drop it when they save
    mark.add_text(*MARK)
    source = Source(root, by_stem=True)
    with new_folder(out, last=CLASSES_NAME) as building:
        for image in source.images(progress):
            place_image(image.path, building / "images" / image.image_id, link=link)
            path = building / "masks" / f"{stem_of(image.image_id)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_class_map(image, source.tally)).save(path, pnginfo=mark)
        write_class_names(building, source.folder.class_names)
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
