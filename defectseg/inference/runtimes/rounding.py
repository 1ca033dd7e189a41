"""Which layers of an OpenVINO model keep float32 where the processor computes in bfloat16.

The weights of a depthwise convolution that looks for edges cancel on even steel. Rounded to the eight bits of bfloat16
they do not, and what is left shifts its answer with the brightness of the sheet: rounding the depthwise weights alone
cost as much of the agreement with float32 as all of bfloat16 did, rounding all others next to nothing. In float32 they
and the first layer take a few per cent of the time; see docs/benchmarks.md.
"""

import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import openvino

from defectseg.inference.runtimes.openvino_core import core, save_model

# OpenVINO's own attribute of a layer, and how it names the attribute when asked. Versions that do not know it round as
# before.
_ATTRIBUTE = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
_KEY = "DisablePrecisionConversion_0"
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def keep_sensitive_in_float32(model: openvino.Model) -> openvino.Model:
    """The same model, marked where float32 must stay: all depthwise convolutions, and with them the first layer.

    A model without depthwise convolutions is returned as it is.
    """
    names = _sensitive(model)
    if not names:
        return model
    # The attribute has no binding in Python; in the text of a model it can be written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_model(model, path)
        document = ET.parse(path)  # noqa: S314  # written by OpenVINO a moment ago
        for layer in document.iterfind("./layers/layer"):
            if layer.get("type") in _CONVOLUTIONS and layer.get("name") in names:
                _mark(layer)
        weights = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        return core().read_model(ET.tostring(document.getroot(), encoding="utf-8"), weights)


def unmark(model: openvino.Model) -> bool:
    """Take all marks off, in place; whether there were any."""
    marked = [operation.get_rt_info() for operation in model.get_ops() if _KEY in operation.get_rt_info()]
    for attributes in marked:
        del attributes[_KEY]
    return bool(marked)


def _sensitive(model: openvino.Model) -> set[str]:
    convolutions: list[Any] = [
        operation for operation in model.get_ordered_ops() if operation.get_type_name() in _CONVOLUTIONS
    ]
    depthwise = {operation.get_friendly_name() for operation in convolutions if _is_depthwise(operation)}
    return depthwise | {convolutions[0].get_friendly_name()} if depthwise else set()


def _is_depthwise(operation: Any) -> bool:
    """One input channel for each group; the weights are (groups, outputs, inputs, height, width)."""
    return operation.get_type_name() == "GroupConvolution" and bool(operation.input(1).get_partial_shape()[2] == 1)


def _mark(layer: ET.Element) -> None:
    attributes = layer.find("rt_info")
    if attributes is None:
        attributes = ET.SubElement(layer, "rt_info")
    ET.SubElement(attributes, "attribute", _ATTRIBUTE)
