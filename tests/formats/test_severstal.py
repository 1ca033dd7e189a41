from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectseg.data.folder import open_data_folder
from defectseg.errors import LabelError
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices

Make = Callable[..., Path]

HEADER = "ImageId,ClassId,EncodedPixels\n"


@pytest.fixture
def table(tmp_path: Path, write_image: Make) -> Make:
    """Writes a label table, and images of 8 x 10, into `src`."""

    def write(rows: str, *images: str, folder: str = "train_images", **others: str) -> Path:
        for name in images or ("a.png", "b.png"):
            write_image(tmp_path / "src" / folder / name, np.full((8, 10), 90, np.uint8))
        (tmp_path / "src/train.csv").write_text(rows)
        for name, text in others.items():
            (tmp_path / "src" / name.replace("_csv", ".csv").replace("_txt", ".txt")).write_text(text)
        return tmp_path / "src"

    return write


def labels(root: Path) -> list[str]:
    return (root / "train.csv").read_text().splitlines()[1:]


def run(src: Path, **choices: object) -> ImportReport:
    return import_labels(src, src.parent / "out", Choices(**choices))  # type: ignore[arg-type]


def test_rows_of_instances_are_united_on_request_and_nothing_is_lost(table: Make, tmp_path: Path) -> None:
    src = table(HEADER + "a.png,1,1 3\na.png,1,3 4\na.png,1,20 2\na.png,2,1 1\n")
    with pytest.raises(LabelError, match=r"line 3: a\.png, ClassId 1"):
        run(src)
    report = run(src, unite=True)
    assert labels(tmp_path / "out") == ["a.png,1,1 6 20 2", "a.png,2,1 1"]
    assert [(loss.kind, loss.count) for loss in report.lost] == [("united", 2)]
    assert (report.images, report.sound_images) == (2, 1)


def test_what_a_data_folder_holds_comes_along(table: Make, tmp_path: Path) -> None:
    src = table(
        HEADER + "a.png,2,1 3\na.png,255,9 2\n",
        *("a.png", "b.png", "c.png"),
        classes_txt="pit\ncrack\n",
        split_csv="ImageId,fold\na.png,0\nb.png,1\n",
        groups_csv="ImageId,Group\na.png,coil 1\n",
        not_labelled_csv="ImageId\nc.png\n",
    )
    report = run(src, classes=["crack", "pit=dent"])
    folder = open_data_folder(tmp_path / "out")
    assert (folder.class_names, labels(folder.root)) == (("crack", "dent"), ["a.png,1,1 3", "a.png,255,9 2"])
    assert (set(folder.not_labelled), dict(folder.groups)) == ({"c.png"}, {"a.png": "coil 1"})
    assert (folder.root / "split.csv").read_text() == (src / "split.csv").read_text()
    assert report.not_labelled == 1


def test_a_table_alone_names_images_elsewhere_and_columns_name_classes(table: Make, tmp_path: Path) -> None:
    src = table("ImageId,e1,e2,count\na.png,1 3,,1\nb.png,,4 2,1\n", folder="photos")
    report = import_labels(src / "train.csv", tmp_path / "out", Choices(images=src / "photos"))
    assert labels(tmp_path / "out") == ["a.png,1,1 3", "b.png,2,4 2"]
    assert report.kind == "severstal"


def test_faulty_rows_are_named(table: Make) -> None:
    with pytest.raises(LabelError, match=r"train\.csv, line 2: pair 1 .* beyond"):
        run(table(HEADER + "a.png,1,79 9\n"))
    with pytest.raises(LabelError, match=r"line 2: ClassId 3, but classes\.txt names 1"):
        run(table(HEADER + "a.png,3,1 2\n", classes_txt="pit\n"))


def test_the_only_table_is_found_whatever_its_name_and_a_column_of_folds_is_told(table: Make, tmp_path: Path) -> None:
    src = table("ImageId,ClassId,EncodedPixels,fold\na.png,1,1 3,0\n")
    (src / "train.csv").rename(src / "train_folds.csv")
    (src / "sample_submission.csv").write_text("ImageId,EncodedPixels,ClassId\na.png,,0\n")
    assert [loss.kind for loss in run(src).lost] == ["fold_column"]
    assert labels(tmp_path / "out") == ["a.png,1,1 3"]


def test_overlapping_runs_of_a_row_are_refused_with_the_way_on_and_united_on_request(
    table: Make, tmp_path: Path
) -> None:
    src = table(HEADER + "a.png,1,1 10 5 10\n")
    with pytest.raises(LabelError, match=r"line 2: .* overlaps .* Overlapping runs: unite them .*--unite"):
        run(src)
    run(src, unite=True)
    assert labels(tmp_path / "out") == ["a.png,1,1 14"]
