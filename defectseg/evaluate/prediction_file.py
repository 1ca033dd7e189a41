"""Score predictions: a table in the Kaggle format, made by any program, or an output folder of `predict`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from defectseg.data.folder import IMAGES_NAME, DataFolder, check_class_ids
from defectseg.data.table import IGNORE_CLASS_ID, read_label_table, scan_label_rows
from defectseg.errors import DataError, ImageError, LabelError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.evaluate.score import Score
from defectseg.evaluate.sheets import Sheet, empty_sheet, sheet_of
from defectseg.image import rle
from defectseg.image.find import find_images
from defectseg.image.read import read_size
from defectseg.inference.stream import Unreadable
from defectseg.predict.output import read_results
from defectseg.predict.tables import RLE, STATUS_UNREADABLE
from defectseg.progress import some


@dataclass(frozen=True)
class _Predictions:
    """Predictions of many images.

    Attributes:
        rles: ImageId -> ClassId of the data folder -> run-lengths.
        listed: every ImageId that was predicted.
        scores: ImageId -> sheet score, where it is known.
        sizes_hw: ImageId -> height and width of the image in px when it was predicted, where that is known.
        unreadable: images that could not be predicted.
    """

    rles: Mapping[str, Mapping[int, str]]
    listed: frozenset[str]
    scores: Mapping[str, float] = field(default_factory=dict)
    sizes_hw: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: tuple[Unreadable, ...] = ()


def predicted_classes(path: Path) -> tuple[str, ...] | None:
    """The class names in an output folder of `predict`; None for a table. Raises DataError."""
    return tuple(read_results(path)[0]["class_names"]) if path.is_dir() else None


def score_predictions(path: Path, folder: DataFolder) -> tuple[Score, list[str]]:
    """Count predictions against the labels of a data folder.

    In a table, an image without a row counts as predicted empty. An image that an output folder of `predict` does not
    have is left out, as are predictions for an image that the data folder does not have. Warnings count them.

    Args:
        path: a table, .csv or .csv.gz, in any layout that a label table may have; or an output folder of `predict`,
            which also has sheet scores.
        folder: the labelled images; for an output folder, opened with its `predicted_classes`.

    Returns:
        The score and the warnings. Unreadable are images whose size cannot be read, or that `predict` could not read.

    Raises:
        LabelError: the table or a run-length in it is not valid, it names a class that the folder does not have, it
            lists none of the folder's images, or an image had another size when it was predicted.
        DataError: the output folder is not that of a finished run, or was written without run-lengths.
    """
    found = _read_folder(path, folder) if path.is_dir() else _read_table(path, folder)
    listed, images = found.listed - folder.not_labelled, set(folder.image_ids)
    warnings = _compare_names(path, listed, images, folder.root / IMAGES_NAME)
    counts: Counts = {}
    sheets: dict[str, Sheet] = {}
    unreadable = [one for one in found.unreadable if one.image_id in images]
    left_out = images - found.sizes_hw.keys() if path.is_dir() else ()
    for image_id in folder.image_ids:
        if image_id in left_out:
            continue
        try:
            size_hw = read_size(folder.image_path(image_id))
        except ImageError as error:
            unreadable.append(Unreadable(image_id, folder.image_path(image_id), str(error)))
            continue
        if (before := found.sizes_hw.get(image_id, size_hw)) != size_hw:
            sizes = " and ".join(f"{height} x {width}" for height, width in (before, size_hw))
            raise LabelError(f"{path}: {image_id} had another size when it was predicted ({sizes} px): another image.")
        score, encoded = found.scores.get(image_id), found.rles.get(image_id, {})
        if not encoded and not folder.table.rles.get(image_id):
            counts |= {(image_id, class_id): PairCounts(0, 0, 0) for class_id in range(1, folder.num_classes + 1)}
            sheets[image_id] = empty_sheet(folder.num_classes, size_hw[0] * size_hw[1], score)
            continue
        truth, ignore = folder.masks_of(image_id, size_hw)
        predicted = np.zeros_like(truth)
        for class_id, pairs in encoded.items():
            predicted[class_id - 1] = rle.decode(pairs, size_hw, where=f"{path}: {image_id}, class {class_id}")
        counts |= count_pairs(image_id, predicted, truth, ignore)
        sheets[image_id] = sheet_of(predicted, truth, ignore, score)
    return Score(counts, sheets, tuple(unreadable)), warnings


def _read_table(path: Path, folder: DataFolder) -> _Predictions:
    table = read_label_table(path, {*folder.image_ids, *folder.not_labelled}, class_names=folder.class_names)
    check_class_ids(table, folder.class_names, path)
    return _Predictions(table.rles, table.listed)


def _read_folder(root: Path, folder: DataFolder) -> _Predictions:
    run, outputs, records = read_results(root)
    if RLE not in outputs.names:
        raise DataError(f"{root}: was written without predictions.csv. Predict again, with rle among the outputs.")
    names = tuple(run["class_names"])
    ids = {names.index(name) + 1: class_id for class_id, name in enumerate(folder.class_names, start=1)}
    rles, listed, scores, sizes_hw, unreadable = {}, set(), {}, {}, []
    for one in records:
        image_id = one.image_id
        listed.add(image_id)
        if one.status == STATUS_UNREADABLE:
            unreadable += [Unreadable(image_id, Path(file), message) for _, file, message in one.errors]
            continue
        sizes_hw[image_id] = one.size_hw
        rles[image_id] = {ids[class_id]: text for _, class_id, text in one.predictions if text and class_id in ids}
        if names == folder.class_names and (score := one.image.get("sheet_score")):
            scores[image_id] = float(score)
    return _Predictions(rles, frozenset(listed), scores, sizes_hw, tuple(unreadable))


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
