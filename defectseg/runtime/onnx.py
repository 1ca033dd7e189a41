"""Networks in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from defectseg.errors import ModelError, ResourceError
from defectseg.machine import allowed_bytes, to_allow
from defectseg.model.devices import parse_device
from defectseg.model.info import ModelInfo
from defectseg.runtime.base import GPU_BATCH_PX, Answer, is_memory_short, memory_errors, wrong_size

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_AS_REQUESTED = 1  # memory grows by what is asked for, not by powers of two
_SILENT = 4  # a log level of ONNX Runtime: only what ends the process; errors are raised anyway


class OnnxRuntime:
    """A Runtime around a session of ONNX Runtime. Threads may call it in parallel.

    Args:
        path: an ONNX file written by `to_onnx`.
        info: its description, for the class names.
        device: auto, cpu, cuda or cuda:N; auto takes a graphics card if this build of ONNX Runtime can use one.
        workers: the value of `parallel`; 1 by default, since one call uses all cores.

    Raises:
        ModelError: the file cannot be used.
        UsageError, ResourceError: the device is unknown, or ONNX Runtime cannot use it.
    """

    def __init__(self, path: Path, info: ModelInfo, *, device: str = "auto", workers: int | None = None) -> None:
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        _limit_memory(options)
        try:
            # Constants are computed when they are used, since those computed before are not counted as memory.
            self._session = onnxruntime.InferenceSession(
                path, options, providers=providers, disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # its exceptions have no base class of their own
            if is_memory_short(error):
                raise ModelError(f"{path}: ONNX Runtime needs more memory to load it. {to_allow()}") from error
            raise ModelError(f"{path}: ONNX Runtime cannot read it; damaged or too new. Export it again.") from error
        self.name = f"onnxruntime {'cuda' if _CUDA in self._session.get_providers() else 'cpu'} f32"
        self.class_names = info.class_names
        self.parallel = workers or 1
        self.batch_px = GPU_BATCH_PX if _CUDA in self._session.get_providers() else 0
        self._takes_hw: list[Any] = self._session.get_inputs()[0].shape[2:]

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        sizes = zip(self._takes_hw, images.shape[2:], strict=True)
        if any(isinstance(takes, int) and takes != length for takes, length in sizes):
            raise wrong_size(self._takes_hw, images.shape)
        with memory_errors(images.shape, of_export=True):
            probabilities, gate = self._session.run(["probabilities", "gate"], {"image": np.ascontiguousarray(images)})
        return Answer(probabilities, gate)


def available_devices() -> list[str]:
    """The kinds of device that this build of ONNX Runtime can use."""
    return ["cpu", *(["cuda"] if _CUDA in onnxruntime.get_available_providers() else [])]


def _limit_memory(options: onnxruntime.SessionOptions) -> None:
    """Let a session take no more memory on the CPU than is allowed: a file of a kilobyte can ask for all there is."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg({"max_mem": allowed_bytes(), "arena_extend_strategy": _AS_REQUESTED})
    onnxruntime.create_and_register_allocator(place, arena)  # for sessions that begin after this
    options.add_session_config_entry("session.use_env_allocators", "1")


def _providers(device: str) -> list[str | tuple[str, Mapping[str, Any]]]:
    kind, index = parse_device(device)
    can_use_card = _CUDA in onnxruntime.get_available_providers()
    if kind == "cuda" and not can_use_card:
        raise ResourceError(
            f"{device}: this ONNX Runtime has no CUDA. Install onnxruntime-gpu in its place, or compute on the CPU.",
            argument="device",
        )
    if kind == "cpu" or not can_use_card:
        return [_CPU]
    return [(_CUDA, {"device_id": index or 0}), _CPU]
