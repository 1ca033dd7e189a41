"""Whether groups.csv and split.csv fit the images, and whether the folds leak."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from defectseg.check.pairs import CopyPair
from defectseg.data.folder import read_groups, read_not_labelled
from defectseg.data.split import SPLIT_NAME, Fold, read_split, read_split_groups
from defectseg.data.table import Fault, error, warning
from defectseg.errors import LabelError
from defectseg.image.find import FoundImage

_AGAIN = "Make it again with `defectseg data split`"
_BY_HAND = " (val and test stay as they are: move their images by hand)"


def check_groups_and_split(
    root: Path, found: Sequence[FoundImage], duplicates: Sequence[CopyPair], neighbours: Iterable[tuple[int, int]]
) -> tuple[list[Fault], list[CopyPair]]:
    """Check the two optional files of a data folder against its images and against each other.

    Args:
        root: the data folder.
        found: all labelled images; those with a fault need no fold.
        duplicates: the copies among them.
        neighbours: pairs that look like one strip, by their indices in `found`.

    Returns:
        faults, and the duplicates whose images lie in different folds.
    """
    ids = [image.image_id for image in found]
    known = {*ids, *read_not_labelled(root)}
    faults: list[Fault] = []
    groups: dict[str, str] = {}
    try:
        groups = read_groups(root, known)
    except LabelError as problem:
        faults.append(error("groups", str(problem), "Write groups.csv as 'ImageId,Group', one row for each image."))
    faults += _unknown_images("groups", groups, known)
    path = root / SPLIT_NAME
    if not path.exists():
        return faults, []
    try:
        fold_of = read_split(path, known)
    except LabelError as problem:
        return [*faults, error("split", str(problem), f"Mend it, or delete it. {_AGAIN}.")], []
    groups |= read_split_groups(path, known)
    faults += _unknown_images("split", fold_of, known)
    again = _AGAIN + _BY_HAND * (not {"val", "test"}.isdisjoint(fold_of.values()))
    if left_out := [image.image_id for image in found if not image.fault and image.image_id not in fold_of]:
        message = f"{path}: has no fold for {len(left_out)} images, the first {left_out[0]}."
        faults.append(error("split", message, f"{_AGAIN}.", image=left_out[0]))

    def are_apart(one: str, other: str) -> bool:
        return one in fold_of and other in fold_of and fold_of[one] != fold_of[other]

    folds_of_group: dict[str, set[Fold]] = defaultdict(set)
    for image_id in groups.keys() & fold_of.keys():
        folds_of_group[groups[image_id]].add(fold_of[image_id])
    for group, folds in sorted(folds_of_group.items()):
        if len(folds) > 1:
            message = f"{path}: group '{group}' is in folds {', '.join(sorted(map(str, folds)))}; scores would flatter."
            faults.append(error("split", message, f"{again}, which keeps groups together."))
    leaks = [pair for pair in duplicates if are_apart(pair.image, pair.other)]
    if leaks:
        example = f"the first {leaks[0].image} and {leaks[0].other}"
        message = f"{path}: {len(leaks)} pairs of copies lie in different folds, {example}; scores would flatter."
        faults.append(error("split", message, f"{again}, which keeps copies together."))
    strips = [(ids[one], ids[other]) for one, other in neighbours]
    if apart := [pair for pair in strips if are_apart(*pair)]:
        example = f"the first {' and '.join(apart[0])}"
        message = f"{path}: {len(apart)} pairs that look like the same strip are in different folds, {example}."
        faults.append(warning("split", message, f"{again}, which keeps them together as far as it can."))
    return faults, leaks


def _unknown_images(kind: str, listed: Mapping[str, object], image_ids: Iterable[str]) -> list[Fault]:
    unknown = sorted(listed.keys() - set(image_ids))
    if not unknown:
        return []
    message = f"{kind}.csv names {len(unknown)} images that are not there, the first {unknown[0]!r}."
    return [warning(kind, message, "Leave it if you took them out on purpose.", image=unknown[0])]
