"""`defectseg export`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from defectseg.cli.options import BitDepth, Json, MaxPixels, Verbose, parse_size
from defectseg.cli.show import print_json, shown
from defectseg.errors import require_extra

if TYPE_CHECKING:
    from defectseg.export.export import Exported
    from defectseg.export.int8 import Int8Cost


def export(
    model: Annotated[str, Argument(help="Model file or run folder of train.", metavar="MODEL")],
    file_format: Annotated[
        Literal["openvino", "onnx"], Option("--format", help="openvino: an .xml and a .bin; onnx: an .onnx.")
    ],
    out: Annotated[Path, Option(help="File to write.", metavar="FILE")],
    int8: Annotated[bool, Option("--int8", help="Compute in 8-bit integers; only for openvino, needs --data.")] = False,
    data: Annotated[
        Path | None,
        Option(help="Images to compare on; --int8 needs a data folder. Default: synthetic sheets.", metavar="DIR"),
    ] = None,
    size: Annotated[
        str | None, Option(help="Only size that the file accepts, e.g. 256x1600. Default: any.", metavar="HxW")
    ] = None,
    opset: Annotated[
        int | None,
        Option(help="Version of ONNX's operators, 18 to 23. Default: 18, which most runtimes read.", metavar="N"),
    ] = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace FILE.")] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Convert a model to run faster and without PyTorch.

    The result is compared with PyTorch. Probabilities in fp32 may differ by 0.01; masks in the precision that this
    processor uses must agree at Dice 0.98; --int8 may lose 0.005 of positive Dice on labelled images. If a limit is
    exceeded, the command exits with 4 and writes no file.

    Example: defectseg export runs/1 --format openvino --data severstal --out model.xml

    Or: defectseg export runs/1 --format onnx --size 256x1600 --out model.onnx
    """
    require_extra("defectseg export", "train", "torch", "segmentation_models_pytorch")
    if file_format == "onnx":
        require_extra("--format onnx", "onnx", "onnx", "onnxscript", "onnxruntime")
    if int8:
        require_extra("--int8", "int8", "nncf")
    from defectseg.export import export as room
    from defectseg.model.locate import model_paths

    exported = room.export(
        model_paths(model),
        out,
        format=file_format,
        int8=int8,
        data=data,
        size_hw=None if size is None else parse_size(size),
        opset=opset,
        bit_depth=bit_depth,
        overwrite=overwrite,
    )
    if not json_output:
        _report(exported, out)
        return
    content = asdict(exported)
    description = content.pop("info").export.model_dump(mode="json")
    print_json({"file": str(out), **description, **content})


def _report(exported: "Exported", out: Path) -> None:
    exact, shipped = exported.exact, exported.shipped
    print(f"Compared with PyTorch on {exported.compared_on}:")
    print(f"  fp32: probabilities differ by at most {exact.probability:.2g}, gates by {exact.gate:.2g} (limit 0.01)")
    print(f"  final masks, in the precision of this processor: Dice {shipped.dice:.4f} (limit 0.98)")
    if not shipped.anything_found:
        print("  No defect was found on any of them, so that the masks say little. Give --data with defects.")
    if exported.cost is not None:
        _report_cost(exported.cost, exported.chosen_by)
    if exported.info.export is not None and exported.info.export.float_layers == "f32":
        layers = "What is not in int8" if exported.cost is not None else "It"
        print(f"  {layers} computes in fp32, which is slower: in less, this network would lose too much.")
    print(f"Written: {shown(out)} ({exported.size_bytes / 1e6:.1f} MB) in {exported.seconds:.0f} s")


def _report_cost(cost: "Int8Cost", chosen_by: str) -> None:
    print(f"int8 on {cost.labelled_images} labelled images ({chosen_by}):")
    print(
        f"  positive-pair Dice {cost.positive_dice_fp32:.4f} -> {cost.positive_dice_int8:.4f} "
        f"(loss {cost.loss:.4f}, limit 0.005), Kaggle Dice {cost.kaggle_dice_fp32:.4f} -> {cost.kaggle_dice_int8:.4f}"
    )
    back = cost.layers - cost.layers_int8
    print(f"  {back} of {cost.layers} layers stay in floating point ({back / max(cost.layers, 1):.0%})")
    print(f"  masks agree with fp32 at Dice {cost.mask_dice_int8:.4f}")
    print(
        f"  {cost.ms_fp32:.0f} -> {cost.ms_int8:.0f} ms an image: "
        f"{cost.ms_fp32 / cost.ms_int8:.2f} times as quick on this machine"
    )
