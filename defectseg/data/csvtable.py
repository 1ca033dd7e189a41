"""CSV files: read as people hand them in, zipped or not, with a byte-order mark or not; written whole or not at all."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg.errors import LabelError
from defectseg.files import atomic_path


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


def read_pairs(path: Path, first: str, second: str) -> list[tuple[int, str, str]]:
    """Line number and two named columns of a small table, such as groups.csv.

    Raises:
        LabelError: as `read_csv`; also where a column is missing or a row has too few or too many fields.
    """
    table = read_csv(path)
    places = table.columns(first, second)
    if places is None:
        raise LabelError(f"{path}: has the columns {', '.join(table.header)}; expected {first},{second}.")
    if table.ragged:
        line, count = table.ragged[0]
        raise LabelError(f"{path}, line {line}: has {count} fields; expected {len(table.header)} as in the header.")
    return [(line, fields[places[0]], fields[places[1]].strip()) for line, fields in table.rows]


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

    What of a file's name is not UTF-8 is written as an escape.

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
