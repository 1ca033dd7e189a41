"""Bundles: one file with weights and description, read without a network and without unpickling."""

import errno
import json
import pickle
import socket
import struct
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError, ResourceError
from defectseg.model.bundle import load_bundle, read_bundle, save_bundle, weights_digest
from defectseg.model.info import FORMAT_VERSION, METADATA_KEY, ModelInfo, Normalization, Thresholds, read_model_info
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


def test_the_description_is_read_without_the_weights(bundle: Path) -> None:
    assert read_model_info(bundle) == _info()


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


def _header_bytes(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


@pytest.mark.parametrize("keep", ["nothing", "a part of the header", "the header", "all but the last byte"])
def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path: Path, keep: str) -> None:
    content = bundle.read_bytes()
    header = _header_bytes(content)
    length = {"nothing": 0, "a part of the header": header // 2, "the header": header}.get(keep, len(content) - 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:length])
    with pytest.raises(ModelError, match=r"model.safetensors: .*damaged"):
        load_bundle(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 a zip", b"\xff" * 8 + b"{}"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a model file, or damaged"):
        load_bundle(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        load_bundle(path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="was not written by defectseg"):
        load_bundle(path)


def _save_with_description(path: Path, text: str) -> Path:
    save_file({"a": torch.zeros(1)}, path, metadata={METADATA_KEY: text})
    return path


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format_version": 1}', '{"format_version": 1, "colour": 2}'])
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"m\.safetensors: its description cannot be read"):
        load_bundle(_save_with_description(tmp_path / "m.safetensors", text))


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    content = json.loads(_info().model_dump_json()) | {"format_version": FORMAT_VERSION + 1, "new_key": 1}
    path = _save_with_description(tmp_path / "m.safetensors", json.dumps(content))
    with pytest.raises(ModelError, match=f"format {FORMAT_VERSION + 1}; .* up to {FORMAT_VERSION}. Upgrade defectseg"):
        read_model_info(path)


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


def test_values_that_were_saved_are_the_values_that_are_read(bundle: Path) -> None:
    ours = _network().state_dict()
    for key, value in load_file(bundle).items():
        np.testing.assert_array_equal(value.numpy(), ours[key].numpy())


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ResourceError, match="no space left"):
        save_bundle(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, _info())
    assert list(tmp_path.iterdir()) == []
