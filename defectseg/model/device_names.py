"""Names of devices, told apart without importing torch."""

import re

from defectseg.errors import UsageError


def parse_device(name: str) -> tuple[str, int | None]:
    """Kind of device (auto, cpu, cuda or mps) and the number of the graphics card, if one is named.

    Raises:
        UsageError: not a name of a device.
    """
    parts = re.fullmatch(r"(auto|cpu|mps|cuda)|cuda:([0-9]+)", name)
    if parts is None:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    return parts[1] or "cuda", None if parts[2] is None else int(parts[2])
