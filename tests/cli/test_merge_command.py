"""`defectseg predict --shard` and `defectseg merge` as people call them; the library is tested in tests/predict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Call = Callable[..., Any]
STEEL, PIT = 60, 120  # grey levels, as GreyRuntime reads them


@pytest.fixture
def sheets(
    tmp_path: Path, write_model: Call, grey_runtime: Call, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Writes sheets of one grey level, with brighter last rows, to `in`; `model.safetensors` predicts on them."""
    runtime = grey_runtime()
    monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *asked, workers: (runtime, runtime.info))
    write_model(tmp_path / "model.safetensors")
    (tmp_path / "in").mkdir()

    def write(count: int, level: int) -> None:
        for number in range(count):
            sheet = np.full((16, 24), level, np.uint8)
            sheet[-1] += 10
            cv2.imwrite(str(tmp_path / "in" / f"{level}-{number}.png"), sheet)

    return write


PREDICT = ("predict", "model.safetensors", "in", "--out")


def test_the_tasks_of_a_job_do_one_shard_each_and_report_it(
    sheets: Callable[..., None], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sheets(8, STEEL)
    (tmp_path / "in" / "torn.png").write_bytes(b"torn")
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        done.append(call(*PREDICT, f"{rank}", "--shard", "auto"))
        assert f"shard {rank + 1}/3: " in done[-1].err
    assert sorted(ended.code for ended in done) == [0, 0, 3]
    assert sum("warning: in/torn.png: " in ended.err for ended in done) == 1
    assert sum(int(ended.out.split()[0]) for ended in done) == 8
    assert call(*PREDICT, "whole").out.startswith("8 images processed"), "never unasked"


@pytest.mark.parametrize(
    ("level", "torn", "flags", "code"),
    [
        (STEEL, False, ["--fail-on-defect", "--fail-on-blank"], 0),
        (PIT, False, [], 0),
        (PIT, True, [], 3),
        (PIT, True, ["--fail-on-defect"], 10),
        (PIT, True, ["--max-unreadable", "1", "--fail-on", "any:area_px=1000000"], 0),
        (0, False, ["--fail-on-defect"], 0),
        (0, False, ["--fail-on-blank"], 3),
    ],
)
def test_merge_ends_as_predict_does(
    sheets: Callable[..., None], call: Call, tmp_path: Path, level: int, torn: bool, flags: list[str], code: int
) -> None:
    sheets(3, level)
    if torn:
        (tmp_path / "in" / "torn.png").write_bytes(b"torn")
    assert call(*PREDICT, "one", *flags).code == code
    for number in (1, 2):
        call(*PREDICT, f"{number}", "--shard", f"{number}/2")

    done = call("merge", "1", "2", "--out", "all", *flags)

    blank = ", 3 blank" if level == 0 else ""
    told = f"3 images of 2 shards: {3 * (level == PIT)} with a defect{blank}, {1 * torn} unreadable.\n"
    assert (done.code, done.out.startswith(told), done.out.endswith("\nResults: all/index.html\n")) == (
        code,
        True,
        True,
    )
    assert (" images in all meet any" in done.out) == any("defect" in flag or "any" in flag for flag in flags)
    again = call("merge", "1", "2", "--out", "all", "--overwrite", "--json", *flags)
    assert again.code == code
    assert json.loads(again.out)["shards"] == {"1/2": "1", "2/2": "2"}


@pytest.mark.parametrize("shard", ["3/2", "auto"])
def test_a_shard_that_does_not_exist_is_refused_before_images_are_looked_for(refused: Call, shard: str) -> None:
    refused("predict", "gone.xml", "gone", "--out", "out", "--shard", shard, code=2, told=["--shard: ", "such as 1/8"])


def test_merge_refuses_in_one_sentence(sheets: Callable[..., None], call: Call, refused: Call, tmp_path: Path) -> None:
    sheets(3, STEEL)
    call(*PREDICT, "1", "--shard", "1/2")
    refused("merge", "1", "--out", "all", code=4, told=["shards are missing: 2/2.", "--shard 2/2 first"])
    refused("merge", "1", "1", "--out", "all", code=2, told="1: given twice")
    refused("merge", "1", "in", "--out", "all", code=4, told="in: has no run.json")
    refused("merge", "1", "--out", "1", code=2, told="--out: 1 is in or around 1")
    refused("merge", "--out", "all", code=2, told="Missing argument")
    assert not (tmp_path / "all").exists()
