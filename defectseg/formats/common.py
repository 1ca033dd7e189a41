"""What imports and exports share: class numbers, painting masks, the data folder on either side, and what was lost."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import GROUPS_NAME, open_data_folder
from defectseg.data.split import SPLIT_NAME
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import DataError, LabelError
from defectseg.image import read
from defectseg.progress import EXAMPLES_SHOWN, Progress

IGNORE_NAME = "ignore"  # the name of ClassId 255 in formats that know classes by name
GIVEN_CLASSES = "the given list of classes"

LOSSES = {
    "missing_images": "{count} images have rows in the label table and no file; they were left out (for example "
    "{examples}).",
    "unreadable_images": "{count} images are unreadable and not in the file (for example {examples}).",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "boxes": "{count} annotations have a box and no outline; the pixels in these boxes are marked to be ignored, "
    "where no mask explains them (for example {examples}).",
    "no_shape": "{count} annotations have neither an outline nor a box and were left out (for example {examples}).",
    "other_shape": "{count} annotations are points, lines or texts, which cover no area, and were left out (for "
    "example {examples}).",
    "clipped": "{count} outlines or boxes reach beyond their image; what lies outside was cut off (for example "
    "{examples}).",
    "no_pixel": "{count} annotations are too thin to hold the centre of a pixel, or lie outside their image "
    "(for example {examples}).",
    "as_sound": "{count} annotations count as sound steel, as their class says (for example {examples}).",
    "dropped": "{count} annotations of dropped classes; their pixels are marked to be ignored (for example "
    "{examples}).",
    "united": "{count} annotations were united with others of their class in their image, since a label table has "
    "one mask for each class.",
    "turned": "{count} images were turned as their EXIF orientation says, and written as PNG (for example {examples}). "
    "`predict` sees files as they are stored: turn those in the same way.",
    "unlisted_images": "{count} images in the folder are not listed in the file and were left out "
    "(for example {examples}).",
    "other_file": "{count} files are not of this kind and were passed over (for example {examples}).",
    "other_part": "{count} images of other subsets count as train (for example {examples}).",
    "odd_px": "{count} px of binary masks have another value than the usual two, from soft edges, JPEG or by mistake. "
    "They count as the nearer of the two: with 0 and 255, above 127 is the class (for example {examples}).",
    "from_zero": "The value 0 is a class, since another is the background: value n became ClassId n + 1.",
    "mvtec_parts": "The folders train and test of MVTec AD are for methods that learn from sound images alone; no "
    "split.csv is made from them.",
    "overlap_px": "{count} px belong to several classes; a class map holds one, here that of the smaller mask (for "
    "example {examples}). A picture for each class keeps them all.",
    "under_ignore_px": "{count} px belong to a class and are marked to be ignored; a class map holds the mark alone "
    "(for example {examples}). A picture for each class keeps both.",
    "hole_px": "{count} px of holes were filled, since an outline cannot have holes (for example {examples}).",
    "simplified": "Outlines are simplified; they deviate by up to {count} px.",
    "ignore_px": "{count} px marked to be ignored became plain background; YOLO has no such mark (for example "
    "{examples}).",
}
"""Every kind of loss -> a message with {count} and {examples}. Reports list losses in this order."""


@dataclass(frozen=True)
class Loss:
    """Something that the target format cannot hold, or that could not be imported.

    Attributes:
        kind: a key of `LOSSES`; programs can rely on it.
        count: how many; the message says of what.
        message: a sentence or two for people.
    """

    kind: str
    count: int
    message: str


class Tally:
    """Counts losses by kind, with a few examples of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, count: int = 1, *, example: str = "") -> None:
        """Count losses of a kind; `example` names a place where one occurred."""
        assert kind in LOSSES
        self._counts[kind] += count
        examples = self._examples.setdefault(kind, [])
        if example and example not in examples and len(examples) < EXAMPLES_SHOWN:
            examples.append(example)

    def update(self, other: "Tally") -> None:
        """Add what another tally has counted."""
        for kind, count in other._counts.items():
            self.add(kind, count)
            for example in other._examples[kind]:
                self.add(kind, 0, example=example)

    def losses(self) -> tuple[Loss, ...]:
        """What was counted, in the order of `LOSSES`."""
        return tuple(
            Loss(kind, count, message.format(count=count, examples=", ".join(self._examples[kind])))
            for kind, message in LOSSES.items()
            if (count := self._counts[kind])
        )


def stem_of(image_id: str) -> str:
    """An ImageId without its suffix, the name by which masks and label files are paired with images."""
    return image_id.rpartition(".")[0]


def index_unique(files: Iterable[tuple[str, Path]], kind: str) -> dict[str, Path]:
    """Name -> file. Raises DataError where two files, called `kind` in the message, have one name."""
    file_of: dict[str, Path] = {}
    for name, path in files:
        other = file_of.setdefault(name, path)
        if other != path:
            raise DataError(
                f"{other} and {path.name}: two {kind} of one name; labels cannot tell them apart. Rename one of them, "
                "and its labels."
            )
    return file_of


def read_text(path: Path, expected: str) -> str:
    """UTF-8 text, with or without a byte-order mark. Raises LabelError, which says what was expected."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text; {expected}. Unpack it first if it is an archive.") from error


def write_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Write pixels as PNG, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    path.write_bytes(content.tobytes())


def place_image(source: Path, target: Path, *, link: bool) -> None:
    """Copy or link an image. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


class Canvas:
    """The masks of one image, painted annotation by annotation.

    Args:
        size_hw: height and width of the image in pixels.
        tally: receives what is lost.
    """

    def __init__(self, size_hw: tuple[int, int], tally: Tally) -> None:
        self.size_hw = size_hw
        self._tally = tally
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._boxes = np.zeros(size_hw, np.bool_)

    def add_mask(self, class_id: int, mask: NDArray[np.bool_], *, example: str) -> None:
        """Unite a mask, bool (H, W), with the earlier ones of its class. The canvas keeps the array."""
        if not mask.any():
            self._tally.add("no_pixel", example=example)
        elif class_id in self._masks:
            self._masks[class_id] |= mask
            self._tally.add("united")
        else:
            self._masks[class_id] = mask

    def add_box(self, left: float, top: float, width: float, height: float, *, example: str) -> None:
        """Mark a box, in pixels, that holds a defect of unknown shape."""
        self._tally.add("boxes", example=example)
        rows = slice(max(0, int(np.floor(top))), max(0, int(np.ceil(top + height))))
        columns = slice(max(0, int(np.floor(left))), max(0, int(np.ceil(left + width))))
        self._boxes[rows, columns] = True

    def masks(self) -> dict[int, NDArray[np.bool_]]:
        """ClassId -> mask, bool (H, W), by ClassId. Pixels in boxes are ignored unless a mask covers them."""
        masks = dict(self._masks)
        for mask in self._masks.values():
            self._boxes &= ~mask
        if self._boxes.any():
            masks[IGNORE_CLASS_ID] = self._boxes | masks.get(IGNORE_CLASS_ID, False)
        return dict(sorted(masks.items()))


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
            raise DataError(
                f"{root}: a class is called '{IGNORE_NAME}', which marks pixels to ignore. Rename it first."
            )
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
