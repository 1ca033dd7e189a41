import csv
import json
import os
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from defectseg.errors import CannotContinueError, DataError, OutputExistsError, UsageError
from defectseg.files import size_and_time
from defectseg.image.find import FoundImage
from defectseg.predict.output import OutputFolder, output_folder, read_results
from defectseg.predict.tables import IMAGE_COLUMNS, OUTPUTS, OutputChoice, Record, choose_outputs

KEY = {"model_sha256": "ab" * 32, "only_classes": None, "thresholds": {"pixel": [0.5, 0.5]}}
OTHER_KEY = {**KEY, "only_classes": (1,)}
TABLES = {"errors.csv", "images.csv", "predictions.csv", "regions.csv"}
FILES = {*TABLES, "index.html", "journal.jsonl", "masks", "overlays", "run.json"}
FINISHED = {"status": "finished", "class_names": ["pits", "dents"]}
LONG = "x" * 250


def _image(folder: Path, image_id: str, content: bytes = b"pixels") -> FoundImage:
    path = folder / image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return FoundImage(image_id, str(path))


@pytest.fixture
def images(tmp_path: Path) -> list[FoundImage]:
    return [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]


def _record(found: FoundImage, *, encoded: str = "1 2", status: str = "defect") -> Record:
    image: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "0.9000") | {"ImageId": found.image_id, "status": status}
    image |= {"height": 2, "width": 3} | dict(
        zip(("notes", "size_bytes", "modified_ns"), ("", *size_and_time(found.path)), strict=True)
    )
    if status == "unreadable":
        return Record(image, [], [], [[found.image_id, str(found.path), "it is broken"]])
    predictions = [[found.image_id, 1, encoded], [found.image_id, 2, ""]]
    return Record(image, predictions, [[found.image_id, 1, "pits", 2, 0, 0, 1, 2, "0.0", "0.5", "0.9000"]], [])


def _write(output: OutputFolder, *images: FoundImage) -> None:
    for image in images:
        output.write(_record(image), {"overlays": b"jpeg of " + image.image_id.encode(), "masks": b"png"})


def _process(root: Path, images: Sequence[FoundImage], **options: Any) -> list[str]:
    """A whole run; returns the ImageIds that were pending."""
    with output_folder(root, KEY, **options) as output:
        pending = output.pending(images)
        _write(output, *pending)
        output.finish(FINISHED)
    return [image.image_id for image in pending]


def _records(root: Path) -> list[Record]:
    return list(read_results(root)[2])


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def _ids(root: Path) -> list[str]:
    return [row[0] for row in _rows(root / "images.csv")[1:]]


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_notes_tell_the_names_of_pictures_whose_image_has_too_long_a_name(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", f"{LONG}.jpeg", f"{LONG}.webp")]

    _process(tmp_path / "out", images)

    notes = {row[0]: row[10] for row in _rows(tmp_path / "out" / "images.csv")[1:]}
    assert notes.pop("a.jpg") == ""
    for image_id, note in notes.items():
        name = note.rpartition(" ")[2]
        assert (tmp_path / "out" / "overlays" / f"{name}.jpg").read_bytes() == b"jpeg of " + image_id.encode()
    assert len(notes) == 2
    assert _process(tmp_path / "out", images) == []


def test_the_row_of_a_folder_that_could_not_be_listed_goes_once_its_images_come(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "sub/a.jpg")
    locked = FoundImage("sub", str(tmp_path / "in" / "sub"), "cannot be listed")
    with output_folder(tmp_path / "out", KEY) as output:
        assert output.pending([locked]) == [locked]
        output.write(_record(locked, status="unreadable"), {})
        output.finish(FINISHED)

    assert _process(tmp_path / "out", [image]) == ["sub/a.jpg"]

    assert _ids(tmp_path / "out") == ["sub/a.jpg"]
    assert _rows(tmp_path / "out" / "errors.csv")[1:] == []


def test_only_new_and_changed_images_are_done_and_other_rows_stay(tmp_path: Path, images: list[FoundImage]) -> None:
    images.append(_image(tmp_path / "in", "d.jpg"))
    with output_folder(tmp_path / "out", KEY) as output:  # a run that is interrupted
        _write(output, *output.pending(images)[:2])
    assert _process(tmp_path / "out", images) == ["d.jpg"]
    before = _records(tmp_path / "out")
    images.append(_image(tmp_path / "in", "c.jpg"))
    _image(tmp_path / "in", "b.jpg", b"other pixels")

    assert _process(tmp_path / "out", [images[1], images[3]]) == ["b.jpg", "c.jpg"]

    after = _records(tmp_path / "out")
    assert [record.image_id for record in after] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [after[0], after[3]] == [before[0], before[2]]
    assert _process(tmp_path / "out", images) == []


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", 'comma, "quote" ä.jpg')
    record = _record(image, encoded=" ".join(f"{2 * start + 1} 1" for start in range(50_000)))
    record.image["notes"] = "two\nlines; and a comma, too"
    with output_folder(tmp_path / "out", KEY) as output:
        output.pending([image])
        output.write(record, {"overlays": b"x", "masks": b"x"})
        output.finish(FINISHED)

    run, outputs, records = read_results(tmp_path / "out")

    assert list(records) == [record]
    assert (run["class_names"], outputs) == (["pits", "dents"], OutputChoice())


def test_the_notes_tell_the_name_that_pictures_have_now(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", f"{LONG}{end}") for end in ("z.jpg", "z.png")]
    _process(tmp_path / "out", images[:1])
    assert _process(tmp_path / "out", images) == [images[1].image_id], "both have to keep their suffix from now on"

    for row in _rows(tmp_path / "out" / "images.csv")[1:]:
        image_id, name = row[0], row[10].removeprefix("name too long, pictures are called ")
        assert (tmp_path / "out" / "overlays" / f"{name}.jpg").read_bytes() == b"jpeg of " + image_id.encode()


@pytest.mark.parametrize("missing", ["run.json", "journal.jsonl"])
def test_only_the_folder_of_a_finished_run_is_read(tmp_path: Path, images: list[FoundImage], missing: str) -> None:
    root = tmp_path / "out"
    _process(root, images)
    with output_folder(root, KEY) as output:
        output.write_run({"status": "interrupted"})
    with pytest.raises(DataError, match=r"interrupted.*again"):
        _records(root)
    (root / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"run\.json: not as predict writes it"):
        _records(root)
    (root / missing).unlink()
    with pytest.raises(DataError, match=f"has no {missing}"):
        _records(root)


def test_a_row_older_than_a_column_has_an_empty_cell(
    tmp_path: Path, images: list[FoundImage], caplog: pytest.LogCaptureFixture
) -> None:
    _process(tmp_path / "out", images[:1])
    journal = tmp_path / "out" / "journal.jsonl"
    old = json.loads(journal.read_text())
    del old["image"]["top_score"], old["image"]["sheet_score"], old["regions"][0][-1]
    journal.write_text(json.dumps(old) + "\n")

    assert _process(tmp_path / "out", images) == ["b.jpg"]

    for number, column in ((8, "top_score"), (9, "sheet_score")):
        assert [row[number] for row in _rows(tmp_path / "out" / "images.csv")] == [column, "", "0.9000"]
    assert [row[-1] for row in _rows(tmp_path / "out" / "regions.csv")] == ["score", "", "0.9000"]
    assert "1 images were done before there was a column top_score, sheet_score, score" in caplog.text


def test_pictures_that_are_gone_or_empty_are_made_again(tmp_path: Path, images: list[FoundImage]) -> None:
    images.append(_image(tmp_path / "in", "c.jpg"))
    _process(tmp_path / "out", images)
    before = _tree(tmp_path / "out" / "overlays")
    (tmp_path / "out" / "masks" / "a.png").unlink()
    (tmp_path / "out" / "overlays" / "b.jpg").write_bytes(b"")

    assert _process(tmp_path / "out", images) == ["a.jpg", "b.jpg"]
    assert _tree(tmp_path / "out" / "overlays") == before


def test_a_continued_folder_looks_once_at_each_recorded_file_and_a_fresh_one_at_none(
    tmp_path: Path, images: list[FoundImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, real, looked = tmp_path / "out", os.stat, list[str]()

    def stat(path: Any, **options: Any) -> Any:
        looked.append(str(path))
        return real(path, **options)

    def pending() -> tuple[list[FoundImage], list[str]]:
        with output_folder(root, KEY) as output, monkeypatch.context() as patch:
            looked.clear()
            patch.setattr(os, "stat", stat)
            return output.pending(images), sorted(looked)

    assert pending() == (images, [])
    _process(root, images)
    pictures = [root / kind for kind in ("masks/a.png", "masks/b.png", "overlays/a.jpg", "overlays/b.jpg")]
    assert pending() == ([], sorted(map(str, [*(image.path for image in images), *pictures])))


def test_an_image_that_has_become_unreadable_loses_its_pictures(tmp_path: Path, images: list[FoundImage]) -> None:
    _process(tmp_path / "out", images[:1])
    with output_folder(tmp_path / "out", KEY) as output:
        _image(tmp_path / "in", "a.jpg", b"broken")
        output.pending(images[:1])
        output.write(_record(images[0], status="unreadable"), {})
        output.finish(FINISHED)

    assert list((tmp_path / "out").glob("*/*")) == []
    assert _rows(tmp_path / "out" / "predictions.csv")[1:] == []
    assert _process(tmp_path / "out", images[:1]) == ["a.jpg"], "it is tried again"


def test_pictures_are_renamed_when_a_new_image_would_share_their_name(tmp_path: Path) -> None:
    old = [_image(tmp_path / "in", name) for name in ("a.jpg", "a.jpg.bmp", "b.jpg")]
    _process(tmp_path / "out", old)
    assert (tmp_path / "out" / "overlays" / "a.jpg").read_bytes() == b"jpeg of a.jpg"
    new = _image(tmp_path / "in", "a.png")

    assert _process(tmp_path / "out", [new]) == ["a.png"]

    overlays = {path.name: path.read_bytes() for path in (tmp_path / "out" / "overlays").iterdir()}
    assert overlays == {
        "a.jpg.jpg": b"jpeg of a.jpg", "a.jpg.bmp.jpg": b"jpeg of a.jpg.bmp",
        "a.png.jpg": b"jpeg of a.png", "b.jpg": b"jpeg of b.jpg",
    }  # fmt: skip
    assert _process(tmp_path / "out", [*old, new]) == []


def test_overwriting_leaves_nothing_and_can_be_continued(tmp_path: Path, images: list[FoundImage]) -> None:
    _process(tmp_path / "out", images)
    with (
        pytest.raises(OutputExistsError, match=r"\(only_classes none -> \[1\]\).*overwrite=True"),
        output_folder(tmp_path / "out", OTHER_KEY),
    ):
        pass
    with output_folder(tmp_path / "out", OTHER_KEY, overwrite=True) as output:
        assert output.pending(images) == images
        assert not (tmp_path / "out" / "predictions.csv").exists()
        _write(output, images[0])

    with output_folder(tmp_path / "out", OTHER_KEY) as output:
        assert output.pending(images) == images[1:]
        output.finish(FINISHED)

    assert _ids(tmp_path / "out") == ["a.jpg"]
    assert [path.name for path in (tmp_path / "out").glob("*/*")] == ["a.jpg", "a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.txt", b"dear", "holds notes.txt, not written by predict"),
        ("overlays/holiday.jpg", b"dear", "holds overlays, not written by predict"),
        ("images.csv", b"dear", "holds images.csv, not written by predict"),
        *(("run.json", text, "run.json: not as predict writes it") for text in (b"{", b"[]", b'{"key": 1, "a": "b"}')),
    ],
)
def test_a_folder_of_something_else_is_refused_and_untouched(
    tmp_path: Path, name: str, content: bytes, told: str, overwrite: bool
) -> None:
    _image(tmp_path / "out", name, content)

    with pytest.raises(OutputExistsError, match=told), output_folder(tmp_path / "out", KEY, overwrite=overwrite):
        pass

    assert _tree(tmp_path / "out") == {name: content}


@pytest.mark.parametrize("step", ["mkdir", "open"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_killed_as_it_began_does_not_lock_the_folder(
    tmp_path: Path, images: list[FoundImage], step: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"
    if overwrite:
        _process(root, images)
    real: Any = getattr(Path, step)

    def kill(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name in ("overlays", "journal.jsonl"):
            raise KeyboardInterrupt
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, kill)
        with pytest.raises(KeyboardInterrupt), output_folder(root, KEY, overwrite=overwrite):
            pass
    (root / ".lock").touch()
    (root / ".tmp-1234-run.json").touch()

    assert _process(root, images) == ["a.jpg", "b.jpg"]
    assert {path.name for path in root.iterdir()} == FILES


def test_what_people_put_into_the_folder_later_is_left_alone(tmp_path: Path, images: list[FoundImage]) -> None:
    _process(tmp_path / "out", images[:1])
    (tmp_path / "out" / "images.xlsx").write_bytes(b"from a spreadsheet program")

    assert _process(tmp_path / "out", images) == ["b.jpg"]
    assert _process(tmp_path / "out", images, overwrite=True) == ["a.jpg", "b.jpg"]
    assert (tmp_path / "out" / "images.xlsx").exists()


def test_a_folder_without_its_journal_is_not_continued_in_silence(tmp_path: Path, images: list[FoundImage]) -> None:
    _process(tmp_path / "out", images)
    (tmp_path / "out" / "journal.jsonl").unlink()

    with (
        pytest.raises(CannotContinueError, match=r"journal\.jsonl: is gone.*overwrite=True"),
        output_folder(tmp_path / "out", KEY),
    ):
        pass

    assert _process(tmp_path / "out", images, overwrite=True) == ["a.jpg", "b.jpg"]


def test_tables_that_somebody_changed_are_written_anew(tmp_path: Path, images: list[FoundImage]) -> None:
    root = tmp_path / "out"
    _process(root, images)
    before = _tree(root)
    for table in TABLES - {"errors.csv"}:
        (root / table).write_bytes((root / table).read_bytes().replace(b"a.jpg", b"\xe4;A.JPG"))
    (root / "errors.csv").unlink()

    assert _process(root, images) == []

    assert _tree(root) == before


@pytest.mark.parametrize("begin", ["=1+1", "+1", "-1", "@A1"])
def test_tables_for_people_hold_no_formulas_and_everything_else_the_names_as_they_are(
    tmp_path: Path, begin: str
) -> None:
    name, broken = f"{begin}.jpg", f"{begin}.png"
    images = [_image(tmp_path / "in", name), _image(tmp_path / "in", broken, b"")]
    with output_folder(tmp_path / "out", KEY) as output:
        output.pending(images)
        record = _record(images[0])
        output.write(
            replace(record, regions=[[name, 1, begin, *record.regions[0][3:]]]), {"overlays": b"", "masks": b""}
        )
        output.write(_record(images[1], status="unreadable"), {})
        output.finish(FINISHED)
    rows = {table: _rows(tmp_path / "out" / table)[1:] for table in TABLES}
    assert {row[0] for row in rows["images.csv"]} == {f"'{name}", f"'{broken}"}
    assert rows["regions.csv"][0][:4] == [f"'{name}", "1", f"'{begin}", "2"]
    assert rows["errors.csv"][0][0] == f"'{broken}"
    assert {row[0] for row in rows["predictions.csv"]} == {name}
    assert [record.image_id for record in _records(tmp_path / "out")] == sorted([name, broken])


def test_memory_does_not_grow_with_the_results(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", f"{number}.jpg") for number in range(100)]
    peaks_bytes = []
    for folder in ("a", "b"):  # in one of them Python's own table of names may grow by megabytes
        tracemalloc.start()
        with output_folder(tmp_path / folder, KEY) as output:
            output.pending(images)
            for image in images:
                output.write(_record(image, encoded="1 1 " * 6_000), {"overlays": b"x", "masks": b"x"})
            assert output.pending(images) == []
            output.finish(FINISHED)
        peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert min(peaks_bytes) < 1_000_000  # all the records are 2.4 MB


def test_overlays_of_defects_are_missed_only_with_a_defect(tmp_path: Path, images: list[FoundImage]) -> None:
    defect, clean = images
    with output_folder(tmp_path / "out", KEY, OutputChoice(("overlays",), "defects")) as output:
        output.pending(images)
        output.write(_record(defect), {"overlays": b"jpeg"})
        output.write(replace(_record(clean, encoded="", status="clean"), regions=[]), {})
        assert output.pending(images) == []
        (tmp_path / "out" / "overlays" / "a.jpg").unlink()
        assert output.pending(images) == [defect]


@pytest.mark.parametrize(
    ("outputs", "overlays", "names", "shown"),
    [
        (None, None, OUTPUTS, "all"),
        (None, "defects", OUTPUTS, "defects"),
        (None, "none", ("masks", "rle", "regions", "page"), "all"),
        (["rle", "masks", "rle"], None, ("masks", "rle"), "all"),
        (["rle"], "none", ("rle",), "all"),
        (list(reversed(OUTPUTS)), "all", OUTPUTS, "all"),
    ],
)
def test_flags_choose_outputs(outputs: list[str] | None, overlays: str | None, names: Any, shown: str) -> None:
    assert choose_outputs(outputs, overlays) == OutputChoice(tuple(names), shown)


@pytest.mark.parametrize(
    ("outputs", "overlays", "told"),
    [
        (["masks", "rle2"], None, "outputs: expected some of overlays, masks, rle, regions, page, found rle2"),
        ([], None, "outputs: names nothing"),
        (["masks"], "all", "overlays: all contradicts the outputs masks"),
        (["overlays", "rle"], "none", "overlays: none contradicts the outputs overlays,rle"),
    ],
)
def test_flags_that_make_no_sense_are_refused(outputs: list[str] | None, overlays: str | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_outputs(outputs, overlays)


@pytest.mark.parametrize("place", ["masks", "masks/line1"])
def test_a_link_in_the_place_of_a_folder_of_pictures_is_refused_by_name(place: str, tmp_path: Path) -> None:
    image, root, outside = _image(tmp_path / "in", "line1/a.jpg"), tmp_path / "out", tmp_path / "outside"
    image = FoundImage("line1/a.jpg", image.file)
    assert _process(root, [image]) == ["line1/a.jpg"]
    shutil.rmtree(root / place)
    outside.mkdir()
    (root / place).symlink_to(outside)
    with pytest.raises(OutputExistsError, match=f"{place}: is a link"):
        _process(root, [image])
    assert list(outside.iterdir()) == []


def test_a_file_of_a_run_that_lies_is_refused(tmp_path: Path, images: list[FoundImage]) -> None:
    root = tmp_path / "out"
    _process(root, images)
    whole = json.loads((root / "run.json").read_text(encoding="utf-8"))
    names: list[Any] = [5, ["a", "a"], ["pits"], ["a\x1b", "b"]]
    outputs = whole["key"]["outputs"]
    keys: list[Any] = [{**whole["key"], "outputs": {**outputs, "group": wrong}} for wrong in (5, "coil(", ["a"])]
    lies: list[dict[str, Any]] = [{"runs": [1]}, {"runs": "abc"}, *({"class_names": wrong} for wrong in names)]
    for lie in [*lies, *({"key": wrong} for wrong in keys)]:
        (root / "run.json").write_text(json.dumps({**whole, **lie}), encoding="utf-8")
        with pytest.raises(DataError, match=r"run.json|journal.jsonl: a.jpg has ClassId 2; the model has 1 classes"):
            _records(root)
