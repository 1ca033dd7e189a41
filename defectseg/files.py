"""Files that are whole or absent: atomic writes, a lock on a folder, leftovers of interrupted runs."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from defectseg.errors import ResourceError

TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on leaving without an error, flush it and move it to `path`.

    The temporary keeps the suffixes of `path`, since writers choose their format by it.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        with resource_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        _discard(temporary)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises ResourceError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all. Raises ResourceError as `atomic_path` does."""
    write_bytes(path, content.encode())


def write_result(path: Path, content: bytes) -> None:
    """Like `write_bytes`, without forcing the disk: for the many small results of a batch.

    A power cut can lose the last of them; they are made again, since the journal of the batch is flushed after them.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        with resource_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
    except ResourceError:
        _discard(temporary)
        raise


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what interrupted writes left below `folder`. Call it only while holding the folder's lock."""
    for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process alone; a lock left by a dead process does not count.

    Raises:
        ResourceError: another process holds it, or the folder cannot be made.
    """
    with resource_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResourceError(
            f"{folder}: another defectseg is writing there. Wait for it or choose another --out."
        ) from None
    except OSError as error:
        raise _as_resource_error(error, folder) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete an open file
            path.unlink()
        lock.release()


def is_empty_folder(folder: Path) -> bool:
    """True where `folder` is absent or holds nothing but a lock and what interrupted writes left."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(_is_leftover(entry.name) for entry in folder.iterdir())


@contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of writing `path` into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _as_resource_error(error, path) from error


def _discard(temporary: Path) -> None:
    """Remove a temporary if it is there; a failure to do so must not hide the error that led here."""
    with suppress(OSError):
        temporary.unlink()


def _is_leftover(name: str) -> bool:
    return name == LOCK_NAME or name.startswith(TEMPORARY_PREFIX)


def _as_resource_error(error: OSError, path: Path) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{path}: no space left on the disk. Free some and run the same command again.")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return ResourceError(f"{path}: there is a file where a folder is needed. Choose another path.")
    return ResourceError(f"{path}: cannot be written ({error.strerror or error}). Check the path and its permissions.")
