"""What imports and exports share: class numbers, painting masks, the data folder on either side, and what was lost."""

import shutil
import threading
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
from defectseg.files import open_regular
from defectseg.image import read
from defectseg.progress import EXAMPLES_SHOWN, Progress

IGNORE_NAME = "ignore"  # the name of ClassId 255 in formats that know classes by name
_ROUNDING_PX = 0.01  # 0.3 of 10 px may be 2.9999 px
GIVEN_CLASSES = "the given list of classes"

LOSSES = {
    "missing_images": "{count} images have rows in the label table and no file; they were left out.",
    "unreadable_images": "{count} images are unreadable and were left out.",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "boxes": "{count} boxes have no outline. Their pixels are ignored, except where a mask explains them.",
    "no_class": "{count} outlines or masks have no class; their pixels are ignored.",
    "rotated": "{count} boxes are rotated; the upright boxes around them were taken.",
    "no_shape": "{count} annotations have neither an outline nor a box and were left out.",
    "other_shape": "{count} points, lines or texts cover no area and were left out.",
    "rectangles": "{count} rectangles count as areas, as in the tool. If they only surround defects, ignore boxes.",
    "wide_lines": "{count} lines were drawn 10 px wide, as by the tool itself.",
    "flags": "{count} flags of images or annotations are not kept.",
    "not_counted": "{count} drafts, predictions, and skipped or older annotations do not count.",
    "faulty_outline": "{count} annotations have an outline that is none; the rest of the annotation was used.",
    "faulty_box": "{count} annotations have a good outline and a box that is none; the outline was used.",
    "text_numbers": "{count} annotations have numbers written as text; they were read as numbers.",
    "score": "{count} labels have a score, as predictions have. They count as labels all the same: correct them first.",
    "clipped": "{count} outlines or boxes reach beyond their image; what lies outside was cut off.",
    "no_pixel": "{count} annotations hold no centre of a pixel of their image, and were left out.",
    "as_sound": "{count} annotations count as sound steel, as their class says.",
    "dropped": "{count} annotations are of dropped classes; their pixels are ignored.",
    "united": "{count} annotations were united with others of their class and image, which have one mask.",
    "turned": "{count} images were turned as EXIF says, into PNG. `predict` sees files as stored: turn those, too.",
    "unlisted_images": "{count} images in the folder are not named in the labels and were left out.",
    "other_file": "{count} files are not of this kind and were passed over.",
    "predictions_file": "{count} files hold predictions (lists of COCO results) and were passed over.",
    "absent_folder": "{count} folders or lists that the labels name are not there; others of that meaning were taken.",
    "several_parts": "{count} images belong to several parts, and count as the first of train, val and test.",
    "other_part": "{count} images of other subsets count as train.",
    "odd_px": "{count} px of binary masks are neither 0 nor the usual value; those above half of the range are defect.",
    "from_zero": "The value 0 is a class, since another is the background: value n became ClassId n + 1.",
    "mvtec_parts": "The folders train and test of MVTec AD suit methods that learn from sound images: no split.",
    "overlap_px": "{count} px belong to several classes; a class map keeps the smaller mask, pictures by class all.",
    "under_ignore_px": "{count} px of classes are ignored; a class map keeps the mark, pictures by class keep both.",
    "hole_px": "{count} px of holes were filled, since an outline cannot have holes.",
    "simplified": "Outlines are simplified; they deviate by up to {count} px.",
    "ignore_px": "{count} px marked to be ignored became background; YOLO has no such mark.",
}
"""Every kind of loss -> a message with {count}; examples follow. Reports list losses in this order."""


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
    """Counts losses by kind, with a few examples of each. Several threads may add at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, count: int = 1, *, example: str = "") -> None:
        """Count losses of a kind; `example` names a place where one occurred."""
        assert kind in LOSSES
        with self._lock:
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
        losses = []
        for kind, message in LOSSES.items():
            if count := self._counts[kind]:
                examples = ", ".join(self._examples[kind])
                if examples and "{examples}" not in message:
                    message += " For example: {examples}."
                losses.append(Loss(kind, count, message.format(count=count, examples=examples)))
        return tuple(losses)


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
        with open_regular(path) as handle:
            return handle.read().decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text; {expected}. Unpack it first if it is an archive.") from error


def write_png(path: Path, pixels: cv2.typing.MatLike) -> None:
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

    def erase(self, hole: NDArray[np.bool_]) -> None:
        """Take pixels, bool (H, W), out of the masks so far."""
        for mask in self._masks.values():
            mask &= ~hole

    def add_box(self, left: float, top: float, width: float, height: float, *, example: str) -> None:
        """Mark a box, in pixels, that holds a defect of unknown shape."""
        self._tally.add("boxes", example=example)
        first = np.floor(np.array([top, left]) + _ROUNDING_PX).astype(int).clip(0)
        end = np.ceil(np.array([top + height, left + width]) - _ROUNDING_PX).astype(int).clip(0)
        rows, columns = slice(first[0], end[0]), slice(first[1], end[1])
        self._boxes[rows, columns] = True

    def masks(self) -> dict[int, NDArray[np.bool_]]:
        """ClassId -> mask, bool (H, W), by ClassId. Pixels in boxes are ignored unless a mask covers them."""
        masks = {class_id: mask for class_id, mask in self._masks.items() if mask.any()}
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
