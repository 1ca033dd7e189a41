"""The thresholds that a search settles on, with what they score and how far that can be trusted."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import Interval
from defectseg.model.info import Thresholds
from defectseg.tune.grid import Totals


@dataclass(frozen=True)
class Figures:
    """What one class or all together score, in [0, 1]; None where no image has the class, or all have it.

    Images in which ignored pixels may hide the class are left out; `kaggle_dice` is None where these are all.
    `recall` is the share of the images with the class in which some predicted pixel is true, `false_alarms` that of the
    images without it in which some pixel is predicted.
    """

    kaggle_dice: float | None
    positive_dice: float | None
    recall: float | None
    false_alarms: float | None

    @property
    def objective(self) -> float:
        """Kaggle Dice plus positive Dice, in [0, 2]; the former alone where no image has the class."""
        return (self.kaggle_dice or 0.0) + (self.positive_dice or 0.0)


@dataclass(frozen=True)
class ClassChoice:
    """The setting of one class.

    Attributes:
        class_id: from 1.
        name: of the class.
        images_with: number of images that have it.
        gate, pixel, min_area_px: the setting.
        default, chosen: figures of the defaults and of the setting, on the images it was chosen on.
        validated: what the way of choosing scores on images left out; None where there were too few to leave any out.
        validated_interval: 95 % interval of its objective.
        agreement: share of the choices made in cross-validation that are the same or neighbouring settings.
        verdict: stable, unsure, defaults (they are the best), or defaults kept (against the best).
    """

    class_id: int
    name: str
    images_with: int
    gate: float
    pixel: float
    min_area_px: int
    default: Figures
    chosen: Figures
    validated: Figures | None
    validated_interval: Interval | None
    agreement: float | None
    verdict: str

    @property
    def shows_no_gain(self) -> bool:
        """Whether cross-validation fails to show that the setting scores higher than the defaults."""
        return self.validated is None or self.validated.objective <= self.default.objective


@dataclass(frozen=True)
class Choice:
    """The thresholds of all classes; figures as in ClassChoice.

    Attributes:
        thresholds: one value for each class.
        objective: of each class on the images it was chosen on, in [0, 2].
        images: number of images.
        goal: what was sought, for people.
        folds: of the cross-validation; 0 where there was none.
        gain: objective in cross-validation less that of the defaults, in [-2, 2].
        warnings: for people.
    """

    thresholds: Thresholds
    objective: tuple[float, ...]
    images: int
    goal: str
    folds: int
    classes: tuple[ClassChoice, ...]
    default: Figures
    chosen: Figures
    validated: Figures | None
    validated_interval: Interval | None
    gain: float | None
    gain_interval: Interval | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and None, ready for `json.dumps`."""
        return {**asdict(self), "thresholds": self.thresholds.model_dump(mode="json")}


def figures_of(totals: Totals, index: int | None = None) -> Figures:
    """Figures of one class, or of all together, from totals of arrays (C,)."""
    chosen = slice(None) if index is None else slice(index, index + 1)
    positives = totals.positives[chosen]
    pairs, with_defect = int(totals.images[chosen].sum()), int(positives.sum())

    def share(values: NDArray[np.float64], whole: int) -> float | None:
        return float(values[chosen].sum()) / whole if whole else None

    return Figures(
        kaggle_dice=share(totals.dice, pairs),
        positive_dice=share(totals.positive_dice, with_defect),
        recall=share(totals.hits, with_defect),
        false_alarms=share(totals.alarms, pairs - with_defect),
    )
