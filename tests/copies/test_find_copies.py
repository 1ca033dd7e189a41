from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.copies.descriptors import TURNS, Descriptors, describe, turned, turned_back
from defectseg.copies.find import Copy, find_copies
from defectseg.data.synthetic import make_sheet

Image = NDArray[np.uint8]


def descriptors_of(pictures: Sequence[Image]) -> Descriptors:
    descriptors = Descriptors(len(pictures))
    for index, picture in enumerate(pictures):
        descriptors[index] = describe(picture)
    return descriptors


def sheets(count: int, size_hw: tuple[int, int] = (160, 160), seed: int = 1) -> list[Image]:
    return [make_sheet(seed, index, size_hw).image for index in range(count)]


def jpeg(image: Image, quality: int) -> Image:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def lit(image: NDArray[Any], gain: float, offset: float = 0) -> Image:
    return np.clip(np.rint(image.astype(np.float64) * gain + offset), 0, 255).astype(np.uint8)


def resized(image: Image, factor: float) -> Image:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def blend(one: Image, other: Image, share: float) -> Image:
    return np.clip(np.rint(share * one.astype(np.float64) + (1 - share) * other), 0, 255).astype(np.uint8)


def pairs(copies: Sequence[Copy]) -> list[tuple[int, int]]:
    return [(copy.first, copy.second) for copy in copies]


@pytest.mark.parametrize("turn", TURNS)
def test_turned_copies_are_found_with_their_turn(turn: str) -> None:
    originals = sheets(8)
    changed = [turned(image, turn) for image in originals]
    copies = find_copies(descriptors_of(changed), descriptors_of(originals))
    assert pairs(copies) == [(index, index) for index in range(8)]
    assert {copy.turn for copy in copies} == {turn}
    assert min(copy.score for copy in copies) > 0.97


CHANGES: dict[str, Callable[[Image], Image]] = {
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 50": lambda image: jpeg(image, 50),
    "brighter": lambda image: lit(image, 1.2),
    "darker": lambda image: lit(image, 0.8),
    "flatter": lambda image: lit(image, 0.5, 60),
    "smaller": lambda image: resized(image, 0.9),
    "larger": lambda image: resized(image, 1.1),
    "turned, JPEG 50": lambda image: jpeg(turned(image, "90"), 50),
    "mirrored, smaller, brighter, JPEG 75": lambda image: jpeg(lit(resized(turned(image, "mirror"), 0.95), 1.2), 75),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_copies_are_found_and_nothing_else(change: Callable[[Image], Image]) -> None:
    originals = sheets(12)
    copies = find_copies(descriptors_of([change(image) for image in originals]), descriptors_of(originals))
    assert pairs(copies) == [(index, index) for index in range(12)]
    assert min(copy.score for copy in copies) > 0.4


@pytest.mark.parametrize("size_hw", [(160, 160), (64, 128), (64, 400)])
def test_unlike_sheets_are_no_copies(size_hw: tuple[int, int]) -> None:
    assert find_copies(descriptors_of(sheets(40, size_hw))) == []


def flat_steel(index: int) -> Image:
    """Nothing but a slow drift of light, the same in all, and fine grain of 2.5 levels."""
    grain = cv2.GaussianBlur(np.random.default_rng([9, index]).standard_normal((160, 160)), (0, 0), 1)
    return lit(np.full((160, 160), 120) + 20 * np.linspace(-1, 1, 160) + 2.5 * grain / grain.std(), 1)


def test_flat_steel_is_no_copy_of_flat_steel_but_of_itself() -> None:
    flats = [flat_steel(index) for index in range(30)]
    plain = [resized(image, 0.1).ravel() for image in flats]
    assert float(np.corrcoef(plain).min()) > 0.97, "plain thumbnails take them for the same"
    copies = find_copies(descriptors_of([*flats, jpeg(turned(flats[3], "180"), 75)]))
    assert [(copy.first, copy.second, copy.turn) for copy in copies] == [(3, 30, "180")]


def chequer_plate(index: int) -> Image:
    """A pattern of raised bars that is the same, and in phase, on all; only the grain is not."""
    y, x = np.mgrid[:160, :160]
    bars = 30 * (np.sin(2 * np.pi * (x + y) / 20) > 0.8) + 30 * (np.sin(2 * np.pi * (x - y) / 20) > 0.8)
    return lit(90 + bars + 5 * np.random.default_rng([8, index]).standard_normal((160, 160)), 1)


def test_chequer_plates_in_phase_are_no_copies() -> None:
    plates = [chequer_plate(index) for index in range(12)]
    copies = find_copies(descriptors_of([*plates, jpeg(lit(plates[5], 0.8), 75)]))
    assert (5, 12) in pairs(copies)
    assert len(copies) == 1


def test_blend_is_reported_with_both_images_that_are_in_it() -> None:
    originals = sheets(10)
    mixed = [blend(originals[0], originals[1], 0.5), blend(turned(originals[2], "90"), originals[3], 0.6)]
    copies = find_copies(descriptors_of(mixed), descriptors_of(originals))
    assert [(copy.first, copy.second, copy.turn) for copy in copies] == [
        (0, 0, "0"),
        (0, 1, "0"),
        (1, 2, "90"),
        (1, 3, "0"),
    ]
    assert all(0.2 < copy.score < 0.95 for copy in copies)


def test_a_slightly_shifted_cut_is_found_with_its_shift() -> None:
    wide = make_sheet(3, 0, (192, 192)).image
    first, second = wide[20:148, 30:158], wide[22:150, 29:157]
    (copy,) = find_copies(descriptors_of([first]), descriptors_of([second]))
    assert copy.shift == (2, -1), "what lies at row 0 of the second lies at row 2 of the first"
    assert copy.score > 0.95


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("size_hw", [(128, 160), (160, 128)])
def test_pairs_within_a_set_name_the_earlier_image_first(turn: str, size_hw: tuple[int, int]) -> None:
    """The search sorts images by shape, so that it meets a lying second image before a standing first one."""
    height, width = size_hw
    large = make_sheet(3, 1, (224, 224)).image
    first = large[20 : 20 + height, 30 : 30 + width]
    second = turned(large[22 : 22 + height, 29 : 29 + width], turned_back(turn))
    (copy,) = find_copies(descriptors_of([first, second]))
    (same,) = find_copies(descriptors_of([first]), descriptors_of([second]))
    assert (copy.first, copy.second, copy.turn) == (0, 1, turn)
    assert copy.shift == same.shift
    # 2 px down, 1 px left, in cells of 128/height and 128/width px, to the nearest cell
    assert abs(copy.shift[0] - 2 * 128 / height) < 1
    assert abs(copy.shift[1] + 1 * 128 / width) < 1


def test_lying_image_is_a_copy_of_a_standing_one() -> None:
    originals = sheets(6, (96, 240))
    copies = find_copies(descriptors_of(originals), descriptors_of([turned(image, "90") for image in originals]))
    assert [(copy.first, copy.second, copy.turn) for copy in copies] == [(index, index, "270") for index in range(6)]


def test_both_directions_find_the_same_pairs() -> None:
    originals = sheets(6)
    changed = [turned(image, "90") for image in originals[2:]]
    there = find_copies(descriptors_of(changed), descriptors_of(originals))
    back = find_copies(descriptors_of(originals), descriptors_of(changed))
    assert pairs(there) == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert sorted((copy.second, copy.first) for copy in back) == pairs(there)
    assert {copy.turn for copy in there} == {"90"}
    assert {copy.turn for copy in back} == {"270"}


def test_black_and_blank_images_are_copies_of_none() -> None:
    blank = [np.zeros((160, 160), np.uint8)] * 3 + [np.full((160, 160), 200, np.uint8)] * 3
    assert find_copies(descriptors_of([*blank, *sheets(2)])) == []
    assert find_copies(descriptors_of(blank), descriptors_of(blank)) == []


def test_tiny_images_are_copies_only_where_they_are_identical() -> None:
    tiny = [np.random.default_rng(index).integers(0, 250, (5, 7), np.uint8) for index in range(4)]
    assert find_copies(descriptors_of([*tiny, tiny[2]])) == [Copy(2, 4, "0", 1.0)]
    assert find_copies(descriptors_of(tiny[:2]), descriptors_of([tiny[3], tiny[1]])) == [Copy(1, 1, "0", 1.0)]


def test_all_pairs_of_a_small_group_and_enough_of_a_large_one_are_listed() -> None:
    one, other = sheets(2)
    assert pairs(find_copies(descriptors_of([one, other, one, jpeg(one, 75), one]))) == [
        (0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4),
    ]  # fmt: skip
    many = find_copies(descriptors_of([one] * 70 + [other]))
    assert pairs(many) == [(0, index) for index in range(1, 70)]
    across = find_copies(descriptors_of([one] * 70), descriptors_of([other, *[one] * 70]))
    assert {copy.first for copy in across} == set(range(70))
    assert {copy.second for copy in across} == set(range(1, 71))


def test_large_groups_of_unequal_copies_stay_connected() -> None:
    image = sheets(1)[0]
    changed = [lit(image, 0.7 + index / 200) for index in range(90)]
    copies = find_copies(descriptors_of(changed))
    seen = {0}
    for copy in sorted(copies):
        if copy.first in seen or copy.second in seen:
            seen |= {copy.first, copy.second}
    assert seen == set(range(90))


def test_progress_ends_at_its_total() -> None:
    steps: list[tuple[int, int]] = []
    find_copies(descriptors_of(sheets(3)), progress=lambda done, of, text="": steps.append((done, of)))
    assert steps == [(1, 1)]


def test_an_empty_set_has_no_copies() -> None:
    assert find_copies(Descriptors(0)) == []
    assert find_copies(Descriptors(0), descriptors_of(sheets(1))) == []
