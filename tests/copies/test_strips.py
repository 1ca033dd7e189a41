from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.copies import strips
from defectseg.copies.descriptors import Descriptors
from defectseg.copies.strips import find_neighbours
from defectseg.data.synthetic import make_sheet

Image = NDArray[np.uint8]
Neighbours = Callable[[Sequence[Image]], list[tuple[int, int]]]


def frames(index: int, count: int, overlap_px: int = 8) -> list[Image]:
    """Frames of 128 x 800 px that follow one another on one strip, each with the last rows of the one before."""
    step = 128 - overlap_px
    strip = make_sheet(11, index, (step * count + overlap_px, 800)).image
    return [strip[start : start + 128] for start in range(0, step * count, step)]


@pytest.fixture
def neighbours(describe_pictures: Callable[..., Descriptors]) -> Neighbours:
    """Finds the pairs of pictures that look like one strip."""
    return lambda pictures: list(find_neighbours(describe_pictures(pictures)))


def test_frames_that_follow_one_another_are_neighbours_in_any_order(neighbours: Neighbours) -> None:
    first, second, third = frames(0, 3)
    pictures = [third, first, second, *frames(1, 3)]
    assert neighbours(pictures) == [(0, 2), (1, 2), (3, 4), (4, 5)]
    assert neighbours([np.ascontiguousarray(frame.T) for frame in pictures]) == [(0, 2), (1, 2), (3, 4), (4, 5)]


def test_streaks_along_both_images_identify_one_strip(neighbours: Neighbours) -> None:
    rng = np.random.default_rng(5)
    streaks = rng.normal(110, 12, 800)

    def frame(streaked: bool) -> Image:
        grain = rng.normal(0, 10, (128, 800))
        return np.clip((streaks if streaked else rng.normal(110, 12, 800)) + grain, 0, 255).astype(np.uint8)

    assert neighbours([frame(True), frame(False), frame(True), frame(False)]) == [(0, 2)]


def test_unlike_sheets_dark_ones_and_short_ones_are_no_neighbours(neighbours: Neighbours) -> None:
    unlike = [make_sheet(12, index, (128, 800)).image for index in range(20)]
    assert neighbours(unlike) == []
    light = 80 * np.sin(np.linspace(0, np.pi, 800))
    assert neighbours([np.clip(image * 0.5 + light, 0, 255).astype(np.uint8) for image in unlike[:6]]) == []
    assert neighbours([frame // 16 for frame in frames(0, 2)]) == []
    assert neighbours([frame[:, :300] for frame in frames(0, 2)]) == []


def test_every_block_of_pairs_is_compared(
    describe_pictures: Callable[..., Descriptors], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = describe_pictures([*frames(0, 4), *(frame[:, :300] for frame in frames(2, 3)), *frames(1, 3)])
    at_once = find_neighbours(described)
    assert list(at_once) == [(0, 1), (1, 2), (2, 3), (7, 8), (8, 9)]
    monkeypatch.setattr(strips, "_BLOCK", 3)
    in_blocks = find_neighbours(described)
    assert list(in_blocks) == list(at_once)
    assert in_blocks == pytest.approx(at_once, abs=1e-5)


def test_score_is_the_larger_correlation_of_seam_and_profile() -> None:
    descriptors, one, other = Descriptors(4), np.eye(400)[0], np.eye(400)[1]
    for image, part, profile in (
        *((0, 1, one), (1, 0, 0.5 * one)),  # the bottom of 0 and the top of 1
        *(
            (3, 1, other),
            (2, 0, 0.39 * one + 0.41 * other),
        ),  # the bottom of 3 and the top of 2, which is too little like 0
        *((0, 2, other), (1, 2, 0.75 * other), (3, 2, 0.44 * other)),  # the whole of 0, 1 and 3
    ):
        descriptors.strip[image, part] = profile
    found = [(*pair, round(score, 2)) for pair, score in find_neighbours(descriptors).items()]
    assert found == [(0, 1, 0.75), (2, 3, 0.41)]
