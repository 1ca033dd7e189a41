"""Access to OpenVINO: one Core for the process, reading and writing of models, and working signals.

Importing this module begins to load OpenVINO's CPU plugin in a thread, which takes 0.03 s.

OpenVINO's CPU plugin replaces the signal stack of the thread that loads it, and removes it later even if somebody else
has set another one since. If plugins come and go, as with one Core for each caller, the thread is left with a freed
stack, and Ctrl-C ends in a segmentation fault. Signals are handled in the main thread, so plugins are loaded in
another.
"""

import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import numpy as np

from defectseg.errors import ModelError, ResourceError
from defectseg.files import resource_errors

_CONVERTER = "openvino.tools.ovc"


def _late(name: str) -> Any:
    """OpenVINO's converter of models, imported at its first use, since that takes longer than all the rest."""
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return import_module(_CONVERTER).convert_model


if "openvino" not in sys.modules:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # OpenVINO does without what it cannot import
    import_module("openvino").__getattr__ = _late  # type: ignore[method-assign]
    del sys.modules[_CONVERTER]
import openvino  # noqa: E402
from openvino import opset8  # noqa: E402

Result = TypeVar("Result")
_MOST_XML_BYTES = 1 << 24


def core() -> openvino.Core:
    """The Core of this process, with the CPU plugin loaded."""
    return _loading.result()[0]


def cores_and_precision() -> tuple[int, str]:
    """The number of physical cores that OpenVINO may use, and the fastest precision, in which it computes by default.

    OpenVINO knows the system's cores and the affinity of the process, but reports them only for a compiled model.
    """
    return _loading.result()[1:]


def _load() -> tuple[openvino.Core, int, str]:
    new = openvino.Core()
    x = opset8.parameter([1, 1, 8, 8], np.float32)
    model = openvino.Model([opset8.relu(x)], [x])
    settings = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": False}
    compiled = new.compile_model(model, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    cores: Any = compiled.get_property("INFERENCE_NUM_THREADS")
    return new, max(1, int(cores)), precision


_thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
_loading = _thread.submit(_load)
_thread.shutdown(wait=False)


def away_from_signals(work: Callable[[], Result], *, stop: Callable[[], object] | None = None) -> Result:
    """Call `work` in another thread, return its result and raise its errors.

    Args:
        work: may load OpenVINO's plugins.
        stop: called on Ctrl-C to make `work` end soon; the call waits for it in any case.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="openvino") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            if stop is not None and not future.done():
                stop()
            raise


def read_model(path: Path) -> openvino.Model:
    """Read an `.xml` with its `.bin`. Raises ModelError if OpenVINO cannot."""
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot read it; damaged or too new. Export it again.") from error


def save_model(model: openvino.Model, path: Path) -> None:
    """Write an `.xml` with its `.bin` in the model's own precision. Raises ResourceError, as on a full disk."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:  # OpenVINO raises the same for all failures
        # The system gives the reason to whoever writes as much in the same place.
        weights_bytes = sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
        with resource_errors(path), tempfile.TemporaryFile(dir=path.parent) as file:
            for _ in range(0, weights_bytes + _MOST_XML_BYTES, _MOST_XML_BYTES):
                file.write(bytes(_MOST_XML_BYTES))
        raise ResourceError(f"{path}: cannot be written ({str(error).splitlines()[0]}). Check the disk.") from error


# OpenVINO's attribute of a layer that stays in float32, and the key under which it is reported. Versions without this
# attribute round these layers like the others.
_ATTRIBUTE = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
_KEY = "DisablePrecisionConversion_0"
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def keep_sensitive_in_float32(model: openvino.Model) -> openvino.Model:
    """Mark the layers that must stay in float32: depthwise convolutions, and the first layer if there are any.

    Returns:
        a marked copy, or the model itself if it has no depthwise convolution.
    """
    convolutions: list[Any] = [
        operation for operation in model.get_ordered_ops() if operation.get_type_name() in _CONVOLUTIONS
    ]
    # Depthwise means one input channel per group; the weights are (groups, outputs, inputs, height, width).
    grouped = [operation for operation in convolutions if operation.get_type_name() == "GroupConvolution"]
    depthwise = [operation for operation in grouped if operation.input(1).get_partial_shape()[2] == 1]
    if not depthwise:
        return model
    names = {operation.get_friendly_name() for operation in (convolutions[0], *depthwise)}
    # The attribute has no Python binding, but it can be written into the XML.
    with resource_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_model(model, path)
        net = ET.parse(path).getroot()  # noqa: S314  # written by OpenVINO a moment ago
        for layer in net.iterfind("./layers/layer"):
            if layer.get("type") in _CONVOLUTIONS and layer.get("name") in names:
                attributes = layer.find("rt_info")
                if attributes is None:
                    attributes = ET.SubElement(layer, "rt_info")
                ET.SubElement(attributes, "attribute", _ATTRIBUTE)
        weights = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        return core().read_model(ET.tostring(net, encoding="utf-8"), weights)


def unmark(model: openvino.Model) -> bool:
    """Remove all marks, in place. Returns whether there were any."""
    marked = [operation.get_rt_info() for operation in model.get_ops() if _KEY in operation.get_rt_info()]
    for attributes in marked:
        del attributes[_KEY]
    return bool(marked)
