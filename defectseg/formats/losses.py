"""What an import or export changes, clips, drops or leaves out."""

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass

from defectseg.progress import EXAMPLES_SHOWN

LOSSES = {
    "missing_images": "Images that have rows in the label table and no file; they were left out: {count}.",
    "unreadable_images": "Unreadable images, which were left out: {count}.",
    "side_files": "{examples} stayed behind: the format has no place for what it says.",
    "folds": "{examples}",
    "fold_column": "The column fold of {examples} was passed over: folds are read from split.csv (ImageId,fold).",
    "boxes": "Boxes without an outline: {count}. Their pixels are ignored, except where a mask explains them.",
    "no_class": "Outlines or masks without a class, whose pixels are ignored: {count}.",
    "rotated": "Rotated boxes: {count}. The upright boxes around them were taken.",
    "no_shape": "Annotations with neither an outline nor a box, which were left out: {count}.",
    "other_shape": "Points, lines or texts, which cover no area and were left out: {count}.",
    "rectangles": "Rectangles: {count}. They count as areas, as in the tool. If they only frame defects, ignore boxes.",
    "wide_lines": "Lines, drawn 10 px wide, as by the tool itself: {count}.",
    "not_counted": "Drafts, predictions, and skipped or older annotations, which do not count: {count}.",
    "faulty_part": "Annotations with an outline or a box that is none: {count}. The rest of each was used.",
    "text_numbers": "Outlines or boxes with numbers written as text, which were read as numbers: {count}.",
    "like_boxes": "All outlines have four corners: these may be boxes of a detector. If so, they are no outlines.",
    "score": "Labels with a score, as predictions have: {count}. They count all the same: correct them first.",
    "clipped": "Outlines or boxes that reach beyond their image: {count}. What lies outside was cut off.",
    "no_pixel": "Annotations that hold no centre of a pixel of their image, and were left out: {count}.",
    "as_sound": "Annotations that count as sound steel, as their class says: {count}.",
    "dropped": "Annotations of dropped classes, whose pixels are ignored: {count}.",
    "united": "Annotations united with others of their class and image into one mask: {count}.",
    "turned": "Images turned as EXIF says, into PNG: {count}. `predict` sees files as stored: turn those, too.",
    "unlisted_images": "Images in the folder that the labels do not name, and that were left out: {count}.",
    "other_file": "Files that are not of this kind, and were passed over: {count}.",
    "predictions_file": "Files of predictions (lists of COCO results), which were passed over: {count}.",
    "absent_folder": "Folders or lists that the labels name, and that are not there, replaced by others: {count}.",
    "several_parts": "Images of several parts, which count as the first of train, val and test: {count}.",
    "links": "Images behind links that lead out of their folder, and that were left out (--follow-links): {count}.",
    "listed": "Lines in lists of parts, such as train.txt, that name no image that is there: {count}.",
    "other_part": "Images of other subsets, which count as train: {count}.",
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
    """Counts losses by kind, with the first few examples of each by name. Several threads may add at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, count: int = 1, *, example: str = "") -> None:
        """Count losses of a kind, if any; `example` names a place where one occurred."""
        if not count:
            return
        with self._lock:
            self._counts[kind] += count
            self._examples[kind] = sorted({*self._examples[kind], example} - {""})[:EXAMPLES_SHOWN]

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
