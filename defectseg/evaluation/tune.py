"""Choose each class's gate, pixel threshold and minimum area on validation images.

The search costs little arithmetic, because each image leaves behind only the pixel sums that every setting would
keep, in a few hundred bytes a class; they are exactly those of the real post-processing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.config import Thresholds
from defectseg.errors import DataError
from defectseg.evaluation.metrics import dice_of

PIXEL_GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
AREA_GRID_PX = (0, 50, 100, 200, 400, 600, 900, 1400, 2000)
GATE_GRID = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)

DEFAULT_SETTING = (0.5, 0, 0.5)
"""Pixel threshold, minimum area in px, gate."""
INDIFFERENCE = 0.002
"""Objectives that lie this close are alike: a small validation set cannot tell them apart."""
LARGEST_AREA_SHARE = 0.05
"""No minimum area above this share of an image: it would throw away what the images are taken for."""

_Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """The thresholds chosen, and what each class scored with them, in [0, 2] (see `ThresholdSearch.best`)."""

    thresholds: Thresholds
    objective: tuple[float, ...]


@dataclass(frozen=True)
class ImageSums:
    """What one image adds to the search; only pixels outside the ignored area count.

    `gate` float32 (C,); `true_px` int64 (C,); `kept_px` int32 (C, 2, P, A): predicted pixels, and those of them that
    are true, which P pixel thresholds and A minimum areas keep where the gate lets the class pass; `image_px` all
    pixels of the image.
    """

    gate: NDArray[np.float32]
    true_px: _Pixels
    kept_px: NDArray[np.int32]
    image_px: int


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
        if ignore is None or not ignore.any():
            ignore = np.zeros(size_hw, np.bool_)
        else:
            truth = truth & ~ignore
        kept_px = np.stack([self._sum_class(probabilities[c], truth[c], ignore) for c in range(num_classes)])
        true_px = np.array([np.count_nonzero(mask) for mask in truth], np.int64)
        self.images[image_id] = ImageSums(gate.astype(np.float32), true_px, kept_px, ignore.size)

    def merge(self, images: Mapping[str, ImageSums]) -> None:
        """Take in the `images` of another search over the same classes and grids, for instance another process's."""
        self.images.update(images)

    def best(self) -> Choice:
        """Choose for each class on its own: the highest objective, or the setting nearest to the defaults of those
        that come within 0.002 of it.

        The objective is the mean Dice over all images plus the mean Dice over those that have the class; where
        none has it, the former alone.

        Raises:
            DataError: no image was taken in.
        """
        if not self.images:
            raise DataError("There is no validation image to choose thresholds on. Give the split at least one.")
        images = [self.images[image_id] for image_id in sorted(self.images)]
        largest_px = max(image.image_px for image in images)
        areas = sum(area_px <= LARGEST_AREA_SHARE * largest_px for area_px in self.area_grid_px) or 1
        choices = [self._choose(images, index, areas) for index in range(len(self.class_names))]
        pixel, min_area_px, gate, objective = map(tuple, zip(*choices, strict=True))
        thresholds = Thresholds(
            gate=gate, pixel=pixel, min_area_px=min_area_px, chosen_by=f"search on {len(images)} validation images"
        )
        return Choice(thresholds, objective)

    def _sum_class(
        self, probability: NDArray[np.float32], truth: NDArray[np.bool_], ignore: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """The sums (2, P, A) of one class; 0 from the first threshold that no pixel reaches."""
        kept_px = np.zeros((2, len(self.pixel_grid), len(self.area_grid_px)), np.int32)
        window = _window(probability, self.pixel_grid[0])
        if window is None:
            return kept_px
        probability, truth, ignore = probability[window], truth[window], ignore[window]
        for row, threshold in enumerate(self.pixel_grid):
            mask = probability >= np.float32(threshold)
            if not mask.any():
                break
            kept_px[:, row] = _kept_px(mask, truth, ignore, self.area_grid_px)
        return kept_px

    def _choose(self, images: Sequence[ImageSums], index: int, areas: int) -> tuple[float, int, float, float]:
        """Pixel threshold, minimum area, gate and objective of class `index`, of the first `areas` minimum areas."""
        true_px = np.array([image.true_px[index] for image in images])
        kept_px = np.array([image.kept_px[index, :, :, :areas] for image in images], np.int64)
        passes = np.array([image.gate[index] for image in images])[:, None] >= np.array(self.gate_grid, np.float32)
        objective = _objective(true_px, kept_px[:, 0], kept_px[:, 1], passes)
        grids = (self.pixel_grid, self.area_grid_px[:areas], self.gate_grid)
        distances = (_steps_from(grid, value) for grid, value in zip(grids, DEFAULT_SETTING, strict=True))
        steps = np.asarray(sum(np.ix_(*distances)))
        alike = objective >= objective.max() - INDIFFERENCE
        nearest = alike & (steps == steps[alike].min())
        chosen = int(np.argmax(np.where(nearest, objective, -1.0)))
        pixel, area, gate = np.unravel_index(chosen, objective.shape)
        return self.pixel_grid[pixel], self.area_grid_px[area], self.gate_grid[gate], float(objective.flat[chosen])


def _objective(
    true_px: _Pixels, predicted_px: _Pixels, both_px: _Pixels, passes: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Objective (P, A, G) of one class, from (N,), (N, P, A), (N, P, A) and bool (N, G)."""
    if_passed = dice_of(true_px[:, None, None], predicted_px, both_px)
    if_stopped = (true_px == 0).astype(np.float64)

    def mean_over(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        passed = np.einsum("npa,ng->pag", if_passed[chosen], passes[chosen], optimize=True)
        return np.asarray((passed + if_stopped[chosen] @ ~passes[chosen]) / chosen.sum())

    objective = mean_over(np.ones(len(true_px), np.bool_))
    return objective + mean_over(true_px > 0) if true_px.any() else objective


def _kept_px(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_], area_grid_px: Sequence[int]
) -> NDArray[np.float64]:
    """Pixels that do not count as ignored, and true ones, in the components that reach each minimum area: (2, A)."""
    # Counting labels here is three times as quick as OpenCV's own statistics.
    components, label_map = cv2.connectedComponentsWithAlgorithm(
        mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S, ccltype=cv2.CCL_SPAGHETTI
    )
    labels = np.asarray(label_map).reshape(mask.shape)
    areas_px, ignored_px, both_px = (
        np.bincount(labels[pixels], minlength=components) for pixels in (mask, ignore, truth)
    )
    counted_px = areas_px - ignored_px
    # How many of the minimum areas each component reaches; label 0 is the background.
    met = np.searchsorted(area_grid_px, areas_px[1:], side="right")
    by_met = [np.bincount(met, px[1:], minlength=len(area_grid_px) + 1) for px in (counted_px, both_px)]
    return np.stack([px[:0:-1].cumsum()[::-1] for px in by_met])


def _window(probability: NDArray[np.float32], threshold: float) -> tuple[slice, slice] | None:
    """The smallest window that holds every pixel >= threshold; None where there is none."""
    mask = probability >= np.float32(threshold)
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _steps_from(grid: Sequence[float], value: float) -> NDArray[np.int64]:
    """How many places each value of the grid lies from the one that is nearest to `value`."""
    nearest = int(np.argmin(np.abs(np.asarray(grid) - value)))
    return np.abs(np.arange(len(grid)) - nearest)
