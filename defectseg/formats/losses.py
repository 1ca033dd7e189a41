"""What an import or export changes, clips, drops or leaves out."""

from collections import Counter
from dataclasses import dataclass

from defectseg.progress import EXAMPLES_SHOWN

LOSSES = {
    "missing_images": "{count} images have rows in the label table and no file; they were left out.",
    "unreadable_images": "{count} images are unreadable and were left out.",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "fold_column": "The column fold of {examples} was passed over: folds are read from split.csv (ImageId,fold).",
    "boxes": "{count} boxes have no outline. Their pixels are ignored, except where a mask explains them.",
    "no_class": "{count} outlines or masks have no class; their pixels are ignored.",
    "rotated": "{count} boxes are rotated; the upright boxes around them were taken.",
    "no_shape": "{count} annotations have neither an outline nor a box and were left out.",
    "other_shape": "{count} points, lines or texts cover no area and were left out.",
    "rectangles": "{count} rectangles count as areas, as in the tool. If they only surround defects, ignore boxes.",
    "wide_lines": "{count} lines were drawn 10 px wide, as by the tool itself.",
    "not_counted": "{count} drafts, predictions, and skipped or older annotations do not count.",
    "faulty_part": "{count} annotations have an outline or a box that is none; the rest of the annotation was used.",
    "text_numbers": "{count} outlines or boxes have numbers written as text; they were read as numbers.",
    "like_boxes": "All outlines have four corners: these may be boxes of a detector. If so, they are no outlines.",
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
    "absent_folder": "{count} folders or lists that the labels name are absent; folders of the part's name count.",
    "several_parts": "{count} images belong to several parts, and count as the first of train, val and test.",
    "other_part": "{count} images of other subsets count as train.",
    "odd_px": "{count} px of binary masks have another value than the usual two, and count as the nearer of these.",
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
    """Counts losses by kind, with a few examples of each. For one thread: others keep a tally of their own."""

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
        losses = []
        for kind, message in LOSSES.items():
            if count := self._counts[kind]:
                examples = ", ".join(self._examples[kind])
                if examples and "{examples}" not in message:
                    message += " For example: {examples}."
                losses.append(Loss(kind, count, message.format(count=count, examples=examples)))
        return tuple(losses)
