"""What people are told about chosen thresholds before they trust them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectseg.tune.choice import ClassChoice, figures_of
from defectseg.tune.crossval import CrossValidation
from defectseg.tune.grid import Grid, Places
from defectseg.tune.sums import ImageSums

FEW_IMAGES = 10
"""A class that fewer images have is never called sure."""


def doubts_of(classes: Sequence[ClassChoice], validation: CrossValidation | None, for_dice: bool) -> list[str]:
    """Warnings of what the choice rests on; `for_dice` where the best Dice was sought, so that it may be compared."""
    doubts = []
    if validation is None:
        doubts.append("there are too few images to cross-validate: how well the thresholds do on others is not known")
    for one in classes:
        if one.images_with < FEW_IMAGES:
            number = f"only {one.images_with} of the images have" if one.images_with else "none of the images has"
            doubts.append(f"{number} {one.name}: its thresholds may not hold on others")
        if one.verdict == "defaults kept" and validation is not None:
            tuned = figures_of(validation.totals, one.class_id - 1).objective
            doubts.append(
                f"{one.name}: in cross-validation chosen thresholds score {tuned:.3f}, the defaults "
                f"{one.default.objective:.3f} (Kaggle plus positive Dice), so the defaults are kept"
            )
        elif for_dice and one.verdict == "unsure" and one.validated is not None and one.shows_no_gain:
            doubts.append(
                f"{one.name}: cross-validation does not show that its thresholds are better than the defaults "
                f"({one.validated.objective:.3f} against {one.default.objective:.3f})"
            )
    return doubts


def unknown_pairs(known: NDArray[np.bool_]) -> list[str]:
    """A warning of the pairs that were left out, where `known`, bool (N, C) over images and classes, is False."""
    left_out = int((~known).sum())
    why = "ignored pixels may hide the class there"
    return [f"{left_out} of {known.size} pairs of image and class are left out: {why}"] if left_out else []


def dropped_regions(
    images: Sequence[ImageSums], grid: Grid, places: Sequence[Places], class_names: Sequence[str]
) -> list[str]:
    """Warnings of labelled regions that the network does find, but only in regions below the minimum area."""
    warnings = []
    for index, (pixel, area, gate) in enumerate(places):
        least_px = grid.area_px[area]
        of_class = [image.regions_px[image.regions_px[:, 0] == index] for image in images]
        passed = [
            regions
            for image, regions in zip(images, of_class, strict=True)
            if image.gate[index] >= np.float32(grid.gate[gate])
        ]
        found = np.concatenate(passed) if passed else np.zeros((0, 2 + len(grid.pixel)), np.int32)
        largest_px = found[:, 2 + pixel]
        dropped_px = found[(largest_px > 0) & (largest_px < least_px), 1]
        if dropped_px.size:
            warnings.append(
                f"minimum area {least_px} px of {class_names[index]} drops {len(dropped_px)} of "
                f"{sum(map(len, of_class))} true regions, the largest of {dropped_px.max()} px"
            )
    return warnings
