"""What imports and exports share: the images and labels of both sides, and the account of what was lost."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.data.classes import check_class_names, write_class_names
from defectseg.data.folder import GROUPS_NAME, IMAGES_NAME, DataFolder, open_data_folder
from defectseg.data.split import SPLIT_NAME, write_split
from defectseg.data.table import IGNORE_CLASS_ID, Labels, write_label_table
from defectseg.errors import DataError
from defectseg.files import new_folder
from defectseg.image import read, rle
from defectseg.image.find import FoundImage
from defectseg.progress import EXAMPLES_SHOWN, Progress

IGNORE_NAME = "ignore"  # what ClassId 255 is called in formats that know classes by name


@dataclass(frozen=True)
class Loss:
    """Something that the other format could not hold, or that could not be taken over.

    Attributes:
        kind: a short name, the same for ever, for programs.
        count: how many; of what, the message says.
        message: a sentence or two for people.
    """

    kind: str
    count: int
    message: str


class Tally:
    """Counts what gets lost while it gets lost."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, count: int = 1, *, example: str = "") -> None:
        """Count something lost; `example` names where."""
        if count:
            self._counts[kind] += count
            examples = self._examples.setdefault(kind, [])
            if example and example not in examples and len(examples) < EXAMPLES_SHOWN:
                examples.append(example)

    def losses(self, messages: Mapping[str, str]) -> tuple[Loss, ...]:
        """The account, in the order of `messages`: kind -> sentence with {count} and {examples}."""
        assert self._counts.keys() <= messages.keys()
        return tuple(
            Loss(
                kind,
                self._counts[kind],
                message.format(count=self._counts[kind], examples=", ".join(self._examples[kind])),
            )
            for kind, message in messages.items()
            if self._counts[kind]
        )


def place_image(source: Path, target: Path, *, link: bool) -> None:
    """Copy an image, or make a link to it. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Attributes:
        images: number of images.
        clean_images: how many of them have neither a mask nor pixels to ignore.
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
    decoded = read.decode(image.path)
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
    missing_images: Sequence[str] = (),
    lost: tuple[Loss, ...] = (),
) -> ImportReport:
    """Write a data folder, whole or not at all, and count what it holds.

    Args:
        out: the folder, absent or empty.
        found: the images.
        names: of the classes.
        labels: an entry for every image.
        link: make links to the images instead of copies.
        folds: of split.csv; None writes no such file.
        missing_images, lost: see `ImportReport`.

    Raises:
        OutputExistsError: `out` is there and not empty.
        ResourceError: it cannot be written.
    """
    with new_folder(out, last="train.csv") as building:
        for image in found:
            place_image(image.path, building / IMAGES_NAME / image.image_id, link=link)
        write_class_names(building, names)
        write_label_table(building, labels)
        if folds is not None:
            write_split(building / SPLIT_NAME, folds)
    images_of_class = Counter(class_id for by_class in labels.values() for class_id in by_class)
    ignored = [by_class[IGNORE_CLASS_ID] for by_class in labels.values() if IGNORE_CLASS_ID in by_class]
    per_fold = Counter((folds or {}).values())
    return ImportReport(
        images=len(labels),
        clean_images=sum(not by_class for by_class in labels.values()),
        class_names=tuple(names),
        masks_per_class=tuple(images_of_class[class_id] for class_id in range(1, len(names) + 1)),
        ignored_px=sum(int(rle.parse_pairs(encoded)[:, 1].sum()) for encoded in ignored),
        images_per_fold=tuple(per_fold[fold] for fold in range(max(per_fold, default=-1) + 1)),
        missing_images=tuple(missing_images),
        lost=lost,
    )


LOSSES = {
    "missing_images": "{count} images have rows in the label table and no file; they were left out (for example "
    "{examples}).",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "overlap_px": "{count} px belong to several classes; a class map holds one, here that of the smaller mask (for "
    "example {examples}). A picture for each class keeps them all.",
    "under_ignore_px": "{count} px belong to a class and are marked to be ignored; a class map holds the mark alone "
    "(for example {examples}). A picture for each class keeps both.",
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
        for name in (GROUPS_NAME, SPLIT_NAME):
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

    def labelled_images(self, progress: Progress) -> Iterator[LabelledImage]:
        """Every image, decoded to see that it is whole, with its labels.

        Raises:
            ImageError: an image is not whole.
            LabelError: a run lies beyond its image.
        """
        image_ids = self.folder.image_ids
        for done, image_id in enumerate(image_ids, start=1):
            path = self.folder.image_path(image_id)
            height, width = read.decode(path).pixels.shape
            masks, ignore = self.folder.masks_of(image_id, (height, width))
            self.masks += int(masks.any(axis=(1, 2)).sum())
            yield LabelledImage(image_id, path, masks, ignore)
            progress(done, len(image_ids))

    def report(self) -> ExportReport:
        """The account, once all images have gone through."""
        folder = self.folder
        return ExportReport(len(folder.image_ids), self.masks, folder.class_names, self.tally.losses(LOSSES))
