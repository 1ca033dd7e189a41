"""The flags of `predict` that choose what is computed and what is written."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from defectseg.cli.main import app
from defectseg.errors import UsageError
from defectseg.predict import predict as batch


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `predict` was asked for, which does nothing here."""
    asked: list[Any] = []

    def predict(models: Any, images: Any, out: Any, **options: Any) -> dict[str, Any]:
        asked.append(SimpleNamespace(models=models, images=images, out=out, **options))
        done = {
            "processed": 1,
            "images_per_second": 2.0,
            "with_defect": 0,
            "blank": 1,
            "unreadable": 0,
            "already_done": 0,
        }
        low = {"images": 1, "of": 1, "brightest": 4000, "bit_depth": 12}
        return {**done, "low_bit_depth": low, "images_in_folder": {"defect": 0, "blank": 1}}

    monkeypatch.setattr(batch, "predict", predict)
    return asked


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((4, 4), np.uint8))
    return tmp_path / "in"


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", "m.safetensors", *map(str, arguments)])


def test_without_flags_everything_is_left_to_the_library(
    sheets: Path, requests: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    done = _call(sheets, "--out", sheets / "out")

    assert done.exit_code == 0
    assert "0 with a defect, 1 blank, 0 unreadable" in done.output
    assert re.search(r"1 of 1 16-bit images.* 4000.*12 bits.*--bit-depth 12", caplog.text)
    (request,) = requests
    assert (request.runtime, request.workers, request.outputs, request.overlays) == ("auto", None, None, None)
    assert request.bit_depth is None


def test_flags_reach_the_library(sheets: Path, requests: list[Any]) -> None:
    flags = ("--runtime", "openvino", "--workers", 3, "--outputs", "rle, overlays,", "--overlays", "defects")

    assert _call(sheets, "--out", sheets / "out", *flags, "--bit-depth", 12).exit_code == 0

    (request,) = requests
    assert (request.runtime, request.workers, request.bit_depth) == ("openvino", 3, 12)
    assert (request.outputs, request.overlays) == (["rle", "overlays"], "defects")


def test_a_path_on_standard_input_that_is_gone_does_not_stop_the_others(sheets: Path, requests: list[Any]) -> None:
    listed = f"{sheets}/gone.png\n{sheets}/a.png\n"

    done = CliRunner().invoke(app, ["predict", "m.safetensors", "-", "--out", str(sheets / "out")], input=listed)

    assert done.exit_code == 0
    assert [(image.image_id, image.fault) for image in requests[0].images] == [
        ("a.png", ""), ("gone.png", f"{sheets}/gone.png: no such file or folder, or no permission to see it."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--outputs", "overlay"), "outputs: expected"),
        (("--outputs", ","), "outputs: names nothing"),
        (("--overlays", "some"), "overlays: expected"),
        (("--outputs", "masks", "--overlays", "all"), "contradicts"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_model_is_read(sheets: Path, flags: tuple[str, ...], told: str) -> None:
    done = _call(sheets, "--out", sheets / "out", *flags)

    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


def test_blank_images_fail_the_command_where_that_is_asked_for(sheets: Path, requests: list[Any]) -> None:
    assert _call(sheets, "--out", sheets / "out", "--fail-on-blank").exit_code == 3


@pytest.mark.parametrize("flags", [("--workers", 0), ("--bit-depth", 8), ("--bit-depth", 17)])
def test_numbers_out_of_range_are_a_mistake_of_usage(
    flags: tuple[object, ...], sheets: Path, requests: list[Any]
) -> None:
    assert _call(sheets, "--out", sheets / "out", *flags).exit_code == 2
    assert requests == []


def test_help_names_every_choice_and_shows_a_quick_run() -> None:
    text = re.sub(r"\s+", " ", _call("--help").output)

    for shown in ("--runtime", "--workers", "--outputs", "--overlays", "all|defects|none", "fast.xml"):
        assert shown in text
