"""How images are presented to a network, and how its answers become results."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from defectseg.errors import UsageError
from defectseg.inference.views import VIEWS
from defectseg.model.appearance import Appearance, comparable
from defectseg.model.info import ModelInfo, Thresholds


@dataclass(frozen=True)
class Settings:
    """Everything besides the network that a segmentation depends on.

    Attributes:
        thresholds: gate, pixel threshold and minimum area of each class; no pixel reaches that of an unwanted class.
        tile_hw: larger images are cut into overlapping tiles of this size.
        tile_overlap_px: least overlap of neighbouring tiles.
        tta: test-time augmentation, a key of VIEWS.
        bit_depth: bits of the values of 16-bit images, 9 to 16; None: as a tag of the file says.
        model_bit_depth: what the model was trained with, used if neither is known. None: 16.
        appearance: how the training images look, for `predict` to compare; None: not known.
    """

    thresholds: Thresholds
    tile_hw: tuple[int, int]
    tile_overlap_px: int
    tta: str = "none"
    bit_depth: int | None = None
    model_bit_depth: int | None = None
    appearance: Appearance | None = None

    @classmethod
    def of(
        cls,
        info: ModelInfo,
        *,
        tta: str | None = None,
        thresholds: Thresholds | None = None,
        classes: Collection[int] | None = None,
        bit_depth: int | None = None,
    ) -> Self:
        """The settings in a model file; arguments that are not None override them. `classes`: ClassIds to report.

        Raises:
            UsageError: unknown test-time augmentation, or a bit depth below 9 or above 16.
        """
        if bit_depth is not None and not 9 <= bit_depth <= 16:
            raise UsageError(f"expected 9 to 16, found {bit_depth}.", argument="bit_depth")
        if tta is not None and tta not in VIEWS:
            raise UsageError(f"expected {', '.join(VIEWS)}, found {tta}.", argument="tta")
        thresholds = thresholds or info.thresholds
        if classes is not None:
            least = [value if index + 1 in classes else math.inf for index, value in enumerate(thresholds.pixel)]
            thresholds = thresholds.model_copy(update={"pixel": tuple(least)})
        own = info.recipe.inference
        return cls(
            thresholds=thresholds,
            tile_hw=own.tile_hw,
            tile_overlap_px=own.tile_overlap_px,
            tta=tta or own.tta,
            bit_depth=bit_depth,
            model_bit_depth=info.recipe.data.bit_depth,
            appearance=comparable(info.appearance),
        )
