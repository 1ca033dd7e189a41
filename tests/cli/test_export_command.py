"""`defectseg export`: what its flags ask the library for, and what it prints of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from defectseg.cli import common
from defectseg.cli.main import app
from defectseg.config import Recipe
from defectseg.errors import DefectsegError, MissingExtraError, UsageError
from defectseg.export import export as export_module
from defectseg.export.export import Exported
from defectseg.export.int8 import Int8Cost
from defectseg.export.parity import Comparison
from defectseg.model.info import ExportInfo, ModelInfo, Normalization, Thresholds

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
    export=ExportInfo(format="openvino", size_hw=(256, 1600), source_sha256="ab", parity={"mask_dice": 0.99}),
)
COST = Int8Cost(
    labelled_images=29,
    positive_dice_fp32=0.6,
    positive_dice_int8=0.597,
    kaggle_dice_fp32=0.9,
    kaggle_dice_int8=0.901,
    mask_dice_int8=0.951,
    layers=50,
    layers_int8=48,
    ms_fp32=40.0,
    ms_int8=20.0,
)
Invoke = Callable[..., Result]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library is asked for. Nothing is exported; where int8 is asked for, it costs COST."""
    calls: list[dict[str, Any]] = []

    def export(model: Any, out: Path, **options: Any) -> Exported:
        calls.append({"model": model, "out": out, **options})
        found = options["data"] is not None
        exact = Comparison(images=9, probability=2.5e-6, gate=3e-7, dice=1.0, anything_found=found)
        shipped = Comparison(images=9, probability=0.02, gate=0.01, dice=0.99, anything_found=found)
        cost = COST if options["int8"] else None
        return Exported(INFO, exact, shipped, "9 sheets", cost, "a.csv" if cost else "", 2_100_000, 12.3)

    monkeypatch.setattr(export_module, "export", export)
    return calls


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    model = tmp_path / "model.safetensors"
    model.touch()

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["export", str(model), *arguments])

    return call


def _refused(done: Result) -> DefectsegError:
    assert isinstance(done.exception, DefectsegError), done.output
    return done.exception


def test_flags_reach_the_library(invoke: Invoke, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    flags = ("--int8", "--data", "d", "--size", "256x1600", "--bit-depth", "12", "--overwrite", "--out", "m.xml")
    assert invoke("--format", "openvino", *flags).exit_code == 0
    assert invoke("--format", "onnx", "--out", "m.onnx").exit_code == 0
    model, plain = (
        (tmp_path / "model.safetensors",),
        {"int8": False, "size_hw": None, "overwrite": False, "bit_depth": None},
    )
    assert asked == [
        {"model": model, "out": Path("m.xml"), "format": "openvino", "data": Path("d"), "int8": True}
        | {"size_hw": (256, 1600), "bit_depth": 12, "overwrite": True},
        {"model": model, "out": Path("m.onnx"), "format": "onnx", "data": None} | plain,
    ]


@pytest.mark.parametrize("size", ["256", "256x", "0x1600", "-1x5", "256x1600x3", "axb", "256 1600"])
def test_a_size_that_is_none_is_refused(invoke: Invoke, asked: list[dict[str, Any]], size: str) -> None:
    error = _refused(invoke("--format", "onnx", "--out", "m.onnx", "--size", size))
    assert isinstance(error, UsageError)
    assert "256x1600" in str(error)
    assert asked == []


@pytest.mark.parametrize(
    ("flags", "missing", "extra"),
    [
        (["--format", "openvino"], "torch", "train"),
        (["--format", "onnx"], "onnxscript", "onnx"),
        (["--format", "openvino", "--int8"], "nncf", "int8"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, flags: list[str], missing: str, extra: str
) -> None:
    monkeypatch.setattr(common, "find_spec", lambda package: None if package == missing else object())
    error = _refused(invoke(*flags, "--out", "m.xml"))
    assert isinstance(error, MissingExtraError)
    assert f"defectseg[{extra}]" in str(error)


def test_figures_are_printed(invoke: Invoke, asked: list[dict[str, Any]]) -> None:
    done = invoke("--format", "openvino", "--int8", "--data", "d", "--out", "m.xml")
    assert done.stdout.splitlines() == [
        "Compared with PyTorch on 9 sheets:",
        "  fp32: probabilities differ by at most 2.5e-06, gates by 3e-07 (limit 0.01)",
        "  final masks, in the precision of this processor: Dice 0.9900 (limit 0.98)",
        "int8 on 29 labelled images (a.csv):",
        "  positive-pair Dice 0.6000 -> 0.5970 (loss 0.0030, limit 0.005), Kaggle Dice 0.9000 -> 0.9010",
        "  2 of 50 layers stay in floating point (4%)",
        "  masks agree with fp32 at Dice 0.9510",
        "  40 -> 20 ms an image: 2.00 times as quick on this machine",
        "Written: m.xml (2.1 MB) in 12 s",
    ]


def test_a_comparison_that_says_little_says_so(invoke: Invoke, asked: list[dict[str, Any]]) -> None:
    assert "No defect was found" in invoke("--format", "openvino", "--out", "m.xml").stdout
    assert "No defect was found" not in invoke("--format", "openvino", "--data", "d", "--out", "m.xml").stdout


def test_json_is_one_object(invoke: Invoke, asked: list[dict[str, Any]]) -> None:
    content = json.loads(invoke("--format", "openvino", "--int8", "--data", "d", "--out", "m.xml", "--json").stdout)
    assert content["file"] == "m.xml"
    assert content["size_hw"] == [256, 1600]
    assert content["parity"] == {"mask_dice": 0.99}
    assert content["exact"]["probability"] == 2.5e-6
    assert content["int8"]["layers_int8"] == 48
    assert content["int8"]["loss"] == pytest.approx(0.003)
    plain = json.loads(invoke("--format", "openvino", "--out", "m.xml", "--json").stdout)
    assert plain["int8"] is None
