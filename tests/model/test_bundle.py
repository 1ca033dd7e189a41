"""Bundles: one file with weights and description, read without a network and without unpickling."""

import errno
import pickle
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError, ResourceError
from defectseg.model.bundle import load_bundle, read_bundle, save_bundle, weights_digest
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork

NORMALIZATION = Normalization(mean=0.3, std=0.2)
MODEL = ModelConfig(
    encoder="tu-test_resnet", encoder_weights="imagenet", options={"decoder_channels": [16, 8, 8, 8, 8]}
)


def _info(**changes: Any) -> ModelInfo:
    content = {
        "class_names": ("pits", "cracks"),
        "normalization": NORMALIZATION,
        "thresholds": Thresholds(gate=(0.4, 0.6), pixel=(0.5, 0.3), min_area_px=(0, 50), chosen_by="hand"),
        "recipe": Recipe(model=MODEL),
        "fold": 1,
        "trained_on": ("0123456789ab",),
    }
    return ModelInfo(**{**content, **changes})


def _network(seed: int = 0) -> DefectNetwork:
    torch.manual_seed(seed)
    return DefectNetwork(MODEL, 2, NORMALIZATION).eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    save_bundle(path, _network().state_dict(), _info())
    return path


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("loading a bundle must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


@pytest.mark.usefixtures("no_downloads")
def test_a_bundle_gives_back_network_and_description(bundle: Path) -> None:
    network, info = load_bundle(bundle)
    assert info == _info()
    assert not network.training
    image = torch.randint(0, 256, (1, 1, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        for ours, theirs in zip(_network().answer(image), network.answer(image), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("no_downloads")
def test_a_bundle_that_was_trained_from_imagenet_weights_downloads_nothing(bundle: Path) -> None:
    assert load_bundle(bundle)[1].recipe.model.encoder_weights == "imagenet"


def test_weights_are_saved_whatever_their_memory_layout(tmp_path: Path) -> None:
    network = _network().to(memory_format=torch.channels_last)
    save_bundle(tmp_path / "m.safetensors", network.state_dict(), _info())
    _, weights = read_bundle(tmp_path / "m.safetensors")
    assert weights_digest(weights) == weights_digest(_network().state_dict())


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = torch.ones(3)
    save_bundle(tmp_path / "m.safetensors", {"a": tied, "b": tied}, _info())
    assert sorted(read_bundle(tmp_path / "m.safetensors")[1]) == ["a", "b"]


def test_the_digest_tells_weights_apart() -> None:
    one, same, other = _network(0).state_dict(), _network(0).state_dict(), _network(1).state_dict()
    assert weights_digest(one) == weights_digest(dict(reversed(same.items())))
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest({"a": torch.ones(1)}) != weights_digest({"b": torch.ones(1)})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"x.safetensors: no such model file"):
        load_bundle(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="no such model file"):
        load_bundle(tmp_path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        load_bundle(path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    thresholds = Thresholds.default(3)
    info = _info(class_names=("a", "b", "c"), thresholds=thresholds)
    save_bundle(tmp_path / "m.safetensors", _network().state_dict(), info)
    with pytest.raises(ModelError, match=r"m\.safetensors: its weights do not fit its description"):
        load_bundle(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(encoder="tu-resnet_of_next_year"),
        ModelConfig(architecture="UnetOfNextYear"),
        ModelConfig(encoder="tu-hf-hub:someone/something"),
        ModelConfig(encoder="resnet18", options={"encoder_weights": "imagenet"}),
        ModelConfig(encoder="tu-test_resnet", options={"pretrained": True}),
    ],
)
@pytest.mark.usefixtures("no_downloads")
def test_a_network_that_cannot_be_built_here_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    save_bundle(tmp_path / "m.safetensors", _network().state_dict(), _info(recipe=Recipe(model=model)))
    with pytest.raises(ModelError, match=r"m\.safetensors: model"):
        load_bundle(tmp_path / "m.safetensors")


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ResourceError, match="no space left"):
        save_bundle(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, _info())
    assert list(tmp_path.iterdir()) == []
