"""What a reader makes of other people's labels, and what a user decides where they may mean two things."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from defectseg.formats.losses import Tally

if TYPE_CHECKING:
    from defectseg.formats.source import LabelSource

Part = Literal["", "train", "val", "test"]
Status = Literal["labelled", "unlabelled", "unclear"]

_PARTS: dict[str, Part] = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_PARTS |= {"test": "test", "testing": "test"}
_ROUNDING_PX = 0.01  # 0.3 of 10 px may be 2.9999 px


def part_among(folders: Iterable[str]) -> Part:
    """The part that the first telling folder of a path stands for; "" if there is none."""
    return next((part for folder in folders if (part := part_of(folder))), "")


def part_of(name: str) -> Part:
    """The part of a data set that a folder, file or subset stands for by its name, in any case; "" if for none."""
    return _PARTS.get(name.strip().lower(), "")


@dataclass(frozen=True)
class Choices:
    """What a user decides about an import. None and "" leave it to the labels, or let the import stop and ask.

    Attributes:
        images: the folder of the images, if it is not the source.
        absent: "skip" leaves out labels whose image is not there, and images that cannot be read.
        classes: the classes in the wanted order. For labels with names: all of them, as "name", "name=new name", or
            "name=" to drop it. Without: entry n names the value n.
        unlabelled: "clean" takes images that may be unlabelled as sound; "skip" leaves them out of training.
        boxes: "ignore" marks the pixels of boxes without an outline to be ignored.
        dropped: "sound" makes the pixels of dropped classes sound steel; else they are ignored.
        exif: "keep" takes labels as drawn on the stored image, "turn" as drawn on the displayed one.
        sound: a folder of sound images.
        background, ignore: the value or name that means sound steel, and the one of pixels to ignore.
        unite: unite the rows of a label table that have the same image and class.
        follow_links: read and copy files behind links that lead out of the folders of labels or images.
    """

    images: Path | None = None
    absent: Literal["skip"] | None = None
    classes: Sequence[str] | None = None
    unlabelled: Literal["clean", "skip"] | None = None
    boxes: Literal["ignore"] | None = None
    dropped: Literal["sound"] | None = None
    exif: Literal["keep", "turn"] | None = None
    sound: str = ""
    background: str = ""
    ignore: str = ""
    unite: bool = False
    follow_links: bool = False


@dataclass(frozen=True)
class Shape:
    """A region of one class.

    Attributes:
        name: its class, as the labels call it; where they have no names, the number as text; "" if nobody has said.
        paint: height and width of the image -> mask, bool (H, W). It may raise LabelError.
        where: names the file and the entry in messages.
        covers: if it is of the background, it makes a hole in the earlier shapes of its image.
    """

    name: str
    paint: Callable[[tuple[int, int]], NDArray[np.bool_]]
    where: str
    covers: bool = False


@dataclass(frozen=True)
class Box:
    """A box without an outline: left, top, width and height in px, or in fractions of the image's size."""

    name: str
    box_xywh: tuple[float, float, float, float]
    where: str
    in_fractions: bool = False

    def paint(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Its pixels in an image of that size, bool (H, W). What lies outside is cut off."""
        mask = np.zeros(size_hw, np.bool_)
        corner, extent = np.reshape(self.box_xywh, (2, 2)) * (size_hw[::-1] if self.in_fractions else (1, 1))
        left, top = np.floor(corner + _ROUNDING_PX).astype(int).clip(0)
        right, bottom = np.ceil(corner + extent - _ROUNDING_PX).astype(int).clip(0)
        mask[top:bottom, left:right] = True
        return mask


@dataclass(frozen=True)
class Record:
    """The labels of one image.

    Attributes:
        image: its file, or the name that the labels give it; a relative one as seen from the source.
        where: names the file and the entry in messages.
        shapes: its regions and boxes.
        size_hw: the size that the labels state, if they do.
        part: of the data set.
        status: "labelled" if somebody has looked at it, "unlabelled" if nobody has, "unclear" if the format cannot
            tell a sound image from one that nobody has looked at.
        also: more names under which the image may be found.
    """

    image: Path | str
    where: str
    shapes: Sequence[Shape | Box] = ()
    size_hw: tuple[int, int] | None = None
    part: Part = ""
    status: Status = "labelled"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSet:
    """All labels of a source.

    Attributes:
        records: one for each image that is labelled, or that lies with the labels and is not.
        names: the classes, in the order of the source.
        numbered: nobody named the classes, so that their names are ClassIds, "1" and so on. The reader has heeded
            `background` and `ignore`, which are values of pixels.
        roots: folders below which ImageIds are the paths; empty: below "images", else below their common folder.
        keep: files to copy into the data folder as they are.
        own: written by defectseg, and therefore complete.
        lonely: label files that match no image.
        file_each: the tool writes a file for each image that somebody has labelled, so that images beside them without
            one are not labelled.
        hint: what to do if nothing is labelled.
    """

    records: Sequence[Record]
    names: Sequence[str]
    numbered: bool = False
    roots: Sequence[Path] = ()
    keep: Sequence[Path] = ()
    own: bool = False
    lonely: Sequence[str] = ()
    file_each: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of labels that can be imported.

    Attributes:
        name: for `kind`.
        menu: what writes it, and how.
        recognise: source -> the evidence, a phrase such as "labelme.json has 'shapes' and 'imagePath'"; "" if it is
            not of this kind. It looks at names and at the beginning of a few files, and raises nothing.
        read: the whole source -> its labels. Changes and losses go to the Tally. It raises LabelError.
        boxes_only: source -> whether it holds boxes alone, so that masks or outlines of another kind come first.
    """

    name: str
    menu: str
    recognise: Callable[["LabelSource"], str]
    read: Callable[["LabelSource", Choices, Tally], LabelSet]
    boxes_only: Callable[["LabelSource"], bool] = lambda source: False
