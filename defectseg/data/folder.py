"""The data folder in Severstal's layout: `train_images/` beside the label table `train.csv`."""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import CLASSES_NAME, check_class_names, match_classes, read_class_names
from defectseg.data.names import read_by_image
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES, LabelTable, read_label_table
from defectseg.errors import DataError, ImageError, LabelError
from defectseg.files import atomic_csv, open_regular, size_and_time
from defectseg.image import rle
from defectseg.image.find import FoundImage, find_images
from defectseg.image.limits import check_masks
from defectseg.image.read import DecodedImage, decode, read_size
from defectseg.progress import some

log = logging.getLogger(__name__)

IMAGES_NAME = "train_images"
GROUPS_NAME = "groups.csv"
NOT_LABELLED_NAME = "not_labelled.csv"
_HOW_TO_IMPORT = "Labels of other tools are imported: defectseg data import SRC --out DIR"
BORDER_PX = 8
"""Ignored pixels this close to a defect are its border, such as VOC draws around each object."""


@dataclass(frozen=True)
class DataFolder:
    """A data folder whose label table has been read and validated.

    Attributes:
        root: the folder.
        image_ids: every image below train_images/, sorted, including clean ones, without those of `not_labelled`.
        table: the labels, including those of missing images.
        class_names: name n-1 belongs to ClassId n.
        groups: ImageId -> group, such as the strip, whose images must stay together; images without one are not in it.
        bit_depth: of its 16-bit files; None for that of the file's tag, else of the model.
        faulty: files and subfolders below train_images/ that are left out, see `find_images`.
        not_labelled: ImageIds that not_labelled.csv lists. Nobody knows whether these images are sound.
    """

    root: Path
    image_ids: tuple[str, ...]
    table: LabelTable
    class_names: tuple[str, ...]
    groups: Mapping[str, str]
    bit_depth: int | None = None
    faulty: tuple[FoundImage, ...] = ()
    not_labelled: frozenset[str] = frozenset()

    @property
    def num_classes(self) -> int:
        """Number of classes, without 255."""
        return len(self.class_names)

    @cached_property
    def missing_images(self) -> tuple[str, ...]:
        """ImageIds that have a row but no file, sorted."""
        return tuple(sorted(self.table.listed.difference(self.image_ids)))

    def image_path(self, image_id: str) -> Path:
        """The path of the image."""
        return self.root / IMAGES_NAME / image_id

    def decode(self, image_id: str, *, model_bit_depth: int | None = None) -> DecodedImage:
        """The image; `model_bit_depth` as in `decode_bytes`. Raises ImageError."""
        return decode(self.image_path(image_id), bit_depth=self.bit_depth, model_bit_depth=model_bit_depth)

    def classes_of(self, image_id: str) -> tuple[int, ...]:
        """ClassIds 1..C that this image certainly shows, sorted: their mask is not completely ignored."""
        hidden = self.unknown.get(image_id, frozenset()) | {IGNORE_CLASS_ID}
        return tuple(sorted(self.table.rles.get(image_id, {}).keys() - hidden))

    @cached_property
    def unknown(self) -> Mapping[str, frozenset[int]]:
        """ImageId -> ClassIds that the image may or may not show (see `unknown_classes`), if any.

        Only masks of images with ignored pixels are decoded. In unreadable images nothing counts as ignored.

        Raises:
            LabelError: as `masks_of`.
        """
        found: dict[str, frozenset[int]] = {}
        for image_id in self.image_ids:
            if IGNORE_CLASS_ID in self.table.rles.get(image_id, {}):
                with suppress(ImageError):
                    masks, ignore = self.masks_of(image_id, read_size(self.image_path(image_id)))
                    found[image_id] = frozenset((np.flatnonzero(unknown_classes(masks, ignore)) + 1).tolist())
        return {image_id: classes for image_id, classes in found.items() if classes}

    def masks_of(self, image_id: str, size_hw: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The image's masks, bool (C, H, W), and the pixels to ignore, bool (H, W).

        Raises:
            LabelError: a run lies beyond the image; the message names the image, the class and the pair.
            DataError: the image is so large that its masks would not fit into memory.
        """
        masks = np.zeros((self.num_classes, *size_hw), np.bool_)
        ignore = np.zeros(size_hw, np.bool_)
        for class_id, mask in self.labelled_masks(image_id, size_hw):
            if class_id == IGNORE_CLASS_ID:
                ignore = mask
            else:
                masks[class_id - 1] = mask
        return masks, ignore

    def labelled_masks(self, image_id: str, size_hw: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """ClassId and mask, bool (H, W), of each class that the image has; IGNORE_CLASS_ID: the pixels to ignore.

        Raises:
            LabelError, DataError: as `masks_of`.
        """
        rles = self.table.rles.get(image_id, {})
        check_masks(size_hw, shapes=len(rles), classes=len(rles), where=f"{self.root}: {image_id}")
        for class_id, encoded in rles.items():
            yield class_id, rle.decode(encoded, size_hw, where=f"{self.root}: {image_id}, ClassId {class_id}")

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of every ImageId, file size and label: equal if the training data are the same."""
        digest = hashlib.sha256()
        for image_id in self.image_ids:
            size_bytes, _ = size_and_time(self.image_path(image_id))
            labels = sorted(self.table.rles.get(image_id, {}).items())
            digest.update(json.dumps([image_id, size_bytes, labels]).encode())
        return digest.hexdigest()


def hiding_pixels(masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ignored pixels that may hide a defect, bool (H, W).

    An 8-connected part of the ignored area hides nothing if it is a border, that is, if all its pixels lie within 8 px
    (along rows and columns) of visible defects.

    Args:
        masks: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to ignore.
    """
    seen = masks.any(axis=0) & ~ignore
    if not seen.any():
        return ignore
    near = cv2.dilate(seen.view(np.uint8), np.ones((2 * BORDER_PX + 1,) * 2, np.uint8)).view(np.bool_)
    count, parts = cv2.connectedComponents(np.ascontiguousarray(ignore).view(np.uint8), connectivity=8)
    hides = np.zeros(count, np.bool_)
    hides[parts[ignore & ~near]] = True
    return np.asarray(hides[parts])


def unknown_classes(
    masks: NDArray[np.bool_], ignore: NDArray[np.bool_], hiding: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The classes that an image may or may not show, bool (C,): not visible, but ignored pixels may hide a defect.

    A class whose labelled pixels are all ignored is always unknown.

    Args:
        masks: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to ignore.
        hiding: for a crop, its part of the `hiding_pixels` of the image; None for a whole image.
    """
    if not ignore.any():
        return np.zeros(len(masks), np.bool_)
    if hiding is None:
        hiding = hiding_pixels(masks, ignore)
    seen, labelled = (masks & ~ignore).any(axis=(1, 2)), masks.any(axis=(1, 2))
    return np.asarray(~seen & (labelled | hiding.any()))


def open_data_folder(
    root: Path, *, class_names: Sequence[str] | None = None, bit_depth: int | None = None
) -> DataFolder:
    """Open a data folder. No image is decoded, so only `masks_of` detects a run-length beyond its image.

    Files with a faulty name and subfolders that cannot be listed are left out with a warning.

    Args:
        root: the folder that holds train_images/ and train.csv or train.csv.gz; classes.txt, groups.csv and
            not_labelled.csv are optional.
        class_names: the classes of a model. The folder's classes are matched with them by name, and the DataFolder has
            the classes of the folder, named, ordered and numbered as in the model. Without a model, the classes are the
            lines of classes.txt; without that file, "class 1" and so on, up to the larger of 4 and the largest ClassId.
        bit_depth: of 16-bit files, 9 to 16; None for that of the file's tag, else of the model.

    Raises:
        DataError: something is missing, the classes do not fit the rows, no image of the rows exists, or the folder
            names a class that the model does not know.
        LabelError: the label table, groups.csv or not_labelled.csv is faulty, or the table has rows for an image that
            is not labelled.
    """
    table_path = find_table(root)
    found = find_images([images_folder(root)], keep_faulty=True)
    image_ids = tuple(image.image_id for image in found if not image.fault)
    faulty = tuple(image for image in found if image.fault)
    if not image_ids:
        raise DataError(f"{images_folder(root)}: holds no image that can be read. The first: {faulty[0].fault}")
    if faulty:
        log.warning("%d files or folders are left out; see `data check`. The first: %s", len(faulty), faulty[0].fault)
    not_labelled, groups = read_not_labelled(root, image_ids), read_groups(root, image_ids)
    of_model = () if (root / CLASSES_NAME).exists() else tuple(class_names or ())
    table = read_label_table(table_path, image_ids, class_names=of_model or None)
    image_ids = _labelled(table_path, table, image_ids, not_labelled)
    largest = max((c for by_class in table.rles.values() for c in by_class if c != IGNORE_CLASS_ID), default=0)
    names = of_model or read_class_names(root, largest)
    check_class_names(names, where=str(root if of_model else root / CLASSES_NAME))
    check_class_ids(table, names, table_path, ignored=IGNORE_CLASS_ID)
    if table.listed and table.listed.isdisjoint(image_ids):
        raise DataError(
            f"{root}: none of the images of {table_path.name} is there: it names '{min(table.listed)}', "
            f"{IMAGES_NAME}/ holds '{image_ids[0]}'. The names must be the same, suffix and subfolder included."
        )
    if of_model:
        log.info("%s: without %s, ClassId n counts as class n of the model", root, CLASSES_NAME)
    elif class_names is not None:
        ids = match_classes(root / CLASSES_NAME, names, class_names)
        new_ids = {old: new for new, old in enumerate(ids.values(), start=1)} | {IGNORE_CLASS_ID: IGNORE_CLASS_ID}
        rles = {one: {new_ids[c]: encoded for c, encoded in by_class.items()} for one, by_class in table.rles.items()}
        names, table = tuple(ids), LabelTable(rles, table.listed)
    return DataFolder(root, image_ids, table, names, groups, bit_depth, faulty, not_labelled)


def _labelled(path: Path, table: LabelTable, image_ids: Sequence[str], not_labelled: frozenset[str]) -> tuple[str, ...]:
    """The images that not_labelled.csv does not list. Raises LabelError if none is left, or a listed one has a row."""
    if both := sorted(table.listed & not_labelled):
        raise LabelError(f"{path}: has rows for {some(both)}, which {NOT_LABELLED_NAME} lists. Take out one.")
    labelled = tuple(image_id for image_id in image_ids if image_id not in not_labelled)
    if not labelled:
        raise LabelError(f"{path.with_name(NOT_LABELLED_NAME)}: lists every image, so there are no labels to use.")
    if left_out := len(image_ids) - len(labelled):
        log.info("%d images that nobody has labelled are left out, see %s", left_out, NOT_LABELLED_NAME)
    return labelled


def images_folder(root: Path) -> Path:
    """The folder of the images. Raises DataError where it is missing."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with {IMAGES_NAME}/ and {TABLE_NAMES[0]}.")
    folder = root / IMAGES_NAME
    if not folder.is_dir():
        raise DataError(f"{root}: has no {IMAGES_NAME}/; expected the images there. {_HOW_TO_IMPORT}")
    return folder


def find_table(root: Path) -> Path:
    """The label table of a data folder. Raises DataError where there is none, or more than one."""
    images_folder(root)
    tables = [root / name for name in TABLE_NAMES if (root / name).is_file()]
    if not tables:
        raise DataError(f"{root}: has neither {' nor '.join(TABLE_NAMES)}; expected the masks there. {_HOW_TO_IMPORT}")
    if len(tables) > 1:
        raise DataError(f"{root}: has {' and '.join(TABLE_NAMES)}. Keep the one that is right.")
    return tables[0]


def read_not_labelled(root: Path, image_ids: Collection[str] = ()) -> frozenset[str]:
    """The ImageIds in not_labelled.csv (`ImageId`), none where there is no such file.

    Names are matched with `image_ids` as in `read_label_table`. Raises LabelError.
    """
    path = root / NOT_LABELLED_NAME
    rows = read_by_image(path, "ImageId", image_ids) if path.exists() else ()
    return frozenset(image_id for _, image_id, _ in rows)


def write_not_labelled(root: Path, image_ids: Iterable[str]) -> None:
    """Write not_labelled.csv, sorted. Raises ResourceError."""
    with atomic_csv(root / NOT_LABELLED_NAME, ["ImageId"]) as write:
        write([image_id] for image_id in sorted(image_ids))


def read_groups(root: Path, image_ids: Collection[str] = ()) -> dict[str, str]:
    """ImageId -> group from groups.csv (`ImageId,Group`), empty where there is none.

    Names are matched with `image_ids` as in `read_label_table`. Raises LabelError.
    """
    path = root / GROUPS_NAME
    groups: dict[str, str] = {}
    for where, image_id, group in read_by_image(path, "Group", image_ids) if path.exists() else ():
        if not group:
            raise LabelError(f"{where}: {image_id} has a blank group. Name one, or leave the row out.")
        if groups.setdefault(image_id, group) != group:
            raise LabelError(f"{where}: {image_id} is in group '{groups[image_id]}' already; an image has one group.")
    return groups


def check_class_ids(table: LabelTable, names: Sequence[str], path: Path, *, ignored: int | None = None) -> None:
    """Refuse masks of a ClassId that no name belongs to, other than `ignored`. Raises LabelError."""
    for image_id, by_class in table.rles.items():
        for class_id in by_class:
            if len(names) < class_id != ignored:
                raise LabelError(
                    f"{path}: {image_id} has a mask of ClassId {class_id}, but there are {len(names)} classes "
                    f"({', '.join(names)}). Mend the row, or add the class to classes.txt."
                )


_HEAD_BYTES = 65_536


def image_digest(path: Path) -> str:
    """12 hexadecimal digits from the size and the first 64 KiB of a file: enough to recognise an image.

    Raises OSError if the file cannot be read.
    """
    with open_regular(path) as handle:
        head, size_bytes = handle.read(_HEAD_BYTES), os.fstat(handle.fileno()).st_size
    return hashlib.blake2b(head + str(size_bytes).encode(), digest_size=6).hexdigest()
