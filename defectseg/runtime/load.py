"""Loading of model files. A library is imported only once it is certain to be the right one."""

import ctypes.util
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from defectseg.errors import ModelError, UsageError, require_extra
from defectseg.machine import __version__, package_versions
from defectseg.model.devices import parse_device
from defectseg.model.info import ONNX_SUFFIX, OPENVINO_SUFFIX, ModelInfo, read_model_info
from defectseg.model.locate import as_paths, model_identity
from defectseg.runtime.base import Runtime
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

AUTO, TORCH, OPENVINO, ONNX = "auto", "torch", "openvino", "onnx"
RUNTIMES = (AUTO, TORCH, OPENVINO, ONNX)
_OF_SUFFIX = {OPENVINO_SUFFIX: OPENVINO, ONNX_SUFFIX: ONNX}
# Results depend on these packages, and on the one of the runtime.
_PACKAGES = ("numpy", "opencv-python-headless")
_PACKAGE_OF_RUNTIME = {TORCH: "torch", OPENVINO: "openvino", ONNX: "onnxruntime"}
_DEVICES = {TORCH: ("auto", "cpu", "cuda", "mps"), OPENVINO: ("auto", "cpu"), ONNX: ("auto", "cpu", "cuda")}
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")  # on Linux; in WSL


def choose_runtime(path: Path, device: str, runtime: str) -> str:
    """The library for a model file: torch, openvino or onnx.

    An export runs in the library that it was made for; a bundle runs in torch on a graphics card and in OpenVINO on a
    CPU.

    Raises:
        UsageError: no such runtime or device, or file, runtime and device do not fit together.
    """
    kind, _ = parse_device(device)
    if runtime not in RUNTIMES:
        raise UsageError(f"expected {', '.join(RUNTIMES)}, found {runtime}.", argument="runtime")
    exported_for = _OF_SUFFIX.get(path.suffix.lower())
    if exported_for is not None and runtime not in (AUTO, exported_for):
        raise UsageError(f"{path} is for {exported_for}, not for {runtime}. Give the bundle.", argument="runtime")
    chosen = exported_for or (_for_bundle(kind) if runtime == AUTO else runtime)
    if kind not in _DEVICES[chosen]:
        devices = " or ".join(name for name in _DEVICES[chosen] if name != AUTO)
        raise UsageError(
            f"{chosen} computes on {devices} only, not on {device}.",
            argument="device",
            go_on={"device": AUTO} if exported_for else {"runtime": TORCH},
        )
    return chosen


def is_bundle(path: Path) -> bool:
    """Whether a model file was not exported for one library."""
    return path.suffix.lower() not in _OF_SUFFIX


def _for_bundle(kind: str) -> str:
    """PyTorch on a graphics card, else OpenVINO. For auto, torch is imported only if there seems to be a card."""
    if kind == AUTO and find_spec("torch") and may_have_graphics_card():
        from defectseg.model.devices import resolve_device

        kind = resolve_device(AUTO).type
    return TORCH if kind in ("cuda", "mps") else OPENVINO


def may_have_graphics_card() -> bool:
    """Whether an NVIDIA driver is installed, or the machine is a Mac with Apple's processor.

    Looking for driver files takes a millisecond. Only torch knows for sure, but importing it takes seconds.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return any(Path(path).exists() for path in DRIVER_FILES)


def load_runtime(
    model: Path | Sequence[Path], device: str = AUTO, runtime: str = AUTO, *, workers: int | None = None
) -> tuple[Runtime, ModelInfo]:
    """Load a model for prediction, or several whose answers are averaged, with one description.

    Args:
        model: a bundle or an export, or several.
        device: auto, cpu, cuda, cuda:N or mps.
        runtime: one of RUNTIMES; auto takes torch on a graphics card and OpenVINO on a CPU.
        workers: the number of parallel calls to prepare for; None for what suits the runtime and the machine. OpenVINO
            shares the cores among them, so that 1 is fastest for a single image.

    Raises:
        ModelError: a file cannot be used or is replaced meanwhile, or the models have different classes.
        MissingExtraError: a required package is not installed.
        UsageError, ResourceError: the runtime or device is unknown, missing, or cannot run this file.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"expected 1 or more, found {workers}.", argument="workers")
    paths = as_paths(model)
    identity = model_identity(paths)
    infos = [read_model_info(path) for path in paths]  # so that a wrong path is reported before a heavy import
    joined = join_infos(infos, paths)
    kinds = [choose_runtime(path, device, runtime) for path in paths]
    runtimes = [_load(path, info, kind, device, workers) for path, info, kind in zip(paths, infos, kinds, strict=True)]
    _refuse_another(paths, identity)
    return (runtimes[0] if len(runtimes) == 1 else EnsembleRuntime(runtimes)), joined


def versions_of(kinds: Iterable[str]) -> dict[str, str]:
    """The version of defectseg and of the packages that results depend on, with runtimes of these kinds."""
    packages = package_versions([*_PACKAGES, *(_PACKAGE_OF_RUNTIME[kind] for kind in kinds)])
    return {"defectseg": __version__, **packages}


def runtime_name(path: Path, info: ModelInfo) -> str:
    """The library, device and precision that this machine takes for a model file. Raises as `load_runtime`."""
    kind = choose_runtime(path, AUTO, AUTO)
    if kind == OPENVINO:
        from defectseg.runtime.openvino import name_of

        return name_of(info)
    if kind == ONNX:
        return _load(path, info, ONNX, AUTO, 1).name
    from defectseg.model.devices import half_precision, resolve_device
    from defectseg.runtime.torch import name_of as name_of_torch

    return name_of_torch(resolve_device(AUTO), half_precision(resolve_device(AUTO)))


def _load(path: Path, info: ModelInfo, runtime: str, device: str, workers: int | None) -> Runtime:
    if runtime == TORCH:
        require_extra(f"{path}: running a bundle in torch", "train", "torch", "segmentation_models_pytorch")
        from defectseg.runtime.torch import load_torch_runtime

        return load_torch_runtime(path, device, workers=workers)
    from defectseg.runtime import cache

    if runtime == OPENVINO:
        from defectseg.model.openvino_io import read_model
        from defectseg.runtime.openvino import OpenVinoRuntime

        identity = model_identity(path)

        def read_export(size_hw: tuple[int, int]) -> Any:
            model = read_model(path)
            read_model_info(path)
            _refuse_another((path,), identity)
            return model

        # An export is not even read if what OpenVINO compiled of it is kept.
        model = cache.openvino_model(path) if is_bundle(path) else read_export
        return OpenVinoRuntime(model, info, workers=workers, kept=cache.CompiledModels(identity))
    require_extra(f"{path}: ONNX Runtime", "onnx", "onnxruntime")
    from defectseg.runtime.onnx import OnnxRuntime

    return OnnxRuntime(cache.onnx_model(path) if is_bundle(path) else path, info, device=device, workers=workers)


def _refuse_another(paths: Sequence[Path], identity: str) -> None:
    """Raise ModelError if the files are no longer those of this identity."""
    if model_identity(paths) != identity:
        raise ModelError(f"{', '.join(map(str, paths))}: replaced while it was loaded. Run the same command again.")
