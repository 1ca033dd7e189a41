"""Bundles of small networks with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from defectseg.config import ModelConfig, Recipe
from defectseg.model.bundle import save_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork

SaveRandom = Callable[..., Path]


@pytest.fixture(scope="session")
def save_random() -> SaveRandom:
    """Saves a network that depends on the seed to a path, which it returns."""

    def save(path: Path, *, seed: int = 1) -> Path:
        options = {"encoder_depth": 3, "decoder_channels": [8] * 3}
        model = ModelConfig(encoder="tu-test_resnet", encoder_weights="none", options=options)
        info = ModelInfo(
            class_names=("pits",),
            normalization=Normalization(mean=0.5, std=0.5),
            thresholds=Thresholds.default(1),
            recipe=Recipe(model=model),
        )
        torch.manual_seed(seed)
        save_bundle(path, DefectNetwork(model, 1, info.normalization).state_dict(), info)
        return path

    return save


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, save_random: SaveRandom) -> Path:
    return save_random(tmp_path_factory.mktemp("bundle") / "m.safetensors")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of converted models."""
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
