"""The cache of converted bundles, and the choice between runtimes."""

import ctypes.util
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

import defectseg
from defectseg.config import ModelConfig, Recipe
from defectseg.errors import MissingExtraError, ModelError, ResourceError, UsageError
from defectseg.model import graph, openvino_io
from defectseg.model.bundle import load_bundle, save_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds, read_model_info, write_model_info
from defectseg.model.network import DefectNetwork
from defectseg.runtime import cache, load
from defectseg.runtime.ensemble import EnsembleRuntime
from defectseg.runtime.load import choose_runtime, load_runtime, may_have_graphics_card
from defectseg.runtime.openvino import OpenVinoRuntime
from defectseg.runtime.torch import TorchRuntime

IMAGES = np.random.default_rng(2).integers(0, 256, (1, 1, 40, 72), dtype=np.uint8)


def _save(path: Path, *, seed: int = 1) -> Path:
    model = ModelConfig(encoder="tu-test_resnet", encoder_weights="none", options={"decoder_channels": [8] * 5})
    info = ModelInfo(
        class_names=("pits",),
        normalization=Normalization(mean=0.5, std=0.5),
        thresholds=Thresholds.default(1),
        recipe=Recipe(model=model),
    )
    torch.manual_seed(seed)
    save_bundle(path, DefectNetwork(model, 1, info.normalization).state_dict(), info)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("bundle") / "m.safetensors")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A cache folder with the bundle in it, converted for OpenVINO. Not to be written to: copy it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFECTSEG_CACHE_DIR", str(folder))
        load_runtime(bundle, "cpu")
    return folder


@pytest.fixture
def warm_copy(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(warm, folder)
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[ModelInfo]:
    """Descriptions of the bundles that are converted for OpenVINO from now on."""
    made: list[ModelInfo] = []
    convert = graph.to_openvino

    def count(network: DefectNetwork, info: ModelInfo, **options: Any) -> Any:
        made.append(info)
        return convert(network, info, **options)

    monkeypatch.setattr(graph, "to_openvino", count)
    return made


def _expected(bundle: Path, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    network, _ = load_bundle(bundle)
    with torch.inference_mode():
        probabilities: NDArray[np.float32] = network.answer(torch.from_numpy(images))[0].numpy()
    return probabilities


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("models/*/*"))


def _entry(folder: Path) -> Path:
    (entry,) = (path for path in (folder / "models").iterdir() if path.is_dir())
    return entry


def test_a_bundle_is_converted_once_and_answers_as_torch(
    bundle: Path, conversions: list[ModelInfo], cache_folder: Path
) -> None:
    (first, _), (second, info) = load_runtime(bundle, "cpu"), load_runtime(bundle, "cpu", "openvino")

    assert isinstance(first, OpenVinoRuntime)
    assert len(conversions) == 1
    assert _files(cache_folder) == ["model.bin", "model.xml"]
    np.testing.assert_allclose(first(IMAGES).probabilities, _expected(bundle), atol=0.02)
    np.testing.assert_array_equal(first(IMAGES).probabilities, second(IMAGES).probabilities)
    assert info == load_bundle(bundle)[1]


def test_another_bundle_of_the_same_name_is_converted_anew(tmp_path: Path, conversions: list[ModelInfo]) -> None:
    path = _save(tmp_path / "m.safetensors", seed=1)
    first = load_runtime(path, "cpu")[0](IMAGES)
    _save(path, seed=2)

    second = load_runtime(path, "cpu")[0](IMAGES)

    assert len(conversions) == 2
    assert np.abs(first.probabilities - second.probabilities).max() > 0.01
    np.testing.assert_allclose(second.probabilities, _expected(path), atol=0.02)


def test_other_thresholds_and_scores_are_taken_from_the_bundle_without_another_conversion(
    bundle: Path, tmp_path: Path, warm_copy: Path, conversions: list[ModelInfo]
) -> None:
    tuned = Path(shutil.copy(bundle, tmp_path / "tuned.safetensors"))
    thresholds = Thresholds(gate=(0.1,), pixel=(0.9,), min_area_px=(7,), chosen_by="hand")
    update = {"thresholds": thresholds, "metrics": {"tuned": {"kaggle_dice": 0.9}}}
    write_model_info(tuned, read_model_info(bundle).model_copy(update=update))

    (runtime, info), (other, _) = load_runtime(tuned, "cpu"), load_runtime(bundle, "cpu")

    assert conversions == []
    assert info.thresholds == thresholds
    np.testing.assert_array_equal(runtime(IMAGES).probabilities, other(IMAGES).probabilities)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model.bin", "model.xml", "checksums"])
def test_a_damaged_entry_is_rebuilt(
    name: str, damage: Any, warm_copy: Path, bundle: Path, conversions: list[ModelInfo]
) -> None:
    damage(_entry(warm_copy) / name)

    answer = load_runtime(bundle, "cpu")[0](IMAGES)
    load_runtime(bundle, "cpu")

    assert len(conversions) == 1
    np.testing.assert_allclose(answer.probabilities, _expected(bundle), atol=0.02)
    assert _files(warm_copy) == ["model.bin", "model.xml"]


def test_a_newer_version_does_not_take_what_an_older_one_converted(
    warm_copy: Path, bundle: Path, conversions: list[ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "__version__", "99.0.0")
    load_runtime(bundle, "cpu")
    monkeypatch.setattr(openvino, "__version__", "99.0.0")
    load_runtime(bundle, "cpu")
    assert len(conversions) == 2


def test_a_bundle_that_is_replaced_while_it_is_converted_is_not_kept_under_its_old_name(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, convert = _save(tmp_path / "m.safetensors"), graph.to_openvino

    def replace(network: DefectNetwork, info: ModelInfo, **options: Any) -> Any:
        _save(path, seed=2)
        return convert(network, info, **options)

    monkeypatch.setattr(graph, "to_openvino", replace)
    with pytest.raises(ModelError, match="was replaced while it was converted"):
        load_runtime(path, "cpu")
    assert _files(cache_folder) == []


def test_without_a_folder_to_write_to_the_model_runs_and_a_warning_says_what_to_do(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "file"))

    with caplog.at_level(logging.WARNING):
        answer = load_runtime(bundle, "cpu")[0](IMAGES)

    np.testing.assert_allclose(answer.probabilities, _expected(bundle), atol=0.02)
    assert "every start converts anew. Set DEFECTSEG_CACHE_DIR" in caplog.text


def test_a_disk_that_fills_up_while_the_model_is_kept_leaves_nothing_and_the_model_runs(
    bundle: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = openvino_io.save_model

    def fail(model: Any, path: Path) -> None:
        if cache_folder in path.parents:
            path.with_suffix(".bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(model, path)

    monkeypatch.setattr(openvino_io, "save_model", fail)
    answer = load_runtime(bundle, "cpu")[0](IMAGES)

    np.testing.assert_allclose(answer.probabilities, _expected(bundle), atol=0.02)
    assert "No space left on device" in caplog.text
    assert [path.name for path in (cache_folder / "models").iterdir() if path.is_dir()] == []


def test_a_process_that_converts_too_long_is_not_waited_for(
    bundle: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_S", 0.01)
    (cache_folder / "models").mkdir(parents=True)
    with FileLock(cache_folder / "models" / ".lock"):
        load_runtime(bundle, "cpu")
    assert "cannot be kept there" in caplog.text
    assert _files(cache_folder) == []


def test_what_another_process_converted_meanwhile_is_taken(
    warm: Path, bundle: Path, conversions: list[ModelInfo], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FileLock.acquire

    def other_was_first(self: FileLock, *args: Any, **options: Any) -> Any:
        shutil.copytree(_entry(warm), cache_folder / "models" / _entry(warm).name)
        return acquire(self, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", other_was_first)
    load_runtime(bundle, "cpu")
    assert conversions == []


def test_only_the_entries_used_last_are_kept(
    warm_copy: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT_ENTRIES", 2)
    used = _entry(warm_copy)
    for name, age_s in (("older", 500), ("old", 400), (".tmp-left", 0)):
        folder = used.with_name(name)
        folder.mkdir()
        os.utime(folder, (1e9 - age_s, 1e9 - age_s))
    os.utime(used, (1e9 - 600, 1e9 - 600))

    load_runtime(bundle, "cpu")  # used again, so that it is now the newest
    load_runtime(_save(tmp_path / "other.safetensors", seed=3), "cpu")

    left = [path.name for path in used.parent.iterdir() if path.is_dir()]
    assert len(left) == 2
    assert used.name in left
    assert not {"old", "older", ".tmp-left"} & set(left)


def test_a_network_that_can_only_be_converted_for_one_size_is_converted_for_each(
    bundle: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectseg.model.graph.takes_any_size", lambda model, network: False)
    other = IMAGES[..., :50]

    for _ in range(2):
        runtime, _ = load_runtime(bundle, "cpu")
        np.testing.assert_allclose(runtime(IMAGES).probabilities, _expected(bundle), atol=0.02)
        np.testing.assert_allclose(runtime(other).probabilities, _expected(bundle, other.copy()), atol=0.02)

    # One entry for each size, and one that says that there has to be one for each size.
    assert _files(cache_folder) == sorted(["model.bin", "model.xml"] * 2 + ["one-size-only"])


@pytest.mark.slow
def test_a_bundle_runs_in_onnx_runtime_and_is_converted_once(bundle: Path, cache_folder: Path) -> None:
    first, _ = load_runtime(bundle, "cpu", "onnx")
    written = [path.stat().st_mtime_ns for path in cache_folder.glob("models/*/*")]
    second, _ = load_runtime(bundle, "cpu", "onnx")

    assert first.name == "onnxruntime cpu f32"
    assert _files(cache_folder) == ["model.onnx"]
    np.testing.assert_allclose(second(IMAGES).probabilities, _expected(bundle), atol=1e-4)
    assert [path.stat().st_mtime_ns for path in cache_folder.glob("models/*/*")] == written


def test_the_cache_lies_where_the_system_keeps_caches_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFECTSEG_CACHE_DIR")
    assert cache.cache_folder().parts[-1] == "models"
    assert any("defectseg" in part for part in cache.cache_folder().parts)


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from defectseg.runtime.load import load_runtime
for name in {absent}:
    sys.modules[name] = None
runtime, _ = load_runtime(Path(sys.argv[1]), "auto")
runtime(np.zeros((1, 1, 40, 72), np.uint8))
heavy = ("torch", "segmentation_models_pytorch", "timm", "pandas", "onnx", "nncf", "openvino_telemetry")
print(runtime.name, [name for name in heavy if sys.modules.get(name)])
"""


def _run(bundle: Path, cache_dir: Path, *absent: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(absent=absent), str(bundle)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(defectseg.__file__).parents[1]),
            "DEFECTSEG_CACHE_DIR": str(cache_dir),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_with_a_warm_cache_neither_torch_nor_telemetry_is_imported(warm: Path, bundle: Path) -> None:
    done = _run(bundle, warm)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino cpu ")
    assert done.stdout.endswith("[]\n")


def test_with_a_warm_cache_torch_need_not_be_installed(warm: Path, bundle: Path) -> None:
    done = _run(bundle, warm, "torch")
    assert done.stdout.startswith("openvino cpu "), done.stderr


def test_with_a_cold_cache_and_without_torch_the_extra_is_named(bundle: Path, cache_folder: Path) -> None:
    done = _run(bundle, cache_folder, "torch")
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr
    assert "has to be converted (an exported model has not)" in done.stderr
    assert "defectseg[train]" in done.stderr


# Which runtime


@pytest.fixture
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
@pytest.mark.usefixtures("no_card")
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
        ("m.xml", "auto", "torch", "runtime: m.xml was exported for openvino, not for torch"),
        ("m.xml", "cuda", "auto", "device: openvino computes on cpu only, not on cuda. Or go on with device='auto'"),
        ("m.onnx", "auto", "openvino", "runtime: m.onnx was exported for onnx, not for openvino"),
    ],
)
@pytest.mark.usefixtures("no_card")
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
    monkeypatch.setattr(load, "_DRIVER_FILES", (str(tmp_path / ("driver" if driver else "none")),))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "nvcuda.dll" if driver else None)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert may_have_graphics_card() is expected


def test_without_openvino_a_bundle_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    assert choose_runtime(Path("m.safetensors"), "cpu", "auto") == "torch"


def test_torch_runs_a_bundle_without_converting_it(bundle: Path, conversions: list[ModelInfo]) -> None:
    (runtime, _), (wide, _) = load_runtime(bundle, "cpu", "torch"), load_runtime(bundle, "cpu", "torch", workers=3)

    assert isinstance(runtime, TorchRuntime)
    assert (runtime.parallel, wide.parallel) == (1, 3)
    assert conversions == []
    strided, read_only = IMAGES[..., ::-1], IMAGES.copy()
    read_only.flags.writeable = False
    np.testing.assert_allclose(runtime(strided).probabilities, _expected(bundle, strided.copy()), atol=0.02)
    np.testing.assert_array_equal(runtime(read_only).probabilities, runtime(IMAGES).probabilities)


def test_torch_leaves_a_network_in_training_in_its_mode(bundle: Path) -> None:
    network, info = load_bundle(bundle)
    TorchRuntime(network.train(), info)(IMAGES)
    assert network.training


def test_each_model_of_an_ensemble_is_loaded_by_the_same_choice(warm_copy: Path, bundle: Path) -> None:
    ensemble, _ = load_runtime([bundle, bundle], "cpu", workers=2)

    assert isinstance(ensemble, EnsembleRuntime)
    assert all(isinstance(member, OpenVinoRuntime) for member in ensemble.runtimes)
    assert ensemble.parallel == 2
    assert ensemble.name == f"ensemble of 2: {ensemble.runtimes[0].name}"


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(bundle: Path, workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers: expected 1 or more, found {workers}"):
        load_runtime(bundle, "cpu", workers=workers)


def test_onnx_runtime_that_is_not_installed_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "defectseg.runtime.onnx", raising=False)
    with pytest.raises(MissingExtraError, match=r"ONNX Runtime needs packages .*defectseg\[onnx\]"):
        load_runtime(bundle, "cpu", "onnx")


def test_a_bundle_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        load_runtime(tmp_path / "m.safetensors", "cpu", "openvino")
    with pytest.raises(ModelError, match="no such model file"):
        cache.openvino_model(tmp_path / "m.safetensors")


def test_a_card_that_is_not_there_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="device: this machine has no cuda"):
        load_runtime(bundle, "cuda")
