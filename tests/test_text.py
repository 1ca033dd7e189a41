"""Text files of strangers are read with bounded memory, and refused by name."""

import gzip
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from defectseg import text
from defectseg.errors import DataError, LabelError
from defectseg.machine import allow_gb

LIMIT_GB = 0.02


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    allow_gb(LIMIT_GB)
    yield
    allow_gb(1.5)


def peak_bytes(read: Callable[[Path], Any], path: Path) -> int:
    tracemalloc.start()
    try:
        read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HURTFUL = {
    "lists": (text.read_json, "[" + "[],", "[]]"),
    "objects": (text.read_json, "[" + '{"a":{}},', "1]"),
    "numbers": (text.read_json, "[" + "1.5,", "1]"),
    "texts": (text.read_json, "[" + '"ab",', "1]"),
    "keys": (text.read_json, "[" + '{"a":1},', "1]"),
    "elements": (text.read_xml, "<a>" + "<b/>", "</a>"),
    "attributes": (text.read_xml, "<a>" + '<b c="d" e="f"/>', "</a>"),
    "rows": (text.read_csv, "a\n" + "b\n", ""),
    "old rows": (text.read_csv, "a\r" + "b\r", ""),
    "fields": (text.read_csv, "a,b,c\n" + "dd,ee,ff\n", ""),
}


@pytest.mark.parametrize("name", HURTFUL)
def test_files_take_no_more_memory_than_was_counted_before(name: str, tmp_path: Path) -> None:
    read, start, end = HURTFUL[name]
    head = start[:1] if read is text.read_json else start[:3] if read is text.read_xml else start.splitlines(True)[0]
    unit, path = start[len(head) :], tmp_path / "a"
    fits = 0
    for count in (2**power for power in range(12, 22)):
        path.write_text(head + unit * count + end, newline="")
        try:
            assert peak_bytes(read, path) < LIMIT_GB * 2**30
        except DataError:
            break
        fits = count
    with pytest.raises(DataError, match=rf"{path}: .*--max-gb"):
        read(path)
    assert len(unit) * fits > 100_000, "files of a common size are refused"


def test_gzip_is_unpacked_no_further_than_allowed(tmp_path: Path) -> None:
    bomb = tmp_path / "train.csv.gz"
    with gzip.open(bomb, "wb") as handle:
        for _ in range(50):
            handle.write(bytes(2**20))

    def read(path: Path) -> None:
        with pytest.raises(DataError, match=r"train\.csv\.gz.*--max-gb"):
            text.read_csv(path)

    assert peak_bytes(read, bomb) < LIMIT_GB * 2**30


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 20_000], ids=["lists", "objects"])
def test_json_that_is_nested_without_end_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(LabelError, match=r"a\.json: not valid JSON"):
        text.read_json(path)


@pytest.mark.parametrize(
    "content",
    [
        *("a: &a [1]\nb: *a", "a: &a {b: 1}\nc: {<<: *a}", "[" * 1000, "- " * 1000, "? " * 1000, "x" * 200_000),
        *("0x" + "f" * 5000, "a: {0x" + "f" * 5000 + ": 1}", '"\\U00110000"', '"\\UFFFFFFFF"'),
        *("1" * 5000, "!!timestamp a", "!!int ''", "!!bool a", "!!python/object:os.system x"),
    ],
    ids=lambda content: content[:20],
)
def test_yaml_that_could_grow_or_fits_no_type_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        text.parse_yaml(content)


def test_a_pipe_is_no_text_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LabelError, match="pipe"):
        text.read_text(tmp_path / "pipe", "expected text")
