"""What every export does: open the data folder, go through its images, and say what stays behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data import images
from defectseg.data.exchange import IGNORE_NAME, Loss, Progress, Tally
from defectseg.data.labels import DataFolder, open_data_folder
from defectseg.errors import DataError

LOSSES = {
    "missing_images": "{count} images have rows in the label table and no file; they were left out (for example "
    "{examples}).",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "overlap_px": "{count} px belong to several classes; a class map holds one, here that of the smaller mask (for "
    "example {examples}). --per-class keeps them all.",
    "under_ignore_px": "{count} px belong to a class and are marked to be ignored; a class map holds the mark alone "
    "(for example {examples}). --per-class keeps both.",
    "hole_px": "{count} px of holes were filled, since an outline cannot have holes (for example {examples}).",
    "ignore_px": "{count} px marked to be ignored became plain background; YOLO has no such mark (for example "
    "{examples}).",
}


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        images: number of images.
        masks: pairs of image and class that were written.
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

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.ignore.shape[0], self.ignore.shape[1]


class Source:
    """A data folder on its way into another format, with the account of what is lost.

    Args:
        root: the data folder.
        kept: side files that the format has a place for, such as split.csv.

    Raises:
        DataError: the folder cannot be used, or a class has the name that other formats need for pixels to ignore.
    """

    def __init__(self, root: Path, *, kept: tuple[str, ...] = ()) -> None:
        self.folder: DataFolder = open_data_folder(root)
        self.tally = Tally()
        self.masks = 0
        if IGNORE_NAME in self.folder.class_names:
            raise DataError(
                f"{root}: a class is called '{IGNORE_NAME}', which marks pixels to ignore. Rename it first."
            )
        for image_id in self.folder.missing_images:
            self.tally.add("missing_images", example=image_id)
        for name in ("groups.csv", "split.csv"):
            if name not in kept and (root / name).is_file():
                self.tally.add("side_files", example=name)

    def check_stems(self, what: str) -> None:
        """Raise DataError where two images differ by their suffix alone and `what` could not tell them apart."""
        image_of: dict[str, str] = {}
        for image_id in self.folder.image_ids:
            other = image_of.setdefault(image_id.rpartition(".")[0], image_id)
            if other != image_id:
                raise DataError(
                    f"{self.folder.root}: {other} and {image_id}: two images of one name; {what} cannot tell them "
                    "apart. Rename one, in the label table too."
                )

    def labelled_images(self, report: Progress | None) -> Iterator[LabelledImage]:
        """Every image, decoded to see that it is whole, with its labels.

        Raises:
            ImageError: an image is not whole.
            LabelError: a run lies beyond its image.
        """
        image_ids = self.folder.image_ids
        for done, image_id in enumerate(image_ids, start=1):
            path = self.folder.image_path(image_id)
            height, width = images.decode(path).pixels.shape
            masks, ignore = self.folder.masks_of(image_id, (height, width))
            self.masks += int(masks.any(axis=(1, 2)).sum())
            yield LabelledImage(image_id, path, masks, ignore)
            if report:
                report(done, len(image_ids))

    def report(self) -> ExportReport:
        """The account, once all images have gone through."""
        folder = self.folder
        return ExportReport(len(folder.image_ids), self.masks, folder.class_names, self.tally.losses(LOSSES))
