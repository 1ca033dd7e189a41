"""ModelInfo: the description inside every kind of model file. It is read and replaced without loading the weights."""

import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, BinaryIO, Literal, Self
from xml.etree import ElementTree

from pydantic import Field, ValidationError, model_validator

from defectseg.config import Frozen, HeldOut, PositiveFloat, Recipe, Share
from defectseg.errors import ModelError, printable
from defectseg.files import atomic_path
from defectseg.machine import cores
from defectseg.model.appearance import Appearance

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
    class_names: tuple[str, ...] = Field(min_length=1, max_length=254)  # as many as a data folder may have
    normalization: Normalization
    thresholds: Thresholds
    recipe: Recipe
    fold: HeldOut | None = None
    data_fingerprint: str = ""
    trained_on: tuple[str, ...] = Field((), description="digest of each training image, see image_digest")
    appearance: Appearance | None = Field(None, description="how the training images look")
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
    def _classes_can_be_told_apart(self) -> Self:
        names = {name for name in self.class_names if name.strip() and printable(name) == name}
        if len(names) < len(self.class_names):
            raise ValueError("a class name is blank, there twice, too long, or has control characters")
        if len(self.thresholds.pixel) != len(self.class_names):
            raise ValueError(f"thresholds for {len(self.thresholds.pixel)} classes, but {len(self.class_names)} names")
        return self


METADATA_KEY = "defectseg"
OPENVINO_SUFFIX, ONNX_SUFFIX = ".xml", ".onnx"
_CHUNK_BYTES = 1 << 20
_MOST_TEXT_BYTES = 1 << 24  # of a header, a description or an .xml; those of large models have 2 MB
_MOST_FIELDS = 1 << 14  # of an ONNX file; a usual one has 20, and its graph is one of them
_ONNX_GRAPH, _ONNX_METADATA = 7, 14  # field numbers of ONNX's ModelProto
_ONNX_KEY, _ONNX_VALUE = 1, 2  # and of its StringStringEntryProto
_XML_BEGIN, _XML_END = f'<{METADATA_KEY} value="', b"/>"
# The parts of ModelInfo that decide what the network computes, besides the weights, and the names of its classes.
_IDENTIFYING: dict[str, Any] = {
    "class_names": True,
    "normalization": True,
    "recipe": {"model"},
    "export": {"precision", "float_layers"},
}


@dataclass(frozen=True)
class Description:
    """The JSON of a ModelInfo in a model file, and how to read and replace the rest of the file.

    Attributes:
        file: the open file. All further reading uses this handle, so the content of a file that replaces it is never
            mixed in.
        text: the JSON.
        begin, end: the range of bytes that holds the description.
        encode: makes the bytes that replace this range from another JSON.
        table: what else of this range decides what the network computes.
        weights: a second open file, the .bin of OpenVINO; else None.
    """

    file: BinaryIO
    text: str
    begin: int
    end: int
    encode: Callable[[str], bytes]
    table: str = ""
    weights: BinaryIO | None = None

    def replaced(self, info: ModelInfo) -> Iterator[bytes]:
        """The content of the file with another description and its checksum, in chunks. Raises OSError."""
        yield from _chunks(self.file, 0, self.begin)
        body = f'{info.model_dump_json()[:-1]},"sha256":"{self.identity(info)}"'
        yield self.encode(f"{body}{_CRC_KEY}{zlib.crc32(body.encode())}}}")
        yield from _chunks(self.file, self.end, sys.maxsize)

    def identity(self, info: ModelInfo) -> str:
        """SHA-256, in hexadecimal, of the network: weights, graph, and the part of `info` that decides its answers.

        Each MiB has a hash of its own, so that several threads can share the work. Raises OSError.
        """
        # Defaults are left out, so that the identity survives when a later version adds keys.
        network = info.model_dump(mode="json", include=_IDENTIFYING, exclude_defaults=True)
        digest = hashlib.sha256(json.dumps([network, self.table], sort_keys=True).encode())
        for file, begin, end in ((self.file, 0, self.begin), (self.file, self.end, None), (self.weights, 0, None)):
            if file is not None:
                for block in _hash_blocks(file, begin, _size_bytes(file) if end is None else end):
                    digest.update(block)
        return digest.hexdigest()


_CRC_KEY = ',"crc32":'


def read_model_info(path: Path) -> ModelInfo:
    """Read the description in a model file: a bundle, an OpenVINO `.xml` with its `.bin`, or an `.onnx`.

    The whole file is compared with the checksum in it, so that neither damage nor the `.bin` of another export can
    change an answer. 60 MB take 0.04 s on two cores.

    Raises:
        ModelError: the file does not exist, is not from defectseg, is damaged, or was written by a newer version.
    """
    with open_description(path) as description:
        return _verified(description, path)


def stored_identity(path: Path) -> str:
    """The checksum that a model file states, which `read_model_info` verifies. Raises ModelError as it does."""
    with open_description(path) as description:
        return _parse(description.text, path)[1]


def write_model_info(path: Path, info: ModelInfo) -> None:
    """Replace the description in a model file of any kind, atomically. Nothing else in it changes.

    Raises:
        ModelError: as `read_model_info`.
        ResourceError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open_description(path) as old, temporary.open("wb") as file:
        _verified(old, path)
        file.writelines(old.replaced(info))


def seal_model(path: Path, info: ModelInfo, content: bytes | None = None) -> None:
    """Store a description and the checksum in a model that a library has made and that has a description already.

    Args:
        path: the file.
        info: the description.
        content: of the file; None: it is written already.

    Raises:
        ResourceError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open_description(path, content) as new, temporary.open("wb") as file:
        file.writelines(new.replaced(info))


def _verified(description: Description, path: Path) -> ModelInfo:
    info, stated = _parse(description.text, path)
    try:
        found = description.identity(info)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if found != stated:
        of_both = "" if description.weights is None else f" of it and {path.stem}.bin, which may be of another export"
        raise ModelError(f"{path}: damaged; the checksum{of_both} is wrong. Copy it again, or export or train again.")
    return info


def _parse(text: str, path: Path) -> tuple[ModelInfo, str]:
    """The description and the checksum that are stored in a model file. Raises ModelError."""
    info = parse_model_info(text, source=path)
    body, _, crc = text.rpartition(_CRC_KEY)
    if not body:
        raise ModelError(f"{path}: has no checksum, as older versions of defectseg wrote it. Export or train again.")
    if crc != f"{zlib.crc32(body.encode())}}}":
        raise ModelError(f"{path}: its description is damaged. Copy it again, or export or train again.")
    return info, str(json.loads(text).get("sha256"))


def _hash_blocks(file: BinaryIO, begin: int, end: int) -> list[bytes]:
    """SHA-256 of each MiB between two positions."""
    reading = Lock()

    def hash_block(start: int) -> bytes:
        with reading:
            file.seek(start)
            block = file.read(min(_CHUNK_BYTES, end - start))
        return hashlib.sha256(block).digest()

    with ThreadPoolExecutor(min(cores(), 4)) as pool:
        return list(pool.map(hash_block, range(begin, end, _CHUNK_BYTES)))


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
        return ModelInfo.model_validate({key: content[key] for key in content if key not in ("sha256", "crc32")})
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{source}: its description cannot be read: {str(error).splitlines()[0]}") from error


@contextmanager
def open_description(path: Path, content: bytes | None = None) -> Iterator[Description]:
    """Open a model file, or the content of one, and find its description. Raises ModelError as `read_model_info`."""
    if content is None and not path.is_file():
        raise ModelError(f"{path}: no such model file. Expected model.safetensors of defectseg train, or an export.")
    suffix = path.suffix.lower()
    weights = path.with_suffix(".bin")
    if suffix == ".bin" and path.with_suffix(OPENVINO_SUFFIX).is_file():
        raise ModelError(f"{path}: only the weights of an export. Give {path.with_suffix(OPENVINO_SUFFIX).name}.")
    find, kind = {
        OPENVINO_SUFFIX: (_find_in_openvino, "a model of OpenVINO"),
        ONNX_SUFFIX: (_find_in_onnx, "an ONNX model"),
    }.get(suffix, (_find_in_bundle, "a model file"))
    with ExitStack() as stack:
        try:
            file: BinaryIO = io.BytesIO(content) if content is not None else path.open("rb")
            found = find(stack.enter_context(file))
            if found is not None and suffix == OPENVINO_SUFFIX:
                if not weights.is_file():
                    raise ModelError(f"{path}: its weights, {weights.name}, are not beside it. Copy both files.")
                found = replace(found, weights=stack.enter_context(weights.open("rb")))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ModelError(f"{path}: not {kind}, or damaged ({error}).") from error
        if found is None:
            raise ModelError(f"{path}: holds weights, but not of defectseg. Expected a bundle of train, or an export.")
        yield found


def _find_in_bundle(file: BinaryIO) -> Description | None:
    """Find it in the header of a safetensors file: 8 bytes of length, then a JSON with metadata and tensor table."""
    size_bytes = _size_bytes(file)
    length = int.from_bytes(file.read(8), "little")
    weights_bytes = size_bytes - 8 - length
    if weights_bytes < 0:
        raise ValueError("its header is cut short")
    tensors: dict[str, dict[str, Any]] = json.loads(_read_text(file, length))
    metadata: dict[str, str] = tensors.pop("__metadata__", {})
    expected_bytes = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if weights_bytes != expected_bytes:
        raise ValueError(f"{weights_bytes} bytes of weights instead of {expected_bytes}")

    def encode(text: str) -> bytes:
        header = json.dumps({"__metadata__": {**metadata, METADATA_KEY: text}, **tensors}, separators=(",", ":"))
        padded = header.encode() + b" " * (-len(header) % 8)
        return len(padded).to_bytes(8, "little") + padded

    if METADATA_KEY not in metadata:
        return None
    return Description(file, metadata[METADATA_KEY], 0, 8 + length, encode, json.dumps(tensors, sort_keys=True))


def _find_in_openvino(file: BinaryIO) -> Description | None:
    """Find it in net/rt_info/defectseg, which OpenVINO writes at the end. In a value, XML escapes every `<`."""
    content = _read_text(file, _size_bytes(file))
    if b"<net" not in content or b"</net>" not in content or b"<!DOCTYPE" in content:  # OpenVINO never writes a type
        raise ValueError("it is no <net> without a document type")
    begin = content.rfind(_XML_BEGIN.encode(), max(0, content.rfind(b"</layers>")))
    end = content.find(_XML_END, begin) + len(_XML_END)
    if begin < 0:
        return None
    try:
        text = ElementTree.fromstring(content[begin:end].decode()).get("value", "")  # noqa: S314  # a single element
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    return Description(
        *(file, text, begin, end), lambda new: ElementTree.tostring(ElementTree.Element(METADATA_KEY, value=new))
    )


def _find_in_onnx(file: BinaryIO) -> Description | None:
    """Find it among the metadata. The graph and its weights are skipped, not read."""
    found, has_graph = None, False
    for number, begin, content, end in _protobuf_fields(file):
        has_graph |= number == _ONNX_GRAPH
        if number == _ONNX_METADATA:
            file.seek(content)
            entry = io.BytesIO(_read_text(file, end - content))
            parts = {part: entry.getvalue()[first:last] for part, _, first, last in _protobuf_fields(entry)}
            if parts.get(_ONNX_KEY) == METADATA_KEY.encode():
                found = Description(file, parts[_ONNX_VALUE].decode(), begin, end, _onnx_entry)
    if not has_graph:
        raise ValueError("no graph")
    return found


def _read_text(file: BinaryIO, length: int) -> bytes:
    """Read a text of this length in bytes. Raises ValueError if it is too long for the text of a model."""
    if length > _MOST_TEXT_BYTES:
        raise ValueError(f"{length} bytes of text; expected at most {_MOST_TEXT_BYTES}")
    return file.read(length)


def _onnx_entry(text: str) -> bytes:
    key = _protobuf_bytes(_ONNX_KEY, METADATA_KEY.encode())
    return _protobuf_bytes(_ONNX_METADATA, key + _protobuf_bytes(_ONNX_VALUE, text.encode()))


def _protobuf_fields(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """For each field of a message: its number, and the positions of its begin, content and end. No content is read.

    Source: https://protobuf.dev/programming-guides/encoding/. Raises ValueError if the message is cut short.
    """
    size, end, count = _size_bytes(file), 0, 0
    while (begin := end) < size:
        if (count := count + 1) > _MOST_FIELDS:
            raise ValueError(f"more than {_MOST_FIELDS} fields")
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
