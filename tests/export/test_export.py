"""An export from a trained bundle to a file: compared, described, whole or absent."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from defectseg.errors import DataError, ExitCode, ModelError, OutputExistsError, UsageError
from defectseg.export import int8 as quantize
from defectseg.export.export import Exported, export
from defectseg.export.parity import Comparison, Limits
from defectseg.image.read import decode
from defectseg.inference.settings import Settings
from defectseg.inference.tiles import predict_image
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.model.locate import model_identity
from defectseg.runtime.load import load_runtime
from defectseg.tune.tune import TuneRequest, tune

pytest.importorskip("torch")
pytest.importorskip("openvino")
openvino_runtime = pytest.importorskip("defectseg.runtime.openvino")

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
def export_to(bundle: Path, data_folder: Path, out: Path) -> Export:
    """Exports the trained network for OpenVINO to `out`, with changes."""

    def call(**changes: Any) -> Exported:
        return export(**{"model": bundle, "out": out, "format": "openvino", "data": data_folder, **changes})

    return call


@pytest.fixture
def converted(exported: tuple[Path, Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """The trained network need not be converted anew: that takes seconds."""
    from defectseg.model import graph
    from defectseg.model.openvino_io import core

    path, _ = exported

    def to_openvino(network: Any, info: ModelInfo, *, size_hw: tuple[int, int] | None = None) -> Any:
        model = core().read_model(path)
        model.set_rt_info(info.model_dump_json(), ["defectseg"])
        return model

    monkeypatch.setattr(graph, "to_openvino", to_openvino)


def _runtime(path: Path) -> Any:
    from defectseg.runtime.openvino import load_openvino_runtime

    return load_openvino_runtime(path, precision="f32", workers=1)


def _torch_runtime(bundle: Path) -> Any:
    from defectseg.model.bundle import load_bundle
    from defectseg.runtime.torch import TorchRuntime

    return TorchRuntime(*load_bundle(bundle))


def _left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


def test_the_file_says_how_it_was_made_and_compares(exported: tuple[Path, Exported], bundle: Path) -> None:
    path, told = exported
    source, info = read_model_info(bundle), read_model_info(path)
    assert info == told.info
    assert info.export is not None
    assert info.model_copy(update={"export": None}) == source
    assert (info.export.format, info.export.precision, info.export.size_hw) == ("openvino", "fp32", None)
    assert info.export.source_sha256 == model_identity(bundle)
    assert info.export.parity == {
        "images": 17,  # 16 of the folder, and one of them in an odd size
        "probability_difference": told.exact.probability,
        "gate_difference": told.exact.gate,
        "mask_dice": told.shipped.dice,
        "anything_found": 1.0,
    }
    assert told.exact.probability < 1e-3
    assert 0.98 <= told.shipped.dice <= 1


def test_nothing_but_the_file_and_its_weights_is_left(exported: tuple[Path, Exported]) -> None:
    path, told = exported
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["model.bin", "model.xml"]
    assert told.size_bytes == sum(file.stat().st_size for file in files)


def test_the_written_file_answers_as_torch_does_in_other_sizes(
    exported: tuple[Path, Exported], bundle: Path, data_folder: Path
) -> None:
    image = np.resize(decode(min((data_folder / "train_images").iterdir())).pixels, (75, 91))
    answer, expected = _runtime(exported[0])(image[None, None]), _torch_runtime(bundle)(image[None, None])
    assert np.abs(answer.probabilities - expected.probabilities).max() < 1e-3
    assert np.abs(answer.gate - expected.gate).max() < 1e-3


def test_weights_stay_in_32_bits(exported: tuple[Path, Exported], bundle: Path) -> None:
    weights = load_file(bundle)
    weights_bytes = sum(array.nbytes for name, array in weights.items() if array.ndim == 4)
    assert exported[0].with_suffix(".bin").stat().st_size >= weights_bytes


def test_without_data_synthetic_sheets_are_compared(export_to: Export, converted: None) -> None:
    told = export_to(data=None)
    assert told.compared_on == "8 synthetic sheets"
    assert (told.exact.images, told.shipped.images) == (9, 8)  # one more in an odd size


def test_an_export_that_differs_from_the_network_leaves_no_file(
    export_to: Export, out: Path, converted: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from defectseg.model import graph
    from defectseg.model.bundle import read_bundle, save_bundle

    info, weights = read_bundle(bundle)
    other = tmp_path / "other.safetensors"
    save_bundle(other, {name: weight * 1.1 if weight.dim() == 4 else weight for name, weight in weights.items()}, info)
    monkeypatch.setattr(graph, "takes_any_size", lambda model, network: True)
    with pytest.raises(ModelError, match=r"differs from the network in PyTorch: by up to .* in fp32") as refused:
        export_to(model=other)
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE
    assert _left(out) == []


def test_masks_that_disagree_leave_no_file(export_to: Export, out: Path, converted: None) -> None:
    with pytest.raises(ModelError, match="masks agree"):
        export_to(limits=Limits(dice=1.1))
    assert _left(out) == []


def test_a_network_that_the_processors_own_precision_changes_too_much_computes_in_fp32(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(reference: Any, candidates: Any, *arguments: Any) -> dict[str, Comparison]:
        return {name: Comparison(3, 0.001, 0.0, 0.97 if name == "shipped" else 1.0, True) for name in candidates}

    monkeypatch.setattr("defectseg.export.export.compare", compare)
    told = export_to()
    info = read_model_info(out)
    assert info.export is not None
    assert (info.export.precision, info.export.float_layers) == ("fp32", "f32")
    assert (told.shipped.dice, info.export.parity["mask_dice"]) == (1.0, 1.0)
    assert openvino_runtime.load_openvino_runtime(out).name == "openvino cpu f32"


def test_a_refused_export_does_not_touch_the_file_it_was_to_replace(
    export_to: Export, out: Path, converted: None
) -> None:
    out.parent.mkdir()
    out.write_text("old")
    with pytest.raises(ModelError):
        export_to(limits=Limits(difference=-1), overwrite=True)
    assert _left(out) == ["model.xml"]
    assert out.read_text() == "old"


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
    assert read_model_info(out).export is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "tflite"}, "expected openvino or onnx"),
        ({"out": Path("model.onnx")}, r"must end in \.xml"),
        ({"format": "onnx"}, r"must end in \.onnx"),
        ({"format": "onnx", "out": Path("m.onnx"), "int8": True}, "int8: goes with the format openvino only"),
        ({"int8": True, "data": None}, "data: int8 needs a data folder"),
        ({"model": (Path("a.safetensors"), Path("b.safetensors"))}, "an ensemble cannot be exported"),
    ],
)
def test_arguments_that_do_not_go_together(export_to: Export, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        export_to(**changes)


def test_an_export_is_not_exported_again(export_to: Export, exported: tuple[Path, Exported]) -> None:
    with pytest.raises(UsageError, match="is an export already"):
        export_to(model=exported[0])


def test_a_network_that_cannot_take_every_size_asks_for_one(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from defectseg.model import graph

    monkeypatch.setattr(graph, "takes_any_size", lambda model, network: False)
    with pytest.raises(ModelError, match="for one size only"):
        export_to()
    assert _left(out) == []


def test_what_a_converter_says_is_told(export_to: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectseg.model import graph

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no rule for aten::odd\nand much more")

    monkeypatch.setattr(graph, "to_openvino", fail)
    with pytest.raises(ModelError, match=r"cannot be converted \(no rule for aten::odd\)"):
        export_to()


def test_a_fixed_size_is_the_only_one(export_to: Export, out: Path) -> None:
    told = export_to(size_hw=(48, 2100))
    info = read_model_info(out)
    assert info.export is not None
    assert info.export.size_hw == (48, 2100)
    assert info.recipe.inference.tile_hw == (1024, 2100)  # or the tiling would cut what the file takes as a whole
    assert told.exact.images == 16
    image = np.zeros((48, 2100), np.uint8)
    settings = Settings.of(info)
    assert predict_image(_runtime(out), image, settings).probabilities.shape == (4, 48, 2100)
    with pytest.raises(ModelError, match="48x2100"):
        predict_image(_runtime(out), image[:, :96], settings)


def test_onnx_is_one_file_that_answers_as_torch_does(
    export_to: Export, out: Path, bundle: Path, data_folder: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from defectseg.runtime.onnx import load_onnx_runtime

    out = out.with_suffix(".onnx")
    told = export_to(format="onnx", out=out)
    assert _left(out) == ["model.onnx"]
    info = read_model_info(out)
    assert info == told.info
    assert info.export is not None
    assert (info.export.format, info.export.parity["images"]) == ("onnx", 17)
    assert (told.exact.dice, told.shipped.images) == (told.shipped.dice, 16)  # it computes in fp32 in any case
    image = decode(min((data_folder / "train_images").iterdir())).pixels[None, None]
    answer, expected = load_onnx_runtime(out)(image), _torch_runtime(bundle)(image)
    assert np.abs(answer.probabilities - expected.probabilities).max() < 1e-3


def test_int8_is_judged_on_the_fold_that_was_held_out(
    export_to: Export, out: Path, converted: None, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf")
    told = export_to(int8=True, max_loss=0.5)
    info = read_model_info(out)
    assert told.cost is not None
    assert info.export is not None
    assert info.export.precision == "int8"
    assert str(trained_run / "split.csv") in told.chosen_by
    assert told.cost.labelled_images == 6  # 24 sheets in 4 folds
    assert told.cost.layers_int8 > 0.8 * told.cost.layers > 0
    assert 0 < told.cost.kaggle_dice_int8 < 1
    assert 0.8 < told.cost.mask_dice_int8 <= 1
    assert info.export.parity["positive_dice_int8"] == told.cost.positive_dice_int8
    assert info.export.parity["images"] == 17
    assert _left(out) == ["model.bin", "model.xml"]
    assert _runtime(out)(np.zeros((1, 1, 64, 128), np.uint8)).gate.shape == (1, 4)
    assert capsys.readouterr().out == ""


def test_int8_that_loses_too_much_leaves_no_file(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is "quantised" here is the model as it was, which loses next to nothing.
    monkeypatch.setattr(quantize, "quantize", lambda model, *arguments, **options: model)
    with pytest.raises(ModelError, match=r"int8 loses .* of positive-pair Dice"):
        export_to(int8=True, max_loss=-0.01)
    assert _left(out) == []
    assert export_to(int8=True, max_loss=0.5).cost is not None


def test_layers_that_stay_floating_point_are_in_fp32_where_less_would_cost_too_much(
    export_to: Export, out: Path, converted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_masks(fp32: Any, int8: Any, info: Any, images: Any) -> tuple[Any, Any, float]:
        before, after = (SimpleNamespace(images=6, positive_dice=dice, kaggle_dice=0.9) for dice in (0.6, 0.5))
        return before, before if int8.name.endswith("f32") else after, 1.0

    monkeypatch.setattr(quantize, "quantize", lambda model, *arguments, **options: model)
    monkeypatch.setattr(quantize, "score_masks", score_masks)
    monkeypatch.setattr(openvino_runtime, "_probe", lambda options: (1, "f32" if options else "bf16"))
    told = export_to(int8=True)
    info = read_model_info(out)
    assert info == told.info
    assert info.export is not None
    assert (info.export.precision, info.export.float_layers) == ("int8", "f32")
    assert told.cost is not None
    assert told.cost.loss == 0
    # Whoever loads the file computes so, without being told.
    assert openvino_runtime.load_openvino_runtime(out).name == "openvino cpu int8 and f32"


def test_int8_needs_labels(export_to: Export, data_folder: Path) -> None:
    with pytest.raises(DataError, match="train_images"):
        export_to(int8=True, data=data_folder / "train_images")


def test_tuned_thresholds_reach_an_export_and_the_weights_stay(
    exported: tuple[Path, Exported], data_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported[0].parent, tmp_path / "copy"))
    model, before = folder / "model.xml", read_model_info(exported[0])

    tuning = tune(TuneRequest(models=[model], data=data_folder, subset="all"))

    after = read_model_info(model)
    assert tuning.stored == (model,)
    assert after.thresholds == tuning.thresholds != before.thresholds
    assert after.metrics["tuned"]["kaggle_dice"] == tuning.metrics.kaggle_dice
    assert after.export == before.export
    assert model_identity(model) == model_identity(exported[0])
    assert model.with_suffix(".bin").read_bytes() == exported[0].with_suffix(".bin").read_bytes()
    assert load_runtime(model)[1] == after
