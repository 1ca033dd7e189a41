"""The faults of an evaluation: pairs of image and class that are not perfect, and the pictures that show them."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from defectseg.evaluate.metrics import Counts, PairCounts
from defectseg.evaluate.rates import SIZES_PX
from defectseg.evaluate.sheets import FOUND_PERCENT, Sheet

PICTURES = 150
KINDS = {
    "missed": "labelled, and nothing predicted of that class",
    "wrong class": "labelled as one class and predicted as another",
    "false alarm": "predicted, and nothing labelled of that class",
    "inexact": "labelled and predicted, but not on the very same pixels",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """An (image, class) pair with a Dice below 1.

    Attributes:
        image_id, class_id: the pair.
        size: one of `SIZES_PX`, of the largest region: labelled, or predicted where nothing is labelled.
        kind: one of KINDS.
        pixels: of the pair.
    """

    image_id: str
    class_id: int
    size: str
    kind: str
    pixels: PairCounts

    @property
    def wrong_px(self) -> int:
        """Pixels that are labelled or predicted, but not both."""
        return self.pixels.true_px + self.pixels.predicted_px - 2 * self.pixels.both_px

    @property
    def key(self) -> tuple[int, int, int]:
        """ClassId, number of the size, number of the kind."""
        return self.class_id, list(SIZES_PX).index(self.size), list(KINDS).index(self.kind)

    @property
    def marks(self) -> list[str]:
        """What the filters of the page look for: each part of the key, or `any` in its place."""
        return ["-".join(map(str, choice)) for choice in product(*((part, "any") for part in self.key))]


def find_faults(counts: Counts, sheets: Mapping[str, Sheet], class_ids: Sequence[int]) -> list[Fault]:
    """The pairs with a Dice below 1: the lowest Dice first, then the most wrong pixels.

    Args:
        counts: by pair.
        sheets: by ImageId.
        class_ids: the ClassIds to tell in place of the 1, 2 and so on of `counts` and `sheets`.
    """
    faults = [
        Fault(image_id, class_ids[number - 1], _size(pair, number, sheet), _kind(pair, number, sheet), pair)
        for (image_id, number), pair in counts.items()
        if pair.dice < 1 and (sheet := sheets[image_id])
    ]
    return sorted(faults, key=lambda one: (one.pixels.dice, -one.wrong_px, one.image_id, one.class_id))


def choose_pictures(faults: Sequence[Fault], image_ids: Collection[str]) -> dict[str, list[Fault]]:
    """Choose up to 150 of the images: ImageId -> its faults, in the order to show.

    Each kind and each class comes first, then each kind of each class, then these in each size, the worst first. What
    is chosen is shown by kind, in the order of KINDS, the most wrong pixels first.
    """
    seen: Counter[object] = Counter()
    turns: list[tuple[int, str]] = []
    faults_of: dict[str, list[Fault]] = {image_id: [] for image_id in image_ids}
    for fault in (one for one in faults if one.image_id in faults_of):
        steps = (fault.kind, fault.class_id, (fault.kind, fault.class_id), fault.key)
        new = [number for number, step in enumerate(steps) if not seen[step]]
        turns.append((new[0] if new else len(steps) + seen[steps[-1]], fault.image_id))
        seen.update(steps)
        faults_of[fault.image_id].append(fault)
    chosen = list(dict.fromkeys(image_id for _, image_id in sorted(turns, key=lambda turn: turn[0])))[:PICTURES]
    shown = [sorted(faults_of[image_id], key=_severity) for image_id in chosen]
    return {own[0].image_id: own for own in sorted(shown, key=lambda own: _severity(own[0]))}


def filters(shown: Iterable[Sequence[Fault]], class_names: Mapping[int, str]) -> dict[str, dict[object, str]]:
    """The choices of each filter, in the order of `Fault.key`: those that occur, and any."""
    classes = {class_id: f"{class_id}. {name}" for class_id, name in class_names.items()}
    texts = {"class": classes, "size": dict(enumerate(SIZES_PX)), "fault": dict(enumerate(KINDS))}
    occurring = zip(*(fault.key for own in shown for fault in own), strict=True)
    return {
        name: {"any": "any"} | {part: text[part] for part in sorted(set(parts))}
        for (name, text), parts in zip(texts.items(), occurring, strict=False)
    }


def _severity(fault: Fault) -> tuple[int, int, str]:
    return list(KINDS).index(fault.kind), -fault.wrong_px, fault.image_id


def _size(pair: PairCounts, class_id: int, sheet: Sheet) -> str:
    regions = sheet.labelled if pair.true_px else sheet.predicted
    areas_px = [area_px for region_class, area_px, _ in regions if region_class == class_id]
    largest_px = max(areas_px, default=pair.true_px or pair.predicted_px)
    return next(name for name, (low, high) in SIZES_PX.items() if low <= largest_px < high)


def _kind(pair: PairCounts, class_id: int, sheet: Sheet) -> str:
    """A pair is of a wrong class if a tenth of its pixels is, and more than are right."""
    right_px = sheet.confusion[class_id, class_id]
    across = sheet.confusion[class_id, 1:] if pair.true_px else sheet.confusion[1:, class_id]
    wrong_px = int(across.sum() - right_px)
    if wrong_px > pair.both_px and 100 * wrong_px >= FOUND_PERCENT * (pair.true_px or pair.predicted_px):
        return "wrong class"
    return "false alarm" if not pair.true_px else "inexact" if pair.predicted_px else "missed"
