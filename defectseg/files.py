"""Files: atomic writes, locks, the guard for result folders, writing of CSV tables, and safe reading."""

import csv
import errno
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from defectseg.errors import DataError, LabelError, OutputExistsError, ResourceError

if sys.platform != "win32":  # where an open file cannot be deleted
    import fcntl

# No ImageId has backslashes, control characters, or (the last range) bytes that are not UTF-8.
UNFIT_CHARACTERS = r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_UNFIT = re.compile(f"^/|^[A-Za-z]:|{UNFIT_CHARACTERS}")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"
_MOVING = "moving.json"
_SPARE_BYTES = 64 * 2**20
_LITTER = ("Thumbs.db", "desktop.ini")  # written by Windows; other systems hide theirs


def size_and_time(path: Path | str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; (0, 0) where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  # of very many files; to make a Path takes longer than the look
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return 0, 0
    return status.st_size, status.st_mtime_ns


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Links are followed, but only to a regular file.

    Opening or reading a named pipe, a socket or a device may hang for ever or have side effects. The kind of file is
    therefore checked before opening, and again afterwards, because the file may be replaced in between.

    Raises:
        OSError: it is not a regular file, or cannot be opened.
    """
    _check_regular(path.stat())
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as handle:
        _check_regular(os.fstat(handle.fileno()))
        yield handle


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a folder, a named pipe, a socket or a device, not a file")


def _temporary_name(path: Path) -> str:
    """The beginning of the names of temporaries for `path`, by which the next run finds those of a killed one."""
    return TEMPORARY_PREFIX + hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and move it to `path` if the block ends without an error.

    The temporary file keeps the suffix of `path`, because writers choose their format by it.

    Args:
        path: the file; its folder is made if absent.
        flush: wait until the content is on the disk, so that a power cut cannot leave an empty file; and delete what
            killed processes left of the same file.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{_temporary_name(path)}-{secrets.token_hex(4)}{path.suffix[-16:]}")
    in_use: BinaryIO | None = None
    try:
        with resource_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if flush:
                for other in path.parent.glob(f"{_temporary_name(path)}-*"):
                    _remove_unless_in_use(other)
                in_use = temporary.open("xb")
                with suppress(OSError):  # a file system without locks: nobody deletes it
                    _lock(in_use)
            yield temporary
            if in_use is not None:
                with temporary.open("rb+") as handle:
                    os.fsync(handle.fileno())
                in_use.close()
            temporary.replace(path)
    except BaseException:
        if in_use is not None:
            in_use.close()
        with suppress(OSError):  # a failure to remove it must not hide the first error
            temporary.unlink()
        raise


def _lock(handle: BinaryIO) -> None:
    """Lock a file until it is closed, or its process dies. Raises OSError if another process has the lock."""
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_unless_in_use(temporary: Path) -> None:
    with suppress(OSError):
        with temporary.open("rb+") as handle:
            _lock(handle)
        temporary.unlink()


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

    A power cut can lose the last results. They are made again, because the journal of the batch is flushed after them.
    """
    with atomic_path(path, flush=False) as temporary:
        temporary.write_bytes(content)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete the temporary files of interrupted writes below `folder`. The caller must hold the folder's lock."""
    for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def check_is_free(folder: Path, own: Collection[str] = (), *, writer: str = "") -> None:
    """Refuse a folder that is not empty.

    Args:
        folder: may be absent. Hidden entries and the litter of file managers do not count.
        own: names of entries that it may hold.
        writer: the command that writes `own`, for the message.

    Raises:
        OutputExistsError: it holds anything else, which the message names; or it is a file.
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
    """Lock a folder for the results of a command. It may be absent, empty, or hold earlier results of the command.

    Args:
        folder: made if absent.
        own: names of the entries that the command writes. Any other entry is refused.
        writer: name of the command, for messages.
        overwrite: whether the caller replaces earlier results; None if it continues them.
        mark: a file that only the command writes. Where it exists, other entries are left alone instead of refused.

    Raises:
        OutputExistsError: the folder holds other files, or earlier results that must not be replaced.
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
def folder_lock(folder: Path, *, of: Path | None = None) -> Iterator[None]:
    """Lock `folder` (made if absent) for this process; the lock file of a dead process does not count.

    Args:
        folder: the folder.
        of: what messages name in its place.

    Raises:
        ResourceError: another process holds the lock, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_NAME)
    with resource_errors(of or folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told = f"{of or folder}: another defectseg writes there. Wait, or choose another name."
            raise ResourceError(told) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete an open file
            (folder / LOCK_NAME).unlink()
        lock.release()


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Lock the file or folder `out` for this process, and yield an empty folder for the work on it.

    This is in a hidden folder beside `out`, whose name depends on that of `out`, so that what a killed process left
    there is found and deleted.

    Raises:
        ResourceError: another process works on `out`, or its folder cannot be written.
    """
    hidden = out.absolute().with_name(_temporary_name(out.absolute()))
    work = hidden / "work"
    try:
        with folder_lock(hidden, of=out):
            try:
                with resource_errors(out):
                    _undo_moves(hidden)
                    for entry in hidden.iterdir():
                        if entry.name != LOCK_NAME:
                            _remove(entry)
                    work.mkdir()
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        with suppress(OSError):  # another process may be using it by now
            if os.name == "nt":
                (hidden / LOCK_NAME).unlink(missing_ok=True)
            hidden.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def own_dir(folder: Path) -> None:
    """Make a folder if it is absent, and refuse a link in its place or below, which would lead writes out of it.

    Raises:
        OutputExistsError: names the link.
        OSError: it cannot be made.
    """
    below = (Path(parent, name) for parent, names, _ in os.walk(folder) for name in names)
    if link := next((path for path in chain([folder], below) if path.is_symlink()), None):
        raise OutputExistsError(f"{link}: is a link, and results would be written where it leads. Delete it.")
    folder.mkdir(exist_ok=True)


def are_nested(one: Path, other: Path) -> bool:
    """Whether two folders are the same, or one lies in the other, also through links. They need not exist."""
    real, real_other = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    return real.is_relative_to(real_other) or real_other.is_relative_to(real)


def is_empty_folder(folder: Path) -> bool:
    """Whether `folder` is absent or has only hidden entries, such as a lock, and litter of file managers."""
    return not folder.exists() or (folder.is_dir() and not _entries(folder))


def _entries(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden files and the litter of Windows and Excel; empty if it is absent."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if not name.startswith((".", "~$")) and name not in _LITTER]


@contextmanager
def new_folder(out: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `out` if the block ends without an error, else it is removed.

    Args:
        out: a folder that is absent or empty, or that a killed process has begun to fill.
        last: the entry that makes the folder complete. If `out` exists, this entry is moved into it last.

    Raises:
        OutputExistsError: `out` is not empty.
        ResourceError: it cannot be written, or another process writes there.
    """
    out = out.absolute()
    # An existing folder may be a mount point or somebody's working directory, so it is filled instead of replaced.
    exists = out.is_dir()
    with work_folder(out / "content" if exists else out) as building:
        check_is_free(out)
        with resource_errors(out):
            yield building
            if exists:
                _move_entries(building, out, last)
            else:
                building.rename(out)


def _move_entries(source: Path, target: Path, last: str) -> None:
    """Move all entries of a work folder, `last` last, after noting them for `_undo_moves`."""
    entries = sorted(source.iterdir(), key=lambda entry: (entry.name == last, entry.name))
    noted = source.with_name(_MOVING)
    noted.write_text(json.dumps({entry.name: entry.lstat().st_ino for entry in entries}), encoding="utf-8")
    for entry in entries:
        entry.rename(target / entry.name)
    noted.unlink()


def _undo_moves(hidden: Path) -> None:
    """Delete what a killed process moved out of the work folder in `hidden`, unless it had moved everything."""
    try:
        noted: dict[str, int] = json.loads((hidden / _MOVING).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing was moved yet
        return
    paths = [hidden.parent / name for name in noted]
    moved = [path for path in paths if os.path.lexists(path) and path.lstat().st_ino == noted[path.name]]
    if moved != paths:
        for path in moved:
            _remove(path)


@contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turn an OSError from writing `path` into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}). Check the path and its permissions."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left on the disk. Free some and run the same command again."
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            reason = "there is a file where a folder is needed. Choose another path."
        raise ResourceError(f"{path}: {reason}") from error


def unpack_zip(archive: Path, folder: Path, *, remedy: str, progress: Callable[[int, int], object]) -> None:
    """Unpack a zip archive into a new folder; every entry is compared with its checksum.

    `zipfile` itself keeps every entry inside `folder` and writes links as plain files.

    Raises:
        DataError: it is no zip archive, is encrypted, or is damaged; the message ends with `remedy`.
        ResourceError: the disk has not enough space, or cannot be written.
    """
    try:
        with resource_errors(folder), zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            folder.mkdir(parents=True)
            needed_bytes = sum(entry.file_size for entry in entries) + _SPARE_BYTES
            if (free_bytes := shutil.disk_usage(folder).free) < needed_bytes:
                raise ResourceError(
                    f"{folder}: {free_bytes / 2**30:.1f} GiB free, {needed_bytes / 2**30:.1f} GiB needed to unpack. "
                    "Free some space and run the same command again."
                )
            for done, entry in enumerate(entries, start=1):
                entry.filename = entry.filename.replace("\\", "/")  # old archivers of Windows
                try:
                    opened.extract(entry, folder)
                except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                    raise ValueError(f"{entry.filename} and another entry: a file where a folder is needed") from error
                progress(done, len(entries))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, IndexError, RuntimeError, ValueError) as error:
        # IndexError: no name; RuntimeError: encrypted, or an unknown compression; ValueError: a name that is not UTF-8
        raise DataError(f"{archive}: the archive is damaged, encrypted or not complete ({error}). {remedy}") from error


def check_image_id(image_id: str, *, where: str) -> None:
    """Refuse an ImageId that is not a plain relative POSIX path below its folder.

    Raises:
        LabelError: it is empty or absolute, or has a drive, a backslash, a control character, or a part that is empty,
            "." or ".."; the message begins with `where`.
    """
    if _UNFIT.search(image_id) or any(part in ("", ".", "..") for part in image_id.split("/")):
        raise LabelError(
            f"{where}: ImageId {image_id!r} is not a path below train_images/; expected a name such as 'a.jpg' or "
            "'line1/a.jpg' (no drive, no leading '/', no '..', no backslash)."
        )


def text_not_formula(cell: Any) -> Any:
    """A cell for people: an apostrophe goes before text that a spreadsheet would take for a formula.

    To make this reversible, text that begins with apostrophes and continues so gets one more.
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


@contextmanager
def atomic_csv(
    path: Path, columns: Sequence[str], *, for_people: bool = False
) -> Iterator[Callable[[Iterable[Iterable[Any]]], Any]]:
    """Yield a function that writes rows to a table with these columns; the file is written whole or not at all.

    Bytes of a file name that are not valid UTF-8 are written as escapes.

    Args:
        path: the file.
        columns: the header.
        for_people: apply `text_not_formula` to all cells.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        yield lambda rows: writer.writerows(map(text_not_formula, row) if for_people else row for row in rows)
