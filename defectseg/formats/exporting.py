"""A data folder to be exported: its images one by one, and the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import GROUPS_NAME, open_data_folder
from defectseg.data.split import SPLIT_NAME
from defectseg.errors import DataError
from defectseg.formats.common import IGNORE_NAME, index_unique, stem_of
from defectseg.formats.losses import Loss, Tally
from defectseg.image import read
from defectseg.progress import Progress


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        images: number of images.
        masks: number of pairs of image and class.
        class_names: name n-1 belongs to ClassId n.
        lost: what the format could not hold.
    """

    images: int
    masks: int
    class_names: tuple[str, ...]
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class LabelledImage:
    """One image and its labels.

    Attributes:
        image_id: ImageId.
        path: its file.
        masks: bool (C, H, W).
        ignore: pixels to ignore, bool (H, W).
    """

    image_id: str
    path: Path
    masks: NDArray[np.bool_]
    ignore: NDArray[np.bool_]


class Source:
    """A data folder to be exported, and the tally of what the target format loses.

    Args:
        root: the data folder.
        kept: side files that the format can hold, such as split.csv.
        by_stem: the format pairs images and labels by their names without the suffix.

    Raises:
        DataError: the folder cannot be used, a class is called "ignore", or names cannot be told apart.
    """

    def __init__(self, root: Path, *, kept: tuple[str, ...] = (), by_stem: bool = False) -> None:
        self.folder = open_data_folder(root)
        self.tally = Tally()
        self._masks = 0
        if IGNORE_NAME in self.folder.class_names:
            raise DataError(f"{root}: a class is called '{IGNORE_NAME}', which marks pixels to ignore. Rename it.")
        if by_stem:
            index_unique(((stem_of(one), self.folder.image_path(one)) for one in self.folder.image_ids), "images")
        for image_id in self.folder.missing_images:
            self.tally.add("missing_images", example=image_id)
        for name in (GROUPS_NAME, SPLIT_NAME):
            if name not in kept and (root / name).is_file():
                self.tally.add("side_files", example=name)

    def images(self, progress: Progress) -> Iterator[LabelledImage]:
        """Every image, decoded to make sure that it is whole, with its labels.

        Raises:
            ImageError: an image is not whole.
            LabelError: a run lies beyond its image.
        """
        image_ids = self.folder.image_ids
        for done, image_id in enumerate(image_ids, start=1):
            path = self.folder.image_path(image_id)
            masks, ignore = self.folder.masks_of(image_id, read.decode(path).pixels.shape)
            self._masks += int(masks.any(axis=(1, 2)).sum())
            yield LabelledImage(image_id, path, masks, ignore)
            progress(done, len(image_ids))

    def report(self) -> ExportReport:
        """The report, once every image has been exported."""
        folder = self.folder
        return ExportReport(len(folder.image_ids), self._masks, folder.class_names, self.tally.losses())
