"""The data folder that every import makes, and the masks of an image while they are gathered."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg import files
from defectseg.data import images, rle
from defectseg.data.exchange import Loss, new_folder, place_image
from defectseg.data.images import FoundImage
from defectseg.data.label_rows import IGNORE_CLASS_ID
from defectseg.data.labels import IMAGES_NAME, check_class_names
from defectseg.data.splits import write_split
from defectseg.errors import DataError

Labels = dict[str, dict[int, str]]  # ImageId -> ClassId -> run-lengths


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Attributes:
        images: number of images.
        clean_images: how many of them have no mask.
        class_names: name n-1 belongs to ClassId n.
        masks_per_class: images that have the class, in the order of `class_names`.
        ignored_px: pixels marked to be ignored, over all images.
        images_per_fold: images in fold 0, 1 and so on of split.csv; empty where there is none.
        missing_images: images that the labels name and that are not there, as they are named.
        lost: what else could not be taken over.
    """

    images: int
    clean_images: int
    class_names: tuple[str, ...]
    masks_per_class: tuple[int, ...]
    ignored_px: int
    images_per_fold: tuple[int, ...] = ()
    missing_images: tuple[str, ...] = ()
    lost: tuple[Loss, ...] = ()


class Canvas:
    """The masks of one image, painted annotation by annotation.

    Args:
        size_hw: height and width of the image in pixels.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.size_hw = size_hw
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._boxes = np.zeros(size_hw, np.bool_)

    def add(self, class_id: int, mask: NDArray[np.bool_]) -> bool:
        """Unite a mask, bool (H, W), with what its class has already; False where there was something."""
        if class_id in self._masks:
            self._masks[class_id] |= mask
            return False
        self._masks[class_id] = mask.copy()
        return True

    def add_box(self, left: float, top: float, right: float, bottom: float) -> None:
        """Note that a defect of unknown shape lies in a box, in pixels."""
        rows = slice(max(0, int(np.floor(top))), max(0, int(np.ceil(bottom))))
        columns = slice(max(0, int(np.floor(left))), max(0, int(np.ceil(right))))
        self._boxes[rows, columns] = True

    def labels(self) -> dict[int, str]:
        """ClassId -> run-lengths. Boxes become pixels to ignore, but for those that a mask explains."""
        explained = np.zeros(self.size_hw, np.bool_)
        for mask in self._masks.values():
            explained |= mask
        masks = dict(self._masks)
        if (unexplained := self._boxes & ~explained).any():
            masks[IGNORE_CLASS_ID] = unexplained | masks.get(IGNORE_CLASS_ID, False)
        return {class_id: rle.encode(mask) for class_id, mask in sorted(masks.items()) if mask.any()}


def read_size(image: FoundImage, expected_hw: tuple[int, int] | None = None, *, where: str = "") -> tuple[int, int]:
    """Height and width of an image, which is decoded to see that it is whole.

    Args:
        image: the image.
        expected_hw: what its labels say.
        where: how a message names the labels.

    Raises:
        ImageError: it is not whole.
        DataError: it has another size than its labels say.
    """
    decoded = images.decode(image.path)
    height, width = decoded.pixels.shape
    if expected_hw is not None and expected_hw != (height, width):
        remedy = (
            " The labelling tool obeyed the picture's EXIF orientation. Clear that tag, and label the picture again."
            if expected_hw == (width, height) and any("EXIF" in note for note in decoded.notes)
            else " Use the images that the labels were drawn on."
        )
        raise DataError(
            f"{where}: the labels are for {expected_hw[1]}x{expected_hw[0]} px, but {image.path} has "
            f"{width}x{height}.{remedy}"
        )
    return height, width


def tidy_names(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Class names fit for the lines of classes.txt: single blanks, no line ends. Raises DataError."""
    tidy = tuple(" ".join(name.split()) for name in names)
    check_class_names(tidy, where=where)
    return tidy


def write_data_folder(
    out: Path,
    found: Sequence[FoundImage],
    names: Sequence[str],
    labels: Labels,
    *,
    link: bool,
    folds: Mapping[str, int] | None = None,
) -> None:
    """Write images, classes.txt, train.csv and, where there are folds, split.csv; whole or not at all.

    Raises:
        OutputExistsError: `out` is there and not empty.
        ResourceError: it cannot be written.
    """
    with new_folder(out, last="train.csv") as building:
        for image in found:
            place_image(image.path, building / IMAGES_NAME / image.image_id, link=link)
        files.write_text(building / "classes.txt", "".join(f"{name}\n" for name in names))
        if folds is not None:
            write_split(building / "split.csv", folds)
        files.write_text(building / "train.csv", _table_text(labels))


def _table_text(labels: Labels) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageId", "ClassId", "EncodedPixels"])
    for image_id, by_class in sorted(labels.items()):
        writer.writerows((image_id, class_id, encoded) for class_id, encoded in sorted(by_class.items()))
    return text.getvalue()


def summarise(
    names: tuple[str, ...],
    labels: Labels,
    *,
    folds: Mapping[str, int] | None = None,
    missing_images: Sequence[str] = (),
    lost: tuple[Loss, ...] = (),
) -> ImportReport:
    """Count what stands in the labels, which have an entry for every image."""
    images_of_class = Counter(class_id for by_class in labels.values() for class_id in by_class)
    ignored = [by_class[IGNORE_CLASS_ID] for by_class in labels.values() if IGNORE_CLASS_ID in by_class]
    per_fold = Counter((folds or {}).values())
    return ImportReport(
        images=len(labels),
        clean_images=sum(not by_class.keys() - {IGNORE_CLASS_ID} for by_class in labels.values()),
        class_names=names,
        masks_per_class=tuple(images_of_class[class_id] for class_id in range(1, len(names) + 1)),
        ignored_px=sum(int(rle.parse_pairs(encoded)[:, 1].sum()) for encoded in ignored),
        images_per_fold=tuple(per_fold[fold] for fold in range(max(per_fold, default=-1) + 1)),
        missing_images=tuple(missing_images),
        lost=lost,
    )
