"""Whether groups.csv and split.csv fit the images, and whether the folds leak."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from defectseg.check.pairs import CopyPair
from defectseg.copies.strips import Neighbours
from defectseg.data.folder import read_groups
from defectseg.data.split import SPLIT_NAME, read_split
from defectseg.data.table import Fault, error, warning
from defectseg.errors import LabelError

_AGAIN = "Make it again with `defectseg data split`"


def check_groups_and_split(
    root: Path, image_ids: Sequence[str], duplicates: Sequence[CopyPair], neighbours: Sequence[Neighbours]
) -> tuple[list[Fault], list[CopyPair]]:
    """Check the two optional files of a data folder against its images and against each other.

    Args:
        root: the data folder.
        image_ids: of all images, sorted.
        duplicates: the copies among them.
        neighbours: those that look like one strip, by their indices in `image_ids`.

    Returns:
        faults, and the duplicates whose images lie in different folds.
    """
    faults: list[Fault] = []
    groups: dict[str, str] = {}
    try:
        groups = read_groups(root)
        faults += _unknown_images("groups", groups, image_ids)
    except LabelError as problem:
        faults.append(error("groups", str(problem), "Write groups.csv as 'ImageId,Group', one row for each image."))
    path = root / SPLIT_NAME
    if not path.exists():
        return faults, []
    try:
        fold_of = read_split(path)
    except LabelError as problem:
        return [*faults, error("split", str(problem), f"{_AGAIN}.")], []
    faults += _unknown_images("split", fold_of, image_ids)
    if left_out := [image_id for image_id in image_ids if image_id not in fold_of]:
        message = f"{path}: has no fold for {len(left_out)} images, the first {left_out[0]}."
        faults.append(error("split", message, f"{_AGAIN}.", image=left_out[0]))
    faults += _divided_groups(path, groups, fold_of)
    leaks = [pair for pair in duplicates if _are_apart(pair.image, pair.other, fold_of)]
    if leaks:
        example = f"the first {leaks[0].image} and {leaks[0].other}"
        message = f"{path}: {len(leaks)} pairs of copies lie in different folds, {example}; scores would flatter."
        faults.append(error("split", message, f"{_AGAIN}, which keeps copies together."))
    strips = [(image_ids[one.first], image_ids[one.second]) for one in neighbours]
    if apart := [pair for pair in strips if _are_apart(*pair, fold_of)]:
        message = (
            f"{path}: {len(apart)} pairs of images that look like the same strip lie in different folds, "
            f"the first {apart[0][0]} and {apart[0][1]}; scores may flatter."
        )
        faults.append(warning("split", message, f"{_AGAIN}, which keeps them together as far as it can."))
    return faults, leaks


def _are_apart(one: str, other: str, fold_of: Mapping[str, int]) -> bool:
    return one in fold_of and other in fold_of and fold_of[one] != fold_of[other]


def _divided_groups(path: Path, groups: Mapping[str, str], fold_of: Mapping[str, int]) -> Iterator[Fault]:
    folds_of_group: dict[str, set[int]] = defaultdict(set)
    for image_id, group in groups.items():
        if image_id in fold_of:
            folds_of_group[group].add(fold_of[image_id])
    for group, folds in sorted(folds_of_group.items()):
        if len(folds) > 1:
            numbers = ", ".join(map(str, sorted(folds)))
            message = f"{path}: group '{group}' lies in folds {numbers}; scores would flatter."
            yield error("split", message, f"{_AGAIN}, which keeps groups together.")


def _unknown_images(kind: str, listed: Mapping[str, object], image_ids: Sequence[str]) -> Iterator[Fault]:
    if unknown := sorted(set(listed) - set(image_ids)):
        message = f"{kind}.csv names {len(unknown)} images that are not there, the first {unknown[0]!r}."
        yield warning(kind, message, "Leave it if you took them out on purpose.", image=unknown[0])
