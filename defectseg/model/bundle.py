"""Bundles: one .safetensors file with the weights of a network, and a ModelInfo as JSON in its header."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from defectseg.errors import ConfigError, ModelError
from defectseg.files import write_bytes
from defectseg.model.info import METADATA_KEY, ModelInfo, read_model_info
from defectseg.model.network import DefectNetwork


def save_bundle(path: Path, weights: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write weights and description to one file, atomically. Raises ResourceError if it cannot be written."""
    tensors = {key: value.detach().to("cpu").contiguous().clone() for key, value in weights.items()}
    # safetensors raises its own error for a full disk; writing the bytes here gives the system's.
    write_bytes(path, save(tensors, metadata={METADATA_KEY: info.model_dump_json(), "format": "pt"}))


def load_bundle(path: Path) -> tuple[DefectNetwork, ModelInfo]:
    """Build the network that a bundle describes and load its weights on the CPU. Nothing is downloaded or unpickled.

    Raises:
        ModelError: no such file, not a bundle, of a newer format, or its weights do not fit its description.
    """
    info, weights = read_bundle(path)
    try:
        network = DefectNetwork(info.recipe.model, info.num_classes, info.normalization)
    except ConfigError as error:
        raise ModelError(f"{path}: {error} Upgrade segmentation-models-pytorch and timm.") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{path}: its weights do not fit its description. Train or download it again.") from error
    return network.eval(), info


def read_bundle(path: Path) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Description and weights of a bundle, on the CPU. Raises ModelError as `load_bundle` does."""
    info = read_model_info(path)
    try:
        return info, load_file(path)
    except Exception as error:
        raise ModelError(f"{path}: damaged; its weights cannot be read. Train or download it again.") from error
