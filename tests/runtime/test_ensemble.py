import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.config import DataConfig, ModelConfig, Recipe
from defectseg.errors import ModelError
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.locate import model_paths
from defectseg.runtime.base import Answer
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos
from defectseg.runtime.load import load_runtime

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


def test_models_of_other_views_at_test_time_are_averaged_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _join(INFO, INFO)
    assert caplog.messages == []
    flips = INFO.recipe.inference.model_copy(update={"tta": "flips"})
    other = INFO.model_copy(update={"recipe": INFO.recipe.model_copy(update={"inference": flips})})
    assert _join(other, INFO).recipe.inference == flips
    (told,) = caplog.messages
    assert "0.safetensors" in told


def test_models_of_other_bit_depths_are_averaged_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    recipe = INFO.recipe.model_copy(update={"data": DataConfig(bit_depth=12)})
    assert _join(INFO.model_copy(update={"recipe": recipe}), INFO).recipe.data.bit_depth == 12
    (told,) = caplog.messages
    assert "bit_depth" in told


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


def _bundle(path: Path, *, seed: int) -> Path:
    """A bundle of an untrained network."""
    import torch

    from defectseg.model.bundle import save_bundle
    from defectseg.model.network import DefectNetwork

    model = ModelConfig(
        encoder="tu-test_resnet", encoder_weights="none", options={"decoder_channels": [16, 8, 8, 8, 8]}
    )
    torch.manual_seed(seed)
    network = DefectNetwork(model, 1, INFO.normalization)
    save_bundle(path, network.state_dict(), INFO.model_copy(update={"recipe": Recipe(model=model)}))
    return path


@pytest.mark.slow
def test_bundles_load_as_an_ensemble_that_answers_with_their_mean(tmp_path: Path) -> None:
    models = [_bundle(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    image = np.random.default_rng(1).integers(0, 256, (40, 72), dtype=np.uint8)

    (one, info), (other, _) = (load_runtime(model, "cpu", "torch") for model in models)
    ensemble, _ = load_runtime(models, "cpu", "torch")

    assert ensemble.name == f"ensemble of 2: {one.name}"
    first, second, mean = (predict_image(runtime, image, Settings.of(info)) for runtime in (one, other, ensemble))
    assert np.abs(first.probabilities - second.probabilities).max() > 0.01
    np.testing.assert_allclose(mean.probabilities, (first.probabilities + second.probabilities) / 2, atol=1e-6)
    np.testing.assert_allclose(mean.gate, (first.gate + second.gate) / 2, atol=1e-6)
    assert isinstance(load_runtime(models[:1], "cpu", "torch")[0], type(one))


def test_one_bad_file_of_several_is_told_before_any_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"b\.safetensors: no such model file"):
        load_runtime([tmp_path / "b.safetensors", tmp_path / "c.safetensors"], "cpu")


# Which files MODEL means


def _models(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_one_model_file_or_run_folder_is_one_model(tmp_path: Path) -> None:
    (model,) = _models(tmp_path, "run/model.safetensors")

    assert model_paths(model) == model_paths(str(model.parent)) == (model,)


def test_a_list_has_the_models_of_each_entry_in_its_order(tmp_path: Path) -> None:
    models = _models(tmp_path, "b.safetensors", "run/model.safetensors", "a.safetensors")

    text = f"{models[0]},{models[1].parent} , {models[2]},{models[0]}"

    assert model_paths(text) == (*models, models[0])


def test_a_name_with_a_comma_is_one_file_where_there_is_such_a_file(tmp_path: Path) -> None:
    (model, *_) = _models(tmp_path, "a,b.safetensors", "run,2/model.safetensors")

    assert model_paths(model) == (model,)
    assert model_paths(tmp_path / "run,2") == (tmp_path / "run,2" / "model.safetensors",)


def test_a_folder_of_folds_has_a_model_for_each_by_number(tmp_path: Path) -> None:
    names = [f"fold-{number}/model.safetensors" for number in (0, 1, 2, 10)]
    models = _models(tmp_path, *names)
    _models(tmp_path, "fold-x/model.safetensors", "other/model.safetensors", "fold-3")
    (tmp_path / "fold-3").unlink()

    assert model_paths(tmp_path) == tuple(models)
    assert model_paths(f"{tmp_path},{models[0]}") == (*models, models[0])


def test_a_model_of_its_own_goes_before_the_folds_below_it(tmp_path: Path) -> None:
    model, _ = _models(tmp_path, "model.safetensors", "fold-0/model.safetensors")

    assert model_paths(tmp_path) == (model,)


def test_a_list_longer_than_the_name_of_a_file_may_be_is_a_list(tmp_path: Path) -> None:
    (model,) = _models(tmp_path, "a.safetensors")

    assert model_paths(",".join([str(model)] * 200)) == (model,) * 200


def test_a_fold_whose_training_has_not_ended_is_told(tmp_path: Path) -> None:
    _models(tmp_path, "fold-0/model.safetensors", "fold-1/last.ckpt")

    with pytest.raises(ModelError, match=r"fold-1: this training run has not ended"):
        model_paths(tmp_path)


def test_a_folder_without_a_model_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder without model\.safetensors"):
        model_paths(tmp_path)
    _models(tmp_path, "last.ckpt", "fold-0/model.safetensors")
    with pytest.raises(ModelError, match="has not ended"):
        model_paths(tmp_path)


@pytest.mark.parametrize("text", ["a,", ",a", "a,,b", ",", " , a"])
def test_a_list_with_nothing_between_commas_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{text}: expected model files")):
        model_paths(text)
