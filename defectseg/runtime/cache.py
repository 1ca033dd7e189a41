"""Bundles converted for a runtime, kept in the user's cache folder, so that only the first start needs torch.

A converted model is kept under the identity of its bundle, so that it is made once for the same weights and network.
The description inside it is that of the bundle when it was converted: thresholds are read from the bundle itself.
"""

import atexit
import functools
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from defectseg.errors import MissingExtraError, ModelError, ResourceError
from defectseg.files import TEMPORARY_PREFIX, file_sha256, resource_errors
from defectseg.machine import __version__
from defectseg.model.locate import model_identity

if TYPE_CHECKING:
    import openvino

    from defectseg.runtime.openvino import Models

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "DEFECTSEG_CACHE_DIR"
KEPT_ENTRIES = 20
_CONVERSION = 3  # to be raised when model/graph.py computes something else from the same bundle
_CHECKSUMS = "checksums"
PATIENCE_S = 600.0  # for another process that converts
_XML, _ONNX, _ONE_SIZE_ONLY = "model.xml", "model.onnx", "one-size-only"


def cache_folder() -> Path:
    """Where converted models are kept: DEFECTSEG_CACHE_DIR, or the system's place for caches of the user."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    root = Path(chosen) if chosen else platformdirs.user_cache_path("defectseg", appauthor=False)
    return root / "models"


def openvino_model(bundle: Path) -> "openvino.Model | Models":
    """The bundle as a model of OpenVINO that takes any size, or, of a network that cannot, a maker of models for one.

    Raises:
        ModelError: the bundle cannot be used.
        MissingExtraError: it has to be converted, and torch is not installed.
    """
    model = _openvino_model(bundle, None)
    return functools.partial(_openvino_model_for, bundle) if model is None else model


def _openvino_model_for(bundle: Path, size_hw: tuple[int, int]) -> "openvino.Model":
    model = _openvino_model(bundle, size_hw)
    assert model is not None
    return model


def _openvino_model(bundle: Path, size_hw: tuple[int, int] | None) -> "openvino.Model | None":
    """None where the network cannot be converted for all sizes at once."""
    import openvino

    from defectseg.model.openvino_io import read_model

    form = f"openvino {openvino.__version__}" + ("" if size_hw is None else f" {size_hw[0]}x{size_hw[1]}")
    folder = _converted(bundle, form, functools.partial(_write_openvino, bundle, size_hw))
    return None if (folder / _ONE_SIZE_ONLY).exists() else read_model(folder / _XML)


def _write_openvino(bundle: Path, size_hw: tuple[int, int] | None, folder: Path) -> None:
    with _train_extra(bundle):
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import takes_any_size, to_openvino
    from defectseg.model.openvino_io import save_model

    network, info = load_bundle(bundle)
    model = to_openvino(network, info, size_hw=size_hw)
    if size_hw is None and not takes_any_size(model, network):
        (folder / _ONE_SIZE_ONLY).touch()
    else:
        save_model(model, folder / _XML)


def onnx_model(bundle: Path) -> Path:
    """The bundle as an ONNX file. Raises as openvino_model does."""
    return _converted(bundle, "onnx", functools.partial(_write_onnx, bundle)) / _ONNX


def _write_onnx(bundle: Path, folder: Path) -> None:
    with _train_extra(bundle):
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import to_onnx
    try:
        to_onnx(*load_bundle(bundle), folder / _ONNX)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{bundle}: conversion to ONNX", "onnx") from error


@contextmanager
def _train_extra(bundle: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        what = f"{bundle}: the first use of a bundle, which has to be converted (an exported model has not),"
        raise MissingExtraError(what, "train") from error


def _converted(bundle: Path, form: str, write: Callable[[Path], None]) -> Path:
    """The folder of a converted bundle: in the cache, or, where that cannot be written to, for this process alone.

    Args:
        bundle: the bundle.
        form: what it is converted to, with the version of whatever else decides the content.
        write: converts it into an empty folder.
    """
    root = cache_folder()
    identity = model_identity(bundle)
    parts = (identity, __version__, str(_CONVERSION), form)
    entry = root / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    if _is_whole(entry):
        return entry
    try:
        with _locked(root):
            if not _is_whole(entry):  # or another process made it meanwhile
                log.info("converting %s for this runtime; it is kept, so that later starts are quick", bundle)
                _make(entry, write)
                if model_identity(bundle) != identity:
                    shutil.rmtree(entry)
                    raise ModelError(f"{bundle}: was replaced while it was converted. Run the same command again.")
                _prune(root)
        return entry
    except (OSError, ResourceError, Timeout) as error:
        log.warning(
            "%s: converted models cannot be kept there (%s), so every start converts anew. Set %s to a folder that "
            "can be written to.",
            *(root, str(error).splitlines()[0] if str(error) else type(error).__name__, FOLDER_VARIABLE),
        )
    folder = Path(tempfile.mkdtemp(prefix="defectseg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with resource_errors(folder):
        write(folder)
    return folder


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the cache alone. Raises OSError or Timeout."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock").acquire(timeout=PATIENCE_S):
        yield


def _make(entry: Path, write: Callable[[Path], None]) -> None:
    """Fill an entry of the cache, whole or not at all."""
    temporary = entry.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        write(temporary)
        lines = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / _CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        if entry.exists():
            shutil.rmtree(entry)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prune(root: Path) -> None:
    """Remove all but the newest entries, and what interrupted processes left; only under the lock."""
    with suppress(OSError):
        folders = [path for path in root.iterdir() if path.is_dir()]
        entries = [path for path in folders if not path.name.startswith(TEMPORARY_PREFIX)]
        newest = sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[:KEPT_ENTRIES]
        for folder in set(folders) - set(newest):
            shutil.rmtree(folder, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    """True where every file of an entry is what was written. It then counts as used now."""
    with suppress(OSError):  # the folder may be readable only
        os.utime(entry)
    try:
        lines = (entry / _CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return bool(sums) and all(file_sha256(entry / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False
