"""`defectseg explain`: exit codes, and what it prints."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from defectseg import errors

Call = Callable[..., Any]


def test_without_captum_the_message_names_the_extra(refused: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "captum" else find_spec(name))
    refused("explain", "m.safetensors", "a.png", "--out", "o", code=4, told="pip install 'defectseg[train]'")


def test_a_torn_image_exits_with_3_and_results_are_kept_unless_told_otherwise(
    call: Call, refused: Call, trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("captum", reason="captum is not installed; it belongs to the extra train")
    sheet = min((data_folder / "train_images").iterdir())
    (tmp_path / "torn.png").write_bytes(b"torn")
    arguments = ("explain", trained_run, sheet, "torn.png", "--out", "out", "--device", "cpu")
    done = call(*arguments, "--json")
    assert done.code == 3
    assert "warning: torn.png: " in done.err
    told = json.loads(done.out)
    assert [one["image_id"] for one in told["images"]] == [sheet.name]
    assert list(told["unreadable"]) == ["torn.png"]
    refused(*arguments, code=2, told="holds results of explain")
    again = call(*arguments[:3], "--out", "out", "--overwrite", "--classes", "1")
    assert (again.code, again.out.strip()) == (0, "1 images explained, 0 unreadable: out/explain.html")
