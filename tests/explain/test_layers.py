"""What the layers of a network answer, and Grad-CAM against a slow, obvious calculation."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from defectseg.config import ModelConfig
from defectseg.explain.layers import _layer, look_inside
from defectseg.model.info import Normalization
from defectseg.model.network import DefectNetwork

pytest.importorskip("captum", reason="captum is not installed; it belongs to the extra train")


def _network(**model: Any) -> DefectNetwork:
    torch.manual_seed(1)
    return DefectNetwork(
        ModelConfig(**{"encoder": "tu-test_resnet", **model}), 2, Normalization(mean=0.5, std=0.2)
    ).eval()


def _image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (height, width)).astype(np.uint8)


def _pixels(height: int, width: int) -> NDArray[np.bool_]:
    pixels = np.zeros((height, width), np.bool_)
    pixels[height // 4 : height // 2, width // 2 :] = True
    return pixels


@pytest.mark.parametrize(
    "model",
    [
        {"in_channels": 3}, {"classification_head": False}, {"input_scale": 0.5}, {"input_scale": 2.0},
        {"architecture": "FPN"}, {"architecture": "DeepLabV3Plus"},
    ],
)  # fmt: skip
def test_grad_cam_weighs_the_deepest_maps_by_their_mean_gradient(model: dict[str, Any]) -> None:
    network, image, pixels = _network(**model), _image(64, 128), _pixels(64, 128)
    _, evidence = look_inside(network, image, {0: pixels, 1: ~pixels})
    held: list[torch.Tensor] = []

    def hold(module: object, inputs: object, output: list[torch.Tensor]) -> list[torch.Tensor]:
        held.append(output[-1].detach().requires_grad_())
        return [*output[:-1], held[-1]]

    hook = network.net.get_submodule("encoder").register_forward_hook(hold)
    for index, wanted in ((0, pixels), (1, ~pixels)):
        logits = network(torch.from_numpy(image)[None, None], full_size=False)[0][0, index]
        step = [length // small for length, small in zip((64, 128), logits.shape, strict=True)]  # 0 if it is enlarged
        grown = np.repeat(np.repeat(wanted, 2, 0), 2, 1) if network.input_scale == 2 else wanted[:: step[0], :: step[1]]
        logits[torch.from_numpy(grown.copy())].mean().backward()
        maps, gradients = held[-1].detach()[0], held[-1].grad
        assert gradients is not None
        total = torch.zeros(maps.shape[1:])
        for one, gradient in zip(maps, gradients[0], strict=True):
            total += gradient.mean() * one
        spread = F.interpolate(total.clamp(min=0)[None, None], size=logits.shape, mode="bilinear")[0, 0]
        assert spread.max() > 0 or evidence[index].max() == 0
        np.testing.assert_allclose(evidence[index], spread.numpy(), atol=1e-5 * float(spread.max()))
    hook.remove()


@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_shows_its_stages_on_an_image_of_any_size(architecture: str) -> None:
    network = _network(architecture=architecture, encoder="tu-test_vit" if architecture == "dpt" else "tu-test_resnet")
    layers, evidence = look_inside(network, _image(50, 75), {1: _pixels(50, 75)})
    names = [layer.name for layer in layers]
    stages = len(names) - 2
    assert names == [
        "First layer", *(f"Encoder, stage {n} of {stages}" for n in range(1, stages + 1)), "Decoder, last layer"
    ]  # fmt: skip
    assert stages >= 3
    for layer in layers:
        assert layer.maps.shape == (len(layer.channels), 50, 75)
        assert 1 <= len(layer.channels) <= (4 if layer.filters is None else 12)
    assert all(one.size_hw >= other.size_hw for one, other in pairwise(layers[1:-1]))
    assert evidence[1].shape == (50, 75)
    assert evidence[1].min() >= 0


@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_first_filters_act_on_grey_as_they_are_shown(in_channels: int) -> None:
    network, image = _network(in_channels=in_channels), _image(64, 64)
    first = look_inside(network, image, {0: _pixels(64, 64)})[0][0]
    assert first.filters is not None
    assert first.filters.shape == (len(first.channels), 3, 3)
    grey = (image / np.float32(255) - 0.5) / 0.2
    for weights, answer in zip(first.filters, first.maps, strict=True):
        # With a stride of 2 and a padding of 1, value 10, 15 sees rows 19 to 21 and columns 29 to 31; it is a block.
        expected = (weights * grey[19:22, 29:32]).sum()
        np.testing.assert_allclose(answer[20:22, 30:32], expected, atol=1e-4)


def test_maps_that_vary_most_and_differ_are_kept_without_their_padding() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    columns, checks = rows.T, ((rows + rows.T) % 2)
    output = torch.stack([checks, 2 * rows, -3 * rows, 0 * rows, columns, 5 + columns, 9.0 * (rows > 5)])[None]
    layer = _layer("one", output, None, torch.Size((16, 16)), torch.Size((12, 16)))
    assert layer.channels == (2, 4, 0, 3), (
        "the steepest, then what neither repeats it nor another; 6 varies in the padding"
    )
    assert (layer.of, layer.size_hw, layer.maps.shape) == (7, (8, 8), (4, 12, 16))
    np.testing.assert_array_equal(layer.maps[0], np.repeat(-3 * rows[:6].numpy(), 2, 0).repeat(2, 1))
