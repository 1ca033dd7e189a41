"""The journal of an output folder, the store of its results: one line per image."""

import json
import logging
import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path

from defectseg.files import atomic_path, resource_errors
from defectseg.predict.tables import STATUSES, Record

log = logging.getLogger(__name__)


class Journal:
    """A file of records. A later record of an image is appended and replaces the earlier one.

    Memory holds only the offset of each image's record. Opening the file removes replaced records and, with a warning,
    damaged lines, such as the last one after a crash.

    Args:
        path: the file; made if absent.
        read_only: the file must exist and is not changed.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._offsets = _Offsets()
        with resource_errors(path):
            self._file = path.open("rb" if read_only else "ab+")
        self._file.seek(0)
        end = lines = damaged = 0
        for line in self._file:
            lines += 1
            try:
                self._offsets[_record_of(line).image_id] = end
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
            end += len(line)
        if damaged:
            log.warning("%s: left out %d damaged lines; their images are done again where given", path, damaged)
        if lines > len(self._offsets) and not read_only:
            self._write_anew()

    def close(self) -> None:
        """Close the file. Raises ResourceError if the disk is full."""
        with resource_errors(self._path):
            self._file.close()

    @property
    def image_ids(self) -> Collection[str]:
        """The images that have a record."""
        return self._offsets.keys()

    def records(self) -> Iterator[Record]:
        """The last record of each image, sorted by ImageId."""
        return map(self.record, sorted(self._offsets))

    def record(self, image_id: str) -> Record:
        """The last record of an image."""
        return _record_of(self._line(image_id))

    def _line(self, image_id: str) -> bytes:
        self._file.seek(self._offsets[image_id])
        return self._file.readline()

    def add(self, record: Record) -> None:
        """Append a record. Raises ResourceError if the disk is full."""
        with resource_errors(self._path):
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(asdict(record)).encode() + b"\n")
            self._file.flush()
        self._offsets[record.image_id] = offset

    def drop(self, image_ids: Collection[str]) -> None:
        """Delete the records of images."""
        for image_id in image_ids:
            del self._offsets[image_id]
        if image_ids:
            self._write_anew()

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises ResourceError."""
        with resource_errors(self._path):
            os.fsync(self._file.fileno())

    def _write_anew(self) -> None:
        offsets = _Offsets()
        with atomic_path(self._path) as temporary:
            with temporary.open("wb") as handle:
                for image_id in sorted(self._offsets):
                    offsets[image_id] = handle.tell()
                    handle.write(self._line(image_id))
            self._file.close()  # Windows does not replace an open file
        self._file = self._path.open("ab+")
        self._offsets = offsets


class _Offsets(MutableMapping[str, int]):
    """ImageId -> offset, sorted by ImageId. A dict would take eight times the memory while it grows.

    Images are added nearly in their order; others move those behind them.
    """

    def __init__(self) -> None:
        self._image_ids: list[str] = []
        self._offsets = array("q")

    def __getitem__(self, image_id: str) -> int:
        place = bisect_left(self._image_ids, image_id)
        if self._image_ids[place : place + 1] != [image_id]:
            raise KeyError(image_id)
        return self._offsets[place]

    def __setitem__(self, image_id: str, offset: int) -> None:
        if image_id in self:
            del self[image_id]
        place = bisect_left(self._image_ids, image_id)
        self._offsets.insert(place, offset)
        self._image_ids.insert(place, image_id)

    def __delitem__(self, image_id: str) -> None:
        place = bisect_left(self._image_ids, image_id)
        del self._image_ids[place], self._offsets[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._image_ids)

    def __len__(self) -> int:
        return len(self._image_ids)


def _record_of(line: bytes) -> Record:
    """The record in a line. Raises ValueError, KeyError or TypeError if it has none."""
    record = Record(**json.loads(line))
    if record.status not in STATUSES or not record.image_id or not line.endswith(b"\n"):
        raise ValueError(record.status)
    return record
