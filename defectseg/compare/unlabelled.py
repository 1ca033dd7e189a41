"""A against B on images that nobody has labelled: which sheets change, and which to label to decide."""

from pathlib import Path

import numpy as np

from defectseg.compare.pictures import Panel, paint_answer
from defectseg.compare.report import Result
from defectseg.compare.sources import open_source
from defectseg.compare.verdict import PROBABLY, VETO_P
from defectseg.data.classes import MAX_CLASSES
from defectseg.data.folder import DataFolder
from defectseg.data.names import match_groups
from defectseg.data.table import LabelTable
from defectseg.errors import DataError, UsageError
from defectseg.evaluate.prediction_file import read_predictions
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.progress import some

ONLY_A, ONLY_B, OTHER_CLASSES = "only A finds a defect", "only B finds a defect", "other classes"
_SHARE = 0.75


def compare_unlabelled(a: str, b: str, *, images: Path | None = None, group: str | None = None) -> Result:
    """Find the sheets whose answer changes between two result folders or prediction files.

    Args:
        a, b: each a result folder of predict or a prediction file.
        images: the folder of the images, for pictures; None: without pictures.
        group: regular expression that finds the group of an image in its ImageId; None: each is its own.

    Raises:
        UsageError: a source is a model, which needs labelled images.
        DataError, LabelError: the answers or images cannot be used, or they have no image in common.
    """
    import pandas as pd

    sources = (open_source(a), open_source(b))
    if models := [str(one.path) for one in sources if one.is_model]:
        raise UsageError(f"{models[0]} is a model. Without labels, give what predict made with it.", argument="data")
    names = next((one.class_names for one in sources if one.class_names), None)
    class_names = names or tuple(f"class {number}" for number in range(1, MAX_CLASSES + 1))
    nothing = DataFolder(Path(a), (), LabelTable({}, frozenset()), class_names, {})
    (table_a, _, unreadable), (table_b, _, more) = (read_predictions(one.path, nothing) for one in sources)
    lost = {one.image_id: one.message for one in (*unreadable, *more)}
    image_ids = sorted((table_a.listed & table_b.listed) - lost.keys())
    if not image_ids:
        raise DataError(f"{a} and {b} have no image in common.")
    alone = (table_a.listed ^ table_b.listed) - lost.keys()
    warnings = [f"left out, {why}" for why in lost.values()]
    warnings += [f"{len(alone)} images have only one answer and are left out: {some(alone)}"] if alone else []
    groups = {} if group is None else match_groups(group, image_ids)
    masks = [{one: table.rles.get(one, {}) for one in image_ids} for table in (table_a, table_b)]
    rows = []
    for image_id in image_ids:
        found = [one[image_id] for one in masks]
        if differing := found[0].keys() ^ found[1].keys():
            kind = OTHER_CLASSES if all(found) else ONLY_A if found[0] else ONLY_B
            texts = [", ".join(class_names[class_id - 1] for class_id in sorted(side)) for side in found]
            runs = [encoded for side in found for class_id, encoded in side.items() if class_id in differing]
            area_px = sum(int(rle.parse_pairs(encoded)[:, 1].sum()) for encoded in runs)
            rows.append((image_id, groups.get(image_id, image_id), kind, *texts, area_px))
    frame = pd.DataFrame(rows, columns=["ImageId", "group", "change", "classes_a", "classes_b", "changed_px"])
    order = frame["change"].eq(OTHER_CLASSES).to_numpy()
    frame = frame.iloc[np.lexsort((-frame["changed_px"].to_numpy(), order))]
    counts = {kind: int(frame["change"].eq(kind).sum()) for kind in (ONLY_A, ONLY_B, OTHER_CLASSES)}
    flips = frame[frame["change"].ne(OTHER_CLASSES)]
    drawn = np.random.default_rng(0).permutation(sorted(set(flips["group"])))[: votes_needed()[1]]
    to_label = tuple(sorted(flips["ImageId"][flips["group"].isin(drawn)]))

    def panels(image_id: str) -> list[Panel]:
        if image_id not in paths:
            raise DataError(f"{images}: has no {image_id}. Give the folder that predict was given.")
        pixels = decode(paths[image_id]).pixels
        return [paint_answer(name, pixels, side[image_id], class_names) for name, side in zip("AB", masks, strict=True)]

    paths = {} if images is None else {one.image_id: one for one in find_images([images])}
    text = _sentences(len(image_ids), counts, len(to_label), flips["group"].nunique())
    content = {"a": a, "b": b, "images": len(image_ids), **counts, "to_label": len(to_label), "warnings": warnings}
    shown = panels if paths else None
    return Result("What changes from A to B", content, text, warnings, frame, shown, to_label=to_label)


def votes_needed() -> tuple[int, int]:
    """How many groups a veto needs at least, and how many for one with a probability of 80 % if 3 in 4 speak for it."""
    from scipy.stats import binom

    groups = np.arange(1, 200)
    against = binom.isf(VETO_P, groups, 0.5) + 1  # so many groups against a model are a veto
    power = binom.sf(against - 1, groups, _SHARE)
    return int(groups[against <= groups][0]), int(groups[power >= PROBABLY][0])


def _sentences(sheets: int, counts: dict[str, int], to_label: int, groups: int) -> list[str]:
    least, probably = votes_needed()
    what = (
        f"Of {sheets:,} sheets, {counts[ONLY_A]:,} are defective for A alone, {counts[ONLY_B]:,} for B alone, and for "
        f"{counts[OTHER_CLASSES]:,} the two find other classes."
    )
    how = (
        f"Label these {to_label:,} sheets to decide (to_label.csv), for only those that change tell which model is "
        f"right. At least {least} groups must speak, all against the same model; {probably} if three in four do."
    )
    if groups < least:
        how = f"That is too few to decide by: at least {least} groups must change between sound and defective."
    return [what, how]
