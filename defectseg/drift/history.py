"""Groups of images over time, from output folders of `predict`: only sums of each group are kept."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from defectseg.data.names import group_in, match_groups
from defectseg.errors import DataError, UsageError
from defectseg.image.appearance import NUMBERS, VERSION
from defectseg.model.appearance import Appearance, Floats
from defectseg.predict.output import RUN, read_results
from defectseg.predict.tables import STATUS_BLANK, STATUS_DEFECT, STATUS_UNREADABLE, Record
from defectseg.progress import Progress, silent

_TIMES_KEPT = 99  # of each group, for the median
NOT_DESCRIBED, NO_GROUP = "without a description", "in no group"

Judged = Mapping[str, tuple[int, int]]
"""Group -> the time in ns of its last image that has been judged, and how many images it had up to then."""


@dataclass
class Sums:
    """Some images of a group: their number, how many have a defect, and the sum of their descriptions, (36,)."""

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
        """The mean description, (36,)."""
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
        left_out: why images do not count -> how many.
        late: images that came after a verdict on their group, with a time from before it.
        warnings: sentences.
    """

    groups: list[Group]
    trained: Appearance | None
    settings: dict[str, Any]
    left_out: Counter[str]
    late: int
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
        DataError: as `read_results`; the folders are of several models or bit depths.
    """
    match_groups(pattern or "", ())
    known: Judged = judged or {}
    groups: dict[str, Group] = {}
    left_out: Counter[str] = Counter()
    first: dict[str, Any] = {}
    patterns, seen, empty, example = set[str](), set[Path](), 0, ""
    for done, folder in enumerate(folders, start=1):
        if folder.resolve() in seen:
            raise UsageError(f"{folder}: given twice.")
        seen.add(folder.resolve())
        run, choice, records = read_results(folder)
        own = pattern or choice.group
        if own is None:
            raise UsageError(f"{folder}: its run was not told what a group is. Say it here.", argument="group")
        first = first or {"folder": folder, "training": run.get("training"), **_source(run, folder)}
        for name, value in _source(run, folder).items():
            if first[name] != value:
                raise DataError(f"{folder}: {name} {value!s:.12}, but {first['folder']} has {first[name]!s:.12}. A "
                                "history is of one model. Give the folders of each apart.")  # fmt: skip
        patterns.add(own)
        before = len(groups), left_out.total(), sum(one.all.images for one in groups.values())
        for record in records:
            example = record.image_id
            if reason := _why_not(record, name := group_in(own, record.image_id)):
                left_out[reason] += 1
            else:
                _count(groups.setdefault(name, Group(name)), record, known)
        empty += before == (len(groups), left_out.total(), sum(one.all.images for one in groups.values()))
        progress(done, len(folders))
    if not groups and left_out[NO_GROUP]:
        raise UsageError(f"{' and '.join(patterns)} matches no ImageId; one is {example}.", argument="group")
    late = sum(max(0, one.judged - known.get(one.name, (0, 0))[1]) for one in groups.values() if one.name in known)
    ordered = sorted(groups.values(), key=lambda one: (one.time_ns, one.name))
    settings = {"model_sha256": first["model"], "groups": sorted(patterns)}
    trained = None if first["training"] is None else Appearance.model_validate(first["training"])
    if trained is not None and trained.version != VERSION:
        trained = None
    warnings = [f"left out: {count:,} images {reason}" for reason, count in left_out.items()]
    warnings += [f"{empty} of {len(folders)} folders have no images"] if empty else []
    if late:
        warnings.append(
            f"{late:,} images came after the last verdict on their group, with times from before it. Nobody can tell "
            "them from those judged then, so they are not among the new ones."
        )
    return History(ordered, trained, settings, left_out, late, warnings)


def _source(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What must be the same in all folders of a history. Raises DataError: not as predict writes it."""
    key = run["key"]
    if not isinstance(key.get("model_sha256"), str):
        raise DataError(f"{folder / RUN}: names no model; expected the output folder of predict.")
    bits, own = key.get("bit_depth"), key.get("model_bit_depth")
    if None not in (bits, own) and bits != own:
        raise DataError(
            f"{folder}: its images were read as {bits} bits, but the model describes training images of {own} bits, "
            "which are not comparable. Run predict without a bit depth, or train anew."
        )
    return {"model": key["model_sha256"], "bit depth": bits or own}


def _why_not(record: Record, group: str) -> str:
    """Why an image does not count; "" if it does."""
    if record.status in (STATUS_BLANK, STATUS_UNREADABLE):
        return record.status
    return NO_GROUP if not group else "" if record.appearance else NOT_DESCRIBED


def _count(group: Group, record: Record, known: Judged) -> None:
    time_ns = int(record.image.get("modified_ns") or 0)
    group.all.add(record)
    if group.name in known and time_ns <= known[group.name][0]:
        group.judged += 1
    else:
        group.new.add(record)
    group.last_ns = max(group.last_ns, time_ns)
    if len(group.times) < _TIMES_KEPT:
        group.times.append(time_ns)
