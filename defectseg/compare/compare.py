"""A against B on labelled images: `defectseg compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from defectseg.compare.pictures import Panel, paint_answer
from defectseg.compare.report import Result, sentences, table
from defectseg.compare.sources import Side, open_folders, open_source
from defectseg.compare.verdict import MARGIN, Array, contributions_of, judge
from defectseg.data.groups import groups_of
from defectseg.data.split import SPLIT_NAME
from defectseg.errors import DataError, UsageError
from defectseg.evaluate.bootstrap import number_groups
from defectseg.image.overlay import paint_truth
from defectseg.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


def compare(
    a: str,
    b: str,
    data: Path,
    *,
    subset: str = "all",
    group: str | None = None,
    margin: float = MARGIN,
    require: str | None = None,
    allow_seen: bool = False,
    allow_unknown: bool = False,
    device: str = "auto",
    bit_depth: int | None = None,
    progress: Progress = silent,
) -> Result:
    """Find out whether B is better than A on labelled images.

    Args:
        a, b: each a model, a run of folds, a result folder of predict, or a prediction file.
        data: data folder.
        subset: all, val or test, as each model tells.
        group: regular expression that finds the group of an image in its ImageId; None: see `groups_of`.
        margin: the loss of Kaggle Dice that counts as none.
        require: better or not-worse, if something depends on it.
        allow_seen: also compare a model on images that it was trained on.
        allow_unknown: with `require`, also take answers of which nobody knows what their model was trained on.
        device: of models: auto, cpu, cuda, cuda:N or mps.
        bit_depth: of 16-bit files, 9 to 16; None for that of the file's tag, else of the model.
        progress: called after each image.

    Raises:
        UsageError: the images of the subset are not known, or a model was trained on some.
        DataError, ModelError, ResourceError: data, answers, model or device cannot be used.
    """
    sources = (open_source(a), open_source(b))
    unknown = list(dict.fromkeys(one.unknown for one in sources if one.unknown))
    if require and unknown and not allow_unknown:
        raise UsageError(f"{'; '.join(unknown)}. So nothing may depend on it.", go_on={"allow_unknown": True})
    if subset != "all" and not any(one.models for one in sources):
        raise UsageError(f"{subset}: neither side has a model that tells which images these are.", argument="subset")
    folders = open_folders(sources, data, bit_depth)
    sides = [Side(source, folder, subset) for source, folder in zip(sources, folders, strict=True)]
    wanted = sides[0].image_ids & sides[1].image_ids
    for side in sides:
        side.keep(wanted)
        side.refuse_seen(allowed=allow_seen)
    for side in sides:
        side.answer(device, progress)
    image_ids = sorted(wanted & sides[0].score.sheets.keys() & sides[1].score.sheets.keys())
    if not image_ids:
        raise DataError(f"{data}: none of its images has an answer of both {a} and {b}.")
    splits = [model.parent / SPLIT_NAME for one in sources for model in one.models]
    groups = groups_of(folders[0], image_ids, group, splits=splits)
    (of_a, of), (of_b, _) = (contributions_of(side.score, image_ids, folders[0].num_classes) for side in sides)
    verdict = judge(of_a, of_b, of, number_groups(groups[one] for one in image_ids), margin)
    lost = {one.image_id: one.message for side in sides for one in side.score.unreadable if one.image_id in wanted}
    warnings = list(dict.fromkeys([*unknown, *sides[0].warnings, *sides[1].warnings]))
    warnings += [f"left out, unreadable: {why}" for why in lost.values()]
    changes = _changes(image_ids, groups, of_a, of_b, of)
    counted = f"{len(image_ids):,} images in {verdict.groups:,} groups: {groups.source}."
    content = {"a": a, "b": b, "data": str(data), "images": len(image_ids), "changed": len(changes)}
    content |= {**asdict(verdict), "groups_source": groups.source, "warnings": warnings}
    return Result(
        f"Is B better than A on {data.name}?", content, [*sentences(verdict), counted], warnings, changes,
        partial(_panels, sides), table=table(verdict), verdict=verdict, unreadable=len(lost),
    )  # fmt: skip


def _changes(image_ids: Sequence[str], groups: Mapping[str, str], a: Array, b: Array, of: Array) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame({"ImageId": image_ids, "group": [groups[image_id] for image_id in image_ids]})
    known = np.where(of[:, 0] > 0, of[:, 0], np.nan)
    for side, figures in {"a": a, "b": b}.items():
        frame[f"dice_{side}"] = figures[:, 0] / known
        for index, name in enumerate(("missed", "stopped", "regions_found"), start=2):
            frame[f"{name}_{side}"] = figures[:, index].astype(int)
    frame["labelled_regions"] = of[:, 4].astype(int)
    frame.insert(2, "dice_difference", frame["dice_b"] - frame["dice_a"])
    order = np.argsort(-frame["dice_difference"].abs().fillna(0).to_numpy(), kind="stable")
    changed: pd.DataFrame = frame.iloc[order[(a != b).any(axis=1)[order]]]
    return changed


def _panels(sides: Sequence[Side], image_id: str) -> list[Panel]:
    folder = sides[0].folder
    depth = next((info.recipe.data.bit_depth for side in sides for info in side.source.infos), None)
    pixels = folder.decode(image_id, model_bit_depth=depth).pixels
    truth, ignore = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
    a, b = (
        paint_answer(name, pixels, side.masks.get(image_id, {}), side.folder.class_names)
        for name, side in zip("AB", sides, strict=True)
    )
    names = ", ".join(folder.class_names[class_id - 1] for class_id in folder.classes_of(image_id)) or "sound"
    return [a, (paint_truth(pixels, truth.any(axis=0) & ~ignore), f"label: {names}"), b]
