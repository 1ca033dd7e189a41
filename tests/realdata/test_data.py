"""The data layer on real images and labels; skipped where they are not at hand."""

from pathlib import Path

import numpy as np

from defectseg.check.check import check_data_folder
from defectseg.data.folder import open_data_folder, read_label_table
from defectseg.data.split import make_folds
from defectseg.formats.masks import import_masks
from defectseg.image import rle

SIZE_HW = (256, 1600)


def test_severstal_folder_opens_with_its_known_numbers(realdata: Path) -> None:
    folder = open_data_folder(realdata / "severstal")
    classes = [folder.classes_of(image_id) for image_id in folder.image_ids]
    assert len(classes) == 87
    assert sum(bool(found) for found in classes) == 56
    assert [sum(class_id in found for found in classes) for class_id in (1, 2, 3, 4)] == [15, 9, 25, 13]
    assert folder.missing_images == ()


def test_severstal_folder_passes_the_check(realdata: Path) -> None:
    report = check_data_folder(realdata / "severstal")
    assert not report.has_problems
    assert {fault.kind for fault in report.faults} == {"dark"}, "five frames show the end of the sheet and little else"
    assert report.sizes == {"256x1600": 87}
    assert report.clean_images == 31


def test_severstal_folds_hold_alike_shares_of_every_class(realdata: Path) -> None:
    folder = open_data_folder(realdata / "severstal")
    fold_of = make_folds(folder, folds=3, seed=0)
    for class_id, images_of_class in ((1, 15), (2, 9), (3, 25), (4, 13)):
        counts = np.bincount([fold_of[i] for i in folder.image_ids if class_id in folder.classes_of(i)], minlength=3)
        assert counts.sum() == images_of_class
        assert np.ptp(counts) <= 3


def test_every_row_of_the_large_table_is_read_and_comes_back_the_same(realdata: Path) -> None:
    table = read_label_table(realdata / "severstal-labels/train.csv.gz")
    encoded = [text for by_class in table.rles.values() for text in by_class.values()]
    assert len(encoded) == 5223
    assert all(rle.encode(rle.decode(text, SIZE_HW)) == text for text in encoded)


def test_real_runs_end_at_the_foot_of_a_column_only_where_pixels_count_from_one(realdata: Path) -> None:
    """The labels themselves tell the convention: read from 0 or 2, most of these runs spill over by one pixel."""
    table = read_label_table(realdata / "severstal-labels/train.csv.gz")
    pairs = np.concatenate([rle.parse_pairs(text) for by_class in table.rles.values() for text in by_class.values()])
    first = pairs[:, 0] - 1
    behind = first + pairs[:, 1]
    crosses = first // SIZE_HW[0] != (behind - 1) // SIZE_HW[0]
    ends_at_foot = np.count_nonzero(behind % SIZE_HW[0] == 0)
    assert ends_at_foot > 100_000
    assert np.count_nonzero(crosses & (behind % SIZE_HW[0] == 1)) < ends_at_foot / 1000
    assert np.count_nonzero(crosses & (first % SIZE_HW[0] == SIZE_HW[0] - 1)) < ends_at_foot / 1000


def test_neu900_imports_with_its_known_numbers(realdata: Path, tmp_path: Path) -> None:
    names = ["inclusion", "patches", "scratches"]
    report = import_masks(realdata / "neu900", tmp_path / "out", classes=names, link=True)
    assert (report.images, report.masks_per_class, report.ignored_px) == (600, (200, 200, 200), 0)
    folder = open_data_folder(tmp_path / "out")
    assert folder.class_names == tuple(names)
    assert check_data_folder(tmp_path / "out").faults == ()
