"""The description inside a model file, read without torch."""

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from defectseg.config import FORMAT_VERSION, ModelInfo
from defectseg.errors import ModelError

METADATA_KEY = "defectseg"


def read_model_info(path: Path) -> ModelInfo:
    """What a bundle says of itself.

    Raises:
        ModelError: no such file, not a bundle of defectseg, or written by a newer version of it.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such model file. Expected the model.safetensors that defectseg train writes.")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a model file, or damaged ({error}).") from error
    if text is None:
        raise ModelError(f"{path}: holds weights, but was not written by defectseg. Expected a bundle of its train.")
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
