from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import LabelError
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.evaluate.prediction_file import check_predictions, score_predictions

NOTHING = PairCounts(0, 0, 0)


@pytest.fixture
def folder(tmp_path: Path, write_data: Callable[..., Path]) -> DataFolder:
    """Three images of 4 x 6: a.jpg with 4 px of class 1 and 3 of class 2, b.png with class 2, c.jpg clean."""
    images = dict.fromkeys(("a.jpg", "b.png", "c.jpg"), np.arange(24, dtype=np.uint8).reshape(4, 6))
    root = write_data(tmp_path / "data", images, ["a.jpg,1,1 4", "a.jpg,2,9 3", "b.png,2,1 24"], ["pits", "cracks"])
    return open_data_folder(root)


def _table(tmp_path: Path, rows: str, header: str = "ImageId,ClassId,EncodedPixels", name: str = "p.csv") -> Path:
    (tmp_path / name).write_text(f"{header}\n{rows}\n")
    return tmp_path / name


def test_any_layout_of_label_tables_is_scored(folder: DataFolder, tmp_path: Path) -> None:
    rows = "a.jpg_1,3 4\na.jpg_2,-1\nb.png_1,0 0\nb.png_2,1 24\nc.jpg_1,24 1\nc.jpg_2,nan"

    score, warnings = score_predictions(_table(tmp_path, rows, "ImageId_ClassId,EncodedPixels"), folder)

    assert score.counts == {
        ("a.jpg", 1): PairCounts(4, 4, 2), ("a.jpg", 2): PairCounts(3, 0, 0),
        ("b.png", 1): NOTHING, ("b.png", 2): PairCounts(24, 24, 24),
        ("c.jpg", 1): PairCounts(0, 1, 0), ("c.jpg", 2): NOTHING,
    }  # fmt: skip
    assert warnings == []
    # Dice 0.5, 0, 1, 1, 0, 1.
    assert summarise(score.counts, folder.class_names).kaggle_dice == pytest.approx(3.5 / 6)


def test_images_that_one_side_lacks_are_warned_of(folder: DataFolder, tmp_path: Path) -> None:
    score, (unlisted, unknown) = score_predictions(_table(tmp_path, "b.png,2,1 24\nx.jpg,1,1 2\ny.jpg,1,"), folder)

    counts = score.counts
    assert counts["a.jpg", 1] == PairCounts(4, 0, 0)
    assert counts["c.jpg", 1] == NOTHING
    assert len(counts) == 6
    assert unlisted.startswith("2 images are not in p.csv")
    assert unlisted.endswith(": a.jpg, c.jpg.")
    assert unknown.startswith(f"2 images of p.csv are not in {folder.root}")
    assert unknown.endswith(": x.jpg, y.jpg.")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("train_images/a.jpg,1,1 2", r"lists none of the 3 images.*'train_images/a\.jpg', theirs 'a\.jpg'"),
        ("", "lists none of the 3 images. Expected"),
        ("b.png,3,1 2", r"p\.csv: b\.png has a mask of ClassId 3, but there are 2 classes"),
        ("b.png,255,1 2", "ClassId 255, but there are 2 classes"),
        ("b.png,2,1 2 24 2", r"p\.csv: b\.png, class 2: pair 2 \('24 2'\)"),
    ],
    ids=["other names", "no row", "a class beyond", "ignored pixels", "a run beyond the image"],
)
def test_a_table_that_does_not_fit_the_folder_is_an_error(
    folder: DataFolder, tmp_path: Path, rows: str, told: str
) -> None:
    with pytest.raises(LabelError, match=told):
        score_predictions(_table(tmp_path, rows), folder)


def test_a_file_without_labels_is_described_and_compared_with_a_folder_of_images(
    folder: DataFolder, tmp_path: Path
) -> None:
    rows = "a.jpg_1,1 2\na.jpg_2,3 4 9 1\nb.png_1,\nb.png_2,2 2\nx.jpg_1,\nx.jpg_2,"
    path = _table(tmp_path, rows, "ImageId_ClassId,EncodedPixels")
    alone, compared = check_predictions(path), check_predictions(path, folder.root / "train_images")
    assert (alone.images, alone.empty_images, alone.masks, alone.px) == (3, 1, {1: 1, 2: 2}, {1: 2, 2: 7})
    assert alone.warnings == []
    assert [warning[:8] for warning in compared.warnings] == ["1 images"] * 2


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("a.jpg,1,1 10 5 10", r"p\.csv, line 2: a\.jpg, ClassId 1: pair 2 \('5 10'\) overlaps"),
        ("a.jpg,1,\nb.png,2,24 2", r"p\.csv, line 3: b\.png, ClassId 2: pair 1 \('24 2'\) ends beyond"),
        ("a.jpg,255,1 2", "line 2: a.jpg, ClassId 255 marks pixels to ignore"),
        ("x/a.jpg,1,1 2", "lists none of the 3 images"),
    ],
)
def test_a_faulty_file_without_labels_is_refused_with_the_row(
    folder: DataFolder, tmp_path: Path, rows: str, told: str
) -> None:
    with pytest.raises(LabelError, match=told):
        check_predictions(_table(tmp_path, rows), folder.root / "train_images")
