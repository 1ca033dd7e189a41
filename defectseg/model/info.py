"""The description inside a model file, read without torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from xml.parsers import expat

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from defectseg.config import Frozen, PositiveFloat, Recipe, Share
from defectseg.errors import MissingExtraError, ModelError

FORMAT_VERSION = 1


class Normalization(Frozen):
    """Grey levels g of 0..255 enter the network as (g / 255 - mean) / std."""

    mean: float
    std: PositiveFloat


class Thresholds(Frozen):
    """One value for each class, in the order of the classes.

    A class counts in an image where its gate is at least `gate`; then a pixel where its probability is at least
    `pixel`; then a region where its area is at least `min_area_px`.
    """

    gate: tuple[Share, ...]
    pixel: tuple[Share, ...]
    min_area_px: tuple[Annotated[int, Field(ge=0)], ...]
    chosen_by: str = "default"

    @classmethod
    def default(cls, num_classes: int) -> Self:
        """Gate and pixel threshold one half, no minimum area."""
        return cls(gate=(0.5,) * num_classes, pixel=(0.5,) * num_classes, min_area_px=(0,) * num_classes)

    @model_validator(mode="after")
    def _one_for_each_class(self) -> Self:
        if not len(self.gate) == len(self.pixel) == len(self.min_area_px):
            raise ValueError("gate, pixel and min_area_px must have one value for each class")
        return self


class ExportInfo(Frozen):
    """How an exported model file was made, and how it compares with the network in PyTorch.

    Attributes:
        format: openvino or onnx.
        precision: of the weights: fp32 or int8.
        float_layers: what computes with the weights that are not integers: auto, whatever is quickest on the
            processor, or f32 where less costs too much.
        size_hw: the only size of image that it takes, or None for any.
        source_sha256: of the bundle that it was made from.
        parity: figures of the comparison, by name.
    """

    format: Literal["openvino", "onnx"]
    precision: Literal["fp32", "int8"] = "fp32"
    float_layers: Literal["auto", "f32"] = "auto"
    size_hw: tuple[int, int] | None = None
    source_sha256: str = ""
    parity: dict[str, float] = Field(default_factory=dict)


class ModelInfo(Frozen):
    """What a model file says of itself: one JSON in the header of a bundle or in the metadata of an export."""

    format_version: int = FORMAT_VERSION
    class_names: tuple[str, ...]
    normalization: Normalization
    thresholds: Thresholds
    recipe: Recipe
    fold: int | None = None
    data_fingerprint: str = ""
    trained_on: tuple[str, ...] = Field((), description="digest of each training image, see image_digest")
    metrics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    export: ExportInfo | None = None

    @property
    def num_classes(self) -> int:
        """Number of kinds of defect."""
        return len(self.class_names)

    def indices_of(self, class_names: Sequence[str]) -> list[int]:
        """Where each of these classes stands among the model's, from 0."""
        return [self.class_names.index(name) for name in class_names]

    @model_validator(mode="after")
    def _thresholds_fit_classes(self) -> Self:
        if len(self.thresholds.pixel) != len(self.class_names):
            raise ValueError(
                f"thresholds for {len(self.thresholds.pixel)} classes, but {len(self.class_names)} class names"
            )
        return self


METADATA_KEY = "defectseg"
OPENVINO_SUFFIX, ONNX_SUFFIX = ".xml", ".onnx"


def read_model_info(path: Path) -> ModelInfo:
    """What a model file says of itself: a bundle, an OpenVINO `.xml` with its `.bin`, or an `.onnx`.

    Raises:
        ModelError: no such file, not of defectseg, damaged, or written by a newer version.
        MissingExtraError: an `.onnx`, and neither onnx nor onnxruntime is installed.
    """
    if not path.is_file():
        raise ModelError(
            f"{path}: no such model file. Expected the model.safetensors that defectseg train writes, or an export."
        )
    suffix = path.suffix.lower()
    if suffix == ".bin" and path.with_suffix(OPENVINO_SUFFIX).is_file():
        raise ModelError(f"{path}: only the weights of an export. Give {path.with_suffix(OPENVINO_SUFFIX).name}.")
    read = {OPENVINO_SUFFIX: _read_openvino, ONNX_SUFFIX: _read_onnx}.get(suffix, _read_bundle)
    try:
        text = read(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if text is None:
        raise ModelError(
            f"{path}: holds weights, but was not written by defectseg. Expected a bundle of its train, or an export."
        )
    return parse_model_info(text, source=path)


def parse_model_info(text: str, *, source: Path) -> ModelInfo:
    """Read the JSON of a description. Raises ModelError naming `source`."""
    try:
        content = json.loads(text)
        version = content.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ModelError(
                f"{source}: format {version}; this defectseg reads up to {FORMAT_VERSION}. Upgrade defectseg."
            )
        return ModelInfo.model_validate(content)
    except (ValidationError, ValueError, AttributeError) as error:
        raise ModelError(f"{source}: its description cannot be read: {str(error).splitlines()[0]}") from error


def _read_bundle(path: Path) -> str | None:
    try:
        with safe_open(path, framework="np") as file:
            text: str | None = (file.metadata() or {}).get(METADATA_KEY)
            return text
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a model file, or damaged ({error}).") from error


def _read_openvino(path: Path) -> str | None:
    reader = _NetReader()
    try:
        with path.open("rb") as file:
            reader.parse(file)
    except (expat.ExpatError, ValueError) as error:
        raise ModelError(f"{path}: not a model of OpenVINO, or damaged ({error}).") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path}: its weights, {weights.name}, are not beside it. Copy both files.")
    size_bytes = weights.stat().st_size
    if size_bytes < reader.weights_bytes:
        raise ModelError(
            f"{weights}: {size_bytes} bytes instead of {reader.weights_bytes}; damaged, or of another {path.name}. "
            "Copy both files again."
        )
    return reader.text


class _NetReader:
    """Reads what is wanted of an `.xml` of OpenVINO: a few MB in some hundredths of a second.

    OpenVINO writes no document type, the only place that can define entities; a file with one is refused.

    Attributes:
        text: the attribute of net/rt_info/defectseg, or None.
        weights_bytes: how long the `.bin` has to be at least.
    """

    def __init__(self) -> None:
        self.text: str | None = None
        self.weights_bytes = 0
        self._open: list[str] = []

    def parse(self, file: Any) -> None:
        """Raises ExpatError or ValueError for anything but a whole `.xml` of OpenVINO."""
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.ParseFile(file)

    def _refuse(self, *declaration: object) -> None:
        raise ValueError("it has a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name != "net":
            raise ValueError(f"it begins with <{name}>, not with <net>")
        self._open.append(name)
        if name == METADATA_KEY and self._open == ["net", "rt_info", METADATA_KEY]:
            self.text = attributes.get("value")
        elif name == "data" and "offset" in attributes and "size" in attributes:
            self.weights_bytes = max(self.weights_bytes, int(attributes["offset"]) + int(attributes["size"]))

    def _end(self, name: str) -> None:
        self._open.pop()


def _read_onnx(path: Path) -> str | None:
    for read in (_read_by_onnx, _read_by_onnxruntime):
        try:
            metadata = read(path)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # both raise exceptions of their own that have no common base
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{path}: not an ONNX model, or damaged ({reason}).") from error
        return metadata.get(METADATA_KEY)
    raise MissingExtraError(f"{path}: reading an ONNX model", "onnx")


def _read_by_onnx(path: Path) -> dict[str, str]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    if not model.HasField("graph"):
        raise ValueError("no graph")
    return {entry.key: entry.value for entry in model.metadata_props}


def _read_by_onnxruntime(path: Path) -> dict[str, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)
