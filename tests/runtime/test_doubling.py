import numpy as np
import openvino
import pytest
import torch
from openvino import opset11
from torch.nn import functional as F  # noqa: N812

from defectseg.runtime.doubling import double_by_convolution

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)


def enlargement(size_hw: tuple[int, int]) -> openvino.Model:
    """A model that enlarges LOGITS to this size, as PyTorch's bilinear interpolation is converted."""
    x = opset11.parameter(LOGITS.shape, np.float32)
    how = {"pads_begin": [0] * 4, "pads_end": [0] * 4, "coordinate_transformation_mode": "pytorch_half_pixel"}
    larger = opset11.interpolate(x, np.array(size_hw), "linear_onnx", "sizes", axes=[2, 3], **how)
    return openvino.Model([larger], [x])


@pytest.mark.parametrize(("size_hw", "replaced"), [((10, 14), True), ((9, 14), False), ((5, 14), False)])
def test_only_an_exact_doubling_is_replaced_and_the_answer_stays(size_hw: tuple[int, int], replaced: bool) -> None:
    model = enlargement(size_hw)
    double_by_convolution(model)
    assert ("Interpolate" not in {operation.get_type_name() for operation in model.get_ops()}) is replaced
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(LOGITS)[0]
    expected = F.interpolate(torch.from_numpy(LOGITS), size=size_hw, mode="bilinear", align_corners=False).numpy()
    assert np.abs(found - expected).max() <= 1e-6
