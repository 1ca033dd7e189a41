"""`defectseg export`: what its flags ask the library for, and what it prints of the result."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from defectseg.cli.export import MaskCounts
from defectseg.cli.main import app
from defectseg.config import Recipe
from defectseg.errors import DefectsegError, MissingExtraError, UsageError
from defectseg.export import export as export_module
from defectseg.export.export import Exported, ExportRequest
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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ExportRequest]:
    """What the library is asked for. Nothing is exported; where int8 is asked for, it costs COST."""
    requests: list[ExportRequest] = []

    def export_model(request: ExportRequest) -> Exported:
        requests.append(request)
        exact = Comparison(images=9, probability=2.5e-6, gate=3e-7, dice=1.0, anything_found=request.data is not None)
        shipped = Comparison(images=9, probability=0.02, gate=0.01, dice=0.99, anything_found=exact.anything_found)
        cost = COST if request.int8 else None
        return Exported(INFO, exact, shipped, "9 sheets", cost, "a.csv" if cost else "", 2_100_000, 12.3)

    monkeypatch.setattr(export_module, "export_model", export_model)
    return requests


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


def test_flags_reach_the_library(invoke: Invoke, asked: list[ExportRequest], tmp_path: Path) -> None:
    flags = ("--int8", "--data", "d", "--size", "256x1600", "--bit-depth", "12", "--overwrite", "--out", "m.xml")
    assert invoke("--format", "openvino", *flags).exit_code == 0
    expected = ExportRequest(
        model=(tmp_path / "model.safetensors",),
        out=Path("m.xml"),
        format="openvino",
        new_score=MaskCounts,
        int8=True,
        data=Path("d"),
        size_hw=(256, 1600),
        bit_depth=12,
        overwrite=True,
    )
    assert asked == [expected]
    assert (expected.limits.difference, expected.limits.dice, expected.max_loss) == (0.01, 0.98, 0.005)


def test_any_size_without_a_size(invoke: Invoke, asked: list[ExportRequest]) -> None:
    assert invoke("--format", "onnx", "--out", "m.onnx").exit_code == 0
    assert (asked[0].size_hw, asked[0].int8, asked[0].data, asked[0].overwrite) == (None, False, None, False)


@pytest.mark.parametrize("size", ["256", "256x", "0x1600", "-1x5", "256x1600x3", "axb", "256 1600"])
def test_a_size_that_is_none_is_refused(invoke: Invoke, asked: list[ExportRequest], size: str) -> None:
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
    monkeypatch.setattr("defectseg.errors.find_spec", lambda package: None if package == missing else object())
    error = _refused(invoke(*flags, "--out", "m.xml"))
    assert isinstance(error, MissingExtraError)
    assert f"defectseg[{extra}]" in str(error)


def test_figures_are_printed(invoke: Invoke, asked: list[ExportRequest]) -> None:
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


def test_a_comparison_that_says_little_says_so(invoke: Invoke, asked: list[ExportRequest]) -> None:
    assert "No defect was found" in invoke("--format", "openvino", "--out", "m.xml").stdout
    assert "No defect was found" not in invoke("--format", "openvino", "--data", "d", "--out", "m.xml").stdout


def test_json_is_one_object(invoke: Invoke, asked: list[ExportRequest]) -> None:
    content = json.loads(invoke("--format", "openvino", "--int8", "--data", "d", "--out", "m.xml", "--json").stdout)
    assert content["file"] == "m.xml"
    assert content["size_hw"] == [256, 1600]
    assert content["parity"] == {"mask_dice": 0.99}
    assert content["exact"]["probability"] == 2.5e-6
    assert content["int8"]["layers_int8"] == 48
    assert content["int8"]["loss"] == pytest.approx(0.003)
    plain = json.loads(invoke("--format", "openvino", "--out", "m.xml", "--json").stdout)
    assert plain["int8"] is None


def test_mask_counts_worked_by_hand() -> None:
    counts = MaskCounts()
    assert (counts.pooled_dice, counts.positive_dice) == (1.0, None)
    truth = np.zeros((2, 2, 4), bool)
    truth[0, 0] = True  # 4 px of the first class
    found = np.zeros((2, 2, 4), bool)
    found[0, :, :2] = True  # 4 px, 2 of them right
    found[1, 1, 3] = True  # 1 px of the second class where there is none
    counts.add("a", found, truth)
    counts.add("b", found & False, truth & False)
    assert counts.pooled_dice == pytest.approx(2 * 2 / (4 + 5))
    assert counts.positive_dice == pytest.approx(0.5)
    assert counts.kaggle_dice == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_ignored_pixels_count_for_nothing() -> None:
    counts = MaskCounts()
    truth = np.ones((1, 1, 4), bool)
    found = np.array([[[True, True, False, False]]])
    counts.add("a", found, truth, np.array([[False, False, True, True]]))
    counts.add("b", found, truth & False, np.ones((1, 4), bool))
    counts.add("c", found, truth & False, np.array([[False, False, True, True]]))
    # Whether b and c have a defect is unknown, but 2 px that are predicted in c are false.
    assert (counts.pooled_dice, counts.positive_dice, counts.kaggle_dice) == (2 * 2 / (2 + 4), 1.0, 1.0)
