"""Thresholds as a JSON file, so that one model's can be given to another."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from defectseg.errors import ConfigError, DataError
from defectseg.files import write_text
from defectseg.model.info import ONNX_SUFFIX, OPENVINO_SUFFIX, Thresholds, read_model_info

_MODEL_SUFFIXES = (".safetensors", OPENVINO_SUFFIX, ONNX_SUFFIX)
_EXPECTED = "Expected a model, or a file of thresholds that defectseg tune wrote."


def write_thresholds(path: Path, class_names: Sequence[str], thresholds: Thresholds) -> None:
    """Write thresholds and the classes that they are for. Raises ResourceError if the file cannot be written."""
    content = {"class_names": list(class_names), "thresholds": thresholds.model_dump(mode="json")}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_thresholds(path: Path, class_names: Sequence[str]) -> Thresholds:
    """The thresholds in a file of `write_thresholds`, or those of a model.

    Args:
        path: the file.
        class_names: the classes to give thresholds of, in this order; they are matched by name.

    Raises:
        DataError, ModelError: the file is missing or cannot be read.
        ConfigError: it is something else, or lacks one of the classes.
    """
    names, thresholds = _read_model(path) if path.suffix.lower() in _MODEL_SUFFIXES else _read_json(path)
    if any(names.count(name) != 1 for name in class_names):
        raise ConfigError(f"{path}: thresholds for the classes {', '.join(names)}; expected {', '.join(class_names)}.")
    places = [names.index(name) for name in class_names]
    columns = {key: getattr(thresholds, key) for key in ("gate", "pixel", "min_area_px")}
    return thresholds.model_copy(update={key: tuple(column[p] for p in places) for key, column in columns.items()})


def _read_model(path: Path) -> tuple[tuple[str, ...], Thresholds]:
    info = read_model_info(path)
    return info.class_names, info.thresholds


def _read_json(path: Path) -> tuple[tuple[str, ...], Thresholds]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). {_EXPECTED}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}). {_EXPECTED}") from error
    names = _names(path, content)
    try:
        thresholds = Thresholds.model_validate(content["thresholds"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("thresholds", *problem["loc"])))
        raise ConfigError(f"{path}: {where}: {problem['msg'].removeprefix('Value error, ')}. {_EXPECTED}") from error
    if len(thresholds.gate) != len(names):
        raise ConfigError(f"{path}: thresholds for {len(thresholds.gate)} classes, but {len(names)} class names.")
    return names, thresholds


def _names(path: Path, content: Any) -> tuple[str, ...]:
    """The class names in the content of a file that has the right keys."""
    keys = {"class_names", "thresholds"}
    if not isinstance(content, dict) or set(content) != keys:
        raise ConfigError(f"{path}: expected the keys class_names and thresholds. {_EXPECTED}")
    names = content["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: class_names: expected a list of names. {_EXPECTED}")
    return tuple(names)
