"""How images are put to a network, and what is reported of its answers."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from defectseg.errors import UsageError
from defectseg.inference.views import VIEWS
from defectseg.model.info import ModelInfo, Thresholds


@dataclass(frozen=True)
class Settings:
    """What turns images into segmentations, besides the network.

    Attributes:
        thresholds: gate, pixel threshold and minimum area of each class.
        tile_hw: larger images are cut into overlapping tiles of this size.
        tile_overlap_px: how many pixels neighbouring tiles share at least.
        tta: test-time augmentation, a key of VIEWS.
        classes: ClassIds to report; None reports all.
    """

    thresholds: Thresholds
    tile_hw: tuple[int, int]
    tile_overlap_px: int
    tta: str = "none"
    classes: Collection[int] | None = None

    @classmethod
    def of(
        cls,
        info: ModelInfo,
        *,
        tta: str | None = None,
        thresholds: Thresholds | None = None,
        classes: Collection[int] | None = None,
    ) -> Self:
        """The settings that a model was made for; what is not None goes before them.

        Raises:
            UsageError: there is no such kind of test-time augmentation.
        """
        if tta is not None and tta not in VIEWS:
            raise UsageError(f"expected {', '.join(VIEWS)}, found {tta}.", argument="tta")
        own = info.recipe.inference
        return cls(thresholds or info.thresholds, own.tile_hw, own.tile_overlap_px, tta or own.tta, classes)
