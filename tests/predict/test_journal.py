import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from defectseg.errors import DataError
from defectseg.predict.journal import Journal
from defectseg.predict.tables import Record


def _record(image_id: str, notes: str = "") -> Record:
    return Record(
        {"ImageId": image_id, "status": "clean", "height": 2, "width": 3, "notes": notes}, [[image_id, 1, ""]], [], []
    )


def _write(path: Path, *records: Record) -> None:
    journal = Journal(path)
    for record in records:
        journal.add(record)
    journal.flush()
    journal.close()


def _read(path: Path, *, read_only: bool = False) -> list[Record]:
    journal = Journal(path, read_only=read_only)
    records = list(journal.records())
    assert [record.image_id for record in records] == sorted(journal.image_ids)
    journal.close()
    return records


NAMELESS = b'{"image": {"ImageId": "", "status": "clean"}, "predictions": [], "regions": [], "errors": []}\n'


@pytest.mark.parametrize("junk", [b"", b"\0\0\0", b"{}\n", b"[1]\n", b"7", NAMELESS])
def test_whatever_a_crash_leaves_of_the_last_line_whole_records_are_kept(junk: bytes, tmp_path: Path) -> None:
    path, records = tmp_path / "journal.jsonl", [_record(f"{number}.jpg") for number in range(3)]
    _write(path, *records)
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in {0, 1, *range(0, len(content), 40), *(end + shift for end in ends for shift in (-2, -1, 0, 1))}:
        whole = content[:cut].count(b"\n")
        path.write_bytes(content[:cut] + (junk if cut in (0, *ends) else b""))

        assert _read(path, read_only=True) == records[:whole]
        _write(path, *records[whole:])

        assert _read(path) == records
        assert path.read_bytes() == content


def test_a_damaged_line_costs_its_image_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, records = tmp_path / "journal.jsonl", [_record(f"{number}.jpg") for number in range(3)]
    _write(path, *records)
    assert _read(path) == records
    assert caplog.text == ""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"x" + lines[1], lines[2]]))

    assert _read(path) == [records[0], records[2]]

    assert "1 damaged line" in caplog.text
    assert path.read_bytes() == lines[0] + lines[2]


def test_a_later_record_replaces_an_earlier_one_whose_line_goes_when_the_journal_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _write(path, _record("b.jpg"), _record("a.jpg"), _record("b.jpg", "again"))
    before = path.read_bytes()
    expected = [_record("a.jpg"), _record("b.jpg", "again")]

    assert _read(path, read_only=True) == expected
    assert path.read_bytes() == before
    assert _read(path) == expected
    assert path.read_bytes().count(b"\n") == 2
    journal = Journal(path)
    journal.drop(["a.jpg"])
    assert list(journal.records()) == expected[1:]
    journal.add(_record("c.jpg"))
    journal.close()
    assert _read(path) == [expected[1], _record("c.jpg")]


def test_a_line_that_is_nested_without_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("[" * 100_000 + "\n")
    with contextlib.closing(Journal(tmp_path / "journal.jsonl", read_only=True)) as journal:
        assert not journal.image_ids


@pytest.mark.parametrize(
    "lie",
    [
        {"image": {"ImageId": "../../b.jpg"}},
        {"image": {"ImageId": "/tmp/b.jpg"}},
        {"image": {"ImageId": "b\0.jpg"}},
        {"image": {"ImageId": 5}},
        {"image": {"height": 1.5}},
        {"image": {"height": 0}},
        {"image": {"width": -3}},
        {"image": {"width": float("inf")}},
        {"image": {"notes": ["x"]}},
        {"predictions": None},
        {"predictions": [["b.jpg", 1]]},
        {"predictions": [["b.jpg", 1.0, "1 1"]]},
        {"predictions": [["b.jpg", 255, "1 1"]]},
        {"predictions": [["b.jpg", 1, "1 1"], ["b.jpg", 1, "2 1"]]},
        {"predictions": [["a.jpg", 1, "1 1"]]},
        {"regions": [["b.jpg", 1, "pits", 1, 0, 0, 1, 1, "0.0", "0.0", "inf"]]},
        {"regions": [["b.jpg", 1]]},
        {"errors": 5},
    ],
    ids=str,
)
def test_a_record_that_predict_does_not_write_is_left_out(
    lie: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, records = tmp_path / "journal.jsonl", [_record(f"{name}.jpg") for name in "abc"]
    _write(path, *records)
    lines = [asdict(record) for record in records]
    lines[1] |= {**lie, "image": {**lines[1]["image"], **lie.get("image", {})}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    assert _read(path) == [records[0], records[2]]

    assert "1 damaged line" in caplog.text


def test_a_journal_that_leads_elsewhere_is_refused_and_what_it_leads_to_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("")
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"journal.jsonl: a link or no file"):
        _write(tmp_path / "journal.jsonl", _record("a.jpg"))
    assert (tmp_path / "outside").read_text() == ""
