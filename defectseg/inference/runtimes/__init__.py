"""The libraries that can compute a model, behind one protocol."""

import sys
from collections.abc import Sequence
from pathlib import Path

from defectseg.errors import MissingExtraError, ModelError, UsageError
from defectseg.inference.runtimes.base import Runtime
from defectseg.inference.runtimes.choice import AUTO, ONNX, OPENVINO, RUNTIMES, TORCH, choose_runtime
from defectseg.inference.runtimes.ensemble import EnsembleRuntime
from defectseg.model.header import ONNX_SUFFIX, OPENVINO_SUFFIX, read_model_info

__all__ = ["RUNTIMES", "as_paths", "find_model", "load_runtime", "model_paths"]

MODEL_NAME = "model.safetensors"
FOLD_PREFIX = "fold-"  # of the run folders of the single folds, inside the folder of `train --fold all`

# On import, OpenVINO tells its maker of its use, unless this package is missing. Now Python says that it is.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load_runtime(
    model: Path | Sequence[Path], device: str = AUTO, runtime: str = AUTO, *, workers: int | None = None
) -> Runtime:
    """Load a model for prediction, or several whose answers are averaged.

    Args:
        model: a bundle or an export, or several.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: one of RUNTIMES; auto takes torch on a graphics card and OpenVINO on a processor.
        workers: calls at once to prepare for; None for what suits the runtime and the machine. With OpenVINO, one call
            is answered by the cores divided by `workers`: for a single image, 1 is quickest.

    Raises:
        ModelError: a file cannot be used, or the models know other classes.
        MissingExtraError: a package that is needed is not installed.
        UsageError, ResourceError: no such runtime or device, or it is not there, or cannot run this file.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more.")
    paths = as_paths(model)
    for path in paths:
        read_model_info(path)  # a wrong path is told before anything heavy is imported
    choices = [choose_runtime(path, device, runtime) for path in paths]
    loaders = {TORCH: _load_torch, OPENVINO: _load_openvino, ONNX: _load_onnx}
    runtimes = [loaders[choice](path, device, workers) for path, choice in zip(paths, choices, strict=True)]
    return runtimes[0] if len(runtimes) == 1 else EnsembleRuntime(runtimes, paths)


def _load_torch(path: Path, device: str, workers: int | None) -> Runtime:
    try:
        from defectseg.inference.runtimes.torch import load_torch_runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path}: running a bundle in torch", "train") from error
    return load_torch_runtime(path, device, workers=workers)


def _load_openvino(path: Path, device: str, workers: int | None) -> Runtime:
    from defectseg.inference.runtimes.cache import openvino_model
    from defectseg.inference.runtimes.openvino import OpenVinoRuntime, load_openvino_runtime

    if path.suffix.lower() == OPENVINO_SUFFIX:
        return load_openvino_runtime(path, workers=workers)
    return OpenVinoRuntime(openvino_model(path), read_model_info(path), workers=workers)


def _load_onnx(path: Path, device: str, workers: int | None) -> Runtime:
    from defectseg.inference.runtimes.cache import onnx_model

    try:
        from defectseg.inference.runtimes.onnx import load_onnx_runtime, open_session
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path}: ONNX Runtime", "onnx") from error
    if path.suffix.lower() == ONNX_SUFFIX:
        return load_onnx_runtime(path, device=device, workers=workers)
    return open_session(onnx_model(path), read_model_info(path), source=path, device=device, workers=workers)


def as_paths(model: Path | Sequence[Path]) -> tuple[Path, ...]:
    """The model files of a request, which may name one or several."""
    return (model,) if isinstance(model, Path) else tuple(model)


def model_paths(argument: str | Path) -> tuple[Path, ...]:
    """The model files that MODEL means: see find_model, and besides, several whose answers are averaged.

    Several are written with commas between them, or are a folder of run folders `fold-0`, `fold-1` and so on.

    Raises:
        ModelError: see find_model; or there is nothing before, after or between commas.
    """
    text = str(argument)
    if "," not in text or _exists(Path(text)):
        return _models_at(Path(text))
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise ModelError(
            f"{text}: expected model files with one comma between each two, as in a.safetensors,b.safetensors."
        )
    return tuple(model for entry in entries for model in _models_at(Path(entry)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a list may be too long for the name of a file
        return False


def _models_at(path: Path) -> tuple[Path, ...]:
    """The model of a run folder, or those of all its folds, by their number."""
    if (path / MODEL_NAME).is_file() or (path / "last.ckpt").exists():
        return (find_model(path),)
    numbered = {
        int(number): folder
        for folder in path.glob(f"{FOLD_PREFIX}*")
        if (number := folder.name.removeprefix(FOLD_PREFIX)).isdecimal()
    }
    return tuple(find_model(numbered[number]) for number in sorted(numbered)) or (find_model(path),)


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
