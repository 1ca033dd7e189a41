"""Choice of device and precision. torch is imported only when a device is looked up."""

import re
from typing import TYPE_CHECKING

from defectseg.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch


def parse_device(name: str) -> tuple[str, int | None]:
    """The kind of device (auto, cpu, cuda or mps) and the number of the graphics card, or None.

    Raises:
        UsageError: not the name of a device.
    """
    parts = re.fullmatch(r"(auto|cpu|mps|cuda)|cuda:([0-9]+)", name)
    if parts is None:
        raise UsageError(f"expected auto, cpu, cuda, cuda:N or mps, found {name!r}.", argument="device")
    return parts[1] or "cuda", None if parts[2] is None else int(parts[2])


def resolve_device(name: str) -> "torch.device":
    """The torch device for auto, cpu, cuda, cuda:N or mps; auto prefers CUDA, then MPS.

    Raises:
        UsageError: not the name of a device.
        ResourceError: this machine has no such device.
    """
    kind, index = parse_device(name)

    import torch

    if kind == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if kind != "cpu" and not (torch.cuda if kind == "cuda" else torch.backends.mps).is_available():
        raise ResourceError(f"this machine has no {name}. Use auto or cpu.", argument="device")
    if index is not None and index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ResourceError(f"this machine has no {name}, only cuda:0 to cuda:{last}.", argument="device")
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of torch's devices on this machine; graphics cards with their model."""
    import torch

    cards = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def half_precision(device: "torch.device") -> "torch.dtype | None":
    """The 16-bit type that is faster than float32 on the device, or None.

    On a CPU, bfloat16 pays only with AMX or AVX512-BF16; elsewhere it is emulated and much slower.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private names, which torch may remove
    quick = device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in probes)
    return torch.bfloat16 if quick else None
