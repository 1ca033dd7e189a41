"""What an exported model computes: the same as the network, at any size."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError
from defectseg.model.graph import fix_padding, takes_any_size, to_onnx, to_openvino
from defectseg.model.info import (
    METADATA_KEY,
    ModelInfo,
    Normalization,
    Thresholds,
    parse_model_info,
    read_model_info,
    seal_model,
    write_model_info,
)
from defectseg.model.network import DefectNetwork
from defectseg.model.openvino_io import core, read_model, save_model
from defectseg.runtime.base import Runtime
from defectseg.runtime.onnx import OnnxRuntime
from defectseg.runtime.openvino import OpenVinoRuntime

NORMALIZATION = Normalization(mean=0.4, std=0.2)
SHALLOW: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
SHAPES = [(1, 1, 96, 160), (2, 1, 70, 45), (1, 1, 1, 1), (2, 1, 5, 130)]
KINDS: dict[str, dict[str, Any]] = {
    "reduced, padded as TensorFlow does": {
        "input_scale": 0.75,
        "encoder": "tu-test_efficientnet",
        "options": {**SHALLOW, "pad_type": "same"},
    },
    "enlarged, three channels, no head": {"input_scale": 1.5, "in_channels": 3, "classification_head": False},
    "PAN, which wants 128 px": {"architecture": "PAN", "options": {}},
}


def _network(**model: Any) -> tuple[DefectNetwork, ModelInfo]:
    """A network with random weights that says something else for every pixel, and its description."""
    config = ModelConfig(**{"encoder": "tu-test_resnet", "encoder_weights": "none", "options": SHALLOW, **model})
    torch.manual_seed(4)
    network = DefectNetwork(config, 2, NORMALIZATION).eval()
    with torch.no_grad():
        head: Any = network.net.segmentation_head
        head[0].weight.mul_(8)
    info = ModelInfo(
        class_names=("pits", '<Kratzer> & "Risse"\n'),
        normalization=NORMALIZATION,
        thresholds=Thresholds.default(2),
        recipe=Recipe(model=config),
    )
    return network, info


def _images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _assert_alike(runtime: Runtime, network: DefectNetwork, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        with torch.inference_mode():
            probabilities, gate = (answer.numpy() for answer in network.answer(torch.from_numpy(_images(*shape))))
        assert probabilities.size < 100 or probabilities.std() > 0.01
        answer = runtime(_images(*shape))
        assert answer.probabilities.dtype == answer.gate.dtype == np.float32
        np.testing.assert_allclose(answer.probabilities, probabilities, atol=1e-4)
        np.testing.assert_allclose(answer.gate, gate, atol=1e-4)


@pytest.fixture(scope="module")
def plain() -> tuple[DefectNetwork, ModelInfo]:
    return _network()


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_answers_as_torch_at_sizes_that_the_export_has_not_seen(kind: str) -> None:
    network, info = _network(**KINDS[kind])
    _assert_alike(OpenVinoRuntime(to_openvino(network, info), info, precision="f32"), network, *SHAPES)


@pytest.mark.slow
def test_onnx_answers_as_torch_at_sizes_that_the_export_has_not_seen(tmp_path: Path) -> None:
    network, info = _network(**KINDS["reduced, padded as TensorFlow does"])
    path = tmp_path / "m.onnx"
    to_onnx(network, info.model_copy(update={"created": "before"}), path)
    write_model_info(path, info)
    runtime = OnnxRuntime(path, info, device="cpu")

    _assert_alike(runtime, network, *SHAPES)
    assert read_model_info(path) == info
    assert list(tmp_path.iterdir()) == [path]
    assert b"graph.py" not in path.read_bytes(), "no paths of the machine that exported it"


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "ir_version", "size_hw"), [(18, 8, (40, 72)), (21, 10, None)])
def test_an_onnx_file_has_the_opset_and_the_oldest_format_that_has_it(
    plain: tuple[DefectNetwork, ModelInfo], tmp_path: Path, opset: int, ir_version: int, size_hw: tuple[int, int] | None
) -> None:
    onnx = pytest.importorskip("onnx")
    network, info = plain
    path = tmp_path / "m.onnx"
    to_onnx(network, info, path, size_hw=size_hw, opset=opset)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == ir_version
    shapes = [(1, 1, *size_hw), (3, 1, *size_hw)] if size_hw else SHAPES
    _assert_alike(OnnxRuntime(path, info, device="cpu"), network, *shapes)


@pytest.mark.slow
@pytest.mark.parametrize(("size_hw", "head"), [((40, 72), True), ((64, 128), False)])
def test_opencv_reads_an_onnx_file_for_one_size(tmp_path: Path, size_hw: tuple[int, int], head: bool) -> None:
    network, info = _network(classification_head=head, in_channels=1 if head else 3)
    path, images = tmp_path / "m.onnx", _images(1, 1, *size_hw)
    to_onnx(network, info, path, size_hw=size_hw)
    # OpenCV 4 knows neither of these as PyTorch writes them.
    operators = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    assert operators.isdisjoint({"Shape", "Gather", "GatherND", "Expand", "ReduceMax"})
    reader = cv2.dnn.readNetFromONNX(str(path))
    reader.setInput(images)
    found = reader.forward(["probabilities", "gate"])
    with torch.inference_mode():
        expected = network.answer(torch.from_numpy(images))
    for answer, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(answer, right.numpy(), atol=1e-4)


@pytest.mark.slow
def test_an_opset_that_the_network_cannot_be_written_in_is_refused(
    plain: tuple[DefectNetwork, ModelInfo], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="cannot express this network in opset 9"):
        to_onnx(*plain, tmp_path / "m.onnx", size_hw=(32, 64), opset=9)
    assert list(tmp_path.iterdir()) == []


def test_an_openvino_file_carries_the_description_and_its_tensors_have_names(
    plain: tuple[DefectNetwork, ModelInfo], tmp_path: Path
) -> None:
    network, info = plain
    model, path = to_openvino(network, info), tmp_path / "m.xml"
    save_model(model, path)
    seal_model(path, info)

    assert [tensor.get_names() for tensor in (*model.inputs, *model.outputs)] == [
        *({"image"}, {"probabilities"}, {"gate"})
    ]
    assert str(model.input(0).get_partial_shape()) == "[?,1,?,?]"
    assert read_model_info(path) == info
    _assert_alike(OpenVinoRuntime(read_model(path), info, precision="f32"), network, (1, 1, 40, 72))

    other = info.model_copy(update={"created": "<a> & \"b\" 'ä'"})
    write_model_info(path, other)
    text = core().read_model(path).get_rt_info([METADATA_KEY]).astype(str)
    assert parse_model_info(text, source=path) == other
    _assert_alike(OpenVinoRuntime(read_model(path), info, precision="f32"), network, (1, 1, 40, 72))


def test_an_export_of_one_size_answers_at_that_size_and_leaves_the_network_as_it_is(
    plain: tuple[DefectNetwork, ModelInfo],
) -> None:
    network, info = plain
    before = {key: value.clone() for key, value in network.state_dict().items()}

    fixed = OpenVinoRuntime(to_openvino(network, info, size_hw=(40, 72)), info, precision="f32")

    _assert_alike(fixed, network, (1, 1, 40, 72), (3, 1, 40, 72))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_model_that_is_right_for_one_size_only_is_told_from_one_for_all(
    plain: tuple[DefectNetwork, ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, info = plain
    assert takes_any_size(to_openvino(network, info), network)

    def forward(self: DefectNetwork, grey: torch.Tensor) -> tuple[torch.Tensor, None]:
        width_px = len(range(grey.shape[-1]))  # a plain number, so that the converter takes the example's
        return torch.zeros_like(grey, dtype=torch.float32).expand(-1, 2, -1, -1) + width_px / 200, None

    monkeypatch.setattr(DefectNetwork, "forward", forward)
    assert not takes_any_size(to_openvino(network, info), network)
    assert not takes_any_size(to_openvino(network, info, size_hw=(64, 64)), network)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 1, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_fixed_padding_computes_the_same_for_sizes_that_the_stride_divides(
    kernel: int, stride: int, dilation: int, groups: int
) -> None:
    torch.manual_seed(kernel)
    same = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=groups)
    module = nn.Sequential(nn.ReLU(), nn.Sequential(same))
    images = [torch.randn(2, 4, 32, 64), torch.randn(1, 4, 6, 10)]
    expected = [module(image) for image in images]

    fix_padding(module)

    assert not any(isinstance(child, Conv2dSame) for child in module.modules())
    for image, answer in zip(images, expected, strict=True):
        assert torch.equal(module(image), answer)
