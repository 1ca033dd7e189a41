"""What passes through the layers of a network, and what speaks for a class."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
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
    size_hw: tuple[int, int]
    maps: Array
    filters: Array | None = None


def look_inside(
    network: DefectNetwork, image: Array, wanted: Mapping[int, Array]
) -> tuple[list[Layer], dict[int, Array]]:
    """Compute what the layers of a network answer to an image, and where the evidence for classes lies.

    Args:
        network: in evaluation mode. Its weights are frozen.
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

    network.requires_grad_(False)  # so that only what follows the last stage is kept in memory for the gradient
    grey = torch.tensor(image, device=next(network.parameters()).device)[None, None]
    # Encoders have no kind of module in common whose output is their last stage, so a hook passes it through this one.
    last_stage, seen = nn.Identity(), dict[str, Any]()
    encoder, head = map(network.net.get_submodule, ("encoder", "segmentation_head"))
    first = next((module for module in encoder.modules() if isinstance(module, nn.Conv2d)), nn.Conv2d(1, 1, 1))
    hooks = [
        encoder.register_forward_hook(partial(_see_stages, seen, last_stage)),
        head.register_forward_pre_hook(lambda module, inputs: seen.update(decoder=inputs[0])),
        first.register_forward_hook(lambda module, inputs, output: seen.update(first=output)),
    ]
    try:
        with memory_errors(grey.shape), torch.no_grad():
            used_hw = network(grey, full_size=False)[0].shape[-2:]
            keep, layers = partial(_strongest, padded_hw=seen["padded_hw"], used_hw=used_hw), list[Layer]()
            if "first" in seen and first.in_channels == network.in_channels:
                layer = keep("First layer", seen["first"], _NUM_FILTERS)
                layers.append(replace(layer, filters=_fetch(first.weight[list(layer.channels)].sum(dim=1))))
            for number, stage in enumerate(seen["stages"], start=1):
                layers.append(keep(f"Encoder, stage {number} of {len(seen['stages'])}", stage))
            layers.append(keep("Decoder, last layer", seen["decoder"]))
            evidence = {}
            for index, pixels in wanted.items():
                score = partial(_mean_logit, network, index, torch.tensor(pixels, device=grey.device))
                found = LayerGradCam(score, last_stage).attribute(grey, relu_attributions=True)
                evidence[index] = _fetch(_on_image(found, seen["padded_hw"], used_hw, "bilinear")[0])
    finally:
        for hook in hooks:
            hook.remove()
    return layers, evidence


def _see_stages(seen: dict[str, Any], last_stage: nn.Module, encoder: object, inputs: Any, output: Any) -> Any:
    """A hook of the encoder: its output, with the deepest stage passed through `last_stage`."""
    features, tokens = output if isinstance(output, tuple) else (output, None)  # of a ViT, which have no place
    # Most encoders give the image itself first; some, a stage without channels.
    stages = [stage for stage in features if stage is not inputs[0] and stage.shape[1]]
    seen.update(stages=stages, padded_hw=inputs[0].shape[-2:])
    features = [*features[:-1], last_stage(features[-1])]
    return features if tokens is None else (features, tokens)


def _mean_logit(network: DefectNetwork, index: int, pixels: Tensor, grey: Tensor) -> Tensor:
    return network(grey)[0][0, index][pixels].mean()[None]


def _strongest(
    name: str, output: Tensor, most: int = _NUM_MAPS, *, padded_hw: torch.Size, used_hw: torch.Size
) -> Layer:
    """A layer of its output (1, C, h, w), with `most` maps at most; its padding does not count."""
    rows, columns = (-(-n * used // to) for n, used, to in zip(output.shape[2:], used_hw, padded_hw, strict=True))
    values, chosen = output[0, :, :rows, :columns].flatten(1), list[int]()
    alike = values.corrcoef().abs()
    for channel in values.std(dim=1).argsort(descending=True, stable=True).tolist():
        if len(chosen) < most and not (alike[channel, chosen] >= _ALIKE).any():
            chosen.append(channel)
    maps = _fetch(_on_image(output[:, chosen], padded_hw, used_hw))
    return Layer(name, tuple(chosen), output.shape[1], (output.shape[2], output.shape[3]), maps)


def _on_image(maps: Tensor, padded_hw: torch.Size, used_hw: torch.Size, mode: str = "nearest") -> Tensor:
    return F.interpolate(maps, size=padded_hw, mode=mode)[0, :, : used_hw[0], : used_hw[1]]


def _fetch(tensor: Tensor) -> Array:
    return tensor.float().cpu().numpy()
