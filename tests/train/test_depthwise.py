"""Gradients of depthwise convolutions, in float32."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from defectseg.train.depthwise import DepthwiseInFloat32


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gradients_are_those_of_float32_rounded_once_and_others_stay_as_they_are(stride: int) -> None:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(8, 8, 3, stride, groups=8, bias=False)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.Conv2d(8, 2, 3, groups=2))
    image = torch.randn(2, 3, 20, 24).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(image).float().square().mean()
        loss.backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    before = gradients()
    with DepthwiseInFloat32():
        after = gradients()
    # The last layer has groups, but two output channels of four inputs each. The first comes before the depthwise one.
    for ours, plain in zip(after[3:], before[3:], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.002)

    with torch.autocast("cpu", torch.bfloat16):
        hidden = network[0](image)
        middle = depthwise(hidden)
        loss = network[2](middle).float().square().mean()
    (sent,) = torch.autograd.grad(loss, middle)
    weight = depthwise.weight.detach().bfloat16().float().requires_grad_()
    slow = functional.conv2d(hidden.detach().float(), weight, stride=stride, groups=8)
    (expected,) = torch.autograd.grad(slow, weight, sent.float())
    torch.testing.assert_close(after[2], expected.bfloat16().float(), rtol=0, atol=0)
