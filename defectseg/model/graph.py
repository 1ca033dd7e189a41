"""Conversion of a network to OpenVINO or ONNX: uint8 images in, probabilities and gate out."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from defectseg.errors import ModelError
from defectseg.model.info import METADATA_KEY, ModelInfo, seal_model
from defectseg.model.network import DefectNetwork
from defectseg.model.openvino_io import core, keep_sensitive_in_float32

INPUT, OUTPUTS = "image", ("probabilities", "gate")
DEFAULT_OPSET = 18  # the oldest that PyTorch writes, and so what most runtimes read; a newer one is no faster
_EXAMPLE_HW = (96, 160)  # traced through the network; no answer depends on it
_OTHER_HW = (100, 130)
_FOLDED_ELEMENTS = 1 << 24  # 64 MB
_ALIKE = 1e-3  # of probabilities in float32; converters differ by 1e-5


class _Graph(nn.Module):
    """What an export computes: uint8 (N, 1, H, W) -> probabilities float32 (N, C, H, W) and gate float32 (N, C)."""

    def __init__(self, network: DefectNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        fix_padding(self.network)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.answer(image)


def to_openvino(network: DefectNetwork, info: ModelInfo, *, size_hw: tuple[int, int] | None = None) -> openvino.Model:
    """Convert the network to an OpenVINO model in float32. A few layers are marked to stay in float32 on any CPU.

    Args:
        network: on the CPU, in float32; it is not changed.
        info: the description to store in the model.
        size_hw: the only image size that the model will take; None for any. The batch size is always free.
    """
    height, width = size_hw or (-1, -1)
    with _quiet(), torch.no_grad():
        shape = openvino.PartialShape([-1, 1, height, width])
        model = openvino.convert_model(_Graph(network).eval(), example_input=_example(size_hw), input=[shape])
    model.input(0).set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    model.set_rt_info(info.model_dump_json(), [METADATA_KEY])
    return keep_sensitive_in_float32(model)


def to_onnx(
    network: DefectNetwork,
    info: ModelInfo,
    path: Path,
    *,
    size_hw: tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write the network with its weights as an ONNX file.

    Args:
        network, info, size_hw: as for `to_openvino`.
        path: the file.
        opset: version of ONNX's operators. The version of the file format (IR) is the oldest that has this opset,
            because a runtime refuses a newer one, whatever the operators.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        ModelError: the network cannot be expressed in these operators.
        ResourceError: the file cannot be written.
    """
    import onnx

    free = {0: "batch"} if size_hw is not None else {0: "batch", 2: "height", 3: "width"}
    graph = _Graph(network).eval()
    for layer in graph.modules():
        if isinstance(layer, nn.AdaptiveMaxPool2d) and layer.output_size == 1:
            # PyTorch before 2.13 cannot export this layer.
            layer.forward = partial(torch.amax, dim=(2, 3), keepdim=True)  # type: ignore[method-assign]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (_example(size_hw),),
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        if program.model.opset_imports[""] != opset:
            raise ModelError(
                f"{path.name}: not written, since this PyTorch cannot express this network in opset {opset}. "
                "Choose another, or upgrade PyTorch."
            )
        if size_hw is not None:
            _simplify(program.model)
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces with paths of this machine
        program.model.metadata_props[METADATA_KEY] = info.model_dump_json()
        proto = program.model_proto
        proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
        seal_model(path, info, proto.SerializeToString())


def _simplify(model: Any) -> None:
    """Rewrite an onnx_ir.Model for one size, in place, in operators that more runtimes know, such as OpenCV 4.

    What does not depend on the image becomes a constant. A new size that would be computed from the number of images
    becomes a constant factor, unless that would be rounded. A maximum over the image becomes a pooling, because OpenCV
    4.6 does not know the reductions of opset 18.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript import optimizer

    optimizer.fold_constants(model, input_size_limit=_FOLDED_ELEMENTS, output_size_limit=_FOLDED_ELEMENTS)
    for node in model.graph:
        if node.op_type == "Resize" and len(node.inputs) == 4:  # image, region, factors, size
            before, after = (list(value.shape)[2:] for value in (node.inputs[0], node.outputs[0]))
            if all(new % old == 0 for new, old in zip(after, before, strict=True)):
                factors = np.array([1, 1, *np.divide(after, before)], np.float32)
                scales = onnx_ir.Value(name=f"{node.outputs[0].name}_scales", const_value=onnx_ir.tensor(factors))
                model.graph.register_initializer(scales)
                node.resize_inputs(3)
                node.replace_input_with(2, scales)
        elif node.op_type == "ReduceMax" and len(node.inputs) == 2 and node.attributes.get_int("keepdims", 1):
            rank = len(node.inputs[0].shape)
            if sorted(node.inputs[1].const_value.numpy() % rank) == list(range(2, rank)):
                node.op_type = "GlobalMaxPool"
                node.attributes.clear()
                node.resize_inputs(1)
    RemoveUnusedNodesPass()(model)


def takes_any_size(model: openvino.Model, network: DefectNetwork) -> bool:
    """Whether a model from `to_openvino` agrees with the network at a size other than the example's.

    The converter may record a value that depends on H and W as a constant, such as the positions in a vision
    transformer. Such a model is right for one size only.
    """
    images = np.random.default_rng(0).integers(0, 256, (1, 1, *_OTHER_HW), dtype=np.uint8)
    own = model.clone()
    try:
        with torch.inference_mode():
            expected = [answer.numpy() for answer in network.answer(torch.from_numpy(images))]
        own.reshape(list(images.shape))
        found = core().compile_model(own, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1})(images)
    except RuntimeError:
        return False
    return all(
        found[number].shape == answer.shape and np.abs(found[number] - answer).max() <= _ALIKE
        for number, answer in enumerate(expected)
    )


def _example(size_hw: tuple[int, int] | None) -> Tensor:
    return torch.zeros((2, 1, *(size_hw or _EXAMPLE_HW)), dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the converters' warnings about their own future, which do not concern users."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fix_padding(module: nn.Module) -> None:
    """Replace TensorFlow's padding, which depends on the image size, by constant padding, in place.

    The network only sees multiples of its stride, and at those sizes the padding is constant. Traced as a formula of H
    and W, it makes the export to ONNX take ten times as long.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            sides: list[int] = []
            for kernel, stride, dilation in zip(child.kernel_size, child.stride, child.dilation, strict=True):
                total = max((kernel - 1) * dilation + 1 - stride, 0)
                sides = [total // 2, total - total // 2, *sides]  # left, right, top, bottom; TensorFlow's order
            child.__class__ = nn.Conv2d  # type: ignore[assignment]  # the base of Conv2dSame, which does not pad
            setattr(module, name, nn.Sequential(nn.ZeroPad2d(tuple(sides)), child))  # type: ignore[arg-type]
        else:
            fix_padding(child)
