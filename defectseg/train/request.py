"""What a training is asked for, and what it comes to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from defectseg.config import Recipe
from defectseg.evaluate.metrics import Metrics
from defectseg.image.read import LowBitDepth
from defectseg.model.info import Thresholds


@dataclass(frozen=True)
class TrainRequest:
    """What `defectseg train` was asked for.

    Attributes:
        recipe: the resolved recipe, the fold among it; on resuming, that of the run folder counts.
        data: data folder.
        out: run folder.
        device: auto, cpu, cuda, cuda:N or mps.
        init: a bundle to start from, or None.
        thresholds: of the model to be; None to choose them on the validation images, or for the defaults.
        resume: continue the run in `out`.
        advance: called after each step with (steps done, steps planned, a line of text).
    """

    recipe: Recipe
    data: Path
    out: Path
    device: str = "auto"
    init: Path | None = None
    thresholds: Thresholds | None = None
    resume: bool = False
    advance: Callable[[int, int, str], None] = lambda done, total, text: None


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        model: the bundle.
        metrics: with its thresholds, on images held out; None where there are none.
        failed: (ImageId, reason) of the images left out.
        held_out: for people: which images the metrics are of.
        low_bit_depth: set where most 16-bit images seem to come from a camera of fewer bits.
    """

    model: Path
    metrics: Metrics | None
    failed: tuple[tuple[str, str], ...]
    held_out: str = "Validation images, with the thresholds that were chosen on them"
    low_bit_depth: LowBitDepth | None = None
