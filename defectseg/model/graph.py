"""The network of a bundle as a model of OpenVINO or ONNX: uint8 images in, probabilities and gate out."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from defectseg.files import write_bytes
from defectseg.model.info import METADATA_KEY, ModelInfo
from defectseg.model.network import DefectNetwork
from defectseg.model.openvino_io import core, keep_sensitive_in_float32

INPUT, OUTPUTS = "image", ("probabilities", "gate")
_EXAMPLE_HW = (96, 160)  # followed through the network; no answer depends on it
_OTHER_HW = (100, 130)
_ALIKE = 1e-3  # of probabilities in float32; converters differ by 1e-5
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir")


class _Graph(nn.Module):
    """What an export computes."""

    def __init__(self, network: DefectNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image uint8 (N, 1, H, W) -> probabilities float32 (N, C, H, W) and gate float32 (N, C)."""
        probabilities, gate = self.network.answer(image)
        return probabilities, gate


def to_openvino(network: DefectNetwork, info: ModelInfo, *, size_hw: tuple[int, int] | None = None) -> openvino.Model:
    """The network as a model of OpenVINO, in float32; a few layers are marked to stay so on any processor.

    Args:
        network: on any device, in any mode; it is left as it is.
        info: the description to put into the model.
        size_hw: the only size of image that the model will take; None for any. The number of images is always free.
    """
    graph, example = _graph(network), _example(size_hw)
    with _quiet(), torch.no_grad():
        height, width = size_hw or (-1, -1)
        model = openvino.convert_model(
            graph, example_input=example, input=[openvino.PartialShape([-1, 1, height, width])]
        )
    model.input(0).set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    model.set_rt_info(info.model_dump_json(), [METADATA_KEY])
    return keep_sensitive_in_float32(model)


def to_onnx(network: DefectNetwork, info: ModelInfo, path: Path, *, size_hw: tuple[int, int] | None = None) -> None:
    """Write the network as an ONNX file, weights included. Arguments as for to_openvino.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        ResourceError: the file cannot be written.
    """
    write_bytes(path, to_onnx_bytes(network, info, size_hw=size_hw))


def to_onnx_bytes(network: DefectNetwork, info: ModelInfo, *, size_hw: tuple[int, int] | None = None) -> bytes:
    """The content of an ONNX file. Arguments as for to_openvino; raises ModuleNotFoundError as to_onnx does."""
    free = {0: "batch"} if size_hw is not None else {0: "batch", 2: "height", 3: "width"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _graph(network),
            (_example(size_hw),),
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # traces of the stack, with paths of this machine
        program.model.metadata_props[METADATA_KEY] = info.model_dump_json()
        content: bytes = program.model_proto.SerializeToString()
    return content


def takes_any_size(model: openvino.Model, network: DefectNetwork) -> bool:
    """Whether a model of to_openvino computes what the network does at a size other than that of the example.

    A network may compute something from H and W in a way that the converter does not follow, such as the positions of
    a vision transformer; then the model is right for one size only.
    """
    images = np.random.default_rng(0).integers(0, 256, (1, 1, *_OTHER_HW), dtype=np.uint8)
    was_training = network.training
    try:
        with torch.inference_mode():
            expected = [answer.float().cpu().numpy() for answer in network.eval().answer(torch.from_numpy(images))]
        own = model.clone()
        own.reshape(list(images.shape))
        options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        found = core().compile_model(own, "CPU", options)(images)
    except RuntimeError:
        return False
    finally:
        network.train(was_training)
    return all(
        found[number].shape == answer.shape and np.abs(found[number] - answer).max() <= _ALIKE
        for number, answer in enumerate(expected)
    )


def _graph(network: DefectNetwork) -> nn.Module:
    graph = _Graph(copy.deepcopy(network).cpu().float()).eval()
    fix_padding(graph)
    return graph


def _example(size_hw: tuple[int, int] | None) -> Tensor:
    return torch.zeros((2, 1, *(size_hw or _EXAMPLE_HW)), dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' warnings on their own future, which a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fix_padding(module: nn.Module) -> None:
    """Replace TensorFlow's padding, which depends on the size of the image, by what it comes to here, in place.

    The network sees multiples of its stride, where every strided convolution divides the size without a remainder.
    Followed as a formula of H and W, it makes the export to ONNX ten times as long.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _with_fixed_padding(child))
        else:
            fix_padding(child)


def _with_fixed_padding(convolution: Conv2dSame) -> nn.Module:
    sides: list[int] = []
    for kernel, stride, dilation in zip(
        reversed(convolution.kernel_size), reversed(convolution.stride), reversed(convolution.dilation), strict=True
    ):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        sides += [total // 2, total - total // 2]  # as TensorFlow does, the odd one below and on the right
    fixed = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0], convolution.kernel_size[1]),
        stride=(convolution.stride[0], convolution.stride[1]),
        dilation=(convolution.dilation[0], convolution.dilation[1]),
        groups=convolution.groups,
    )
    fixed.weight, fixed.bias = convolution.weight, convolution.bias
    return nn.Sequential(nn.ZeroPad2d((sides[0], sides[1], sides[2], sides[3])), fixed)
