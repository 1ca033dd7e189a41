import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import DataError
from defectseg.evaluate.metrics import Counts, count_pairs, summarise
from defectseg.evaluate.score import Scored
from defectseg.inference.segment import segment
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.tune.choice import ThresholdSearch
from defectseg.tune.grid import Grid

CHOICE = Grid(pixel=(0.3, 0.5, 0.7), area_px=(0, 2, 3, 5), gate=(0.0, 0.5, 0.8))


@dataclass
class _Image:
    """One image's answer, truth (C, H, W) and ignore (H, W)."""

    answer: ImageAnswer
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_]

    def counts(self, thresholds: Thresholds, image_id: str) -> Counts:
        """What the pipeline counts."""
        return count_pairs(image_id, segment(self.answer, thresholds).masks, self.truth, self.ignore)


def _random_image(generator: np.random.Generator) -> _Image:
    size_hw = tuple(int(side) for side in generator.integers(1, 13, 2))
    # Tenths, so that values often equal a threshold exactly.
    probabilities = (generator.integers(0, 11, (2, *size_hw)) / 10).astype(np.float32)
    gate = (generator.integers(0, 11, 2) / 10).astype(np.float32)
    truth = (generator.random((2, *size_hw)) < 0.3) & (generator.random((2, 1, 1)) < 0.6)
    ignore = (generator.random(size_hw) < 0.2) & (generator.random() < 0.5)
    return _Image(ImageAnswer(probabilities, gate), truth, ignore)


def _one_class(
    probabilities: NDArray[np.float64] | list[list[float]], truth: NDArray[np.bool_] | None = None
) -> _Image:
    """An image that the gate lets pass; nothing is labelled in it unless said."""
    answer = ImageAnswer(np.array([probabilities], np.float32), np.ones(1, np.float32))
    empty = np.zeros(answer.probabilities.shape[1:], np.bool_)
    return _Image(answer, (empty if truth is None else truth)[None], empty)


def _search(*images: _Image, area_px: tuple[int, ...] = CHOICE.area_px) -> ThresholdSearch:
    names = [f"class {index}" for index in range(len(images[0].truth))]
    search = ThresholdSearch(names, Grid(CHOICE.pixel, area_px, CHOICE.gate))
    _visit(search, dict(enumerate(images)))
    return search


def _visit(search: ThresholdSearch, images: dict[int, _Image]) -> None:
    for number, image in images.items():
        pixels = np.zeros(image.ignore.shape, np.uint8)
        search.visit(Scored(f"{number}.jpg", pixels, image.answer, image.truth, image.truth, image.ignore))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_counts_and_figures_are_those_of_the_pipeline(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [_random_image(generator) for _ in range(2)]
    search = _search(*images)
    assume(any(image.known.any() for image in search.images.values()))
    choice = search.best()

    def counted(thresholds: Thresholds) -> Counts:
        counts: Counts = {}
        for number, image in enumerate(images):
            counts |= image.counts(thresholds, f"{number}.jpg")
        return counts

    for pixel, area_px, gate in itertools.product(CHOICE.pixel, CHOICE.area_px, CHOICE.gate):
        thresholds = Thresholds(gate=(gate, 0.5), pixel=(pixel, 0.7), min_area_px=(area_px, 0))
        assert search.counts(thresholds) == counted(thresholds)
    metrics = summarise(counted(choice.thresholds), search.class_names)
    both: list[tuple[Any, Any]] = [(choice, metrics), *zip(choice.classes, metrics.classes, strict=True)]
    for one, scored in both:
        figures = one.chosen.kaggle_dice, one.chosen.positive_dice
        assert figures == pytest.approx((scored.kaggle_dice, scored.positive_dice))


def _slow_choice(images: list[_Image], areas: list[int]) -> list[set[tuple[float, ...]]]:
    """For each class the settings that may be chosen: what `goals` says, one setting at a time."""
    axes = (CHOICE.pixel, areas, CHOICE.gate)
    classes, places = range(2), list(itertools.product(*(range(len(axis)) for axis in axes)))
    settings_of = {place: tuple(axis[index] for axis, index in zip(axes, place, strict=True)) for place in places}
    defaults = (1, 0, 1)
    with_class = [sum(image.truth[c][~image.ignore].any() for image in images) for c in classes]
    pairs = {}
    for place, (pixel, area_px, gate) in settings_of.items():
        thresholds = Thresholds(gate=(gate,) * 2, pixel=(pixel,) * 2, min_area_px=(area_px,) * 2)
        counts = [image.counts(thresholds, "i") for image in images]
        pairs[place] = [[one["i", c + 1] for one in counts] for c in classes]
    known = sum(not pair.unknown for of_class in pairs[defaults] for pair in of_class)

    def score(index: int, place: tuple[int, ...]) -> float:
        positive = sum(pair.dice for pair in pairs[place][index] if pair.true_px)
        weight = 2 / sum(with_class) if sum(with_class) else 0.0
        return (
            sum(pair.dice for pair in pairs[place][index] if not pair.unknown) * 2 / max(known, 1) + positive * weight
        )

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
        alike = [place for place in places if scores[place] >= max(scores.values()) - 0.002 - 1e-9]
        steps = {place: sum(abs(a - b) for a, b in zip(place, defaults, strict=True)) for place in alike}
        nearest = [place for place in alike if steps[place] == min(steps.values())]
        best = max(scores[place] for place in nearest)
        choices.append({settings_of[place] for place in nearest if scores[place] >= best - 1e-9})
    return choices


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_choice_agrees_with_trying_every_setting(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [_random_image(generator) for _ in range(4)]
    largest_px = max(image.ignore.size for image in images)
    areas = [area_px for area_px in (0, 2, 3) if area_px <= largest_px / 20]

    choice = _search(*images, area_px=(0, 2, 3)).best()

    for one, allowed in zip(choice.classes, _slow_choice(images, areas), strict=True):
        assert (one.pixel, one.min_area_px, one.gate) in allowed


def test_each_labelled_region_knows_the_largest_predicted_region_that_touches_it() -> None:
    # Labelled are 2 px and 1 px. At 0.3 one region of 4 px touches both, at 0.5 one of 1 px the former and one of 2 px
    # the latter; 0.7 is not reached.
    image = _one_class([[0.6, 0.4, 0.6, 0.6]], np.array([[True, True, False, True]]))

    regions_px = _search(image).images["0.jpg"].regions_px

    assert regions_px.tolist() == [[0, 2, 4, 1, 0], [0, 1, 4, 2, 0]]


def test_real_thresholds_are_found() -> None:
    # The defect answers 0.65 over 30 px, the noise 0.75 over 2 px, so only a minimum area parts them. Of the pixel
    # thresholds 0.3 and 0.5, equal by themselves, the former is farther from 0.7, which misses the defect.
    defect, noise = np.zeros((20, 20)), np.zeros((20, 20))
    defect[:5, :6] = 0.65
    noise[0, :2] = 0.75

    choice = _search(_one_class(defect, defect > 0), _one_class(noise), area_px=(0, 5)).best()

    assert choice.thresholds == Thresholds(
        gate=(0.5,), pixel=(0.3,), min_area_px=(5,), chosen_by="search on 2 validation images, best Dice"
    )
    assert choice.chosen.objective == 2.0


def test_equal_settings_give_the_defaults() -> None:
    thresholds = _search(_one_class([[0.1, 0.1]])).best().thresholds

    assert (thresholds.pixel, thresholds.min_area_px, thresholds.gate) == ((0.5,), (0,), (0.5,))


@pytest.mark.parametrize(("lost_px", "chosen"), [(1, 0.5), (8, 0.3)])
def test_a_gain_within_the_indifference_does_not_move_the_thresholds(lost_px: int, chosen: float) -> None:
    # At 0.5 a defect of 1,000 px loses 1 px (2 x 0.0005 of objective) or 8 px (2 x 0.004); at 0.3 it is whole.
    probabilities = np.full((20, 50), 0.9)
    probabilities[0, :lost_px] = 0.4

    choice = _search(_one_class(probabilities, probabilities > 0)).best()

    assert choice.thresholds.pixel == (chosen,)


def test_minimum_areas_above_a_twentieth_of_the_largest_image_are_not_used() -> None:
    # Only a minimum area of 6 px would rid this clean image of its 5 px of noise; 5 % of 100 px is 5 px.
    noise = np.zeros((10, 10))
    noise[0, :5] = 1.0

    choice = _search(_one_class(noise), area_px=(0, 5, 6)).best()

    assert choice.thresholds.min_area_px == (0,)
    assert choice.chosen.objective == 0.0


def test_choice_does_not_depend_on_order_or_on_the_process_that_saw_an_image() -> None:
    generator = np.random.default_rng(7)
    images = [_random_image(generator) for _ in range(8)]
    together, first, second = _search(*images), _search(images[0]), _search(images[7])
    _visit(first, {number: images[number] for number in (4, 2, 0)})
    _visit(second, {number: images[number] for number in (7, 6, 5, 3, 1, 0)})
    second.images.update(first.images)

    assert second.best() == together.best()


def test_no_image_or_only_unknown_ones_is_an_error() -> None:
    with pytest.raises(DataError, match="no validation image"):
        ThresholdSearch(["a"]).best()
    image = _one_class([[0.9, 0.9]])
    image.ignore = np.array([[True, False]])
    with pytest.raises(DataError, match=r"no validation image .* ignored pixels"):
        _search(image).best()
