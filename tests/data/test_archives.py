import stat
import zipfile
from pathlib import Path

import pytest

from defectseg.data.download import unpack
from defectseg.errors import DataError


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries:
            packed.writestr(name, content)
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_and_folders_are_unpacked_and_progress_told(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("x/", b""), ("x/a b.jpg", b"A"), ("t.csv", b"T" * 100))
    steps: list[tuple[int, int]] = []
    unpack(archive, tmp_path / "out", progress=lambda done, of, text="": steps.append((done, of)))
    assert tree(tmp_path / "out") == {"x/a b.jpg": b"A", "t.csv": b"T" * 100}
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "name", ["../evil", "x/../../evil", "/tmp/evil", "C:/evil", "C:evil", "x\\..\\evil", "./x", "x//y", "a\x01b"]
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "a.zip", ("good.csv", b"G"), (name, b"E"))
    with pytest.raises(
        DataError, match=r"a\.zip: the entry .* would be written outside.* Nothing was unpacked\. Delete the archive"
    ):
        unpack(archive, tmp_path / "deep/out")
    assert tree(tmp_path) == {"a.zip": archive.read_bytes()}


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_links_and_devices_are_refused(tmp_path: Path, mode: int) -> None:
    archive = zipped(tmp_path / "a.zip", (entry("train_images", mode), b"/etc"), ("train_images/x", b"E"))
    with pytest.raises(DataError, match="'train_images' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a", b"1"), ("a", b"2"))
    with pytest.raises(DataError, match="'a' stands there twice"):
        unpack(archive, tmp_path / "out")


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a", b"1"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose bit 0 in the central directory
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="'a' is encrypted"):
        unpack(archive, tmp_path / "out")


def test_archive_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("zeros", bytes(101 * 2**20)))
    with pytest.raises(DataError, match=r"would unpack to 0\.1 GiB, out of all proportion"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_content_longer_than_declared_is_not_written_whole(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a", bytes(100_000)))
    content = bytearray(archive.read_bytes())
    for start in (22, content.index(b"PK\x01\x02") + 24):  # uncompressed size, in both headers
        content[start : start + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>rate limited</html>"])
def test_what_is_no_archive_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: the archive is damaged or not complete.*download it again"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
