"""How good a network is while it learns: through the same code as `predict`."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.evaluate.metrics import Counts, Metrics, count_pairs, summarise
from defectseg.evaluate.score import Scored, Visitor, score_images
from defectseg.image.overlay import paint_comparison
from defectseg.inference.settings import Settings
from defectseg.model.devices import half_precision
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.torch import TorchRuntime

PICTURES = 4


@dataclass(frozen=True)
class Validation:
    """Figures of one network on the validation images.

    Attributes:
        metrics: with the thresholds given.
        ungated_dice: Dice over pairs with a defect as if every gate were open; None where no image has a defect.
    """

    metrics: Metrics
    ungated_dice: float | None

    @property
    def score(self) -> float:
        """What the best epoch is chosen by: Kaggle Dice plus the Dice of the defects, whatever the gate.

        A gate that has not learnt to open yet makes every epoch look like empty masks; the masks differ all the same.
        """
        return self.metrics.kaggle_dice + (self.ungated_dice or 0.0)


def validate(
    accelerator: Accelerator,
    network: DefectNetwork,
    info: ModelInfo,
    data: DataFolder,
    image_ids: Sequence[str],
    settings: Settings,
    *,
    visitors: Sequence[Visitor] = (),
) -> Validation:
    """Score labelled images as `predict` would, and in its precision, so that the figures are those of the bundle;
    each process takes its share of the images.
    """
    for buffer in network.buffers():
        broadcast(buffer)  # processes gather batch-norm statistics of their own; the main one's go into the bundle
    own = list(image_ids)[accelerator.process_index :: accelerator.num_processes]
    runtime = TorchRuntime(network, info, dtype=half_precision(accelerator.device))
    defects = _OpenGates(settings.thresholds)
    score = score_images(runtime, data, own, settings, visitors=(defects, *visitors), keep_answers=True)
    metrics = summarise(dict(ChainMap(*gather_object([score.counts]))), info.class_names)
    opened = ChainMap(*gather_object([defects.counts]))
    dices = [opened[key].dice for key in sorted(opened)]
    return Validation(metrics, float(np.mean(dices)) if dices else None)


@dataclass
class Pictures:
    """A visitor that keeps comparisons (label blue, prediction red, both magenta) of a few images."""

    of: frozenset[str]
    bgr: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def __call__(self, scored: Scored) -> None:
        """Keep the picture, if it is one of those."""
        if scored.image_id in self.of:
            counted = ~scored.ignore
            predicted, truth = (np.asarray(masks.any(axis=0)) & counted for masks in (scored.masks, scored.truth))
            self.bgr[scored.image_id] = paint_comparison(scored.pixels, predicted, truth)


def images_to_show(data: DataFolder, image_ids: Sequence[str]) -> frozenset[str]:
    """A few validation images, those with a defect first."""
    by_interest = sorted(image_ids, key=lambda image_id: (-len(data.classes_of(image_id)), image_id))
    return frozenset(by_interest[:PICTURES])


def log_pictures(accelerator: Accelerator, pictures: Mapping[str, NDArray[np.uint8]], epoch: int) -> None:
    """Send comparisons (BGR) to TensorBoard, where that is on."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for image_id, bgr in pictures.items():
                rgb = np.ascontiguousarray(bgr[None, ..., ::-1])
                tracker.log_images({f"validation/{image_id}": rgb}, step=epoch, dataformats="NHWC")


class _OpenGates:
    """Counts pairs with a defect as if every gate were open."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.pixel = np.asarray(thresholds.pixel, np.float32)[:, None, None]
        self.counts: Counts = {}

    def __call__(self, scored: Scored) -> None:
        assert scored.answer is not None
        predicted = scored.answer.probabilities >= self.pixel
        pairs = count_pairs(scored.image_id, predicted, scored.truth, scored.ignore)
        self.counts.update({key: pair for key, pair in pairs.items() if pair.true_px})
