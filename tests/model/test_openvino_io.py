"""OpenVINO: signals stay deliverable, files keep their precision, and some layers stay in float32."""

import ctypes
import errno
import io
import runpy
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset8

from defectseg.errors import ModelError, ResourceError
from defectseg.model import openvino_io
from defectseg.model.openvino_io import (
    away_from_signals,
    core,
    keep_sensitive_in_float32,
    read_model,
    save_model,
    unmark,
)

MARKED = ["Convolution", "GroupConvolution"]
IMAGES: Any = np.random.default_rng(1).normal(size=(1, 1, 16, 32)).astype(np.float32)


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


def _load_anew() -> object:
    return runpy.run_path(openvino_io.__file__)["core"]()


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO does this on Linux alone")
@pytest.mark.parametrize("load", [_load_anew, lambda: away_from_signals(_load_plugins_in_a_bad_order)])
def test_the_main_thread_keeps_its_stack_for_signals(load: Callable[[], object]) -> None:
    before = _signal_stack()
    loaded = load()
    assert _signal_stack() == before
    del loaded
    assert _signal_stack() == before


def test_what_is_done_away_from_signals_returns_and_raises() -> None:
    assert away_from_signals(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        away_from_signals(lambda: 1 // 0, stop=lambda: pytest.fail("there is nothing left to stop"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net", encoding="utf-8")
    with pytest.raises(ModelError, match=r"m\.xml: OpenVINO cannot read it"):
        read_model(tmp_path / "m.xml")


def test_a_full_disk_is_told_as_such_though_openvino_does_not_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def save(*arguments: object, **options: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", save)
    with pytest.raises(ResourceError, match=r"m\.xml: cannot be written .basic_ios"):  # for another reason
        save_model(_model(), tmp_path / "m.xml")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(ResourceError, match=r"m\.xml: no space left on the disk"):
        save_model(_model(), tmp_path / "m.xml")


def _model(*, groups: int = 8, inputs_of_each: int = 1) -> openvino.Model:
    """Two convolutions, then one in groups, with random weights; a description with characters that XML escapes."""
    rng = np.random.default_rng(0)
    x = opset8.parameter([1, 1, 16, 32], np.float32, name="image")
    node: Any = x
    for inputs in (1, 8):
        weights = rng.normal(size=(8, inputs, 3, 3)).astype(np.float32)
        node = opset8.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    weights = rng.normal(size=(groups, 8 // groups, inputs_of_each, 3, 3)).astype(np.float32)
    node = opset8.group_convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([node], [x])
    model.set_rt_info('{"name": "<a> & b\\n"}', ["defectseg"])
    return model


def _marked(model: openvino.Model) -> list[str]:
    keys = ((node.get_type_name(), node.get_rt_info()) for node in model.get_ordered_ops())
    return [name for name, info in keys if "DisablePrecisionConversion_0" in info]


def _answer(model: openvino.Model) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(IMAGES)[0]
    return answer


def test_depthwise_convolutions_and_the_first_layer_stay_in_float32_until_the_marks_are_taken_off(
    tmp_path: Path,
) -> None:
    model = _model()
    kept = keep_sensitive_in_float32(model)

    assert _marked(kept) == MARKED
    assert kept.get_rt_info(["defectseg"]).astype(str) == '{"name": "<a> & b\\n"}'
    assert np.array_equal(_answer(model), _answer(kept))
    # Marks and weights are in the file as they are.
    save_model(kept, tmp_path / "m.xml")
    read = read_model(tmp_path / "m.xml")
    assert _marked(read) == MARKED
    assert np.array_equal(_answer(model), _answer(read))
    assert unmark(kept)
    assert _marked(kept) == []
    assert np.array_equal(_answer(model), _answer(kept))


def test_a_model_without_depthwise_convolutions_is_left_alone() -> None:
    model = _model(groups=2, inputs_of_each=4)
    assert keep_sensitive_in_float32(model) is model
    assert _marked(model) == []
    assert not unmark(model)
