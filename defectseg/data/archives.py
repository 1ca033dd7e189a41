"""Unpack a zip archive that came from elsewhere, without trusting it."""

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from defectseg.data.exchange import Progress
from defectseg.errors import DataError, ResourceError
from defectseg.files import resource_errors

_UNFIT = re.compile(r"^/|^[A-Za-z]:|[\\\x00-\x1f\ud800-\udfff]")
_REMEDY = "Delete the archive and download it again; if that does not help, it is not the one that it should be."
# Photographs shrink by a few per cent and tables to a tenth. Archives made to fill a disk shrink to a thousandth.
_LARGEST_RATIO = 100
_SPARE_BYTES = 64 * 2**20


def unpack(archive: Path, folder: Path, *, report: Progress | None = None) -> None:
    """Unpack a zip archive into a folder, which is made.

    Every entry is looked at before the first is written: nothing is written outside `folder`, and links, devices,
    encrypted entries, names that stand there twice, and contents that are out of all proportion are refused. What is
    unpacked is compared with its checksum.

    Args:
        archive: the zip file.
        folder: a folder that does not exist.
        report: called with the number of entries done and of all entries.

    Raises:
        DataError: it is no zip archive, is damaged, or an entry is refused; names the entry.
        ResourceError: the disk has not enough space, or cannot be written.
    """
    try:
        with resource_errors(folder), zipfile.ZipFile(archive) as opened:
            entries = _checked_files(opened, archive)
            _check_space(entries, folder)
            for done, entry in enumerate(entries, start=1):
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, target.open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
                if report:
                    report(done, len(entries))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: the archive is damaged or not complete ({error}). {_REMEDY}") from error


def _checked_files(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The files in an archive, without its folders."""
    names: set[str] = set()
    entries = []
    for entry in opened.infolist():
        if fault := _fault(entry, names):
            raise DataError(f"{archive}: the entry {entry.filename!r} {fault}. Nothing was unpacked. {_REMEDY}")
        names.add(entry.filename.rstrip("/"))
        if not entry.is_dir():
            entries.append(entry)
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > _LARGEST_RATIO * max(archive.stat().st_size, 2**20):
        raise DataError(
            f"{archive}: would unpack to {total_bytes / 2**30:.1f} GiB, out of all proportion to its size. {_REMEDY}"
        )
    return entries


def _fault(entry: zipfile.ZipInfo, names: set[str]) -> str:
    """Why an entry must not be unpacked; "" where it may."""
    name = entry.filename.rstrip("/")
    mode = entry.external_attr >> 16
    if _UNFIT.search(entry.orig_filename) or any(part in ("", ".", "..") for part in name.split("/")):
        return "would be written outside its folder, or under a name that some systems do not know"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if entry.flag_bits & 1:
        return "is encrypted"
    return "stands there twice" if name in names else ""


def _check_space(entries: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    needed_bytes = sum(entry.file_size for entry in entries) + _SPARE_BYTES
    folder.mkdir(parents=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"{folder}: {free_bytes / 2**30:.1f} GiB free, {needed_bytes / 2**30:.1f} GiB needed to unpack. "
            "Free some space and run the same command again."
        )
