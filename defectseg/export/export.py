"""Export of a bundle to an OpenVINO or ONNX file, which is written only if it agrees with PyTorch."""

import io
import logging
import os
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from defectseg.config import SizeHW, changed
from defectseg.errors import DefectsegError, ModelError, OutputExistsError, UsageError
from defectseg.export import int8 as quantize
from defectseg.export.parity import MIN_DICE, ODD_HW, Comparison, check, compare, fit, real_images, synthetic_images
from defectseg.files import resource_errors, work_folder
from defectseg.model.info import ONNX_SUFFIX, OPENVINO_SUFFIX, ExportInfo, ModelInfo, read_model_info, seal_model
from defectseg.model.locate import as_paths, model_identity
from defectseg.runtime.base import Runtime

if TYPE_CHECKING:
    from defectseg.runtime.openvino import Precision

log = logging.getLogger(__name__)

SUFFIXES = {"openvino": OPENVINO_SUFFIX, "onnx": ONNX_SUFFIX}
OPSETS = range(18, 24)  # that PyTorch writes without a conversion, which would fail for some networks


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        info: the description in the file.
        exact, shipped: the comparison with PyTorch in fp32, and in the precision that this processor uses.
        compared_on: the number and kind of images, for people.
        cost: what int8 costs and gains; None for fp32.
        chosen_by: how the images for int8 were chosen; "" for fp32.
        size_bytes: the size of all written files.
        seconds: the duration of the export.
    """

    info: ModelInfo
    exact: Comparison
    shipped: Comparison
    compared_on: str
    cost: quantize.Int8Cost | None
    chosen_by: str
    size_bytes: int
    seconds: float


def export(
    model: Path | Sequence[Path],
    out: Path,
    *,
    format: str,  # noqa: A002  # the name that people type
    int8: bool = False,
    data: Path | None = None,
    size_hw: SizeHW | None = None,
    opset: int | None = None,
    bit_depth: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Convert a bundle, compare it with PyTorch, quantise it if `int8`, measure again, and write it.

    Args:
        model: the bundle.
        out: the file to write; OpenVINO puts the weights into a .bin beside it.
        format: a key of SUFFIXES.
        int8: quantise; `data` must be a labelled data folder.
        data: a data folder, or for fp32 any folder of images; None compares on synthetic sheets.
        size_hw: the only image size that the export will take; None for any.
        opset: version of the operators in an ONNX file, one of OPSETS; None for the one that most runtimes read.
        bit_depth: of 16-bit files in `data`, 9 to 16; None: as their tag says, or as the model was trained.
        overwrite: replace `out`.

    Raises:
        UsageError: the arguments do not fit together, there are several models, or the model is an export already.
        OutputExistsError: the file exists.
        ModelError: the model cannot be used; the export differs too much; int8 loses too much.
        DataError: the images or their labels cannot be used.
    """
    start = time.monotonic()
    _check_arguments(out, format, int8=int8, data=data, opset=opset)
    bundle, info = _read_bundle(as_paths(model))
    existing = [path for path in (out, out.with_suffix(".bin")) if path.exists()]
    if existing and not overwrite and (format == "openvino" or out in existing):
        raise OutputExistsError(f"{existing[0]}: is there already. Choose another file.", go_on={"overwrite": True})
    precision = "int8" if int8 else "fp32"
    made = ExportInfo(format=format, precision=precision, size_hw=size_hw, source_sha256=model_identity(bundle))
    recipe = info.recipe
    if size_hw is not None:  # smaller tiles would cut the images that the file takes
        recipe = changed(recipe, "inference", tile_hw=tuple(map(max, recipe.inference.tile_hw, size_hw)))
    info = info.model_copy(update={"export": made, "recipe": recipe})
    labelled = quantize.choose_images(data, info, bundle, bit_depth=bit_depth) if int8 and data is not None else None
    images, kind = _images(info, data, bit_depth)
    if size_hw is None:
        odd = [fit(images[0], ODD_HW)]
    else:
        images, odd = [fit(image, size_hw) for image in images], []
    compared_on = f"{len(images)} {kind}"
    with work_folder(out) as folder:
        staged = folder / out.name
        log.info("converting %s to %s, and comparing on %s", bundle, format, compared_on)
        exact, shipped, float_layers = _convert(bundle, info, staged, images, odd, opset)
        check(exact, shipped, what=str(out))
        figures = {
            "images": float(exact.images),
            "probability_difference": exact.probability,
            "gate_difference": exact.gate,
            "mask_dice": shipped.dice,
            "anything_found": float(shipped.anything_found),
        }
        cost = None
        if labelled is not None:
            log.info("quantising: %d images to calibrate on; this takes a while", len(labelled.calibration))
            fp32, staged = staged, folder / "int8" / out.name
            cost, float_layers = _quantise(info, fp32, staged, labelled, images[0])
            cost.check(what=str(out))
            figures |= {name: float(value) for name, value in asdict(cost).items()}
        made = made.model_copy(update={"parity": figures, "float_layers": float_layers})
        info = info.model_copy(update={"export": made})
        seal_model(staged, info)
        size_bytes = sum(path.stat().st_size for path in staged.parent.iterdir())
        _publish(staged.parent, out)
    chosen_by = "" if labelled is None else labelled.chosen_by
    return Exported(info, exact, shipped, compared_on, cost, chosen_by, size_bytes, time.monotonic() - start)


def _check_arguments(out: Path, file_format: str, *, int8: bool, data: Path | None, opset: int | None) -> None:
    suffix = SUFFIXES.get(file_format)
    if suffix is None:
        raise UsageError(f"expected {' or '.join(SUFFIXES)}, found {file_format!r}.", argument="format")
    if out.suffix != suffix:
        raise UsageError(f"{out}: a file for {file_format} must end in {suffix}.", argument="out")
    if int8 and file_format != "openvino":
        raise UsageError("goes with the format openvino only.", argument="int8")
    if int8 and data is None:
        raise UsageError("int8 needs a data folder with labels, to calibrate on and to judge by.", argument="data")
    if opset is not None and file_format != "onnx":
        raise UsageError("goes with the format onnx only.", argument="opset")
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"expected {OPSETS[0]} to {OPSETS[-1]}, found {opset}.", argument="opset")


def _read_bundle(models: Sequence[Path]) -> tuple[Path, ModelInfo]:
    if len(models) != 1:
        raise UsageError(f"{len(models)} models: an ensemble cannot be exported. Export each, or choose one.")
    info = read_model_info(models[0])
    if info.export is not None:
        raise UsageError(f"{models[0]}: is an export already. Give the bundle that it was made from.")
    return models[0], info


def _images(info: ModelInfo, data: Path | None, bit_depth: int | None) -> tuple[list[NDArray[np.uint8]], str]:
    """Images to compare on, and their kind, for people."""
    limit_hw = info.recipe.inference.tile_hw
    if data is None:
        return synthetic_images(limit_hw), "synthetic sheets"
    model_bit_depth = info.recipe.data.bit_depth
    return real_images(data, limit_hw, bit_depth=bit_depth, model_bit_depth=model_bit_depth), f"images of {data}"


def _convert(
    bundle: Path,
    info: ModelInfo,
    staged: Path,
    images: Sequence[NDArray[np.uint8]],
    odd: Sequence[NDArray[np.uint8]],
    opset: int | None,
) -> "tuple[Comparison, Comparison, Precision]":
    """Write the model in fp32, read it back and compare: in fp32, and in the precision that it will compute in.

    This is the processor's own precision. If its masks differ too much, it is fp32 on any processor.
    """
    from defectseg.model.bundle import load_bundle
    from defectseg.model.graph import DEFAULT_OPSET, takes_any_size, to_onnx, to_openvino
    from defectseg.model.openvino_io import save_model
    from defectseg.runtime.torch import TorchRuntime

    network, _ = load_bundle(bundle)
    assert info.export is not None
    size_hw = info.export.size_hw
    try:
        with redirect_stdout(io.StringIO()):  # converters print, but stdout belongs to the result
            if staged.suffix == ONNX_SUFFIX:
                to_onnx(network, info, staged, size_hw=size_hw, opset=opset or DEFAULT_OPSET)
            else:
                converted = to_openvino(network, info, size_hw=size_hw)
                if size_hw is None and not takes_any_size(converted, network):
                    raise ModelError(f"{staged.name}: OpenVINO takes this network for one size only. Name it.")
                save_model(converted, staged)
        runtimes = _runtimes(staged, info)
        found = compare(TorchRuntime(network, info), runtimes, images, odd, info.thresholds)
    except (DefectsegError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # converters have no exception class for an unsupported network
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{bundle}: cannot be converted ({why}). Try one size, or the other format.") from error
    exact, shipped = found["exact"], found.get("shipped", found["exact"])
    if shipped.dice < MIN_DICE <= exact.dice:
        log.info("in %s the masks agree at Dice %.4f only", runtimes["shipped"].name, shipped.dice)
        return exact, exact, "f32"
    return exact, shipped, "auto"


def _runtimes(path: Path, info: ModelInfo) -> dict[str, Runtime]:
    """The written file in fp32 and, for OpenVINO, in the processor's own precision."""
    if path.suffix == ONNX_SUFFIX:
        from defectseg.runtime.onnx import OnnxRuntime

        return {"exact": OnnxRuntime(path, info)}  # always computes as written
    from defectseg.model.openvino_io import read_model
    from defectseg.runtime.openvino import OpenVinoRuntime

    model = read_model(path)
    exact = OpenVinoRuntime(model, info, precision="f32", workers=1)
    return {"exact": exact, "shipped": OpenVinoRuntime(model, info, workers=1)}


def _quantise(
    info: ModelInfo, fp32: Path, out: Path, labelled: quantize.LabelledImages, typical: NDArray[np.uint8]
) -> "tuple[quantize.Int8Cost, Precision]":
    """Quantise the model in the file `fp32` and measure both; also choose the precision of the other layers.

    NNCF judges with the other layers in fp32. The processor may prefer bf16, which can cost as much again as the
    integers. If that exceeds the limit, these layers stay in fp32, which is slower.
    """
    from defectseg.model.openvino_io import read_model, save_model, unmark
    from defectseg.runtime.openvino import OpenVinoRuntime

    exact, quick = _runtimes(fp32, info).values()
    model = read_model(fp32)
    unmark(model)  # NNCF chooses itself which layers it quantises
    int8 = quantize.quantize(model, info, labelled)
    out.parent.mkdir()
    save_model(int8, out)
    choices: tuple[Precision, ...] = ("auto",) if quick.name == exact.name else ("auto", "f32")
    for precision in choices:
        shipped = OpenVinoRuntime(read_model(out), info, precision=precision, workers=1)
        log.info("measuring int8 on %d labelled images (%s)", len(labelled.validation), shipped.name)
        cost = quantize.measure(exact, quick, shipped, info, labelled, typical, quantize.count_layers(int8))
        if cost.loss <= quantize.MAX_LOSS:
            break
    return cost, precision


def _publish(folder: Path, out: Path) -> None:
    """Move the files in a folder beside `out`, `out` itself last."""
    with resource_errors(out):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            with path.open("rb+") as handle:
                os.fsync(handle.fileno())
            path.replace(out.parent / path.name)
