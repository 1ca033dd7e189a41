"""Text files that may come from anybody, read and parsed with bounded memory and time."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from defectseg.errors import LabelError
from defectseg.files import open_regular
from defectseg.machine import allowed_bytes, check_memory

if TYPE_CHECKING:
    import yaml

# What CPython 3.11 takes for the objects that these signs begin or end, in bytes, rounded up.
_JSON_BYTES = {"[": 80, "{": 240, ",": 40, ":": 100, '"': 32}
_XML_BYTES = {"<": 200, "=": 150}
_CSV_BYTES = {"\n": 250, "\r": 250, ",": 60}
_TEXT_BYTES = 6  # each letter, read and decoded
_MOST_YAML = 100_000  # letters, which take PyYAML a few seconds
_DEEPEST_YAML = 50

_XML_ENCODING = re.compile(rb"""<\?xml [^>]*encoding=["']([A-Za-z][\w.-]*)""", re.ASCII)


def read_text(path: Path, expected: str) -> str:
    """UTF-8 text, with or without a byte-order mark, or XML in the encoding that it declares; gzip is unpacked.

    Raises:
        LabelError: it cannot be read, or is something else; says what was expected.
        DataError: it is too large.
    """
    try:
        with open_regular(path) as handle:
            is_gzip = handle.read(2) == b"\x1f\x8b"
            handle.seek(0)
            stream = gzip.GzipFile(fileobj=handle) if is_gzip else handle
            content = stream.read(allowed_bytes() // _TEXT_BYTES + 1)
        check_memory(path, len(content) * _TEXT_BYTES)
        with suppress(UnicodeDecodeError):  # UTF-8 that declares another encoding is common, too
            return content.decode("utf-8-sig")
        declared = _XML_ENCODING.match(content)
        return content.decode(declared[1].decode("ascii") if declared else "utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LabelError(f"{path}: the gzip file is damaged or cut short. Copy it again.") from error
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, LookupError) as error:
        kind = "a ZIP archive: unpack it" if content.startswith(b"PK") else "not UTF-8 text: save it as UTF-8"
        raise LabelError(f"{path}: {kind}; {expected}.") from error


def read_json(path: Path, *, lines: bool = False) -> Any:
    """The content of a JSON file, or with `lines` a list of what each line of it holds.

    Raises:
        LabelError: it is no JSON.
        DataError: it is too large.
    """
    text = _counted(path, "expected JSON", _JSON_BYTES)
    try:
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not valid JSON ({error}).") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file. Raises LabelError if it is none, and DataError if it is too large."""
    text = _counted(path, "expected XML", _XML_BYTES)
    if "<!DOCTYPE" in text:
        raise LabelError(f"{path}: has a document type, whose entities can grow without limit. Remove it.")
    try:
        parser = ElementTree.XMLParser(encoding="utf-8")  # whatever the file says of itself  # noqa: S314
        return ElementTree.fromstring(text.encode(), parser)  # noqa: S314 - no entities
    except (ValueError, SyntaxError) as error:
        raise LabelError(f"{path}: not valid XML ({error}).") from error


@dataclass(frozen=True)
class CsvTable:
    """Header and rows of a CSV file; every row has as many fields as the header.

    Attributes:
        path: the file, for messages.
        header: the names of the columns, stripped.
        rows: line number in the file (the header is line 1) and fields.
        ragged: line number and field count of the rows left out because their count differs from the header's.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    ragged: list[tuple[int, int]]

    def columns(self, *names: str) -> tuple[int, ...] | None:
        """Indices of the named columns, ignoring case; None if one is missing."""
        lower = [name.lower() for name in self.header]
        wanted = [name.lower() for name in names]
        return tuple(lower.index(name) for name in wanted) if all(name in lower for name in wanted) else None


def read_csv(path: Path) -> CsvTable:
    """Read a CSV file (UTF-8, comma-separated, gzip recognised by its content). Empty lines are skipped.

    Raises:
        LabelError: it is missing, empty, truncated, or not UTF-8 CSV.
        DataError: it is too large.
    """
    csv.field_size_limit(2**31 - 1)  # the run-lengths of a large mask exceed the default of 128 KiB
    reader = csv.reader(io.StringIO(_counted(path, "expected CSV", _CSV_BYTES), newline=""))
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


def _counted(path: Path, expected: str, sign_bytes: Mapping[str, int]) -> str:
    text = read_text(path, expected)
    check_memory(path, len(text) * _TEXT_BYTES + sum(text.count(sign) * bytes_ for sign, bytes_ in sign_bytes.items()))
    return text


def parse_yaml(text: str, loader: "type[yaml.SafeLoader | yaml.BaseLoader] | None" = None) -> Any:
    """The content of a YAML text, by default with yaml.SafeLoader.

    Raises:
        ValueError: it is none, or could grow without limit.
    """
    import yaml

    loader = loader or yaml.SafeLoader
    if len(text) > _MOST_YAML:
        raise ValueError(f"{len(text):,} letters; up to {_MOST_YAML:,} are read")
    try:
        depth = 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:
                raise yaml.YAMLError(f"nested more than {_DEEPEST_YAML} deep")
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"alias *{event.anchor}, which could grow without limit: write its content out")
        content = yaml.load(text, loader)  # noqa: S506 - loaders that make no objects of a program
        repr(content)  # raises ValueError for a number with more digits than Python writes, as messages do
        return content
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # of signs and values
        raise ValueError(f"a value that does not fit its type ({error})") from error
