"""The folder that a camera writes into: which of its files are complete, and not handled yet."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from defectseg.files import size_and_time
from defectseg.image.find import IMAGE_SUFFIXES, FoundImage, escaped, suffix_of, with_valid_ids

log = logging.getLogger(__name__)

POLL_S, LONGEST_PAUSE_S = 0.25, 5.0
REST = 4  # polls take at most a fifth of the time
STEADY_S = 0.2  # for so long, size and time must stay the same
BROKEN_S, LONGEST_RETRY_S = 60.0, 10.0
LOOK_AGAIN = 200  # handled files whose size and time are compared in each poll
# A folder whose own time did not change for a while is listed more seldom; not every file system keeps that time.
CHANGING_S, LIST_ANYWAY_S = 3.0, 10.0

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns, as `size_and_time` gives them."""
_GONE: Stamp = (0, 0)


@dataclass
class _Folder:
    prefix: str  # of the ImageIds in it
    modified_ns: int = -1
    changed_s: float = 0.0  # when its time was last seen to change
    listed_s: float = 0.0


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

    Images are those of `find_images`, but links to folders are not followed. A file is complete if its size and time
    are the same in two looks. Memory holds the name of each file in the folder, and 8 bytes for its size and time. A
    handled file is looked at again only now and then; another version of it is a new image.

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
        self._root, self._handled, self._trouble = str(folder), handled, trouble
        self._folders = {self._root: _Folder("")}
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
        paths, new = list(self._folders), dict[str, _File]()
        for path in paths:  # which grows by the folders in them
            try:
                new |= {file.found.image_id: file for file in self._list(path, paths, begun_s)}
            except OSError as error:
                if path == self._root:
                    raise
                del self._folders[path]  # if it is there, it is found again
                if not isinstance(error, FileNotFoundError):
                    self._trouble(f"{escaped(path)}: the folder cannot be listed ({error.strerror}).")
        done = self._handled({image_id: file.stamp for image_id, file in new.items()}) if new else ()
        complete = sorted(self._complete(begun_s), key=lambda file: file.stamp[1])
        self._look_again(begun_s)
        self._files |= new
        self._files |= {image_id: hash(new.pop(image_id).stamp) for image_id in done}
        self._waiting |= new
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

    def gone(self, image_id: str, file: str) -> None:
        """A file went away before it was read, perhaps with its share. If it comes back, it is new."""
        log.warning("%s: went away before it was read", escaped(file))
        self._waiting.pop(image_id, None)
        del self._files[image_id]

    def _complete(self, now_s: float) -> Iterator[_File]:
        for image_id, file in list(self._waiting.items()):
            if (stamp := size_and_time(file.found.file)) == _GONE:
                self.gone(image_id, file.found.file)
            elif stamp != file.stamp:
                file.stamp, file.due_s, file.tries = stamp, now_s + STEADY_S, 0
            elif now_s >= file.due_s:
                yield self._waiting.pop(image_id)

    def _list(self, path: str, paths: list[str], now_s: float) -> Iterator[_File]:
        """The new files of a folder; new folders are appended to `paths`. Raises OSError."""
        folder = self._folders[path]
        modified_ns = os.stat(path).st_mtime_ns  # noqa: PTH116
        if modified_ns != folder.modified_ns:
            folder.modified_ns, folder.changed_s = modified_ns, now_s
        if now_s - folder.changed_s > CHANGING_S and now_s - folder.listed_s < LIST_ANYWAY_S:
            return
        with os.scandir(path) as listed:
            entries = [entry for entry in listed if folder.prefix + entry.name not in self._files]
        folder.listed_s = now_s
        for entry in entries:
            name, suffix = folder.prefix + entry.name, suffix_of(entry.name)
            if entry.name.startswith(".") or entry.path in self._folders:
                continue
            if entry.is_dir(follow_symlinks=False):
                self._folders[entry.path] = _Folder(f"{name}/")
                paths.append(entry.path)
            elif suffix in IMAGE_SUFFIXES:
                (found,) = with_valid_ids([FoundImage(name, entry.path)])
                stamp = size_and_time(found.file)
                if stamp != _GONE and found.image_id not in self._files:
                    yield _File(found, stamp, now_s + STEADY_S)
            elif suffix not in self._passed_over:
                self._passed_over.add(suffix)
                log.info("%s: passed over for its suffix, as others like it", escaped(entry.path))

    def _look_again(self, now_s: float) -> None:
        """Compare the stamps of some handled files, a few in each poll."""
        self._round = self._round or list(self._files)
        for image_id in self._round[-LOOK_AGAIN:]:
            mark, path = self._files.get(image_id), f"{self._root}/{image_id}"
            if not isinstance(mark, int):
                continue
            if (stamp := size_and_time(path)) == _GONE:
                del self._files[image_id]
            elif hash(stamp) != mark:
                file = _File(FoundImage(image_id, path), stamp, now_s + STEADY_S)
                self._files[image_id] = self._waiting[image_id] = file
        del self._round[-LOOK_AGAIN:]
