"""An ensemble: several models whose answers are averaged."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ModelError
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.runtime.base import Answer, Runtime

log = logging.getLogger(__name__)


class EnsembleRuntime:
    """A Runtime that averages the probabilities and gates of others, which must have the same classes."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self.runtimes = tuple(runtimes)
        self.class_names = self.runtimes[0].class_names
        names = dict.fromkeys(runtime.name for runtime in self.runtimes)
        self.name = f"ensemble of {len(self.runtimes)}: {', '.join(names)}"
        self.parallel = min(runtime.parallel for runtime in self.runtimes)
        self.batch_px = min(runtime.batch_px for runtime in self.runtimes)

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        first, *others = self.runtimes
        answer = first(images)
        probabilities, gate = answer.probabilities.copy(), answer.gate.copy()
        # A running mean, so that values on which all models agree stay the same bit for bit, unlike with a sum divided
        # by their number.
        for number, runtime in enumerate(others, start=2):
            answer = runtime(images)
            probabilities += (answer.probabilities - probabilities) / number
            gate += (answer.gate - gate) / number
        return Answer(probabilities, gate)


def join_infos(infos: Sequence[ModelInfo], sources: Sequence[Path]) -> ModelInfo:
    """One description for several models: thresholds are averaged, training images united, scores left out.

    That of a single model stays as it is.

    Args:
        infos: at least one; tiles, test-time augmentation, bit depth and appearance are taken from the first.
        sources: the model file of each, for errors.

    Raises:
        ModelError: the models have different classes.
    """
    first = infos[0]
    if len(infos) == 1:
        return first
    for info, source in zip(infos, sources, strict=True):
        if info.class_names != first.class_names:
            raise ModelError(
                f"{source}: knows the classes {', '.join(info.class_names)}, but {sources[0]} knows "
                f"{', '.join(first.class_names)}. Only models of the same classes in the same order can be averaged."
            )
    if any(info.recipe.inference != first.recipe.inference for info in infos):
        log.warning("the models differ in tiles or views at test time; taken are those of %s", sources[0])
    if any(info.recipe.data.bit_depth != first.recipe.data.bit_depth for info in infos):
        log.warning("the models differ in data.bit_depth; taken is that of %s", sources[0])
    same_fold = all(info.fold == first.fold for info in infos)
    same_data = all(info.data_fingerprint == first.data_fingerprint for info in infos)
    return first.model_copy(
        update={
            "thresholds": _average([info.thresholds for info in infos]),
            "fold": first.fold if same_fold else None,
            "data_fingerprint": first.data_fingerprint if same_data else "",
            "trained_on": tuple(dict.fromkeys(digest for info in infos for digest in info.trained_on)),
            "metrics": {},
            "created": max(info.created for info in infos),
        }
    )


def _average(thresholds: Sequence[Thresholds]) -> Thresholds:
    """The mean of each value; areas are rounded to whole pixels."""
    from statistics import mean

    chosen_by = "; ".join(dict.fromkeys(one.chosen_by for one in thresholds))

    def means(name: str) -> tuple[float, ...]:
        return tuple(map(mean, zip(*(getattr(one, name) for one in thresholds), strict=True)))

    return Thresholds(
        gate=means("gate"),
        pixel=means("pixel"),
        min_area_px=tuple(map(round, means("min_area_px"))),
        chosen_by=f"mean of {len(thresholds)} models: {chosen_by}",
    )
