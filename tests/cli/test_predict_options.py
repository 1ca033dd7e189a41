"""The flags of `predict` that choose what is computed and what is written."""

import re
from pathlib import Path
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

    def predict(request: batch.PredictRequest) -> dict[str, Any]:
        asked.append(request)
        done = {"processed": 1, "images_per_second": 2.0, "with_defect": 0, "failed": 0, "already_done": 0}
        return {**done, "images_in_folder": {"defect": 0}}

    monkeypatch.setattr(batch, "predict", predict)
    return asked


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((4, 4), np.uint8))
    return tmp_path / "in"


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", "m.safetensors", *map(str, arguments)])


def test_without_flags_everything_is_left_to_the_library(sheets: Path, requests: list[Any]) -> None:
    assert _call(sheets, "--out", sheets / "out").exit_code == 0

    (request,) = requests
    assert (request.runtime, request.workers, request.outputs, request.overlays) == ("auto", None, None, None)


def test_flags_reach_the_library(sheets: Path, requests: list[Any]) -> None:
    flags = ("--runtime", "openvino", "--workers", 3, "--outputs", "rle, overlays,", "--overlays", "defects")

    assert _call(sheets, "--out", sheets / "out", *flags).exit_code == 0

    (request,) = requests
    assert (request.runtime, request.workers) == ("openvino", 3)
    assert (request.outputs, request.overlays) == (["rle", "overlays"], "defects")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--outputs", "overlay"), "--outputs overlay"),
        (("--outputs", ","), "--outputs names nothing"),
        (("--overlays", "some"), "--overlays some"),
        (("--outputs", "masks", "--overlays", "all"), "contradict"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_model_is_read(sheets: Path, flags: tuple[str, ...], told: str) -> None:
    done = _call(sheets, "--out", sheets / "out", *flags)

    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


def test_no_workers_are_a_mistake_of_usage(sheets: Path, requests: list[Any]) -> None:
    assert _call(sheets, "--out", sheets / "out", "--workers", 0).exit_code == 2
    assert requests == []


def test_help_names_every_choice_and_shows_a_quick_run() -> None:
    text = re.sub(r"\s+", " ", _call("--help").output)

    for shown in ("--runtime", "--workers", "--outputs", "--overlays", "all|defects|none", "fast.xml"):
        assert shown in text
