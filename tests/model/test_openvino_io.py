"""OpenVINO leaves the main thread able to take signals."""

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectseg.errors import ModelError
from defectseg.model.openvino_io import away_from_signals, core, read_model, save_model

openvino = pytest.importorskip("openvino")


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def _signal_stack() -> tuple[int | None, int, int]:
    """What this thread runs signal handlers on."""
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.pointer, stack.flags, stack.size


def _load_plugins_in_a_bad_order() -> None:
    """As callers do who make a Core for each of two models, and drop the older first."""
    cores = [openvino.Core() for _ in range(2)]
    for each in cores:
        each.get_property("CPU", "FULL_DEVICE_NAME")
    while cores:
        del cores[0]


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO does this on Linux alone")
@pytest.mark.parametrize("load", [core.__wrapped__, lambda: away_from_signals(_load_plugins_in_a_bad_order)])
def test_the_main_thread_keeps_its_stack_for_signals(load: Callable[[], object]) -> None:
    before = _signal_stack()
    loaded = load()
    assert _signal_stack() == before
    del loaded
    assert _signal_stack() == before


def test_what_is_done_away_from_signals_returns_and_raises() -> None:
    assert away_from_signals(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        away_from_signals(lambda: 1 // 0)


def test_models_are_written_in_the_precision_that_they_have(tmp_path: Path) -> None:
    from openvino import opset8 as op

    x = op.parameter([4], np.float32)
    weights = np.full(4, 1 / 3, np.float32)
    save_model(openvino.Model([op.multiply(x, weights)], [x]), tmp_path / "m.xml")
    constants = [node for node in read_model(tmp_path / "m.xml").get_ops() if node.get_type_name() == "Constant"]
    assert np.array_equal(constants[0].data, weights)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net", encoding="utf-8")
    with pytest.raises(ModelError, match=r"m\.xml: OpenVINO cannot read it"):
        read_model(tmp_path / "m.xml")
