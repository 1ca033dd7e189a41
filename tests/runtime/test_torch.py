"""TorchRuntime on a graphics card, with stand-ins for its streams, and what leaves the device after thresholds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor, nn

from defectseg.config import Recipe
from defectseg.errors import ResourceError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.runtime.base import is_memory_short
from defectseg.runtime.torch import CardRuntime, pack_bits

INFO = ModelInfo(
    class_names=("pits", "cracks", "scale"),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(3),
    recipe=Recipe(),
)
UPRIGHT = (False, 1, 1)


class Levels(nn.Module):
    """A network whose probabilities are the grey level, its opposite and half of it, as shares of 255."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        level = grey.float() / 255 * self.weight
        probabilities = torch.cat([level, 1 - level, level / 2], dim=1)
        return probabilities, probabilities.amax(dim=(2, 3))


def _runtime(network: Any = None) -> CardRuntime:
    loaded: Any = network or Levels().eval()
    return CardRuntime(loaded, INFO)


def _thresholds(pixel: float, *, gate: float = 0.0, min_area_px: int = 0) -> Thresholds:
    return Thresholds(gate=(gate,) * 3, pixel=(pixel,) * 3, min_area_px=(min_area_px,) * 3)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 4), st.integers(1, 40))))
def test_bits_are_packed_as_numpy_does(masks: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(pack_bits(torch.from_numpy(masks)).numpy(), np.packbits(masks, axis=1))


def test_only_pixels_that_reach_the_threshold_of_a_class_that_passes_the_gate_are_sent() -> None:
    images = np.array([[[[255, 0, 51]]], [[[102, 102, 153]]]], np.uint8)  # 1.0, 0.0, 0.2 and 0.4, 0.4, 0.6

    clean, dull = _runtime().reach(images, _thresholds(0.5, gate=0.8), [UPRIGHT])

    assert {index: (bits.tolist(), values.tolist()) for index, (bits, values) in clean.pixels.items()} == {
        0: ([0b10000000], [1.0]),
        1: ([0b01100000], [1.0, pytest.approx(0.8)]),
    }
    assert dull.pixels == {}  # its classes have gates of 0.6, 0.6 and 0.3
    np.testing.assert_allclose(dull.gate, [0.6, 0.6, 0.3])


@pytest.mark.parametrize(("min_area_px", "expected"), [(0, 1.0), (1, 1.0), (2, 0.8), (5, 0.2), (99, 0.2)])
def test_the_probability_at_the_minimum_area_is_told_for_all_classes(min_area_px: int, expected: float) -> None:
    image = np.array([[[[255, 204, 51, 102, 153]]]], np.uint8)

    (found,) = _runtime().reach(image, _thresholds(0.5, gate=1.0, min_area_px=min_area_px), [UPRIGHT])

    assert found.kth_largest[0] == pytest.approx(expected)
    assert found.kth_largest[2] == pytest.approx(expected / 2)


class _Stream:
    """A stand-in that notes which thread uses it."""

    in_use: list["_Stream"] = []  # noqa: RUF012 - shared on purpose
    made = 0

    def __init__(self, device: torch.device) -> None:
        type(self).made += 1

    def wait_stream(self, other: object) -> None:
        assert other == "default"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Stream]]:
    """Lets a runtime on the CPU take itself for one on a graphics card."""

    @contextmanager
    def use(stream: _Stream) -> Iterator[None]:
        assert stream not in _Stream.in_use
        _Stream.in_use.append(stream)
        try:
            yield
        finally:
            _Stream.in_use.remove(stream)

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            assert blocking

        def record(self) -> None:
            assert _Stream.in_use

        synchronize = record

    monkeypatch.setattr(_Stream, "made", 0)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: pin_memory and torch.zeros(shape, dtype=dtype))
    yield _Stream
    _Stream.in_use.clear()


def test_calls_on_a_card_have_a_stream_each_and_take_turns_with_few(card: type[_Stream]) -> None:
    both_inside = threading.Barrier(2)

    class Meeting(Levels):
        def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
            both_inside.wait(timeout=60)
            used.append(len(card.in_use))
            both_inside.wait(timeout=60)
            return super().answer(grey)

    image = np.full((1, 1, 3, 5), 51, np.uint8)
    answers: list[NDArray[np.float32]] = []
    used: list[int] = []
    runtime = _runtime(Meeting().eval())
    runtime._on_card = True

    def call() -> None:
        answers.extend(runtime(image).probabilities[0, :, 0, 0] for _ in range(3))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    np.testing.assert_allclose(answers, [[0.2, 0.8, 0.1]] * 6, atol=1e-6)
    assert used == [2] * 6
    assert card.made == 2


def test_a_stream_is_used_again_after_memory_ran_out(card: type[_Stream]) -> None:
    class Short(Levels):
        short = True

        def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
            if self.short:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return super().answer(grey)

    network = Short().eval()
    runtime = _runtime(network)
    runtime._on_card = True
    with pytest.raises(ResourceError, match=r"Out of memory on 2 image\(s\) of 3x5"):
        runtime.reach(np.zeros((2, 1, 3, 5), np.uint8), _thresholds(0.5), [UPRIGHT])
    network.short = False
    (found,) = runtime.reach(np.full((1, 1, 3, 5), 255, np.uint8), _thresholds(0.5), [UPRIGHT])

    assert found.pixels[0][1].tolist() == [1.0] * 15
    assert card.made == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as too_much:
        torch.empty(10**16)
    assert is_memory_short(too_much.value)
    assert is_memory_short(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_memory_short(RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB, max allowed: 9.07 GB)."))
    with pytest.raises(RuntimeError) as misfit:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_memory_short(misfit.value)
