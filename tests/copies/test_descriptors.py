from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.copies.descriptors import TURNS, Descriptors, describe, describe_all, turned, turned_back, whitened
from defectseg.data.synthetic import make_sheet
from defectseg.image import read


def test_turns_are_what_their_names_say_and_are_undone_by_their_counterparts() -> None:
    picture = np.array([[1, 2, 3], [4, 5, 6]])
    assert {turn: turned(picture, turn).tolist() for turn in TURNS} == {
        "0": [[1, 2, 3], [4, 5, 6]],
        "90": [[3, 6], [2, 5], [1, 4]],
        "180": [[6, 5, 4], [3, 2, 1]],
        "270": [[4, 1], [5, 2], [6, 3]],
        "mirror": [[3, 2, 1], [6, 5, 4]],
        "mirror+90": [[1, 4], [2, 5], [3, 6]],
        "mirror+180": [[4, 5, 6], [1, 2, 3]],
        "mirror+270": [[6, 3], [5, 2], [4, 1]],
    }
    assert all(np.array_equal(turned(turned(picture, turn), turned_back(turn)), picture) for turn in TURNS)


@pytest.mark.parametrize("turn", TURNS)
def test_descriptor_of_a_turned_image_is_the_turned_descriptor(turn: str) -> None:
    image = make_sheet(1, 0, (192, 128)).image
    look, other = describe(image), describe(turned(image, turn))
    assert np.abs(turned(look.thumb, turn) - other.thumb).max() < 1e-5
    assert np.abs(turned(look.detail, turn).astype(int) - other.detail).max() <= 1


def test_whitened_picture_has_an_even_spectrum() -> None:
    rng = np.random.default_rng(3)
    smooth = cv2.GaussianBlur(rng.standard_normal((128, 128)), (0, 0), 2)
    detail = np.clip(smooth / smooth.std() * 32, -127, 127).astype(np.int8)
    picture = whitened(detail)
    assert float(np.linalg.norm(picture)) == pytest.approx(1, abs=1e-5)
    before, after = (np.abs(np.fft.rfft2(one.astype(np.float64))).ravel()[1:] for one in (detail, picture))
    # Exponent 0.7 leaves 0.3 of the range in decibels.
    spans = [np.ptp(np.log(np.quantile(one, (0.05, 0.95)))) for one in (before, after)]
    assert spans[1] == pytest.approx(0.3 * spans[0], rel=0.1)


def test_strip_profiles_run_along_the_longer_side() -> None:
    image = make_sheet(2, 0, (96, 480)).image
    assert describe(image).strip.any(axis=1).tolist() == [True, True, True]
    assert np.allclose(describe(np.ascontiguousarray(image.T)).strip, describe(image).strip, atol=1e-5)
    assert not describe(image[:, :300]).strip.any()
    assert not describe(image % 2 + 11).strip.any(), "dark all over: below 12 on average"
    assert describe(image % 2 + 12).strip.any(axis=1).tolist() == [True, True, True]


def test_descriptor_keeps_its_figures() -> None:
    """Whatever changes them makes copies out of other images: measure with scripts/bench/duplicates.py first."""
    y, x = np.mgrid[:96, :480]
    noise = np.random.default_rng(5).integers(0, 60, y.shape)
    image = (60 + noise + x // 6 + 20 * (x % 50 < 5)).astype(np.uint8)
    image[:24, :60], image[:, 450:] = 255, 3
    one = describe(image)
    detail, thumb, strip = one.detail.astype(float), one.thumb, one.strip
    assert one.log_aspect == pytest.approx(np.log(96 / 480))
    assert [np.abs(detail).mean(), detail.std()] == pytest.approx([24.285, 30.374], rel=1e-3)
    assert np.count_nonzero(detail == 0) == 512
    assert [np.abs(thumb).sum(), thumb.max()] == pytest.approx([22.344, 0.15419], rel=1e-3)
    assert np.abs(strip).sum(axis=1) == pytest.approx([15.105, 15.986, 13.557], rel=1e-3)
    assert strip.max(axis=1) == pytest.approx([0.15137, 0.16669, 0.21974], rel=1e-3)


def test_files_are_described_in_order_and_faulty_ones_reported(tmp_path: Path) -> None:
    sheets = [make_sheet(4, index, (128, 400)).image for index in range(3)]
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, sheet in zip(paths, sheets, strict=False):
        cv2.imwrite(str(path), sheet)
    paths.insert(1, paths.pop())
    steps: list[tuple[int, int]] = []
    descriptors, unreadable = describe_all(paths, progress=lambda done, of, text="": steps.append((done, of)))
    assert list(unreadable) == [1]
    assert "cannot be read" in unreadable[1]
    assert not descriptors.thumb[1].any()
    for index, sheet in ((0, sheets[0]), (2, sheets[1]), (3, sheets[2])):
        assert np.array_equal(descriptors.detail[index], describe(sheet).detail)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_large_jpeg_is_decoded_at_a_reduced_size_and_gets_a_like_descriptor(tmp_path: Path) -> None:
    sheet = make_sheet(5, 0, (512, 1600)).image
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), sheet)
    small, _ = describe_all([path])
    whole = Descriptors(1)
    whole[0] = describe(read.decode(path).pixels)
    assert float((small.thumb[0].astype(float) * whole.thumb[0]).sum()) > 0.98
