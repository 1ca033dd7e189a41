"""A data folder as mask PNGs: class maps, or one binary picture for each class."""

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg import files
from defectseg.data.exchange import IGNORE_NAME, Progress, Tally, check_is_free, new_folder, place_image
from defectseg.data.exporters.folder import ExportReport, LabelledImage, Source
from defectseg.data.label_rows import IGNORE_CLASS_ID
from defectseg.errors import DataError

_UNFIT_FOR_A_FOLDER = re.compile(r'^\.|[<>:"/\\|?*\x00-\x1f]|[. ]$')


def export_masks(
    root: Path, out: Path, *, per_class: bool = False, link: bool = False, report: Progress | None = None
) -> ExportReport:
    """Write a data folder as `images/`, `masks/` and `classes.txt`, which `import_masks` reads.

    Args:
        root: the data folder.
        out: the folder to make; it must be absent or empty.
        per_class: `masks/<class name>/<stem>.png` with 0 and 255, and `masks/ignore/`; else `masks/<stem>.png` with
            the ClassId of each pixel, 0 for sound and 255 for pixels to ignore.
        link: make links to the images instead of copies.
        report: called with the number of images done and of all images.

    Raises:
        DataError, LabelError: the data folder cannot be used, two images differ by their suffix alone, or a class
            cannot give a folder its name.
        ImageError: an image is not whole.
        OutputExistsError: `out` is there and not empty.
        ResourceError: `out` cannot be written.
    """
    check_is_free(out)
    source = Source(root)
    source.check_stems("masks")
    if per_class:
        _check_folder_names(source)
    with new_folder(out, last="classes.txt") as building:
        for image in source.labelled_images(report):
            place_image(image.path, building / "images" / image.image_id, link=link)
            pictures = (
                _binary_masks(image, source.folder.class_names)
                if per_class
                else {"": make_class_map(image, source.tally)}
            )
            for folder, pixels in pictures.items():
                _write_png(building / "masks" / folder / f"{image.image_id.rpartition('.')[0]}.png", pixels)
        if not (building / "masks").exists():  # per class, and nothing anywhere: import wants to see a mask
            first = source.folder.image_ids[0].rpartition(".")[0]
            _write_png(building / "masks" / source.folder.class_names[0] / f"{first}.png", np.zeros_like(image.ignore))
        files.write_text(building / "classes.txt", "".join(f"{name}\n" for name in source.folder.class_names))
    return source.report()


def make_class_map(image: LabelledImage, tally: Tally) -> NDArray[np.uint8]:
    """The ClassId of each pixel, uint8 (H, W); where masks overlap, that of the smaller one. Counts what that loses."""
    areas_px = image.masks.sum(axis=(1, 2))
    class_map = np.zeros(image.size_hw, np.uint8)
    for index in np.argsort(-areas_px, kind="stable"):
        class_map[image.masks[index]] = index + 1
    class_map[image.ignore] = IGNORE_CLASS_ID
    layers = image.masks.sum(axis=0)
    tally.add("overlap_px", int(np.count_nonzero(layers > 1)), example=image.image_id)
    tally.add("under_ignore_px", int(np.count_nonzero((layers > 0) & image.ignore)), example=image.image_id)
    return class_map


def _binary_masks(image: LabelledImage, class_names: tuple[str, ...]) -> Mapping[str, NDArray[np.uint8]]:
    layers = zip((*class_names, IGNORE_NAME), (*image.masks, image.ignore), strict=True)
    return {name: mask.view(np.uint8) * np.uint8(255) for name, mask in layers if mask.any()}


def _check_folder_names(source: Source) -> None:
    folder = source.folder
    taken = {IGNORE_NAME: IGNORE_NAME}
    for name in folder.class_names:
        other = taken.setdefault(name.casefold(), name)
        if other != name or _UNFIT_FOR_A_FOLDER.search(name):
            why = "cannot be" if other == name else f"differs by case alone from '{other}', and both cannot be"
            raise DataError(
                f"{folder.root}: the class '{name}' {why} the name of a folder on every system. Rename it in "
                "classes.txt, or export class maps."
            )
    stems = {image_id.rpartition(".")[0] for image_id in folder.image_ids}
    for stem in stems:
        first, _, rest = stem.partition("/")
        if first in folder.class_names and rest in stems:
            raise DataError(
                f"{folder.root}: the folder '{first}' of images has the name of a class, so that masks/{stem}.png "
                "would be ambiguous. Rename one of them, or export class maps."
            )


def _write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels.astype(np.uint8))
    assert encoded
    path.write_bytes(content.tobytes())
