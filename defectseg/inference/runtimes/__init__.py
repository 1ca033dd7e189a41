"""The libraries that can compute a model, behind one protocol."""

from pathlib import Path

from defectseg.errors import MissingExtraError, ModelError
from defectseg.inference.runtimes.base import Runtime
from defectseg.model.header import read_model_info

MODEL_NAME = "model.safetensors"


def load_runtime(path: Path, device: str = "auto") -> Runtime:
    """Load a model for prediction; torch is imported only here.

    Args:
        path: a bundle.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        ModelError: the file cannot be used.
        MissingExtraError: PyTorch is not installed.
        UsageError, ResourceError: the device has no such name, or is not there.
    """
    read_model_info(path)  # a wrong path is told before torch is imported
    try:
        from defectseg.inference.runtimes.torch import load_torch_runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path}: running a bundle", "train") from error
    return load_torch_runtime(path, device)


def find_model(path: Path) -> Path:
    """The model file that a path means: itself, or the one in a run folder of `train`.

    Raises:
        ModelError: a run folder whose training has not ended, or a folder without a model.
    """
    if not path.is_dir():
        return path
    model = path / MODEL_NAME
    if model.is_file():
        return model
    if (path / "last.ckpt").exists():
        raise ModelError(
            f"{path}: this training run has not ended. Continue it with: defectseg train --resume --out {path}"
        )
    raise ModelError(f"{path}: a folder without {MODEL_NAME}. Give the model file that defectseg train wrote.")
