"""Statistics of the descriptions of training images."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.image.appearance import NUMBERS
from defectseg.image.measure import appearance_of
from defectseg.model.appearance import LEAST_GROUPS, Appearance
from defectseg.train.appearance import fit_appearance

Pixels = NDArray[np.uint8]


def _values(groups: NDArray[np.intp], *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Descriptions of groups that differ by 1, and images in them by 0.5; a defect adds 2 to each number."""
    generator = np.random.default_rng(seed)
    has_defect = generator.random(len(groups)) < 0.4
    values = generator.normal(size=(int(groups.max()) + 1, NUMBERS))[groups]
    values = values + 0.5 * generator.normal(size=values.shape) + 2 * has_defect[:, None]
    return values.astype(np.float32), has_defect


def _fit(values: NDArray[np.float32], groups: NDArray[np.intp], has_defect: NDArray[np.bool_]) -> Appearance:
    fitted = fit_appearance(list(values), [f"coil {number}" for number in groups], has_defect)
    assert fitted is not None
    return fitted


def _slow_shrunk(values: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """The covariance of an image of a new group, one group after the other; values without defects."""
    names = np.unique(groups)
    mean = np.mean([values[groups == name].mean(axis=0) for name in names], axis=0)
    scatters = [(values[groups == name] - mean).T @ (values[groups == name] - mean) for name in names]
    scatters = [scatter / np.sum(groups == name) for scatter, name in zip(scatters, names, strict=True)]
    total = np.sum(scatters, axis=0) / (len(names) - 1)
    scale = np.outer(np.sqrt(np.diag(total)), np.sqrt(np.diag(total)))
    correlation = total / scale
    error = sum(np.sum((scatter / scale - correlation) ** 2) for scatter in scatters) / len(names) ** 2
    share = min(1, error / np.sum((correlation - np.diag(np.diag(correlation))) ** 2))
    return np.asarray((1 - share) * total + share * np.diag(np.diag(total)))


def test_the_statistics_are_those_of_a_slow_calculation() -> None:
    groups = np.repeat(np.arange(60), np.random.default_rng(1).integers(1, 6, 60))
    values, has_defect = _values(groups)
    fitted = _fit(values, groups, has_defect)
    exact = values.astype(float)
    shift = exact[has_defect].mean(axis=0) - exact[~has_defect].mean(axis=0)
    clean = exact - has_defect[:, None] * shift
    np.testing.assert_allclose(fitted.defect_shift, shift)
    np.testing.assert_allclose(fitted.mean, np.mean([clean[groups == one].mean(axis=0) for one in range(60)], axis=0))
    total = _slow_shrunk(clean, groups)
    # Directions in which groups differ less than chance explains count as ones in which they do not.
    assert np.abs(fitted.covariance() - total).max() < 0.1
    np.testing.assert_allclose(np.trace(fitted.covariance()), np.trace(total), rtol=0.02)
    assert np.trace(fitted.covariance(1e9)) / NUMBERS == pytest.approx(1, abs=0.3)
    shares = [has_defect[groups == one].mean() for one in range(60)]
    assert (fitted.defective, fitted.defective_spread) == pytest.approx((np.mean(shares), np.std(shares, ddof=1)))


def test_each_distance_is_to_the_other_groups() -> None:
    groups = np.repeat(np.arange(12), 2)
    values, has_defect = _values(groups)
    distances = []
    for one in range(12):
        others = _fit(values[groups != one], groups[groups != one], has_defect[groups != one])
        distances += [
            others.distance(values[number], has_defect=float(has_defect[number]))
            for number in np.flatnonzero(groups == one)
        ]
    np.testing.assert_allclose(
        _fit(values, groups, has_defect).distances, np.quantile(distances, np.linspace(0, 1, 101)), rtol=1e-6
    )


def test_a_group_counts_once_however_many_images_it_has() -> None:
    groups = np.arange(50)
    values, has_defect = _values(groups)
    has_defect[:] = False
    again = np.concatenate([groups, np.zeros(500, np.intp)])
    many = _fit(values[again], again, has_defect[again])
    once = _fit(values, groups, has_defect)
    np.testing.assert_allclose(many.mean, once.mean)
    np.testing.assert_allclose(many.covariance(), once.covariance(), atol=1e-4)


def test_at_most_a_fiftieth_of_unseen_images_is_flagged_and_changed_ones_are() -> None:
    groups = np.arange(90)
    flagged = changed = 0.0
    for seed in range(5):
        values, has_defect = _values(np.arange(390), seed=seed)
        fitted = _fit(values[:90], groups, has_defect[:90])
        unseen = zip(values[90:], has_defect[90:], strict=True)
        told = [
            [fitted.is_unlike(fitted.distance(one + moved, has_defect=float(defect))) for moved in (0, 2.5)]
            for one, defect in unseen
        ]
        flagged, changed = np.add((flagged, changed), np.mean(told, axis=0) / 5)
    assert flagged <= 0.02
    assert changed >= 0.9


def test_with_few_groups_nothing_is_flagged_and_one_group_has_no_statistics() -> None:
    groups = np.arange(LEAST_GROUPS - 1).repeat(5)
    values, has_defect = _values(groups)
    assert _fit(values, groups, has_defect).state == "uncalibrated"
    assert fit_appearance(list(values), ["one coil"] * len(values), has_defect) is None
    enough = np.arange(LEAST_GROUPS)
    values, has_defect = _values(enough)
    assert _fit(values, enough, has_defect).state == "judged"


# Words


def _sheet(seed: int) -> Pixels:
    generator = np.random.default_rng(seed)
    fine = cv2.GaussianBlur(generator.normal(0, 12, (192, 320)), (0, 0), 0.7)
    waves = 8 * np.sin(np.arange(320) / generator.uniform(15, 40))[None]
    return _grey((110 + fine * generator.uniform(0.9, 1.1) + waves) * generator.normal(1, 0.03))


def _grey(pixels: NDArray[np.floating[Any]]) -> Pixels:
    return np.asarray(np.clip(np.rint(pixels), 0, 255), np.uint8)


def _blurred(pixels: Pixels, along: float, across: float) -> Pixels:
    size_wh = (7 if along > 0.01 else 1, 7 if across > 0.01 else 1)
    return np.asarray(cv2.GaussianBlur(pixels, size_wh, along, sigmaY=across), np.uint8)


def _noisy(pixels: Pixels) -> Pixels:
    return _grey(pixels + np.random.default_rng(int(pixels.sum())).normal(0, 12, pixels.shape))


def _black_beside(pixels: Pixels) -> Pixels:
    return np.concatenate([pixels[:, :280], np.zeros_like(pixels[:, 280:])], axis=1)


@pytest.fixture(scope="module")
def trained() -> Appearance:
    looks = [appearance_of(_sheet(seed)) for seed in range(60)]
    fitted = fit_appearance(looks, [str(seed) for seed in range(60)], np.zeros(60, bool))
    assert fitted is not None
    return fitted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pixels: _blurred(pixels, 1, 1), ["blurred"]),
        (lambda pixels: _blurred(pixels, 1, 0.001), ["blurred along"]),
        (lambda pixels: _blurred(pixels, 0.001, 1), ["blurred across"]),
        (_noisy, ["sharper or noisier", "more contrast"]),
        (_black_beside, ["more black"]),
    ],
)
def test_a_change_is_flagged_and_told_in_words(
    trained: Appearance, change: Callable[[Pixels], Pixels], words: list[str]
) -> None:
    for seed in range(100, 110):
        own, changed = appearance_of(_sheet(seed)), appearance_of(change(_sheet(seed)))
        assert not trained.is_unlike(trained.distance(own, has_defect=False))
        assert trained.is_unlike(trained.distance(changed, has_defect=False))
        told = trained.in_words(changed, has_defect=False).split(", ")
        assert set(words) <= set(told)
        sharpness = {"blurred", "blurred along", "blurred across", "sharper or noisier"}
        assert words == ["more black"] or sharpness & set(told) <= set(words)


@pytest.mark.parametrize(("gain", "word"), [(0.75, "darker by"), (1.25, "brighter by")])
def test_the_mean_of_many_images_tells_how_much_the_light_changed(trained: Appearance, gain: float, word: str) -> None:
    mean = np.mean([appearance_of(_grey(_sheet(seed) * gain)) for seed in range(100, 120)], axis=0)
    first = trained.in_words(mean, has_defect=False).split(", ")[0]
    assert first.startswith(word)
    assert float(first.split()[2]) == pytest.approx(25, abs=3)
