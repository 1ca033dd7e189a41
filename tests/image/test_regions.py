import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defectseg.image.regions import Region, find_regions


def slow_regions(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Flood fill over the eight neighbours; pixels as (row, column)."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    found = []
    while left:
        pixels, waiting = set(), [left.pop()]
        while waiting:
            row, column = waiting.pop()
            pixels.add((row, column))
            for neighbour in {(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left:
                left.remove(neighbour)
                waiting.append(neighbour)
        found.append(pixels)
    return found


def test_regions_that_touch_at_a_corner_are_one_and_the_largest_comes_first() -> None:
    mask = np.array(
        [
            [1, 0, 0, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 0, 0],
        ],
        np.bool_,
    )
    probabilities = np.zeros((4, 5), np.float32)
    probabilities[0, 0] = 0.75
    probabilities[1, 3], probabilities[2, 2], probabilities[3, 2] = 0.5, 0.25, 0.75
    kept, found = find_regions(mask, class_id=3, probabilities=probabilities)
    assert found == [
        Region(3, 3, (2, 1, 2, 3), (pytest.approx(7 / 3), 2.0), pytest.approx(0.5)),  # type: ignore[arg-type]
        Region(3, 1, (0, 0, 1, 1), (0.0, 0.0), 0.75),
    ]
    np.testing.assert_array_equal(kept, mask)


@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=10)),
    st.integers(0, 6),
    st.booleans(),
)
def test_regions_agree_with_a_flood_fill(mask: NDArray[np.bool_], min_area_px: int, fortran: bool) -> None:
    probabilities = np.random.default_rng(0).random(mask.shape, dtype=np.float32)
    wanted_mask, before = np.zeros_like(mask), mask.copy()
    wanted = []
    for pixels in slow_regions(mask):
        if len(pixels) < min_area_px:
            continue
        rows, columns = np.array(sorted(pixels)).T
        wanted_mask[rows, columns] = True
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        wanted.append((len(pixels), box, (columns.mean(), rows.mean()), probabilities[rows, columns].mean()))
    wanted.sort(key=lambda region: (-region[0], region[1][1], region[1][0]))

    kept, found = find_regions(
        np.asfortranarray(mask) if fortran else mask,
        class_id=2,
        probabilities=probabilities,
        min_area_px=min_area_px,
    )
    np.testing.assert_array_equal(kept, wanted_mask)
    np.testing.assert_array_equal(mask, before)
    assert sorted((region.area_px, region.box_xywh) for region in found) == sorted((w[0], w[1]) for w in wanted)
    assert [region.area_px for region in found] == [w[0] for w in wanted]
    centroids = [region.centroid_xy for region in found]
    np.testing.assert_allclose(np.array(sorted(centroids)), np.array(sorted(w[2] for w in wanted)))
    assert sorted(region.score for region in found) == pytest.approx(sorted(w[3] for w in wanted), abs=1e-6)


def test_more_regions_than_sixteen_bits_can_number() -> None:
    mask = np.zeros((512, 512), np.bool_)
    mask[::2, ::2] = True
    _, found = find_regions(mask, class_id=1)
    assert len(found) == 65_536
    assert math.isnan(found[0].score), "without probabilities"
