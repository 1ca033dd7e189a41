"""Files: atomic writes, one guard for result folders, CSV; reading what is really a file."""

import csv
import errno
import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from defectseg.errors import LabelError, OutputExistsError, ResourceError

# Backslashes, control characters, and (the last range) bytes that are not UTF-8: no ImageId has them.
UNFIT_CHARACTERS = r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_UNFIT = re.compile(f"^/|^[A-Za-z]:|{UNFIT_CHARACTERS}")
TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"
_LITTER = ("Thumbs.db", "desktop.ini")  # of Windows; that of other systems is hidden


def size_and_time(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; (0, 0) where there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return 0, 0
    return status.st_size, status.st_mtime_ns


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Links are followed, but only to a regular file.

    Opening or reading a named pipe, a socket or a device may hang for ever or have effects, so they are told apart
    before, and once more after opening, since a file may be replaced in between.

    Raises:
        OSError: it is not a regular file, or cannot be opened.
    """
    _check_regular(path.stat())
    with open(path, "rb", opener=_open_without_waiting) as handle:
        _check_regular(os.fstat(handle.fileno()))
        yield handle


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a folder, a named pipe, a socket or a device, not a file")


def temporary_beside(path: Path) -> Path:
    """A fresh name in the folder of `path`, with its suffix, and short however long its name is."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}{path.suffix[-16:]}")


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on leaving without an error, move it to `path`.

    The temporary keeps the suffix of `path`, since writers choose their format by it.

    Args:
        path: the file; its folder is made if absent.
        flush: wait until the disk has the content, so that a power cut cannot leave an empty file.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        with resource_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if flush:
                with temporary.open("rb+") as handle:
                    os.fsync(handle.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # a failure to remove it must not hide the error that led here
            temporary.unlink()
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises ResourceError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all. Raises ResourceError as `atomic_path` does.

    Bytes of a file name that are not valid UTF-8 are written as escapes, which JSON reads back.
    """
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_result(path: Path, content: bytes) -> None:
    """Like `write_bytes`, without waiting for the disk: for the many small results of a batch.

    A power cut can lose the last of them; they are made again, since the journal of the batch is flushed after them.
    """
    with atomic_path(path, flush=False) as temporary:
        temporary.write_bytes(content)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what interrupted writes left below `folder`. Call it only while holding the folder's lock."""
    for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def check_is_free(folder: Path, own: Collection[str] = (), *, writer: str = "") -> None:
    """Refuse a folder that holds something.

    Args:
        folder: may be absent. Hidden entries do not count, such as our own lock or what file managers leave.
        own: names of entries that it may hold.
        writer: the command that writes those, for the message.

    Raises:
        OutputExistsError: it holds something else, which the message names; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder}: is a file. Choose another output folder.")
    if foreign := [name for name in _entries(folder) if name not in own]:
        found = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        why = f"holds {found}, not written by {writer}" if writer else f"not empty (holds {found})"
        raise OutputExistsError(f"{folder}: {why}. Choose another output folder.")


@contextmanager
def result_folder(
    folder: Path, own: Collection[str], *, writer: str, overwrite: bool | None = False, mark: str = ""
) -> Iterator[None]:
    """Hold a folder for the results of a command, which may be absent, empty, or hold earlier results of the command.

    Args:
        folder: made if absent.
        own: names of what the command writes. Nothing else may be there.
        writer: name of the command, for messages.
        overwrite: whether earlier results may be replaced, which the caller does; None: it knows how to go on.
        mark: a file by which the command knows its folder. Whatever people put beside it since is left alone.

    Raises:
        OutputExistsError: the folder holds something else, or earlier results that may not be replaced.
        ResourceError: another process writes there, or the folder cannot be made.
    """
    with folder_lock(folder):
        if not (mark and (folder / mark).is_file()):
            check_is_free(folder, own, writer=writer)
        if overwrite is False and (earlier := _entries(folder)):
            raise OutputExistsError(
                f"{folder}: holds results of {writer} ({', '.join(earlier)}). Choose another output folder.",
                go_on={"overwrite": True},
            )
        remove_stale_temporaries(folder)
        yield


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process alone; a lock left by a dead process does not count.

    Raises:
        ResourceError: another process holds it, or the folder cannot be made.
    """
    lock = FileLock(folder / LOCK_NAME)
    with resource_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResourceError(
                f"{folder}: another defectseg is writing there. Wait for it or choose another output folder."
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete an open file
            (folder / LOCK_NAME).unlink()
        lock.release()


def _entries(folder: Path) -> list[str]:
    """What a folder holds, sorted, without hidden entries and what Windows and Excel leave; nothing if it is absent."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if not name.startswith((".", "~$")) and name not in _LITTER]


@contextmanager
def new_folder(out: Path, *, last: str) -> Iterator[Path]:
    """Give an empty folder to fill; on leaving without an error it becomes `out`, else nothing is left.

    Args:
        out: a folder that is absent or empty.
        last: the entry that makes the folder complete: where `out` is there already, it is moved in after the others.

    Raises:
        OutputExistsError: `out` is not empty.
        ResourceError: it cannot be written.
    """
    check_is_free(out)
    out = out.absolute()
    # A folder that is there may be a mount, whose parent is another disk, or somebody's working folder: it is filled.
    building = temporary_beside(out / "folder" if out.exists() else out)
    try:
        with resource_errors(out):
            building.mkdir(parents=True)
            yield building
            if building.parent == out:
                for entry in sorted(building.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
                    entry.rename(out / entry.name)
            else:
                building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of writing `path` into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        told = f"cannot be written ({error.strerror or error}). Check the path and its permissions."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = "no space left on the disk. Free some and run the same command again."
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            told = "there is a file where a folder is needed. Choose another path."
        raise ResourceError(f"{path}: {told}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_plain_path(text: str) -> bool:
    """Whether a text is a relative POSIX path that every system knows, and that stays below its folder."""
    return not _UNFIT.search(text) and not any(part in ("", ".", "..") for part in text.split("/"))


def check_image_id(image_id: str, *, where: str) -> None:
    """Refuse an ImageId that is not a plain relative POSIX path below its folder.

    Raises:
        LabelError: it is empty or absolute, names a drive, has a backslash, a control sign or a part that is empty, "."
            or ".."; names `where`.
    """
    if not is_plain_path(image_id):
        raise LabelError(
            f"{where}: ImageId {image_id!r} is not a path below train_images/; expected a name such as 'a.jpg' or "
            "'line1/a.jpg' (no drive, no leading '/', no '..', no backslash)."
        )


@dataclass(frozen=True)
class CsvTable:
    """Header and rows of a CSV file; every row has as many fields as the header.

    Attributes:
        path: the file, for messages.
        header: the names of the columns, without blanks around them.
        rows: number of the line in the file (the header is line 1), fields.
        ragged: number of the line and count of fields of the rows left out because they have another count.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    ragged: list[tuple[int, int]]

    def columns(self, *names: str) -> tuple[int, ...] | None:
        """The places of the named columns, whatever their case; None where one is missing."""
        lower = [name.lower() for name in self.header]
        wanted = [name.lower() for name in names]
        return tuple(lower.index(name) for name in wanted) if all(name in lower for name in wanted) else None


def read_csv(path: Path) -> CsvTable:
    """Read a CSV file (UTF-8, comma-separated, gzip recognised by its content). Empty lines are passed over.

    Raises:
        LabelError: it is missing, empty, not whole, or not UTF-8 text with commas.
    """
    csv.field_size_limit(2**31 - 1)  # the run-lengths of one large mask pass the default of 128 KiB
    reader = csv.reader(io.StringIO(_read_text(path), newline=""))
    rows: list[tuple[int, list[str]]] = []
    ragged: list[tuple[int, int]] = []
    try:
        header = tuple(name.strip() for name in next(reader, []))
        for fields in reader:
            if len(fields) == len(header):
                rows.append((reader.line_num, fields))
            elif fields:
                ragged.append((reader.line_num, len(fields)))
    except csv.Error as error:
        raise LabelError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    if not header:
        raise LabelError(f"{path}: the file is empty; expected a header line and rows.")
    return CsvTable(path, header, rows, ragged)


def read_by_image(path: Path, column: str) -> Iterator[tuple[str, str, str]]:
    """The place of each row (file and line), its ImageId, and its value in a named column of, say, groups.csv.

    Raises:
        LabelError: as `read_csv` and `check_image_id`; also where a column is missing or a row has too few or too many
            fields.
    """
    table = read_csv(path)
    places = table.columns("ImageId", column)
    if places is None:
        raise LabelError(f"{path}: has the columns {', '.join(table.header)}; expected ImageId,{column}.")
    if table.ragged:
        line, count = table.ragged[0]
        raise LabelError(f"{path}, line {line}: has {count} fields; expected {len(table.header)} as in the header.")
    for line, fields in table.rows:
        where, image_id = f"{path}, line {line}", fields[places[0]]
        check_image_id(image_id, where=where)
        yield where, image_id, fields[places[1]].strip()


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LabelError(f"{path}: the gzip file is damaged or cut short. Copy it again.") from error
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        kind = "a zip archive; unpack it" if content.startswith(b"PK") else "not UTF-8 text; save it as CSV UTF-8"
        raise LabelError(f"{path}: is {kind}.") from error


@contextmanager
def atomic_csv(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Iterable[Iterable[Any]]], Any]]:
    """Give a function that writes rows to a table with these columns; the file is whole or absent.

    Bytes of a file name that are not valid UTF-8 are written as escapes.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        yield writer.writerows
