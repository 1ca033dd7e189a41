"""Gradients of depthwise convolutions on a CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DepthwiseInFloat32(TorchDispatchMode):
    """Within the block, backward passes compute the gradients of depthwise convolutions in float32, not in bfloat16.

    On CPUs with AVX512-BF16, torch takes about five times as long for them in bfloat16 (docs/benchmarks.md). Results
    differ only in that they are rounded once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation of torch, `func`."""
        is_depthwise = func is torch.ops.aten.convolution_backward.default and args[2].shape[1] == 1 < args[9]
        if not is_depthwise or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        gradients = func(*(tensor.float() for tensor in args[:3]), *args[3:])
        return tuple(None if one is None else one.bfloat16() for one in gradients)
