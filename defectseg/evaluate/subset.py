"""Which images of a data folder a model is scored on, and the warnings about them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from defectseg.config import HeldOut
from defectseg.data.folder import DataFolder, image_digest
from defectseg.data.split import SPLIT_NAME, Folds, read_split
from defectseg.errors import UsageError
from defectseg.model.info import ModelInfo


def choose_subset(
    folder: DataFolder, info: ModelInfo, models: Sequence[Path], subset: str, split: Path | None
) -> tuple[tuple[str, ...], list[str]]:
    """The ImageIds to score, and warnings, also of images that the model was trained on.

    Args:
        folder: the data folder.
        info: the description of the model, or of several models together.
        models: the model file or files.
        subset: all, train, val or test.
        split: the split.csv with the folds; None for the one beside each model, or for test, where that has none of
            these images, for the one in the data folder.

    Raises:
        UsageError: it is not known which images are train, val and test, or the models differ in train and val.
    """
    if subset in ("all", "test"):
        chosen = folder.image_ids if subset == "all" else _test_images(folder, models, split)
        return chosen, [*_missing(folder), *seen_warnings(folder, info, chosen, subset)]
    if info.fold is None and len(models) == 1:
        raise _no_subset(subset, f"{models[0]} was trained on all folds.")
    paths, folds, agree = ([], {}, False) if info.fold is None else _read_splits(folder, models, split)
    if not agree:
        why = f"the {len(models)} models did not all hold back the same images. Give the model of a single fold."
        raise _no_subset(subset, why)
    wanted = {info.fold} if subset == "val" else {*folds.values()} - {info.fold, "val", "test"}
    chosen = tuple(image_id for image_id in folder.image_ids if folds.get(image_id) in wanted)
    if not chosen:
        raise _no_subset(subset, f"{paths[0]} puts none of the images of {folder.root} there.")
    warnings = [*_unlisted(folder, folds, paths[0]), *_missing(folder), *seen_warnings(folder, info, chosen, subset)]
    return chosen, warnings


def _test_images(folder: DataFolder, models: Sequence[Path], split: Path | None) -> tuple[str, ...]:
    """The images of test in the first of the files that has any. Raises UsageError."""
    paths = [*(model.parent / SPLIT_NAME for model in models), folder.root / SPLIT_NAME] if split is None else [split]
    for path in paths:
        folds = read_split(path, folder.image_ids) if path.is_file() else {}
        if chosen := tuple(image_id for image_id in folder.image_ids if folds.get(image_id) == "test"):
            return chosen
    raise _no_subset("test", f"no image of {folder.root} is in test of {' or '.join(map(str, dict.fromkeys(paths)))}.")


def held_out(
    folder: DataFolder, infos: Sequence[ModelInfo], models: Sequence[Path], split: Path | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    """For each of several models the ImageIds that it held out of its training, and warnings as above.

    Raises:
        UsageError: the models were not trained on different folds of one split.
    """
    model_of: dict[HeldOut, Path] = {}
    for info, model in zip(infos, models, strict=True):
        if info.fold is None:
            raise UsageError(f"{model}: was trained on all folds, so there is no image that it has not seen.")
        if (earlier := model_of.setdefault(info.fold, model)) is not model:
            raise UsageError(f"{model}: held out fold {info.fold}, and so did {earlier}. Give one model for each fold.")
    paths, folds, agree = _read_splits(folder, models, split)
    if not agree:
        raise UsageError(f"{', '.join(map(str, dict.fromkeys(paths)))}: not the same split. Give models of one split.")
    parts = [tuple(image_id for image_id in folder.image_ids if folds.get(image_id) == fold) for fold in model_of]
    if not any(parts):
        raise UsageError(f"{paths[0]}: the models held out no image of {folder.root}.", go_on={"subset": "all"})
    warnings = [*_unlisted(folder, folds, paths[0]), *_missing(folder)]
    for info, part in zip(infos, parts, strict=True):
        warnings += seen_warnings(folder, info, part, "val")
    return parts, warnings


def _missing(folder: DataFolder) -> list[str]:
    """A warning where the label table names images that are not in the folder."""
    if not folder.missing_images:
        return []
    count, first = len(folder.missing_images), folder.missing_images[0]
    return [f"{count} images of the label table are not in the folder (first: {first}); they are not scored"]


def count_seen(folder: DataFolder, info: ModelInfo, image_ids: Sequence[str]) -> int:
    """How many of the images the model was trained on; an image that cannot be read counts as new."""
    trained_on, seen = set(info.trained_on), 0
    for image_id in image_ids:
        with suppress(OSError):
            seen += image_digest(folder.image_path(image_id)) in trained_on
    return seen


def seen_warnings(folder: DataFolder, info: ModelInfo, image_ids: Sequence[str], subset: str) -> list[str]:
    """A warning where the model was trained on some of the images: scores on those do not hold for new ones."""
    if subset == "train":
        return ["these are the images that the model was trained on; scores on new images will be lower"]
    seen = count_seen(folder, info, image_ids)
    if not seen:
        return []
    no_val = info.fold is None or subset == "test"
    advice = "scores on new images will be lower" if no_val else "the subset val gives an honest score"
    return [f"the model was trained on {seen} of these {len(image_ids)} images; {advice}"]


def _no_subset(subset: str, message: str) -> UsageError:
    return UsageError(f"{subset}: {message}", argument="subset", go_on={"subset": "all"})


def _read_splits(folder: DataFolder, models: Sequence[Path], split: Path | None) -> tuple[list[Path], Folds, bool]:
    """The given split, or those beside the models: their files, the folds of the first, and whether all are equal.

    Raises:
        UsageError: there is none beside a model.
    """
    paths = [model.parent / SPLIT_NAME for model in models] if split is None else [split]
    for path, model in zip(paths, models, strict=False):
        if split is None and not path.is_file():
            raise UsageError(f"no {SPLIT_NAME} beside {model} tells what it held out. Give one.", argument="split")
    folds, *others = [read_split(path, folder.image_ids) for path in paths]
    return paths, folds, all(other == folds for other in others)


def _unlisted(folder: DataFolder, folds: Folds, path: Path) -> list[str]:
    unlisted = sum(image_id not in folds for image_id in folder.image_ids)
    return [f"{unlisted} images of {folder.root} are not in {path}; they are not scored"] if unlisted else []
