"""A quicker way for OpenVINO to enlarge the logits of a network that sees its images at half their size."""

import numpy as np
import openvino
from openvino import opset8

_MOST_CHANNELS = 16  # the work grows with their square
_TAPS = np.array([[1, 3, 0], [0, 3, 1]], np.float32) / 4  # for the pixel before the middle of an old one, and after it

_HOW = {  # as PyTorch's bilinear interpolation is converted
    "mode": "linear_onnx",
    "coordinate_transformation_mode": "pytorch_half_pixel",
    "shape_calculation_mode": "sizes",
    "pads_begin": [0, 0, 0, 0],
    "pads_end": [0, 0, 0, 0],
}


def double_by_convolution(model: openvino.Model) -> None:
    """Replace each bilinear enlargement to exactly twice the size by a convolution, in place; equal to 1e-6.

    Each pixel becomes 2x2, each a fixed mean of the old pixel and its neighbours. OpenVINO's own interpolation took a
    third of the time of a whole network in int8.

    Args:
        model: with known shapes.
    """
    filters = np.einsum("ai,bj->abij", _TAPS, _TAPS).reshape(4, 3, 3)
    for node in (node for node in model.get_ordered_ops() if node.get_type_name() == "Interpolate"):
        batch, channels, height, width = node.get_input_shape(0)
        if (
            not _HOW.items() <= node.get_attributes().items()
            or list(node.get_output_shape(0)) != [batch, channels, 2 * height, 2 * width]
            or channels > _MOST_CHANNELS
        ):
            continue
        weights = np.zeros((channels, 4, channels, 3, 3), np.float32)
        for channel in range(channels):
            weights[channel, :, channel] = filters
        padded = opset8.pad(node.input(0).get_source_output(), [0, 0, 1, 1], [0, 0, 1, 1], "edge")
        parts = opset8.convolution(padded, weights.reshape(-1, channels, 3, 3), [1, 1], [0, 0], [0, 0], [1, 1])
        node.output(0).replace(opset8.depth_to_space(parts, "depth_first", 2).output(0))
