"""The journal of an output folder, the store of its results: one line per image."""

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Lock

from defectseg.files import atomic_path, resource_errors
from defectseg.predict.tables import STATUSES, Record

log = logging.getLogger(__name__)


class Journal:
    """A file of records. A later record of an image is appended and replaces the earlier one.

    Memory holds only the offset of each image's record. One thread may read while another adds. Opening the file
    removes replaced records and, with a warning, damaged lines, such as the last one after a crash.

    Args:
        path: the file; made if absent.
        read_only: the file must exist and is not changed.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = Lock()
        self._offsets: dict[str, int] = {}
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
        with self._lock:
            image_ids = list(self._offsets)
        return map(self.record, sorted(image_ids))

    def record(self, image_id: str) -> Record:
        """The last record of an image."""
        with self._lock:
            line = self._line(image_id)
        return _record_of(line)

    def _line(self, image_id: str) -> bytes:
        self._file.seek(self._offsets[image_id])
        return self._file.readline()

    def add(self, record: Record) -> None:
        """Append a record. Raises ResourceError if the disk is full."""
        with self._lock, resource_errors(self._path):
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
        offsets = {}
        with atomic_path(self._path) as temporary:
            with temporary.open("wb") as handle:
                for image_id in sorted(self._offsets):
                    offsets[image_id] = handle.tell()
                    handle.write(self._line(image_id))
            self._file.close()  # Windows does not replace an open file
        self._file = self._path.open("ab+")
        self._offsets = offsets


def _record_of(line: bytes) -> Record:
    """The record in a line. Raises ValueError, KeyError or TypeError if it has none."""
    record = Record(**json.loads(line))
    if record.status not in STATUSES or not record.image_id or not line.endswith(b"\n"):
        raise ValueError(record.status)
    return record
