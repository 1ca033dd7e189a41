"""The cache of converted bundles."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

import defectseg
from defectseg.errors import ModelError
from defectseg.model import graph, openvino_io
from defectseg.model.bundle import load_bundle
from defectseg.model.info import ModelInfo, Thresholds, read_model_info, write_model_info
from defectseg.model.network import DefectNetwork
from defectseg.runtime import cache
from defectseg.runtime.load import load_runtime

IMAGES = np.random.default_rng(2).integers(0, 256, (1, 1, 40, 72), dtype=np.uint8)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A cache folder with the bundle in it, converted for OpenVINO. Not to be written to: copy it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFECTSEG_CACHE_DIR", str(folder))
        load_runtime(bundle, "cpu")
    return folder


@pytest.fixture
def warm_copy(warm: Path, cache_folder: Path) -> Path:
    return Path(shutil.copytree(warm, cache_folder))


@pytest.fixture
def conversions(warm: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModelInfo]:
    """Descriptions of the networks that are converted from now on; all become the model in `warm`, since it is slow."""
    made: list[ModelInfo] = []

    def to_openvino(network: DefectNetwork, info: ModelInfo, **options: Any) -> openvino.Model:
        made.append(info)
        return openvino_io.read_model(_entry(warm) / "model.xml")

    monkeypatch.setattr(graph, "to_openvino", to_openvino)
    return made


def _assert_as_torch(
    bundle: Path, images: NDArray[np.uint8] = IMAGES, runtime: str = "auto", atol: float = 0.02
) -> None:
    network, info = load_bundle(bundle)
    with torch.inference_mode():
        expected = network.answer(torch.from_numpy(images))[0].numpy()
    answering, described = load_runtime(bundle, "cpu", runtime)
    np.testing.assert_allclose(answering(images).probabilities, expected, atol=atol)
    assert described == info


def _with_one_bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("models/*/*"))


def _entry(folder: Path) -> Path:
    (entry,) = (path for path in (folder / "models").iterdir() if path.is_dir())
    return entry


def test_a_bundle_is_converted_once_and_another_of_the_same_name_anew(
    warm_copy: Path, tmp_path: Path, bundle: Path, save_random: Callable[..., Path]
) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "m.safetensors"))
    _assert_as_torch(path)
    assert _files(warm_copy) == ["model.bin", "model.xml"]

    save_random(path, seed=2)
    _assert_as_torch(path)
    assert _files(warm_copy) == ["model.bin", "model.bin", "model.xml", "model.xml"]


def test_other_thresholds_and_scores_are_taken_from_the_bundle_without_another_conversion(
    bundle: Path, tmp_path: Path, warm_copy: Path, conversions: list[ModelInfo]
) -> None:
    tuned = Path(shutil.copy(bundle, tmp_path / "tuned.safetensors"))
    thresholds = Thresholds(gate=(0.1,), pixel=(0.9,), min_area_px=(7,), chosen_by="hand")
    update = {"thresholds": thresholds, "metrics": {"tuned": {"kaggle_dice": 0.9}}}
    write_model_info(tuned, read_model_info(bundle).model_copy(update=update))

    _assert_as_torch(tuned)
    assert load_runtime(tuned, "cpu")[1].thresholds == thresholds
    assert conversions == []


@pytest.mark.parametrize("name", ["model.bin", "model.xml"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "one bit"])
def test_a_damaged_entry_is_told_and_made_again(name: str, damage: str, warm_copy: Path, bundle: Path) -> None:
    path = _entry(warm_copy) / name
    content = path.read_bytes()
    path.unlink()
    if damage == "one bit":
        path.write_bytes(_with_one_bit_flipped(content))
    elif damage != "gone":
        path.write_bytes(content[: 0 if damage == "empty" else -100])

    with pytest.raises(ModelError, match="was damaged and is deleted"):
        load_runtime(bundle, "cpu")
    assert _files(warm_copy) == []


def test_a_damaged_bundle_is_refused_even_if_it_was_converted_before(
    warm_copy: Path, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(_with_one_bit_flipped(bundle.read_bytes()))
    for runtime in ("auto", "torch"):
        with pytest.raises(ModelError, match=r"m\.safetensors: damaged; the checksum is wrong"):
            load_runtime(path, "cpu", runtime)
    assert _files(warm_copy) == ["model.bin", "model.xml"]


def test_another_version_does_not_take_what_was_converted_before(
    warm_copy: Path, bundle: Path, conversions: list[ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "__version__", "99.0.0")
    load_runtime(bundle, "cpu")
    monkeypatch.setattr(openvino, "__version__", "99.0.0")
    load_runtime(bundle, "cpu")
    assert len(conversions) == 2


def test_a_bundle_that_is_replaced_while_it_is_converted_is_not_kept_under_its_old_name(
    tmp_path: Path,
    cache_folder: Path,
    conversions: list[ModelInfo],
    monkeypatch: pytest.MonkeyPatch,
    save_random: Callable[..., Path],
) -> None:
    path = save_random(tmp_path / "m.safetensors")
    monkeypatch.setattr(graph, "takes_any_size", lambda *arguments: save_random(path, seed=2).is_file())
    with pytest.raises(ModelError, match="was replaced while it was converted"):
        load_runtime(path, "cpu")
    assert _files(cache_folder) == []


@pytest.mark.parametrize("trouble", ["a file is in the way", "another process converts too long", "the disk is full"])
def test_where_the_model_cannot_be_kept_it_runs_and_a_warning_says_what_to_do(
    trouble: str,
    bundle: Path,
    cache_folder: Path,
    conversions: list[ModelInfo],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save = openvino_io.save_model

    def save_outside(model: Any, path: Path) -> None:
        if cache_folder in path.parents:
            path.with_suffix(".bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(model, path)

    (cache_folder / "models").mkdir(parents=True)
    lock = FileLock(cache_folder / "models" / ".lock")
    if trouble == "a file is in the way":
        (cache_folder / "models").rmdir()
        (cache_folder / "models").touch()
    elif trouble == "the disk is full":
        monkeypatch.setattr(openvino_io, "save_model", save_outside)
    else:
        monkeypatch.setattr(cache, "PATIENCE_S", 0.01)
        lock.acquire()
    with caplog.at_level(logging.WARNING):
        _assert_as_torch(bundle)
    lock.release()
    (told,) = caplog.messages
    assert "every start converts anew. Set DEFECTSEG_CACHE_DIR" in told
    assert ("no space left" in told) == (trouble == "the disk is full")
    left = {path for path in cache_folder.rglob("*") if path.is_dir()}
    assert left <= {cache_folder / "models", cache_folder / "compiled"}
    assert len(conversions) == 1 + (trouble == "the disk is full")


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
    warm_copy: Path,
    tmp_path: Path,
    bundle: Path,
    conversions: list[ModelInfo],
    monkeypatch: pytest.MonkeyPatch,
    save_random: Callable[..., Path],
) -> None:
    monkeypatch.setattr(cache, "KEPT_ENTRIES", 2)
    used = _entry(warm_copy)
    for name, age_s in (("older", 500), ("old", 400), (".tmp-left", 0), (used.name, 600)):
        folder = used.with_name(name)
        folder.mkdir(exist_ok=True)
        os.utime(folder, (1e9 - age_s, 1e9 - age_s))

    load_runtime(bundle, "cpu")  # used again, so that it is now the newest
    load_runtime(save_random(tmp_path / "other.safetensors", seed=3), "cpu")
    assert len(conversions) == 1

    left = [path.name for path in used.parent.iterdir() if path.is_dir()]
    assert len(left) == 2
    assert used.name in left
    assert not {"old", "older", ".tmp-left"} & set(left)


def test_a_network_that_can_only_be_converted_for_one_size_is_converted_for_each(
    bundle: Path, cache_folder: Path, conversions: list[ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "takes_any_size", lambda *arguments: False)
    for width in (72, 50, 72):
        _assert_as_torch(bundle, IMAGES[..., :width].copy())
    assert len(conversions) == 3
    # One entry for each size, and one that says that there has to be one for each size.
    assert _files(cache_folder) == ["model.bin", "model.bin", "model.xml", "model.xml", "one-size-only"]


@pytest.mark.slow
def test_a_bundle_runs_in_onnx_runtime_and_is_converted_once(
    bundle: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _assert_as_torch(bundle, runtime="onnx", atol=1e-4)
    assert _files(cache_folder) == ["model.onnx"]
    monkeypatch.delattr(graph, "to_onnx")
    assert load_runtime(bundle, "cpu", "onnx")[0].name == "onnxruntime cpu f32"
    model = _entry(cache_folder) / "model.onnx"
    model.write_bytes(_with_one_bit_flipped(model.read_bytes()))
    with pytest.raises(ModelError, match="was damaged and is deleted"):
        load_runtime(bundle, "cpu", "onnx")
    assert _files(cache_folder) == []


def test_the_cache_lies_where_the_system_keeps_caches_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFECTSEG_CACHE_DIR")
    assert cache.cache_folder().parts[-1] == "models"
    assert any("defectseg" in part for part in cache.cache_folder().parts)


@pytest.mark.skipif(sys.platform != "linux", reason="the rule of Linux desktops")
def test_xdg_cache_home_is_respected_and_gives_way_to_our_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", "")
    assert cache.cache_folder() == tmp_path / "xdg" / "defectseg" / "models"
    monkeypatch.setenv("DEFECTSEG_CACHE_DIR", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own" / "models"


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from defectseg.runtime.load import load_runtime
sys.modules["torch"] = None
runtime, _ = load_runtime(Path(sys.argv[1]), "auto")
runtime(np.zeros((1, 1, 40, 72), np.uint8))
heavy = ("segmentation_models_pytorch", "timm", "pandas", "onnx", "nncf", "openvino_telemetry")
print(runtime.name, [name for name in heavy if sys.modules.get(name)])
"""


def _run_without_torch(bundle: Path, cache_dir: Path) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(Path(defectseg.__file__).parents[1]), "DEFECTSEG_CACHE_DIR": str(cache_dir)}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle)],
        env={**os.environ, **paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_with_a_warm_cache_torch_need_not_be_installed_and_no_telemetry_is_imported(warm: Path, bundle: Path) -> None:
    done = _run_without_torch(bundle, warm)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino cpu ")
    assert done.stdout.endswith("[]\n")


def test_with_a_cold_cache_and_without_torch_the_extra_is_named(bundle: Path, cache_folder: Path) -> None:
    done = _run_without_torch(bundle, cache_folder)
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr
    assert "has to be converted (an exported model has not)" in done.stderr
    assert "defectseg[train]" in done.stderr
