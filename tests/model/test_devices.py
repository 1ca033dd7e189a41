"""Names of devices, and the precision that each computes in."""

import pytest
import torch

from defectseg.errors import ResourceError, UsageError
from defectseg.model.devices import available_devices, half_precision, resolve_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cards")
def test_auto_takes_mps_before_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    assert available_devices() == ["cpu"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps") == torch.device("mps")


@pytest.mark.usefixtures("two_cards")
def test_auto_prefers_a_graphics_card() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match="only cuda:0 to cuda:1"):
        resolve_device("cuda:2")
    assert available_devices()[:3] == ["cpu", "cuda:0 card 0", "cuda:1 card 1"]


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cpu:0", "mps:1", "xla"])
@pytest.mark.usefixtures("two_cards")
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
@pytest.mark.usefixtures("no_cards")
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ResourceError, match=f"device: this machine has no {name}. Use auto or cpu"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, None),
        (None, None, None),  # an older torch has no such probes
    ],
)
def test_a_processor_computes_in_16_bit_only_where_it_does_so_in_hardware(
    monkeypatch: pytest.MonkeyPatch, amx: bool | None, avx512_bf16: bool | None, expected: torch.dtype | None
) -> None:
    for name, found in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512_bf16)):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if found is not None:
            monkeypatch.setattr(torch.cpu, name, lambda found=found: found, raising=False)
    assert half_precision(torch.device("cpu")) is expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_without_bfloat16_takes_float16_and_mps_computes_in_32_bit(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert half_precision(torch.device("cuda")) is expected
    assert half_precision(torch.device("mps")) is None
