"""Several models as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.config import DataConfig, InferenceConfig, Recipe
from defectseg.errors import ModelError
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.runtime.base import Answer
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
)


class ConstantRuntime:
    """A Runtime with one class that gives every pixel one probability, and half of it as the gate."""

    def __init__(self, probability: float, *, name: str = "constant", parallel: int = 1, **info: Any) -> None:
        self.probability = probability
        self.name = name
        self.parallel = parallel
        self.info = INFO.model_copy(update=info)
        self.class_names = self.info.class_names

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        probabilities = np.full(images.shape, self.probability, np.float32)
        probabilities.flags.writeable = False
        return Answer(probabilities, np.full((len(images), 1), self.probability / 2, np.float32))


def _join(*infos: ModelInfo) -> ModelInfo:
    return join_infos(infos, [Path(f"{number}.safetensors") for number, _ in enumerate(infos)])


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=7))
def test_an_ensemble_answers_with_the_mean_of_its_models(probabilities: list[float]) -> None:
    ensemble = EnsembleRuntime(list(map(ConstantRuntime, probabilities)))

    answer = ensemble(np.zeros((2, 1, 3, 4), np.uint8))

    mean = sum(probabilities) / len(probabilities)
    assert answer.probabilities.dtype == answer.gate.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, np.full((2, 1, 3, 4), mean), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(answer.gate, np.full((2, 1), mean / 2), rtol=1e-5, atol=1e-7)
    assert answer.probabilities.max() <= 1


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_a_model_with_itself_answers_as_it_does_alone_to_the_last_bit(
    times: int, grey_runtime: Callable[..., Any]
) -> None:
    runtime = grey_runtime(min_area_px=7, tile_hw=(8, 8), tile_overlap_px=2)
    image = np.random.default_rng(times).integers(0, 256, (12, 20), dtype=np.uint8)

    ensemble, info = EnsembleRuntime([runtime] * times), _join(*[runtime.info] * times)
    together, alone = (predict_image(one, image, Settings.of(info)) for one in (ensemble, runtime))

    np.testing.assert_array_equal(together.probabilities, alone.probabilities)
    np.testing.assert_array_equal(together.gate, alone.gate)
    same = {"chosen_by": "default"}
    assert info.thresholds.model_copy(update=same) == runtime.info.thresholds


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
