from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.copies.descriptors import TURNS, Descriptors, turned, turned_back
from defectseg.copies.find import Copy, DisjointSets, find_copies
from defectseg.data.synthetic import make_sheet

Image = NDArray[np.uint8]


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


@pytest.fixture
def search(describe_pictures: Callable[..., Descriptors]) -> Callable[..., list[Copy]]:
    """Finds the copies among pictures, or between two lists of them."""

    def find(pictures: Sequence[Image], others: Sequence[Image] | None = None) -> list[Copy]:
        return find_copies(describe_pictures(pictures), None if others is None else describe_pictures(others))

    return find


Search = Callable[..., list[Copy]]

CHANGES: dict[str, Callable[[Image], Image]] = {
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
def test_changed_copies_are_found_and_nothing_else(search: Search, change: Callable[[Image], Image]) -> None:
    originals = sheets(8)
    copies = search([change(image) for image in originals], originals)
    assert pairs(copies) == [(index, index) for index in range(8)]
    assert min(copy.score for copy in copies) > 0.4


@pytest.mark.parametrize(("size_hw", "count"), [((160, 160), 25), ((64, 400), 25)])
def test_unlike_sheets_are_no_copies(search: Search, size_hw: tuple[int, int], count: int) -> None:
    assert search(sheets(count, size_hw)) == []


def flat_steel(index: int) -> Image:
    """Nothing but a slow drift of light, the same in all, and fine grain of 2.5 levels."""
    grain = cv2.GaussianBlur(np.random.default_rng([9, index]).standard_normal((160, 160)), (0, 0), 1)
    return lit(np.full((160, 160), 120) + 20 * np.linspace(-1, 1, 160) + 2.5 * grain / grain.std(), 1)


def test_flat_steel_is_no_copy_of_flat_steel_but_of_itself(search: Search) -> None:
    flats = [flat_steel(index) for index in range(20)]
    plain = [resized(image, 0.1).ravel() for image in flats]
    assert float(np.corrcoef(plain).min()) > 0.97, "plain thumbnails take them for the same"
    copies = search([*flats, jpeg(turned(flats[3], "180"), 75)])
    assert [(copy.first, copy.second, copy.turn) for copy in copies] == [(3, 20, "180")]


def chequer_plate(index: int) -> Image:
    """A pattern of raised bars that is the same, and in phase, on all; only the grain is not."""
    y, x = np.mgrid[:160, :160]
    bars = 30 * (np.sin(2 * np.pi * (x + y) / 20) > 0.8) + 30 * (np.sin(2 * np.pi * (x - y) / 20) > 0.8)
    return lit(90 + bars + 5 * np.random.default_rng([8, index]).standard_normal((160, 160)), 1)


def test_chequer_plates_in_phase_are_no_copies(search: Search) -> None:
    plates = [chequer_plate(index) for index in range(12)]
    assert pairs(search([*plates, jpeg(lit(plates[5], 0.8), 75)])) == [(5, 12)]


def test_blend_is_reported_with_both_images_that_are_in_it(search: Search) -> None:
    originals = sheets(10)
    mixed = [blend(originals[0], originals[1], 0.5), blend(turned(originals[2], "90"), originals[3], 0.6)]
    copies = search(mixed, originals)
    assert [(copy.first, copy.second, copy.turn) for copy in copies] == [
        (0, 0, "0"),
        (0, 1, "0"),
        (1, 2, "90"),
        (1, 3, "0"),
    ]
    assert all(0.2 < copy.score < 0.95 for copy in copies)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("size_hw", [(128, 160), (160, 128)])
def test_turned_and_shifted_cuts_are_found_and_the_earlier_image_is_named_first(
    search: Search, turn: str, size_hw: tuple[int, int]
) -> None:
    """The search sorts images by shape, so that it meets a lying second image before a standing first one."""
    height, width = size_hw
    large = make_sheet(3, 1, (224, 224)).image
    first = large[20 : 20 + height, 30 : 30 + width]
    second = turned(large[22 : 22 + height, 29 : 29 + width], turned_back(turn))
    (copy,), (same,) = search([first, second]), search([first], [second])
    assert (copy.first, copy.second, copy.turn) == (0, 1, turn)
    assert (same.first, same.second, same.turn) == (0, 0, turn)
    # What lies at row 0 of the second lies at row 2 of the first: 2 px down, 1 px left, to the nearest cell
    assert copy.shift == same.shift == (round(2 * 128 / height), round(-1 * 128 / width))
    assert copy.score > 0.9


def test_saturated_cells_do_not_count_in_the_score(search: Search) -> None:
    image = sheets(1)[0] // 2
    burnt = image.copy()
    burnt[:, :80] = 255
    (copy,) = search([image, burnt])
    assert copy.score > 0.75


def test_black_and_blank_images_are_copies_of_none(search: Search) -> None:
    blank = [np.zeros((160, 160), np.uint8)] * 3 + [np.full((160, 160), 200, np.uint8)] * 3
    assert search([*blank, *sheets(2)]) == []
    assert search(blank, blank) == []


def test_tiny_images_are_copies_only_where_they_are_identical(search: Search) -> None:
    tiny = [np.random.default_rng(index).integers(0, 250, (5, 7), np.uint8) for index in range(4)]
    assert search([*tiny, tiny[2]]) == [Copy(2, 4, "0", 1.0)]
    assert search(tiny[:2], [tiny[3], tiny[1]]) == [Copy(1, 1, "0", 1.0)]


def test_all_pairs_of_a_small_group_and_enough_of_a_large_one_are_listed(
    search: Search, describe_pictures: Callable[..., Descriptors]
) -> None:
    one, other = sheets(2)
    assert pairs(search([one, other, one, jpeg(one, 75), one])) == [(0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4)]
    described, fewer = describe_pictures([one, other]), Descriptors(71)
    for name in ("log_aspect", "detail", "thumb"):
        getattr(fewer, name)[:] = getattr(described, name)[[0] * 70 + [1]]
    assert pairs(find_copies(fewer)) == [(0, index) for index in range(1, 70)]
    across = find_copies(fewer, fewer)
    assert pairs(across) == sorted([(0, n) for n in range(70)] + [(n, 0) for n in range(1, 70)] + [(70, 70)])


def test_pairs_of_a_large_group_that_are_connected_already_are_left_out(
    describe_pictures: Callable[..., Descriptors],
) -> None:
    """The search goes through 1,024 images at a time; 62 copies are among the first, three behind them."""
    first, last = range(62), range(1097, 1100)
    members = [*first, *last]
    one = describe_pictures(sheets(1))
    rng = np.random.default_rng(2)
    many = Descriptors(1100)
    many.log_aspect[:] = np.linspace(0.3, 0.35, 1100)  # no quarter turn fits
    many.detail[members] = one.detail
    many.detail[members, 0, 0] = np.arange(1, 66)  # alike, not equal
    thumbs = rng.standard_normal(many.thumb.shape)
    thumbs /= np.linalg.norm(thumbs, axis=(1, 2), keepdims=True)
    thumbs[first] = 0.4 * one.thumb + np.sqrt(1 - 0.4**2) * thumbs[first]  # candidates with the image itself alone
    thumbs[[0, *last]] = one.thumb
    many.thumb[:] = thumbs
    expected = [(0, other) for other in members[1:]] + [(other, late) for other in first[1:] for late in last]
    assert pairs(find_copies(many)) == sorted(expected)


def test_progress_ends_at_its_total_and_an_empty_set_has_no_copies(
    describe_pictures: Callable[..., Descriptors],
) -> None:
    steps: list[tuple[int, int]] = []
    find_copies(describe_pictures(sheets(3)), progress=lambda done, of, text="": steps.append((done, of)))
    assert steps == [(1, 1)]
    assert find_copies(Descriptors(0)) == []
    assert find_copies(Descriptors(0), describe_pictures(sheets(1))) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_joined_things_are_grouped_and_groups_keep_the_order_asked_for(pairs: list[tuple[int, int]]) -> None:
    sets: DisjointSets[int] = DisjointSets()
    colour = {thing: thing for thing in range(13)}
    for one, other in pairs:
        sets.join(one, other)
        old, new = colour[one], colour[other]
        colour = {thing: new if number == old else number for thing, number in colour.items()}
        assert sets.joined(one, other)
    groups = sets.groups(range(12, -1, -1))
    assert sorted(groups) == sorted(
        [thing for thing in range(12, -1, -1) if colour[thing] == number] for number in set(colour.values())
    )
    assert all(sets.size(group[0]) == len(group) for group in groups)
    assert [group[0] for group in groups] == sorted((group[0] for group in groups), reverse=True)
