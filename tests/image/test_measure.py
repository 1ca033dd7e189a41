"""What an image looks like, in numbers."""

import threading

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.image.appearance import (
    BOTH_QUARTILES,
    MEASURES,
    NUMBERS,
    OF_LIGHT,
    QUANTILES,
    RATIOS,
    SOFTENED,
    readable,
)
from defectseg.image.measure import appearance_of


def _sheet(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    fine = cv2.GaussianBlur(generator.normal(0, 30, (height, width)), (0, 0), 1.5)
    waves = 30 * np.sin(np.arange(width) / 40)[None] + 10 * np.cos(np.arange(height) / 25)[:, None]
    return np.asarray(np.clip(np.rint(120 + fine + waves), 0, 255), np.uint8)


def _slow(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The description of an image of 96 x 160 px, which has 3 x 5 tiles."""
    grey = pixels.astype(int)
    pictures = {"level": grey[::4]}
    for lag in (1, 2, 4):
        pictures[f"along_{lag}"] = abs(grey[::2, lag:] - grey[::2, :-lag])
        pictures[f"across_{lag}"] = abs(grey[lag:] - grey[:-lag])[::2]
    pictures["mixed_1"] = abs(np.diff(np.diff(grey, axis=0), axis=1))[::4]
    for name in ("half", "quarter", "eighth"):
        blocks = grey.reshape(grey.shape[0] // 2, 2, grey.shape[1] // 2, 2).sum(axis=(1, 3))
        grey = (blocks + 2) // 4
        pictures[f"along_{name}"], pictures[f"across_{name}"] = (abs(np.diff(grey, axis=axis)) for axis in (1, 0))
        pictures[f"mixed_{name}"] = abs(np.diff(np.diff(grey, axis=0), axis=1))[::4]

    def tiles(name: str) -> list[NDArray[np.int_]]:
        height, width = pictures[name].shape
        tops, lefts = ([side * part // parts for part in range(parts + 1)] for side, parts in ((height, 3), (width, 5)))
        return [pictures[name][tops[r] : tops[r + 1], lefts[c] : lefts[c + 1]] for r in range(3) for c in range(5)]

    values = {name: [tile.mean() for tile in tiles(name)] for name in pictures}
    values["deviation"] = [tile.std() for tile in tiles("level")]
    logs = {name: np.log(np.array(values[name]) + SOFTENED) for name in MEASURES}
    calm = {name: np.quantile(one, 0.05) for name, one in logs.items()}
    return np.array(
        [
            *(np.quantile(logs[name], share) for share in QUANTILES for name in MEASURES[:OF_LIGHT]),
            *(np.quantile(logs[one] - logs[other], 0.25) for one, other in RATIOS),
            *(calm[one] - calm[other] for one, other in RATIOS),
            *(np.quantile(logs[one] - logs[other], 0.75) for one, other in BOTH_QUARTILES),
            0.0,
        ]
    )


def test_the_numbers_are_those_of_a_slow_count() -> None:
    pixels = _sheet(96, 160)
    found = appearance_of(pixels)
    assert found.dtype == np.float32
    assert found.shape == (NUMBERS,) == (45,)
    np.testing.assert_allclose(found, _slow(pixels), atol=1e-4)
    assert np.abs(found - appearance_of(_sheet(96, 160, seed=1))).max() > 0.05  # of another sheet of the same steel


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2), (2, 2), (3, 500), (500, 3), (8, 8), (33, 65), (5000, 300)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_images_of_any_size_have_finite_numbers(size_hw: tuple[int, int], level: int) -> None:
    flat = np.full(size_hw, level, np.uint8)
    for pixels in (flat, np.random.default_rng(0).integers(0, 256, size_hw, np.uint8)):
        assert np.isfinite(appearance_of(pixels)).all()
    assert readable(appearance_of(flat)).brightness == pytest.approx(level, abs=0.01)
    assert readable(appearance_of(flat)).black_percent == (100 if level == 0 else 0)


def test_threads_change_no_number() -> None:
    pixels = _sheet(256, 1600)
    before, threads = appearance_of(pixels), cv2.getNumThreads()
    found: list[NDArray[np.float32]] = []
    try:
        for number in (1, 4):
            cv2.setNumThreads(number)
            workers = [threading.Thread(target=lambda: found.append(appearance_of(pixels))) for _ in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    finally:
        cv2.setNumThreads(threads)
    assert len(found) == 8
    for one in found:
        np.testing.assert_allclose(one, before, atol=1e-4)


def test_a_large_image_is_described_by_windows_as_a_small_one_of_the_same_steel() -> None:
    small, large = readable(appearance_of(_sheet(512, 1024))), readable(appearance_of(_sheet(2048, 2048)))
    np.testing.assert_allclose(small, large, rtol=0.05)


def test_black_beside_the_steel_changes_the_share_of_black_and_little_else() -> None:
    whole = _sheet(256, 1024)
    half = whole.copy()
    half[:, 500:] = 2
    without, beside = readable(appearance_of(whole[:, :500])), readable(appearance_of(half))
    assert beside.black_percent == pytest.approx(100 * 524 / 1024, abs=2)
    np.testing.assert_allclose(beside[:4], without[:4], rtol=0.03)
