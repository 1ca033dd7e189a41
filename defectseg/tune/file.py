"""Thresholds as a JSON file, so that the thresholds of one model can be given to another."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from defectseg.config import Frozen
from defectseg.errors import ConfigError
from defectseg.files import write_text
from defectseg.model.info import ONNX_SUFFIX, OPENVINO_SUFFIX, Thresholds, read_model_info
from defectseg.text import read_json

_MODEL_SUFFIXES = (".safetensors", OPENVINO_SUFFIX, ONNX_SUFFIX)
_EXPECTED = "Expected a model, or a file of thresholds that defectseg tune wrote."


class _Content(Frozen):
    class_names: tuple[str, ...]
    thresholds: Thresholds


def write_thresholds(path: Path, class_names: Sequence[str], thresholds: Thresholds) -> None:
    """Write thresholds and the names of their classes. Raises ResourceError if the file cannot be written."""
    content = _Content(class_names=tuple(class_names), thresholds=thresholds)
    write_text(path, content.model_dump_json(indent=2) + "\n")


def read_thresholds(path: Path, class_names: Sequence[str]) -> Thresholds:
    """The thresholds in a file of `write_thresholds`, or those of a model.

    Args:
        path: the file.
        class_names: the classes to give thresholds of, in this order; they are matched by name.

    Raises:
        DataError, ModelError: the file is missing or cannot be read.
        ConfigError: it is something else, or lacks one of the classes.
    """
    content = read_model_info(path) if path.suffix.lower() in _MODEL_SUFFIXES else _read_json(path)
    names, thresholds = content.class_names, content.thresholds
    if any(names.count(name) != 1 for name in class_names):
        raise ConfigError(f"{path}: thresholds for the classes {', '.join(names)}; expected {', '.join(class_names)}.")
    places = [names.index(name) for name in class_names]
    columns = {key: getattr(thresholds, key) for key in ("gate", "pixel", "min_area_px")}
    return thresholds.model_copy(update={key: tuple(column[p] for p in places) for key, column in columns.items()})


def _read_json(path: Path) -> _Content:
    try:
        content = _Content.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{': '.join(filter(None, (str(path), where, what)))}. {_EXPECTED}") from error
    thresholds, names = len(content.thresholds.gate), len(content.class_names)
    if thresholds != names:
        raise ConfigError(f"{path}: thresholds for {thresholds} classes, but {names} class names.")
    return content
