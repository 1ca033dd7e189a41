"""Which files MODEL means."""

import re
from pathlib import Path

import pytest

from defectseg.errors import ModelError
from defectseg.model.locate import model_paths


def _models(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_a_model_is_a_file_or_a_run_folder_and_its_name_may_have_a_comma(tmp_path: Path) -> None:
    for model in _models(tmp_path, "run/model.safetensors", "run,2/model.safetensors", "a,b.safetensors"):
        assert model_paths(model) == model_paths(str(model)) == (model,)
        if model.name == "model.safetensors":
            assert model_paths(model.parent) == (model,)


def test_a_list_has_the_models_of_each_entry_in_its_order_however_long_it_is(tmp_path: Path) -> None:
    models = _models(tmp_path, "b.safetensors", "run/model.safetensors", "a.safetensors")

    text = f"{models[0]},{models[1].parent} , {models[2]},{models[0]}"

    assert model_paths(text) == (*models, models[0])
    assert model_paths(",".join([text] * 100)) == (*models, models[0]) * 100


def test_a_folder_of_folds_has_a_model_for_each_by_number(tmp_path: Path) -> None:
    models = _models(tmp_path, *(f"fold-{number}/model.safetensors" for number in (0, 1, 2, 10)))
    _models(tmp_path, "fold-x/model.safetensors", "other/model.safetensors")

    assert model_paths(tmp_path) == tuple(models)
    assert model_paths(f"{tmp_path},{models[0]}") == (*models, models[0])
    own = _models(tmp_path, "model.safetensors")
    assert model_paths(tmp_path) == tuple(own)  # a model of its own goes before the folds below it


def test_a_run_without_a_model_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder without model\.safetensors"):
        model_paths(tmp_path)
    _models(tmp_path, "fold-0/model.safetensors", "fold-1/last.ckpt")
    with pytest.raises(ModelError, match=r"fold-1: the training has not ended"):
        model_paths(tmp_path)
    _models(tmp_path, "last.ckpt")
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path}: the training has not ended")):
        model_paths(tmp_path)


@pytest.mark.parametrize("text", ["a,", ",a", "a,,b", ",", " , a"])
def test_a_list_with_nothing_between_commas_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{text}: expected model files")):
        model_paths(text)
