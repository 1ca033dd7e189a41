"""The journal of an output folder, the store of its results: one line per image."""

import json
import logging
import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import Field

from defectseg.config import Frozen
from defectseg.data.classes import MAX_CLASSES
from defectseg.errors import DataError, LabelError
from defectseg.files import atomic_path, check_image_id, resource_errors
from defectseg.image.appearance import NUMBERS
from defectseg.predict.tables import STATUS_UNREADABLE, STATUSES, Record

log = logging.getLogger(__name__)

_LONGEST_BYTES = 2**26  # of a line: a million runs have 12 MB
_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_ClassId = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
_Decimal = Annotated[str, Field(pattern=r"^[0-9]{1,12}\.[0-9]{1,4}$")]
_Size = Annotated[str, Field(pattern=r"^[0-9]{1,30}(\.[0-9]{1,30})?$")]
_Region = tuple[str, _ClassId, str, _Int, _Int, _Int, _Int, _Int, _Decimal, _Decimal]
_ScoredRegion = tuple[str, _ClassId, str, _Int, _Int, _Int, _Int, _Int, _Decimal, _Decimal, _Decimal]

# fmt: off
_RegionInMm = tuple[
    str, _ClassId, str, _Int, _Int, _Int, _Int, _Int, _Decimal, _Decimal, _Decimal, _Size, _Size, _Size, _Size
]
# fmt: on


class _Line(Frozen, strict=True):
    """What predict writes for an image. In old folders, regions have no score; if asked for, they have sizes in mm."""

    image: dict[str, _Int | str]
    predictions: list[tuple[str, _ClassId, str]]
    regions: list[_Region | _ScoredRegion | _RegionInMm]
    errors: list[tuple[str, str, str]]
    appearance: list[float] = Field(default_factory=list, max_length=NUMBERS)


class Journal:
    """A file of records. A later record of an image is appended and replaces the earlier one.

    Memory holds only the offset of each image's record. One thread may read while another adds. Opening the file
    removes replaced records and, with a warning, damaged lines, such as the last one after a crash.

    Args:
        path: the file; made if absent.
        read_only: the file must exist and is not changed.

    Raises:
        DataError: it is no regular file.
        OSError: it cannot be read.
        ResourceError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = Lock()
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise DataError(f"{path}: a link or no file; expected the journal of predict. Choose another folder.")
        with nullcontext() if read_only else resource_errors(path):
            self._file = path.open("rb" if read_only else "ab+")
        self._file.seek(0)
        end = lines = damaged = 0
        offset_of: dict[str, int] = {}
        for line in iter(lambda: self._file.readline(_LONGEST_BYTES), b""):
            lines += 1
            try:
                offset_of[_record_of(line).image_id] = end
            except (ValueError, KeyError, TypeError, LabelError):
                damaged += 1
            end += len(line)
        self._offsets = _Offsets(offset_of)
        if damaged:
            log.warning("%s: left out %d damaged lines; their images are done again where given", path, damaged)
        if lines > len(self._offsets) and not read_only:
            self.write_sorted()

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
        return map(self.record, image_ids)

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
            self._file.write(json.dumps(vars(record)).encode() + b"\n")
            self._file.flush()
            self._offsets.put(record.image_id, offset)

    def drop(self, image_ids: Collection[str]) -> None:
        """Delete the records of images."""
        if image_ids:
            self._offsets = _Offsets({one: self._offsets[one] for one in self._offsets.keys() - set(image_ids)})
            self.write_sorted()

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises ResourceError."""
        with resource_errors(self._path):
            os.fsync(self._file.fileno())

    def write_sorted(self) -> None:
        """Write the file anew, sorted by ImageId, without replaced records. Raises ResourceError."""
        offsets = _Offsets({})
        with atomic_path(self._path) as temporary:
            with temporary.open("wb") as handle:
                for image_id in self._offsets:
                    offsets.put(image_id, handle.tell())
                    handle.write(self._line(image_id))
            self._file.close()  # Windows does not replace an open file
        self._file = self._path.open("ab+")
        self._offsets = offsets


class _Offsets(Mapping[str, int]):
    """ImageId -> offset, sorted by ImageId. A dict would take five times the memory, and more while it grows."""

    def __init__(self, offset_of: Mapping[str, int]) -> None:
        self._image_ids = sorted(offset_of)
        self._offsets = array("q", map(offset_of.__getitem__, self._image_ids))

    def __getitem__(self, image_id: str) -> int:
        place = bisect_left(self._image_ids, image_id)
        if self._image_ids[place : place + 1] != [image_id]:
            raise KeyError(image_id)
        return self._offsets[place]

    def put(self, image_id: str, offset: int) -> None:
        """Add an image, quickly if it comes behind most others, or replace its offset."""
        place = bisect_left(self._image_ids, image_id)
        if image_id in self:
            self._offsets[place] = offset
        else:
            self._offsets.insert(place, offset)
            self._image_ids.insert(place, image_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._image_ids)

    def __len__(self) -> int:
        return len(self._image_ids)


def _record_of(line: bytes) -> Record:
    """The record in a line. Raises ValueError or LabelError if it has none, or one that predict does not write."""
    found = _Line.model_validate_json(line)
    tables = [[list(row) for row in rows] for rows in (found.predictions, found.regions, found.errors)]
    record = Record(found.image, tables[0], tables[1], tables[2], found.appearance)
    check_image_id(record.image_id, where="")
    is_sound = line.endswith(b"\n") and record.status in STATUSES
    is_sound &= all(row[0] == record.image_id for rows in tables for row in rows)
    is_sound &= len({class_id for _, class_id, _ in found.predictions}) == len(found.predictions)
    is_sound &= 0 <= float(record.image.get("sheet_score") or 0) <= 1
    is_sound &= record.status == STATUS_UNREADABLE or min(record.size_hw) > 0
    is_sound &= len(record.appearance) in (0, NUMBERS)
    if not is_sound:
        raise ValueError(record.image_id)
    return record
