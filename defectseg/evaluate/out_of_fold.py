"""Runs of folds: every image is scored by models that were not trained on it."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from defectseg.data.folder import DataFolder, image_digest
from defectseg.data.split import SPLIT_NAME, read_split
from defectseg.errors import ModelError, UsageError
from defectseg.evaluate.score import Score, Visitor, score_images
from defectseg.inference.settings import Settings
from defectseg.model.info import ModelInfo
from defectseg.progress import Progress, silent, some
from defectseg.runtime.base import Runtime
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

Part = tuple[tuple[int, ...], tuple[str, ...]]
"""Indices of models, and the ImageIds that the mean of their answers is scored on."""


def are_folds(infos: Sequence[ModelInfo]) -> bool:
    """Whether models held out different images, as those of `train --fold all` do."""
    held = {info.fold for info in infos}
    return len(held) > 1 and None not in held


def divide_by_seen(
    folder: DataFolder, infos: Sequence[ModelInfo], models: Sequence[Path]
) -> tuple[list[Part], list[str]]:
    """Assign each image of a data folder to all models that were not trained on it, by the digest of its file.

    An image that a fold held out gets the model of this fold, one that no fold saw gets all models. Images that every
    model was trained on are left out.

    Returns:
        the parts, and warnings.

    Raises:
        ModelError: a model does not tell what it was trained on.
        UsageError: every model was trained on all images.
    """
    for info, model in zip(infos, models, strict=True):
        if not info.trained_on:
            raise ModelError(f"{model}: does not tell which images it was trained on. Give models that train wrote.")
    trained_on, everyone = [frozenset(info.trained_on) for info in infos], tuple(range(len(models)))
    images_of: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for image_id in folder.image_ids:
        digest = ""  # of a file that cannot be read
        with suppress(OSError):
            digest = image_digest(folder.image_path(image_id))
        images_of[tuple(index for index in everyone if digest not in trained_on[index])].append(image_id)
    seen, warnings = images_of.pop((), []), []
    if not images_of:
        raise UsageError(f"{folder.root}: each of the {len(models)} models was trained on all of the images.")
    if seen:
        warnings.append(f"left out, since every model was trained on them (or on a copy): {len(seen)}, {some(seen)}")
    split = models[0].parent / SPLIT_NAME
    folds = read_split(split, folder.image_ids) if split.is_file() else {}
    if other := [image_id for image_id in images_of[everyone] if isinstance(folds.get(image_id), int)]:
        warnings.append(f"{len(other)} images count as new: named in {split}, but not the files of then: {some(other)}")
    return [(members, tuple(image_ids)) for members, image_ids in sorted(images_of.items()) if image_ids], warnings


def score_parts(
    network: Runtime,
    infos: Sequence[ModelInfo],
    models: Sequence[Path],
    folder: DataFolder,
    parts: Sequence[Part],
    *,
    tta: str | None = None,
    classes: Collection[int] | None = None,
    visitors: Sequence[Visitor] = (),
    keep_answers: bool = False,
    progress: Progress = silent,
) -> Score:
    """Score images as `score_images` does, those of each part with the mean of some of the models.

    Args:
        network: all models together, as `load_runtime` gives them.
        infos, models: the description and the file of each.
        folder: images and labels.
        parts: see `Part` and `divide_by_seen`.
        tta: test-time augmentation; None: the models' own.
        classes: ClassIds to report; None: all.
        visitors, keep_answers: see `score_images`.
        progress: called after each image.
    """
    runtimes = network.runtimes if isinstance(network, EnsembleRuntime) else (network,)
    whole, before, of_all = Score({}, {}), 0, sum(len(image_ids) for _, image_ids in parts)

    def advance(done: int, total: int, text: str = "") -> None:
        progress(before + done, of_all, text)

    for members, image_ids in parts:
        chosen = [runtimes[index] for index in members]
        own = chosen[0] if len(chosen) == 1 else EnsembleRuntime(chosen)
        info = join_infos([infos[index] for index in members], [models[index] for index in members])
        settings = Settings.of(info, tta=tta, classes=classes)
        whole += score_images(
            own, folder, image_ids, settings, visitors=visitors, keep_answers=keep_answers, progress=advance
        )
        before += len(image_ids)
    return whole
