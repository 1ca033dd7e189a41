"""From a MODEL argument to model files, and the one identity of a model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from defectseg.errors import ModelError
from defectseg.files import file_sha256
from defectseg.model.info import OPENVINO_SUFFIX

MODEL_NAME = "model.safetensors"


FOLD_PREFIX = "fold-"  # of the run folders of the single folds, inside the folder of `train --fold all`


def as_paths(model: Path | Sequence[Path]) -> tuple[Path, ...]:
    """The model files of a request, which may name one or several."""
    return (model,) if isinstance(model, Path) else tuple(model)


def model_paths(argument: str | Path) -> tuple[Path, ...]:
    """The model files that MODEL means: see find_model, and besides, several whose answers are averaged.

    Several are written with commas between them, or are a folder of run folders `fold-0`, `fold-1` and so on.

    Raises:
        ModelError: see find_model; or there is nothing before, after or between commas.
    """
    text = str(argument)
    if "," not in text or _exists(Path(text)):
        return _models_at(Path(text))
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise ModelError(
            f"{text}: expected model files with one comma between each two, as in a.safetensors,b.safetensors."
        )
    return tuple(model for entry in entries for model in _models_at(Path(entry)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a list may be too long for the name of a file
        return False


def _models_at(path: Path) -> tuple[Path, ...]:
    """The model of a run folder, or those of all its folds, by their number."""
    if (path / MODEL_NAME).is_file() or (path / "last.ckpt").exists():
        return (find_model(path),)
    numbered = {
        int(number): folder
        for folder in path.glob(f"{FOLD_PREFIX}*")
        if (number := folder.name.removeprefix(FOLD_PREFIX)).isdecimal()
    }
    return tuple(find_model(numbered[number]) for number in sorted(numbered)) or (find_model(path),)


def find_model(path: Path) -> Path:
    """The model file that a path means: itself, or the one in a run folder of `train`.

    Raises:
        ModelError: a run folder whose training has not ended, or a folder without a model.
    """
    if not path.is_dir():
        return path
    model = path / MODEL_NAME
    if model.is_file():
        return model
    if (path / "last.ckpt").exists():
        raise ModelError(
            f"{path}: this training run has not ended. Continue it with: defectseg train --resume --out {path}"
        )
    raise ModelError(f"{path}: a folder without {MODEL_NAME}. Give the model file that defectseg train wrote.")


def model_identity(models: Path | Sequence[Path]) -> str:
    """SHA-256, in hexadecimal, of a model file, an OpenVINO model with its `.bin`; of several, over theirs."""
    paths = as_paths(models)
    if len(paths) != 1:
        return hashlib.sha256("".join(map(model_identity, paths)).encode()).hexdigest()
    (path,) = paths
    if path.suffix.lower() != OPENVINO_SUFFIX:
        return file_sha256(path)
    return hashlib.sha256((file_sha256(path) + file_sha256(path.with_suffix(".bin"))).encode()).hexdigest()
