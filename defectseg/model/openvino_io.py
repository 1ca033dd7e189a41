"""OpenVINO's entry: one Core for the process, files read and written, and signals that stay deliverable.

OpenVINO's plugin for processors gives the thread that loads it another stack for signals, and takes it away again with
no regard to who has set one since. Where several plugins come and go, as with a Core of each caller's own, the thread
is left with a stack that is gone, and Ctrl-C ends in a segmentation fault. Signals reach the main thread; so whatever
loads plugins does it in another one.
"""

import functools
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import numpy as np
import openvino

from defectseg.errors import ModelError, ResourceError

Result = TypeVar("Result")


@functools.cache
def core() -> openvino.Core:
    """The Core of this process, with the plugin for processors loaded."""

    def load() -> openvino.Core:
        new = openvino.Core()
        new.get_property("CPU", "FULL_DEVICE_NAME")
        return new

    return away_from_signals(load)


def away_from_signals(work: Callable[[], Result], *, stop: Callable[[], object] | None = None) -> Result:
    """Call `work` in a thread of its own and return what it returns, or raise what it raises.

    Args:
        work: what may load OpenVINO's plugins.
        stop: called on Ctrl-C, to make `work` end soon; it is waited for in any case.
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
    """Read an `.xml` with its `.bin`. Raises ModelError where OpenVINO cannot."""
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: OpenVINO cannot read it; damaged, or of a newer version of OpenVINO. Export the model again."
        ) from error


def save_model(model: openvino.Model, path: Path) -> None:
    """Write an `.xml` with its `.bin`, in the precision that the model has. Raises ResourceError, as on a full disk."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:  # OpenVINO tells of all failures alike
        raise ResourceError(f"{path}: cannot be written ({str(error).splitlines()[0]}). Check the disk.") from error


# OpenVINO's own attribute of a layer, and the key under which it reports it. Versions that do not know it round as
# before.
_ATTRIBUTE = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
_KEY = "DisablePrecisionConversion_0"
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def keep_sensitive_in_float32(model: openvino.Model) -> openvino.Model:
    """The same model, marked where float32 must stay: all depthwise convolutions, and with them the first layer.

    A model without depthwise convolutions is returned as it is.
    """
    convolutions: list[Any] = [
        operation for operation in model.get_ordered_ops() if operation.get_type_name() in _CONVOLUTIONS
    ]
    # Depthwise: one input channel for each group; the weights are (groups, outputs, inputs, height, width).
    depthwise = [
        operation
        for operation in convolutions
        if operation.get_type_name() == "GroupConvolution" and operation.input(1).get_partial_shape()[2] == 1
    ]
    if not depthwise:
        return model
    names = {operation.get_friendly_name() for operation in (convolutions[0], *depthwise)}
    # The attribute has no binding in Python; in the text of a model it can be written.
    with tempfile.TemporaryDirectory() as folder:
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
    """Take all marks off, in place; whether there were any."""
    marked = [operation.get_rt_info() for operation in model.get_ops() if _KEY in operation.get_rt_info()]
    for attributes in marked:
        del attributes[_KEY]
    return bool(marked)
