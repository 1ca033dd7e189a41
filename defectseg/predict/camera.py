"""The folder that a camera writes into: which of its files are complete, and not handled yet."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from defectseg.image.find import IMAGE_SUFFIXES, FoundImage, escaped, suffix_of, with_valid_ids

log = logging.getLogger(__name__)

POLL_S, LONGEST_PAUSE_S = 0.25, 5.0
REST = 4  # polls take at most a fifth of the time
STEADY_S = 0.2  # for so long, size and time must stay the same
BROKEN_S = 60.0  # for so long, a file that cannot be read may still become whole
LONGEST_RETRY_S = 10.0
LOOK_AGAIN = 200  # handled files whose size and time are compared in each poll
# A folder whose own time did not change for a while is listed more seldom, as not every file system keeps that time.
CHANGING_S, LIST_ANYWAY_S = 3.0, 10.0

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns, as `size_and_time` gives them."""


@dataclass
class _Folder:
    path: str
    prefix: str  # of the names of its files
    modified_ns: int = -1
    changed_s: float = 0.0  # when its time was last seen to change
    listed_s: float = 0.0
    failed: bool = False


@dataclass(slots=True)
class _File:
    """A file that is not handled yet; `due_s`: when to look again; `tries`: how often it could not be read."""

    found: FoundImage
    stamp: Stamp
    due_s: float
    tries: int = 0
    failed_s: float = 0.0  # when it first could not be read


class Camera:
    """Looks into a folder again and again, since network shares tell nobody what is new in them.

    A file is an image by its suffix, and complete if its size and time stay the same between two looks. Hidden files
    are passed over. Links to folders are followed once. Memory holds the name of each file in the folder and 8 bytes
    for its size and time. A file that is handled is looked at again only now and then, and a new version of it is a new
    image.

    Args:
        folder: what is watched.
        handled: called with the stamps of files seen for the first time, by ImageId, for those that earlier runs did.
        trouble: called with a message for people.

    Attributes:
        pause_s: time until the next poll.
    """

    def __init__(
        self, folder: Path, handled: Callable[[Mapping[str, Stamp]], Collection[str]], trouble: Callable[[str], object]
    ) -> None:
        self.pause_s = POLL_S
        self._root = str(folder)
        self._handled = handled
        self._trouble = trouble
        self._folders = {self._root: _Folder(self._root, "")}
        self._real = {os.path.realpath(folder)}  # of folders that links lead to
        self._files: dict[str, int | _File] = {}  # the number stands for the stamp of the version that is handled
        self._waiting: dict[str, _File] = {}  # files that become complete, or are tried again
        self._round: list[str] = []  # names that are still to be looked at again
        self._passed_over: set[str] = set()

    def poll(self) -> list[FoundImage]:
        """The files that are complete since the last poll, the oldest first.

        Raises:
            OSError: the folder is not there, or cannot be listed.
        """
        begun_s = time.monotonic()
        folders, new = list(self._folders.values()), dict[str, _File]()
        for folder in folders:  # which grows by those found in them
            new |= {file.found.image_id: file for file in self._list(folder, folders, begun_s)}
        done = self._handled({image_id: file.stamp for image_id, file in new.items()}) if new else ()
        self._look_again(begun_s)
        complete = sorted(self._complete(begun_s), key=lambda file: file.stamp[1])
        for image_id, file in new.items():
            if image_id in done:
                self._files[image_id] = hash(file.stamp)
            else:
                self._files[image_id] = self._waiting[image_id] = file
        self.pause_s = min(LONGEST_PAUSE_S, max(POLL_S, REST * (time.monotonic() - begun_s)))
        return [file.found for file in complete]

    def done(self, image_id: str, stamp: Stamp) -> None:
        """A version of an image is handled."""
        self._files[image_id] = hash(stamp)

    def again(self, image_id: str) -> bool:
        """Let an image that could not be read be tried again, unless it has been tried in vain for BROKEN_S."""
        file, now_s = self._files[image_id], time.monotonic()
        assert isinstance(file, _File), "it is not handled"
        file.failed_s = file.failed_s if file.tries else now_s
        if file.found.fault or now_s - file.failed_s > BROKEN_S:
            return False
        file.due_s = now_s + min(LONGEST_RETRY_S, POLL_S * 2**file.tries)
        file.tries += 1
        self._waiting[image_id] = file
        return True

    def forget(self, image_id: str) -> None:
        """A file that is not there any more. If it comes back, it is new."""
        self._files.pop(image_id, None)
        self._waiting.pop(image_id, None)

    def _complete(self, now_s: float) -> Iterator[_File]:
        for image_id, file in list(self._waiting.items()):
            try:
                stamp = _stamp(os.stat(file.found.file))  # noqa: PTH116  # a Path takes longer than the look
            except FileNotFoundError:
                log.warning("%s: was deleted before it was read", escaped(file.found.file))
                self.forget(image_id)
            except OSError as error:  # such as a share that is away
                self._trouble(f"{escaped(file.found.file)}: cannot be read ({error.strerror}). It is tried again.")
            else:
                if stamp != file.stamp:
                    file.stamp, file.due_s, file.tries = stamp, now_s + STEADY_S, 0
                elif now_s >= file.due_s:
                    del self._waiting[image_id]
                    yield file

    def _list(self, folder: _Folder, folders: list[_Folder], now_s: float) -> Iterator[_File]:
        """The new files of a folder; new folders are appended to `folders`."""
        try:
            modified_ns = os.stat(folder.path).st_mtime_ns  # noqa: PTH116
            if modified_ns != folder.modified_ns:
                folder.modified_ns, folder.changed_s = modified_ns, now_s
            if now_s - folder.changed_s > CHANGING_S and now_s - folder.listed_s < LIST_ANYWAY_S:
                return
            with os.scandir(folder.path) as listed:
                entries = [entry for entry in listed if folder.prefix + entry.name not in self._files]
        except OSError as error:
            if not folder.prefix:
                raise
            if isinstance(error, FileNotFoundError):
                self._folders.pop(folder.path, None)
            elif not folder.failed:
                self._trouble(f"{escaped(folder.path)}: the folder cannot be listed ({error.strerror}).")
            folder.failed = True
            return
        folder.listed_s, folder.failed = now_s, False
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):  # as `find_images` does
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112  # as there
                self._add_folder(entry, folder, folders)
            elif suffix_of(entry.name) not in IMAGE_SUFFIXES:
                self._pass_over(suffix_of(entry.name))
            elif file := self._file(entry, folder, now_s):
                yield file

    def _add_folder(self, entry: os.DirEntry[str], folder: _Folder, folders: list[_Folder]) -> None:
        if entry.path in self._folders:
            return
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if any(f"{real}{os.sep}".startswith(f"{other}{os.sep}") for other in self._real):
                return
            self._real.add(real)
        self._folders[entry.path] = _Folder(entry.path, f"{folder.prefix}{entry.name}/")
        folders.append(self._folders[entry.path])

    def _file(self, entry: os.DirEntry[str], folder: _Folder, now_s: float) -> _File | None:
        try:
            stamp = _stamp(entry.stat())
        except OSError:  # deleted again, or a link to a file that is not there yet
            return None
        (found,) = with_valid_ids([FoundImage(folder.prefix + entry.name, entry.path)])
        return None if found.image_id in self._files else _File(found, stamp, now_s + STEADY_S)

    def _pass_over(self, suffix: str) -> None:
        if suffix not in self._passed_over:
            self._passed_over.add(suffix)
            what = f"that end in {escaped(suffix)}" if suffix else "without a suffix"
            log.info("%s: files %s are passed over", self._root, what)

    def _look_again(self, now_s: float) -> None:
        """Compare the stamps of some handled files, a few in each poll."""
        self._round = self._round or list(self._files)
        for image_id in self._round[-LOOK_AGAIN:]:
            mark = self._files.get(image_id)
            if not isinstance(mark, int):
                continue
            path = os.path.join(self._root, image_id)  # noqa: PTH118
            try:
                stamp = _stamp(os.stat(path))  # noqa: PTH116
            except FileNotFoundError:
                self.forget(image_id)
            except OSError:
                continue
            else:
                if hash(stamp) != mark:
                    file = _File(FoundImage(image_id, path), stamp, now_s + STEADY_S)
                    self._files[image_id] = self._waiting[image_id] = file
        del self._round[-LOOK_AGAIN:]


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns
