"""Bundles converted for a runtime, kept in the user's cache folder, so that only the first start needs torch."""

import functools
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from defectseg.errors import MissingExtraError, ModelError
from defectseg.files import TEMPORARY_PREFIX
from defectseg.machine import __version__

if TYPE_CHECKING:
    import openvino

    from defectseg.runtime.openvino import Models

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "DEFECTSEG_CACHE_DIR"
KEPT_ENTRIES = 20
_CONVERSION = 3  # to be raised when export.py computes something else from the same bundle
_CHECKSUMS = "checksums"
_PATIENCE_S = 600.0  # for another process that converts
_XML, _ONNX, _FIXED = "model.xml", "model.onnx", "one-size-only"

Model = TypeVar("Model")


@dataclass(frozen=True)
class _Form(Generic[Model]):
    """A kind of converted model.

    Attributes:
        name: with the version of whatever else decides the content.
        convert: makes it from a bundle.
        save: writes it into an empty folder.
        load: reads what `save` wrote.
    """

    name: str
    convert: Callable[[Path], Model]
    save: Callable[[Model, Path], None]
    load: Callable[[Path], Model]


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
    model = _cached(bundle, _openvino_form(None))
    return functools.partial(_openvino_model_for, bundle) if model is None else model


def _openvino_model_for(bundle: Path, size_hw: tuple[int, int]) -> "openvino.Model":
    model = _cached(bundle, _openvino_form(size_hw))
    assert model is not None
    return model


def onnx_model(bundle: Path) -> bytes:
    """The bundle as the content of an ONNX file. Raises as openvino_model does."""
    return _cached(bundle, _Form("onnx", _convert_to_onnx, _save_onnx, _load_onnx))


def _openvino_form(size_hw: tuple[int, int] | None) -> "_Form[openvino.Model | None]":
    import openvino

    size = "" if size_hw is None else f" {size_hw[0]}x{size_hw[1]}"
    convert = functools.partial(_convert_to_openvino, size_hw=size_hw)
    return _Form(f"openvino {openvino.__version__}{size}", convert, _save_openvino, _load_openvino)


def _convert_to_openvino(bundle: Path, *, size_hw: tuple[int, int] | None) -> "openvino.Model | None":
    """None where the network cannot be converted for all sizes at once."""
    with _train_extra(bundle):
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import takes_any_size, to_openvino
    network, info = load_bundle(bundle)
    if size_hw is not None:
        return to_openvino(network, info, size_hw=size_hw)
    model = to_openvino(network, info)
    return model if takes_any_size(model, network) else None


def _save_openvino(model: "openvino.Model | None", folder: Path) -> None:
    from defectseg.model.openvino_io import save_model

    if model is None:
        (folder / _FIXED).touch()
    else:
        save_model(model, folder / _XML)


def _load_openvino(folder: Path) -> "openvino.Model | None":
    from defectseg.model.openvino_io import read_model

    return None if (folder / _FIXED).exists() else read_model(folder / _XML)


def _convert_to_onnx(bundle: Path) -> bytes:
    with _train_extra(bundle):
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import to_onnx_bytes
    try:
        return to_onnx_bytes(*load_bundle(bundle))
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{bundle}: conversion to ONNX", "onnx") from error


def _save_onnx(content: bytes, folder: Path) -> None:
    (folder / _ONNX).write_bytes(content)


def _load_onnx(folder: Path) -> bytes:
    return (folder / _ONNX).read_bytes()


@contextmanager
def _train_extra(bundle: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        what = f"{bundle}: the first use of a bundle, which has to be converted (an exported model has not),"
        raise MissingExtraError(what, "train") from error


def _cached(bundle: Path, form: _Form[Model]) -> Model:
    """The converted bundle, from the cache if it is there whole; else it is made, and kept if that is possible."""
    root = cache_folder()
    entry = root / _key(bundle, form.name)
    if _is_whole(entry):
        with suppress(ModelError, OSError):
            return _use(entry, form)
    with _locked(root) as is_ours:
        if is_ours and _is_whole(entry):  # another process made it meanwhile
            with suppress(ModelError, OSError):
                return _use(entry, form)
        log.info("converting %s for this runtime; it is kept, so that later starts are quick", bundle)
        model = form.convert(bundle)
        if is_ours:
            _keep(entry, form, model)
    return model


def _key(bundle: Path, form: str) -> str:
    try:
        with bundle.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{bundle}: cannot be read ({error.strerror or error}).") from error
    parts = (sha256, __version__, str(_CONVERSION), form)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _use(entry: Path, form: _Form[Model]) -> Model:
    with suppress(OSError):  # the folder may be readable only
        os.utime(entry)
    return form.load(entry)


@contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Hold the cache alone; gives False, with a warning, where it cannot be written to."""
    lock = FileLock(root / ".lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE_S)
    except (OSError, Timeout) as error:
        _warn(root, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _keep(entry: Path, form: _Form[Model], model: Model) -> None:
    """Put a model into the cache as a whole folder, and drop what was not used for longest."""
    temporary = entry.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        form.save(model, temporary)
        lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / _CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        if entry.exists():
            shutil.rmtree(entry)
        temporary.rename(entry)
    except (OSError, RuntimeError) as error:  # OpenVINO tells of a full disk by a RuntimeError
        _warn(entry.parent, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(entry.parent)


def _prune(root: Path) -> None:
    """Remove all but the newest entries, and what interrupted processes left; only under the lock."""
    with suppress(OSError):
        folders = [path for path in root.iterdir() if path.is_dir()]
        entries = [path for path in folders if not path.name.startswith(TEMPORARY_PREFIX)]
        newest = sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[:KEPT_ENTRIES]
        for folder in set(folders) - set(newest):
            shutil.rmtree(folder, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    """True where every file of an entry is what was written."""
    try:
        lines = (entry / _CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums: dict[str, Any] = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return bool(sums) and all(_sha256(entry / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warn(root: Path, error: Exception) -> None:
    log.warning(
        "%s: converted models cannot be kept there (%s), so every start converts anew. Set %s to a folder that can "
        "be written to.",
        *(root, str(error).splitlines()[0] if str(error) else type(error).__name__, FOLDER_VARIABLE),
    )
