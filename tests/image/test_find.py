import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.errors import DataError, ImageError
from defectseg.files import check_image_id
from defectseg.image.find import FoundImage, find_images
from defectseg.image.read import decode, decode_small, read_size


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def ids(found: list[FoundImage]) -> list[str]:
    return [image.image_id for image in found]


@pytest.mark.parametrize(
    ("there", "inputs", "expected"),
    [
        ("a.jpg sub/b.jpg", ". sub", "a.jpg sub/b.jpg"),
        ("in/a.jpg in/b.jpg", "in/b.jpg", "b.jpg"),
        (
            "north/a.jpg south/a.jpg south/b.jpg west/c.jpg",
            "north south west",
            "north/a.jpg south/a.jpg south/b.jpg west/c.jpg",
        ),
        ("mon/line1/a.jpg tue/line1/a.jpg", "mon/line1 tue/line1", "mon/line1/a.jpg tue/line1/a.jpg"),
        ("north/a.jpg south/a.jpg", "north/a.jpg south/a.jpg", "north/a.jpg south/a.jpg"),
        ("x/a.jpg x/north/a.jpg y/north/a.jpg", "y/north x", "x/a.jpg x/north/a.jpg y/north/a.jpg"),
    ],
    ids=["inside another", "a file", "clashing names", "clashing folders", "clashing files", "a real subfolder"],
)
def test_every_image_has_one_id_that_leads_to_its_file(tmp_path: Path, there: str, inputs: str, expected: str) -> None:
    touch(tmp_path, *there.split())
    found = find_images([tmp_path / name for name in inputs.split()])
    assert ids(found) == expected.split()
    assert all(image.path.as_posix().endswith(f"/{image.image_id}") for image in found)


def test_images_are_found_by_suffix_and_others_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optional = ["z.avif", "z.gif", "z.jp2"]
    touch(tmp_path, "b.JPG", "a.jpeg", "c.Tiff", "h.jfif", *optional, "sub/f.webp", ".d.jpg", ".cache/e.jpg")
    touch(tmp_path, "a.txt", "sub/b.TXT", "sub/Thumbs.db", "jpg", ".hidden.txt", "sub/.git/x.txt")
    with caplog.at_level("INFO", "defectseg"):
        assert ids(find_images([tmp_path])) == ["a.jpeg", "b.JPG", "c.Tiff", "h.jfif", "sub/f.webp", *optional]
    assert caplog.messages == ["passed over for their suffix: 2 .txt, 1 without a suffix, 1 .db"]
    assert ids(find_images([tmp_path], recursive=False)) == ["a.jpeg", "b.JPG", "c.Tiff", "h.jfif", *optional]


def test_same_file_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg")
    monkeypatch.chdir(tmp_path)
    inputs = [Path("in"), Path("in/a.jpg"), tmp_path / "in", Path("in/../in/sub/b.jpg"), Path("./in/")]
    assert ids(find_images(inputs)) == ["a.jpg", "sub/b.jpg"]
    monkeypatch.chdir(tmp_path / "in")
    assert ids(find_images([Path()])) == ["a.jpg", "sub/b.jpg"]


def test_output_folder_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/overlays/a.jpg", "output/b.jpg")
    assert ids(find_images([tmp_path], skip=tmp_path / "out")) == ["a.jpg", "output/b.jpg"]
    assert ids(find_images([tmp_path / "a.jpg", tmp_path / "out/overlays/a.jpg"], skip=tmp_path / "out")) == ["a.jpg"]
    with pytest.raises(DataError, match=r"No image in .*/out is left out"):
        find_images([tmp_path / "out"], skip=tmp_path / "out")


def test_links_are_followed_and_loops_end_and_each_folder_counts_once_under_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.jpg", "store/b.jpg", "in/c.jpg", "in/z/e.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "store")
    (tmp_path / "in/d.jpg").symlink_to(tmp_path / "store/a.jpg")
    (tmp_path / "in/z/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/also").symlink_to(tmp_path / "in/z")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = find_images([tmp_path / "in"])
    assert ids(found) == ["c.jpg", "d.jpg", "gone.jpg", "linked/a.jpg", "linked/b.jpg", "z/e.jpg"]
    with pytest.raises(ImageError, match="cannot be read"):  # a broken link is reported
        decode(found[2])


def test_folders_may_be_nested_deeper_than_python_may_recurse(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a"] * 200)
    touch(tmp_path, "b.jpg")
    touch(deep, "deep.jpg")
    limit, frames = sys.getrecursionlimit(), len(inspect.stack())
    sys.setrecursionlimit(frames + 100)
    try:
        found = find_images([tmp_path])
    finally:
        sys.setrecursionlimit(limit)
    assert ids(found) == ["a/" * 200 + "deep.jpg", "b.jpg"]


def test_inputs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"none\.jpg: no such file or folder"):
        find_images([tmp_path / "none.jpg"])
    with pytest.raises(DataError, match=r"notes.txt: not an image by its name; expected .*\.jpeg"):
        find_images([tmp_path / "notes.txt"])
    with pytest.raises(DataError, match=r"No image in .*subfolders were not searched.*end in .*\.bmp, .*\.jpeg, \.jpg"):
        find_images([tmp_path], recursive=False)


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        (b"a\xc2\x9bb\x7f.jpg", "a%C2%9Bb%7F.jpg"),  # the CSI of a terminal, and DEL
        (b"a\\b.jpg", "a%5Cb.jpg"),
        (b"\x8f\xe0.jpg", "%8F%E0.jpg"),
        (b"\xff/b.jpg", "%FF/b.jpg"),
        (b"\x80" * 251 + b".jpg", "%80" * 251 + ".jpg"),
    ],
)
def test_a_name_that_cannot_be_an_image_id_is_a_fault_of_that_file(tmp_path: Path, name: bytes, image_id: str) -> None:
    touch(tmp_path, "z.jpg")
    try:
        touch(tmp_path, os.fsdecode(name))
    except OSError:
        pytest.skip("this file system refuses the name")
    bad, good = find_images([tmp_path], keep_faulty=True)
    assert (good.image_id, good.fault) == ("z.jpg", "")
    assert bad.image_id == image_id
    assert bad.fault == f"{tmp_path}/{image_id}: {bad.fault.partition(': ')[2]}"
    check_image_id(bad.image_id, where="")
    with pytest.raises(ImageError, match="Rename it"):
        decode(bad)
    with pytest.raises(DataError, match="Rename it"):
        find_images([tmp_path])


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
def test_the_image_id_of_a_faulty_name_is_that_of_no_other_file(tmp_path: Path) -> None:
    touch(tmp_path, "a\\.jpg", "a%5C.jpg", "a%255C.jpg", "a\\%5C.jpg", "a%5C\\.jpg")
    found = find_images([tmp_path], keep_faulty=True)
    assert len(set(ids(found))) == 5
    assert sorted(image.image_id for image in found if not image.fault) == ["a%255C.jpg", "a%5C.jpg"]


def test_a_subfolder_that_cannot_be_listed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg", "open/c.jpg")
    scandir = os.scandir

    def guarded(folder: Any) -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_images([tmp_path], keep_faulty=True)
    assert [(image.image_id, bool(image.fault)) for image in found] == [
        ("a.jpg", False), ("locked", True), ("open/c.jpg", False),
    ]  # fmt: skip
    assert "locked: the folder cannot be listed (Permission denied)" in found[1].fault
    listed = [tmp_path / "locked", tmp_path / "open", tmp_path / "locked"]
    assert ids(find_images([], listed, keep_faulty=True)) == ["c.jpg", "locked"]
    for inputs in ([tmp_path], [tmp_path / "locked", tmp_path / "open"]):
        with pytest.raises(DataError, match="cannot be listed"):
            find_images(inputs, keep_faulty=inputs != [tmp_path])


def test_of_a_list_what_is_gone_or_no_image_is_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "sub/b.jpg")
    (tmp_path / "loop").symlink_to("loop")
    names = ("a.jpg", "sub", "gone.jpg", "gone/..", "loop/c.jpg", "notes.txt", "a\0.jpg", "y" * 5000)
    found = find_images([], [tmp_path / name for name in names], keep_faulty=True)
    assert {image.image_id for image in found if not image.fault} == {"a.jpg", "b.jpg", "gone.jpg", "c.jpg"}
    told = {image.image_id[:9]: image.fault.rpartition(": ")[2][:12] for image in found if image.fault}
    assert told == {
        **dict.fromkeys((tmp_path.name[:9], "yyyyyyyyy"), "no such file"),
        "a%00.jpg": "the name has",
        "notes.txt": "not an image",
    }


def test_of_a_list_names_of_images_are_believed_without_a_look_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(50)]
    touch(tmp_path, *names)
    looked: list[Any] = []

    def noting(real: Any) -> Any:
        def look(path: Any, *arguments: Any, **options: Any) -> Any:
            looked.append(path)
            return real(path, *arguments, **options)

        return look

    for asked in ("stat", "lstat"):
        monkeypatch.setattr(os, asked, noting(getattr(os, asked)))
    found = find_images([], [tmp_path / name for name in names], keep_faulty=True)
    monkeypatch.undo()
    assert [image.path for image in found] == sorted(tmp_path / name for name in names)
    assert not [path for path in looked if str(path).endswith(".jpg")]
    assert len(looked) < 50, "folders are looked up once"


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize(
    ("kind", "told"),
    [("pipe", "a named pipe"), ("device", "a device"), ("100 GB", "107,374,182,400 bytes|not a JPEG")],
)
@pytest.mark.parametrize("read", [decode, read_size, lambda path: decode_small(path, shorter_px=8, longer_px=8)])
def test_pipes_devices_and_huge_files_are_refused(
    tmp_path: Path, kind: str, told: str, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as handle:
            handle.truncate(100 * 2**30)
    assert ids(find_images([tmp_path])) == ["a.png"]
    with pytest.raises(ImageError, match=told):
        read(path)
