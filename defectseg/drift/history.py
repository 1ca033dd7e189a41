"""Groups of images over time, from output folders of `predict`: only sums of each group are kept."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from defectseg.data.names import group_in, match_groups
from defectseg.errors import DataError, UsageError
from defectseg.image.appearance import NUMBERS
from defectseg.model.appearance import Appearance, Floats
from defectseg.predict.output import read_results
from defectseg.predict.tables import STATUS_DEFECT, Record
from defectseg.predict.unlike import trained_of
from defectseg.progress import Progress, silent

_TIMES_KEPT = 99  # of each group, for the median

Judged = Mapping[str, tuple[int, int]]
"""Group -> the time in ns of its last image that has been judged, and how many images it had up to then."""


@dataclass
class Sums:
    """Some images of a group: their number, how many have a defect, and the sum of their descriptions, (45,)."""

    images: int = 0
    defective: int = 0
    total: Floats = field(default_factory=lambda: np.zeros(NUMBERS))

    def add(self, record: Record) -> None:
        """Count an image."""
        self.images += 1
        self.defective += record.status == STATUS_DEFECT
        self.total += record.appearance

    @property
    def share(self) -> float:
        """Share of images with a defect, 0..1."""
        return self.defective / self.images

    @property
    def mean(self) -> Floats:
        """The mean description, (45,)."""
        return np.asarray(self.total / self.images)


@dataclass
class Group:
    """A group: all its images, and those that are new since the last verdict.

    Attributes:
        name: its name.
        all, new: their sums.
        last_ns: the time of its last image.
        judged: how many images are not new.
        times: of some of its images.
    """

    name: str
    all: Sums = field(default_factory=Sums)
    new: Sums = field(default_factory=Sums)
    last_ns: int = 0
    judged: int = 0
    times: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def time_ns(self) -> int:
        """The median of the times of up to 99 images."""
        return int(median(self.times))


@dataclass
class History:
    """What output folders of one model hold.

    Attributes:
        groups: in the order of their times.
        trained: how the training images look; None if the model does not tell.
        settings: model and groups, by which verdicts are comparable.
        warnings: sentences, among them how many images do not count, and why.
    """

    groups: list[Group]
    trained: Appearance | None
    settings: dict[str, Any]
    warnings: list[str]


def read_history(
    folders: Sequence[Path], pattern: str | None = None, judged: Judged | None = None, progress: Progress = silent
) -> History:
    """Read output folders of `predict`, each journal once. Memory grows with the number of groups.

    Args:
        folders: of finished runs.
        pattern: finds the group of an image in its ImageId; None: as the run was told.
        judged: what earlier verdicts were about.
        progress: called after each folder.

    Raises:
        UsageError: a folder is given twice, or nobody says what a group is, or no image is in one.
        DataError: as `read_results`; the folders are of several models, or their images of another bit depth.
    """
    known, groups, left_out = judged or {}, dict[str, Group](), Counter[str]()
    (source, runs), ungrouped = _open(folders, pattern), ""
    for done, (its_pattern, records) in enumerate(runs, start=1):
        record = None
        for record in records:
            name = group_in(its_pattern, record.image_id)
            if record.appearance and name:
                _count(groups.setdefault(name, Group(name)), record, known)
            elif record.appearance:
                left_out[f"images without a match of {its_pattern}"] += 1
                ungrouped = record.image_id
            else:
                left_out[f"{record.status} images, which have no description"] += 1
        left_out["folders without images"] += record is None
        progress(done, len(runs))
    if ungrouped and not groups:
        raise UsageError(f"matches no ImageId; one of them is {ungrouped}.", argument="group")
    warnings = [f"left out: {count:,} {what}" for what, count in left_out.items() if count]
    if late := sum(max(0, one.judged - known.get(one.name, (0, 0))[1]) for one in groups.values()):
        told = f"{late:,} images came after the last verdict on their group, with times from before it."
        warnings.append(f"{told} Nobody can tell which, so they are not among the new ones.")
    ordered = sorted(groups.values(), key=lambda one: (one.time_ns, one.name))
    settings = {"model_sha256": source["model"], "groups": sorted({one for one, _ in runs})}
    return History(ordered, trained_of(source), settings, warnings)


def _open(folders: Sequence[Path], pattern: str | None) -> tuple[dict[str, Any], list[tuple[str, Iterator[Record]]]]:
    """What the folders have in common; and of each, the pattern of groups and the records, not yet read."""
    match_groups(pattern or "", ())
    source, runs = dict[str, Any](), list[tuple[str, Iterator[Record]]]()
    if twice := [one for one, count in Counter(folder.resolve() for folder in folders).items() if count > 1]:
        raise UsageError(f"{twice[0]}: given twice.")
    for folder in folders:
        run, choice, records = read_results(folder)
        if (its_pattern := pattern or choice.group) is None:
            raise UsageError(f"{folder}: its run was not told what a group is. Say it here.", argument="group")
        bits, trained_bits = (run["key"].get(name) for name in ("bit_depth", "model_bit_depth"))
        if None not in (bits, trained_bits) and bits != trained_bits:
            told = f"{folder}: its images were read as {bits} bits, and the model was trained on {trained_bits} bits."
            raise DataError(f"{told} Nobody knows how they should look. Run predict without a bit depth.")
        own = {"model": run["key"].get("model_sha256"), "bit depth": bits, "training": run.get("training")}
        if others := [name for name, value in source.items() if own[name] != value]:
            told = f"{folder}: has another {others[0]} than {folders[0]}. A history is of one model"
            raise DataError(f"{told}: give the folders of each apart, with a folder of its own to write to.")
        source = own
        runs.append((its_pattern, records))
    return source, runs


def _count(group: Group, record: Record, known: Judged) -> None:
    time_ns = record.image.get("modified_ns")
    time_ns = max(0, time_ns) if isinstance(time_ns, int) else 0
    group.all.add(record)
    if group.name in known and time_ns <= known[group.name][0]:
        group.judged += 1
    else:
        group.new.add(record)
    group.last_ns = max(group.last_ns, time_ns)
    if len(group.times) < _TIMES_KEPT:
        group.times.append(time_ns)
