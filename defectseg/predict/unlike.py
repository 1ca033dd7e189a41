"""Which images look unlike those that the model was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.image.appearance import NUMBERS, readable
from defectseg.model.appearance import Appearance, comparable
from defectseg.predict.tables import STATUS_DEFECT, Record


def judged(
    appearance: Sequence[float] | NDArray[np.float32], trained: Appearance | None, *, has_defect: bool
) -> dict[str, str]:
    """The cells of images.csv for `unlike`, `differs` and the readable numbers, as far as they are known.

    Args:
        appearance: of the image, (45,), or none.
        trained: how the training images look.
        has_defect: whether a defect was found in the image.
    """
    if not len(appearance):
        return {}
    cells = {name: f"{number:.1f}" for name, number in readable(appearance)._asdict().items()}
    if trained is not None:
        distance = trained.distance(appearance, has_defect=has_defect)
        cells["unlike"] = f"{trained.rank(distance):.4f}"
        if trained.is_unlike(distance):
            cells["differs"] = trained.in_words(appearance, has_defect=has_defect)
    return cells


def trained_of(run: Mapping[str, Any]) -> Appearance | None:
    """How the training images look, by the content of run.json. Raises ValueError if that is damaged."""
    return comparable(Appearance.model_validate(run["training"])) if run.get("training") else None


class Unlike:
    """Counts the flagged images of an output folder, and tells what is different about their mean."""

    def __init__(self, trained: Appearance | None) -> None:
        self._trained = trained
        self._images = 0
        self._with_defect = 0
        self._sum = np.zeros(NUMBERS)

    def add(self, record: Record) -> None:
        """Count an image, if it is flagged."""
        if record.image.get("differs") and record.appearance:
            self._images += 1
            self._with_defect += record.status == STATUS_DEFECT
            self._sum += record.appearance

    def told(self) -> dict[str, Any]:
        """The entry `unlike` of run.json: whether images are judged, how many are flagged, and what is different."""
        if self._trained is None:
            return {"state": "not judged", "images": 0, "differs": ""}
        differs = ""
        if self._images:
            mean = self._sum / self._images
            differs = self._trained.in_words(mean, has_defect=self._with_defect / self._images)
        return {"state": self._trained.state, "images": self._images, "differs": differs}
