"""`defectseg drift`: what it prints, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.mark.parametrize(
    ("night", "code", "told"),
    [
        ({}, 0, "No change: 24 new groups"),
        ({"brighter": -0.4}, 11, "The camera or the light changed. The last 24 groups: darker by "),
        ({"defective": 1.0}, 11, "More defects than usual in the last 24 groups: 100 % of the images"),
        ({"groups": range(5)}, 0, "Cannot tell: 5 new groups (20 images)."),
    ],
)
def test_the_exit_code_says_whether_somebody_has_to_look(
    call: Call, write_results: Call, tmp_path: Path, night: dict[str, Any], code: int, told: str
) -> None:
    write_results(tmp_path / "night", **{"groups": range(24), **night})
    done = call("drift", "night", "--out", "out")
    assert done.code == code
    lines = done.out.splitlines()
    groups = min(20, len(night.get("groups", range(24))))
    assert lines[0].split()[:5] == ["time", "group", "images", "new", "brightness"]
    assert (
        [line.split()[2] for line in lines[1 : groups + 1]] == [f"coil{n}" for n in range(24)][-groups:]
        if (groups == 20)
        else len(lines) == groups + 3
    )
    assert lines[groups + 1].startswith(told)
    assert lines[-1] == "Report: out/drift.html"
    again = call("drift", "night", "--json")
    assert again.code == code
    assert json.loads(again.out)["new_images"] == 4 * len(night.get("groups", range(24)))


def test_mistakes_are_told_in_one_sentence(refused: Call, write_results: Call, tmp_path: Path) -> None:
    write_results(tmp_path / "night", range(12), pattern=None)
    refused("drift", "night", code=2, told=["night: its run was not told what a group is", "--group"])
    refused("drift", "night", "night", "--group", "coil", code=2, told="given twice")
    refused("drift", "gone", code=4, told="gone: has no run.json")
    refused("drift", code=2, told="Missing argument")
