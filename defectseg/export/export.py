"""A bundle as an OpenVINO or ONNX file, which is written only where it says what the network in PyTorch says."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectseg.config import SizeHW
from defectseg.errors import DefectsegError, ModelError, OutputExistsError, UsageError
from defectseg.export import int8 as quantize
from defectseg.export.parity import (
    ODD_HW,
    Comparison,
    Limits,
    check,
    compare,
    fit,
    real_images,
    synthetic_images,
)
from defectseg.files import TEMPORARY_PREFIX, resource_errors
from defectseg.model.info import (
    ONNX_SUFFIX,
    OPENVINO_SUFFIX,
    ExportInfo,
    ModelInfo,
    read_model_info,
    write_model_info,
)
from defectseg.model.locate import as_paths, model_identity
from defectseg.runtime.base import Runtime

if TYPE_CHECKING:
    from defectseg.model.network import DefectNetwork
    from defectseg.runtime.openvino import Precision

log = logging.getLogger(__name__)

SUFFIXES = {"openvino": OPENVINO_SUFFIX, "onnx": ONNX_SUFFIX}
LIMITS = Limits()


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares.

    Attributes:
        info: the description in the file.
        exact, shipped: comparison with PyTorch in fp32, and in the precision that this processor uses.
        compared_on: the images, for people.
        cost: of int8.
        chosen_by: how the images for int8 were chosen.
        size_bytes: of all that was written.
        seconds: that it took.
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
    bit_depth: int | None = None,
    overwrite: bool = False,
    limits: Limits = LIMITS,
    max_loss: float = quantize.MAX_LOSS,
) -> Exported:
    """Convert a bundle, compare, quantise if that was asked for, compare again, and write.

    Args:
        model: the bundle.
        out: the file to write; OpenVINO's weights go into a .bin beside it.
        format: a key of SUFFIXES.
        int8: quantise; needs `data`, labelled.
        data: a data folder, or for fp32 any folder of images; None compares on synthetic sheets.
        size_hw: the only size of image that the export will take; None for any.
        bit_depth: of 16-bit files in `data`, 9 to 16; None: as they say themselves, or as the model was trained.
        overwrite: replace `out`.
        limits: of the comparison with PyTorch.
        max_loss: of positive-pair Dice, for int8.

    Raises:
        UsageError: arguments that do not go together, several models, a model that is an export already.
        OutputExistsError: the file is there.
        ModelError: the model cannot be used; the export differs too much; int8 loses too much.
        DataError: the images or their labels cannot be used.
    """
    start = time.monotonic()
    _check_arguments(out, format, int8=int8, data=data)
    bundle, info = _read_bundle(as_paths(model))
    if not overwrite:
        _refuse_existing(out)
    precision = "int8" if int8 else "fp32"
    made = ExportInfo(format=format, precision=precision, size_hw=size_hw, source_sha256=model_identity(bundle))
    info = _for_export(info, made)
    labelled = quantize.choose_images(data, info, bundle, bit_depth=bit_depth) if int8 and data is not None else None
    sheets, odd, compared_on = _images(info, data, bit_depth)
    with _staging(out) as folder:
        staged = folder / out.name
        log.info("converting %s to %s, and comparing on %s", bundle, format, compared_on)
        exact, shipped, float_layers = _convert(bundle, info, staged, sheets, odd, limits)
        check(exact, shipped, limits, what=str(out))
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
            cost, float_layers = _quantise(info, staged, labelled, sheets[0], max_loss)
            cost.check(max_loss, what=str(out))
            figures |= {name: float(value) for name, value in asdict(cost).items()}
        made = made.model_copy(update={"parity": figures, "float_layers": float_layers})
        info = info.model_copy(update={"export": made})
        write_model_info(staged, info)
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        _publish(folder, out)
    chosen_by = "" if labelled is None else labelled.chosen_by
    return Exported(info, exact, shipped, compared_on, cost, chosen_by, size_bytes, time.monotonic() - start)


def _check_arguments(out: Path, file_format: str, *, int8: bool, data: Path | None) -> None:
    suffix = SUFFIXES.get(file_format)
    if suffix is None:
        raise UsageError(f"expected {' or '.join(SUFFIXES)}, found {file_format!r}.", argument="format")
    if out.suffix != suffix:
        raise UsageError(f"{out}: a file for {file_format} must end in {suffix}.", argument="out")
    if int8 and file_format != "openvino":
        raise UsageError("goes with the format openvino only.", argument="int8")
    if int8 and data is None:
        raise UsageError("int8 needs a data folder with labels, to calibrate on and to judge by.", argument="data")


def _read_bundle(models: Sequence[Path]) -> tuple[Path, ModelInfo]:
    if len(models) != 1:
        raise UsageError(f"{len(models)} models: an ensemble cannot be exported. Export each, or choose one.")
    info = read_model_info(models[0])
    if info.export is not None:
        raise UsageError(f"{models[0]}: is an export already. Give the bundle that it was made from.")
    return models[0], info


def _refuse_existing(out: Path) -> None:
    existing = next((path for path in (out, out.with_suffix(".bin")) if path.exists()), None)
    if existing is not None and (existing == out or out.suffix == OPENVINO_SUFFIX):
        raise OutputExistsError(f"{existing}: is there already. Choose another file.", go_on={"overwrite": True})


def _for_export(info: ModelInfo, made: ExportInfo) -> ModelInfo:
    """The description of an export; its tiles are no smaller than the only size that it takes."""
    update: dict[str, Any] = {"export": made}
    if made.size_hw is not None:
        tile_h, tile_w = map(max, info.recipe.inference.tile_hw, made.size_hw)
        inference = info.recipe.inference.model_copy(update={"tile_hw": (tile_h, tile_w)})
        update["recipe"] = info.recipe.model_copy(update={"inference": inference})
    return info.model_copy(update=update)


def _images(
    info: ModelInfo, data: Path | None, bit_depth: int | None
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], str]:
    """Sheets to compare on, one of an odd size where the export takes any, and how to call them."""
    limit_hw = info.recipe.inference.tile_hw
    if data is None:
        images, kind = synthetic_images(limit_hw), "synthetic sheets"
    else:
        model_bit_depth = info.recipe.data.bit_depth
        images = real_images(data, limit_hw, bit_depth=bit_depth, model_bit_depth=model_bit_depth)
        kind = f"images of {data}"
    if (size_hw := _size_hw(info)) is not None:
        return [fit(image, size_hw) for image in images], [], f"{len(images)} {kind}"
    return images, [fit(images[0], ODD_HW)], f"{len(images)} {kind}"


def _size_hw(info: ModelInfo) -> SizeHW | None:
    return None if info.export is None else info.export.size_hw


def _convert(
    bundle: Path,
    info: ModelInfo,
    staged: Path,
    sheets: Sequence[NDArray[np.uint8]],
    odd: Sequence[NDArray[np.uint8]],
    limits: Limits,
) -> "tuple[Comparison, Comparison, Precision]":
    """Write the model in fp32, read it back and compare.

    Where the processor's own precision is what differs too much, the export is to compute in fp32 anywhere.

    An odd size proves that what is computed from height and width was converted, which fp32 shows to the last digits.
    The masks in the processor's own precision are judged on sheets alone: a network has not learnt to judge a snippet,
    and rounding then turns its gate this way or that.
    """
    from defectseg.model.bundle import load_bundle
    from defectseg.runtime.torch import TorchRuntime

    network, _ = load_bundle(bundle)
    with _conversion_errors(bundle), quantize.quiet():
        if staged.suffix == OPENVINO_SUFFIX:
            _write_openvino(network, info, staged)
        else:
            from defectseg.model.graph import to_onnx

            to_onnx(network, info, staged, size_hw=_size_hw(info))
        runtimes = _load(staged)
        reference = TorchRuntime(network, info)
        found = compare(reference, runtimes, sheets, info.thresholds)
        also = compare(reference, {"exact": runtimes["exact"]}, odd, info.thresholds)
    exact, shipped = found["exact"].with_differences_of(also["exact"]), found.get("shipped", found["exact"])
    if shipped.dice < limits.dice <= exact.dice:
        log.info("in %s the masks agree at Dice %.4f only", runtimes["shipped"].name, shipped.dice)
        return exact, exact, "f32"
    return exact, shipped, "auto"


def _write_openvino(network: "DefectNetwork", info: ModelInfo, staged: Path) -> None:
    from defectseg.model.graph import takes_any_size, to_openvino
    from defectseg.model.openvino_io import save_model

    size_hw = _size_hw(info)
    converted = to_openvino(network, info, size_hw=size_hw)
    if size_hw is None and not takes_any_size(converted, network):
        raise ModelError(
            f"{staged.name}: not written, since OpenVINO cannot compute this network for all sizes of image at once. "
            "Export it for one size only."
        )
    save_model(converted, staged)


@contextmanager
def _conversion_errors(bundle: Path) -> Iterator[None]:
    """Converters know some networks and not others, and have no exception of their own to say so."""
    try:
        yield
    except (DefectsegError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(
            f"{bundle}: this network cannot be converted ({why}). Try one size of image only, or the other format."
        ) from error


def _load(staged: Path) -> dict[str, Runtime]:
    """The written file in fp32, and in the precision that the processor uses where that may be another."""
    if staged.suffix == ONNX_SUFFIX:
        from defectseg.runtime.onnx import load_onnx_runtime

        return {"exact": load_onnx_runtime(staged)}  # always computes as written
    from defectseg.runtime.openvino import load_openvino_runtime

    return {
        "exact": load_openvino_runtime(staged, precision="f32", workers=1),
        "shipped": load_openvino_runtime(staged, workers=1),
    }


def _quantise(
    info: ModelInfo,
    staged: Path,
    labelled: quantize.LabelledImages,
    typical: NDArray[np.uint8],
    max_loss: float,
) -> "tuple[quantize.Int8Cost, Precision]":
    """Replace the written model by one in int8, and measure both; also what its other layers are to compute in.

    NNCF judges with these in fp32. The processor may prefer bf16, which can cost as much again as the integers did;
    then they stay in fp32, which is slower, but still within the limit.
    """
    from defectseg.model.openvino_io import read_model, save_model, unmark
    from defectseg.runtime.openvino import load_openvino_runtime

    exact, quick = _load(staged).values()
    fp32 = read_model(staged)
    unmark(fp32)  # what NNCF does not quantise, it chooses itself
    int8 = quantize.quantize(fp32, info, labelled, info.recipe.inference.tile_hw, max_loss=max_loss)
    layers = quantize.count_layers(int8)
    choices: tuple[Precision, ...] = ("auto",) if quick.name == exact.name else ("auto", "f32")
    with tempfile.TemporaryDirectory(dir=staged.parent, prefix=TEMPORARY_PREFIX) as beside:
        path = Path(beside) / staged.name
        save_model(int8, path)
        for precision in choices:
            shipped = load_openvino_runtime(path, precision=precision, workers=1)
            log.info("measuring int8 on %d labelled images (%s)", len(labelled.validation), shipped.name)
            cost = quantize.measure(exact, quick, shipped, info, labelled, typical, layers)
            if cost.loss <= max_loss:
                break
        _publish(Path(beside), staged)
    return cost, precision


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the file to write, gone afterwards whatever happens."""
    with resource_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=TEMPORARY_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path) -> None:
    """Move what was written to its place, the file that names the others last."""
    with resource_errors(out):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            with path.open("rb+") as handle:
                os.fsync(handle.fileno())
            path.replace(out.parent / path.name)
