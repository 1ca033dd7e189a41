"""What can be compared: models, runs of folds, result folders of `predict`, and prediction files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from defectseg.data.classes import CLASSES_NAME, match_classes
from defectseg.data.folder import DataFolder, check_class_ids
from defectseg.data.table import read_label_table
from defectseg.errors import CannotContinueError, DataError, LabelError, UsageError
from defectseg.evaluate.out_of_fold import Part, are_folds, divide_by_seen, score_parts
from defectseg.evaluate.score import Scored
from defectseg.evaluate.subset import choose_subset, count_seen
from defectseg.image import rle
from defectseg.image.read import bit_depth_warnings
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.model.locate import model_identity, model_paths
from defectseg.predict.output import RUN, read_results
from defectseg.predict.tables import RLE, STATUS_UNREADABLE
from defectseg.progress import Progress, some
from defectseg.runtime.ensemble import join_infos
from defectseg.runtime.load import load_runtime

Masks = Mapping[int, str]
"""ClassId -> run-lengths, for the classes that are found."""


@dataclass(frozen=True)
class Source:
    """One side of a comparison.

    Attributes:
        text: as people gave it.
        models: the model files; for results, those that made them, if they are still there. None of a prediction file.
        class_names: those of the model; None of a prediction file.
        is_model: the model has to answer; otherwise its answers are read from a folder or file.
        only_classes: the ClassIds that a result folder reports; None: all.
    """

    text: str
    models: tuple[Path, ...]
    class_names: tuple[str, ...] | None
    is_model: bool
    only_classes: tuple[int, ...] | None = None

    @cached_property
    def infos(self) -> list[ModelInfo]:
        """The description of each model."""
        return [read_model_info(model) for model in self.models]

    @cached_property
    def joined(self) -> ModelInfo:
        """One description for all of its models, of which there is at least one."""
        return self.infos[0] if len(self.infos) == 1 else join_infos(self.infos, self.models)

    @property
    def is_known(self) -> bool:
        """Whether it is known what the models were trained on."""
        return bool(self.models) and all(info.trained_on for info in self.infos)


@dataclass(frozen=True)
class Answers:
    """The answers of one side.

    Attributes:
        masks: ImageId -> what was found there.
        unreadable: ImageId -> why it has no answer.
        size_hw: ImageId -> height and width in px, where the source tells them.
        warnings: sentences.
    """

    masks: dict[str, Masks] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    size_hw: dict[str, tuple[int, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def open_source(text: str) -> Source:
    """Find out what an argument names.

    Raises:
        ModelError: as `model_paths` and `read_model_info`.
        DataError: a result folder is not that of a finished run, or has no run-lengths.
    """
    path = Path(text)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return Source(text, (), None, is_model=False)
    if not (path / RUN).is_file():
        models = model_paths(text)
        return Source(text, models, read_model_info(models[0]).class_names, is_model=True)
    run, choice, _ = read_results(path)
    if RLE not in choice.names:
        raise DataError(f"{path}: was written without predictions.csv. Predict again, with rle among the outputs.")
    made_by, only = tuple(map(Path, str(run.get("model", "")).split(", "))), run["key"].get("only_classes")
    try:
        known = model_identity(made_by) == run["key"].get("model_sha256")
    except CannotContinueError:  # moved, or replaced by something else
        known = False
    return Source(text, made_by if known else (), tuple(run["class_names"]), False, only and tuple(only))


def images_of(
    source: Source, folder: DataFolder, subset: str, split: Path | None
) -> tuple[frozenset[str], list[Part], list[str]]:
    """The images of a subset that a source is scored on, for a model which of its files answer for which, and warnings.

    Models of different folds answer for the images that they were not trained on, see `divide_by_seen`.

    Raises:
        UsageError: it is not known which images belong to the subset.
    """
    if source.is_model and subset == "all" and are_folds(source.infos):
        parts, warnings = divide_by_seen(folder, source.infos, source.models)
    elif source.models and subset != "all":
        chosen, _ = choose_subset(folder, source.joined, source.models, subset, split)
        parts, warnings = [(tuple(range(len(source.models))), chosen)], []
    else:
        parts, warnings = [(tuple(range(len(source.models))), folder.image_ids)], []
    return frozenset(image_id for _, image_ids in parts for image_id in image_ids), parts, warnings


def refuse_seen(source: Source, folder: DataFolder, image_ids: Sequence[str], *, allow_seen: bool) -> list[str]:
    """A warning where a model was trained on some of the images.

    Raises:
        UsageError: that is so, and not allowed.
    """
    if not source.models or (source.is_model and are_folds(source.infos)):  # whose parts have been chosen so
        return []
    if not (seen := count_seen(folder, source.joined, image_ids)):
        return []
    told = f"was trained on {seen} of these {len(image_ids)} images, which favours it"
    if not allow_seen:
        better = "Compare on others, such as the subset val or test."
        raise UsageError(f"{source.text}: {told}. {better}", go_on={"allow_seen": True})
    return [f"{source.text} {told}"]


def answers_of_model(
    source: Source,
    folder: DataFolder,
    parts: Sequence[Part],
    *,
    device: str,
    runtime: str,
    tta: str | None,
    progress: Progress,
) -> Answers:
    """Let a model answer for labelled images; see `score_parts`. Raises DataError if it does not know their classes."""
    answers = Answers()

    def keep(scored: Scored) -> None:
        found = {class_id: rle.encode(mask) for class_id, mask in enumerate(scored.masks, start=1) if mask.any()}
        answers.masks[scored.image_id] = found

    names = match_classes(folder.root / CLASSES_NAME, folder.class_names, source.class_names or ())
    renamed = replace(folder, class_names=tuple(sorted(names, key=names.__getitem__)))
    network, _ = load_runtime(source.models, device, runtime)
    score = score_parts(
        network, source.infos, source.models, renamed, parts, tta=tta, visitors=(keep,), progress=progress
    )
    answers.unreadable.update((one.image_id, one.message) for one in score.unreadable)
    answers.warnings += bit_depth_warnings(score.brightest)
    return answers


def read_answers(source: Source, class_names: Sequence[str], where: Path, folder: DataFolder | None = None) -> Answers:
    """Read the answers of a result folder or prediction file.

    Args:
        source: where they are.
        class_names: the classes to compare. Those of a result folder are matched with them by name.
        where: what names these classes, for messages.
        folder: the labelled images, of which a prediction file lists those that are not empty; None: without labels.

    Raises:
        LabelError, DataError: it cannot be read, or has other classes.
    """
    path, answers = Path(source.text), Answers()
    if source.class_names is None:
        images = {*folder.image_ids, *folder.not_labelled} if folder else set()
        table = read_label_table(path, images, class_names=class_names)
        check_class_ids(table, class_names, path)
        answers.masks.update((image_id, table.rles.get(image_id, {})) for image_id in table.listed)
        if folder and (empty := [image_id for image_id in folder.image_ids if image_id not in table.listed]):
            if len(empty) == len(folder.image_ids):
                raise LabelError(f"{path}: lists none of the {len(empty)} images of {folder.root}.")
            answers.masks.update(dict.fromkeys(empty, {}))
            answers.warnings.append(f"{len(empty)} images are not in {path.name} and count as empty: {some(empty)}")
        return answers
    names = match_classes(where, class_names, source.class_names)
    class_id_of = {source.class_names.index(name) + 1: class_id for name, class_id in names.items()}
    if source.only_classes is not None:
        answers.warnings.append(f"{path}: reports only the classes {', '.join(map(str, source.only_classes))}")
    for record in read_results(path)[2]:
        if record.status == STATUS_UNREADABLE:
            answers.unreadable[record.image_id] = f"{path}: {record.image_id} was unreadable"
            continue
        found = {class_id_of[class_id]: text for _, class_id, text in record.predictions if class_id in class_id_of}
        answers.masks[record.image_id] = found
        answers.size_hw[record.image_id] = record.size_hw
    return answers
