import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from defectseg.model.graph import settle_padding


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 1, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_settled_padding_computes_the_same_for_sizes_that_the_stride_divides(
    kernel: int, stride: int, dilation: int, groups: int
) -> None:
    torch.manual_seed(kernel)
    same = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=groups)
    module = nn.Sequential(nn.ReLU(), nn.Sequential(same))
    images = [torch.randn(2, 4, 32, 64), torch.randn(1, 4, 6, 10)]
    expected = [module(image) for image in images]

    settle_padding(module)

    assert not any(isinstance(child, Conv2dSame) for child in module.modules())
    for image, answer in zip(images, expected, strict=True):
        assert torch.equal(module(image), answer)
