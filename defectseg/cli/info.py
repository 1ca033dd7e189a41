"""`defectseg info`."""

import importlib.metadata
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from defectseg.cli.common import Json, Verbose, print_json, print_rows
from defectseg.machine import __version__

_PACKAGES = (
    *("torch", "segmentation-models-pytorch", "timm", "accelerate", "albumentations", "openvino", "onnxruntime"),
    *("nncf", "numpy", "opencv-python-headless", "pandas"),
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def info(
    model: Annotated[Path | None, typer.Argument(help="A model file, or the run folder of train.")] = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, devices, runtimes and CPU features; or what is in a model file."""
    content = _system() if model is None else _model(model)
    if json_output:
        print_json(content)
        return
    print_rows([[key, _text(value)] for key, value in content.items()], align_right=False)


def _system() -> dict[str, Any]:
    return {
        "defectseg": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "cpu_features": _cpu_features(),
        "devices": _devices(),
        "runtimes": ["torch"] if find_spec("torch") else [],
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _model(path: Path) -> dict[str, Any]:
    from defectseg.model.info import read_model_info
    from defectseg.model.locate import find_model

    description = read_model_info(find_model(path))
    recipe = description.recipe
    thresholds = description.thresholds
    return {
        "model": str(path),
        "network": f"{recipe.model.architecture}, {recipe.model.encoder}, {recipe.model.in_channels} input channel(s)",
        "classes": {str(number): name for number, name in enumerate(description.class_names, start=1)},
        "gate": list(thresholds.gate),
        "pixel_threshold": list(thresholds.pixel),
        "min_area_px": list(thresholds.min_area_px),
        "thresholds_chosen_by": thresholds.chosen_by,
        "trained_on_images": len(description.trained_on),
        "fold_held_out": description.fold,
        "metrics": description.metrics,
        "created": description.created,
        "export": None if description.export is None else description.export.model_dump(mode="json"),
        "versions": description.versions,
        "data_fingerprint": description.data_fingerprint,
        "recipe": recipe.model_dump(mode="json"),
    }


def _cpu_features() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    line = next((line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("flags")), "")
    flags = set(line.split())
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _devices() -> list[str]:
    if find_spec("torch") is None:
        return ["cpu"]
    from defectseg.model.devices import available_devices

    return available_devices()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
