"""The data layer on real images and labels."""

from pathlib import Path

import numpy as np
import pytest

from defectseg.check.check import check_data_folder
from defectseg.data.folder import open_data_folder
from defectseg.data.table import LabelTable, read_label_table
from defectseg.formats.data_import import ImportReport
from defectseg.image import rle

SIZE_HW = (256, 1600)


@pytest.fixture(scope="module")
def large_table(realdata: Path) -> LabelTable:
    return read_label_table(realdata / "severstal-labels/train.csv.gz")


def test_severstal_folder_opens_with_its_known_numbers_and_passes_the_check(realdata: Path) -> None:
    folder = open_data_folder(realdata / "severstal")
    classes = [folder.classes_of(image_id) for image_id in folder.image_ids]
    assert len(classes) == 87
    assert sum(bool(found) for found in classes) == 56
    assert [sum(class_id in found for found in classes) for class_id in (1, 2, 3, 4)] == [15, 9, 25, 13]
    assert folder.missing_images == ()
    report = check_data_folder(realdata / "severstal")
    assert not report.has_problems
    assert {fault.kind for fault in report.faults} == {"dark"}, "five frames show the end of the sheet and little else"
    assert (report.sizes, report.counts["clean"]) == ({"256x1600": 87}, 31)


def test_every_row_of_the_large_table_is_read_and_comes_back_the_same(large_table: LabelTable) -> None:
    encoded = [text for by_class in large_table.rles.values() for text in by_class.values()]
    assert len(encoded) == 5223
    assert all(rle.encode(rle.decode(text, SIZE_HW)) == text for text in encoded[::4])


def test_real_runs_end_at_the_foot_of_a_column_only_where_pixels_count_from_one(large_table: LabelTable) -> None:
    """The labels themselves tell the convention: read from 0 or 2, most of these runs spill over by one pixel."""
    texts = [text for by_class in large_table.rles.values() for text in by_class.values()]
    pairs = np.concatenate([rle.parse_pairs(text) for text in texts])
    first = pairs[:, 0] - 1
    behind = first + pairs[:, 1]
    crosses = first // SIZE_HW[0] != (behind - 1) // SIZE_HW[0]
    ends_at_foot = np.count_nonzero(behind % SIZE_HW[0] == 0)
    assert ends_at_foot > 100_000
    assert np.count_nonzero(crosses & (behind % SIZE_HW[0] == 1)) < ends_at_foot / 1000
    assert np.count_nonzero(crosses & (first % SIZE_HW[0] == SIZE_HW[0] - 1)) < ends_at_foot / 1000


def test_neu900_imports_with_its_known_numbers(neu: tuple[Path, ImportReport]) -> None:
    root, report = neu
    assert (report.images, [one.images for one in report.classes], report.ignored_px) == (600, [200] * 3, 0)
    assert open_data_folder(root).class_names == ("inclusion", "patches", "scratches")
