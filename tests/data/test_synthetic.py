"""Synthetic sheets: repeatable, plainly marked, and written as a data folder whose labels are the masks."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data import synthetic
from defectseg.data.folder import open_data_folder
from defectseg.errors import OutputExistsError, ResourceError, UsageError

SIZE_HW = (128, 400)
RIGHT: dict[str, Any] = {"images": 1, "seed": 0, "size_hw": SIZE_HW}


@pytest.fixture(scope="module")
def sheets() -> list[synthetic.Sheet]:
    return [synthetic.make_sheet(11, index, SIZE_HW) for index in range(300)]


def test_seed_and_index_decide_and_are_all_that_decides() -> None:
    first = synthetic.make_sheet(5, 3, SIZE_HW)
    others = [synthetic.make_sheet(seed, index, SIZE_HW) for seed, index in ((5, 4), (6, 3))]
    again = synthetic.make_sheet(5, 3, SIZE_HW)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert not any(np.array_equal(first.image, other.image) for other in others)


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 1600), (300, 70), (512, 512)])
def test_any_size_from_64_px_up_can_be_made(size_hw: tuple[int, int]) -> None:
    for index in range(20):
        sheet = synthetic.make_sheet(1, index, size_hw)
        assert sheet.image.shape == size_hw
        assert sheet.image.dtype == np.uint8
        assert sheet.masks.shape == (4, *size_hw)
        assert sheet.masks.dtype == np.bool_


def test_default_size_is_that_of_severstal() -> None:
    assert synthetic.make_sheet(0, 0).image.shape == (256, 1600)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"size_hw": size_hw}, "64 px") for size_hw in ((63, 200), (200, 63), (0, 0))),
        ({"seed": -1}, "seed: -1"),
        *(({"images": images}, "images: expected at least 1") for images in (0, -1)),
    ],
)
def test_sheets_that_cannot_be_made_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthetic.write_data_folder(tmp_path / "out", **(RIGHT | wrong))
    assert list(tmp_path.iterdir()) == []


def test_no_pixel_is_in_two_classes(sheets: list[synthetic.Sheet]) -> None:
    assert max(int(sheet.masks.sum(axis=0).max()) for sheet in sheets) == 1


def test_share_of_clean_sheets_is_about_45_percent(sheets: list[synthetic.Sheet]) -> None:
    clean = sum(not sheet.masks.any() for sheet in sheets) / len(sheets)
    assert clean == pytest.approx(0.45, abs=0.09)  # three standard deviations of 300 draws


def test_every_class_occurs_scratches_most_often_and_two_on_some_sheets(sheets: list[synthetic.Sheet]) -> None:
    present = np.array([sheet.masks.any(axis=(1, 2)) for sheet in sheets])
    counts = dict(zip(synthetic.CLASS_NAMES, present.sum(axis=0).tolist(), strict=True))
    assert min(counts.values()) >= 12
    assert max(counts, key=lambda name: counts[name]) == "scratches"
    assert 3 <= np.count_nonzero(present.sum(axis=1) == 2) <= 40
    assert present.sum(axis=1).max() == 2


def test_some_sheets_end_in_black_and_no_defect_lies_there(sheets: list[synthetic.Sheet]) -> None:
    ended = [sheet for sheet in sheets if (sheet.image <= 9).all(axis=0).any()]
    assert 0.15 < len(ended) / len(sheets) < 0.45
    for sheet in ended:
        black = cv2.erode((sheet.image <= 9).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert not (sheet.masks.any(axis=0) & black).any()


def test_every_defect_stands_out_from_the_steel_around_it(sheets: list[synthetic.Sheet]) -> None:
    """Inside the mask pixels differ from the median of a ring around it by a tenth of its brightness, on average."""
    for sheet in sheets:
        for mask in sheet.masks[sheet.masks.any(axis=(1, 2))]:
            near, far = (cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0 for side in (5, 25))
            ring = far & ~near & ~sheet.masks.any(axis=0) & (sheet.image > 9)
            level = float(np.median(sheet.image[ring]))
            assert np.abs(sheet.image[mask] - level).mean() > 0.1 * level


def test_masks_are_regions_and_not_specks(sheets: list[synthetic.Sheet]) -> None:
    areas_px = [int(mask.sum()) for sheet in sheets for mask in sheet.masks if mask.any()]
    assert min(areas_px) > 100
    assert max(areas_px) < 0.5 * SIZE_HW[0] * SIZE_HW[1]


def test_data_folder_holds_the_sheets_and_their_masks(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = tmp_path / "new" / "sheets"
    synthetic.write_data_folder(
        out, images=12, seed=2, size_hw=SIZE_HW, progress=lambda done, total, text="": calls.append((done, total))
    )
    assert calls == [(done, 12) for done in range(1, 13)]
    assert sorted(path.name for path in out.iterdir()) == ["classes.txt", "train.csv", "train_images"]
    assert [path.name for path in out.parent.iterdir()] == ["sheets"]
    folder = open_data_folder(out)
    assert folder.class_names == synthetic.CLASS_NAMES
    assert len(folder.image_ids) == 12
    for index, image_id in enumerate(folder.image_ids):
        sheet = synthetic.make_sheet(2, index, SIZE_HW)
        assert folder.classes_of(image_id) == tuple(np.flatnonzero(sheet.masks.any(axis=(1, 2))) + 1)
        masks, ignore = folder.masks_of(image_id, SIZE_HW)
        assert np.array_equal(masks, sheet.masks)
        assert not ignore.any()
        decoded = cv2.imread(str(folder.image_path(image_id)), cv2.IMREAD_GRAYSCALE)
        assert decoded is not None
        assert np.abs(decoded.astype(np.int_) - sheet.image).mean() < 3


def test_existing_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic.write_data_folder(Path(), images=1, seed=0, size_hw=(64, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.txt", "train.csv", "train_images"]
    assert (tmp_path / "train_images" / "sheet_00000.jpg").is_file()


@pytest.mark.parametrize("as_file", [True, False])
def test_out_that_holds_something_is_refused_and_left_alone(tmp_path: Path, as_file: bool) -> None:
    out = tmp_path / "out"
    kept = out if as_file else out / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"not empty|is a file"):
        synthetic.write_data_folder(out, images=1, seed=0, size_hw=(64, 64))
    assert kept.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, text: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_data_folder(tmp_path / "out", images=5, seed=0, size_hw=(64, 64), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_somebody_fills_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write_there(done: int, total: int, text: str = "") -> None:
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    with pytest.raises(ResourceError, match="out"):
        synthetic.write_data_folder(out, images=1, seed=0, size_hw=(64, 64), progress=write_there)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes.txt"]
