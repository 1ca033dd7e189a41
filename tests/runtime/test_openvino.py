"""OpenVINO's runtime and ONNX Runtime, around a model of one convolution."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset8

from defectseg.config import Recipe
from defectseg.errors import ResourceError
from defectseg.model.info import ExportInfo, ModelInfo, Normalization, Thresholds
from defectseg.runtime.onnx import OnnxRuntime
from defectseg.runtime.openvino import OpenVinoRuntime

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
)


def _model() -> openvino.Model:
    """Blurred grey levels as probabilities, the largest as the gate."""
    image = opset8.parameter([-1, 1, -1, -1], np.uint8, name="image")
    weights = np.full((1, 1, 3, 3), 1 / 9 / 255, np.float32)
    grey = opset8.convert(image, "f32")
    probabilities = opset8.convolution(grey, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    return openvino.Model([probabilities, opset8.reduce_max(probabilities, np.array([2, 3]))], [image])


def _images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def runtime() -> OpenVinoRuntime:
    return OpenVinoRuntime(_model(), INFO, precision="f32", workers=2)


def test_answers_do_not_depend_on_how_many_calls_are_made_at_once(runtime: OpenVinoRuntime) -> None:
    images = [_images(1, 1, 400, 700 + number % 3) for number in range(24)]
    alone = [runtime(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(runtime, images))

    for image, one, other in zip(images, alone, together, strict=True):
        assert one.probabilities[0, 0, 9, 9] == pytest.approx(image[0, 0, 8:11, 8:11].mean() / 255, abs=1e-5)
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.gate, other.gate)


def test_an_answer_belongs_to_the_caller(runtime: OpenVinoRuntime) -> None:
    first = runtime(_images(1, 1, 40, 72))
    kept = first.probabilities.copy()
    second = runtime(255 - _images(1, 1, 40, 72))

    assert not np.array_equal(kept, second.probabilities)
    np.testing.assert_array_equal(first.probabilities, kept)
    first.probabilities[:] = 0  # writable


def test_images_may_be_read_only_and_strided(runtime: OpenVinoRuntime) -> None:
    images = _images(1, 1, 40, 72)
    turned = images[..., ::-1, ::2]
    images.flags.writeable = False

    np.testing.assert_array_equal(runtime(images).probabilities, runtime(images.copy()).probabilities)
    np.testing.assert_array_equal(runtime(turned).probabilities, runtime(turned.copy()).probabilities)


@pytest.mark.parametrize(("workers", "streams"), [(1, {1}), (5, {5}), (None, set(range(1, 17)))])
def test_the_number_of_streams_is_that_of_the_workers_or_of_the_cores(workers: int | None, streams: set[int]) -> None:
    assert OpenVinoRuntime(_model(), INFO, workers=workers).parallel in streams


def test_the_name_tells_the_precision() -> None:
    int8 = {"export": ExportInfo(format="openvino", precision="int8")}
    f32 = {"export": ExportInfo(format="openvino", float_layers="f32")}

    assert OpenVinoRuntime(_model(), INFO, precision="f32").name == "openvino cpu f32"
    assert OpenVinoRuntime(_model(), INFO.model_copy(update=f32)).name == "openvino cpu f32"
    assert OpenVinoRuntime(_model(), INFO.model_copy(update=int8), precision="f32").name == "openvino cpu int8 and f32"
    assert OpenVinoRuntime(_model(), INFO).name in {f"openvino cpu {name}" for name in ("f32", "bf16", "f16")}


def test_only_a_few_sizes_are_kept_compiled_each_once() -> None:
    asked: list[tuple[int, int]] = []

    def model_for(size_hw: tuple[int, int]) -> openvino.Model:
        asked.append(size_hw)
        return _model()

    runtime = OpenVinoRuntime(model_for, INFO, precision="f32")
    for width in (40, 41, 42, 40, 43, 40, 41):
        runtime(_images(1, 1, 32, width))
    # 43 pushes out 41, which was not used for longest; 40 stays all the time.
    assert asked == [(32, width) for width in (40, 41, 42, 43, 41)]

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: (barrier.wait(), runtime(_images(1, 1, 32, 50))), range(4)))
    assert asked.count((32, 50)) == 1


def _fail(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Could not allocate")])
def test_running_out_of_memory_is_told_with_what_to_do(error: Exception) -> None:
    with pytest.raises(ResourceError, match=r"Out of memory on 2 image\(s\) of 40x72. Use fewer workers"):
        OpenVinoRuntime(_fail(error), INFO)(_images(2, 1, 40, 72))


def test_other_errors_of_openvino_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        OpenVinoRuntime(_fail(RuntimeError("a bug")), INFO)(_images(2, 1, 40, 72))


def test_onnx_runtime_without_cuda_refuses_a_card(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match=r"device.*cuda:0: this ONNX Runtime has no CUDA"):
        OnnxRuntime(tmp_path / "m.onnx", INFO, device="cuda:0")
