"""What passes through the layers of a network, and what speaks for a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Size, Tensor, nn
from torch.nn import functional as F

from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import memory_errors

Array = NDArray[Any]

_NUM_FILTERS, _NUM_MAPS, _ALIKE = 12, 4, 0.9


@dataclass(frozen=True)
class Layer:
    """The maps of a layer that vary most over the image, by their standard deviation, without repetitions.

    Attributes:
        name: for people.
        channels: their numbers among the channels, the one that varies most first. Those that correlate with one before
            by 0.9 or more are left out.
        of: number of channels.
        size_hw: size of each, before the padding of the image is cut off.
        maps: float32 (n, h, w), as large as the image is inside the network: a value of a coarse layer is a block.
        filters: of the first layer, as they act on grey, float32 (n, k, k), for these channels; else None.
    """

    name: str
    channels: tuple[int, ...]
    of: int
    size_hw: tuple[int, ...]
    maps: Array
    filters: Array | None


def look_inside(
    network: DefectNetwork, image: Array, wanted: Mapping[int, Array]
) -> tuple[list[Layer], dict[int, Array]]:
    """Compute what the layers of a network answer to an image, and where the evidence for classes lies.

    Args:
        network: in evaluation mode.
        image: grey uint8 (H, W).
        wanted: index of a class -> bool (H, W), the pixels to explain, at least one.

    Returns:
        the first convolution, before normalisation, unless the network begins with something else; the stages of the
        encoder, from fine to coarse; and the last layer of the decoder, from which the probabilities are computed.
        And for each class Grad-CAM at the last stage of the encoder, float32 (h, w) like the maps: the maps of that
        stage, summed with weights that say how much the mean logit of the wanted pixels rises with each; what is below
        0 counts as 0. Selvaraju et al., arXiv:1610.02391; for segmentation, Vinogradova et al., arXiv:2002.11434.

    Raises:
        ResourceError: memory ran out.
    """
    from captum.attr import LayerGradCam

    net, last_stage = network.net, nn.Identity()  # a module for captum: those of encoders differ
    encoder, decoder, head = map(net.get_submodule, ("encoder", "decoder", "segmentation_head"))
    first = next((module for module in encoder.modules() if isinstance(module, nn.Conv2d)), None)
    with memory_errors((1, 1, *image.shape)), torch.no_grad():
        x, used_hw = network.prepare(torch.tensor(image, device=next(network.parameters()).device)[None, None])
        output = encoder(x)
        features, *tokens = output if isinstance(output, tuple) else (output,)  # tokens of a ViT have no place

        def logits_of(deepest: Tensor) -> Any:
            return head(decoder([*features[:-1], last_stage(deepest)], *tokens))[0, :, : used_hw[0], : used_hw[1]]

        # Most encoders give the image itself first; some, a stage without channels.
        stages = [stage for stage in features if stage is not x and stage.shape[1]]
        sizes = x.shape[-2:], used_hw
        named = [(f"Encoder, stage {number} of {len(stages)}", stage) for number, stage in enumerate(stages, start=1)]
        named.append(("Decoder, last layer", decoder(features, *tokens)))
        layers = [_layer(name, output, None, *sizes) for name, output in named]
        if first is not None and first.in_channels == network.in_channels:
            layers.insert(0, _layer("First layer", first(x), first.weight.sum(dim=1), *sizes))
        evidence = {}
        for index, pixels in wanted.items():
            at = F.adaptive_max_pool2d(torch.tensor(pixels, device=x.device)[None].float(), used_hw)[0] > 0
            grad_cam = LayerGradCam(lambda deepest, i=index, at=at: logits_of(deepest)[i][at].mean()[None], last_stage)
            found = grad_cam.attribute(features[-1], relu_attributions=True)
            evidence[index] = _fetch(_on_image(found, *sizes, mode="bilinear")[0])
    return layers, evidence


def _layer(name: str, output: Tensor, filters: Tensor | None, padded_hw: Size, used_hw: Size) -> Layer:
    """A layer of its output (1, C, h, w), whose padding does not count."""
    most = _NUM_MAPS if filters is None else _NUM_FILTERS
    rows, columns = (-(-n * used // to) for n, used, to in zip(output.shape[2:], used_hw, padded_hw, strict=True))
    values, chosen = output[0, :, :rows, :columns].flatten(1), list[int]()
    values = values - values.mean(dim=1, keepdim=True)
    alike = (F.normalize(values) @ F.normalize(values).T).abs()  # correlations
    for channel in values.norm(dim=1).argsort(descending=True, stable=True).tolist():
        if len(chosen) < most and not (alike[channel, chosen] >= _ALIKE).any():
            chosen.append(channel)
    kept = None if filters is None else _fetch(filters[chosen])
    maps = _fetch(_on_image(output[:, chosen], padded_hw, used_hw))
    return Layer(name, tuple(chosen), output.shape[1], tuple(output.shape[2:]), maps, kept)


def _on_image(maps: Tensor, padded_hw: Size, used_hw: Size, mode: str = "nearest") -> Tensor:
    return F.interpolate(maps, size=padded_hw, mode=mode)[0, :, : used_hw[0], : used_hw[1]]


def _fetch(tensor: Tensor) -> Array:
    return tensor.float().cpu().numpy()
