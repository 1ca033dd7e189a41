"""Which images of a data folder a model is scored on, and what to tell of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from defectseg.data.folder import DataFolder, image_digest
from defectseg.data.split import read_split
from defectseg.errors import UsageError
from defectseg.model.info import ModelInfo

SPLIT_NAME = "split.csv"


def choose_subset(
    folder: DataFolder, info: ModelInfo, models: Sequence[Path], subset: str, split: Path | None
) -> tuple[tuple[str, ...], list[str]]:
    """The ImageIds to score, and warnings.

    Args:
        folder: the data folder.
        info: the model's description; of several models whose answers are averaged, what they share.
        models: the model file or files.
        subset: all, train or val.
        split: the split.csv that tells train from val; None for the one beside each model.

    Raises:
        UsageError: train or val was asked for, and no split tells them apart, or not for all models alike.
    """
    if subset == "all":
        return folder.image_ids, []
    path, folds = _read_common_split(info, models, subset, split)
    wanted = [image_id for image_id in folder.image_ids if image_id in folds]
    chosen = tuple(image_id for image_id in wanted if (folds[image_id] == info.fold) == (subset == "val"))
    if not chosen:
        raise UsageError(f"--subset {subset}: {path} puts none of the images of {folder.root} there.")
    return chosen, _unlisted_warnings(folder, folds, path)


def held_out(
    folder: DataFolder, infos: Sequence[ModelInfo], models: Sequence[Path], split: Path | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    """For each of several models the ImageIds that it alone held out of its training, and warnings.

    Raises:
        UsageError: the models were not trained on different folds of one split.
    """
    path, folds = _read_same_split(models, split)
    for number, (info, model) in enumerate(zip(infos, models, strict=True)):
        if info.fold is None:
            raise UsageError(f"{model}: was trained on all folds, so there is no image that it has not seen.")
        for other, earlier in zip(infos[:number], models, strict=False):
            if other.fold == info.fold:
                raise UsageError(
                    f"{model}: held out fold {info.fold}, and so did {earlier}. Give one model for each fold."
                )
    parts = [
        tuple(image_id for image_id in folder.image_ids if image_id in folds and folds[image_id] == info.fold)
        for info in infos
    ]
    if not any(parts):
        raise UsageError(f"{path}: none of the images of {folder.root} is in a fold that one of the models held out.")
    return parts, _unlisted_warnings(folder, folds, path)


def missing_warnings(folder: DataFolder) -> list[str]:
    """Tell of images that have labels and are not there."""
    if not folder.missing_images:
        return []
    count, first = len(folder.missing_images), folder.missing_images[0]
    return [f"{count} images of the label table are not in the folder (first: {first}); they are not scored"]


def seen_warnings(folder: DataFolder, info: ModelInfo, image_ids: Sequence[str], subset: str) -> list[str]:
    """Tell how many of the images the model was trained on: scores on those say nothing of new ones."""
    if subset == "train":
        return ["these are the images that the model was trained on; scores on new images will be lower"]
    trained_on = set(info.trained_on)
    seen = sum(_digest_or_blank(folder.image_path(image_id)) in trained_on for image_id in image_ids)
    if not seen:
        return []
    advice = "scores on new images will be lower" if info.fold is None else "use --subset val for an honest score"
    return [f"the model was trained on {seen} of these {len(image_ids)} images; {advice}"]


def _read_common_split(
    info: ModelInfo, models: Sequence[Path], subset: str, split: Path | None
) -> tuple[Path, Mapping[str, int]]:
    """The split by which every model held back the fold of `info`, and the file it is from."""
    paths = _split_paths(models, split)
    if info.fold is None and len(models) == 1:
        raise UsageError(f"--subset {subset}: {models[0]} was trained on all folds. Use --subset all.")
    folds, *others = [read_split(path) for path in paths]
    if info.fold is None or any(other != folds for other in others):
        raise UsageError(
            f"--subset {subset}: the {len(models)} models did not all hold back the same images. "
            "Use --subset all, or the model of a single fold."
        )
    return paths[0], folds


def _read_same_split(models: Sequence[Path], split: Path | None) -> tuple[Path, Mapping[str, int]]:
    """The one split that lies beside all models, or the one that is given instead, and its file."""
    paths = _split_paths(models, split)
    folds, *others = [read_split(path) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        if other != folds:
            raise UsageError(f"{path}: not the same split as {paths[0]}. Give models of the folds of one split.")
    return paths[0], folds


def _split_paths(models: Sequence[Path], split: Path | None) -> list[Path]:
    """The split that is given, or else the one beside each model. Raises UsageError where there is none beside one."""
    if split is not None:
        return [split]
    for model in models:
        if not (model.parent / SPLIT_NAME).is_file():
            raise UsageError(
                f"no {SPLIT_NAME} beside {model} tells which images it held out. Give one with --split FILE."
            )
    return [model.parent / SPLIT_NAME for model in models]


def _unlisted_warnings(folder: DataFolder, folds: Mapping[str, int], path: Path) -> list[str]:
    unlisted = sum(image_id not in folds for image_id in folder.image_ids)
    return [f"{unlisted} images of {folder.root} are not in {path}; they are not scored"] if unlisted else []


def _digest_or_blank(path: Path) -> str:
    """The digest of an image, or "" where it cannot be read: that is told when it comes to be scored."""
    try:
        return image_digest(path)
    except OSError:
        return ""
