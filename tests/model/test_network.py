"""The network between grey levels and logits."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from defectseg.config import ModelConfig
from defectseg.errors import ConfigError, ModelError
from defectseg.model.info import Normalization
from defectseg.model.network import (
    DefectNetwork,
    build_network,
    check_size,
    normalization_of,
    transfer_weights,
)

HALF = Normalization(mean=0.5, std=0.25)
TINY = "tu-test_resnet"


def _network(num_classes: int = 3, *, seed: int = 0, **model: Any) -> DefectNetwork:
    torch.manual_seed(seed)
    return DefectNetwork(ModelConfig(**{"encoder": TINY, **model}), num_classes, HALF).eval()


def _grey(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _forward(network: DefectNetwork, grey: Tensor) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        return network(grey)  # type: ignore[no-any-return]


# Architectures and sizes


@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_answers_in_the_size_of_the_image(architecture: str) -> None:
    model: dict[str, Any] = {"encoder": "tu-test_vit"} if architecture == "dpt" else {}
    network = _network(2, architecture=architecture, **model)
    for height, width in ((64, 96), (50, 75), (1, 33)):
        mask_logits, gate_logits = _forward(network, _grey(2, 1, height, width))
        assert mask_logits.shape == (2, 2, height, width)
        assert gate_logits is not None
        assert gate_logits.shape == (2, 2)
        assert torch.isfinite(mask_logits).all()


def test_a_vision_transformer_takes_other_sizes_only_with_its_option() -> None:
    fixed = _network(1, architecture="DPT", encoder="tu-test_vit", options={"dynamic_img_size": False})
    with pytest.raises(ConfigError, match=r"cannot take images of 64x96 px: .*options.dynamic_img_size=true"):
        check_size(fixed, (64, 96))
    free = _network(1, architecture="DPT", encoder="tu-test_vit", options={"dynamic_img_size": True})
    free.train()
    check_size(free, (64, 96))
    assert free.training


@pytest.mark.parametrize(
    ("model", "size_hw", "padded_hw"),
    [
        ({}, (128, 160), (128, 160)),
        ({"architecture": "PAN"}, (128, 160), (128, 160)),
        ({}, (60, 70), (64, 96)),
        ({"in_channels": 3}, (60, 70), (64, 96)),
    ],
)
def test_an_image_is_normalised_and_padded_to_whole_strides_and_grey_is_repeated_as_colours(
    model: dict[str, Any], size_hw: tuple[int, int], padded_hw: tuple[int, int]
) -> None:
    network, (height, width) = _network(**model), size_hw
    grey = _grey(1, 1, height, width)
    padding = (0, padded_hw[1] - width, 0, padded_hw[0] - height)
    by_hand = torch.nn.functional.pad((grey.float() / 255.0 - 0.5) / 0.25, padding, mode="replicate")
    with torch.no_grad():
        masks, gates = network.net(by_hand.repeat(1, model.get("in_channels", 1), 1, 1))
    own_masks, own_gates = _forward(network, grey)
    assert own_gates is not None
    assert torch.equal(own_masks, masks[..., :height, :width])
    assert torch.equal(own_gates, gates)


# The gate


@pytest.mark.parametrize("head", [True, False])
def test_the_gate_is_the_heads_answer_or_without_one_the_largest_probability(head: bool) -> None:
    network = _network(classification_head=head)
    grey = _grey(2, 1, 50, 70)
    masks, gates = _forward(network, grey)
    with torch.no_grad():
        probabilities, gate = network.answer(grey)
    assert torch.equal(probabilities, masks.sigmoid())
    assert (gates is not None) == head
    assert torch.equal(gate, masks.sigmoid().flatten(2).max(dim=2).values if gates is None else gates.sigmoid())
    assert probabilities.dtype == gate.dtype == torch.float32


# What the network sees, enlarged or reduced


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_masks_have_the_size_of_the_image_at_any_scale(scale: float) -> None:
    network = _network(input_scale=scale)
    for height, width in ((1, 1), (33, 47), (64, 96)):
        masks, _ = _forward(network, _grey(2, 1, height, width))
        assert masks.shape == (2, 3, height, width)
        assert masks.dtype == torch.float32
        assert torch.isfinite(masks).all()


@pytest.mark.parametrize(("scale", "seen_hw"), [(2.0, (94, 146)), (1.5, (71, 110)), (0.5, (24, 37))])
def test_a_scaled_network_answers_as_one_that_is_given_a_scaled_image(scale: float, seen_hw: tuple[int, int]) -> None:
    plain, scaled = _network(), _network(input_scale=scale)
    scaled.load_state_dict(plain.state_dict())
    grey = _grey(1, 1, 47, 73)
    seen = interpolate(grey.float(), size=seen_hw, mode="bilinear", antialias=scale < 1)
    masks, gates = _forward(plain, seen)
    expected = interpolate(masks, size=(47, 73), mode="bilinear", antialias=scale > 1)
    own_masks, own_gates = _forward(scaled, grey)
    torch.testing.assert_close(own_masks, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(own_gates, gates, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(scaled(grey, full_size=False)[0], masks, atol=1e-3, rtol=1e-3)


def test_a_scaled_network_can_be_trained_in_16_bits() -> None:
    network = _network(input_scale=0.5).train()
    with torch.autocast("cpu", torch.bfloat16):
        masks, _ = network(_grey(2, 1, 64, 64))
    masks.square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in network.named_parameters() if "encoder" in name)


# Names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "Unett"}, r"model.architecture: 'Unett' is not one of .*Did you mean 'Unet'"),
        ({"encoder": "resnet43"}, r"model.encoder: 'resnet43' is not .*Did you mean 'resnet34'"),
        ({"encoder": "tu-resnet18x"}, r"model.encoder: 'tu-resnet18x' is not .*Did you mean 'tu-resnet18'"),
        ({"options": {"decoder_chanels": [1]}}, r"cannot be built: .*decoder_chanels"),
        ({"options": {"encoder_depth": 9}}, r"cannot be built"),
    ],
)
def test_a_network_that_there_is_not_is_told(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _network(**model)


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("resnet34", 0.449, 0.226),  # (0.485 + 0.456 + 0.406) / 3 and (0.229 + 0.224 + 0.225) / 3
        ("tu-resnet18", 0.449, 0.226),
        ("efficientnet-b0", 0.449, 0.226),
        ("tu-tf_efficientnet_lite0", 0.5, 0.5),
        ("tu-tf_efficientnet_lite0.in1k", 0.5, 0.5),
        ("mit_b0", 0.449, 0.226),
    ],
)
def test_normalization_is_that_of_the_encoder(encoder: str, mean: float, std: float) -> None:
    normalization = normalization_of(encoder)
    assert normalization.mean == pytest.approx(mean, abs=1e-6)
    assert normalization.std == pytest.approx(std, abs=1e-6)


# Encoder weights

Saver = Callable[[dict[str, Tensor], Path], Path]


def _save_safetensors(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def _save_pth(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save(weights, folder / "encoder.pth")
    return folder / "encoder.pth"


def _save_checkpoint(weights: dict[str, Tensor], folder: Path) -> Path:
    content = {"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 3}
    torch.save(content, folder / "encoder.pth")
    return folder / "encoder.pth"


def _encoder_for_three_channels(encoder: str) -> tuple[Any, dict[str, Tensor]]:
    """An encoder for colour with varied batch-norm statistics, and its weights under timm's or torchvision's names."""
    torch.manual_seed(4)
    network = smp.encoders.get_encoder(encoder, in_channels=3, weights=None)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    names = {key.removeprefix("model."): value.clone() for key, value in network.state_dict().items()}
    return network.eval(), names


@pytest.mark.parametrize("save", [_save_safetensors, _save_pth, _save_checkpoint])
@pytest.mark.parametrize(("encoder", "in_channels"), [("resnet18", 1), (TINY, 1), (TINY, 3)])
def test_a_stem_for_colour_gives_the_same_on_grey(encoder: str, in_channels: int, save: Saver, tmp_path: Path) -> None:
    colour, weights = _encoder_for_three_channels(encoder)
    config = ModelConfig(encoder=encoder, in_channels=in_channels)
    network = build_network(config, 2, weights=str(save(weights, tmp_path))).eval()
    grey = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        ours = network.net.get_submodule("encoder")(grey.expand(-1, in_channels, -1, -1))
        theirs = colour(grey.expand(-1, 3, -1, -1))
    for own, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_timms_own_file_for_a_whole_classifier_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(5)
    classifier = timm.create_model("test_convnext", pretrained=False)  # its stages are joined by dots in the file
    config = ModelConfig(
        encoder="tu-test_convnext", in_channels=1, options={"encoder_depth": 4, "decoder_channels": [8] * 4}
    )
    network = build_network(config, 2, weights=str(_save_safetensors(classifier.state_dict(), tmp_path)))
    stem = classifier.state_dict()["stem.0.weight"]
    loaded = network.net.get_submodule("encoder").state_dict()
    assert torch.equal(loaded["model.stem_0.weight"], stem.sum(dim=1, keepdim=True))


def _weights(path: str, encoder: str = TINY) -> None:
    build_network(ModelConfig(encoder=encoder), 2, weights=path)


@pytest.mark.parametrize("save", [_save_safetensors, _save_pth])
def test_weights_of_another_encoder_are_refused(save: Saver, tmp_path: Path) -> None:
    _, weights = _encoder_for_three_channels(TINY)
    with pytest.raises(ModelError, match=r"encoder\..*: not weights of this encoder: lacks \d+ of \d+ weights"):
        _weights(str(save(weights, tmp_path)), "resnet18")
    stem = weights.pop("conv1.0.weight")
    with pytest.raises(ModelError, match=r"lacks 1 of \d+ weights \(first: model.conv1.0.weight\)"):
        _weights(str(save(weights, tmp_path)))
    with pytest.raises(ModelError, match=r"conv1.0.weight \(5, 3, 3, 3\) instead of \("):
        _weights(str(save({**weights, "conv1.0.weight": stem[:5]}, tmp_path)))


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_a_file_that_is_not_there_or_damaged_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ModelError, match=f"{name}: not there. Expected imagenet, none"):
        _weights(str(path))
    whole = (_save_pth if path.suffix == ".pth" else _save_safetensors)(_encoder_for_three_channels(TINY)[1], tmp_path)
    for content in (b"", b"not weights at all", b"PK\x03\x04", whole.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}: not a file of weights alone, or damaged"):
            _weights(str(path))


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": None}, {"state_dict": torch.zeros(1)}])
def test_a_checkpoint_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "encoder.pth")
    with pytest.raises(ModelError, match="holds no weights"):
        _weights(str(tmp_path / "encoder.pth"))


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Trap()}, tmp_path / "encoder.pth")
    with pytest.raises(ModelError, match="not a file of weights alone"):
        _weights(str(tmp_path / "encoder.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda one: torch.full_like(one, torch.nan),
        lambda one: torch.full(one.shape, 1e300, dtype=torch.float64),  # infinite as float32
        lambda one: one.to(torch.int8),
        lambda one: one.to(torch.complex64),
        lambda one: torch.empty_like(one, device="meta"),
    ],
    ids=["nan", "too large", "integers", "complex", "without values"],
)
def test_weights_that_are_no_finite_floats_are_refused_by_name(
    change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    _, weights = _encoder_for_three_channels(TINY)
    name = next(reversed([key for key, value in weights.items() if value.dim() == 4]))
    with pytest.raises(ModelError, match=rf"encoder.pth: .*{name} has no finite numbers"):
        _weights(str(_save_pth({**weights, name: change(weights[name])}, tmp_path)))


def test_weights_that_would_take_far_more_memory_than_their_file_are_refused(tmp_path: Path) -> None:
    _, weights = _encoder_for_three_channels(TINY)
    stem = torch.zeros(1).expand(10**6, 3, 10**3, 10**3)
    with pytest.raises(ModelError, match=r"conv1.0.weight \(1000000, 3, 1000, 1000\) instead of"):
        _weights(str(_save_pth({**weights, "conv1.0.weight": stem}, tmp_path)))
    path, packed = _save_pth(weights, tmp_path), tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.infolist():
            archive.writestr(entry.filename, whole.read(entry) + b"\0" * 100_000)
    with pytest.raises(ModelError, match=r"packed\.pth: .*larger in memory than on the disk"):
        _weights(str(packed))


@pytest.mark.parametrize("opcode", [b"X\xff\xff\xff\x7f", b"c"], ids=["long text", "long line"])
def test_a_pickle_is_read_no_further_than_weights_need(opcode: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(b"\x80\x02" + opcode)
    with path.open("r+b") as file:
        file.truncate(2**35)  # sparse
    with pytest.raises(ModelError, match=r"old\.pth: .*more than 16777216 bytes that are no weights"):
        _weights(str(path))


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name}: not a file of weights alone"):
        _weights(str(tmp_path / name))


def test_a_failed_download_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(smp, "create_model", fail)
    with pytest.raises(ModelError, match=r"could not be downloaded \(no route to host\). Give a file of weights"):
        build_network(ModelConfig(encoder=TINY), 2, weights="imagenet")


# Other classes


@pytest.mark.parametrize("architecture", ["Unet", "DPT"])
def test_classes_of_the_same_name_are_carried_over(architecture: str) -> None:
    model = {"architecture": architecture, "encoder": "tu-test_vit" if architecture == "DPT" else TINY}
    source, target = _network(3, seed=1, **model), _network(3, seed=2, **model)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    kept = transfer_weights(source.state_dict(), ("a", "b", "c"), target, ("c", "new", "b"))
    assert kept == ["c", "b"]
    grey = _grey(1, 1, 64, 64)
    for ours, theirs in zip(_forward(target, grey), _forward(source, grey), strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours[:, [0, 2]], theirs[:, [2, 1]])
    last = [key for key, value in before.items() if "head" in key and value.shape[:1] == (3,)]
    assert len(last) == 4  # weight and bias of either head
    for key in last:
        assert torch.equal(target.state_dict()[key][1], before[key][1]), "a new class keeps its own start"


def test_another_kind_of_network_is_refused() -> None:
    source = _network(2, classification_head=False)
    with pytest.raises(ModelError, match=r"has no weight 'net\.classification_head"):
        transfer_weights(source.state_dict(), ("a", "b"), _network(2), ("a", "b"))
    source = _network(2, options={"decoder_channels": [64, 32, 16, 16, 16]})
    with pytest.raises(ModelError, match="has another shape in this model"):
        transfer_weights(source.state_dict(), ("a", "b"), _network(2), ("a", "b"))
