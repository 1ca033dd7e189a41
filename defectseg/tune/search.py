"""Choose each class's gate, pixel threshold and minimum area on validation images.

The search costs little arithmetic, because each image leaves behind only the pixel sums that every setting would
keep; see `sums` for these, `goals` for how a setting is chosen, `settle` for how sure that is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, PairCounts
from defectseg.evaluate.score import Scored
from defectseg.model.info import Thresholds
from defectseg.tune.choice import Choice, ClassChoice
from defectseg.tune.goals import BestDice, Goal
from defectseg.tune.grid import Grid
from defectseg.tune.settle import settle
from defectseg.tune.sums import ImageSums, sum_image

__all__ = ["Choice", "ClassChoice", "ImageSums", "ThresholdSearch"]

PIXEL_GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
AREA_GRID_PX = (0, 50, 100, 200, 400, 600, 900, 1400, 2000)
GATE_GRID = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)

LARGEST_AREA_SHARE = 0.05
"""No minimum area above this share of an image: it would throw away what the images are taken for."""
FOLDS = 5


class ThresholdSearch:
    """Gathers validation images one by one, then chooses the thresholds.

    Images are kept by ImageId, so the choice depends neither on their order nor on which process saw which.

    Args:
        class_names: item c names ClassId c + 1.
        pixel_grid: pixel thresholds to try, in [0, 1].
        area_grid_px: minimum areas to try. Those above 5 % of the largest image are not used.
        gate_grid: gates to try, in [0, 1].
    """

    def __init__(
        self,
        class_names: Sequence[str],
        pixel_grid: Sequence[float] = PIXEL_GRID,
        area_grid_px: Sequence[int] = AREA_GRID_PX,
        gate_grid: Sequence[float] = GATE_GRID,
    ) -> None:
        self.class_names = tuple(class_names)
        self.pixel_grid = tuple(sorted({float(threshold) for threshold in pixel_grid}))
        self.area_grid_px = tuple(sorted({int(area_px) for area_px in area_grid_px}))
        self.gate_grid = tuple(sorted({float(gate) for gate in gate_grid}))
        if not (self.pixel_grid and self.area_grid_px and self.gate_grid):
            raise ValueError("each grid needs at least one value")
        self.images: dict[str, ImageSums] = {}

    def add(
        self,
        image_id: str,
        probabilities: NDArray[np.float32],
        gate: NDArray[np.float32],
        truth: NDArray[np.bool_],
        ignore: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in one image.

        Args:
            image_id: its ImageId; an image taken in before is replaced.
            probabilities: float32 (C, H, W) in [0, 1].
            gate: float32 (C,) in [0, 1].
            truth: bool (C, H, W), labelled masks.
            ignore: bool (H, W), pixels that do not count, though they do belong to a component's area.

        Raises:
            ValueError: the shapes do not agree.
        """
        num_classes, size_hw = len(self.class_names), probabilities.shape[1:]
        if not (truth.shape == (num_classes, *size_hw) == probabilities.shape and gate.shape == (num_classes,)):
            raise ValueError(f"{image_id}: {probabilities.shape}, {gate.shape} and {truth.shape} do not fit together")
        if ignore is not None and ignore.shape != size_hw:
            raise ValueError(f"{image_id}: ignore has shape {ignore.shape}, the image {size_hw}")
        if ignore is None:
            ignore = np.zeros(size_hw, np.bool_)
        self.images[image_id] = sum_image(probabilities, gate, truth, ignore, self.pixel_grid, self.area_grid_px)

    def visit(self, scored: Scored) -> None:
        """Take in one image that `score_images` has just answered, from any thread; raises as `add` does."""
        assert scored.answer is not None
        self.add(scored.image_id, scored.answer.probabilities, scored.answer.gate, scored.truth, scored.ignore)

    def merge(self, images: Mapping[str, ImageSums]) -> None:
        """Take in the `images` of another search over the same classes and grids, for instance another process's."""
        self.images.update(images)

    def counts(self, thresholds: Thresholds) -> Counts:
        """The pixels of every (image, class) pair under thresholds that are in the grids. Raises ValueError for
        others.
        """
        settings = list(zip(thresholds.pixel, thresholds.min_area_px, thresholds.gate, strict=True))
        counts: Counts = {}
        for image_id, image in sorted(self.images.items()):  # threads took them in in any order
            for index, (pixel, area_px, gate) in enumerate(settings):
                place = self.pixel_grid.index(pixel), self.area_grid_px.index(area_px)
                passes = image.gate[index] >= np.float32(gate)
                predicted_px, both_px = image.kept_px[index, :, *place].tolist() if passes else (0, 0)
                true_px, unknown = int(image.true_px[index]), not image.known[index]
                counts[image_id, index + 1] = PairCounts(true_px, predicted_px, both_px, unknown)
        return counts

    def best(self, goal: Goal | None = None, *, groups: Mapping[str, str] | None = None, folds: int = FOLDS) -> Choice:
        """Choose for each class, and tell by cross-validation how sure that is.

        Args:
            goal: what to choose by; None for the best Dice.
            groups: ImageId -> group, whose images stay together in cross-validation; others stand for themselves.
            folds: of the cross-validation, at least 2.

        Raises:
            DataError: no image was taken in, or ignored pixels may hide every class in all of them.
        """
        if not any(image.known.any() for image in self.images.values()):
            why = f", since ignored pixels may hide every class in all {len(self.images)}" if self.images else ""
            raise DataError(f"There is no validation image to choose thresholds on{why}. Give the split at least one.")
        image_ids = sorted(self.images)
        images = [self.images[image_id] for image_id in image_ids]
        most_px = LARGEST_AREA_SHARE * max(image.image_px for image in images)
        areas_px = tuple(area_px for area_px in self.area_grid_px if area_px <= most_px) or self.area_grid_px[:1]
        grid = Grid(self.pixel_grid, areas_px, self.gate_grid)
        members = [(groups or {}).get(image_id, (image_id,)) for image_id in image_ids]  # a name and a 1-tuple differ
        return settle(images, grid, self.class_names, goal or BestDice(), members, folds=folds)
