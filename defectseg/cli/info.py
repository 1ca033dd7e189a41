"""`defectseg info`."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from defectseg.cli.options import Json, Verbose
from defectseg.cli.show import print_json
from defectseg.machine import __version__, machine_facts, package_versions

if TYPE_CHECKING:
    from defectseg.model.info import ModelInfo

_PACKAGES = (
    *("segmentation-models-pytorch", "timm", "accelerate", "albumentations", "nncf", "onnx"),
    *("numpy", "opencv-python-headless", "pandas"),
)


def info(
    model: Annotated[Path | None, Argument(help="Model file or run folder of train.", metavar="MODEL")] = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Describe this machine, or a model file.

    Shows versions, runtimes, devices and CPU features; with MODEL, its checksum, the runtime and precision that this
    machine takes for it, its network, classes, thresholds, scores and recipe.

    Example: defectseg info runs/1/model.safetensors
    """
    content = _system() if model is None else _model(model)
    if json_output:
        print_json(content)
        return
    import yaml

    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120), end="")


def _system() -> dict[str, Any]:
    facts = machine_facts()
    return {
        "defectseg": __version__,
        **{key: facts[key] for key in ("python", "system", "cpu", "cores", "cpu_flags")},
        "runtimes": {name: _runtime(name) for name in ("torch", "openvino", "onnxruntime") if find_spec(name)},
        "packages": package_versions(_PACKAGES),
    }


def _runtime(name: str) -> dict[str, Any]:
    """Version and devices of an installed runtime, or why it cannot be used here."""
    try:
        return {"devices": _devices(name), "version": str(sys.modules[name].__version__)}
    except Exception as error:  # whatever a broken installation raises when it is imported
        return {"error": f"installed, but cannot be imported: {type(error).__name__}: {error}"}


def _devices(runtime: str) -> list[str]:
    if runtime == "openvino":
        from defectseg.model.openvino_io import core

        return [f"cpu {core().get_property('CPU', 'FULL_DEVICE_NAME')}"]
    if runtime == "torch":
        from defectseg.model.devices import available_devices
    else:
        from defectseg.runtime.onnx import available_devices
    return available_devices()


def _model(path: Path) -> dict[str, Any]:
    from defectseg.model.info import read_model_info
    from defectseg.model.locate import find_model, model_identity

    model = find_model(path)
    description = read_model_info(model)
    dumped, thresholds, network = description.model_dump(mode="json"), description.thresholds, description.recipe.model
    look = description.appearance
    return {
        "model": str(path),
        "sha256": model_identity(model),
        "runs_here_in": _runtime_name(model, description),
        "network": f"{network.architecture}, {network.encoder}, {network.in_channels} input channel(s)",
        "classes": dict(enumerate(description.class_names, start=1)),
        "gate": list(thresholds.gate),
        "pixel_threshold": list(thresholds.pixel),
        "min_area_px": list(thresholds.min_area_px),
        "thresholds_chosen_by": thresholds.chosen_by,
        "trained_on_images": len(description.trained_on),
        "fold_held_out": description.fold,
        "unlike": "not judged" if look is None else f"{look.state}, by {look.images} images of {look.groups} groups",
        **{key: dumped[key] for key in ("metrics", "created", "export", "versions", "data_fingerprint", "recipe")},
    }


def _runtime_name(model: Path, description: "ModelInfo") -> str:
    from defectseg.runtime.load import runtime_name

    try:
        return runtime_name(model, description)
    except Exception as error:  # whatever a broken installation raises when it is imported
        return f"cannot run here: {error}"
