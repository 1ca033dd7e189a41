"""What can be compared: models, runs of folds, result folders of `predict`, and prediction files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defectseg.data.classes import CLASSES_NAME
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import DataError, UsageError
from defectseg.evaluate.out_of_fold import Part, are_folds, divide_by_seen, score_parts
from defectseg.evaluate.prediction_file import find_models, read_predictions, score_predictions
from defectseg.evaluate.score import Score, Scored
from defectseg.evaluate.subset import choose_subset, count_seen
from defectseg.image import rle
from defectseg.image.read import bit_depth_warnings
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.model.locate import model_paths
from defectseg.predict.output import RUN, read_results
from defectseg.predict.tables import PREDICTIONS
from defectseg.progress import Progress, some
from defectseg.runtime.ensemble import join_infos
from defectseg.runtime.load import load_runtime

log = logging.getLogger(__name__)

Masks = Mapping[str, Mapping[int, str]]
"""ImageId -> ClassId -> run-lengths."""


@dataclass(frozen=True)
class Source:
    """One side of a comparison.

    Attributes:
        path: as people gave it.
        models: the model files; of results those that made them, if they are still there; of a prediction file none.
        infos: the description of each.
        class_names: those of the model; None for a prediction file.
        is_model: the model has to answer; otherwise its answers are read.
        made_by: of results, where their models lay.
    """

    path: Path
    models: tuple[Path, ...]
    infos: tuple[ModelInfo, ...]
    class_names: tuple[str, ...] | None
    is_model: bool
    made_by: str = ""

    @property
    def unknown(self) -> str:
        """A sentence if it is not known what the models were trained on, else ""."""
        if self.models and all(info.trained_on for info in self.infos):
            return ""
        where = "" if self.models or not self.made_by else f", since it is not, or no longer, at {self.made_by}"
        return f"{self.path}: nobody knows what the model was trained on{where}"

    def joined(self, members: Sequence[int]) -> ModelInfo:
        """One description for some of the models."""
        return join_infos([self.infos[index] for index in members], [self.models[index] for index in members])


def open_source(text: str) -> Source:
    """Find out what an argument names. Raises ModelError or DataError if that cannot be used."""
    path = Path(text)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return Source(path, (), (), None, is_model=False)
    if not any((path / name).is_file() for name in (RUN, PREDICTIONS)):
        models = model_paths(text)
        infos = tuple(map(read_model_info, models))
        return Source(path, models, infos, infos[0].class_names, is_model=True)
    run = read_results(path)[0]
    if only := run["key"].get("only_classes"):
        log.warning("%s: reports only the classes %s; the others count as not found", path, some(map(str, only)))
    models, names = find_models(run), tuple(run["class_names"])
    return Source(path, models, tuple(map(read_model_info, models)), names, is_model=False, made_by=run["model"])


def open_folders(sources: Sequence[Source], data: Path, bit_depth: int | None = None) -> list[DataFolder]:
    """The data folder as each side numbers its classes. Raises DataError if they cannot be matched.

    `bit_depth` of 16-bit files: see `open_data_folder`.
    """
    names = [one.class_names for one in sources]
    if not (data / CLASSES_NAME).exists():
        known = {one for one in names if one}
        if len(known) > 1:
            told = "; ".join(map(", ".join, sorted(known)))
            raise DataError(f"{data}: has no {CLASSES_NAME}, and the models name their classes differently: {told}.")
        names = [next(iter(known), None)] * len(names)
    folders = {one: open_data_folder(data, class_names=one, bit_depth=bit_depth) for one in dict.fromkeys(names)}
    return [folders[one] for one in names]


class Side:
    """A source on a data folder.

    Attributes:
        parts: the images that it answers for; of models of different folds each by those that were not trained on it.
        warnings: sentences.
        score, masks: what it answers; of a model only after `answer`.

    Raises:
        UsageError: it is not known which images belong to the subset.
        DataError: the answers cannot be used, see `score_predictions`.
    """

    score: Score
    masks: Masks

    def __init__(self, source: Source, folder: DataFolder, subset: str) -> None:
        self.source, self.folder, self.warnings = source, folder, list[str]()
        everyone = tuple(range(len(source.models)))
        self.parts: list[Part] = [(everyone, folder.image_ids)]
        if subset != "all" and source.models:
            chosen, self.warnings = choose_subset(folder, source.joined(everyone), source.models, subset, None)
            self.parts = [(everyone, chosen)]
        elif source.is_model and are_folds(source.infos):
            self.parts, self.warnings = divide_by_seen(folder, source.infos, source.models)
        if not source.is_model:
            read = read_predictions(source.path, folder)
            self.masks = read[0].rles
            self.score, told = score_predictions(source.path, folder, read)
            self.warnings += told
            self.keep({*self.score.sheets, *(one.image_id for one in self.score.unreadable)})

    @property
    def image_ids(self) -> set[str]:
        """The images of all parts."""
        return {image_id for _, image_ids in self.parts for image_id in image_ids}

    def keep(self, wanted: set[str]) -> None:
        """Leave out other images."""
        kept = ((members, tuple(one for one in image_ids if one in wanted)) for members, image_ids in self.parts)
        self.parts = [part for part in kept if part[1]]

    def refuse_seen(self, *, allowed: bool) -> None:
        """Warn if a model was trained on an image that it answers for. Raises UsageError if that is not allowed."""
        source = self.source
        parts = self.parts if source.models else []
        seen = sum(count_seen(self.folder, source.joined(members), image_ids) for members, image_ids in parts)
        told = f"was trained on {seen} of these {len(self.image_ids)} images, which favours it"
        if seen and not allowed:
            why = f"{source.path}: {told}. Compare on images that it has not seen."
            raise UsageError(why, go_on={"allow_seen": True})
        self.warnings += [f"{source.path} {told}"] if seen else []

    def answer(self, device: str, progress: Progress) -> None:
        """Let a model answer, see `score_parts`."""
        source, masks = self.source, dict[str, Mapping[int, str]]()

        def keep(one: Scored) -> None:
            masks[one.image_id] = {number: rle.encode(mask) for number, mask in enumerate(one.masks, 1) if mask.any()}

        if source.is_model:
            network, _ = load_runtime(source.models, device)
            asked = (network, source.infos, source.models, self.folder, self.parts)
            self.score = score_parts(*asked, visitors=(keep,), progress=progress)
            self.masks = masks
            self.warnings += bit_depth_warnings(self.score.brightest)
