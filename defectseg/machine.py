"""The machine that a measurement was made on: processor, cores, memory, versions of packages, and its clock."""

import math
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from defectseg.errors import DataError

__version__ = "0.1.0"
_CPU_INFO, _STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")
# Instruction sets that decide how fast a network runs, as Linux names them.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
_PACKAGES = ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "torch")

_allowed_bytes = 3 * 2**29
most_cores = 0  # set in a process that shares the machine with others; 0: all


def allow_gb(limit: float) -> None:
    """Set the most memory for the content of one text file, or for one image in a network, by default 1.5 GB."""
    global _allowed_bytes
    _allowed_bytes = int(limit * 2**30)


def allowed_bytes() -> int:
    """The limit that `allow_gb` sets, in bytes."""
    return _allowed_bytes


def check_memory(what: object, needed_bytes: float) -> None:
    """Raise DataError if `what` needs more memory than is allowed, with the flag that allows it."""
    if needed_bytes > _allowed_bytes:
        limit = f"{_allowed_bytes / 2**30:.1f} GB of memory"
        advice = to_allow(needed_bytes)
        raise DataError(f"{what}: would take more than {limit}, as files do that are made to hurt. {advice}")


def to_allow(needed_bytes: float = 0) -> str:
    """What to do about a file that needs so much memory, or an unknown amount that is more than the limit."""
    enough = max(2, math.ceil(max(needed_bytes, 2 * _allowed_bytes) / 2**30))
    return f"If you trust it, repeat the command as `defectseg --max-gb {enough} ...`."


def now() -> str:
    """The time now, in UTC, as run.json and model files state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine_facts() -> dict[str, Any]:
    """Processor, usable cores, instruction sets, load, system and versions; unknown facts are left out."""
    facts = {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "cpu_flags": cpu_flags(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"defectseg": __version__, **package_versions(_PACKAGES)},
    }
    if hasattr(os, "getloadavg"):
        facts["load_1_min"] = round(os.getloadavg()[0], 2)
    return facts


def cpu_flags() -> list[str]:
    """Instruction sets of this processor that decide how fast, and with which rounding, a network runs."""
    flags = _cpu_info("flags", "Features").split()
    return [flag for flag in _FLAGS if flag in flags]


def with_amx(precision: str) -> str:
    """The precision that a network computes in on this CPU, and whether AMX does it, which rounds in its own way."""
    kinds = {"amx_bf16": ("bf16", "bfloat16"), "amx_int8": ("int8",)}
    used = any(kind in precision for flag in cpu_flags() for kind in kinds.get(flag, ()))
    return f"{precision} with AMX" if used else precision


def cores() -> int:
    """Number of logical cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(allowed, most_cores or allowed)


def is_main_process() -> bool:
    """True for the process that logs and writes: the only one, or the first that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, in MB (10^6 bytes); None where the system does not report it.

    On Linux, /proc is read because the counter of getrusage is inherited from the parent process.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    if sys.platform == "darwin":
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
    return None


def _cpu_info(*keys: str) -> str:
    """The first value of /proc/cpuinfo under one of the keys, or ""."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() in keys), "")


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
