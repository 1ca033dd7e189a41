import csv
import errno
import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectseg.errors import CannotContinueError, DataError, OutputExistsError, ResourceError, UsageError
from defectseg.image.find import FoundImage
from defectseg.predict.output import OutputFolder, RunKey, output_names, read_results
from defectseg.predict.tables import OUTPUTS, OutputChoice, Record, choose_outputs

KEY = RunKey(model_sha256="ab" * 32, only_classes=None, thresholds={"pixel": [0.5, 0.5]})
OTHER_KEY = RunKey(model_sha256="ab" * 32, only_classes=(1,), thresholds={"pixel": [0.5, 0.5]})
TABLES = {"errors.csv", "images.csv", "predictions.csv", "regions.csv"}
FILES = {*TABLES, "journal.jsonl", "masks", "overlays", "run.json"}
FINISHED = {"status": "finished"}


def _image(folder: Path, image_id: str, content: bytes = b"pixels") -> FoundImage:
    path = folder / image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return FoundImage(image_id, path)


def _record(found: FoundImage, *, encoded: str = "1 2", status: str = "defect") -> Record:
    stat = found.path.stat()
    image = {
        "ImageId": found.image_id,
        "status": status,
        "height": 4,
        "width": 5,
        "classes": "pits",
        "regions": 1,
        "defect_area_px": 2,
        "defect_area_percent": "10.0000",
        "top_score": "0.9000",
        "notes": "",
        "size_bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
    }
    predictions = [[found.image_id, 1, encoded], [found.image_id, 2, ""]]
    regions = [[found.image_id, 1, "pits", 2, 0, 0, 1, 2, "0.0", "0.5", "0.9000"]]
    return Record(image, predictions, regions, [])


def _unreadable(found: FoundImage) -> Record:
    record = _record(found, status="unreadable")
    return Record(record.image, [], [], [[found.image_id, str(found.path), "it is broken"]])


def _write(output: OutputFolder, *images: FoundImage) -> None:
    for image in images:
        output.write(_record(image), overlay_jpeg=b"jpeg of " + image.image_id.encode(), class_map_png=b"png")


def _process(root: Path, images: Sequence[FoundImage], **options: Any) -> list[str]:
    """A whole run; returns the ImageIds that were pending."""
    with OutputFolder(root, KEY, **options) as output:
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


@pytest.mark.parametrize(
    "names",
    [
        {"a.jpg": "a", "b.png": "b"},
        {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b"},
        {"A.jpg": "A.jpg", "a.jpg": "a.jpg"},
        {"a.JPG": "a.JPG", "a.jpg": "a.jpg"},
        {"night/a.jpg": "night/a", "day/a.jpg": "day/a", "a.jpg": "a"},
        {"Night/a.jpg": "Night/a.jpg", "night/a.png": "night/a.png"},
        {"roll.1.jpg": "roll.1", "roll.2.jpg": "roll.2"},
        # a.jpg keeps its suffix because of a.png, and so becomes what a.jpg.bmp would be called.
        {"a.jpg": "a.jpg", "a.png": "a.png", "a.jpg.bmp": "a.jpg.bmp"},
        {"v1.0/a.jpg": "v1.0/a", "v1.0.png": "v1.0"},
        # Its overlay would be overlays/a.jpg, which has to be a folder.
        {"a.png": "a.png", "a.jpg/b.png": "a.jpg/b"},
        {"ä.jpg": "ä", "日本.png": "日本"},
    ],
    ids=lambda names: " ".join(names),
)
def test_pictures_lose_the_suffix_of_their_image_unless_two_would_meet(names: dict[str, str]) -> None:
    assert output_names(names) == names
    assert output_names(reversed(list(names))) == names


image_ids = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "a/", "a.jpg/", "A/", "a.png.jpg/"]),
        st.sampled_from(["a", "A", "b", "a.jpg", "a.png"]),
        st.sampled_from([".jpg", ".png", ".JPG", ".jpg.bmp"]),
    ),
    unique=True,
    max_size=12,
)


@given(image_ids)
def test_no_two_pictures_share_a_name(ids: list[str]) -> None:
    names = output_names(ids)

    assert sorted(names) == sorted(ids)
    assert len(set(names.values())) == len(ids)
    for one, name in names.items():
        twins = [other for other in ids if names[other].casefold() == name.casefold() and other != one]
        assert all(other.casefold() == one.casefold() for other in twins), "only ids equal but for case may"


@given(image_ids, image_ids)
def test_names_only_grow_as_images_are_added(ids: list[str], more: list[str]) -> None:
    before, after = output_names(ids), output_names({*ids, *more})

    assert all(after[one] in (before[one], one) for one in ids)


LONG = "x" * 250


@pytest.mark.parametrize(
    "ids",
    [
        (f"{LONG}.jpeg", f"{LONG}.webp"),
        (f"{LONG}a.jpg", f"{LONG}a.png", f"{LONG}b.jpg", f"{LONG}.jpeg"),
        tuple(f"{LONG[:-2]}.JPG.{suffix}" for suffix in ("jp", "pn")),
        ("ж" * 125 + ".jpeg", "ж" * 125 + ".tiff", "Ж" * 125 + ".jpeg"),
        (f"{'%80' * 100}/a.jpg", f"{'%80' * 99}/a.jpg"),
        tuple("/".join(["y" * 200] * 20 + [name]) for name in ("a.jpg", "a.png", "b.jpg")),
    ],
    ids=["longest", "251 and 255", "two suffixes", "two bytes a letter", "folders", "deep"],
)
def test_names_too_long_for_a_file_system_are_shortened_apart_and_each_time_alike(ids: tuple[str, ...]) -> None:
    names = output_names(ids)

    assert output_names(reversed(ids)) == names
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        parts = f"{name}.jpg".split("/")
        assert max(len(part.encode()) for part in parts) <= 255
        assert len("/".join(parts).encode()) <= 2100


def test_the_notes_tell_the_names_of_pictures_whose_image_has_too_long_a_name(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", f"{LONG}.jpeg", f"{LONG}.webp")]

    _process(tmp_path / "out", images)

    notes = {row[0]: row[9] for row in _rows(tmp_path / "out" / "images.csv")[1:]}
    assert notes.pop("a.jpg") == ""
    for image_id, note in notes.items():
        name = note.rpartition(" ")[2]
        assert (tmp_path / "out" / "overlays" / f"{name}.jpg").read_bytes() == b"jpeg of " + image_id.encode()
    assert len(notes) == 2
    assert _process(tmp_path / "out", images) == []


def test_the_row_of_a_folder_that_could_not_be_listed_goes_once_its_images_come(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "sub/a.jpg")
    locked = FoundImage("sub", tmp_path / "in" / "sub", "cannot be listed")
    with OutputFolder(tmp_path / "out", KEY) as output:
        assert output.pending([locked]) == [locked]
        output.write(_unreadable(locked))
        output.finish({})

    assert _process(tmp_path / "out", [image]) == ["sub/a.jpg"]

    assert _ids(tmp_path / "out") == ["sub/a.jpg"]
    assert _rows(tmp_path / "out" / "errors.csv")[1:] == []


def test_a_finished_folder_has_exactly_its_files_and_tables_sorted_by_image(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("b.jpg", "a.jpg", "sub/c.jpg")]
    root = tmp_path / "out"
    with OutputFolder(root, KEY) as output:
        output.write_run({"status": "running"})
        output.pending(images)
        _write(output, images[0], images[2])
        output.write(_unreadable(images[1]))
        counts = output.finish(FINISHED)["images_in_folder"]

    assert counts == {"defect": 2, "clean": 0, "blank": 0, "unreadable": 1}
    assert {path.name for path in root.iterdir()} == FILES
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.*") if path.parent != root} == {
        *("overlays/b.jpg", "overlays/sub/c.jpg", "masks/b.png", "masks/sub/c.png"),
    }
    assert (root / "predictions.csv").read_text() == (
        "ImageId,ClassId,EncodedPixels\nb.jpg,1,1 2\nb.jpg,2,\nsub/c.jpg,1,1 2\nsub/c.jpg,2,\n"
    )
    assert _ids(root) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert _rows(root / "errors.csv") == [["ImageId", "path", "error"], ["a.jpg", str(images[1].path), "it is broken"]]
    assert _rows(root / "regions.csv")[1] == ["b.jpg", "1", "pits", "2", "0", "0", "1", "2", "0.0", "0.5", "0.9000"]
    run = json.loads((root / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["images_in_folder"] == counts


def test_an_interrupted_folder_is_continued_where_it_stopped(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", f"{number}.jpg") for number in range(4)]
    with OutputFolder(tmp_path / "out", KEY) as output:
        _write(output, *output.pending(images)[:2])

    assert _process(tmp_path / "out", images) == ["2.jpg", "3.jpg"]
    assert _ids(tmp_path / "out") == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_a_finished_folder_is_continued_with_new_images_only(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("b.jpg", "d.jpg")]
    assert _process(tmp_path / "out", images) == ["b.jpg", "d.jpg"]
    before = _records(tmp_path / "out")
    images += [_image(tmp_path / "in", name) for name in ("a.jpg", "c.jpg")]

    assert _process(tmp_path / "out", images) == ["a.jpg", "c.jpg"]

    after = _records(tmp_path / "out")
    assert [record.image_id for record in after] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [after[1], after[3]] == before
    assert _process(tmp_path / "out", images) == []


def test_rows_of_images_that_are_no_longer_given_stay(tmp_path: Path) -> None:
    first, second = (_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg"))
    _process(tmp_path / "out", [first])

    _process(tmp_path / "out", [second])

    assert _ids(tmp_path / "out") == ["a.jpg", "b.jpg"]


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", 'comma, "quote" ä.jpg')
    record = _record(image, encoded=" ".join(f"{2 * start + 1} 1" for start in range(50_000)))
    record.image["notes"] = "two\nlines; and a comma, too"
    with OutputFolder(tmp_path / "out", KEY) as output:
        output.pending([image])
        output.write(record, overlay_jpeg=b"x", class_map_png=b"x")
        output.finish({**FINISHED, "class_names": ["pits"]})

    run, outputs, records = read_results(tmp_path / "out")

    assert list(records) == [record]
    assert (run["class_names"], outputs) == (["pits"], OutputChoice())


@pytest.mark.parametrize("missing", ["run.json", "journal.jsonl"])
def test_only_the_folder_of_a_finished_run_is_read(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "out"
    _process(root, [_image(tmp_path / "in", "a.jpg")])
    with OutputFolder(root, KEY) as output:
        output.write_run({"status": "interrupted"})
    with pytest.raises(DataError, match=r"interrupted.*again"):
        _records(root)
    (root / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"run\.json: cannot be understood"):
        _records(root)
    (root / missing).unlink()
    with pytest.raises(DataError, match=f"has no {missing}"):
        _records(root)


@given(st.data())
def test_whatever_a_crash_leaves_of_the_last_lines_whole_records_are_kept_and_new_ones_added(
    data: st.DataObject,
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [_image(folder / "in", f"{number}.jpg") for number in range(3)]
        with OutputFolder(folder / "out", KEY) as output:
            output.pending(images)
            _write(output, *images)
        journal = folder / "out" / "journal.jsonl"
        content = journal.read_bytes()
        # Near the ends of lines, where mistakes hide.
        near = [end + shift for end in _line_ends(content) for shift in (-2, -1, 0, 1)]
        cut = data.draw(st.one_of(st.integers(0, len(content)), st.sampled_from(near)))
        junk = data.draw(st.sampled_from([b"", b"\0\0\0", b"{}\n", b"[1]\n", b"7"]))
        whole = content[:cut].count(b"\n")
        journal.write_bytes(content[:cut] + (junk if content[:cut].endswith(b"\n") or not cut else b""))

        assert _process(folder / "out", images) == [image.image_id for image in images[whole:]]
        assert _ids(folder / "out") == ["0.jpg", "1.jpg", "2.jpg"]


def _line_ends(content: bytes) -> list[int]:
    return [index + 1 for index, byte in enumerate(content[:-2]) if byte == ord("\n")]


def test_a_damaged_line_costs_its_image_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [_image(tmp_path / "in", f"{number}.jpg") for number in range(3)]
    _process(tmp_path / "out", images)
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"x" + lines[1], lines[2]]))

    assert _process(tmp_path / "out", images) == ["1.jpg"]

    assert "1 damaged line" in caplog.text
    assert _ids(tmp_path / "out") == ["0.jpg", "1.jpg", "2.jpg"]
    assert journal.read_bytes().count(b"\n") == 3


def test_the_journal_does_not_grow_with_images_that_are_done_again(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", f"{number}.jpg") for number in range(3)]
    journal = tmp_path / "out" / "journal.jsonl"
    _process(tmp_path / "out", images)
    for number in range(3):
        _image(tmp_path / "in", "1.jpg", b"%d" % number)
        with OutputFolder(tmp_path / "out", KEY) as output:
            assert output.pending(images) == [images[1]]
            _write(output, images[1], images[1])
            output.finish(FINISHED)
            assert journal.read_bytes().count(b"\n") == 3
            assert output.pending(images) == []
            _write(output, images[0])  # it can still be written to

    assert [record.image_id for record in _records(tmp_path / "out")] == ["0.jpg", "1.jpg", "2.jpg"]
    assert _process(tmp_path / "out", images) == []


def test_a_row_from_before_a_column_existed_has_an_empty_cell_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(tmp_path / "out", images[:1])
    journal = tmp_path / "out" / "journal.jsonl"
    old = json.loads(journal.read_text())
    del old["image"]["top_score"], old["regions"][0][-1]
    journal.write_text(json.dumps(old) + "\n")

    assert _process(tmp_path / "out", images) == ["b.jpg"]

    assert [row[8] for row in _rows(tmp_path / "out" / "images.csv")] == ["top_score", "", "0.9000"]
    assert [row[-1] for row in _rows(tmp_path / "out" / "regions.csv")] == ["score", "", "0.9000"]
    for column in ("top_score", "score"):
        assert f"1 images were done before there was a column {column}" in caplog.text


def test_a_changed_image_is_done_again(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(tmp_path / "out", images)
    _image(tmp_path / "in", "b.jpg", b"other pixels")

    assert _process(tmp_path / "out", images) == ["b.jpg"]


@pytest.mark.parametrize("picture", ["overlays/a.jpg", "masks/a.png"])
@pytest.mark.parametrize("damage", ["deleted", "emptied"])
def test_an_image_whose_picture_is_gone_is_done_again(tmp_path: Path, picture: str, damage: str) -> None:
    image = _image(tmp_path / "in", "a.jpg")
    _process(tmp_path / "out", [image])
    path = tmp_path / "out" / picture
    path.unlink()
    if damage == "emptied":
        path.touch()

    assert _process(tmp_path / "out", [image]) == ["a.jpg"]
    assert path.stat().st_size


def test_an_image_that_fails_after_it_was_replaced_keeps_no_pictures_of_the_old_one(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "a.jpg")
    _process(tmp_path / "out", [image])
    with OutputFolder(tmp_path / "out", KEY) as output:
        _image(tmp_path / "in", "a.jpg", b"broken")
        output.pending([image])
        output.write(_unreadable(image))
        output.finish({})

    assert list((tmp_path / "out").glob("*/*")) == []
    assert _rows(tmp_path / "out" / "predictions.csv")[1:] == []


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


def test_overwriting_leaves_nothing_of_the_earlier_results(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(tmp_path / "out", images)

    with OutputFolder(tmp_path / "out", OTHER_KEY, overwrite=True) as output:
        assert output.pending(images[:1]) == images[:1]
        assert not (tmp_path / "out" / "predictions.csv").exists()
        _write(output, images[0])
        output.finish({})

    assert _ids(tmp_path / "out") == ["a.jpg"]
    assert [path.name for path in (tmp_path / "out").glob("*/*")] == ["a.jpg", "a.png"]


def test_an_interrupted_overwriting_run_is_continued_without_the_flag(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(tmp_path / "out", images)
    with OutputFolder(tmp_path / "out", OTHER_KEY, overwrite=True) as output:
        _write(output, output.pending(images)[0])

    with OutputFolder(tmp_path / "out", OTHER_KEY) as output:
        assert output.pending(images) == images[1:]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["notes.txt", "overlays/holiday.jpg", "masks/mine.png", "images.csv"])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path, content: str, overwrite: bool) -> None:
    root = tmp_path / "out"
    (root / content).parent.mkdir(parents=True)
    (root / content).write_bytes(b"dear to somebody")

    with (
        pytest.raises(OutputExistsError, match=rf"holds {content.split('/')[0]}, not written by predict"),
        OutputFolder(root, KEY, overwrite=overwrite),
    ):
        pass

    assert _tree(root) == {content: b"dear to somebody"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("run_json", ["", "{", "[]", '{"key": 1, "model": "of another program"}'])
def test_a_folder_whose_run_json_is_not_ours_is_refused(tmp_path: Path, run_json: str, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(run_json)

    with (
        pytest.raises(OutputExistsError, match=r"run\.json: not as predict writes it"),
        OutputFolder(tmp_path / "out", KEY, overwrite=overwrite),
    ):
        pass


@pytest.mark.parametrize("step", ["mkdir", "open"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_killed_as_it_began_does_not_lock_the_folder(
    tmp_path: Path, step: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, image = tmp_path / "out", _image(tmp_path / "in", "a.jpg")
    if overwrite:
        _process(root, [image])
    real: Any = getattr(Path, step)

    def kill(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name in ("overlays", "journal.jsonl"):
            raise KeyboardInterrupt
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, kill)
        with pytest.raises(KeyboardInterrupt), OutputFolder(root, KEY, overwrite=overwrite):
            pass
    (root / ".lock").touch()
    (root / ".tmp-1234-run.json").touch()

    assert _process(root, [image]) == ["a.jpg"]
    assert {path.name for path in root.iterdir()} == FILES


def test_what_people_put_into_the_folder_later_is_left_alone(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(tmp_path / "out", images[:1])
    (tmp_path / "out" / "images.xlsx").write_bytes(b"from a spreadsheet program")

    assert _process(tmp_path / "out", images) == ["b.jpg"]
    assert _process(tmp_path / "out", images, overwrite=True) == ["a.jpg", "b.jpg"]
    assert (tmp_path / "out" / "images.xlsx").exists()


def test_a_folder_without_its_journal_is_not_continued_in_silence(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "a.jpg")
    _process(tmp_path / "out", [image])
    (tmp_path / "out" / "journal.jsonl").unlink()

    with (
        pytest.raises(CannotContinueError, match=r"journal\.jsonl: is gone.*overwrite"),
        OutputFolder(tmp_path / "out", KEY),
    ):
        pass

    assert _process(tmp_path / "out", [image], overwrite=True) == ["a.jpg"]


def test_a_full_disk_is_told_and_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with OutputFolder(tmp_path / "out", KEY) as output:
        output.pending(images)
        _write(output, images[0])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(ResourceError, match="no space left"):
                _write(output, images[1])

    assert _process(tmp_path / "out", images) == ["b.jpg"]


def _resave_with_semicolons(path: Path) -> None:
    path.write_text(path.read_text().replace(",", ";"))


def _sort_backwards(path: Path) -> None:
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(lines)]))


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace("defect", "checked by Ann").replace("a.jpg", "A.JPG"))


def _save_as_latin_1(path: Path) -> None:
    path.write_bytes(path.read_bytes() + "ä,b,c\n".encode("latin-1"))


@pytest.mark.parametrize("change", [_resave_with_semicolons, _sort_backwards, _edit, _save_as_latin_1, Path.unlink])
@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_table_that_somebody_changed_is_written_anew_by_the_next_run(
    tmp_path: Path, change: Callable[[Path], None], table: str
) -> None:
    root = tmp_path / "out"
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    _process(root, images)
    before = _tree(root)
    change(root / table)

    assert _process(root, images) == []

    assert _tree(root) == before


def test_finding_out_what_is_pending_does_not_load_all_results(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", f"{number}.jpg") for number in range(100)]
    with OutputFolder(tmp_path / "out", KEY) as output:
        output.pending(images)
        for image in images:
            output.write(_record(image, encoded="1 1 " * 10_000), overlay_jpeg=b"x", class_map_png=b"x")
        tracemalloc.start()
        assert output.pending(images) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak_bytes < 1_000_000  # all the records are 4 MB


def _only(*names: str, overlays: str = "all") -> RunKey:
    return replace(KEY, outputs=OutputChoice(names, overlays))


def _clean(found: FoundImage) -> Record:
    record = _record(found, encoded="", status="clean")
    return replace(record, regions=[])


def test_a_folder_holds_only_the_tables_and_pictures_that_are_wanted(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "a.jpg")
    with OutputFolder(tmp_path / "out", _only("masks", "regions")) as output:
        output.pending([image])
        output.write(_record(image), class_map_png=b"png")
        output.finish({})

    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"overlays", "predictions.csv"}


def test_what_is_not_wanted_is_not_missed_when_a_folder_is_continued(tmp_path: Path) -> None:
    images = [_image(tmp_path / "in", name) for name in ("a.jpg", "b.jpg")]
    key = _only("rle")
    for pending in (["a.jpg", "b.jpg"], [], []):
        with OutputFolder(tmp_path / "out", key) as output:
            assert [image.image_id for image in output.pending(images)] == pending
            for image in images if pending else []:
                output.write(_record(image))
            output.finish({})

    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("predictions.csv", "images.csv", "errors.csv", "run.json", "journal.jsonl"),
    }


def test_overlays_of_defects_alone_are_missed_only_where_there_is_a_defect(tmp_path: Path) -> None:
    defect, clean = (_image(tmp_path / "in", name) for name in ("defect.jpg", "clean.jpg"))
    key = _only("overlays", overlays="defects")
    with OutputFolder(tmp_path / "out", key) as output:
        output.pending([defect, clean])
        output.write(_record(defect), overlay_jpeg=b"jpeg")
        output.write(_clean(clean))
        assert output.pending([defect, clean]) == []
        (tmp_path / "out" / "overlays" / "defect.jpg").unlink()
        assert output.pending([defect, clean]) == [defect]


def test_an_image_that_has_become_clean_loses_the_overlay_that_only_defects_get(tmp_path: Path) -> None:
    image = _image(tmp_path / "in", "a.jpg")
    with OutputFolder(tmp_path / "out", _only("overlays", overlays="defects")) as output:
        output.pending([image])
        output.write(_record(image), overlay_jpeg=b"jpeg")
        assert (tmp_path / "out" / "overlays" / "a.jpg").exists()
        output.write(_clean(image))
        assert not (tmp_path / "out" / "overlays" / "a.jpg").exists()


@pytest.mark.parametrize(
    ("outputs", "overlays", "names", "shown"),
    [
        (None, None, OUTPUTS, "all"),
        (None, "all", OUTPUTS, "all"),
        (None, "defects", OUTPUTS, "defects"),
        (None, "none", ("masks", "rle", "regions"), "all"),
        (["rle", "masks", "rle"], None, ("masks", "rle"), "all"),
        (["rle"], "none", ("rle",), "all"),
        (["overlays"], "defects", ("overlays",), "defects"),
        (list(reversed(OUTPUTS)), "all", OUTPUTS, "all"),
    ],
)
def test_flags_choose_outputs(outputs: list[str] | None, overlays: str | None, names: Any, shown: str) -> None:
    assert choose_outputs(outputs, overlays) == OutputChoice(tuple(names), shown)


@pytest.mark.parametrize(
    ("outputs", "overlays", "told"),
    [
        (["masks", "rle2"], None, "outputs: expected some of overlays, masks, rle, regions, found rle2"),
        ([], None, "outputs: names nothing"),
        (None, "some", "overlays: expected all, defects, none, found some"),
        (["masks"], "all", "overlays: all contradicts the outputs masks"),
        (["masks"], "defects", "contradicts"),
        (["overlays", "rle"], "none", "overlays: none contradicts the outputs overlays,rle"),
    ],
)
def test_flags_that_make_no_sense_are_refused(outputs: list[str] | None, overlays: str | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_outputs(outputs, overlays)
