"""Did the camera or the light change, or are there more defects than usual: `defectseg drift`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from defectseg.config import Frozen, Share
from defectseg.drift.history import Group, History, Sums, read_history
from defectseg.drift.report import CONTENT, OWN_ENTRIES, PAGE, Result, render, rows_of, when
from defectseg.drift.verdict import LEAST_GROUPS, Shift, began, camera_shift, in_words, more_defects
from defectseg.errors import DataError, OutputExistsError
from defectseg.files import result_folder, write_text
from defectseg.model.appearance import LEAST_GROUPS as LEAST_TRAINED
from defectseg.model.appearance import Appearance, Floats
from defectseg.progress import Progress, silent
from defectseg.text import read_json

CAMERA, DEFECTS, NO_CHANGE = "the camera or the light changed", "more defects than usual", "no change"
CANNOT_TELL, NOT_JUDGED, UNCALIBRATED = "cannot tell", "not judged", "uncalibrated"
ALARMS = (CAMERA, DEFECTS)
_ONSET_PARTS = 3  # of as many groups as are new, among which to look for the first one of a change


class _Remembered(Frozen):
    """What the next verdict has to know: see docs/formats.md.

    Attributes:
        settings: model and groups of the verdicts; none yet if empty.
        judged: see `history.Judged`.
        shares: group -> share of its images with a defect, for those that raised no alarm.
        told: the last verdict, in sentences.
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    judged: dict[str, tuple[int, int]] = Field(default_factory=dict)
    shares: dict[str, Share] = Field(default_factory=dict)
    told: tuple[str, ...] = ()

    def after(self, history: History, new: Sequence[Group], told: Sequence[str], *, alarm: bool) -> "_Remembered":
        """The same after a verdict on new groups."""
        judged = dict(self.judged)
        for group in history.groups:
            last_ns, images = judged.get(group.name, (0, 0))
            judged[group.name] = max(last_ns, group.last_ns), max(images, group.judged) + group.new.images
        shares = {} if alarm else {group.name: group.new.share for group in new}
        first = f"The last verdict, of images until {when(max(one.last_ns for one in new))}: {told[0]}"
        return _Remembered(
            settings=history.settings, judged=judged, shares={**self.shares, **shares}, told=(first, *told[1:])
        )


def drift(
    results: Sequence[Path],
    *,
    group: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Result:
    """Judge the images that are new since the last verdict, group by group.

    Args:
        results: output folders of finished runs of `predict`, of one model.
        group: regular expression that finds the group of an image in its ImageId; None: as the runs were told.
        out: folder for drift.json, which holds the last verdict, and drift.html; None: all images are new.
        overwrite: forget earlier verdicts.
        progress: called after each folder.

    Raises:
        UsageError, DataError: see `read_history`.
        OutputExistsError: `out` holds other files, or verdicts about another model or other groups.
        ResourceError: `out` is in use or cannot be written.
    """
    if out is None:
        return _judge(read_history(results, group, progress=progress), _Remembered())[0]
    with result_folder(out, OWN_ENTRIES, writer="drift", overwrite=None):
        before = _Remembered() if overwrite else _read(out / CONTENT)
        history = read_history(results, group, before.judged, progress)
        if before.settings not in ({}, history.settings):
            told = f"{out / CONTENT}: its verdicts are about another model or other groups. Choose another folder."
            raise OutputExistsError(told, go_on={"overwrite": True})
        result, after = _judge(history, before)
        content = {**result.content, "remembered": after.model_dump()}
        write_text(out / PAGE, render(result))
        write_text(out / CONTENT, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return result


def _read(path: Path) -> _Remembered:
    """What an earlier call wrote, if there is one. Raises OutputExistsError if it is something else."""
    try:
        return _Remembered.model_validate(read_json(path)["remembered"]) if path.exists() else _Remembered()
    except (DataError, ValidationError, KeyError, TypeError):
        told = f"{path}: not as drift writes it. Put back a copy, or choose another folder."
        raise OutputExistsError(told, go_on={"overwrite": True}) from None


def _judge(history: History, before: _Remembered) -> tuple[Result, _Remembered]:
    new, trained = [group for group in history.groups if group.new.images], history.trained
    images, details = sum(group.new.images for group in new), dict[str, Any]()
    if trained is None:
        verdict, told = NOT_JUDGED, ["Not judged: the model does not tell how its training images look. Train it anew."]
    elif trained.threshold is None:
        need = f"At least {LEAST_TRAINED} are needed to know what is usual."
        verdict, told = UNCALIBRATED, [f"Uncalibrated: the model was trained on {trained.groups} groups. {need}"]
    elif len(new) < LEAST_GROUPS:
        need = f"At least {LEAST_GROUPS} are needed; until then, they stay new."
        verdict, told = CANNOT_TELL, [f"Cannot tell: {len(new)} new groups ({images:,} images). {need}"]
    else:
        verdict, told, details = _compare(history, new, trained, np.array([*before.shares.values()]))
    content = {
        "verdict": verdict, "sentences": told, "warnings": history.warnings, "groups": len(history.groups),
        "images": sum(one.all.images for one in history.groups), "new_groups": len(new), "new_images": images,
        **details, "table": rows_of(history),
    }  # fmt: skip
    result = Result(content, verdict in ALARMS, history)
    if result.is_alarm or verdict == NO_CHANGE:
        return result, before.after(history, new, told, alarm=result.is_alarm)
    told += before.told
    return result, before


def _compare(
    history: History, new: Sequence[Group], trained: Appearance, earlier: Floats
) -> tuple[str, list[str], dict[str, Any]]:
    """The verdict on at least 10 new groups, in sentences, and its entries of drift.json."""
    shares, images = np.array([(one.new.share, one.new.images) for one in new]).T
    camera = camera_shift(_residuals([one.new for one in new], trained), images, trained)
    more, usual = more_defects(shares, earlier, trained)
    share = more.size if more else float(shares.mean())
    defective = f"{100 * share:.0f} % of the images have a defect; usual are {100 * usual.mean:.0f} % ({usual.source})."
    details: dict[str, Any] = {"camera": None, "defects": None, "defective": share, "usual_defective": usual.mean}
    if more is not None:
        details["defects"] = {"groups": more.groups, "p": more.p}
    if camera is not None:
        last, first = slice(-camera.groups, None), _first(history, len(new), camera, trained)
        words = in_words(np.array([one.new.mean for one in new])[last], shares[last], images[last], trained)
        details["camera"] = {"groups": camera.groups, "p": camera.p, "size": camera.size, "differs": words}
        details["camera"]["began"] = first and {"group": first.name, "time_ns": first.time_ns}
        onset = [f"It began with group {first.name}, about {when(first.time_ns)}."] if first else []
        told = [f"The camera or the light changed. The last {camera.groups} groups: {words}.", *onset]
        return CAMERA, [*told, f"{defective} The picture may be the reason, not the steel."], details
    if more is not None:
        told = [f"More defects than usual in the last {more.groups} groups: {defective}"]
        return DEFECTS, [*told, "The picture itself looks as in training."], details
    return NO_CHANGE, [f"No change: {len(new)} new groups look as the training images do.", defective], details


def _residuals(groups: Sequence[Sums], trained: Appearance) -> Floats:
    """The means of groups minus what is expected of images of which as many have a defect, float64 (G, 45)."""
    return np.array([one.mean - trained.expected(has_defect=one.share) for one in groups])


def _first(history: History, new: int, camera: Shift, trained: Appearance) -> Group | None:
    """The group with which a change began; None if that is not clear."""
    recent = history.groups[-_ONSET_PARTS * new :]
    index = began(_residuals([one.all for one in recent], trained) @ camera.direction)
    return None if index is None else recent[index]
