"""The network: grey levels in, logits out, with an architecture of segmentation-models-pytorch."""

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defectseg.config import ModelConfig
from defectseg.errors import ConfigError, ModelError
from defectseg.model.info import Normalization
from defectseg.model.weights_file import load_tensors

STRIDE_PX = 32
_LEAST_PX = {"pan": 128}  # its attention halves the deepest features three times
_IMAGENET = Normalization(mean=0.449, std=0.226)  # averaged over the channels
_HEAD_DROPOUT = 0.2
_HEADS = ("segmentation_head", "classification_head")


class DefectNetwork(nn.Module):
    """Grey levels in, logits out, including normalisation and padding to the stride.

    Args:
        config: architecture and encoder.
        num_classes: number of classes, C.
        normalization: what the encoder expects.
        pretrained: download ImageNet weights for the encoder; False when a bundle is loaded.

    Raises:
        ConfigError: segmentation-models-pytorch has no such architecture, encoder or option.
        ModelError: the ImageNet weights cannot be downloaded.
    """

    def __init__(
        self, config: ModelConfig, num_classes: int, normalization: Normalization, *, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.net = _create(config, num_classes, pretrained=pretrained)
        self.in_channels = config.in_channels
        self.input_scale = config.input_scale
        self.least_px = _LEAST_PX.get(config.architecture.lower(), STRIDE_PX)
        self.normalization = normalization

    def forward(self, grey: Tensor, *, full_size: bool = True) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of masks and gate.

        Args:
            grey: (N, 1, H, W), grey levels 0..255 of any type; H and W of any size.
            full_size: give the mask logits the size of the image; else they have that size times the input scale.

        Returns:
            mask logits (N, C, H, W), and gate logits (N, C) or None without a classification head.
        """
        size_hw = grey.shape[-2:]
        x, (height, width) = self.prepare(grey)
        output = self.net(x)
        mask_logits, gate_logits = output if isinstance(output, tuple) else (output, None)
        mask_logits = mask_logits[..., :height, :width]
        if self.input_scale != 1.0 and full_size:
            mask_logits = _resize(mask_logits, size_hw, smooth=self.input_scale > 1.0)
        return mask_logits, gate_logits

    def prepare(self, grey: Tensor) -> tuple[Tensor, torch.Size]:
        """What the architecture gets: normalised, scaled and padded (N, channels, h, w); and h, w without padding."""
        x = (grey.float() / 255.0 - self.normalization.mean) / self.normalization.std
        if self.input_scale != 1.0:
            scaled_hw = [_scale_length(length, self.input_scale) for length in grey.shape[-2:]]
            x = _resize(x, scaled_hw, smooth=self.input_scale < 1.0)
        size_hw = x.shape[-2:]
        x = _pad_to_stride(x, self.least_px)
        return (torch.cat([x] * self.in_channels, dim=1) if self.in_channels > 1 else x), size_hw

    def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities float32 (N, C, H, W) and gate float32 (N, C); arguments as for `forward`.

        Without a classification head, the gate is the largest probability of the image.
        """
        mask_logits, gate_logits = self(grey)
        probabilities = mask_logits.float().sigmoid()
        if gate_logits is None:
            return probabilities, probabilities.amax(dim=(2, 3), keepdim=True).flatten(1)
        return probabilities, gate_logits.float().sigmoid()


def normalization_of(encoder: str) -> Normalization:
    """Mean and standard deviation of the encoder according to timm, averaged over the three channels.

    segmentation-models-pytorch would download the values; timm ships them.
    """
    name = encoder.removeprefix("tu-").replace("-", "_")
    config = timm.models.get_pretrained_cfg(name) if timm.models.is_model(name.split(".")[0]) else None
    if config is None:
        return _IMAGENET
    return Normalization(mean=round(sum(config.mean) / 3, 6), std=round(sum(config.std) / 3, 6))


def build_network(config: ModelConfig, num_classes: int, weights: str) -> DefectNetwork:
    """Build a network to train.

    Args:
        weights: 'none', 'imagenet' (downloads), or the path of a file with timm-named encoder weights.

    Raises ConfigError and ModelError as DefectNetwork and load_encoder_weights do.
    """
    network = DefectNetwork(config, num_classes, normalization_of(config.encoder), pretrained=weights == "imagenet")
    if weights not in ("none", "imagenet"):
        load_encoder_weights(network, Path(weights))
    return network


def check_size(network: DefectNetwork, size_hw: tuple[int, int]) -> None:
    """Run a network that is to be trained on one black image, on the CPU.

    Raises:
        ConfigError: the architecture cannot take this size; a DPT, for example, needs options.dynamic_img_size.
    """
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros((1, 1, *size_hw), dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model: the network cannot take images of {size_hw[0]}x{size_hw[1]} px: {_first_line(error)}. Change "
            "data.crop_hw, or model.encoder; a ViT may need model.options.dynamic_img_size=true."
        ) from error
    finally:
        network.train()


def load_encoder_weights(network: DefectNetwork, path: Path) -> None:
    """Load the encoder from a .safetensors or .pth file with the weight names of timm or torchvision.

    If the network takes grey, a stem for three channels is summed into one, with the same output on grey input.

    Raises:
        ModelError: the file cannot be read, or lacks weights of this encoder.
    """
    encoder = network.net.get_submodule("encoder")
    found = _read_weights(path)
    wanted = encoder.state_dict()
    chosen, missing, misfits = {}, [], []
    for key, current in wanted.items():
        tensor = next((found[name] for name in _names_in_file(key) if name in found), None)
        if tensor is None:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
            continue
        if current.shape[1:2] == (1,) and tensor.shape == (*current.shape[:1], 3, *current.shape[2:]):
            tensor = tensor.sum(dim=1, keepdim=True)
        if tensor.shape != current.shape:
            misfits.append(f"{key} {tuple(tensor.shape)} instead of {tuple(current.shape)}")
        elif not _has_numbers(tensor, current.dtype):
            misfits.append(f"{key} has no finite numbers of its type")
        chosen[key] = tensor
    if missing or misfits:
        problem = f"lacks {len(missing)} of {len(wanted)} weights (first: {missing[0]})" if missing else misfits[0]
        raise ModelError(f"{path}: not weights of this encoder: {problem}. Check model.encoder against the file.")
    encoder.load_state_dict(wanted | chosen)


def transfer_weights(
    source: Mapping[str, Tensor], source_classes: Sequence[str], target: DefectNetwork, target_classes: Sequence[str]
) -> list[str]:
    """Copy the weights of a network into another that may have other classes.

    In the heads, only the rows of classes that both networks have (by name) are copied.

    Returns:
        the names of the classes whose rows were copied.

    Raises:
        ModelError: the networks differ in more than their classes.
    """
    state = target.state_dict()
    pairs = [(i, source_classes.index(name)) for i, name in enumerate(target_classes) if name in source_classes]
    for key, current in state.items():
        if key not in source:
            raise ModelError(f"the model has no weight {key!r}; it is another kind of network.", argument="init")
        if any(f"net.{head}." in key for head in _HEADS) and current.shape[:1] == (len(target_classes),):
            for row, source_row in pairs:
                current[row] = source[key][source_row]
        elif source[key].shape == current.shape:
            state[key] = source[key]
        else:
            raise ModelError(f"weight {key!r} has another shape in this model: another network.", argument="init")
    target.load_state_dict(state)
    return [target_classes[row] for row, _ in pairs]


def _create(config: ModelConfig, num_classes: int, *, pretrained: bool) -> nn.Module:
    architectures = [kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    if config.architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise _unknown("architecture", config.architecture, architectures, ", ".join(architectures))
    encoders = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
    if config.encoder.split(".")[0] not in encoders:  # what follows a dot names pretrained weights of timm
        expected = "segmentation-models-pytorch's encoders or timm's (with 'tu-' before the name)"
        raise _unknown("encoder", config.encoder, encoders, expected)
    head: dict[str, Any] = {}
    if config.classification_head:
        head = {"aux_params": {"pooling": "max", "dropout": _HEAD_DROPOUT, "classes": num_classes}}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`encoder_weights` should be set to True.*")
            network: nn.Module = smp.create_model(
                config.architecture,
                encoder_name=config.encoder,
                encoder_weights="imagenet" if pretrained else None,
                in_channels=config.in_channels,
                classes=num_classes,
                **head,
                **config.options,
            )
    except OSError as error:
        raise ModelError(
            f"the ImageNet weights of {config.encoder} could not be downloaded ({_first_line(error)}). "
            "Give a file of weights, or start from none.",
            argument="encoder_weights",
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model: {config.architecture} with encoder {config.encoder} cannot be built: {_first_line(error)}"
        ) from error
    return network


def _unknown(key: str, name: str, known: Sequence[str], expected: str) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"model.{key}: {name!r} is not one of {expected}.{hint}")


# The exporters trace what is computed from H and W only through integers, +, -, *, // and torch operations. Hence there
# is no max(), no round() and no branch below.


def _pad_to_stride(x: Tensor, least_px: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of the stride, and at least `least_px`."""
    size_hw: list[Any] = list(x.shape[-2:])
    padded_hw = [_at_least((length + STRIDE_PX - 1) // STRIDE_PX * STRIDE_PX, least_px) for length in size_hw]
    if all(isinstance(length, int) for length in padded_hw):  # outside of an export for any size
        rows, columns = (padded - length for padded, length in zip(padded_hw, size_hw, strict=True))
        return F.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x
    for axis, (padded, length) in enumerate(zip(padded_hw, size_hw, strict=True), start=2):
        last = torch.full((1,), length - 1, device=x.device)
        x = x.index_select(axis, torch.arange(padded, device=x.device).minimum(last))
    return x


def _scale_length(length: int, scale: float) -> Any:
    """Length times scale, rounded to the nearest integer, halves up; at least 1."""
    ratio = Fraction(scale).limit_denominator(10_000)
    return _at_least((2 * length * ratio.numerator + ratio.denominator) // (2 * ratio.denominator), 1)


def _at_least(length: Any, least: int) -> Any:
    if isinstance(length, Tensor):  # under torch.jit.trace, a length is a tensor
        return length.clamp(min=least)
    return torch.sym_max(length, least)


def _resize(x: Tensor, size_hw: Sequence[Any], *, smooth: bool) -> Tensor:
    """Bilinear resize in float32. With `smooth`, each pixel is a weighted mean of the old ones, as with `antialias`.

    The means are computed as two matrix products. That is ten times as fast as interpolation with `antialias` in
    OpenVINO, which took more time than the network itself.
    """
    if not smooth:
        return F.interpolate(x.float(), size=list(size_hw), mode="bilinear", align_corners=False)
    rows, columns = (_averaging(length, wanted, x.device) for length, wanted in zip(x.shape[-2:], size_hw, strict=True))
    # Only if autocast is on, since an export could not trace the switch.
    switch = torch.autocast(x.device.type, enabled=False) if torch.is_autocast_enabled(x.device.type) else nullcontext()
    with switch:
        resized: Tensor = rows @ x.float() @ columns.T
    return resized


def _averaging(length: Any, wanted: Any, device: torch.device) -> Tensor:
    """float32 (wanted, length): the weight of each old pixel in each new one, a triangle around its centre."""
    old = torch.arange(length, device=device) + 0.5
    new = torch.arange(wanted, device=device) + 0.5
    scale = torch.ones_like(new[:1]) * length / wanted
    shares: Tensor = (1 - (old - (new * scale)[:, None]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    return shares / shares.sum(dim=1, keepdim=True)


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__))
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, without a prefix that all their names share. No code in the file is run."""
    try:
        content = load_tensors(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: not there. Expected imagenet, none or a file.", argument="encoder_weights") from None
    except Exception as error:  # of many kinds, depending on the damage
        why = "code or other objects" if "weights_only" in str(error) else _first_line(error)  # torch advises to run it
        raise ModelError(f"{path}: not a file of weights alone, or damaged ({why}).") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path}: holds no weights. Expected a state dict with the names of timm.")
    for prefix in ("module.", "encoder.", "model."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _has_numbers(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether it has the finite numbers of a weight of this type: all floats, or none; neither sparse nor elsewhere."""
    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    is_plain &= tensor.is_floating_point() == dtype.is_floating_point and not tensor.is_complex()
    return is_plain and bool(tensor.to(dtype).isfinite().all())


def _names_in_file(key: str) -> tuple[str, str]:
    """Names that a file may use for a weight: SMP puts timm's under 'model.', and timm joins stage names by '_'."""
    name = key.removeprefix("model.")
    return name, re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)
