"""What an exported model computes: the same as the network, at any size."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError, ResourceError
from defectseg.model.graph import fix_padding, takes_any_size, to_onnx, to_openvino
from defectseg.model.info import METADATA_KEY, ModelInfo, Normalization, Thresholds, read_model_info, write_model_info
from defectseg.model.network import DefectNetwork
from defectseg.model.openvino_io import core
from defectseg.runtime.onnx import OnnxRuntime, load_onnx_runtime
from defectseg.runtime.openvino import OpenVinoRuntime, load_openvino_runtime

NORMALIZATION = Normalization(mean=0.4, std=0.2)
SHAPES = [(1, 1, 96, 160), (2, 1, 70, 45), (1, 1, 33, 100), (1, 1, 1, 1), (2, 1, 5, 130)]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reduced": {"input_scale": 0.5},
    "by three quarters, soft gate": {"input_scale": 0.75, "soft_gate": True},
    "enlarged": {"input_scale": 1.5},
    "three channels, no head": {"in_channels": 3, "classification_head": False},
    "PAN, which wants 128 px": {"architecture": "PAN", "options": {}},
    "padded as TensorFlow does": {"encoder": "tu-tf_efficientnet_lite0", "options": {"decoder_channels": [8] * 5}},
}


def _network(**model: Any) -> tuple[DefectNetwork, ModelInfo]:
    """A network with random weights that says something else for every pixel, and its description."""
    options = {"decoder_channels": [16, 8, 8, 8, 8]}
    config = ModelConfig(**{"encoder": "tu-test_resnet", "encoder_weights": "none", "options": options, **model})
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


def _expected(network: DefectNetwork, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        return [answer.numpy() for answer in network.answer(torch.from_numpy(images))]


def _assert_alike(runtime: Any, network: DefectNetwork, images: NDArray[np.uint8]) -> None:
    expected, answer = _expected(network, images), runtime(images)
    assert answer.probabilities.dtype == answer.gate.dtype == np.float32
    np.testing.assert_allclose(answer.probabilities, expected[0], atol=1e-4)
    np.testing.assert_allclose(answer.gate, expected[1], atol=1e-4)


@pytest.fixture(scope="module")
def plain() -> tuple[DefectNetwork, ModelInfo]:
    return _network()


@pytest.fixture(scope="module")
def runtime(plain: tuple[DefectNetwork, ModelInfo]) -> OpenVinoRuntime:
    """The plain network in float32, with two streams."""
    return OpenVinoRuntime(to_openvino(*plain), plain[1], precision="f32", workers=2)


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_answers_as_torch_at_sizes_that_the_export_has_not_seen(kind: str) -> None:
    network, info = _network(**KINDS[kind])
    runtime = OpenVinoRuntime(to_openvino(network, info), info, precision="f32")

    assert _expected(network, _images(*SHAPES[0]))[0].std() > 0.01
    for shape in SHAPES:
        _assert_alike(runtime, network, _images(*shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["plain", "by three quarters, soft gate", "PAN, which wants 128 px", "padded as TensorFlow does"]
)
def test_onnx_answers_as_torch_at_sizes_that_the_export_has_not_seen(kind: str, tmp_path: Path) -> None:
    network, info = _network(**KINDS[kind])
    to_onnx(network, info.model_copy(update={"created": "before"}), tmp_path / "m.onnx")
    write_model_info(tmp_path / "m.onnx", info)
    runtime = load_onnx_runtime(tmp_path / "m.onnx", device="cpu")

    for shape in SHAPES:
        _assert_alike(runtime, network, _images(*shape))
    assert read_model_info(tmp_path / "m.onnx") == info
    assert runtime.class_names == info.class_names
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert b"graph.py" not in (tmp_path / "m.onnx").read_bytes(), "no paths of the machine that exported it"
    assert (runtime.name, runtime.parallel) == ("onnxruntime cpu f32", 1)


def test_an_openvino_file_carries_the_description_and_its_tensors_have_names(
    plain: tuple[DefectNetwork, ModelInfo], tmp_path: Path
) -> None:
    model = to_openvino(*plain)
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)

    loaded = load_openvino_runtime(tmp_path / "m.xml", precision="f32")

    assert [tensor.get_names() for tensor in (*model.inputs, *model.outputs)] == [
        *({"image"}, {"probabilities"}, {"gate"})
    ]
    assert str(model.input(0).get_partial_shape()) == "[?,1,?,?]"
    assert read_model_info(tmp_path / "m.xml") == plain[1]
    assert loaded.class_names == plain[1].class_names
    _assert_alike(loaded, plain[0], _images(1, 1, 40, 72))

    other = plain[1].model_copy(update={"created": "<a> & \"b\" 'ä'"})
    write_model_info(tmp_path / "m.xml", other)
    text = core().read_model(tmp_path / "m.xml").get_rt_info([METADATA_KEY]).astype(str)
    assert ModelInfo.model_validate_json(text) == other
    again = load_openvino_runtime(tmp_path / "m.xml", precision="f32")(_images(1, 1, 40, 72))
    assert np.array_equal(again.probabilities, loaded(_images(1, 1, 40, 72)).probabilities)


def test_exporting_leaves_the_network_as_it_is() -> None:
    network, info = _network()
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    to_openvino(network, info)

    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_an_export_of_one_size_answers_at_that_size_and_refuses_others(
    plain: tuple[DefectNetwork, ModelInfo],
) -> None:
    network, info = plain
    fixed = OpenVinoRuntime(to_openvino(network, info, size_hw=(40, 72)), info, precision="f32")

    _assert_alike(fixed, network, _images(1, 1, 40, 72))
    _assert_alike(fixed, network, _images(3, 1, 40, 72))
    with pytest.raises(ModelError, match="exported for images of 40x72 px, but was given 40x73"):
        fixed(_images(1, 1, 40, 73))


@pytest.mark.slow
def test_an_onnx_file_of_one_size_answers_at_that_size_and_refuses_others(
    plain: tuple[DefectNetwork, ModelInfo], tmp_path: Path
) -> None:
    network, info = plain
    to_onnx(network, info, tmp_path / "m.onnx", size_hw=(40, 72))
    fixed = load_onnx_runtime(tmp_path / "m.onnx", workers=3)

    assert fixed.parallel == 3
    _assert_alike(fixed, network, _images(2, 1, 40, 72))
    with pytest.raises(ModelError, match="exported for images of 40x72 px, but was given 41x72"):
        fixed(_images(1, 1, 41, 72))


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


# OpenVINO's runtime


def test_answers_do_not_depend_on_how_many_calls_are_made_at_once(runtime: OpenVinoRuntime) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [_images(1, 1, 40 + number % 2, 72) for number in range(20)] + [
        _images(1, 1, 42, 70 + n % 3) for n in range(4)
    ]
    alone = [runtime(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(runtime, images))

    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.gate, other.gate)


def test_an_answer_belongs_to_the_caller(runtime: OpenVinoRuntime) -> None:
    first = runtime(_images(1, 1, 40, 72))
    kept = first.probabilities.copy()
    second = runtime(255 - _images(1, 1, 40, 72))

    assert not np.array_equal(kept, second.probabilities)
    np.testing.assert_array_equal(first.probabilities, kept)
    first.probabilities[:] = 0  # writable


def test_images_may_be_read_only_and_strided(runtime: OpenVinoRuntime, plain: tuple[DefectNetwork, ModelInfo]) -> None:
    images = _images(1, 1, 40, 72)
    turned = images[..., ::-1, ::2]
    images.flags.writeable = False

    np.testing.assert_array_equal(runtime(images).gate, runtime(images.copy()).gate)
    np.testing.assert_array_equal(runtime(turned).gate, runtime(turned.copy()).gate)


def test_the_number_of_streams_is_that_of_the_workers_or_of_the_cores(plain: tuple[DefectNetwork, ModelInfo]) -> None:
    model = to_openvino(*plain)

    one, many, default = (OpenVinoRuntime(model, plain[1], workers=workers) for workers in (1, 5, None))

    assert (one.parallel, many.parallel) == (1, 5)
    assert 1 <= default.parallel <= 16
    image = _images(1, 1, 40, 72)
    np.testing.assert_array_equal(one(image).probabilities, many(image).probabilities)


def test_the_name_tells_the_precision(plain: tuple[DefectNetwork, ModelInfo]) -> None:
    from defectseg.model.info import ExportInfo

    model, info = to_openvino(*plain), plain[1]
    int8 = info.model_copy(update={"export": ExportInfo(format="openvino", precision="int8")})

    assert OpenVinoRuntime(model, info, precision="f32").name == "openvino cpu f32"
    assert OpenVinoRuntime(model, int8, precision="f32").name == "openvino cpu int8 and f32"
    assert OpenVinoRuntime(model, info).name in {f"openvino cpu {name}" for name in ("f32", "bf16", "f16")}


def test_only_a_few_sizes_are_kept_compiled(plain: tuple[DefectNetwork, ModelInfo]) -> None:
    asked: list[tuple[int, int]] = []
    model = to_openvino(*plain)

    def model_for(size_hw: tuple[int, int]) -> openvino.Model:
        asked.append(size_hw)
        return model

    runtime = OpenVinoRuntime(model_for, plain[1], precision="f32")
    for width in (40, 41, 42, 40, 43, 40, 41):
        runtime(_images(1, 1, 32, width))

    # 43 pushes out 41, which was not used for longest; 40 stays all the time.
    assert [width for _, width in asked] == [40, 41, 42, 43, 41]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Could not allocate")])
def test_running_out_of_memory_is_told_with_what_to_do(
    plain: tuple[DefectNetwork, ModelInfo], error: Exception
) -> None:
    def fail(size_hw: tuple[int, int]) -> openvino.Model:
        raise error

    with pytest.raises(ResourceError, match=r"Out of memory on 2 image\(s\) of 40x72. Use fewer workers"):
        OpenVinoRuntime(fail, plain[1])(_images(2, 1, 40, 72))


def test_other_errors_of_openvino_are_not_taken_for_lack_of_memory(plain: tuple[DefectNetwork, ModelInfo]) -> None:
    def fail(size_hw: tuple[int, int]) -> openvino.Model:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        OpenVinoRuntime(fail, plain[1])(_images(2, 1, 40, 72))


class _Session:
    """A session of ONNX Runtime that fails."""

    def __init__(self, message: str) -> None:
        self.message = message

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"shape": ["batch", 1, "height", "width"]})]

    def run(self, names: Any, feeds: Any) -> None:
        raise RuntimeError(self.message)


def test_onnx_runtime_out_of_memory_is_told_and_a_bug_is_not(plain: tuple[DefectNetwork, ModelInfo]) -> None:
    make: Callable[..., OnnxRuntime] = OnnxRuntime

    with pytest.raises(ResourceError, match=r"Out of memory on 1 image\(s\) of 4x6"):
        make(_Session("Failed to allocate memory for requested buffer"), plain[1])(_images(1, 1, 4, 6))
    with pytest.raises(RuntimeError, match="bug"):
        make(_Session("bug"), plain[1])(_images(1, 1, 4, 6))


def test_onnx_runtime_without_cuda_refuses_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from defectseg.runtime.onnx import open_session

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match=r"device.*cuda:0: this ONNX Runtime has no CUDA"):
        open_session(b"", _network()[1], source=tmp_path / "m.onnx", device="cuda:0")


def test_telemetry_cannot_be_imported() -> None:
    assert sys.modules["openvino_telemetry"] is None


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
