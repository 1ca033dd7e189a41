"""Which library computes a model, told from the flags, the file and the machine without importing any of them."""

import ctypes.util
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from defectseg.errors import UsageError
from defectseg.model.device_names import parse_device
from defectseg.model.header import ONNX_SUFFIX, OPENVINO_SUFFIX

AUTO, TORCH, OPENVINO, ONNX = "auto", "torch", "openvino", "onnx"
RUNTIMES = (AUTO, TORCH, OPENVINO, ONNX)
_OF_SUFFIX = {OPENVINO_SUFFIX: OPENVINO, ONNX_SUFFIX: ONNX}
_DEVICES = {TORCH: ("auto", "cpu", "cuda", "mps"), OPENVINO: ("auto", "cpu"), ONNX: ("auto", "cpu", "cuda")}
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")  # Linux; Linux under Windows


def choose_runtime(path: Path, device: str, runtime: str) -> str:
    """The library for a model file: torch, openvino or onnx.

    An export is computed by the library that it was made for; a bundle by torch on a graphics card, and by OpenVINO
    on a processor.

    Raises:
        UsageError: no such runtime or device, or the file, the runtime and the device do not go together.
    """
    kind, _ = parse_device(device)
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: expected {', '.join(RUNTIMES)}.")
    exported_for = _OF_SUFFIX.get(path.suffix.lower())
    if exported_for is not None and runtime not in (AUTO, exported_for):
        raise UsageError(
            f"--runtime {runtime}: {path} was exported for {exported_for}. Leave --runtime out, or give the bundle."
        )
    chosen = exported_for or (_for_bundle(kind) if runtime == AUTO else runtime)
    if kind not in _DEVICES[chosen]:
        instead = "auto or cpu" if exported_for else "--runtime torch"
        raise UsageError(f"--device {device}: {chosen} computes on {_devices_of(chosen)} only. Use {instead}.")
    return chosen


def _for_bundle(kind: str) -> str:
    if kind in ("cuda", "mps") or (kind == "auto" and _is_worth_torch()):
        return TORCH
    return OPENVINO if find_spec("openvino") else TORCH


def _is_worth_torch() -> bool:
    """True where torch is installed and finds a graphics card. It is imported only if there seems to be one."""
    if not find_spec("torch") or not may_have_graphics_card():
        return False
    from defectseg.model.devices import resolve_device

    return resolve_device("auto").type != "cpu"


def may_have_graphics_card() -> bool:
    """True where a driver of NVIDIA is installed, or the machine is a Mac with Apple's processor.

    It asks for files and libraries only, which takes a millisecond; torch, which takes seconds, knows for sure.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return any(Path(path).exists() for path in _DRIVER_FILES)


def _devices_of(runtime: str) -> str:
    return " or ".join(name for name in _DEVICES[runtime] if name != "auto")
