import gzip
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import LabelError
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.evaluate.prediction_file import score_predictions

SIZE_HW = (4, 6)
NOTHING = PairCounts(0, 0, 0)


def _write_image(path: Path, size_hw: tuple[int, int] = SIZE_HW) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, size_hw, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """Three images of 4 x 6: a.jpg with 4 px of class 1 and 3 of class 2, b.png with class 2, c.jpg clean."""
    for name in ("a.jpg", "b.png", "c.jpg"):
        _write_image(tmp_path / "data" / "train_images" / name)
    (tmp_path / "data" / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\na.jpg,1,1 4\na.jpg,2,9 3\nb.png,2,1 24\n"
    )
    return open_data_folder(tmp_path / "data", class_names=["pits", "cracks"])


def _table(tmp_path: Path, text: str, name: str = "predictions.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


LONG = "ImageId,ClassId,EncodedPixels\na.jpg,1,3 4\na.jpg,2,\nb.png,1,\nb.png,2,1 24\nc.jpg,1,24 1\nc.jpg,2,\n"
SHORT = "EncodedPixels,ImageId,ClassId\n3 4,a.jpg,1\n1 24,b.png,2\n24 1,c.jpg,1\n"
JOINED = (
    "ImageId_ClassId,EncodedPixels\na.jpg_1,3 4\na.jpg_2,-1\nb.png_1,0 0\nb.png_2,1 24\nc.jpg_1,24 1\nc.jpg_2,nan\n"
)


@pytest.mark.parametrize("text", [LONG, SHORT, JOINED], ids=["long", "other order, no blanks", "joined"])
@pytest.mark.parametrize("name", ["predictions.csv", "predictions.csv.gz"])
def test_every_kaggle_layout_gives_the_same_counts(folder: DataFolder, tmp_path: Path, text: str, name: str) -> None:
    counts, warnings, _ = score_predictions(_table(tmp_path, text, name), folder)

    assert counts == {
        ("a.jpg", 1): PairCounts(4, 4, 2), ("a.jpg", 2): PairCounts(3, 0, 0),
        ("b.png", 1): NOTHING, ("b.png", 2): PairCounts(24, 24, 24),
        ("c.jpg", 1): PairCounts(0, 1, 0), ("c.jpg", 2): NOTHING,
    }  # fmt: skip
    assert warnings == []
    # Dice 0.5, 0, 1, 1, 0, 1.
    assert summarise(counts, folder.class_names).kaggle_dice == pytest.approx(3.5 / 6)


def test_sample_submission_predicts_nothing(folder: DataFolder, tmp_path: Path) -> None:
    text = "ImageId,EncodedPixels,ClassId\n" + "".join(f"{name},1 409600,0\n" for name in folder.image_ids)

    counts, warnings, _ = score_predictions(_table(tmp_path, text), folder)

    assert sum(pair.predicted_px for pair in counts.values()) == 0
    assert warnings == []


def test_images_that_are_not_listed_count_as_predicted_empty_and_are_warned_of(
    folder: DataFolder, tmp_path: Path
) -> None:
    counts, warnings, _ = score_predictions(_table(tmp_path, "ImageId,ClassId,EncodedPixels\nb.png,2,1 24\n"), folder)

    assert counts["a.jpg", 1] == PairCounts(4, 0, 0)
    assert counts["c.jpg", 1] == NOTHING
    assert len(counts) == 6
    assert warnings == [
        "2 of 3 images are not listed in predictions.csv and count as predicted empty, for instance a.jpg."
    ]


def test_rows_for_images_not_in_the_folder_are_left_out_and_warned_of(folder: DataFolder, tmp_path: Path) -> None:
    counts, warnings, _ = score_predictions(_table(tmp_path, LONG + "x.jpg,1,1 2\ny.jpg,1,\n"), folder)

    assert {image_id for image_id, _ in counts} == {"a.jpg", "b.png", "c.jpg"}
    assert warnings == [
        f"2 images listed in predictions.csv are not in {folder.root} and are left out, for instance x.jpg."
    ]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("train_images/a.jpg,1,1 2", r"lists none of the 3 images .*'train_images/a\.jpg', theirs 'a\.jpg'"),
        ("b.png,3,1 2", r"predictions\.csv: b\.png, class 3: expected a ClassId from 1 to 2"),
        ("b.png,255,1 2", "class 255: expected a ClassId from 1 to 2"),
        ("b.png,2,1 2 24 2", r"predictions\.csv: b\.png, class 2: pair 2 \('24 2'\)"),
    ],
    ids=["other names", "a class beyond", "ignored pixels", "a run beyond the image"],
)
def test_a_table_that_does_not_fit_the_folder_is_an_error(
    folder: DataFolder, tmp_path: Path, rows: str, told: str
) -> None:
    with pytest.raises(LabelError, match=told):
        score_predictions(_table(tmp_path, f"ImageId,ClassId,EncodedPixels\n{rows}\n"), folder)


def test_pixels_labelled_255_do_not_count(folder: DataFolder, tmp_path: Path) -> None:
    (folder.root / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\na.jpg,1,1 4\na.jpg,255,1 2\nc.jpg,255,1 24\n"
    )
    ignoring = open_data_folder(folder.root, class_names=folder.class_names)
    table = _table(tmp_path, "ImageId,ClassId,EncodedPixels\na.jpg,1,1 3\nb.png,1,\nc.jpg,1,1 3\n")

    counts, _, _ = score_predictions(table, ignoring)

    assert counts["a.jpg", 1] == PairCounts(true_px=2, predicted_px=1, both_px=1)
    assert counts["c.jpg", 1] == PairCounts(0, 0, 0, unknown=True)


def test_an_image_whose_size_cannot_be_told_is_left_out_and_returned(folder: DataFolder, tmp_path: Path) -> None:
    folder.image_path("a.jpg").write_bytes(b"no image")

    counts, _, (unreadable,) = score_predictions(_table(tmp_path, LONG), folder)

    assert {image_id for image_id, _ in counts} == {"b.png", "c.jpg"}
    assert unreadable.image_id == "a.jpg"
    assert "a.jpg: not a JPEG" in unreadable.message
