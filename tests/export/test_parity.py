"""The comparison of an export with PyTorch, with runtimes whose answers are known."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.errors import DataError, ExitCode, ModelError
from defectseg.export.parity import Comparison, check, compare, cut, fit, real_images, synthetic_images

MakeRuntime = Callable[..., Any]
PIT, CRACK, STEEL = 120, 160, 20


def _compare(reference: Any, candidate: Any, *images: NDArray[np.uint8], odd: int = 0) -> Comparison:
    """The last `odd` images are those of an odd size."""
    whole = len(images) - odd
    thresholds = reference.info.thresholds
    return compare(reference, {"it": candidate}, images[:whole], images[whole:], thresholds)["it"]


def _image(**levels: int) -> NDArray[np.uint8]:
    """Steel of 10 x 20 px with as many pixels of a level as the argument says: pit, crack."""
    image = np.full(200, STEEL, np.uint8)
    pits, cracks = levels.get("pit", 0), levels.get("crack", 0)
    image[:pits], image[pits : pits + cracks] = PIT, CRACK
    return image.reshape(10, 20)


def test_a_runtime_agrees_with_itself(grey_runtime: MakeRuntime) -> None:
    found = _compare(grey_runtime(), grey_runtime(), _image(pit=5), _image())
    assert found == Comparison(images=2, probability=0.0, gate=0.0, dice=1.0, anything_found=True)
    assert _compare(grey_runtime(), grey_runtime(), _image()) == Comparison(1, 0.0, 0.0, 1.0, anything_found=False)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_largest_difference_of_probability_and_of_gate_over_all_images(grey_runtime: MakeRuntime, odd: int) -> None:
    candidate = grey_runtime()
    candidate.levels[0, PIT] = 0.93  # 0.9 in the reference, and the gate where there is a pit
    candidate.levels[1, STEEL] = 0.05  # 0.1 in the reference, below every crack's gate
    images = _image(pit=5, crack=1), _image(crack=3), _image(pit=1, crack=1)
    found = _compare(grey_runtime(), candidate, *images, odd=odd)
    assert found.images == 3
    assert found.probability == pytest.approx(0.05, abs=1e-6)
    assert found.gate == pytest.approx(0.03, abs=1e-6)


def test_dice_of_final_masks_is_pooled_over_classes_and_over_images_of_usual_size(grey_runtime: MakeRuntime) -> None:
    candidate = grey_runtime()
    candidate.levels[1, CRACK] = 0.4
    # The reference finds 30 + 10 pixels of pits and 20 of cracks, the candidate only the 40 of pits.
    found = _compare(grey_runtime(), candidate, _image(pit=30, crack=20), _image(pit=10), _image(crack=9), odd=1)
    assert found.dice == pytest.approx(2 * 40 / (60 + 40))


@pytest.mark.parametrize("blind", ["reference", "candidate"])
def test_masks_are_compared_after_the_minimum_area(grey_runtime: MakeRuntime, blind: str) -> None:
    runtimes = {name: grey_runtime(min_area_px=6) for name in ("reference", "candidate")}
    runtimes[blind].levels[0, PIT] = 0.1
    few, enough = (_compare(*runtimes.values(), _image(pit=pixels)) for pixels in (5, 6))
    assert (few.dice, few.anything_found) == (1.0, False)
    assert (enough.dice, enough.anything_found) == (0.0, True)


@pytest.mark.parametrize("position", [0, 1])
def test_an_answer_that_is_not_a_number_fails_whichever_image_it_is(grey_runtime: MakeRuntime, position: int) -> None:
    candidate = grey_runtime()
    candidate.levels[1, CRACK] = np.nan
    images = [_image(crack=1), _image(pit=1)]
    found = _compare(grey_runtime(), candidate, images[position], images[1 - position])
    with pytest.raises(ModelError, match="nan"):
        check(found, found, what="model.xml")


def _found(probability: float = 0.0, gate: float = 0.0, dice: float = 1.0) -> Comparison:
    return Comparison(images=3, probability=probability, gate=gate, dice=dice, anything_found=True)


@pytest.mark.parametrize(
    ("exact", "shipped", "words"),
    [
        (_found(probability=0.0101), _found(), "0.0101 in fp32"),
        (_found(gate=0.2), _found(), "0.2 in fp32"),
        (_found(), _found(dice=0.9799), "Dice 0.9799"),
    ],
)
def test_an_export_beyond_a_limit_is_refused(exact: Comparison, shipped: Comparison, words: str) -> None:
    with pytest.raises(ModelError, match=f"out/model.xml.*{words}") as refused:
        check(exact, shipped, what="out/model.xml")
    assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE


def test_an_export_at_the_limits_passes() -> None:
    check(_found(probability=0.01, gate=0.01, dice=0.1), _found(probability=0.5, dice=0.98), what="m.xml")


def test_images_of_a_data_folder_are_drawn_from_all_its_train_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectseg.export.parity.IMAGES", 4)
    for name, levels in (("train_images", range(12)), ("test_images", range(100, 140))):
        (tmp_path / name).mkdir()
        for level in levels:
            assert cv2.imwrite(str(tmp_path / name / f"{level:03}.png"), np.full((4, 4), level, np.uint8))
    drawn = [int(image[0, 0]) for image in real_images(tmp_path, (9, 9))]
    assert len(set(drawn)) == 4
    assert max(drawn) < 12
    assert drawn not in ([0, 1, 2, 3], sorted(drawn))
    assert drawn == [int(image[0, 0]) for image in real_images(tmp_path, (9, 9))]


def test_real_images_are_read_with_the_bit_depth_that_is_given(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((9, 9), 1023, np.uint16))
    for depths, level in (({}, 4), ({"bit_depth": 10, "model_bit_depth": 12}, 255), ({"model_bit_depth": 10}, 255)):
        assert real_images(tmp_path, (9, 9), **depths)[0].max() == level


def test_an_unreadable_image_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 1 images"):
        real_images(tmp_path, (9, 9))
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((4, 4), np.uint8))
    assert len(real_images(tmp_path, (9, 9))) == 1
    assert "torn.png" in caplog.text


@given(height=st.integers(1, 12), width=st.integers(1, 12), limit=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_a_cut_is_a_window_of_the_image(height: int, width: int, limit: tuple[int, int]) -> None:
    image = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    window = cut(image, limit, random.Random(height))
    assert window.shape == (min(height, limit[0]), min(width, limit[1]))
    top, left = divmod(int(window[0, 0]), width)
    assert np.array_equal(window, image[top : top + window.shape[0], left : left + window.shape[1]])


def test_fit_cuts_and_repeats_the_border() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert fit(image, (3, 2)).tolist() == [[1, 2], [4, 5], [4, 5]]
    assert fit(image, (1, 5)).tolist() == [[1, 2, 3, 3, 3]]


@pytest.mark.parametrize(("limit_hw", "expected"), [((1024, 2048), (256, 1600)), ((48, 80), (48, 80))])
def test_synthetic_sheets_are_as_large_as_the_tile_allows(
    limit_hw: tuple[int, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectseg.export.parity.SHEETS", 2)
    sheets = synthetic_images(limit_hw)
    assert [sheet.shape for sheet in sheets] == [expected] * 2
    assert not np.array_equal(sheets[0], sheets[1])
