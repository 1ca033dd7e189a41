"""A against B on images that nobody has labelled: which sheets change, and which to label to decide."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from defectseg.compare.pictures import Picture, paint_answer
from defectseg.compare.report import TO_LABEL, write_folder
from defectseg.compare.sources import open_source, read_answers
from defectseg.compare.verdict import VETO_P
from defectseg.data.classes import MAX_CLASSES
from defectseg.data.names import match_groups
from defectseg.errors import DataError, UsageError
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.progress import some

ONLY_A, ONLY_B, OTHER_CLASSES = "only A finds a defect", "only B finds a defect", "other classes"
_SHARE, _PROBABLY = 0.75, 0.8


@dataclass(frozen=True)
class Changed:
    """A sheet whose answer changes: how, the classes found, and the pixels of those that only one side finds."""

    image_id: str
    group: str
    change: str
    classes_a: str
    classes_b: str
    changed_px: int


@dataclass(frozen=True)
class Differences:
    """What two sources answer differently.

    Attributes:
        a, b: the sources, as given.
        images: number of images that both have an answer for.
        changed: those whose answer changes; those between sound and defective first, the largest area first.
        to_label: some of them, drawn at random among the groups: with their labels, `compare` probably tells.
        warnings: sentences.
    """

    a: str
    b: str
    images: int
    changed: tuple[Changed, ...]
    to_label: tuple[str, ...]
    warnings: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """The number of sheets by the kind of their change."""
        return {kind: sum(one.change == kind for one in self.changed) for kind in (ONLY_A, ONLY_B, OTHER_CLASSES)}

    def to_json(self) -> dict[str, object]:
        """Plain containers."""
        return {**asdict(self), "counts": self.counts()}

    def sentences(self) -> list[str]:
        """What changes, and what to label, in plain words."""
        counts = self.counts()
        text = [
            f"Of {self.images:,} sheets, {counts[ONLY_A]:,} are defective for A alone, {counts[ONLY_B]:,} for B alone, and "
            f"{counts[OTHER_CLASSES]:,} are defective for both, of other classes."
        ]
        least, probably = votes_needed()
        groups = len({one.group for one in self.changed if one.change != OTHER_CLASSES})
        if groups < least:
            return [*text, f"That is too few to decide: {least} groups must change between sound and defective."]
        return [
            *text,
            f"Label these {len(self.to_label):,} to decide ({TO_LABEL}): only sheets that change tell which model is "
            f"right. {least} groups are the least, if all speak against the same model; {probably} probably decide if "
            "three in four do.",
        ]


def votes_needed() -> tuple[int, int]:
    """How many groups a veto needs at least, and how many for one with a probability of 80 % if 3 in 4 speak for it."""
    from scipy.stats import binom

    votes = np.arange(1, 200)
    enough = binom.isf(VETO_P, votes, 0.5) + 1  # the fewest groups against a model that are a veto
    power = binom.sf(enough - 1, votes, _SHARE)
    return int(votes[enough <= votes][0]), int(votes[power >= _PROBABLY][0])


def compare_unlabelled(
    a: str,
    b: str,
    out: Path | None = None,
    *,
    images: Path | None = None,
    group: str | None = None,
    overwrite: bool = False,
) -> Differences:
    """Find the sheets whose answer changes between two result folders or prediction files.

    Args:
        a, b: each a result folder of predict or a prediction file.
        out: output folder, or None.
        images: the folder of the images, for pictures; None: without pictures.
        group: regular expression that finds the group of an image in its ImageId; None: each is its own.
        overwrite: replace an earlier comparison in `out`.

    Raises:
        OutputExistsError: see `files.result_folder`.
        UsageError: a source is a model, which needs labelled images.
        DataError, LabelError: the answers or images cannot be used, or they have no image in common.
    """
    sources = (open_source(a), open_source(b))
    for one in sources:
        if one.is_model:
            raise UsageError(
                f"{one.text}: is a model. Without labels, give what predict made with it.", argument="data"
            )
    names, where = next(((one.class_names, Path(one.text)) for one in sources if one.class_names), (None, Path(a)))
    class_names = names or tuple(f"class {number}" for number in range(1, MAX_CLASSES + 1))
    answers = [read_answers(one, class_names, where) for one in sources]
    image_ids = sorted(answers[0].masks.keys() & answers[1].masks.keys())
    if not image_ids:
        raise DataError(f"{a} and {b} have no image in common.")
    warnings = [warning for one in answers for warning in (*one.warnings, *one.unreadable.values())]
    if alone := answers[0].masks.keys() ^ answers[1].masks.keys():
        warnings.append(f"{len(alone)} images have only one answer and are left out: {some(alone)}")
    groups = {} if group is None else match_groups(group, image_ids)
    changed = []
    for image_id in image_ids:
        found = [one.masks[image_id] for one in answers]
        if differing := found[0].keys() ^ found[1].keys():
            kind = OTHER_CLASSES if all(found) else ONLY_A if found[0] else ONLY_B
            texts = [", ".join(class_names[class_id - 1] for class_id in sorted(side)) for side in found]
            runs = [side[class_id] for side in found for class_id in sorted(differing & side.keys())]
            area_px = sum(int(rle.parse_pairs(encoded)[:, 1].sum()) for encoded in runs)
            changed.append(Changed(image_id, groups.get(image_id, image_id), kind, *texts, area_px))
    changed.sort(key=lambda one: (one.change == OTHER_CLASSES, -one.changed_px, one.image_id))
    done = Differences(a, b, len(image_ids), tuple(changed), _choose(changed), tuple(warnings))
    if out is not None:
        paths = {} if images is None else {one.image_id: one for one in find_images([images])}

        def panels(image_id: str) -> list[tuple[Picture, str]]:
            if image_id not in paths:
                raise DataError(f"{images}: has no {image_id}. Give the folder that predict was given.")
            pixels = decode(paths[image_id]).pixels
            sides = [paint_answer(pixels, one.masks[image_id], class_names, where=image_id) for one in answers]
            return [(picture, f"{name}: {text}") for name, (picture, text) in zip("AB", sides, strict=True)]

        write_folder(
            out,
            done.to_json(),
            [*Changed.__dataclass_fields__],
            [[*vars(one).values()] for one in changed],
            panels if images else None,
            captions={one.image_id: f"{one.change}; {one.changed_px:,} px" for one in changed},
            to_label=done.to_label,
            overwrite=overwrite,
            title="What changes from A to B",
            tone="unsure",
            sentences=done.sentences(),
            table=[],
            notes=warnings,
        )
    return done


def _choose(changed: Sequence[Changed]) -> tuple[str, ...]:
    """Sheets that change between sound and defective, of groups drawn at random: the worst are no fair sample."""
    sheets = [one for one in changed if one.change != OTHER_CLASSES]
    groups = sorted({one.group for one in sheets})
    drawn = set(np.random.default_rng(0).permutation(groups)[: votes_needed()[1]].tolist())
    return tuple(sorted(one.image_id for one in sheets if one.group in drawn))
