"""Which layers stay in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset8

from defectseg.model.openvino_io import core, keep_sensitive_in_float32, unmark
from defectseg.runtime import openvino as openvino_runtime

KEY = "DisablePrecisionConversion_0"


def _model(*, groups: int, inputs_of_each: int) -> openvino.Model:
    """Two convolutions, then one in groups, with random weights; a description with characters that XML escapes."""
    rng = np.random.default_rng(0)
    x = opset8.parameter([1, 1, 16, 32], np.float32, name="image")
    node: Any = x
    for inputs in (1, 8):
        weights = rng.normal(size=(8, inputs, 3, 3)).astype(np.float32)
        node = opset8.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    weights = rng.normal(size=(groups, 8 // groups, inputs_of_each, 3, 3)).astype(np.float32)
    node = opset8.group_convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([node], [x])
    model.set_rt_info('{"name": "<a> & b\\n"}', ["defectseg"])
    return model


def _marked(model: openvino.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops() if KEY in node.get_rt_info()]


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(1, 1, 16, 32)).astype(np.float32)


def test_depthwise_convolutions_and_the_first_layer_stay_in_float32(images: Any, tmp_path: Path) -> None:
    model = _model(groups=8, inputs_of_each=1)
    kept = keep_sensitive_in_float32(model)

    assert _marked(kept) == ["Convolution", "GroupConvolution"]
    assert kept.get_rt_info(["defectseg"]).astype(str) == '{"name": "<a> & b\\n"}'
    in_f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    answers = [core().compile_model(each, "CPU", in_f32)(images)[0] for each in (model, kept)]
    assert np.array_equal(*answers)
    # The marks are in the file, too.
    openvino.save_model(kept, tmp_path / "m.xml", compress_to_fp16=False)
    assert _marked(core().read_model(tmp_path / "m.xml")) == ["Convolution", "GroupConvolution"]


def test_a_model_without_depthwise_convolutions_is_left_alone() -> None:
    model = _model(groups=2, inputs_of_each=4)
    assert keep_sensitive_in_float32(model) is model
    assert _marked(model) == []
    assert not unmark(model)


def test_marks_are_taken_off_without_a_trace(images: Any) -> None:
    kept = keep_sensitive_in_float32(_model(groups=8, inputs_of_each=1))
    before = core().compile_model(kept, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
    assert unmark(kept)
    assert _marked(kept) == []
    assert np.array_equal(before, core().compile_model(kept, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0])


def test_a_processor_that_cannot_mix_precisions_computes_without_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    from defectseg.config import Recipe
    from defectseg.model.info import ModelInfo, Normalization, Thresholds

    compiled = []

    class Core:
        def compile_model(self, model: openvino.Model, *arguments: Any) -> Any:
            compiled.append(_marked(model))
            if _marked(model):
                raise RuntimeError("object is not initialized")
            return core().compile_model(model, "CPU")

    info = ModelInfo(
        class_names=("pits",),
        normalization=Normalization(mean=0.5, std=0.5),
        thresholds=Thresholds.default(1),
        recipe=Recipe(),
    )
    runtime = openvino_runtime.OpenVinoRuntime(keep_sensitive_in_float32(_model(groups=8, inputs_of_each=1)), info)
    monkeypatch.setattr(openvino_runtime, "core", Core)
    runtime._compile((1, 1, 16, 32))
    assert compiled == [["Convolution", "GroupConvolution"], []]
