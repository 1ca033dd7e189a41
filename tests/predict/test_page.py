import base64
import hashlib
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from defectseg.files import size_and_time
from defectseg.image.find import FoundImage
from defectseg.predict import page
from defectseg.predict.output import output_folder, read_results
from defectseg.predict.page import ResultsPage
from defectseg.predict.tables import ALL_OUTPUTS, IMAGE_COLUMNS, OutputChoice, Record

KEY = {"only_classes": None}
RUN = {"status": "finished", "class_names": ["pits", "cracks; deep"], "model": "line8.xml"}
HOSTILE = "<!--<script>alert(1)</script>\u2028 #1 50% ü 'x'\"&amp;{{ 7 * 7 }}{% block style %}.png"
# The columns of a row of the page.
NUMBER, NAME, OVERLAY, STATUS, HEIGHT, WIDTH, SHEET, TOP, AREA, LARGEST, FIRST, FOUND, UNLIKE, DIFFERS, GROUP, NOTES = (
    range(16)
)


def record(image_id: str, status: str = "clean", score: float = 0.5, *areas: tuple[int, int], **cells: Any) -> Record:
    """A record with a region of each ClassId and area in px."""
    image: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "") | {"ImageId": image_id, "status": status}
    image |= {"size_bytes": 1, "modified_ns": 1}
    if status == "unreadable":
        return Record(image | cells, [], [], [[image_id, image_id, "?"]])
    image |= {"height": 20, "width": 30, "sheet_score": f"{score:.4f}", "regions": len(areas)}
    image |= {"defect_area_px": sum(area for _, area in areas), "top_score": "0.9000" if areas else ""} | cells
    regions = [[image_id, one, "?", area, 0, 0, 1, 1, "0.0", "0.0", "0.9000"] for one, area in areas]
    return Record(image, [], regions, [])


class _Scripts(HTMLParser):
    """The scripts of a page, as a browser sees them: their attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on")], "handlers in attributes do not run"
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((found, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))


def content_of(root: Path) -> dict[str, Any]:
    """What the script of the page reads."""
    (attributes, content), _ = _Scripts((root / "index.html").read_text(encoding="utf-8")).scripts
    assert attributes == {"id": "data", "type": "application/json"}
    found: dict[str, Any] = json.loads(content)
    return found


Write = Callable[..., dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an output folder, tmp_path/out, and returns the content of its page."""

    def finish(
        records: Sequence[Record], choice: OutputChoice = ALL_OUTPUTS, key: Any = KEY, **run: Any
    ) -> dict[str, Any]:
        with output_folder(tmp_path / "out", key, choice, overwrite=True) as output:
            output.name_pictures([one.image_id for one in records])
            for one in records:
                output.journal.add(one)
            output.finish({**RUN, **run})
        return content_of(tmp_path / "out")

    return finish


def column(content: dict[str, Any], number: int) -> list[Any]:
    return [row[number] for row in content["rows"]]


def test_the_worst_come_first_and_each_row_says_what_its_record_does(write: Write) -> None:
    found = write([
        record("a.png", "clean", 0.4, notes="tall", unlike="0.9950", differs="darker"),
        record("b.png", "defect", 0.7, (1, 5), (2, 70), (1, 6)),
        record("c.png", "blank", 0.0),
        record("d.png", "defect", 0.9, (1, 8)),
        record("e.png", "defect", 0.7, (1, 90)),
        record("f.png", "clean", 0.3),
    ])  # fmt: skip

    assert column(found, NAME) == ["d.png", "e.png", "b.png", "c.png", "a.png", "f.png"]
    assert found["rows"][2] == [1, "b.png", 1, 2, 20, 30, 0.7, 0.9, 81, 70, 0, [1, 2, 2, 1], None, "", None, ""]
    assert found["rows"][4] == [0, "a.png", 1, 0, 20, 30, 0.4, None, 0, 0, 0, [], 0.995, "darker", None, "tall"]
    assert column(found, FIRST) == [3, 4, 0, 3, 0, 5], "the rows of regions.csv before its own"


def test_the_page_counts_all_images_by_status_class_and_place(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PARTS", 2)
    monkeypatch.setattr(page, "MOST_ROWS", 1)
    found = write([
        record("a.png", "defect", 0.7, (1, 5), (1, 6)),
        record("b.png", "unreadable", notes="b.png: cut short"),
        record("c.png", "defect", 0.6, (1, 5), (2, 6)),
        record("d.png"),
        record("e.png", "blank"),
    ], warnings=["dark"])  # fmt: skip

    about = found["about"]
    assert about["statuses"] == {"defect": 2, "clean": 1, "blank": 1, "unreadable": 1}
    assert about["classes"] == [[1, "pits", 2, 3], [2, "cracks; deep", 1, 1]]
    assert about["parts"] == [[0, 3, 2], [3, 2, 0]], "first image, images, those with a defect"
    assert about["unreadable"] == [["b.png", "b.png: cut short"]]
    assert (about["warnings"], about["facts"]["Model"], about["rules"]) == (["dark"], "line8.xml", None)
    assert column(found, NAME) == ["a.png"]


def test_names_of_strangers_are_data_and_the_only_script_that_may_run_is_that_of_the_page(
    write: Write, tmp_path: Path
) -> None:
    reason = "</script><script>alert(2)</script>"
    found = write(
        [record(HOSTILE, "defect", 0.7, (1, 5)), record("b.png", "unreadable", notes=reason)],
        class_names=[HOSTILE, "b"],
    )

    html = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert column(found, NAME) == [HOSTILE]
    assert (found["about"]["classes"][0][1], found["about"]["unreadable"]) == (HOSTILE, [["b.png", reason]])
    seen = _Scripts(html)
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1][1].encode()).digest()).decode()
    assert seen.policy.endswith(f"script-src 'sha256-{digest}'")
    assert seen.policy.startswith("default-src 'none'; ")
    assert "\u2028" not in html
    template = html.replace(seen.scripts[0][1], "")
    assert not re.search(r"\{%|\{\{", template), "the base template is filled"
    assert not re.search(r"https?:|url\(|src=|@import", template), "nothing is loaded but the pictures"


def test_the_overlay_of_a_row_is_the_one_that_was_written(write: Write) -> None:
    long = "x" * 253
    records = [record(name, "defect", 0.7, (1, 5)) for name in ("a.png", "a.jpg", "b/c d.png", ".x", f"{long}.x")]
    records.append(record("z.png"))

    found = write(records, OutputChoice(overlays="defects"))

    shown = dict(zip(column(found, NAME), column(found, OVERLAY), strict=True))
    assert shown.pop(f"{long}.x").startswith("overlays/xxx")
    assert shown == {"a.png": "overlays/a.png.jpg", "a.jpg": "overlays/a.jpg.jpg", "b/c d.png": 1, ".x": 1, "z.png": ""}
    assert set(column(write(records, OutputChoice(("regions", "page"))), OVERLAY)) == {""}


def test_without_regions_the_classes_are_those_of_images_csv(write: Write, tmp_path: Path) -> None:
    one = record("a.png", "defect", 0.7, classes="pits; cracks")

    found = write([one], OutputChoice(("page",)), class_names=["pits", "dents", "cracks"])

    assert column(found, FOUND) == [[1, 0, 3, 0]]
    assert found["about"]["classes"] == [[1, "pits", 1, 0], [2, "dents", 0, 0], [3, "cracks", 1, 0]]
    assert found["about"]["has_regions"] is False
    assert {*found["about"]["files"], "index.html", "journal.jsonl"} == {
        one.name for one in (tmp_path / "out").iterdir()
    }


def test_groups_sizes_in_mm_and_the_reported_classes_are_told(write: Write, tmp_path: Path) -> None:
    choice = OutputChoice(mm_per_px=(0.5, 0.8), group="coil[0-9]+")

    found = write([record("coil7 a.png"), record("b.png")], choice, {"only_classes": [2]})

    assert dict(zip(column(found, NAME), column(found, GROUP), strict=True)) == {"coil7 a.png": "coil7", "b.png": ""}
    assert found["about"]["mm2_per_px"] == pytest.approx(0.4)
    assert found["about"]["classes"] == [[2, "cracks; deep", 0, 0]]
    assert all((tmp_path / "out" / name).is_file() for name in found["about"]["files"])
    assert "by_group.csv" in found["about"]["files"]


@pytest.mark.parametrize("status", ["unreadable", "clean"])
def test_a_folder_in_which_nothing_was_found_or_read_has_a_page(write: Write, status: str) -> None:
    assert len(write([record("a.png", status)])["rows"]) == (status == "clean")
    assert write([])["rows"] == []


def test_a_row_of_an_old_version_has_no_score(write: Write) -> None:
    old = record("a.png", "defect", 0.0, (1, 5))
    for name in ("sheet_score", "top_score", "unlike", "differs"):
        del old.image[name]
    (row,) = write([old])["rows"]
    assert [row[at] for at in (SHEET, TOP, UNLIKE, DIFFERS)] == [None, None, None, ""]


def test_a_page_has_a_limit_and_keeps_the_worst(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(f"{number}.png", "clean", number * 37 % 100 / 100) for number in range(100)]
    monkeypatch.setattr(page, "MOST_ROWS", 10)
    assert column(write(records), SHEET) == [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9]
    assert column(write(records[::-1]), SHEET) == [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9]
    monkeypatch.setattr(page, "MOST_BYTES", 200)
    assert column(write(records), SHEET) == [0.99, 0.98, 0.97], "rows of some 60 bytes"
    monkeypatch.setattr(page, "MOST_UNREADABLE", 2)
    broken = [record(f"{number}.png", "unreadable") for number in range(5)]
    assert [name for name, _ in write(broken)["about"]["unreadable"]] == ["0.png", "1.png"]


def test_memory_does_not_grow_beyond_the_rows_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_ROWS", 100)
    held_bytes = []
    for images in (200, 4_000):
        collected = ResultsPage(OutputChoice(), {1: "pits"}, images, lambda one: "")
        tracemalloc.start()
        for number in range(images):  # each worse than all before
            collected.add(record(f"{number:06}.png", "defect", number / images, (1, 5)), None)
        held_bytes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held_bytes[1] < 1.5 * held_bytes[0]


def test_a_folder_made_before_there_was_a_page_is_continued_and_gets_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    image = FoundImage("a.png", str(tmp_path / "a.png"))
    stamp: dict[str, Any] = dict(zip(("size_bytes", "modified_ns"), size_and_time(image.path), strict=True))
    root = tmp_path / "out"

    def process(choice: OutputChoice) -> int:
        with output_folder(root, KEY, choice) as output:
            pending = output.pending([image])
            for one in pending:
                output.write(record(one.image_id, **stamp), {"overlays": b"x", "masks": b"x"})
            output.finish(RUN)
        return len(pending)

    four = ("overlays", "masks", "rle", "regions")  # as older versions write them
    assert process(OutputChoice(four)) == 1
    assert json.loads((root / "run.json").read_text())["key"]["outputs"]["names"] == list(four)
    assert not (root / "index.html").exists()

    assert process(OutputChoice()) == 0

    assert column(content_of(root), NAME) == ["a.png"]
    assert read_results(root)[1] == OutputChoice()
    assert process(OutputChoice(four)) == 0
    assert not (root / "index.html").exists(), "it would be that of an older run"
    assert read_results(root)[1] == OutputChoice(four)


def test_the_page_is_written_without_jinja2_whose_import_takes_longer_than_an_image() -> None:
    code = "import sys, defectseg.predict.output; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
