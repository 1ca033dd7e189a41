import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs, summarise
from defectseg.inference.segment import segment
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.tune.choice import ThresholdSearch
from defectseg.tune.grid import Grid

Setting = tuple[float, int, float]


@dataclass
class _Image:
    """One image's probabilities (C, H, W), gate (C,), truth (C, H, W) and ignore (H, W) or None."""

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_] | None = field(default=None)


def _random_image(generator: np.random.Generator, classes: int = 2, with_ignore: bool = True) -> _Image:
    size_hw = tuple(int(side) for side in generator.integers(1, 13, 2))
    # Tenths, so that values often equal a threshold exactly.
    probabilities = (generator.integers(0, 11, (classes, *size_hw)) / 10).astype(np.float32)
    gate = (generator.integers(0, 11, classes) / 10).astype(np.float32)
    truth = (generator.random((classes, *size_hw)) < 0.3) & (generator.random((classes, 1, 1)) < 0.6)
    ignore = generator.random(size_hw) < 0.2 if with_ignore and generator.random() < 0.5 else None
    return _Image(probabilities, gate, truth, ignore)


def _components(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """8-connected components by flood fill, one pixel at a time."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while left:
        queue = deque([left.pop()])
        component = list(queue)
        while queue:
            y, x = queue.popleft()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
            component.extend(near)
        components.append(component)
    return components


def _post_process(image: _Image, index: int, setting: Setting) -> NDArray[np.bool_]:
    pixel, min_area_px, gate = setting
    mask = np.zeros(image.probabilities.shape[1:], np.bool_)
    if image.gate[index] >= np.float32(gate):
        for component in _components(image.probabilities[index] >= np.float32(pixel)):
            if len(component) >= min_area_px:
                mask[tuple(np.array(component).T)] = True
    return mask


def _counts(image: _Image, index: int, setting: Setting) -> PairCounts:
    predicted = np.zeros_like(image.truth)
    predicted[index] = _post_process(image, index, setting)
    return count_pairs("i", predicted, image.truth, image.ignore)["i", index + 1]


def _steps_from_defaults(search: ThresholdSearch, setting: Setting) -> int:
    pixel, min_area_px, gate = setting
    return (
        abs(search.grid.pixel.index(pixel) - search.grid.pixel.index(0.5))
        + search.grid.area_px.index(min_area_px)
        + abs(search.grid.gate.index(gate) - search.grid.gate.index(0.5))
    )


def _search(images: list[_Image], area_px: tuple[int, ...] = (0, 2, 3, 5)) -> ThresholdSearch:
    grid = Grid(pixel=(0.3, 0.5, 0.7), area_px=area_px, gate=(0.0, 0.5, 0.8))
    search = ThresholdSearch([f"class {index}" for index in range(len(images[0].gate))], grid)
    for number, image in enumerate(images):
        search.add(f"{number}.jpg", image.probabilities, image.gate, image.truth, image.ignore)
    return search


def _one_class(probabilities: list[list[float]], truth: list[str], gate: float = 1.0) -> _Image:
    mask = np.array([[[sign == "#" for sign in row] for row in truth]])
    return _Image(np.array([probabilities], np.float32), np.array([gate], np.float32), mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sums_are_those_of_the_real_post_processing(seed: int) -> None:
    image = _random_image(np.random.default_rng(seed))

    search = _search([image])
    sums = search.images["0.jpg"]

    for index in range(2):
        for row, pixel in enumerate(search.grid.pixel):
            for column, min_area_px in enumerate(search.grid.area_px):
                expected = _counts(image, index, (pixel, min_area_px, 0.0))
                predicted_px, both_px = (int(px) for px in sums.kept_px[index, :, row, column])
                true_px, unknown = int(sums.true_px[index]), not sums.known[index]
                assert PairCounts(true_px, predicted_px, both_px, unknown) == expected


def _slow_choice(images: list[_Image], search: ThresholdSearch, areas: list[int]) -> list[set[Setting]]:
    """For each class the settings that may be chosen: what `goals` says, one setting at a time."""
    axes = (list(search.grid.pixel), areas, list(search.grid.gate))
    classes, places = range(len(images[0].gate)), list(itertools.product(*(range(len(axis)) for axis in axes)))
    with_class = [sum(image.truth[c][_counted(image)].any() for image in images) for c in classes]
    known = sum(not _counts(image, c, (0.5, 0, 0.5)).unknown for image in images for c in classes)

    def score(index: int, place: tuple[int, ...]) -> float:
        setting = (axes[0][place[0]], int(axes[1][place[1]]), axes[2][place[2]])
        pairs = [_counts(image, index, setting) for image in images]
        positive = sum(pair.dice for pair in pairs if pair.true_px)
        weight = len(with_class) / sum(with_class) if sum(with_class) else 0.0
        return sum(pair.dice for pair in pairs if not pair.unknown) * len(classes) / max(known, 1) + positive * weight

    seen = [c for c in classes if with_class[c]]

    def leaning(index: int, place: tuple[int, ...]) -> float:
        of_all = sum(score(c, place) for c in seen) / len(seen)
        return float((with_class[index] * score(index, place) + 2 * of_all) / (with_class[index] + 2))

    choices = []
    for c in classes:
        scores = {place: leaning(c, place) if c in seen else 0.0 for place in places}
        for axis in range(3):

            def beside(place: tuple[int, ...], step: int, axis: int = axis) -> tuple[int, ...]:
                moved = min(max(place[axis] + step, 0), len(axes[axis]) - 1)
                return (*place[:axis], moved, *place[axis + 1 :])

            scores = {
                place: (scores[beside(place, -1)] + 2 * scores[place] + scores[beside(place, 1)]) / 4
                for place in places
            }
        settings_of = {place: (axes[0][place[0]], int(axes[1][place[1]]), axes[2][place[2]]) for place in places}
        alike = [place for place in places if scores[place] >= max(scores.values()) - 0.002 - 1e-9]
        steps = {place: _steps_from_defaults(search, settings_of[place]) for place in alike}
        nearest = [place for place in alike if steps[place] == min(steps.values())]
        best = max(scores[place] for place in nearest)
        choices.append({settings_of[place] for place in nearest if scores[place] >= best - 1e-9})
    return choices


def _counted(image: _Image) -> NDArray[np.bool_]:
    return np.ones(image.truth.shape[1:], np.bool_) if image.ignore is None else ~image.ignore


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_choice_agrees_with_trying_every_setting(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [_random_image(generator) for _ in range(4)]
    search = _search(images, area_px=(0, 2, 3))
    largest_px = max(image.probabilities[0].size for image in images)
    areas = [area_px for area_px in search.grid.area_px if area_px <= largest_px / 20]

    choice = search.best()

    for one, allowed in zip(choice.classes, _slow_choice(images, search, areas or [0]), strict=True):
        setting = (one.pixel, one.min_area_px, one.gate)
        assert setting in allowed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_and_figures_are_those_of_the_pipeline(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [_random_image(generator) for _ in range(4)]
    search = _search(images)
    choice = search.best()

    for thresholds in (choice.thresholds, Thresholds(gate=(0.5, 0.8), pixel=(0.3, 0.7), min_area_px=(3, 0))):
        counts: Counts = {}
        for number, image in enumerate(images):
            masks = segment(ImageAnswer(image.probabilities, image.gate), thresholds).masks
            counts |= count_pairs(f"{number}.jpg", masks, image.truth, image.ignore)
        assert search.counts(thresholds) == counts

    metrics = summarise(search.counts(choice.thresholds), search.class_names)
    assert choice.chosen.kaggle_dice == pytest.approx(metrics.kaggle_dice)
    assert choice.chosen.positive_dice == pytest.approx(metrics.positive_dice)
    for one, scored in zip(choice.classes, metrics.classes, strict=True):
        figures = one.chosen.kaggle_dice, one.chosen.positive_dice
        assert figures == pytest.approx((scored.kaggle_dice, scored.positive_dice))


def test_each_labelled_region_knows_the_largest_predicted_region_that_touches_it() -> None:
    # Labelled are 2 px and 1 px. At 0.3 one region of 4 px touches both, at 0.5 one of 1 px the former and one of 2 px
    # the latter; 0.7 is not reached.
    image = _one_class([[0.6, 0.4, 0.6, 0.6]], ["##.#"])

    regions_px = _search([image]).images["0.jpg"].regions_px

    assert regions_px.tolist() == [[0, 2, 4, 1, 0], [0, 1, 4, 2, 0]]


def test_corners_that_touch_make_one_component() -> None:
    image = _one_class([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0]], ["#..", ".#.", "..."])

    kept_px = _search([image]).images["0.jpg"].kept_px

    assert kept_px[0, 0, 0].tolist() == [2, 2, 0, 0]  # minimum areas 0, 2, 3, 5


def test_ignored_pixels_belong_to_a_components_area_but_do_not_count() -> None:
    image = _one_class([[0.9, 0.9, 0.9, 0.0]], ["##.."])
    image.ignore = np.array([[True, True, False, False]])

    sums = _search([image]).images["0.jpg"]

    assert sums.true_px.tolist() == [0]
    assert sums.kept_px[0, 0, 0].tolist() == [1, 1, 1, 0]  # area 3 reaches minimum areas 0, 2 and 3
    assert sums.kept_px[0, 1, 0].tolist() == [0, 0, 0, 0]


def test_real_thresholds_are_found() -> None:
    # The defect answers 0.65 over 30 px, the noise 0.75 over 2 px, so only a minimum area parts them. Of the pixel
    # thresholds 0.3 and 0.5, equal by themselves, the former is farther from 0.7, which misses the defect.
    defect, noise = np.zeros((1, 20, 20), np.float32), np.zeros((1, 20, 20), np.float32)
    defect[0, :5, :6] = 0.65
    noise[0, 0, :2] = 0.75
    none = np.zeros((1, 20, 20), np.bool_)
    images = [_Image(defect, np.ones(1, np.float32), defect > 0), _Image(noise, np.ones(1, np.float32), none)]

    choice = _search(images, area_px=(0, 5)).best()

    assert choice.thresholds == Thresholds(
        gate=(0.5,), pixel=(0.3,), min_area_px=(5,), chosen_by="search on 2 validation images, best Dice"
    )
    assert choice.chosen.objective == 2.0


def test_where_nothing_matters_the_defaults_are_chosen() -> None:
    image = _one_class([[0.1, 0.1]], [".."])

    thresholds = _search([image]).best().thresholds

    assert (thresholds.pixel, thresholds.min_area_px, thresholds.gate) == ((0.5,), (0,), (0.5,))


@pytest.mark.parametrize(("lost_px", "chosen"), [(1, 0.5), (8, 0.3)])
def test_a_gain_within_the_indifference_does_not_move_the_thresholds(lost_px: int, chosen: float) -> None:
    # At 0.5 a defect of 1,000 px loses 1 px (2 x 0.0005 of objective) or 8 px (2 x 0.004); at 0.3 it is whole.
    probabilities = np.full((1, 20, 50), 0.9, np.float32)
    probabilities[0, 0, :lost_px] = 0.4
    image = _Image(probabilities, np.ones(1, np.float32), np.ones((1, 20, 50), np.bool_))

    assert _search([image]).best().thresholds.pixel == (chosen,)


def test_minimum_areas_above_a_twentieth_of_the_largest_image_are_not_used() -> None:
    # Only a minimum area of 6 px would rid this clean image of its 5 px of noise; 5 % of 100 px is 5 px.
    noise = np.zeros((1, 10, 10), np.float32)
    noise[0, 0, :5] = 1.0
    image = _Image(noise, np.ones(1, np.float32), np.zeros((1, 10, 10), np.bool_))

    choice = _search([image], area_px=(0, 5, 6)).best()

    assert choice.thresholds.min_area_px == (0,)
    assert choice.chosen.objective == 0.0


def test_choice_does_not_depend_on_order_or_on_the_process_that_saw_an_image() -> None:
    generator = np.random.default_rng(7)
    images = {f"{number}.jpg": _random_image(generator) for number in range(8)}
    together, first, second = (_search([image]) for image in [images["0.jpg"]] * 3)
    for number in reversed(range(8)):
        image = images[f"{number}.jpg"]
        for search in (together, first if number < 5 else second):
            search.add(f"{number}.jpg", image.probabilities, image.gate, image.truth, image.ignore)
    second.merge(first.images)

    assert second.best() == together.best()


def test_what_an_image_leaves_behind_is_small() -> None:
    search = ThresholdSearch(["a", "b", "c", "d"])
    noise = np.random.default_rng(0).random((4, 64, 400), dtype=np.float32)

    search.add("a.jpg", noise, np.ones(4, np.float32), noise > 0.9)

    assert search.images["a.jpg"].kept_px.nbytes < 2000


def test_no_image_or_none_that_tells_anything_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no validation image"):
        ThresholdSearch(["a"]).best()
    image = _one_class([[0.9, 0.9]], [".."])
    image.ignore = np.array([[True, False]])
    with pytest.raises(DataError, match=r"no validation image .* ignored pixels"):
        _search([image]).best()


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    one, gate = np.zeros((1, 2, 2), np.float32), np.ones(1, np.float32)
    search = ThresholdSearch(["a"])

    with pytest.raises(ValueError, match=r"x\.jpg: .* do not fit together"):
        search.add("x.jpg", one, gate, np.zeros((2, 2, 2), np.bool_))
    with pytest.raises(ValueError, match=r"x\.jpg: ignore has shape \(1, 2\)"):
        search.add("x.jpg", one, gate, one > 0, np.zeros((1, 2), np.bool_))
