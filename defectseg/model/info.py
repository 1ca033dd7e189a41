"""ModelInfo: the description inside every kind of model file. It is read and replaced without loading the weights."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self
from xml.etree import ElementTree

from pydantic import Field, ValidationError, model_validator

from defectseg.config import Frozen, HeldOut, PositiveFloat, Recipe, Share
from defectseg.errors import ModelError
from defectseg.files import atomic_path, file_sha256

FORMAT_VERSION = 1


class Normalization(Frozen):
    """A grey level g, 0..255, enters the network as (g / 255 - mean) / std."""

    mean: float
    std: PositiveFloat


class Thresholds(Frozen):
    """One value for each class, in the order of the classes.

    A region of a class is reported if the image's gate is at least `gate`, the probability of each of its pixels at
    least `pixel`, and its area at least `min_area_px`.
    """

    gate: tuple[Share, ...]
    pixel: tuple[Share, ...]
    min_area_px: tuple[Annotated[int, Field(ge=0)], ...]
    chosen_by: str = "default"

    @classmethod
    def default(cls, num_classes: int) -> Self:
        """Gate and pixel threshold 0.5, no minimum area."""
        return cls(gate=(0.5,) * num_classes, pixel=(0.5,) * num_classes, min_area_px=(0,) * num_classes)

    @model_validator(mode="after")
    def _one_for_each_class(self) -> Self:
        if not len(self.gate) == len(self.pixel) == len(self.min_area_px):
            raise ValueError("gate, pixel and min_area_px must have one value for each class")
        return self


class ExportInfo(Frozen):
    """How an export was made, and how it compares with the network in PyTorch.

    Attributes:
        format: openvino or onnx.
        precision: of the weights: fp32 or int8.
        float_layers: precision of the layers that are not int8: auto is the fastest on the processor; f32 if a lower
            precision costs too much.
        size_hw: the only image size that it takes, or None for any.
        source_sha256: `model_identity` of the bundle that it was made from.
        parity: figures of the comparison, by name.
    """

    format: Literal["openvino", "onnx"]
    precision: Literal["fp32", "int8"] = "fp32"
    float_layers: Literal["auto", "f32"] = "auto"
    size_hw: tuple[int, int] | None = None
    source_sha256: str = ""
    parity: dict[str, float] = Field(default_factory=dict)


class ModelInfo(Frozen):
    """The description of a model: one JSON in the header of a bundle or in the metadata of an export."""

    format_version: int = FORMAT_VERSION
    class_names: tuple[str, ...]
    normalization: Normalization
    thresholds: Thresholds
    recipe: Recipe
    fold: HeldOut | None = None
    data_fingerprint: str = ""
    trained_on: tuple[str, ...] = Field((), description="digest of each training image, see image_digest")
    metrics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    export: ExportInfo | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def indices_of(self, class_names: Sequence[str]) -> list[int]:
        """The index of each of the named classes in the model."""
        return [self.class_names.index(name) for name in class_names]

    @model_validator(mode="after")
    def _thresholds_fit_classes(self) -> Self:
        if len(self.thresholds.pixel) != len(self.class_names):
            raise ValueError(f"thresholds for {len(self.thresholds.pixel)} classes, but {len(self.class_names)} names")
        return self


METADATA_KEY = "defectseg"
OPENVINO_SUFFIX, ONNX_SUFFIX = ".xml", ".onnx"
_CHUNK_BYTES = 1 << 20
_ONNX_GRAPH, _ONNX_METADATA = 7, 14  # field numbers of ONNX's ModelProto
_ONNX_KEY, _ONNX_VALUE = 1, 2  # and of its StringStringEntryProto


@dataclass(frozen=True)
class Description:
    """The JSON of a ModelInfo in a model file, and how to read and replace the rest of the file.

    Attributes:
        file: the open file. All further reading uses this handle, so the content of a file that replaces it is never
            mixed in.
        text: the JSON.
        begin, end: the range of bytes that holds the description.
        encode: makes the bytes that replace this range from another JSON.
        beside: makes the bytes that identify the network besides those outside the range.
    """

    file: BinaryIO
    text: str
    begin: int
    end: int
    encode: Callable[[str], bytes]
    beside: Callable[[], bytes] = bytes

    def before(self) -> Iterator[bytes]:
        """The bytes before the description, in chunks. Raises OSError."""
        return _chunks(self.file, 0, self.begin)

    def after(self) -> Iterator[bytes]:
        """The bytes after the description, in chunks. Raises OSError."""
        return _chunks(self.file, self.end, sys.maxsize)


def read_model_info(path: Path) -> ModelInfo:
    """Read the description in a model file: a bundle, an OpenVINO `.xml` with its `.bin`, or an `.onnx`.

    Raises:
        ModelError: the file does not exist, is not from defectseg, is damaged, or was written by a newer version.
    """
    with open_description(path) as description:
        return parse_model_info(description.text, source=path)


def write_model_info(path: Path, info: ModelInfo) -> None:
    """Replace the description in a model file of any kind, atomically. Nothing else in it changes.

    Raises:
        ModelError: as `read_model_info`.
        ResourceError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open_description(path) as old, temporary.open("wb") as file:
        file.writelines(old.before())
        file.write(old.encode(info.model_dump_json()))
        file.writelines(old.after())


def _chunks(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while chunk := file.read(min(end - file.tell(), _CHUNK_BYTES)):
        yield chunk


def parse_model_info(text: str, *, source: Path) -> ModelInfo:
    """Parse the JSON of a description. Raises ModelError naming `source`."""
    try:
        content = json.loads(text)
        version = content.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ModelError(f"{source}: format {version}; this defectseg reads up to {FORMAT_VERSION}. Upgrade it.")
        return ModelInfo.model_validate(content)
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{source}: its description cannot be read: {str(error).splitlines()[0]}") from error


@contextmanager
def open_description(path: Path) -> Iterator[Description]:
    """Open a model file and find its description. Raises ModelError as `read_model_info` does."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model file. Expected model.safetensors of defectseg train, or an export.")
    suffix = path.suffix.lower()
    if suffix == ".bin" and path.with_suffix(OPENVINO_SUFFIX).is_file():
        raise ModelError(f"{path}: only the weights of an export. Give {path.with_suffix(OPENVINO_SUFFIX).name}.")
    find, kind = {
        OPENVINO_SUFFIX: (_find_in_openvino, "a model of OpenVINO"),
        ONNX_SUFFIX: (_find_in_onnx, "an ONNX model"),
    }.get(suffix, (_find_in_bundle, "a model file"))
    with ExitStack() as stack:
        try:
            found = find(path, stack.enter_context(path.open("rb")))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError, ElementTree.ParseError) as error:
            raise ModelError(f"{path}: not {kind}, or damaged ({error}).") from error
        if found is None:
            raise ModelError(f"{path}: holds weights, but not of defectseg. Expected a bundle of train, or an export.")
        yield found


def _find_in_bundle(path: Path, file: BinaryIO) -> Description | None:
    """Find it in the header of a safetensors file: 8 bytes of length, then a JSON with metadata and tensor table."""
    size_bytes = _size_bytes(file)
    length = int.from_bytes(file.read(8), "little")
    weights_bytes = size_bytes - 8 - length
    if weights_bytes < 0:
        raise ValueError("its header is cut short")
    tensors: dict[str, dict[str, Any]] = json.loads(file.read(length))
    metadata: dict[str, str] = tensors.pop("__metadata__", {})
    expected_bytes = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if weights_bytes != expected_bytes:
        raise ValueError(f"{weights_bytes} bytes of weights instead of {expected_bytes}")

    def encode(text: str) -> bytes:
        header = json.dumps({"__metadata__": {**metadata, METADATA_KEY: text}, **tensors}, separators=(",", ":"))
        padded = header.encode() + b" " * (-len(header) % 8)
        return len(padded).to_bytes(8, "little") + padded

    def table() -> bytes:
        return json.dumps(tensors, sort_keys=True).encode()

    return Description(file, metadata[METADATA_KEY], 0, 8 + length, encode, table) if METADATA_KEY in metadata else None


def _find_in_openvino(path: Path, file: BinaryIO) -> Description | None:
    """Find it in net/rt_info/defectseg. Parsing a few MB of XML takes some hundredths of a second."""
    content = file.read()
    if b"<!DOCTYPE" in content:  # it could define entities; OpenVINO never writes one
        raise ValueError("it has a document type")
    net = ElementTree.fromstring(content.decode())  # noqa: S314  # without a document type
    if net.tag != "net":
        raise ValueError(f"it begins with <{net.tag}>, not with <net>")
    needed_bytes = max((int(data.get("offset", 0)) + int(data.get("size", 0)) for data in net.iter("data")), default=0)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path}: its weights, {weights.name}, are not beside it. Copy both files.")
    size_bytes = weights.stat().st_size
    if size_bytes < needed_bytes:
        raise ModelError(
            f"{weights}: {size_bytes} bytes instead of {needed_bytes}; damaged, or of another {path.name}. "
            "Copy both files again."
        )
    element = net.find(f"rt_info/{METADATA_KEY}")
    text = None if element is None else element.get("value")

    def encode(new: str) -> bytes:
        assert element is not None
        element.set("value", new)
        written: bytes = ElementTree.tostring(net, encoding="utf-8", xml_declaration=True)
        return written

    def network() -> bytes:
        parts = [(part.tag, part.text, part.attrib) for part in net.iter() if part is not element]
        return json.dumps([parts, file_sha256(weights)]).encode()

    return None if text is None else Description(file, text, 0, len(content), encode, network)


def _find_in_onnx(path: Path, file: BinaryIO) -> Description | None:
    """Find it among the metadata. The graph and its weights are skipped, not read."""
    found, has_graph = None, False
    for number, begin, content, end in _protobuf_fields(file):
        has_graph |= number == _ONNX_GRAPH
        if number == _ONNX_METADATA:
            file.seek(content)
            entry = io.BytesIO(file.read(end - content))
            parts = {part: entry.getvalue()[first:last] for part, _, first, last in _protobuf_fields(entry)}
            if parts.get(_ONNX_KEY) == METADATA_KEY.encode():
                found = Description(file, parts[_ONNX_VALUE].decode(), begin, end, _onnx_entry)
    if not has_graph:
        raise ValueError("no graph")
    return found


def _onnx_entry(text: str) -> bytes:
    key = _protobuf_bytes(_ONNX_KEY, METADATA_KEY.encode())
    return _protobuf_bytes(_ONNX_METADATA, key + _protobuf_bytes(_ONNX_VALUE, text.encode()))


def _protobuf_fields(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """For each field of a message: its number, and the positions of its begin, content and end. No content is read.

    Source: https://protobuf.dev/programming-guides/encoding/. Raises ValueError if the message is cut short.
    """
    size, end = _size_bytes(file), 0
    while (begin := end) < size:
        file.seek(begin)
        number, kind = divmod(_read_varint(file), 8)
        length = _read_varint(file) if kind in (0, 2) else {1: 8, 5: 4}.get(kind, size)
        content = file.tell()
        end = content if kind == 0 else content + length
        if end > size or number == 0:
            raise ValueError("cut short")
        yield number, begin, content, end


def _protobuf_bytes(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes or a message."""
    return _varint(8 * number + 2) + _varint(len(content)) + content


def _read_varint(file: BinaryIO) -> int:
    """Read a number in groups of 7 bits, lowest first. The eighth bit of a byte says that another group follows."""
    byte = file.read(1)[0]  # IndexError at the end of the file
    return byte if byte < 128 else byte - 128 + 128 * _read_varint(file)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([128 + value % 128]) + _varint(value // 128)


def _size_bytes(file: BinaryIO) -> int:
    """The size of an open file. The position is set to its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size
