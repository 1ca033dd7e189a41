"""Several models as one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.config import DataConfig, InferenceConfig, Recipe
from defectseg.errors import ModelError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.runtime.base import Answer
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
)


@dataclass
class ConstantRuntime:
    """A Runtime with one class that gives every pixel one probability, and half of it as the gate."""

    probability: float
    name: str = "constant"
    parallel: int = 1
    batch_px: int = 0
    class_names: tuple[str, ...] = INFO.class_names

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        probabilities = np.full(images.shape, self.probability, np.float32)
        probabilities.flags.writeable = False
        return Answer(probabilities, np.full((len(images), 1), self.probability / 2, np.float32))


def _join(*infos: ModelInfo) -> ModelInfo:
    return join_infos(infos, [Path(f"{number}.safetensors") for number, _ in enumerate(infos)])


probability = st.floats(0, 1, width=32)


@given(
    st.lists(probability, min_size=1, max_size=7)
    | st.builds(lambda one, times: [one] * times, probability, st.integers(1, 7))
)
def test_an_ensemble_answers_with_the_mean_of_its_models(probabilities: list[float]) -> None:
    answer = EnsembleRuntime(list(map(ConstantRuntime, probabilities)))(np.zeros((2, 1, 3, 4), np.uint8))

    same = len(set(probabilities)) == 1  # then the answer is theirs bit for bit
    mean = probabilities[0] if same else sum(probabilities) / len(probabilities)
    rtol, atol = (0.0, 0.0) if same else (1e-5, 1e-7)
    assert answer.probabilities.dtype == answer.gate.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, np.full((2, 1, 3, 4), mean, np.float32), rtol, atol)
    np.testing.assert_allclose(answer.gate, np.full((2, 1), mean / 2, np.float32), rtol, atol)


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (Recipe(inference=InferenceConfig(tta="flips")), "views at test time"),
        (Recipe(data=DataConfig(bit_depth=12)), "bit_depth"),
    ],
)
def test_models_of_other_settings_are_averaged_with_a_warning(
    recipe: Recipe, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    _join(INFO, INFO)
    assert caplog.messages == []
    assert _join(INFO.model_copy(update={"recipe": recipe}), INFO).recipe == recipe
    (told,) = caplog.messages
    assert key in told
    assert "0.safetensors" in told


def test_thresholds_are_averaged_and_areas_are_whole_pixels() -> None:
    one = Thresholds(gate=(0.2,), pixel=(0.5,), min_area_px=(10,), chosen_by="tune")
    other = Thresholds(gate=(0.6,), pixel=(0.6,), min_area_px=(25,), chosen_by="hand")

    thresholds = _join(*(INFO.model_copy(update={"thresholds": each}) for each in (one, other, other))).thresholds

    assert thresholds.gate == pytest.approx((1.4 / 3,))
    assert thresholds.pixel == pytest.approx((1.7 / 3,))
    assert thresholds.min_area_px == (20,)
    assert thresholds.chosen_by == "mean of 3 models: tune; hand"


def test_an_ensemble_says_of_itself_only_what_is_true_of_all_its_models() -> None:
    one, other, third = (
        INFO.model_copy(update=update)
        for update in (
            {"fold": 0, "data_fingerprint": "a", "trained_on": ("x", "y"), "metrics": {"dice": 1}},
            {"fold": 1, "data_fingerprint": "a", "trained_on": ("y", "z"), "created": "2025"},
            {"fold": 0, "data_fingerprint": "b"},
        )
    )

    both, same_fold = _join(one, other), _join(one, third)

    assert (both.fold, same_fold.fold) == (None, 0)
    assert (both.data_fingerprint, same_fold.data_fingerprint) == ("a", "")
    assert both.trained_on == ("x", "y", "z")
    assert (both.metrics, both.created) == ({}, "2025")


def test_an_ensemble_is_named_after_its_models_and_called_as_suits_the_least_parallel_of_them() -> None:
    runtimes = [ConstantRuntime(0, name=name, parallel=calls) for name, calls in (("a", 4), ("b", 2), ("a", 3))]
    ensemble = EnsembleRuntime(runtimes)
    assert (ensemble.name, ensemble.parallel, ensemble.class_names) == ("ensemble of 3: a, b", 2, ("pits",))


def test_models_of_other_classes_are_refused_with_both_files_and_their_classes() -> None:
    with pytest.raises(ModelError, match=r"1\.safetensors.*rust.*0\.safetensors.*pits"):
        _join(INFO, INFO.model_copy(update={"class_names": ("rust",)}))
