"""What a measurement says of the machine."""

import os
from pathlib import Path

import pytest

from defectseg import machine
from defectseg.machine import __version__


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPU_INFO", path)
    return path


def test_processor_and_instructions_are_those_of_the_first_core(cpu_info: Path) -> None:
    core = "processor\t: {}\nmodel name\t: Xeon: 8 of them\nflags\t\t: fpu avx2 amx_int8 avx512f avx2000\n\n"
    cpu_info.write_text(core.format(0) + core.format(1).replace("amx_int8", ""))
    facts = machine.machine_facts()
    assert facts["cpu"] == "Xeon: 8 of them"
    assert facts["cpu_flags"] == ["avx2", "avx512f", "amx_int8"]


def test_without_linux_there_are_no_flags_but_still_a_processor(cpu_info: Path) -> None:
    facts = machine.machine_facts()
    assert facts["cpu"]
    assert facts["cpu_flags"] == []


def test_versions_are_those_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PACKAGES", ("numpy", "no-such-package"))
    assert list(machine.machine_facts()["versions"]) == ["defectseg", "numpy"]
    assert machine.machine_facts()["versions"]["defectseg"] == __version__


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


def test_peak_memory_is_in_millions_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9999 kB\nVmHWM:\t   2000 kB\nVmRSS:\t  1000 kB\n")
    monkeypatch.setattr(machine, "_STATUS", status)
    assert machine.peak_memory_mb() == 2.0  # 2000 x 1024 bytes are 2.048 MB, told to a tenth
