"""The names of filters: only what a simple measure supports."""

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.explain.filters import NO_NAME, name_filter

SOBEL = np.outer([1, 2, 1], [-1, 0, 1])
LINE = np.outer([1, 1, 1], [-1, 2, -1])
NEXT_TO_EACH_OTHER = np.outer([1, 1, 1], [-1, 1, 0])
DIAGONAL = np.array([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]])
SPOT = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]])
DOWN = np.arange(7)[:, None] - 3
WAVE = np.exp(-(DOWN**2 + DOWN.T**2) / 6) * np.cos(1.2 * DOWN)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (SOBEL, "edge across the rows"), (SOBEL.T, "edge along the rows"), (-SOBEL, "edge across the rows"),
        (LINE, "line across the rows"), (LINE.T, "line along the rows"), (WAVE, "line along the rows"),
        (NEXT_TO_EACH_OTHER, "edge or line across the rows"),
        (SPOT, "spot"), (-SPOT, "spot"),
        (np.ones((3, 3)), "brightness"), (-np.ones((1, 1)), "brightness"), (3 + 0.1 * SOBEL, "brightness"),
        (DIAGONAL, NO_NAME), (np.zeros((3, 3)), NO_NAME),
    ],
)  # fmt: skip
def test_a_filter_is_named_by_what_it_answers_to(kernel: NDArray[np.float64], name: str) -> None:
    assert name_filter(kernel.astype(np.float32)) == name
    assert name_filter(0.01 * kernel.astype(np.float32)) == name


def test_few_random_filters_get_a_name() -> None:
    noise = np.random.default_rng(0)
    for size_px, most in ((3, 0.2), (5, 0.01), (7, 0.001)):
        kernels = noise.normal(size=(1000, size_px, size_px)).astype(np.float32)
        assert np.mean([name_filter(kernel) != NO_NAME for kernel in kernels]) <= most
