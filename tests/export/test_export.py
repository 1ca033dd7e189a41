"""An export from a trained bundle to a file: compared, described, whole or absent."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from defectseg.errors import DataError, ExitCode, ModelError, OutputExistsError, ResourceError, UsageError
from defectseg.export import int8 as quantize
from defectseg.export import parity
from defectseg.export.export import Exported, export
from defectseg.image.read import decode
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image
from defectseg.model import graph
from defectseg.model.bundle import load_bundle, read_bundle, save_bundle
from defectseg.model.info import ExportInfo, ModelInfo, read_model_info
from defectseg.model.locate import model_identity
from defectseg.model.openvino_io import core, read_model
from defectseg.runtime import openvino as openvino_runtime
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime
from defectseg.runtime.onnx import OnnxRuntime
from defectseg.runtime.torch import TorchRuntime
from defectseg.tune.tune import tune

Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def bundle(trained_run: Path) -> Path:
    return trained_run / "model.safetensors"


@pytest.fixture(scope="session")
def exported(bundle: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """An OpenVINO export for any size, and what was told of it."""
    out = tmp_path_factory.mktemp("exports") / "new" / "model.xml"
    return out, export(bundle, out, format="openvino", data=data_folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.xml"


@pytest.fixture
def export_to(bundle: Path, data_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports the trained network for OpenVINO to `out`, with changes, after a comparison on two images."""
    monkeypatch.setattr(parity, "IMAGES", 2)
    monkeypatch.setattr(parity, "SHEETS", 2)
    monkeypatch.setattr(parity, "SHEET_HW", (64, 128))

    def call(**changes: Any) -> Exported:
        return export(**{"model": bundle, "out": out, "format": "openvino", "data": data_folder, **changes})

    return call


@pytest.fixture
def converted(exported: tuple[Path, Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """The trained network is not converted anew, which takes seconds."""
    path, _ = exported

    def to_openvino(network: Any, info: ModelInfo, *, size_hw: tuple[int, int] | None = None) -> Any:
        model = core().read_model(path)
        model.set_rt_info(info.model_dump_json(), ["defectseg"])
        return model

    monkeypatch.setattr(graph, "to_openvino", to_openvino)


def _image(data_folder: Path) -> NDArray[np.uint8]:
    return decode(min((data_folder / "train_images").iterdir())).pixels


def _runtime(out: Path) -> Runtime:
    """What is written, in fp32."""
    if out.suffix == ".onnx":
        return OnnxRuntime(out, read_model_info(out))
    return openvino_runtime.OpenVinoRuntime(read_model(out), read_model_info(out), precision="f32", workers=1)


def _assert_alike(runtime: Runtime, bundle: Path, image: NDArray[np.uint8]) -> None:
    answer, expected = (one(image[None, None]) for one in (runtime, TorchRuntime(*load_bundle(bundle))))
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-3)
    np.testing.assert_allclose(answer.gate, expected.gate, atol=1e-3)


def _export_info(out: Path) -> ExportInfo:
    export_info = read_model_info(out).export
    assert export_info is not None
    return export_info


def _left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


def test_the_file_says_how_it_was_made_and_answers_as_torch_does_in_other_sizes(
    exported: tuple[Path, Exported], bundle: Path, data_folder: Path
) -> None:
    path, told = exported
    info, export_info = read_model_info(path), _export_info(path)
    assert info == told.info
    assert info.model_copy(update={"export": None}) == read_model_info(bundle)
    assert (export_info.format, export_info.precision, export_info.size_hw) == ("openvino", "fp32", None)
    assert export_info.source_sha256 == model_identity(bundle)
    assert export_info.parity == {
        "images": 17,  # 16 of the folder, and one of them in an odd size
        "probability_difference": told.exact.probability,
        "gate_difference": told.exact.gate,
        "mask_dice": told.shipped.dice,
        "anything_found": 1.0,
    }
    assert told.exact.probability < 1e-3
    assert 0.98 <= told.shipped.dice <= 1
    assert _left(path) == ["model.bin", "model.xml"]
    assert told.size_bytes == sum(file.stat().st_size for file in path.parent.iterdir())
    weights_bytes = sum(array.nbytes for array in load_file(bundle).values() if array.ndim == 4)
    assert path.with_suffix(".bin").stat().st_size >= weights_bytes  # in 32 bits
    _assert_alike(_runtime(path), bundle, np.resize(_image(data_folder), (75, 91)))


def test_an_export_that_differs_from_the_network_leaves_no_file(
    export_to: Export, out: Path, converted: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, weights = read_bundle(bundle)
    other = tmp_path / "other.safetensors"
    save_bundle(other, {name: weight * 1.1 if weight.dim() == 4 else weight for name, weight in weights.items()}, info)
    monkeypatch.setattr(graph, "takes_any_size", lambda model, network: True)
    with pytest.raises(ModelError, match=r"differs from the network in PyTorch: by up to .* in fp32") as refused:
        export_to(model=other)
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE
    assert _left(out) == []


def test_masks_that_disagree_leave_the_file_that_was_to_be_replaced(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MIN_DICE", 1.1)
    out.parent.mkdir()
    out.write_text("old")
    with pytest.raises(ModelError, match="masks agree"):
        export_to(overwrite=True)
    assert _left(out) == ["model.xml"]
    assert out.read_text() == "old"


def test_a_network_that_the_processors_own_precision_changes_too_much_computes_in_fp32(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(reference: Any, candidates: Any, *images: Any) -> dict[str, parity.Comparison]:
        found = parity.compare(reference, candidates, *images)
        return {name: replace(one, dice=0.97 if name == "shipped" else 1.0) for name, one in found.items()}

    monkeypatch.setattr("defectseg.export.export.compare", compare)
    told, info = export_to(data=None), _export_info(out)
    assert (told.compared_on, told.exact.images) == ("2 synthetic sheets", 3)  # one more in an odd size
    assert (info.precision, info.float_layers) == ("fp32", "f32")
    assert (told.shipped.dice, info.parity["mask_dice"]) == (1.0, 1.0)
    assert load_runtime(out)[0].name == "openvino cpu f32"


def test_what_a_killed_export_left_is_deleted_by_the_next(export_to: Export, out: Path, converted: None) -> None:
    dying = """
import os, pathlib, sys
from defectseg.export import export
export._check_arguments = lambda *arguments, **options: None
export._read_bundle = lambda models: (models[0], export.ModelInfo.model_construct(recipe=None))
export.model_identity = lambda model: ""
export._images = lambda *arguments: ([None], "")
export.fit = lambda *arguments: None
export._convert = lambda bundle, info, staged, *arguments: (staged.touch(), os._exit(9))
export.export(pathlib.Path("bundle"), pathlib.Path(sys.argv[1]), format="openvino")
"""
    assert subprocess.run([sys.executable, "-c", dying, out], check=False).returncode == 9
    assert [name[:5] for name in _left(out)] == [".tmp-"]
    export_to()
    assert _left(out) == ["model.bin", "model.xml"]


@pytest.mark.parametrize("existing", ["model.xml", "model.bin"])
def test_an_existing_file_is_replaced_only_on_demand(
    export_to: Export, out: Path, converted: None, existing: str
) -> None:
    out.parent.mkdir()
    (out.parent / existing).write_text("old")
    with pytest.raises(OutputExistsError, match=existing.replace(".", r"\.")):
        export_to()
    assert (out.parent / existing).read_text() == "old"
    export_to(overwrite=True)
    assert _left(out) == ["model.bin", "model.xml"]
    assert _export_info(out).format == "openvino"


def test_a_replacement_killed_between_its_two_files_is_refused_and_the_next_export_mends_it(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to()
    replace_file = Path.replace

    def die(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise KeyboardInterrupt
        return replace_file(self, target)

    weights = np.fromfile(out.with_suffix(".bin"), np.float32) * np.float32(1 + 1e-6)
    other = core().read_model(out.read_bytes(), openvino.Tensor(weights.view(np.uint8)))
    with monkeypatch.context() as patch:
        patch.setattr(graph, "to_openvino", lambda *arguments, **options: other)
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            export_to(overwrite=True)
    with pytest.raises(ModelError, match=r"model\.xml: damaged; the checksum of it and model\.bin.* export") as refused:
        load_runtime(out)
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE

    export_to(overwrite=True)
    assert load_runtime(out)[1].export == _export_info(out)
    assert _left(out) == ["model.bin", "model.xml"]


@pytest.mark.parametrize("most_bytes", [0, 10_000, 400_000])
def test_where_the_disk_takes_no_more_the_reason_is_told_and_no_file_is_left(
    export_to: Export, out: Path, converted: None, most_bytes: int
) -> None:
    resource = pytest.importorskip("resource", reason="Windows does not limit the size of files")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limit[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot be written \(File too large\)") as refused:
            export_to()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE
    assert _left(out) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "tflite"}, "expected openvino or onnx"),
        ({"out": Path("model.onnx")}, r"must end in \.xml"),
        ({"format": "onnx"}, r"must end in \.onnx"),
        ({"format": "onnx", "out": Path("m.onnx"), "int8": True}, "int8: goes with the format openvino only"),
        ({"opset": 18}, "opset: goes with the format onnx only"),
        ({"format": "onnx", "out": Path("m.onnx"), "opset": 17}, "opset: expected 18 to 23, found 17"),
        ({"format": "onnx", "out": Path("m.onnx"), "opset": 24}, "opset: expected 18 to 23, found 24"),
        ({"int8": True, "data": None}, "data: int8 needs a data folder"),
        ({"model": (Path("a.safetensors"), Path("b.safetensors"))}, "an ensemble cannot be exported"),
        ({"model": "exported"}, "is an export already"),
    ],
)
def test_arguments_that_do_not_go_together(
    export_to: Export, exported: tuple[Path, Exported], changes: dict[str, Any], words: str
) -> None:
    if changes.get("model") == "exported":
        changes = {"model": exported[0]}
    with pytest.raises(UsageError, match=words):
        export_to(**changes)


def _cannot_convert(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("no rule for aten::odd\nand much more")


@pytest.mark.parametrize(
    ("function", "instead", "words"),
    [
        ("takes_any_size", lambda model, network: False, "for one size only"),
        ("to_openvino", _cannot_convert, r"cannot be converted \(no rule for aten::odd\)"),
    ],
)
def test_a_network_that_cannot_be_converted_is_told(
    export_to: Export,
    out: Path,
    converted: None,
    function: str,
    instead: Any,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, function, instead)
    with pytest.raises(ModelError, match=words):
        export_to()
    assert _left(out) == []


@pytest.mark.parametrize("file_format", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_fixed_size_is_the_only_one(
    export_to: Export, out: Path, bundle: Path, data_folder: Path, file_format: str
) -> None:
    out = out if file_format == "openvino" else out.with_suffix(".onnx")
    told = export_to(format=file_format, out=out, size_hw=(33, 2080))
    info = read_model_info(out)
    assert info == told.info
    assert _left(out) == (["model.bin", "model.xml"] if file_format == "openvino" else ["model.onnx"])
    assert (_export_info(out).format, _export_info(out).size_hw) == (file_format, (33, 2080))
    assert info.recipe.inference.tile_hw == (1024, 2080)  # or the tiling would cut what the file takes as a whole
    assert told.exact.images == 2
    runtime, image = _runtime(out), np.resize(_image(data_folder), (33, 2080))
    _assert_alike(runtime, bundle, image)
    assert predict_image(runtime, image, Settings.of(info)).probabilities.shape == (4, 33, 2080)
    with pytest.raises(ModelError, match="33x2080 px, but was given 33x96"):
        predict_image(runtime, image[:, :96], Settings.of(info))


def test_int8_is_judged_on_the_fold_that_was_held_out(
    export_to: Export,
    out: Path,
    converted: None,
    trained_run: Path,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr(quantize, "MAX_LOSS", 0.5)
    with pytest.raises(DataError, match="train_images"):
        export_to(int8=True, data=data_folder / "train_images")  # which has no labels
    told, info = export_to(int8=True), _export_info(out)
    assert told.cost is not None
    assert info.precision == "int8"
    assert str(trained_run / "split.csv") in told.chosen_by
    assert told.cost.labelled_images == 6  # 24 sheets in 4 folds
    assert told.cost.layers >= told.cost.layers_int8 > 0.8 * told.cost.layers > 0
    assert 0 < told.cost.kaggle_dice_int8 < 1
    assert 0.8 < told.cost.mask_dice_int8 <= 1
    assert info.parity["positive_dice_int8"] == told.cost.positive_dice_int8
    assert info.parity["images"] == 3
    assert _left(out) == ["model.bin", "model.xml"]
    runtime, _ = load_runtime(out)
    assert runtime.name.startswith("openvino cpu int8")
    assert runtime(np.zeros((1, 1, 64, 128), np.uint8)).gate.shape == (1, 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("loss_in_fp32", "written"), [(0.0, True), (0.1, False)])
def test_layers_that_stay_floating_point_are_in_fp32_where_less_would_cost_too_much(
    loss_in_fp32: float, written: bool, export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(exact: Runtime, quick: Runtime, int8: Runtime, *others: Any) -> quantize.Int8Cost:
        assert (exact.name[-4:], quick.name[-4:]) == (" f32", "bf16")
        loss = {"openvino cpu int8 and bf16": 0.2, "openvino cpu int8 and f32": loss_in_fp32}[int8.name]
        return quantize.Int8Cost(6, 0.6, 0.6 - loss, 0.9, 0.9, 0.95, 10, 9, 40.0, 20.0)

    monkeypatch.setattr(quantize, "quantize", lambda model, *arguments: model)  # which takes seconds
    monkeypatch.setattr(quantize, "measure", measure)
    monkeypatch.setattr("defectseg.machine.cpu_flags", list)
    monkeypatch.setattr(openvino_runtime, "cores_and_precision", lambda: (1, "bf16"))
    if not written:
        with pytest.raises(ModelError, match=r"int8 loses 0\.1000 of positive-pair Dice"):
            export_to(int8=True)
        assert _left(out) == []
        return
    told, info = export_to(int8=True), _export_info(out)
    assert told.cost is not None
    assert told.cost.loss == 0
    assert (info.precision, info.float_layers) == ("int8", "f32")
    # Whoever loads the file computes so, without being told.
    assert load_runtime(out)[0].name == "openvino cpu int8 and f32"


def test_tuned_thresholds_reach_an_export_and_the_weights_stay(
    exported: tuple[Path, Exported], data_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported[0].parent, tmp_path / "copy"))
    model, before = folder / "model.xml", read_model_info(exported[0])

    tuning = tune(model, data_folder, subset="all")

    after = read_model_info(model)
    assert tuning.stored == (model,)
    assert after.thresholds == tuning.choice.thresholds != before.thresholds
    assert after.metrics["tuned"]["kaggle_dice"] == tuning.metrics.kaggle_dice
    assert after.export == before.export
    assert model_identity(model) == model_identity(exported[0])
    assert model.with_suffix(".bin").read_bytes() == exported[0].with_suffix(".bin").read_bytes()
    assert load_runtime(model)[1] == after
