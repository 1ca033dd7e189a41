"""Score predictions: a table in the Kaggle format, made by any program, or an output folder of `predict`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defectseg.data.folder import IMAGES_NAME, DataFolder, check_class_ids
from defectseg.data.table import IGNORE_CLASS_ID, LabelTable, read_label_table, scan_label_rows
from defectseg.errors import CannotContinueError, DataError, ImageError, LabelError
from defectseg.evaluate.metrics import Counts, count_pairs
from defectseg.evaluate.score import Score
from defectseg.evaluate.sheets import Sheet, sheet_of
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import read_size
from defectseg.inference.stream import Unreadable
from defectseg.model.locate import model_identity
from defectseg.predict.output import read_results
from defectseg.predict.tables import RLE, STATUS_UNREADABLE
from defectseg.progress import some


def predicted_classes(path: Path) -> tuple[str, ...] | None:
    """The class names in an output folder of `predict`; None for a table. Raises DataError."""
    return tuple(read_results(path)[0]["class_names"]) if path.is_dir() else None


def find_models(run: Mapping[str, Any]) -> tuple[Path, ...]:
    """The model files that made results, as their run.json tells; none if they do not lie there any more."""
    models = tuple(map(Path, str(run.get("model", "")).split(", ")))
    try:
        is_here = model_identity(models) == run["key"].get("model_sha256")
    except CannotContinueError:  # moved or deleted
        return ()
    return models if is_here else ()


def score_predictions(path: Path, folder: DataFolder, read: "Read | None" = None) -> tuple[Score, list[str]]:
    """Count predictions against the labels of a data folder.

    In a table, an image without a row counts as predicted empty. An image that an output folder of `predict` does not
    have is left out, as are predictions for an image that the data folder does not have. Warnings count them.

    Args:
        path: a table, .csv or .csv.gz, in any layout that a label table may have; or an output folder of `predict`,
            which also has sheet scores.
        folder: the labelled images; for an output folder, opened with its `predicted_classes`.
        read: what `read_predictions` gave, if that was called before.

    Returns:
        The score and the warnings. Unreadable are images whose size cannot be read, or that `predict` could not read.

    Raises:
        LabelError: the table or a run-length in it is not valid, it names a class that the folder does not have, it
            lists none of the folder's images, or an image had another size when it was predicted.
        DataError: the output folder is not that of a finished run, or was written without run-lengths.
    """
    table, seen, unreadable = read or read_predictions(path, folder)
    listed, images = table.listed - folder.not_labelled, set(folder.image_ids)
    warnings = _compare_names(path, listed, images, folder.root / IMAGES_NAME)
    counts: Counts = {}
    sheets: dict[str, Sheet] = {}
    unreadable = [one for one in unreadable if one.image_id in images]
    for image_id in sorted(images & seen.keys() if path.is_dir() else images):
        encoded = table.rles.get(image_id, {})
        try:
            size_hw = read_size(folder.image_path(image_id))
        except ImageError as error:
            if path.is_dir() or encoded or folder.table.rles.get(image_id):
                unreadable.append(Unreadable(image_id, folder.image_path(image_id), str(error)))
                continue
            size_hw = (1, 1)  # of a table without a mask for it; its pixels are not needed
        before_hw, score = seen.get(image_id, (size_hw, None))
        if before_hw != size_hw:
            raise LabelError(f"{path}: {image_id} was another image: of {before_hw} px (height, width), now {size_hw}.")
        truth, ignore = folder.masks_of(image_id, size_hw)
        predicted = np.zeros_like(truth)
        for class_id, pairs in encoded.items():
            predicted[class_id - 1] = rle.decode(pairs, size_hw, where=f"{path}: {image_id}, class {class_id}")
        counts |= count_pairs(image_id, predicted, truth, ignore)
        sheets[image_id] = sheet_of(predicted, truth, ignore, score)
    return Score(counts, sheets, tuple(unreadable)), warnings


Seen = tuple[tuple[int, int], float | None]
"""Height and width of an image in px when it was predicted, and its sheet score."""
Read = tuple[LabelTable, dict[str, Seen], list[Unreadable]]


def read_predictions(path: Path, folder: DataFolder) -> Read:
    """The predictions, what an output folder of `predict` tells of each image, and the images that it could not read.

    Arguments and errors are those of `score_predictions`.
    """
    if path.is_dir():
        return _read_folder(path, folder)
    table = read_label_table(path, {*folder.image_ids, *folder.not_labelled}, class_names=folder.class_names)
    check_class_ids(table, folder.class_names, path)
    return table, {}, []


def _read_folder(root: Path, folder: DataFolder) -> Read:
    """The predictions, what else is known of each image that was predicted, and the others."""
    run, outputs, records = read_results(root)
    if RLE not in outputs.names:
        raise DataError(f"{root}: was written without predictions.csv. Predict again, with rle among the outputs.")
    names = tuple(run["class_names"])
    if absent := set(folder.class_names).difference(names):
        raise DataError(f"{root}: the model did not know {', '.join(sorted(absent))}, a class of {folder.root}.")
    ids = {names.index(name) + 1: class_id for class_id, name in enumerate(folder.class_names, start=1)}
    rles, seen, unreadable = {}, dict[str, Seen](), []
    for one in records:
        rles[one.image_id] = {ids[index]: encoded for _, index, encoded in one.predictions if encoded and index in ids}
        unreadable += [Unreadable(one.image_id, Path(file), message) for _, file, message in one.errors]
        if one.status != STATUS_UNREADABLE:
            score = one.image.get("sheet_score") if names == folder.class_names else None  # it is that of all classes
            seen[one.image_id] = one.size_hw, float(score) if score else None
    return LabelTable(rles, frozenset(rles)), seen, unreadable


@dataclass(frozen=True)
class PredictionFile:
    """What a file of predictions holds.

    Attributes:
        images, empty_images: number of its images, and of those without a mask.
        masks, px: ClassId -> number of masks, and of their pixels.
        warnings: about images that only the file or only the folder has.
    """

    images: int
    empty_images: int
    masks: Mapping[int, int]
    px: Mapping[int, int]
    warnings: list[str]


def check_predictions(path: Path, images: Path | None = None) -> PredictionFile:
    """Check the form of a predictions table, and with `images` its names and whether each run lies in its image.

    Args:
        path: the table, as in `score_predictions`.
        images: the folder of the images, or None.

    Raises:
        LabelError: a row is not valid, or the table lists none of the images; the message names the row.
        DataError, ImageError: the folder has no images, or one with a mask cannot be read.
    """
    found = {} if images is None else {image.image_id: image.path for image in find_images([images])}
    rows = scan_label_rows(path, image_ids=found.keys()).sound()
    listed = frozenset(row.image_id for row in rows)
    warnings = [] if images is None else _compare_names(path, listed, set(found), images)
    masks, px = Counter[int](), Counter[int]()
    filled = [row for row in rows if row.encoded]
    for row in sorted(filled, key=lambda row: row.class_id):
        where, file = f"{path}, line {row.line}: {row.image_id}, ClassId", found.get(row.image_id)
        if row.class_id == IGNORE_CLASS_ID:
            raise LabelError(f"{where} {IGNORE_CLASS_ID} marks pixels to ignore in labels; it is no prediction.")
        size_hw = None if file is None else read_size(file)
        masks[row.class_id] += 1
        px[row.class_id] += int(rle.parse_pairs(row.encoded, size_hw, where=f"{where} {row.class_id}")[:, 1].sum())
    return PredictionFile(len(listed), len(listed) - len({row.image_id for row in filled}), masks, px, warnings)


def _compare_names(path: Path, listed: frozenset[str], images: set[str], folder: Path) -> list[str]:
    """Warnings of ImageIds that only the table or only the folder has. Raises LabelError where they share none."""
    unlisted, unknown = images - listed, listed - images
    if unlisted == images:
        first = f"; its first ImageId is {min(listed)!r}, theirs {min(images)!r}" if listed else ""
        raise LabelError(f"{path}: lists none of the {len(images)} images{first}. Expected paths relative to {folder}.")
    warnings = []
    if unlisted:
        outcome = "are left out" if path.is_dir() else "count as empty"
        warnings.append(f"{len(unlisted)} images are not in {path.name} and {outcome}: {some(unlisted)}.")
    if unknown:
        warnings.append(f"{len(unknown)} images of {path.name} are not in {folder} and are left out: {some(unknown)}.")
    return warnings
