"""Padding of convolutions that were trained in TensorFlow, for exports."""

from timm.layers.conv2d_same import Conv2dSame
from torch import nn


def settle_padding(module: nn.Module) -> None:
    """Replace TensorFlow's padding, which depends on the size of the image, by what it comes to here, in place.

    The network sees multiples of its stride, where every strided convolution divides the size without a remainder.
    Followed as a formula of H and W, it makes the export to ONNX ten times as long.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _with_settled_padding(child))
        else:
            settle_padding(child)


def _with_settled_padding(convolution: Conv2dSame) -> nn.Module:
    sides: list[int] = []
    for kernel, stride, dilation in zip(
        reversed(convolution.kernel_size), reversed(convolution.stride), reversed(convolution.dilation), strict=True
    ):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        sides += [total // 2, total - total // 2]  # as TensorFlow does, the odd one below and on the right
    settled = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0], convolution.kernel_size[1]),
        stride=(convolution.stride[0], convolution.stride[1]),
        dilation=(convolution.dilation[0], convolution.dilation[1]),
        groups=convolution.groups,
    )
    settled.weight, settled.bias = convolution.weight, convolution.bias
    return nn.Sequential(nn.ZeroPad2d((sides[0], sides[1], sides[2], sides[3])), settled)
