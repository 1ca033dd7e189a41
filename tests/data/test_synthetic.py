"""Synthetic sheets: always the same, plainly marked, and written as a data folder whose labels are the masks."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data import synthetic
from defectseg.data.folder import open_data_folder
from defectseg.errors import OutputExistsError, ResourceError, UsageError

SIZE_HW = (96, 240)
RIGHT: dict[str, Any] = {"images": 1, "seed": 0, "size_hw": SIZE_HW}

# Means over four sheets each of the first 40 of seed 11: figures of the demo and of the documents rest on pictures that
# never change.
MEANS = [81.797, 79.028, 89.255, 88.544, 85.507, 87.942, 83.326, 79.354, 72.591, 92.681]
DEVIATIONS = [23.706, 25.671, 29.336, 24.771, 27.588, 23.498, 30.109, 22.427, 28.420, 31.230]
AREAS_PX = {  # by number of the sheet and ClassId
    (0, 2): 599, (3, 3): 950, (5, 3): 2003, (6, 1): 463, (7, 3): 1064, (8, 3): 1080, (8, 4): 4882, (9, 4): 3791,
    (10, 1): 713, (11, 3): 345, (14, 2): 1254, (14, 4): 1434, (15, 2): 1238, (18, 1): 283, (20, 3): 1799, (22, 1):
    177, (23, 1): 480, (23, 3): 2777, (25, 3): 396, (26, 4): 5644, (28, 1): 566, (29, 1): 213, (32, 3): 1529, (33,
    4): 894, (35, 3): 1457, (36, 1): 589, (37, 4): 4089, (38, 3): 3147, (39, 3): 2038,
}  # fmt: skip


@pytest.fixture(scope="module")
def sheets() -> list[synthetic.Sheet]:
    return [synthetic.make_sheet(11, index, SIZE_HW) for index in range(40)]


def test_sheets_never_change(sheets: list[synthetic.Sheet]) -> None:
    figures = np.array([(sheet.image.mean(), sheet.image.std()) for sheet in sheets]).reshape(10, 4, 2).mean(axis=1)
    assert pytest.approx(np.array([MEANS, DEVIATIONS]), abs=0.03) == figures.T
    areas_px = {
        (number, class_id): int(mask.sum())
        for number, sheet in enumerate(sheets)
        for class_id, mask in enumerate(sheet.masks, start=1)
    }
    assert {place: area_px for place, area_px in areas_px.items() if area_px} == AREAS_PX


def test_seed_and_index_decide_and_are_all_that_decides(sheets: list[synthetic.Sheet]) -> None:
    again, *others = (synthetic.make_sheet(seed, index, SIZE_HW) for seed, index in ((11, 3), (12, 3), (11, 4)))
    assert np.array_equal(again.image, sheets[3].image)
    assert not any(np.array_equal(again.image, other.image) for other in others)


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 1600), (300, 70), (512, 512)])
def test_any_size_from_64_px_up_can_be_made(size_hw: tuple[int, int]) -> None:
    for index in range(6):
        sheet = synthetic.make_sheet(1, index, size_hw)
        assert f"{sheet.image.shape} {sheet.image.dtype}" == f"{size_hw} uint8"
        assert f"{sheet.masks.shape} {sheet.masks.dtype}" == f"{(4, *size_hw)} bool"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"size_hw": size_hw}, "64 px") for size_hw in ((63, 200), (200, 63), (0, 0))),
    ],
)
def test_sheets_that_cannot_be_made_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthetic.write_data_folder(tmp_path / "out", **(RIGHT | wrong))
    assert list(tmp_path.iterdir()) == []


def test_data_folder_holds_the_sheets_and_their_masks(tmp_path: Path, sheets: list[synthetic.Sheet]) -> None:
    calls: list[tuple[int, int]] = []
    out = tmp_path / "new" / "sheets"
    synthetic.write_data_folder(
        out, images=4, seed=11, size_hw=SIZE_HW, progress=lambda done, total, text="": calls.append((done, total))
    )
    assert calls == [(done, 4) for done in range(1, 5)]
    assert sorted(path.name for path in out.iterdir()) == ["classes.txt", "train.csv", "train_images"]
    assert [path.name for path in out.parent.iterdir()] == ["sheets"]
    folder = open_data_folder(out)
    assert folder.class_names == synthetic.CLASS_NAMES
    assert len(folder.image_ids) == 4
    for index, image_id in enumerate(folder.image_ids):
        sheet = sheets[index]
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


def test_interrupted_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, text: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_data_folder(tmp_path / "out", **RIGHT | {"images": 5, "progress": interrupt})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_something_or_is_filled_meanwhile_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write_there(done: int, total: int, text: str = "") -> None:
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    with pytest.raises(ResourceError, match="out"):
        synthetic.write_data_folder(out, **RIGHT, progress=write_there)
    with pytest.raises(OutputExistsError, match="not empty"):
        synthetic.write_data_folder(out, **RIGHT)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes.txt"]
