"""Validation during training, with the same code as `predict`."""

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.errors import ResourceError
from defectseg.evaluate.metrics import Counts, Metrics, count_pairs, summarise
from defectseg.evaluate.score import Scored, Visitor, score_images
from defectseg.inference.settings import Settings
from defectseg.model.devices import half_precision
from defectseg.model.info import Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.torch import TorchRuntime
from defectseg.train.checkpoint import Run

PICTURES = 4


@dataclass(frozen=True)
class Validation:
    """Metrics of a network on the validation images.

    Attributes:
        metrics: with gate, pixel threshold and minimum area.
        ungated_dice: mean Dice of the (image, class) pairs with a defect, with the pixel threshold only; None if no
            image has a defect.
    """

    metrics: Metrics
    ungated_dice: float | None

    @property
    def score(self) -> float:
        """The score that selects the best epoch: Kaggle Dice plus ungated Dice.

        Early in training the gate rejects everything, so that Kaggle Dice is the same for all epochs; ungated Dice
        still tells them apart.
        """
        return self.metrics.kaggle_dice + (self.ungated_dice or 0.0)


def validate(
    run: Run,
    network: DefectNetwork,
    *,
    thresholds: Thresholds | None = None,
    visitors: Sequence[Visitor] = (),
    views: bool = True,
) -> Validation:
    """Score a network on the validation images of a run, as `evaluate` will score the bundle.

    The images are divided among the processes.

    Args:
        run: the run.
        network: the network to score, with the run's weights or their average.
        thresholds: None: those of `run.info`.
        visitors: called with each image.
        views: whether to use the recipe's `inference.tta`, which takes several times as long.
    """
    accelerator = run.accelerator
    for buffer in network.buffers():
        broadcast(buffer)  # each process has its own batch-norm statistics; the bundle gets the main one's
    own = run.val_ids[accelerator.process_index :: accelerator.num_processes]
    settings = Settings.of(run.info, tta=None if views else "none", thresholds=thresholds)
    pixel = np.asarray(settings.thresholds.pixel, np.float32)[:, None, None]
    opened: Counts = {}

    def open_gates(scored: Scored) -> None:
        assert scored.answer is not None
        found = np.zeros_like(scored.truth)
        seen = scored.truth.any(axis=(1, 2))  # the others have no share in the score
        found[seen] = scored.answer.probabilities[seen] >= pixel[seen]
        pairs = count_pairs(scored.image_id, found, scored.truth, scored.ignore)
        opened.update({key: pair for key, pair in pairs.items() if pair.true_px})

    runtime = TorchRuntime(network, run.info, dtype=half_precision(accelerator.device))
    score = score_images(runtime, run.data, own, settings, visitors=(open_gates, *visitors), keep_answers=True)
    for one in score.unreadable:
        if one.memory_short:  # epochs that are scored on different images cannot be compared
            raise ResourceError(f"validation: {one.message}")
    metrics = summarise(dict(ChainMap(*gather_object([score.counts]))), run.info.class_names)
    defective = ChainMap(*gather_object([opened]))
    dices = [defective[key].dice for key in sorted(defective)]
    return Validation(metrics, float(np.mean(dices)) if dices else None)


class Pictures:
    """A visitor that paints label (blue) and prediction (red) of a few images, those with the most classes.

    Attributes:
        shown: ImageIds of these images.
        bgr: ImageId -> picture, uint8 (H, W, 3).
    """

    def __init__(self, data: DataFolder, image_ids: Sequence[str]) -> None:
        by_interest = sorted(image_ids, key=lambda image_id: (-len(data.classes_of(image_id)), image_id))
        self.shown = frozenset(by_interest[:PICTURES])
        self.bgr: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, scored: Scored) -> None:
        """Paint the image if it is among those shown."""
        if scored.image_id in self.shown:
            self.bgr[scored.image_id] = scored.picture()

    def log(self, accelerator: Accelerator, epoch: int) -> None:
        """Send the pictures to TensorBoard, if it is on."""
        for tracker in accelerator.trackers:
            for image_id, bgr in self.bgr.items():
                rgb = np.ascontiguousarray(bgr[None, ..., ::-1])
                tracker.log_images({f"validation/{image_id}": rgb}, step=epoch, dataformats="NHWC")
