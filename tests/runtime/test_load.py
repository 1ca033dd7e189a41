"""Which runtime a model file gets, and how one or several are loaded."""

import ctypes.util
import platform
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectseg.errors import MissingExtraError, ModelError, ResourceError, UsageError
from defectseg.model.bundle import load_bundle
from defectseg.model.graph import to_openvino
from defectseg.model.info import seal_model
from defectseg.model.openvino_io import save_model
from defectseg.runtime import load
from defectseg.runtime.load import choose_runtime, load_runtime, may_have_graphics_card
from defectseg.runtime.torch import TorchRuntime

IMAGES = np.random.default_rng(2).integers(0, 256, (1, 1, 40, 72), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "may_have_graphics_card", lambda: False)


@pytest.mark.parametrize(
    ("name", "device", "runtime", "expected"),
    [
        ("m.safetensors", "auto", "auto", "openvino"),
        ("m.safetensors", "cpu", "auto", "openvino"),
        ("m.safetensors", "cpu", "torch", "torch"),
        ("m.safetensors", "auto", "onnx", "onnx"),
        ("m.safetensors", "cuda", "auto", "torch"),
        ("m.safetensors", "cuda:1", "torch", "torch"),
        ("m.safetensors", "cuda:1", "onnx", "onnx"),
        ("m.safetensors", "mps", "auto", "torch"),
        ("m.xml", "auto", "auto", "openvino"),
        ("m.XML", "cpu", "openvino", "openvino"),
        ("m.onnx", "cuda", "auto", "onnx"),
        ("m.onnx", "cpu", "onnx", "onnx"),
    ],
)
def test_the_runtime_follows_from_the_file_the_device_and_the_flag(
    name: str, device: str, runtime: str, expected: str
) -> None:
    assert choose_runtime(Path(name), device, runtime) == expected


@pytest.mark.parametrize(
    ("name", "device", "runtime", "message"),
    [
        ("m.safetensors", "auto", "tensorrt", "runtime: expected auto, torch, openvino, onnx, found tensorrt"),
        (
            "m.safetensors",
            "cuda",
            "openvino",
            "device: openvino computes on cpu only, not on cuda. Or go on with runtime='torch'",
        ),
        ("m.safetensors", "mps", "onnx", "device: onnx computes on cpu or cuda only, not on mps"),
        ("m.safetensors", "gpu", "auto", "device: expected auto, cpu, cuda, cuda:N or mps, found 'gpu'"),
        ("m.xml", "auto", "torch", "runtime: m.xml is for openvino, not for torch"),
        ("m.xml", "cuda", "auto", "device: openvino computes on cpu only, not on cuda. Or go on with device='auto'"),
        ("m.onnx", "auto", "openvino", "runtime: m.onnx is for onnx, not for openvino"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, device: str, runtime: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose_runtime(Path(name), device, runtime)
    assert message in str(refused.value)


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, "torch"), (False, "openvino")])
def test_where_there_seems_to_be_a_card_torch_is_asked(
    has_cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "may_have_graphics_card", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    assert choose_runtime(Path("m.safetensors"), "auto", "auto") == expected
    assert choose_runtime(Path("m.safetensors"), "cpu", "auto") == "openvino"


@pytest.mark.parametrize(
    ("system", "machine", "visible", "driver", "expected"),
    [
        ("linux", "x86_64", None, True, True),
        ("linux", "x86_64", None, False, False),
        ("linux", "x86_64", "", True, False),
        ("linux", "x86_64", "-1", True, False),
        ("linux", "x86_64", "0,1", True, True),
        ("win32", "AMD64", None, True, True),
        ("win32", "AMD64", None, False, False),
        ("darwin", "arm64", None, False, True),
        ("darwin", "x86_64", None, True, False),
    ],
)
def test_a_card_is_told_from_files_and_the_environment(
    system: str, machine: str, visible: str | None, driver: bool, expected: bool,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "driver").touch()
    monkeypatch.setattr(load, "DRIVER_FILES", (str(tmp_path / ("driver" if driver else "none")),))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "nvcuda.dll" if driver else None)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert may_have_graphics_card() is expected


def test_torch_runs_a_bundle_without_converting_it_whatever_the_memory_layout_of_images(
    bundle: Path, cache_folder: Path
) -> None:
    (runtime, _), (wide, _) = load_runtime(bundle, "cpu", "torch"), load_runtime(bundle, "cpu", "torch", workers=3)
    network, _ = load_bundle(bundle)
    strided, read_only = IMAGES[..., ::-1], IMAGES.copy()
    read_only.flags.writeable = False

    assert (runtime.parallel, wide.parallel) == (1, 3)
    assert not cache_folder.exists()
    with torch.inference_mode():
        expected = network.answer(torch.from_numpy(strided.copy()))[0].numpy()
    np.testing.assert_allclose(runtime(strided).probabilities, expected, atol=0.02)
    np.testing.assert_array_equal(runtime(read_only).probabilities, runtime(IMAGES).probabilities)


def test_a_model_that_is_replaced_while_it_is_loaded_is_refused(
    tmp_path: Path, save_random: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_random(tmp_path / "m.safetensors")
    load_alone = load._load

    def load_and_replace(*arguments: Any) -> Any:
        runtime = load_alone(*arguments)
        save_random(path, seed=2)
        return runtime

    monkeypatch.setattr(load, "_load", load_and_replace)
    with pytest.raises(ModelError, match=r"m\.safetensors: replaced while it was loaded. Run the same command again"):
        load_runtime(path, "cpu", "torch")


def test_an_export_that_is_replaced_before_it_is_read_is_refused(
    tmp_path: Path, save_random: Callable[..., Path], cache_folder: Path
) -> None:
    path = tmp_path / "m.xml"

    def export(seed: int) -> None:
        network, info = load_bundle(save_random(tmp_path / "m.safetensors", seed=seed))
        save_model(to_openvino(network, info), path)
        seal_model(path, info)

    export(1)
    runtime, _ = load_runtime(path, "cpu")
    export(2)
    with pytest.raises(ModelError, match=r"m\.xml: replaced while it was loaded. Run the same command again"):
        runtime(IMAGES)
    assert not list(cache_folder.parent.rglob("compiled/*"))
    answer = load_runtime(path, "cpu")[0](IMAGES)
    np.testing.assert_array_equal(load_runtime(path, "cpu")[0](IMAGES).probabilities, answer.probabilities)


def test_torch_leaves_a_network_in_training_in_its_mode_and_tells_when_memory_runs_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, info = load_bundle(bundle)
    runtime = TorchRuntime(network.train(), info)
    before = runtime(IMAGES).probabilities
    assert network.training
    np.testing.assert_array_equal(runtime(IMAGES).probabilities, before)
    held: list[weakref.ref[torch.Tensor]] = []

    def answer(self: object, images: torch.Tensor) -> None:
        activations = images * 2
        held.append(weakref.ref(activations))
        torch.empty(10**16)

    def empty_cache() -> None:
        held.append(held[0])
        assert held[0]() is None

    monkeypatch.setattr(type(network), "answer", answer)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)  # a smaller batch will find room
    with pytest.raises(ResourceError, match=r"Out of memory on 1 image\(s\) of 40x72"):
        runtime(IMAGES)
    assert network.training
    assert len(held) == 2


def test_several_bundles_load_as_an_ensemble_that_answers_with_their_mean(
    bundle: Path, tmp_path: Path, save_random: Callable[..., Path]
) -> None:
    models = [bundle, save_random(tmp_path / "other.safetensors", seed=2)]
    one, other = (load_runtime(model, "cpu", "torch")[0] for model in models)
    ensemble, _ = load_runtime(models, "cpu", "torch", workers=2)

    assert (ensemble.name, ensemble.parallel) == (f"ensemble of 2: {one.name}", 2)
    first, second, mean = (runtime(IMAGES) for runtime in (one, other, ensemble))
    assert np.abs(first.probabilities - second.probabilities).max() > 0.01
    np.testing.assert_allclose(mean.probabilities, (first.probabilities + second.probabilities) / 2, atol=1e-6)
    np.testing.assert_allclose(mean.gate, (first.gate + second.gate) / 2, atol=1e-6)
    assert load_runtime(models[:1], "cpu", "torch")[0].name == one.name


def test_less_than_one_worker_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="workers: expected 1 or more, found 0"):
        load_runtime(bundle, "cpu", workers=0)


@pytest.mark.parametrize(
    ("runtime", "package", "words"),
    [
        ("onnx", "onnxruntime", r"ONNX Runtime needs packages .*defectseg\[onnx\]"),
        ("onnx", "onnxscript", r"conversion to ONNX needs packages .*defectseg\[onnx\]"),
        ("torch", "segmentation_models_pytorch", r"a bundle in torch needs packages .*defectseg\[train\]"),
    ],
)
def test_a_package_that_is_not_installed_is_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, package: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=words):
        load_runtime(bundle, "cpu", runtime)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_file_that_is_not_there_is_told_before_any_is_loaded(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"a\.safetensors: no such model file"):
        load_runtime([tmp_path / f"{name}.safetensors" for name in names], "cpu")


def test_a_card_that_is_not_there_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="device: this machine has no cuda"):
        load_runtime(bundle, "cuda")
