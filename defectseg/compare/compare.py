"""A against B: `defectseg compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.compare.pictures import Picture, decode_masks, paint_answer
from defectseg.compare.report import TONES, sentences, table, write_folder
from defectseg.compare.sources import (
    Answers,
    Source,
    answers_of_model,
    images_of,
    open_source,
    read_answers,
    refuse_seen,
)
from defectseg.compare.verdict import MARGIN, Verdict, contributions, judge
from defectseg.data.classes import CLASSES_NAME
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.groups import groups_of
from defectseg.data.split import SPLIT_NAME
from defectseg.errors import DataError, ImageError, LabelError, UsageError
from defectseg.evaluate.bootstrap import number_groups
from defectseg.evaluate.metrics import count_pairs, score
from defectseg.evaluate.sheets import sheet_of
from defectseg.image.overlay import paint_truth
from defectseg.image.read import read_size
from defectseg.progress import Progress, silent, some

Figures = NDArray[np.float64]
"""float64 (N, 5), of N images."""


@dataclass(frozen=True)
class Side:
    """One answer for one image: its mean Dice, whether it is missed or stopped, and the labelled regions found."""

    dice: float
    missed: int
    stopped: int
    regions_found: int


@dataclass(frozen=True)
class Change:
    """An image whose figures differ, with both sides and the number of labelled regions."""

    image_id: str
    group: str
    a: Side
    b: Side
    labelled_regions: int

    @property
    def difference(self) -> float:
        """Dice of B minus Dice of A; NaN where ignored pixels may hide every class."""
        return self.b.dice - self.a.dice


@dataclass(frozen=True)
class Comparison:
    """What two sources say about the same labelled images.

    Attributes:
        sources: A and B, as given.
        verdict: about B.
        groups_source: where the groups come from, in words.
        images: number of images.
        changes: the images on which the figures differ, the largest difference first.
        warnings: sentences.
        unreadable: for each image that was left out, why.
    """

    sources: tuple[str, str]
    verdict: Verdict
    groups_source: str
    images: int
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain containers, numbers and None; of the changes their number."""
        names = dict(zip("ab", self.sources, strict=True))
        told = {"images": self.images, "images_changed": len(self.changes), "groups_source": self.groups_source}
        warnings = [*self.warnings, *(f"left out, {why}" for why in self.unreadable)]
        return {**names, **self.verdict.to_json(), **told, "warnings": warnings}


def compare(
    a: str,
    b: str,
    data: Path,
    out: Path | None = None,
    *,
    subset: str = "all",
    split: Path | None = None,
    group: str | None = None,
    margin: float = MARGIN,
    require: str | None = None,
    allow_seen: bool = False,
    allow_unknown: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    tta: str | None = None,
    bit_depth: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Find out whether B is better than A on labelled images; with `out`, write figures, pictures and a page.

    Args:
        a, b: each a model, a run of folds, a result folder of predict, or a prediction file.
        data: data folder.
        out: output folder, or None.
        subset: all, train, val or test, of each model.
        split: split.csv with the folds; None for the one beside each model.
        group: regular expression that finds the group of an image in its ImageId; None: see `groups_of`.
        margin: the loss of Kaggle Dice that counts as none.
        require: better or not-worse, if something depends on the verdict; see `Verdict.meets`.
        allow_seen: also compare models on images that they were trained on.
        allow_unknown: let something depend on answers of which nobody knows what their model was trained on.
        overwrite: replace an earlier comparison in `out`.
        device, runtime, tta, bit_depth: of models, as in `evaluate`.
        progress: called after each image.

    Raises:
        OutputExistsError: see `files.result_folder`.
        UsageError: the images of the subset are not known, or a model was trained on some.
        DataError, ModelError, ResourceError: data, answers, model or device cannot be used.
    """
    sources = (open_source(a), open_source(b))
    if require and not allow_unknown and (unknown := [one.text for one in sources if not one.is_known]):
        raise UsageError(
            f"{' and '.join(unknown)}: not known which images the model was trained on, so nothing may depend on it.",
            go_on={"allow_unknown": True},
        )
    named = [one.class_names for one in sources if one.class_names and not (data / CLASSES_NAME).exists()]
    folder = open_data_folder(data, class_names=next(iter(named), None), bit_depth=bit_depth)
    answers, warnings = _answers(sources, folder, subset, split, allow_seen, device, runtime, tta, progress)
    image_ids, unreadable = sorted(answers[0].masks.keys() & answers[1].masks.keys()), {}
    rows = []
    for image_id in image_ids:
        try:
            rows.append(_count(folder, image_id, answers))
        except ImageError as error:
            unreadable[image_id] = str(error)
    image_ids = [image_id for image_id in image_ids if image_id not in unreadable]
    for one in answers:
        unreadable |= one.unreadable
    if not image_ids:
        raise DataError(f"{data}: none of its images has an answer of both {a} and {b}.")
    splits = [
        *(() if split is None else (split,)),
        *(path.parent / SPLIT_NAME for one in sources for path in one.models),
    ]
    groups = groups_of(folder, image_ids, group, splits=splits)
    of_a, of_b, of = np.array(rows, np.float64).transpose(1, 0, 2)
    verdict = judge(of_a, of_b, of, number_groups(groups[image_id] for image_id in image_ids), margin)
    changes = _changes(image_ids, groups, of_a, of_b, of)
    why = tuple(reason for image_id, reason in sorted(unreadable.items()))
    done = Comparison((a, b), verdict, groups.source, len(image_ids), changes, tuple(warnings), why)
    if out is not None:
        _write(out, done, folder, answers, overwrite=overwrite)
    return done


def _answers(
    sources: Sequence[Source],
    folder: DataFolder,
    subset: str,
    split: Path | None,
    allow_seen: bool,
    device: str,
    runtime: str,
    tta: str | None,
    progress: Progress,
) -> tuple[list[Answers], list[str]]:
    """The answers of both sides for the images of the subset, and warnings."""
    if subset != "all" and not any(one.models for one in sources):
        raise UsageError(f"{subset}: neither side has a model that tells its images.", argument="subset")
    chosen = [images_of(one, folder, subset, split) for one in sources]
    wanted = chosen[0][0] & chosen[1][0]
    if not wanted:
        raise UsageError(f"{folder.root}: no image may be used for both sides. Choose another subset.")
    warnings = [warning for _, _, told in chosen for warning in told]
    for one in sources:
        warnings += refuse_seen(one, folder, sorted(wanted), allow_seen=allow_seen)
    answers = []
    for source, (_, parts, _) in zip(sources, chosen, strict=True):
        if source.is_model:
            parts = [(members, tuple(one for one in image_ids if one in wanted)) for members, image_ids in parts]
            parts = [part for part in parts if part[1]]
            one = answers_of_model(source, folder, parts, device=device, runtime=runtime, tta=tta, progress=progress)
        else:
            one = read_answers(source, folder.class_names, folder.root / CLASSES_NAME, folder)
        given = {image_id: masks for image_id, masks in one.masks.items() if image_id in wanted}
        if absent := sorted(wanted - given.keys() - one.unreadable.keys()):
            warnings.append(f"{len(absent)} images are not in {source.text} and are left out: {some(absent)}")
        warnings += one.warnings
        lost = {image_id: why for image_id, why in one.unreadable.items() if image_id in wanted}
        answers.append(Answers(given, lost, one.size_hw))
    return answers, warnings


def _count(folder: DataFolder, image_id: str, answers: Sequence[Answers]) -> list[Sequence[float]]:
    """The numerators of A and B, and the denominators, of `contributions`. Raises ImageError or LabelError."""
    size_hw = read_size(folder.image_path(image_id))
    truth, ignore = folder.masks_of(image_id, size_hw)
    rows: list[Sequence[float]] = []
    for one in answers:
        if (told := one.size_hw.get(image_id, size_hw)) != size_hw:
            raise LabelError(
                f"{image_id}: a result is of an image of {told[0]} x {told[1]} px, but the one in {folder.root} has "
                f"{size_hw[0]} x {size_hw[1]}. Compare results of these images."
            )
        predicted = decode_masks(one.masks[image_id], size_hw, folder.num_classes, where=image_id)
        pairs = [*count_pairs(image_id, predicted, truth, ignore).values()]
        numerators, denominators = contributions(pairs, sheet_of(predicted, truth, ignore))
        rows.append(numerators)
    return [*rows, denominators]


def _changes(
    image_ids: Sequence[str], groups: Mapping[str, str], a: Figures, b: Figures, of: Figures
) -> tuple[Change, ...]:
    """The images on which a figure differs, the largest difference of the Dice first."""
    changes = []
    for index in np.flatnonzero((a != b).any(axis=1)).tolist():
        image_id, known = image_ids[index], of[index, 0] or np.nan
        sides = [(one[index, 0] / known, *one[index, 2:].astype(int).tolist()) for one in (a, b)]
        changes.append(Change(image_id, groups[image_id], Side(*sides[0]), Side(*sides[1]), int(of[index, 4])))
    return tuple(sorted(changes, key=lambda one: (-abs(np.nan_to_num(one.difference)), one.image_id)))


def _write(out: Path, done: Comparison, folder: DataFolder, answers: Sequence[Answers], *, overwrite: bool) -> None:
    def panels(image_id: str) -> list[tuple[Picture, str]]:
        pixels = folder.decode(image_id).pixels
        truth, ignore = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
        labelled = ", ".join(folder.class_names[class_id - 1] for class_id in folder.classes_of(image_id)) or "sound"
        a, b = (paint_answer(pixels, one.masks[image_id], folder.class_names, where=image_id) for one in answers)
        label = paint_truth(pixels, truth.any(axis=0) & ~ignore)
        return [(a[0], f"A: {a[1]}"), (label, f"label: {labelled}"), (b[0], f"B: {b[1]}")]

    names = [f"{name}_{side}" for name in Side.__dataclass_fields__ for side in "ab"]
    rows = []
    for one in done.changes:
        figures = [value for both in zip(vars(one.a).values(), vars(one.b).values(), strict=True) for value in both]
        texts = [f"{value:.9g}" for value in (one.difference, *figures)]
        rows.append([one.image_id, one.group, *texts, one.labelled_regions])
    write_folder(
        out,
        done.to_json(),
        ["ImageId", "group", "dice_difference", *names, "labelled_regions"],
        rows,
        panels,
        captions={
            one.image_id: f"group {one.group}; mean Dice {score(one.a.dice)} under A, {score(one.b.dice)} under B"
            for one in done.changes
        },
        overwrite=overwrite,
        title="B against A",
        tone=TONES[done.verdict.verdict],
        sentences=sentences(done.verdict),
        table=table(done.verdict),
        notes=[*done.warnings, *done.unreadable],
    )
