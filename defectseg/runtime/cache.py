"""The cache of converted bundles in the user's cache folder, so that only the first start needs torch.

A converted model is stored under the identity of its bundle, so bundles with the same weights and network share it.
Thresholds are read from the bundle, since the converted model has those of the bundle that was converted first.
"""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from defectseg.errors import ModelError, ResourceError, require_extra
from defectseg.files import TEMPORARY_PREFIX, new_folder, resource_errors, write_result
from defectseg.machine import __version__
from defectseg.model.info import read_model_info, seal_model
from defectseg.model.locate import model_identity

if TYPE_CHECKING:
    import openvino

    from defectseg.runtime.openvino import Models

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "DEFECTSEG_CACHE_DIR"
KEPT_ENTRIES = 20
_CONVERSION = 4  # raise it when model/graph.py computes something else from the same bundle
PATIENCE_S = 600.0  # how long to wait for another process that is converting
_CRC_BYTES = 4
_XML, _ONNX, _ONE_SIZE_ONLY = "model.xml", "model.onnx", "one-size-only"


def cache_folder() -> Path:
    """The folder of converted models: in DEFECTSEG_CACHE_DIR, or else in the system's cache folder for this user."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    root = Path(chosen) if chosen else platformdirs.user_cache_path("defectseg", appauthor=False)
    return root / "models"


def openvino_model(bundle: Path) -> "openvino.Model | Models":
    """The bundle as an OpenVINO model.

    Returns:
        a model that takes any image size; or, if the network cannot be converted to one, a function that gives the
        model for one size.

    Raises:
        ModelError: the bundle cannot be used.
        MissingExtraError: the bundle is not in the cache, and torch is not installed.
    """
    from defectseg.model.openvino_io import read_model

    folder = _openvino_folder(bundle, None)
    if (folder / _ONE_SIZE_ONLY).exists():
        return lambda size_hw: read_model(_checked(_openvino_folder(bundle, size_hw) / _XML))
    return read_model(_checked(folder / _XML))


def _checked(path: Path) -> Path:
    """A converted model that is compared with its checksum. A damaged one is deleted; raises ModelError."""
    folder = path.parent
    try:
        read_model_info(path)
        return path
    except ModelError as error:
        shutil.rmtree(folder, ignore_errors=True)
        remedy = "could not be deleted. Delete it, and run" if folder.exists() else "is deleted. Run"
        raise ModelError(f"{folder}: this converted model was damaged and {remedy} the same command again.") from error


def _openvino_folder(bundle: Path, size_hw: tuple[int, int] | None) -> Path:
    """The folder of the converted model. It only holds a mark if no model can take any size."""
    import openvino

    def write(folder: Path) -> None:
        _require_torch(bundle)
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import takes_any_size, to_openvino
        from defectseg.model.openvino_io import save_model

        network, info = load_bundle(bundle)
        model = to_openvino(network, info, size_hw=size_hw)
        if size_hw is None and not takes_any_size(model, network):
            (folder / _ONE_SIZE_ONLY).touch()
        else:
            save_model(model, folder / _XML)
            seal_model(folder / _XML, info)

    return _converted(bundle, f"openvino {openvino.__version__} {size_hw}", write)


def onnx_model(bundle: Path) -> Path:
    """The bundle as an ONNX file. Raises as `openvino_model`."""

    def write(folder: Path) -> None:
        _require_torch(bundle)
        require_extra(f"{bundle}: conversion to ONNX", "onnx", "onnx", "onnxscript")
        from defectseg.model.bundle import load_bundle
        from defectseg.model.graph import to_onnx

        to_onnx(*load_bundle(bundle), folder / _ONNX)

    return _checked(_converted(bundle, "onnx", write) / _ONNX)


class CompiledModels:
    """What OpenVINO compiled of one model, in the cache, since compiling takes half a second for an int8 model.

    Only the first that this process compiles is kept: images of many sizes would fill the disk and slow the run down.

    Args:
        identity: `model_identity` of the model.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._is_kept = False

    def read(self, form: str) -> bytes | None:
        """The compiled model, or None if there is none or it is damaged.

        Args:
            form: all that it depends on besides the model: versions, processor, options, and shape of the images.
        """
        path = self._path(form)
        with suppress(OSError):
            os.utime(path)  # marks it as used
            with path.open("rb") as file:
                checksum, content = file.read(_CRC_BYTES), file.read()
            if checksum == zlib.crc32(content).to_bytes(_CRC_BYTES):
                return content
        return None

    def keep(self, form: str, export: Callable[[], bytes]) -> None:
        """Write what `export` makes of a compiled model, if it is the first. An unwritable cache is left alone."""
        if not self._is_kept:
            self._is_kept = True
            path = self._path(form)
            content = export()
            with suppress(OSError, ResourceError):
                write_result(path, zlib.crc32(content).to_bytes(_CRC_BYTES) + content)
                for entry in _too_many(path.parent.iterdir()):
                    entry.unlink()

    def _path(self, form: str) -> Path:
        name = hashlib.sha256(f"{self._identity}\n{__version__}\n{form}".encode()).hexdigest()[:32]
        return cache_folder().with_name("compiled") / name


def _require_torch(bundle: Path) -> None:
    what = f"{bundle}: the first use of a bundle, which has to be converted (an exported model has not),"
    require_extra(what, "train", "torch", "segmentation_models_pytorch")


def _converted(bundle: Path, form: str, write: Callable[[Path], None]) -> Path:
    """The folder of a converted bundle: in the cache or, if that is not writable, a folder for this process alone.

    Args:
        bundle: the bundle.
        form: the kind of model, with the versions that decide its content.
        write: converts the bundle into an empty folder.
    """
    from filelock import FileLock, Timeout

    root = cache_folder()
    identity = model_identity(bundle)
    parts = (identity, __version__, str(_CONVERSION), form)
    entry = root / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    with suppress(OSError):  # there is no such entry, or the cache is read-only
        os.utime(entry)  # marks it as used
    if entry.exists():
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock").acquire(timeout=PATIENCE_S):
            if not entry.exists():  # another process may have made it meanwhile
                log.info("converting %s for this runtime; it is kept, so that later starts are quick", bundle)
                with new_folder(entry, last="") as folder:
                    write(folder)
                    if model_identity(bundle) != identity:
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


def _prune(root: Path) -> None:
    """Remove all but the newest entries, and leftovers of interrupted processes. Call it only under the lock."""
    with suppress(OSError):
        folders = [path for path in root.iterdir() if path.is_dir()]
        entries = [path for path in folders if not path.name.startswith(TEMPORARY_PREFIX)]
        for folder in {*folders}.difference(entries).union(_too_many(entries)):
            shutil.rmtree(folder, ignore_errors=True)


def _too_many(entries: Iterable[Path]) -> list[Path]:
    """All but the newest entries."""
    return sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_ENTRIES:]
