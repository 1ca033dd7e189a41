"""OpenVINO's runtime and ONNX Runtime, around a model of one convolution."""

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset8

from defectseg.config import Recipe
from defectseg.errors import DataError, ModelError, ResourceError
from defectseg.machine import allow_gb
from defectseg.model.info import ExportInfo, ModelInfo, Normalization, Thresholds
from defectseg.model.openvino_io import core
from defectseg.runtime import cache
from defectseg.runtime import openvino as openvino_runtime
from defectseg.runtime.cache import CompiledModels
from defectseg.runtime.onnx import OnnxRuntime, available_devices
from defectseg.runtime.openvino import OpenVinoRuntime, Precision, _peak_bytes
from defectseg.runtime.torch import name_of

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
)


def _model(height: int = -1, width: int = -1) -> openvino.Model:
    """Blurred grey levels as probabilities, the largest as the gate."""
    image = opset8.parameter([-1, 1, height, width], np.uint8, name="image")
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


@pytest.mark.parametrize("has_amx", [False, True])
def test_the_name_tells_the_precision_and_whether_amx_computes_in_it(
    has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, amx = (["amx_bf16", "amx_int8"], " with AMX") if has_amx else ([], "")
    monkeypatch.setattr("defectseg.machine.cpu_flags", lambda: flags)
    int8 = {"export": ExportInfo(format="openvino", precision="int8")}
    f32 = {"export": ExportInfo(format="openvino", float_layers="f32")}

    assert OpenVinoRuntime(_model(), INFO, precision="f32").name == "openvino cpu f32"
    assert OpenVinoRuntime(_model(), INFO.model_copy(update=f32)).name == "openvino cpu f32"
    assert (
        OpenVinoRuntime(_model(), INFO.model_copy(update=int8), precision="f32").name
        == f"openvino cpu int8 and f32{amx}"
    )
    assert OpenVinoRuntime(_model(), INFO).name in {f"openvino cpu {name}" for name in ("f32", f"bf16{amx}", "f16")}
    assert name_of(torch.device("cpu"), torch.bfloat16) == f"torch cpu bfloat16{amx}"
    assert name_of(torch.device("cpu"), None) == "torch cpu float32"
    assert name_of(torch.device("cuda", 1), torch.bfloat16) == "torch cuda:1 bfloat16"


def _answers(of_image: openvino.Node) -> openvino.Model:
    """A model with the outputs of a network, which adds the mean of a value to its image."""
    x = opset8.parameter([-1, 1, -1, -1], np.uint8)
    value = opset8.reduce_mean(of_image(grey := opset8.convert(x, "f32")), np.array([1, 2, 3]), keep_dims=True)
    probabilities = opset8.add(grey, value)
    return openvino.Model([probabilities, opset8.reduce_max(probabilities, np.array([2, 3]))], [x])


def _many_channels(grey: openvino.Node, count: int = 1_000) -> openvino.Node:
    weights = np.ones((count, 1, 1, 1), np.float32)
    return opset8.convolution(grey, weights, [1, 1], [0, 0], [0, 0], [1, 1])


def _giant_constant(grey: openvino.Node) -> openvino.Node:
    giant = opset8.broadcast(np.float32(1), np.array([1, 1, 30_000, 30_000]))
    return opset8.add(grey, opset8.reduce_max(giant, np.array([0, 1, 2, 3])))


def _many_at_once(grey: openvino.Node) -> openvino.Node:
    return opset8.concat([_many_channels(grey, 150 + n) for n in range(5)], axis=1)


@pytest.mark.parametrize("of_image", [_many_channels, _giant_constant, _many_at_once])
def test_a_model_that_asks_for_much_memory_is_refused_before_it_takes_it(
    of_image: Callable[[openvino.Node], openvino.Node],
) -> None:
    runtime = OpenVinoRuntime(_answers(of_image), INFO)
    with pytest.raises(DataError, match=r"for an image of 256x1600: would take more than 1.5 GB .*--max-gb [34] "):
        runtime(_images(1, 1, 256, 1600))


def test_a_model_that_takes_as_much_memory_as_the_image_says_is_refused() -> None:
    def of_image(grey: openvino.Node) -> openvino.Node:
        brightest = opset8.convert(opset8.reduce_max(grey, np.array([0, 1, 2, 3])), "i64")
        return opset8.broadcast(np.float32(1), opset8.broadcast(brightest, np.array([4])))

    with pytest.raises(ModelError, match=r"as the image makes it take \(in its Broadcast\)"):
        OpenVinoRuntime(_answers(of_image), INFO)(_images(1, 1, 8, 8))


def test_a_network_that_fits_no_image_is_refused() -> None:
    def of_image(grey: openvino.Node) -> openvino.Node:
        return opset8.add(grey, np.ones((1, 1, 3, 3), np.float32))

    with pytest.raises(ModelError, match=r"cannot compute images of 8x8 px \(.*Export it again"):
        OpenVinoRuntime(_answers(of_image), INFO)(_images(1, 1, 8, 8))


def test_memory_is_counted_for_values_that_are_held_together() -> None:
    x = opset8.parameter([1, 1, 8, 8], np.float32)
    first = opset8.relu(x)
    second = opset8.relu(opset8.relu(first))  # x is no longer needed, but first is
    model = openvino.Model([opset8.add(first, second)], [x])
    assert _peak_bytes(model) == 3 * 64 * 4


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


def test_a_size_is_compiled_in_the_background_and_what_is_wrong_is_told_by_the_call() -> None:
    asked: list[tuple[int, int]] = []

    def model_for(size_hw: tuple[int, int]) -> openvino.Model:
        asked.append(size_hw)
        if size_hw == (32, 41):
            raise ModelError("no such size")
        return _model()

    runtime = OpenVinoRuntime(model_for, INFO, precision="f32")
    runtime.prepare((32, 40))
    runtime.prepare((32, 41))
    for thread in threading.enumerate():
        if thread.name == "prepare":
            thread.join()
    assert sorted(asked) == [(32, 40), (32, 41)]
    runtime(_images(1, 1, 32, 40))
    assert len(asked) == 2
    with pytest.raises(ModelError, match="no such size"):
        runtime(_images(1, 1, 32, 41))


@pytest.fixture
def start(cache_folder: Path) -> Callable[..., list[int]]:
    """As in a new process: answer images of these widths, and return the widths that were compiled anew."""

    def answer(*widths: int, identity: str = "a", precision: Precision = "f32") -> list[int]:
        asked: list[int] = []

        def model_for(size_hw: tuple[int, int]) -> openvino.Model:
            asked.append(size_hw[1])
            return _model()

        again = OpenVinoRuntime(model_for, INFO, precision=precision, kept=CompiledModels(identity))
        anew = OpenVinoRuntime(_model(), INFO, precision=precision)
        for width in widths:
            images = _images(1, 1, 32, width)
            np.testing.assert_array_equal(again(images).probabilities, anew(images).probabilities)
            np.testing.assert_array_equal(again(images).gate, anew(images).gate)
        return asked

    return answer


def test_the_first_size_is_compiled_once_for_all_starts_with_the_same_answers(
    start: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(40, 41) == [40, 41]
    assert start(40, 41) == [41]
    assert start(41) == []
    assert start(40, identity="b") == [40]
    assert start(40, precision="auto") == [40]
    monkeypatch.setattr(openvino_runtime, "cpu_flags", lambda: ["another processor"])
    assert start(40) == [40]


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\0", b"\0" * 5000, zlib.crc32(b"abc").to_bytes(4) + b"abc"])
def test_a_damaged_compiled_model_is_replaced(
    damage: bytes, start: Callable[..., list[int]], cache_folder: Path
) -> None:
    start(40)
    (kept,) = (cache_folder / "compiled").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(damage or content[:-1])

    assert start(40) == [40]
    assert kept.stat().st_size == len(content)
    assert start(40) == []


def test_only_the_compiled_models_used_last_are_kept(
    start: Callable[..., list[int]], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT_ENTRIES", 2)
    for age_s, width in enumerate((40, 41)):
        start(width)
        for path in (cache_folder / "compiled").iterdir():
            os.utime(path, (1e9 + age_s, 1e9 + age_s))
    start(40)
    start(42)

    assert len(list((cache_folder / "compiled").iterdir())) == 2
    assert start(40) == start(42) == []
    assert start(41) == [41]


def test_where_compiled_models_cannot_be_kept_they_are_compiled_anew(
    start: Callable[..., list[int]], cache_folder: Path
) -> None:
    cache_folder.write_text("in the way", encoding="utf-8")
    assert start(40) == [40]
    assert start(40) == [40]


def _fail(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Could not allocate")])
def test_running_out_of_memory_is_told_with_what_to_do(error: Exception) -> None:
    with pytest.raises(ResourceError, match=r"Out of memory on 2 image\(s\) of 40x72. Use fewer workers"):
        OpenVinoRuntime(_fail(error), INFO)(_images(2, 1, 40, 72))


def test_other_errors_of_openvino_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(ModelError, match=r"cannot compute images of 40x72 px \(a bug\)"):
        OpenVinoRuntime(_fail(RuntimeError("a bug")), INFO)(_images(2, 1, 40, 72))


@pytest.mark.parametrize("shape", [(1, 1, 41, 72), (1, 1, 40, 71)])
def test_a_model_of_one_size_refuses_others(shape: tuple[int, ...]) -> None:
    runtime = OpenVinoRuntime(_model(40, 72), INFO)
    assert runtime(_images(2, 1, 40, 72)).probabilities.shape == (2, 1, 40, 72)
    with pytest.raises(ModelError, match=f"exported for images of 40x72 px, but was given {shape[2]}x{shape[3]}"):
        runtime(_images(*shape))


@pytest.mark.parametrize("marked", [True, False])
def test_a_processor_that_cannot_mix_precisions_computes_without_the_marks(
    marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    class Core:
        def compile_model(self, model: openvino.Model, *arguments: Any) -> Any:
            compiled.append(model)
            if len(compiled) == 1:
                raise RuntimeError("object is not initialized")
            return core().compile_model(model, "CPU")

    runtime = OpenVinoRuntime(_model(), INFO)
    monkeypatch.setattr(openvino_runtime, "core", Core)
    monkeypatch.setattr(openvino_runtime, "unmark", lambda model: marked)
    if marked:
        assert runtime(_images(1, 1, 40, 72)).probabilities.max() > 0
    else:
        with pytest.raises(ModelError, match=r"cannot compute images of 40x72 px \(object is not initialized\)"):
            runtime(_images(1, 1, 40, 72))
    assert len(compiled) == 1 + marked


# ONNX Runtime


def _write_onnx(path: Path, height: int | str = "height", width: int | str = "width") -> Path:
    """Grey levels as probabilities, the largest as the gate."""
    make, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("Cast", ["image"], ["probabilities"], to=kinds.FLOAT),
        make.make_node("ReduceMax", ["probabilities", "axes"], ["gate"], keepdims=0),
    ]
    shape: list[str | int | None] = ["batch", 1, height, width]
    inputs = [make.make_tensor_value_info("image", kinds.UINT8, shape)]
    outputs = [make.make_tensor_value_info("probabilities", kinds.FLOAT, shape)]
    outputs.append(make.make_tensor_value_info("gate", kinds.FLOAT, ["batch", 1]))
    graph = make.make_graph(nodes, "g", inputs, outputs, [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("of_image", [True, False])
def test_onnx_runtime_takes_no_more_memory_than_is_allowed(of_image: bool, tmp_path: Path) -> None:
    """A file of a few hundred bytes whose constant, or value of the image, has 800 MB."""
    make, kinds = onnx.helper, onnx.TensorProto
    giant = ("Expand", ["grey", "size"]) if of_image else ("ConstantOfShape", ["size"])
    nodes = [
        make.make_node("Cast", ["image"], ["grey"], to=kinds.FLOAT),
        make.make_node(giant[0], giant[1], ["giant"]),
        make.make_node("ReduceMax", ["giant"], ["most"], keepdims=0),
        make.make_node("Add", ["grey", "most"], ["probabilities"]),
        make.make_node("ReduceMax", ["probabilities", "axes"], ["gate"], keepdims=0),
    ]
    values = {"axes": np.array([2, 3]), "size": np.array([200_000_000, 1, 1, 1])}
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("image", kinds.UINT8, [1, 1, 1, 1])],
        [make.make_tensor_value_info(name, kinds.FLOAT, None) for name in ("probabilities", "gate")],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    allow_gb(0.5)
    try:
        runtime = OnnxRuntime(tmp_path / "m.onnx", INFO, device="cpu")
        with pytest.raises(ResourceError, match=r"Out of memory on .* If you trust it, repeat .*--max-gb 2"):
            runtime(_images(1, 1, 1, 1))
    finally:
        allow_gb(1.5)


def test_onnx_runtime_answers_at_any_size_or_at_the_only_one(tmp_path: Path) -> None:
    images = _images(2, 1, 6, 8)[..., ::2]
    free = OnnxRuntime(_write_onnx(tmp_path / "free.onnx"), INFO, device="cpu", workers=3)
    np.testing.assert_array_equal(free(images).probabilities, images)
    np.testing.assert_array_equal(free(images).gate, images.max(axis=(2, 3)))
    assert (free.name, free.parallel, free.class_names) == ("onnxruntime cpu f32", 3, ("pits",))
    fixed = OnnxRuntime(_write_onnx(tmp_path / "fixed.onnx", 6, 4), INFO, device="cpu")
    assert fixed.parallel == 1
    np.testing.assert_array_equal(fixed(images).probabilities, images)
    for shape in ((1, 1, 7, 4), (1, 1, 6, 5)):
        with pytest.raises(ModelError, match=f"exported for images of 6x4 px, but was given {shape[2]}x{shape[3]}"):
            fixed(_images(*shape))
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime cannot read it"):
        OnnxRuntime(tmp_path / "m.onnx", INFO, device="cpu")


class _Session:
    """A session of ONNX Runtime that was given `providers`."""

    def __init__(self, model: Path, options: Any, *, providers: list[Any], **choices: Any) -> None:
        self.providers = providers

    def get_providers(self) -> list[Any]:
        return [provider[0] if isinstance(provider, tuple) else provider for provider in self.providers]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(shape=["batch", 1, "height", "width"])]

    def run(self, *arguments: Any) -> Any:
        assert self.providers == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
        raise RuntimeError("Failed to allocate memory for requested buffer")


@pytest.mark.parametrize("has_cuda", [True, False])
def test_onnx_runtime_takes_a_card_where_it_can(has_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["CUDAExecutionProvider"] * has_cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    best = "cuda" if has_cuda else "cpu"
    assert available_devices() == (["cpu", "cuda"] if has_cuda else ["cpu"])
    assert OnnxRuntime(Path("m.onnx"), INFO).name == f"onnxruntime {best} f32"
    assert OnnxRuntime(Path("m.onnx"), INFO, device="cpu").name == "onnxruntime cpu f32"
    if has_cuda:
        with pytest.raises(ResourceError, match=r"Out of memory on 1 image\(s\) of 40x72"):
            OnnxRuntime(Path("m.onnx"), INFO, device="cuda:1")(_images(1, 1, 40, 72))
    else:
        with pytest.raises(ResourceError, match=r"device.*cuda:1: this ONNX Runtime has no CUDA"):
            OnnxRuntime(Path("m.onnx"), INFO, device="cuda:1")
