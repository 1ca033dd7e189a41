import numpy as np
from numpy.typing import NDArray

from defectseg.copies.descriptors import Descriptors, describe
from defectseg.copies.strips import find_neighbours
from defectseg.data.synthetic import make_sheet

Image = NDArray[np.uint8]


def frames(index: int, count: int, overlap_px: int = 8) -> list[Image]:
    """Frames of 128 x 800 px that follow one another on one strip, each with the last rows of the one before."""
    step = 128 - overlap_px
    strip = make_sheet(11, index, (step * count + overlap_px, 800)).image
    return [strip[start : start + 128] for start in range(0, step * count, step)]


def neighbours(pictures: list[Image]) -> list[tuple[int, int]]:
    descriptors = Descriptors(len(pictures))
    for index, picture in enumerate(pictures):
        descriptors[index] = describe(picture)
    return [(one.first, one.second) for one in find_neighbours(descriptors)]


def test_frames_that_follow_one_another_are_neighbours() -> None:
    pictures = [*frames(0, 3), *frames(1, 3)]
    assert neighbours(pictures) == [(0, 1), (1, 2), (3, 4), (4, 5)]


def test_order_of_the_frames_does_not_matter() -> None:
    first, second, third = frames(0, 3)
    assert neighbours([third, first, second]) == [(0, 2), (1, 2)]


def test_standing_frames_are_compared_along_their_longer_side() -> None:
    assert neighbours([np.ascontiguousarray(frame.T) for frame in frames(0, 3)]) == [(0, 1), (1, 2)]


def test_streaks_along_both_images_tell_one_strip() -> None:
    rng = np.random.default_rng(5)
    streaks = rng.normal(110, 12, 800)

    def frame(streaked: bool) -> Image:
        grain = rng.normal(0, 10, (128, 800))
        return np.clip((streaks if streaked else rng.normal(110, 12, 800)) + grain, 0, 255).astype(np.uint8)

    assert neighbours([frame(True), frame(False), frame(True), frame(False)]) == [(0, 2)]


def test_unlike_sheets_dark_ones_and_short_ones_are_no_neighbours() -> None:
    unlike = [make_sheet(12, index, (128, 800)).image for index in range(40)]
    assert neighbours(unlike) == []
    assert neighbours([frame // 16 for frame in frames(0, 2)]) == []
    assert neighbours([frame[:, :300] for frame in frames(0, 2)]) == []
