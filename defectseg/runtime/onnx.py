"""The network in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from defectseg.errors import ModelError, ResourceError
from defectseg.model.devices import parse_device
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.runtime.base import Answer

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_ERRORS_ONLY = 3  # of ONNX Runtime's levels of logging


class OnnxRuntime:
    """A Runtime around a session of ONNX Runtime, which any number of threads may call at once.

    Args:
        session: of a model as export.to_onnx writes it.
        info: its description, for the names of the classes.
        workers: calls at once to tell of; one makes use of all cores.
    """

    def __init__(self, session: onnxruntime.InferenceSession, info: ModelInfo, *, workers: int | None = None) -> None:
        self._session = session
        self.class_names = info.class_names
        self.parallel = workers or 1
        self._takes_hw: list[Any] = session.get_inputs()[0].shape[2:]

    @property
    def name(self) -> str:
        """For example 'onnxruntime cpu f32'."""
        return f"onnxruntime {'cuda' if _CUDA in self._session.get_providers() else 'cpu'} f32"

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime. Raises ModelError for a size that the model was not exported for."""
        height, width = images.shape[-2:]
        sizes = zip(self._takes_hw, (height, width), strict=True)
        if any(isinstance(takes, int) and takes != length for takes, length in sizes):
            raise ModelError(
                f"This model was exported for images of {'x'.join(map(str, self._takes_hw))} px, but was given "
                f"{height}x{width}. Export it without a size."
            )
        try:
            probabilities, gate = self._session.run(["probabilities", "gate"], {"image": np.ascontiguousarray(images)})
        except Exception as error:  # its exceptions have no base class of their own
            if not any(sign in str(error).lower() for sign in ("allocat", "bad_alloc", "out of memory")):
                raise
            raise ResourceError(
                f"Out of memory on {len(images)} image(s) of {height}x{width}. Use fewer workers, or train with a "
                "smaller inference.tile_hw."
            ) from error
        return Answer(probabilities, gate)


def load_onnx_runtime(path: Path, *, device: str = "auto", workers: int | None = None) -> OnnxRuntime:
    """Load an exported `.onnx`, on a graphics card where this build of ONNX Runtime can use one.

    Raises:
        ModelError: the file cannot be used.
        UsageError, ResourceError: the device has no such name, or ONNX Runtime cannot use it.
    """
    return open_session(path, read_model_info(path), source=path, device=device, workers=workers)


def open_session(
    model: Path | bytes, info: ModelInfo, *, source: Path, device: str = "auto", workers: int | None = None
) -> OnnxRuntime:
    """As load_onnx_runtime, for a file or its content, whose description is known; `source` names it in errors."""
    providers = _providers(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # its exceptions have no base class of their own
        raise ModelError(
            f"{source}: ONNX Runtime cannot read it; damaged, or of a newer version. Export the model again."
        ) from error
    return OnnxRuntime(session, info, workers=workers)


def available_devices() -> list[str]:
    """Kinds of device that this build of ONNX Runtime can use."""
    return ["cpu", *(["cuda"] if _CUDA in onnxruntime.get_available_providers() else [])]


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
