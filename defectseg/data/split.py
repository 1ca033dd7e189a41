"""Divide a data folder into folds with similar class sets, keeping copies, strips and groups together."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from defectseg.copies.descriptors import describe_all
from defectseg.copies.find import DisjointSets, find_copies
from defectseg.copies.strips import find_neighbours
from defectseg.data.folder import DataFolder
from defectseg.data.names import read_by_image
from defectseg.data.table import IGNORE_CLASS_ID, WHOLE_NUMBER, LabelTable
from defectseg.errors import DataError, LabelError, UsageError
from defectseg.files import atomic_csv
from defectseg.progress import Progress, silent
from defectseg.text import read_csv

SPLIT_NAME = "split.csv"
# A numbered fold, or a part: val is held out by every training, test is for scores alone, train is the rest.
Fold = int | Literal["train", "val", "test"]
Folds = Mapping[str, Fold]
Stratum = frozenset[int]
Pair = tuple[str, str]

_PARTS: Folds = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class RelatedImages:
    """Pairs of images that should not lie in two folds.

    Attributes:
        copies: pairs of ImageIds that show the same piece of steel, see `copies.find`.
        neighbours: pairs that look like the same strip, see `copies.strips`, with their correlation.
    """

    copies: frozenset[Pair] = frozenset()
    neighbours: Mapping[Pair, float] = field(default_factory=dict)


def count_apart(pairs: Iterable[Pair], fold_of: Folds) -> int:
    """Number of pairs whose images lie in different folds."""
    return sum(fold_of[one] != fold_of[other] for one, other in pairs)


def make_folds(
    folder: DataFolder, *, folds: int = 5, seed: int = 0, progress: Progress = silent
) -> tuple[dict[str, int], dict[str, str]]:
    """Divide the images into folds 0..folds-1, keeping copies, strips and groups together.

    See `find_related` and `divide`. Unreadable images are divided by their labels alone.

    Returns:
        ImageId -> fold, for every image of the folder, sorted by ImageId; and ImageId -> group, see `name_groups`.

    Raises:
        UsageError: fewer than two folds, or more than there are units to divide.
    """
    related = find_related(folder, progress=progress)
    return divide(folder, related, folds=folds, seed=seed), name_groups(folder, related, folds=folds)


def find_related(folder: DataFolder, *, progress: Progress = silent) -> RelatedImages:
    """Find copies and images of the same strip among the images of a data folder, by their pixels.

    Args:
        folder: the data folder.
        progress: counts the images.
    """
    ids = folder.image_ids
    paths = [folder.image_path(image_id) for image_id in ids]
    descriptors, _ = describe_all(paths, bit_depth=folder.bit_depth, progress=progress)
    copies = frozenset((ids[one.first], ids[one.second]) for one in find_copies(descriptors))
    neighbours = {(ids[one], ids[other]): score for (one, other), score in find_neighbours(descriptors).items()}
    return RelatedImages(copies, neighbours)


def divide(folder: DataFolder, related: RelatedImages, *, folds: int, seed: int) -> dict[str, int]:
    """Divide the images of a data folder into folds 0..folds-1.

    Copies and the images of one group in groups.csv get the same fold. So do images that look like the same strip, the
    most similar first, as long as the unit that they form stays below half a fold; otherwise a chain of similar images
    could join everything. Each set of classes (clean is one) is spread evenly; a set with fewer images than folds is
    counted with the images of its rarest class. Images in which ignored pixels may hide further classes form sets of
    their own. Large units are placed first, each in the fold that has the least of its sets. The result depends on
    names, labels, pairs and the seed, not on the order of files.

    Returns:
        ImageId -> fold, for every image of the folder, sorted by ImageId.

    Raises:
        UsageError: fewer than two folds, or more than there are units.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds; expected at least 2, one of which is held back.")
    units = _units(folder, related, folds)
    if folds > len(units):
        raise UsageError(f"{folds} folds of {len(units)} images or groups: some would be empty. Ask for fewer folds.")
    stratum_of = _strata(folder, folds)
    sizes = Counter(stratum_of.values())
    held: list[Counter[Stratum]] = [Counter() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for unit in sorted(units, key=lambda unit: _placing_order(unit, stratum_of, sizes, seed)):
        content = Counter(stratum_of[image_id] for image_id in unit)
        fold = min(range(folds), key=lambda fold: (_share_held(held[fold], content, sizes), held[fold].total(), fold))
        held[fold].update(content)
        fold_of.update(dict.fromkeys(unit, fold))
    return dict(sorted(fold_of.items()))


def name_groups(folder: DataFolder, related: RelatedImages, *, folds: int) -> dict[str, str]:
    """ImageId -> name of the group that `divide` keeps together, for images that share theirs or have one by name.

    The name is that of the folder's groups, the first if copies join several; else the first ImageId of the group.
    """
    names: dict[str, str] = {}
    for unit in _units(folder, related, folds):
        given = min((folder.groups[one] for one in unit if one in folder.groups), default="")
        if given or len(unit) > 1:
            names.update(dict.fromkeys(unit, given or unit[0]))
    return names


def write_split(path: Path, folds: Folds, groups: Mapping[str, str] | None = None) -> None:
    """Write folds atomically as CSV with the header `ImageId,fold,group`, sorted by ImageId.

    Args:
        path: the file.
        folds: ImageId -> fold.
        groups: ImageId -> group; the cell of other images is empty.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with atomic_csv(path, ["ImageId", "fold", "group"]) as write:
        write((image_id, fold, (groups or {}).get(image_id, "")) for image_id, fold in sorted(folds.items()))


def read_split(path: Path, image_ids: Collection[str] = ()) -> dict[str, Fold]:
    """Read folds from CSV with the header `ImageId,fold`; `read_split_groups` reads `group`.

    Args:
        path: the file.
        image_ids: images; names that differ from one of these only by their Unicode form are read as that image.

    Raises:
        LabelError: it cannot be read; a fold is neither a whole number from 0 nor train, val or test (in any case); an
            image is named twice; or the file has both numbers and train. The message names the file and the line.
    """
    folds: dict[str, Fold] = {}
    for where, image_id, text in read_by_image(path, "fold", image_ids):
        number = WHOLE_NUMBER.fullmatch(text)
        fold = int(number[1]) if number else _PARTS.get(text.lower())
        if fold is None:
            raise LabelError(f"{where}: fold {text!r} of {image_id}; expected a whole number from 0, train, val, test.")
        if image_id in folds:
            raise LabelError(f"{where}: {image_id} stands there a second time. Keep one row of the two.")
        folds[image_id] = fold
    if "train" in folds.values() and any(isinstance(fold, int) for fold in folds.values()):
        raise LabelError(f"{path}: has train and numbered folds. Numbers divide what would be train: keep either.")
    return folds


def read_split_groups(path: Path, image_ids: Collection[str] = ()) -> dict[str, str]:
    """ImageId -> group from a split.csv, for rows that name one; empty if it has no column `group`, or is not there.

    Names are matched with `image_ids` as in `read_split`. Raises LabelError.
    """
    if not path.is_file() or read_csv(path).columns("group") is None:
        return {}
    return {image_id: group for _, image_id, group in read_by_image(path, "group", image_ids) if group}


def leave_out_test(folder: DataFolder, *splits: Folds) -> DataFolder:
    """The data folder without the images that any of the splits puts into test. Raises DataError if none is left."""
    test = {image_id for split in splits for image_id, fold in split.items() if fold == "test"}
    kept = tuple(image_id for image_id in folder.image_ids if image_id not in test)
    if not kept:
        raise DataError(f"{folder.root}: all images are in test, which is for scores alone. Mend the split.")
    return replace(folder, image_ids=kept, table=LabelTable(folder.table.rles, folder.table.listed - test))


def _units(folder: DataFolder, related: RelatedImages, folds: int) -> list[tuple[str, ...]]:
    """The units that must not be divided: groups, copies, strips, and single images."""
    sets: DisjointSets[str] = DisjointSets()
    first_of: dict[str, str] = {}
    for image_id in folder.image_ids:
        if image_id in folder.groups:
            sets.join(first_of.setdefault(folder.groups[image_id], image_id), image_id)
    for one, other in sorted(related.copies):
        sets.join(one, other)
    most = len(folder.image_ids) // (2 * folds)
    for one, other in sorted(related.neighbours, key=lambda pair: (-related.neighbours[pair], pair)):
        if sets.joined(one, other) or sets.size(one) + sets.size(other) <= most:
            sets.join(one, other)
    return [tuple(sorted(members)) for members in sets.groups(folder.image_ids)]


def _strata(folder: DataFolder, folds: int) -> dict[str, Stratum]:
    """The class set that each image is counted with; a set too rare for every fold is counted as its rarest class.

    255 in a set means that ignored pixels may hide more classes, so such an image never counts as clean.
    """
    hidden = dict.fromkeys(folder.unknown, (IGNORE_CLASS_ID,))
    set_of = {one: frozenset((*folder.classes_of(one), *hidden.get(one, ()))) for one in folder.image_ids}
    images_of_set = Counter(set_of.values())
    images_of_class = Counter(class_id for classes in set_of.values() for class_id in classes)

    def stratum(classes: Stratum) -> Stratum:
        if images_of_set[classes] >= folds or not classes:
            return classes
        seen = classes - {IGNORE_CLASS_ID} or classes
        return frozenset({min(seen, key=lambda class_id: (images_of_class[class_id], class_id))})

    return {image_id: stratum(classes) for image_id, classes in set_of.items()}


def _placing_order(
    unit: tuple[str, ...], stratum_of: Mapping[str, Stratum], sizes: Counter[Stratum], seed: int
) -> tuple[int, int, list[int], str]:
    """Sort key: large units first, then rare strata, then random.

    The random part is a hash of the name, so it does not depend on the other images.
    """
    rarest = min((stratum_of[image_id] for image_id in unit), key=lambda stratum: (sizes[stratum], sorted(stratum)))
    chance = hashlib.sha256(f"{seed}:{unit[0]}".encode()).hexdigest()
    return -len(unit), sizes[rarest], sorted(rarest), chance


def _share_held(held: Counter[Stratum], content: Counter[Stratum], sizes: Counter[Stratum]) -> float:
    """How much of the strata in `content` a fold already has; images of rare strata weigh more."""
    return sum(count * held[stratum] / sizes[stratum] for stratum, count in content.items())
