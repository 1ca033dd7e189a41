"""Bundles: one file with weights and description, read without a network and without unpickling."""

import pickle
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError
from defectseg.model.bundle import load_bundle, read_bundle, save_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds, seal_model
from defectseg.model.network import DefectNetwork

MODEL = ModelConfig(
    encoder="tu-test_resnet",
    encoder_weights="imagenet",
    options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
)
INFO = ModelInfo(
    class_names=("pits", "cracks"),
    normalization=Normalization(mean=0.3, std=0.2),
    thresholds=Thresholds(gate=(0.4, 0.6), pixel=(0.5, 0.3), min_area_px=(0, 50), chosen_by="hand"),
    recipe=Recipe(model=MODEL),
    fold=1,
    trained_on=("0123456789ab",),
)


@pytest.fixture(scope="module")
def network() -> DefectNetwork:
    return DefectNetwork(MODEL, 2, INFO.normalization).eval()


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("loading a bundle must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


@pytest.mark.usefixtures("no_downloads")
def test_a_bundle_gives_back_network_and_description_and_downloads_nothing(
    tmp_path: Path, network: DefectNetwork
) -> None:
    save_bundle(tmp_path / "m.safetensors", network.state_dict(), INFO)
    loaded, info = load_bundle(tmp_path / "m.safetensors")
    assert info == INFO
    assert not loaded.training
    image = torch.randint(0, 256, (1, 1, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        for ours, theirs in zip(network.answer(image), loaded.answer(image), strict=True):
            assert torch.equal(ours, theirs)


def test_weights_are_saved_whatever_their_memory_layout_and_where_they_share_memory(
    tmp_path: Path, network: DefectNetwork
) -> None:
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    turned = {
        key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for key, value in weights.items()
    }
    save_bundle(tmp_path / "m.safetensors", {**turned, "tied": next(iter(turned.values()))}, INFO)
    _, read = read_bundle(tmp_path / "m.safetensors")
    assert torch.equal(read.pop("tied"), next(iter(weights.values())))
    assert weights.keys() == read.keys()
    assert all(torch.equal(value, read[key]) for key, value in weights.items())


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        load_bundle(path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_the_description_or_are_damaged_are_refused(
    tmp_path: Path, network: DefectNetwork
) -> None:
    path = tmp_path / "m.safetensors"
    three = {"class_names": ("a", "b", "c"), "thresholds": Thresholds.default(3)}
    save_bundle(path, network.state_dict(), INFO.model_copy(update=three))
    with pytest.raises(ModelError, match=r"m\.safetensors: its weights do not fit its description"):
        load_bundle(path)
    seal_model(path, INFO, path.read_bytes().replace(b'"F32"', b'"X32"'))
    with pytest.raises(ModelError, match=r"m\.safetensors: damaged; its weights cannot be read"):
        load_bundle(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_used(
    tmp_path: Path, network: DefectNetwork, value: float
) -> None:
    path, name = tmp_path / "m.safetensors", "net.encoder.model.conv1.0.weight"
    weights = {key: weight.clone() for key, weight in network.state_dict().items()}
    weights[name][0, 0, 1, 1] = value
    with pytest.raises(ModelError, match=rf"m\.safetensors: not written, because {name} holds NaN or infinity"):
        save_bundle(path, weights, INFO)
    assert not path.exists()
    seal_model(path, INFO, save(weights, metadata={"defectseg": ""}))
    with pytest.raises(ModelError, match=rf"m\.safetensors: {name} holds NaN or infinity"):
        load_bundle(path)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(encoder="tu-vit_giant_patch14_dinov2", architecture="DPT"),
        ModelConfig(encoder="tu-test_resnet", options={"decoder_channels": [20_000] * 5}),
        ModelConfig(encoder="tu-convnext_atto", options={"depths": [3, 5000, 3, 3]}),
        ModelConfig(encoder="tu-vit_tiny_patch16_224", architecture="DPT", options={"img_size": 10**6}),
    ],
)
def test_a_network_larger_than_the_weights_is_refused_before_it_takes_memory(
    tmp_path: Path, network: DefectNetwork, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def build(*arguments: Any) -> DefectNetwork:
        devices.append(torch.empty(0).device.type)
        return DefectNetwork(*arguments)

    monkeypatch.setattr("defectseg.model.bundle.DefectNetwork", build)
    path = tmp_path / "m.safetensors"
    save_bundle(path, network.state_dict(), INFO)
    assert load_bundle(path)[1] == INFO
    assert devices == ["meta", "cpu"]
    save_bundle(path, network.state_dict(), INFO.model_copy(update={"recipe": Recipe(model=model)}))
    with pytest.raises(ModelError, match=r"m\.safetensors: its weights do not fit its description"):
        load_bundle(path)
    assert devices == ["meta", "cpu", "meta"]


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
    save_bundle(tmp_path / "m.safetensors", {}, INFO.model_copy(update={"recipe": Recipe(model=model)}))
    with pytest.raises(ModelError, match=r"m\.safetensors: model"):
        load_bundle(tmp_path / "m.safetensors")
