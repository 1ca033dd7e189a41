"""Files that are whole or absent, and folders that one process holds."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectseg.errors import LabelError, OutputExistsError, ResourceError
from defectseg.files import (
    LOCK_NAME,
    TEMPORARY_PREFIX,
    atomic_csv,
    atomic_path,
    check_image_id,
    check_is_free,
    folder_lock,
    is_empty_folder,
    new_folder,
    open_regular,
    remove_stale_temporaries,
    work_folder,
    write_bytes,
    write_result,
    write_text,
)

DOCS = Path(__file__).parents[1] / "docs" / "formats.md"


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError


def test_text_is_utf8_with_unix_line_ends_and_escapes_for_what_is_not_text(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "ä\nb\udcff\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa4\nb\\udcff\n"
    assert _names(tmp_path / "new") == ["a.txt"]


def test_temporaries_lie_beside_their_target_keep_its_suffix_and_are_not_shared(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        assert first.parent == tmp_path
        assert first.name.startswith(TEMPORARY_PREFIX)
        assert first.suffix == ".safetensors"
        first.write_text("1")
        second.write_text("2")
    assert target.read_text() == "1"


@pytest.mark.parametrize("write", [write_bytes, write_result])
@pytest.mark.parametrize("length", [242, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(
    tmp_path: Path, write: Callable[[Path, bytes], None], length: int
) -> None:
    path = tmp_path / "masks" / ("x" * (length - 4) + ".jpg")
    write(path, b"jpeg")
    assert path.read_bytes() == b"jpeg"
    assert _names(path.parent) == [path.name]


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def _link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize("make", [Path.mkdir, _link_to_a_pipe, _link_to_a_device])
@pytest.mark.parametrize("replaced", [False, True])
def test_only_regular_files_are_read(
    tmp_path: Path, make: Callable[[Path], None], replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    make(path)
    if replaced:  # between the first look at it and its opening
        regular = Path(__file__).stat()
        monkeypatch.setattr(Path, "stat", lambda self, **_: regular)
    with pytest.raises(OSError, match=r"not a file|Is a directory"), open_regular(path):
        pass


def test_a_regular_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a\r\nb")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    with open_regular(tmp_path / "link.jpg") as handle:
        assert handle.read() == b"a\r\nb"


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        _write_half(path)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space left on the disk"), (errno.EDQUOT, "no space left"), (errno.EIO, "cannot be written")],
)
def test_a_failed_write_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ResourceError, match=rf"a\.bin: {message}"):
        write_bytes(tmp_path / "a.bin", b"1")
    assert _names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ResourceError, match="a file where a folder is needed"):
        write_bytes(tmp_path / "out" / "a.bin", b"1")
    with pytest.raises(ResourceError, match="a file where a folder is needed"), folder_lock(tmp_path / "out"):
        pass


def test_leftovers_of_interrupted_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in (f"{TEMPORARY_PREFIX}00-a", f"sub/{TEMPORARY_PREFIX}11-b.png", "a", "sub/b.png", "tmp-c"):
        (tmp_path / name).touch()
    remove_stale_temporaries(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["a", "sub", "sub/b.png", "tmp-c"]


def test_a_folder_is_held_once_and_the_lock_goes_away_even_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with folder_lock(folder):
        assert _names(folder) == [LOCK_NAME]
        check_is_free(folder)
        with pytest.raises(ResourceError, match="another defectseg writes there"), folder_lock(folder):
            pass
        assert (folder / LOCK_NAME).exists()
    assert _names(folder) == []
    with pytest.raises(ZeroDivisionError), folder_lock(folder):
        raise ZeroDivisionError
    assert _names(folder) == []


def test_a_lock_file_left_by_a_dead_process_does_not_count(tmp_path: Path) -> None:
    dying = (
        "import os, pathlib, sys\n"
        "from defectseg.files import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])):\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", dying, tmp_path], check=False).returncode == 9
    assert _names(tmp_path) == [LOCK_NAME]
    with folder_lock(tmp_path):
        pass


def _run_and_die(script: str, *arguments: object) -> None:
    """Run Python code that ends as kill -9 ends it, without any clean-up."""
    lines = ("import os, pathlib, sys", "from defectseg.files import *", "out = pathlib.Path(sys.argv[1])", script)
    command = [sys.executable, "-c", "\n".join(lines), *map(str, arguments)]
    assert subprocess.run(command, check=False).returncode == 9


def test_the_next_write_of_a_file_deletes_what_a_killed_one_left_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        dying = "with atomic_path(out) as temporary:\n    temporary.write_text('half')\n    os._exit(9)"
        _run_and_die(dying, tmp_path / name)
    assert len(_names(tmp_path)) == 2
    with atomic_path(tmp_path / "a.txt") as in_use:
        in_use.write_text("slow")
        write_text(tmp_path / "a.txt", "quick")
        assert in_use.read_text() == "slow"
    assert (tmp_path / "a.txt").read_text() == "slow"
    assert [name[:5] for name in reversed(_names(tmp_path))] == ["a.txt", ".tmp-"]
    write_text(tmp_path / "b.txt", "b")
    assert _names(tmp_path) == ["a.txt", "b.txt"]


def test_work_left_by_a_killed_process_is_deleted_but_not_that_of_a_running_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run_and_die("with work_folder(out) as work:\n    (work / 'big').touch()\n    os._exit(9)", out)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(TEMPORARY_PREFIX)
    with work_folder(out) as work, work_folder(tmp_path / "other"):
        assert _names(work) == []
        with pytest.raises(ResourceError, match="out: another defectseg writes there"), work_folder(out):
            pass
        assert work.is_dir()
    assert _names(tmp_path) == []


DYING_AT_A_RENAME = """
rename = pathlib.Path.rename
left = int(sys.argv[2])

def rename_or_die(self, target):
    global left
    if not left:
        os._exit(9)
    left -= 1
    return rename(self, target)

pathlib.Path.rename = rename_or_die
pathlib.Path.unlink = lambda self: os._exit(9)  # of the note on what is being moved
with new_folder(out, last="last.csv") as building:
    (building / "images").mkdir()
    for name in ("last.csv", "first.csv", "images/1.png"):
        (building / name).write_text("killed")
os._exit(9)
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_that_a_killed_process_began_to_fill_is_filled_anew(tmp_path: Path, renames: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _run_and_die(DYING_AT_A_RENAME, out, renames)
    assert len(_names(out)) == renames + 1
    with new_folder(out, last="last.csv") as building:
        (building / "last.csv").write_text("new")
    assert _names(out) == ["last.csv"]
    assert (out / "last.csv").read_text() == "new"


def test_neither_a_whole_result_nor_foreign_files_in_its_place_are_deleted(tmp_path: Path) -> None:
    whole, mixed = tmp_path / "whole", tmp_path / "mixed"
    for out, renames in ((whole, 3), (mixed, 1)):
        out.mkdir()
        _run_and_die(DYING_AT_A_RENAME, out, renames)
    (mixed / "first.csv").replace(mixed / "theirs")
    (mixed / "first.csv").write_text("mine")
    for out, found in ((whole, "first.csv, images, last.csv"), (mixed, "first.csv, theirs")):
        with pytest.raises(OutputExistsError, match=f"holds {found}"), new_folder(out, last="last.csv"):
            pass
        assert not [name for name in _names(out) if name.startswith(".")]


def test_a_folder_is_free_while_it_holds_nothing_but_hidden_entries(tmp_path: Path) -> None:
    check_is_free(tmp_path / "absent")
    assert is_empty_folder(tmp_path / "absent")
    for name in (LOCK_NAME, f"{TEMPORARY_PREFIX}00-a", "~$table.xlsx", "Thumbs.db"):
        (tmp_path / name).touch()
    check_is_free(tmp_path)
    assert is_empty_folder(tmp_path)
    for name in "edcba":
        (tmp_path / name).touch()
    check_is_free(tmp_path, "abcde")
    assert not is_empty_folder(tmp_path)
    assert not is_empty_folder(tmp_path / "a")
    with pytest.raises(OutputExistsError, match="holds a, b, c and 2 more"):
        check_is_free(tmp_path)
    with pytest.raises(OutputExistsError, match="holds d, e, not written by predict"):
        check_is_free(tmp_path, "abc", writer="predict")
    with pytest.raises(OutputExistsError, match="is a file"):
        check_is_free(tmp_path / "a")


@given(st.lists(st.text("'=+-@\t\ra1,\"\n", max_size=6), min_size=1))
def test_no_cell_for_people_begins_a_formula_and_the_documented_line_restores_all(cells: list[str]) -> None:
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.csv"
        with atomic_csv(path, ["ImageId", "n"], for_people=True) as write_rows:
            write_rows((cell, -1) for cell in cells)
        table = pd.read_csv(path, dtype={"ImageId": str}, keep_default_na=False, lineterminator="\n")
    assert not table["ImageId"].str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
    assert (table["n"] == -1).all()
    (line,) = re.findall(r"table = table\.replace\(.*\)", DOCS.read_text(encoding="utf-8"))
    assert eval(line.removeprefix("table = "), {"table": table})["ImageId"].tolist() == cells


def test_a_file_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace = Path.replace

    def name(self: Path, target: Path) -> Path:
        events.append("named")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("flushed"))
    monkeypatch.setattr(Path, "replace", name)
    write_bytes(tmp_path / "a", b"1")
    assert events == ["flushed", "named"]


@pytest.mark.parametrize(
    "image_id",
    [
        *("", "/etc/passwd", "../a.jpg", "sub/../../a.jpg", "sub/..", "..", ".", "./a.jpg", "sub//a.jpg", "sub/"),
        *("sub\\a.jpg", "..\\a.jpg", "C:/a.jpg", "c:a.jpg", "\\\\server\\share\\a.jpg", "a\0.jpg", "a\n.jpg"),
    ],
)
def test_image_id_that_could_leave_its_folder_is_refused(image_id: str) -> None:
    with pytest.raises(LabelError, match=r"^pairs\.csv, line 7: ImageId"):
        check_image_id(image_id, where="pairs.csv, line 7")


@pytest.mark.parametrize(
    "image_id", ["a.jpg", "line 1/a.jpg", "..a.jpg", "a..jpg", "Blech_Ü/ä.png", "-a.jpg", "a,b.jpg"]
)
def test_plain_relative_paths_are_image_ids(image_id: str) -> None:
    check_image_id(image_id, where="")
