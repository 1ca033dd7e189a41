"""How training images look, as a model keeps it."""

import numpy as np
import pytest
from pydantic import ValidationError

from defectseg.config import Recipe
from defectseg.image.appearance import NUMBERS, VERSION
from defectseg.model.appearance import Appearance, comparable
from defectseg.model.info import ModelInfo, Normalization, Thresholds


def _appearance(*, threshold: float | None = 9.0) -> Appearance:
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(2, NUMBERS, NUMBERS))
    between, within = factor @ factor.transpose(0, 2, 1)
    return Appearance(
        images=80,
        groups=40,
        mean=tuple(generator.normal(size=NUMBERS)),
        defect_shift=tuple(generator.normal(size=NUMBERS)),
        between=tuple(between.ravel()),
        within=tuple(within.ravel()),
        distances=tuple(np.linspace(2, 12, 101)),
        threshold=threshold,
        defective=0.3,
        defective_spread=0.1,
    )


def test_a_distance_is_that_of_mahalanobis_from_images_with_as_many_defects() -> None:
    trained, one = _appearance(), np.random.default_rng(1).normal(size=NUMBERS)
    for has_defect in (0, 1):
        residual = one - np.array(trained.mean) - has_defect * np.array(trained.defect_shift)
        expected = np.sqrt(residual @ np.linalg.inv(trained.covariance()) @ residual)
        assert trained.distance(one, has_defect=has_defect) == pytest.approx(expected)
    between, within = (np.array(part).reshape(NUMBERS, NUMBERS) for part in (trained.between, trained.within))
    np.testing.assert_allclose(trained.covariance(5), between + within / 5)


def test_the_rank_is_the_share_of_training_images_that_are_nearer() -> None:
    trained = _appearance()
    assert [trained.rank(distance) for distance in (1, 2, 7, 12, 90)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [trained.is_unlike(distance) for distance in (8.9, 9, 9.1)] == [False, False, True]
    assert not _appearance(threshold=None).is_unlike(1e9)


def test_it_survives_json() -> None:
    trained, one = _appearance(), np.random.default_rng(1).normal(size=NUMBERS)
    again = Appearance.model_validate_json(trained.model_dump_json())
    assert Appearance.model_validate(trained.model_dump(mode="json")) == again
    assert Appearance.model_validate_json(again.model_dump_json()) == again
    np.testing.assert_allclose(again.between, trained.between, rtol=1e-5)
    assert again.distance(one, has_defect=1) == pytest.approx(trained.distance(one, has_defect=1), rel=1e-3)


def test_it_survives_in_the_description_of_a_model() -> None:
    info = ModelInfo(
        class_names=("pits",),
        normalization=Normalization(mean=0.5, std=0.5),
        thresholds=Thresholds.default(1),
        recipe=Recipe(),
        appearance=Appearance.model_validate_json(_appearance().model_dump_json()),
    )
    again = ModelInfo.model_validate_json(info.model_dump_json())
    assert again == info
    for one in (again.appearance, info.appearance):  # also after use
        assert one is not None
        one.distance(np.zeros(NUMBERS), has_defect=0)
    assert again == info


def test_numbers_that_are_missing_are_refused_by_name() -> None:
    content = _appearance().model_dump(mode="json")
    content["within"] = "1 2 3"
    with pytest.raises(ValidationError, match=r"within: 3 numbers, expected 2025"):
        Appearance.model_validate(content)
    other = Appearance.model_validate({**content, "version": VERSION + 1})
    assert (other.within, comparable(other)) == ((1, 2, 3), None), "of another release"


def test_what_is_no_covariance_is_refused() -> None:
    content = _appearance().model_dump(mode="json")
    content["between"] = " ".join(["-1"] * NUMBERS**2)
    with pytest.raises(ValidationError, match="no covariances"):
        Appearance.model_validate(content)
