"""Which device and which precision to compute in."""

import torch

from defectseg.errors import ResourceError
from defectseg.model.device_names import parse_device


def resolve_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda, cuda:N or mps into a device that is there; auto prefers CUDA, then MPS.

    Raises:
        UsageError: not a name of a device.
        ResourceError: the device is not on this machine.
    """
    kind, index = parse_device(name)
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    missing = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ResourceError(f"--device {name}: this machine has no such device. Use --device auto or cpu.")
    if index is not None and index >= torch.cuda.device_count():
        raise ResourceError(f"--device {name}: only cuda:0 to cuda:{torch.cuda.device_count() - 1} are there.")
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of the devices of this machine, graphics cards with their make."""
    cards = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that is quicker than float32 on the device, or None.

    On a CPU, bfloat16 pays only with AMX or AVX512-BF16; elsewhere it is emulated and much slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """True where torch says that memory ran out; on a CPU it has no exception of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(probe is not None and bool(probe()) for probe in probes)
