"""Sheet ends and covered defects: what they cover, what they label, and when they hold back."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.train.crops import BLACK_LEVEL
from defectseg.train.steel import black_out, sheet_end

Images = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Change = Callable[[NDArray[np.uint8], NDArray[np.uint8], np.random.Generator], Images]

LEVEL = 120
SIZE_HW = (40, 200)


def _crop(size_hw: tuple[int, int] = SIZE_HW, classes: int = 2) -> Images:
    """Even grey without labels."""
    return np.full(size_hw, LEVEL, np.uint8), np.zeros((*size_hw, classes + 1), np.uint8)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _black_columns(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((image <= BLACK_LEVEL).all(axis=0))


# Both


@pytest.mark.parametrize("change", [sheet_end, black_out])
def test_equal_chance_gives_equal_results_and_leaves_what_it_was_given(change: Change) -> None:
    image, layers = _crop()
    layers[5:15, 90:110, 0] = 1
    given_image, given_layers = image.copy(), layers.copy()
    first, second = change(image, layers, _rng(3)), change(image, layers, _rng(3))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.uint8
    np.testing.assert_array_equal(image, given_image)
    np.testing.assert_array_equal(layers, given_layers)
    assert change(image, layers, _rng(4))[0].tobytes() != first[0].tobytes()


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    height=st.integers(1, 40),
    width=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    change=st.sampled_from([sheet_end, black_out]),
)
def test_what_is_labelled_is_seen_and_what_is_ignored_stays(
    data: st.DataObject, height: int, width: int, seed: int, change: Change
) -> None:
    image, layers = _crop((height, width), classes=3)
    for _ in range(data.draw(st.integers(0, 4))):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        layers[top : top + 7, left : left + 7, data.draw(st.integers(0, 3))] = 1
    changed, left_over = change(image, layers, _rng(seed))
    np.testing.assert_array_equal(left_over[..., -1], layers[..., -1])
    assert not (left_over > layers).any()
    labelled = left_over[..., :-1].any(axis=-1)
    assert (changed[labelled] > BLACK_LEVEL).all()
    lost = layers[..., :-1].any(axis=-1) & ~labelled
    # Half dark at least: (120 + 16) / 2.
    assert (changed[lost] <= 68).all()


# The end of a sheet


def test_a_share_of_5_to_50_percent_is_black_on_one_side() -> None:
    image, layers = _crop()
    for seed in range(100):
        black = _black_columns(sheet_end(image, layers, _rng(seed))[0])
        # Lean and wave move the edge by at most 2 + 1.5 px, and half of the soft 4 px are not black.
        assert 4 <= black.sum() <= 104
        assert black[0] != black[-1]
        assert np.count_nonzero(np.diff(black)) == 1


def test_widths_and_sides_vary() -> None:
    image, layers = _crop()
    blacks = [_black_columns(sheet_end(image, layers, _rng(seed))[0]) for seed in range(200)]
    widths = [int(black.sum()) for black in blacks]
    assert min(widths) < 20
    assert max(widths) > 90
    assert 70 < sum(bool(black[0]) for black in blacks) < 130


def test_beyond_the_soft_edge_steel_is_as_it_was() -> None:
    image, layers = _crop()
    image[:] = np.arange(200, dtype=np.uint8)
    changed = sheet_end(image, layers, _rng(0))[0]
    same = (changed == image).all(axis=0)
    assert same.sum() >= 100 - 6
    assert same[0] != same[-1]


def test_the_dark_is_noisy_as_in_a_photograph() -> None:
    image, layers = _crop()
    stds = []
    for seed in range(20):
        changed = sheet_end(image, layers, _rng(seed))[0]
        dark = changed[:, _black_columns(changed)]
        assert dark.mean() < 10
        stds.append(float(dark.std()))
    assert 0.3 < float(np.mean(stds)) < 3


def test_nothing_is_labelled_on_the_black() -> None:
    image, layers = _crop()
    layers[..., 0] = 1
    layers[:3, :, 2] = 1
    changed, left = sheet_end(image, layers, _rng(1))
    black = _black_columns(changed)
    assert black.any()
    assert not left[:, black, :2].any()
    assert left[:, changed.min(axis=0) == LEVEL, 0].all()
    np.testing.assert_array_equal(left[..., 2], layers[..., 2])


@pytest.mark.parametrize("at_left", [True, False])
def test_a_defect_near_one_side_ends_the_sheet_on_the_other(at_left: bool) -> None:
    image, layers = _crop()
    layers[:, : 3 if at_left else 200, 0] = 1
    if not at_left:
        layers[:, :197, 0] = 0
    for seed in range(30):
        changed, left = sheet_end(image, layers, _rng(seed))
        np.testing.assert_array_equal(left, layers)
        assert _black_columns(changed)[-1 if at_left else 0]


def test_defects_on_both_sides_leave_the_crop_alone_only_where_most_is_lost() -> None:
    image, layers = _crop()
    layers[:, :3, 0] = 1
    layers[:, 198:, 0] = 1  # 120 labelled pixels on the left, 80 on the right: losing the right ones is allowed
    for seed in range(30):
        changed, left = sheet_end(image, layers, _rng(seed))
        assert _black_columns(changed)[-1]
        assert left[..., 0].sum() == 120


def test_where_either_side_costs_too_much_nothing_changes() -> None:
    # All is labelled, and so narrow that the lean alone can take most of it, from either side.
    image, layers = np.full((4, 1), LEVEL, np.uint8), np.zeros((4, 1, 2), np.uint8)
    layers[..., 0] = 1
    results = [sheet_end(image, layers, _rng(seed)) for seed in range(50)]
    alone = [changed is image and left is layers for changed, left in results]
    assert any(alone)
    assert all(left[..., 0].sum() >= 2 for _, left in results)


# Covered defects


def test_without_a_defect_nothing_is_covered() -> None:
    image, layers = _crop()
    layers[:10, :, 2] = 1  # only ignored
    changed, left = black_out(image, layers, _rng(0))
    assert changed is image
    assert left is layers


def test_every_class_is_covered_with_a_margin_of_2_to_8_px_and_no_more() -> None:
    image, layers = _crop()
    layers[10:14, 20:30, 0] = 1
    layers[25:29, 150:160, 1] = 1
    for seed in range(30):
        changed, left = black_out(image, layers, _rng(seed))
        assert not left[..., :2].any()
        dark = changed <= BLACK_LEVEL
        assert ((changed == LEVEL) | dark).all()
        for top, first in ((10, 20), (25, 150)):
            assert dark[top - 2 : top + 6, first : first + 10].all()
            assert dark[top : top + 4, first - 2 : first + 12].all()
            dark[max(0, top - 8) : top + 12, first - 8 : first + 18] = False
        assert not dark.any()


def test_outlines_are_boxes_or_hulls() -> None:
    image, layers = _crop((100, 100))
    rows = np.arange(20, 80)
    layers[rows, rows, 0] = 1  # a diagonal: its hull is thin, its box is the square around it
    areas = sorted({int((black_out(image, layers, _rng(seed))[0] <= BLACK_LEVEL).sum()) for seed in range(40)})
    # With a margin of at most 8 px the thin one has at most 60 * 17 * 2 pixels, the square at least 64 * 64 - 16.
    assert areas[0] <= 2040
    assert areas[-1] >= 4080
    assert not any(2040 < area < 4080 for area in areas)


def test_pixels_to_ignore_stay_so_below_a_patch() -> None:
    image, layers = _crop()
    layers[10:20, 50:60, 0] = 1
    layers[15:30, 50:60, 2] = 1
    np.testing.assert_array_equal(black_out(image, layers, _rng(0))[1][..., 2], layers[..., 2])
