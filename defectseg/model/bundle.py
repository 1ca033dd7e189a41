"""Bundles: one .safetensors file with the weights of a network, and a ModelInfo as JSON in its header."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from defectseg.errors import ConfigError, ModelError
from defectseg.model.info import METADATA_KEY, ModelInfo, read_model_info, seal_model
from defectseg.model.network import DefectNetwork

_MOST_LAYERS = 10_000
_SPARE_PARAMETERS = 1000  # besides four times those of the file: some encoders make parts that they then drop


def save_bundle(path: Path, weights: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write weights, description and checksum to one file, atomically.

    Raises:
        ModelError: a weight is NaN or infinite.
        ResourceError: the file cannot be written.
    """
    tensors = {key: value.detach().to("cpu").contiguous().clone() for key, value in weights.items()}
    if broken := _not_finite(tensors):
        raise ModelError(
            f"{path}: not written, because {broken} holds NaN or infinity. Lower optimizer.decoder_lr and encoder_lr, "
            "or set training.precision=fp32."
        )
    # safetensors raises its own error for a full disk; writing the bytes here gives the system's.
    seal_model(path, info, save(tensors, metadata={METADATA_KEY: "", "format": "pt"}))


def load_bundle(path: Path) -> tuple[DefectNetwork, ModelInfo]:
    """Build the network that a bundle describes and load its weights on the CPU. Nothing is downloaded or unpickled.

    A description may ask for a network of any size. It is first built without memory, and compared with the weights.

    Raises:
        ModelError: no such file, not a bundle, of a newer format, damaged, or its weights do not fit its description.
    """
    info, weights = read_bundle(path)
    try:
        shapes = {key: value.shape for key, value in _without_memory(info, most=len(weights)).state_dict().items()}
        if shapes != {key: value.shape for key, value in weights.items()}:
            raise RuntimeError("other shapes")
        network = DefectNetwork(info.recipe.model, info.num_classes, info.normalization)
        network.load_state_dict(weights)
    except ConfigError as error:
        raise ModelError(f"{path}: {error} Upgrade segmentation-models-pytorch and timm.") from error
    except (ModelError, RuntimeError) as error:
        raise ModelError(f"{path}: its weights do not fit its description. Train or download it again.") from error
    return network.eval(), info


def read_bundle(path: Path) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Description and weights of a bundle, on the CPU. Raises ModelError as `load_bundle` does."""
    info = read_model_info(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
        broken = _not_finite(weights)
    except Exception as error:
        raise ModelError(f"{path}: damaged; its weights cannot be read. Train or download it again.") from error
    if broken:
        raise ModelError(f"{path}: {broken} holds NaN or infinity. Train or download it again.")
    return info, weights


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    return next((key for key, value in weights.items() if not value.isfinite().all()), None)


class _RatesOnCpu(TorchFunctionMode):
    """Computes the rates of drop-path on the CPU, because encoders read their values while they are built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            steps = func(*args, **{**kwargs, "device": "meta"}).numel()
            kwargs = {**kwargs, "device": "cpu" if steps <= _MOST_LAYERS else "meta"}
        return func(*args, **kwargs)


def _without_memory(info: ModelInfo, *, most: int) -> DefectNetwork:
    """The network without values. Raises ConfigError, or ModelError if it has far more than `most` parameters."""
    count = 0

    def count_one(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count > 4 * most + _SPARE_PARAMETERS:
            raise ModelError("more parameters than weights")

    hook = register_module_parameter_registration_hook(count_one)
    try:
        with torch.device("meta"), _RatesOnCpu():
            return DefectNetwork(info.recipe.model, info.num_classes, info.normalization)
    finally:
        hook.remove()
