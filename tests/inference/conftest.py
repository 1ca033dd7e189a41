"""A runtime whose answer a test chooses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.inference.settings import Settings
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer


class FakeRuntime:
    """A Runtime whose probabilities (C, h, w) a function makes of a tile uint8 (h, w); the gate is their maximum.

    The function may give an Answer, too.

    Attributes:
        tiles: copies of those that it was called with.
    """

    name = "fake"

    def __init__(
        self,
        answer: Callable[[NDArray[np.uint8]], Any],
        num_classes: int = 1,
        *,
        tile_hw: tuple[int, int] = (1024, 2048),
        overlap_px: int = 0,
        parallel: int = 1,
    ) -> None:
        self.class_names = tuple(f"class {index + 1}" for index in range(num_classes))
        self.settings = Settings(Thresholds.default(num_classes), tile_hw, overlap_px)
        self.answer = answer
        self.parallel, self.batch_px = parallel, 0
        self.tiles: list[NDArray[np.uint8]] = []

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        self.tiles.append(images[0, 0].copy())
        answer = self.answer(images[0, 0])
        if isinstance(answer, Answer):
            return answer
        probabilities = np.asarray(answer, np.float32)[None]
        return Answer(probabilities, probabilities.max(axis=(2, 3)))


@pytest.fixture(scope="session")
def fake_runtime() -> type[FakeRuntime]:
    return FakeRuntime


def contradicting(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Three classes that follow the grey level and the tile as a whole, so that tiles contradict each other."""
    mood = np.float32(int(tile.astype(np.int64).sum()) % 7 / 7)
    level = tile.astype(np.float32) / 255
    return np.stack([level, 1 - level, np.maximum(level, mood)])


@pytest.fixture(scope="session")
def contradicting_runtime() -> Callable[..., FakeRuntime]:
    """Makes a FakeRuntime of three classes whose answers for overlapping tiles contradict each other."""
    return lambda **options: FakeRuntime(contradicting, 3, **options)


@pytest.fixture(scope="session")
def few_levels() -> Callable[[tuple[int, int], int], NDArray[np.uint8]]:
    """Makes images of few grey levels, so that classes tie and regions have some size."""
    levels = np.array([0, 30, 128, 200, 255], np.uint8)
    return lambda size_hw, seed: np.random.default_rng(seed).choice(levels, size_hw, p=[0.1, 0.3, 0.3, 0.2, 0.1])
