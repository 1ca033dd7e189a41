"""`defectseg compare`: its flags, what it prints, its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Call = Callable[..., Any]
NAMES = [f"{number:02}.png" for number in range(24)]


@pytest.fixture
def sides(tmp_path: Path, write_data: Call) -> list[str]:
    """A sees the defect of each image, B none."""
    rows = [f"{name},1,1 8" for name in NAMES]
    write_data(tmp_path / "data", {name: np.full((8, 8), 60, np.uint8) for name in NAMES}, rows, ["pits"])
    for name, said in {"a.csv": "1 8", "b.csv": ""}.items():
        lines = [f"{one},1,{said}" for one in NAMES]
        (tmp_path / name).write_text("\n".join(["ImageId,ClassId,EncodedPixels", *lines, ""]))
    return ["a.csv", "b.csv"]


def test_the_exit_code_says_whether_the_script_may_swap_models(call: Call, sides: list[str]) -> None:
    a, b = sides
    told = call("compare", a, b, "--data", "data")
    assert told.code == 0
    assert "A veto, whatever the Dice: B has more missed sheets than A in 24 groups, and fewer in 0" in told.out
    unknown = ("--data", "data", "--allow-unknown", "--require")
    codes = [
        call("compare", *pair, *unknown, what).code
        for pair in ((a, b), (b, a), (a, a))
        for what in ("better", "not-worse")
    ]
    assert codes == [12, 12, 0, 0, 12, 0]
    assert call("compare", a, b, "--data", "data", "--require", "better").code == 2


def test_json_is_that_of_the_folder_and_a_torn_image_exits_with_3(call: Call, sides: list[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "train_images" / "03.png").write_bytes(b"torn")
    told = call("compare", *sides, "--data", "data", "--out", "out", "--json")
    assert told.code == 3
    content = json.loads(told.out)
    assert content == json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (content["images"], content["verdict"], content["vetoes"]) == (23, "worse", ["missed_sheets"])
    assert call("compare", *sides[::-1], "--data", "data", "--require", "not-worse", "--allow-unknown").code == 3


def test_without_labels_there_is_a_list_to_label_and_no_verdict(call: Call, sides: list[str], tmp_path: Path) -> None:
    told = call("compare", *sides, "--out", "out")
    assert told.code == 0
    assert "24 are defective for A alone" in told.out
    assert (tmp_path / "out" / "to_label.csv").read_text().split() == ["ImageId", *NAMES]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--require", "better"], "--data DIR"), (["--subset", "val"], "--data DIR"),
        (["--data", "data", "--images", "data"], "--images"),
        (["--group", "x["], "--group"), (["--group", "x"], "--group"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(refused: Call, sides: list[str], flags: list[str], told: str) -> None:
    refused("compare", *sides, *flags, code=2, told=told)
