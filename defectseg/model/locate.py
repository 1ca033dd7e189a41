"""Model files that a MODEL argument names, and the identity of a model."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from defectseg.errors import ModelError
from defectseg.model.info import stored_identity

MODEL_NAME = "model.safetensors"
CHECKPOINT_NAME = "last.ckpt"  # without a model beside it, the training has not ended
FOLD_PREFIX = "fold-"  # of the run folders of the single folds, inside the folder of `train --fold all`


def as_paths(model: Path | Sequence[Path]) -> tuple[Path, ...]:
    """One model file or several, as a tuple."""
    return (model,) if isinstance(model, Path) else tuple(model)


def model_paths(argument: str | Path) -> tuple[Path, ...]:
    """The model files that a MODEL argument names: one, or several whose answers are averaged.

    Several are separated by commas, or given as a folder of run folders `fold-0`, `fold-1` and so on.

    Raises:
        ModelError: as `find_model`; or an entry between commas is empty.
    """
    text = str(argument)
    # Unlike Path.exists, os.path.exists does not raise if a list is longer than a file name may be.
    if "," not in text or os.path.exists(text):  # noqa: PTH110
        return _models_at(Path(text))
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise ModelError(f"{text}: expected model files, separated by commas, as in a.safetensors,b.safetensors.")
    return tuple(model for entry in entries for model in _models_at(Path(entry)))


def _models_at(path: Path) -> tuple[Path, ...]:
    """The model of a run folder, or the models of its folds, ordered by number."""
    numbered = ((folder.name.removeprefix(FOLD_PREFIX), folder) for folder in path.glob(f"{FOLD_PREFIX}*"))
    folds = [(int(number), folder) for number, folder in numbered if number.isdecimal()]
    if not folds or (path / MODEL_NAME).is_file() or (path / CHECKPOINT_NAME).exists():
        return (find_model(path),)
    return tuple(find_model(folder) for _, folder in sorted(folds))


def find_model(path: Path) -> Path:
    """The model file at a path: the path itself, or the model in a run folder of `train`.

    Raises:
        ModelError: the training of the run folder has not ended, or the folder holds no model.
    """
    if not path.is_dir():
        return path
    model = path / MODEL_NAME
    if model.is_file():
        return model
    if (path / CHECKPOINT_NAME).exists():
        raise ModelError(f"{path}: the training has not ended. Resume it with defectseg train, and use its model then.")
    raise ModelError(f"{path}: a folder without {MODEL_NAME}. Give the model file that defectseg train wrote.")


def model_identity(models: Path | Sequence[Path]) -> str:
    """SHA-256, in hexadecimal, that identifies a model; for several, over their hashes.

    It covers the weights (with OpenVINO those of the `.bin`), the graph, and the part of the description that decides
    what the network computes: architecture, normalisation, class names and precision. Settings that `predict` applies
    afterwards (thresholds, tiles, views) are left out, so the identity survives `write_model_info`.

    It is the checksum that the file states. Loading a model compares the file with it; this only reads it.

    Raises:
        ModelError: as `read_model_info`.
    """
    paths = as_paths(models)
    if len(paths) == 1:
        return stored_identity(paths[0])
    return hashlib.sha256("".join(map(stored_identity, paths)).encode()).hexdigest()
