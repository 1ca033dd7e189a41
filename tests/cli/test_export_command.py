"""`defectseg export`: what its flags ask the library for, and what it prints of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.config import Recipe
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
Call = Callable[..., Any]


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

    monkeypatch.setattr("defectseg.export.export.export", export)
    return calls


def test_flags_reach_the_library(call: Call, asked: list[dict[str, Any]]) -> None:
    flags = ("--int8", "--data", "d", "--size", "256x1600", "--bit-depth", "12", "--overwrite", "--out", "m.xml")
    assert call("export", "m.safetensors", "--format", "openvino", *flags).code == 0
    assert call("export", "m.safetensors", "--format", "onnx", "--out", "m.onnx", "--opset", "21").code == 0
    plain = {"int8": False, "data": None, "size_hw": None, "opset": 21, "bit_depth": None, "overwrite": False}
    given = {"int8": True, "data": Path("d"), "size_hw": (256, 1600), "bit_depth": 12, "overwrite": True, "opset": None}
    model = (Path("m.safetensors"),)
    assert asked == [
        {"model": model, "out": Path("m.xml"), "format": "openvino", **given},
        {"model": model, "out": Path("m.onnx"), "format": "onnx", **plain},
    ]


@pytest.mark.parametrize("size", ["256", "256x", "0x1600", "-1x5", "256x1600x3", "axb", "256 1600"])
def test_a_size_that_is_none_is_refused(refused: Call, asked: list[dict[str, Any]], size: str) -> None:
    refused("export", "m", "--format", "onnx", "--out", "m.onnx", f"--size={size}", code=2, told="such as 256x1600")
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
    refused: Call, monkeypatch: pytest.MonkeyPatch, flags: list[str], missing: str, extra: str
) -> None:
    monkeypatch.setattr("defectseg.errors.find_spec", lambda package: None if package == missing else object())
    refused("export", "m", *flags, "--out", "m.xml", code=4, told=f"defectseg[{extra}]")


def test_figures_are_printed(call: Call, asked: list[dict[str, Any]]) -> None:
    flags = ("--format", "openvino", "--out", "m.xml")
    assert call("export", "m", *flags, "--int8", "--data", "d").out.splitlines() == [
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
    assert call("export", "m", *flags).out.splitlines()[3:] == [
        "  No defect was found on any of them, so that the masks say little. Give --data with defects.",
        "Written: m.xml (2.1 MB) in 12 s",
    ]


def test_json_is_one_object(call: Call, asked: list[dict[str, Any]]) -> None:
    content = json.loads(
        call("export", "m", "--format", "openvino", "--int8", "--data", "d", "--out", "m.xml", "--json").out
    )
    assert content["file"] == "m.xml"
    assert content["size_hw"] == [256, 1600]
    assert content["parity"] == {"mask_dice": 0.99}
    assert content["exact"]["probability"] == 2.5e-6
    assert content["cost"]["layers_int8"] == 48
    assert content["seconds"] == 12.3
