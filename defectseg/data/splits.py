"""Folds of a data folder: alike in their class sets, with the images of one group kept together."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from defectseg import files
from defectseg.data.csvtable import read_pairs
from defectseg.data.labels import DataFolder, check_image_id
from defectseg.errors import LabelError, UsageError

Stratum = frozenset[int]


def make_folds(folder: DataFolder, *, folds: int = 5, seed: int = 0) -> dict[str, int]:
    """Divide the images into folds 0..folds-1.

    Each set of classes (clean is one) is spread evenly; a set with fewer images than folds counts with the images of
    its rarest class. Images of one group in groups.csv get one fold: large groups are placed first, each in the fold
    that most lacks what it holds. The answer depends on names, labels, groups and the seed, not on the order of files.

    Returns:
        ImageId -> fold, for every image of the folder, sorted by ImageId.

    Raises:
        UsageError: fewer than two folds, or more than there are groups and single images.
    """
    units = _units(folder)
    if folds < 2:
        raise UsageError(f"{folds} folds; expected at least 2, one of which is held back.")
    if folds > len(units):
        raise UsageError(f"{folds} folds of {len(units)} images or groups: some would be empty. Ask for fewer.")
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


def write_split(path: Path, folds: Mapping[str, int]) -> None:
    """Write folds as CSV with the header `ImageId,fold`, sorted by ImageId; whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageId", "fold"])
    writer.writerows(sorted(folds.items()))
    files.write_text(path, text.getvalue())


def read_split(path: Path) -> dict[str, int]:
    """Read folds from CSV with the header `ImageId,fold`.

    Raises:
        LabelError: it cannot be read, or a row has no whole number from 0 for a fold, or names an image again; names
            the file and the line.
    """
    folds: dict[str, int] = {}
    for line, image_id, text in read_pairs(path, "ImageId", "fold"):
        where = f"{path}, line {line}"
        check_image_id(image_id, where=where)
        if not (text.isascii() and text.isdigit()):
            raise LabelError(f"{where}: fold {text!r} of {image_id}; expected a whole number from 0.")
        if image_id in folds:
            raise LabelError(f"{where}: {image_id} stands there a second time. Keep one row of the two.")
        folds[image_id] = int(text)
    return folds


def _units(folder: DataFolder) -> list[tuple[str, ...]]:
    """What must not be divided: the images of each group, and single images."""
    groups: dict[str, list[str]] = defaultdict(list)
    singles: list[tuple[str, ...]] = []
    for image_id in folder.image_ids:
        if image_id in folder.groups:
            groups[folder.groups[image_id]].append(image_id)
        else:
            singles.append((image_id,))
    return singles + [tuple(sorted(members)) for members in groups.values()]


def _strata(folder: DataFolder, folds: int) -> dict[str, Stratum]:
    """The class set that each image counts with; sets too rare to reach every fold join their rarest class."""
    set_of = {image_id: frozenset(folder.classes_of(image_id)) for image_id in folder.image_ids}
    images_of_set = Counter(set_of.values())
    images_of_class = Counter(class_id for classes in set_of.values() for class_id in classes)

    def stratum(classes: Stratum) -> Stratum:
        if images_of_set[classes] >= folds or not classes:
            return classes
        return frozenset({min(classes, key=lambda class_id: (images_of_class[class_id], class_id))})

    return {image_id: stratum(classes) for image_id, classes in set_of.items()}


def _placing_order(
    unit: tuple[str, ...], stratum_of: Mapping[str, Stratum], sizes: Counter[Stratum], seed: int
) -> tuple[int, int, list[int], str]:
    """Large units first, as they fit worst; then rare strata; within one, by chance.

    The chance is a hash of the name rather than a generator's next number: it does not depend on what else is there.
    """
    rarest = min((stratum_of[image_id] for image_id in unit), key=lambda stratum: (sizes[stratum], sorted(stratum)))
    chance = hashlib.sha256(f"{seed}:{unit[0]}".encode()).hexdigest()
    return -len(unit), sizes[rarest], sorted(rarest), chance


def _share_held(held: Counter[Stratum], content: Counter[Stratum], sizes: Counter[Stratum]) -> float:
    """How much of the strata in `content` a fold has already, each image weighing as its stratum is rare."""
    return sum(count * held[stratum] / sizes[stratum] for stratum, count in content.items())
