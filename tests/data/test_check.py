import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.data.check import CheckReport, ClassSummary, Fault, check_data_folder
from defectseg.errors import DataError, LabelError


def data_folder(tmp_path: Path, *rows: str, images: str = "a b c d", **files: str) -> Path:
    for stem in images.split():
        path = tmp_path / f"train_images/{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((2, 3), np.uint8))
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


def found(report: CheckReport) -> list[tuple[str, str, str, int | None]]:
    return [(fault.severity, fault.kind, fault.image, fault.row) for fault in report.faults]


def test_sound_folder_has_no_faults_and_its_counts_are_right(tmp_path: Path) -> None:
    root = data_folder(tmp_path, "a.png,1,1 2", "b.png,1,1 4", "b.png,3,6 1", "b.png,255,5 1", "c.png,2,")
    report = check_data_folder(root)
    assert report.faults == ()
    assert report.errors == 0
    assert (report.images, report.clean_images, report.missing_images, report.ignored_px) == (4, 2, 0, 1)
    assert report.sizes == {"2x3": 4}
    assert report.classes == (
        ClassSummary(1, "class 1", 2, 2, 3.0, 4),
        ClassSummary(2, "class 2", 0, 0, 0.0, 0),
        ClassSummary(3, "class 3", 1, 1, 1.0, 1),
        ClassSummary(4, "class 4", 0, 0, 0.0, 0),
    )


def test_every_fault_of_every_row_is_listed_with_its_line(tmp_path: Path) -> None:
    root = data_folder(
        tmp_path,
        "a.png,1,1 2 3",  # line 2: odd count
        "a.png,2,6 2",  # 3: beyond the image
        "a.png,3,1 0",  # 4: length below 1
        "b.png,1,3 2 1 1",  # 5: not sorted
        "b.png,2,1 3 2 1",  # 6: overlap
        "b.png,3,1 1",
        "b.png,3,2 1",  # 8: again
        "c.png,x,1 1",  # 9: no class
        "c.png,1",  # 10: too few fields
        "../c.png,1,1 1",  # 11: leaves the folder
        "gone.png,1,1 1",  # 12: no such image
    )
    report = check_data_folder(root)
    assert found(report) == [
        ("error", "fields", "", 10),
        ("error", "image-id", "../c.png", 11),
        ("error", "rle", "a.png", 2),
        ("error", "rle", "a.png", 3),
        ("error", "rle", "a.png", 4),
        ("error", "rle", "b.png", 5),
        ("error", "rle", "b.png", 6),
        ("error", "duplicate", "b.png", 8),
        ("error", "class", "c.png", 9),
        ("error", "missing-image", "gone.png", 12),
    ]
    assert report.errors == 10
    assert report.missing_images == 1
    assert report.clean_images == 1, "an image with a faulty row may have a defect"
    assert (
        "train.csv, line 3: a.png, ClassId 2: pair 1 ('6 2') ends beyond the last pixel 6" in report.faults[3].message
    )
    assert all(fault.message and fault.remedy for fault in report.faults)


def test_unreadable_images_are_listed_and_their_rows_left_unchecked(tmp_path: Path) -> None:
    root = data_folder(tmp_path, "a.png,1,1 1")
    content = (root / "train_images/a.png").read_bytes()
    (root / "train_images/a.png").write_bytes(content[:-12])
    (root / "train_images/b.png").write_bytes(b"")
    report = check_data_folder(root)
    assert found(report) == [("error", "image", "a.png", None), ("error", "image", "b.png", None)]
    assert "the end chunk of PNG is missing" in report.faults[0].message
    assert report.sizes == {"2x3": 2}


def test_rows_of_missing_images_get_a_hint_where_a_name_is_nearly_right(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "A.jpg,1,1 1", "train/b,2,1 1", "x.png,1,1 1"))
    assert [(fault.image, fault.remedy) for fault in report.faults] == [
        ("A.jpg", "The folder has 'a.png': write it so."),
        ("train/b", "The folder has 'b.png': write it so."),
        ("x.png", "Add the image, or take its rows out."),
    ]


def test_class_above_those_of_classes_txt_is_an_error(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "a.png,2,1 1", "b.png,3,1 1", classes_txt="pits\ncracks\n"))
    assert found(report) == [("error", "class", "b.png", 3)]
    assert "there are 2 classes (pits, cracks)" in report.faults[0].message


def test_faulty_classes_txt_is_an_error_and_the_rest_is_checked(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "a.png,1,7 1", classes_txt="pits\npits\n"))
    assert [(fault.kind, fault.image) for fault in report.faults] == [("classes", ""), ("rle", "a.png")]


def test_pixels_of_two_classes_are_a_warning_with_their_number(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "a.png,1,1 3", "a.png,2,2 4", "a.png,255,1 6"))
    assert found(report) == [("warning", "overlap", "a.png", 3)]
    assert report.errors == 0
    assert "2 px of 'class 2' belong to another class too" in report.faults[0].message


def test_images_of_odd_sizes_are_warned_about(tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    cv2.imwrite(str(root / "train_images/odd.png"), np.zeros((5, 3), np.uint8))
    report = check_data_folder(root)
    assert found(report) == [("warning", "size", "odd.png", None)]
    assert report.sizes == {"2x3": 4, "5x3": 1}


def test_many_odd_sizes_are_one_warning(tmp_path: Path) -> None:
    root = data_folder(tmp_path, images=" ".join(f"i{number}" for number in range(30)))
    for number in range(25):
        cv2.imwrite(str(root / f"train_images/odd{number}.png"), np.zeros((5, 3 + number), np.uint8))
    assert [(fault.kind, fault.message) for fault in check_data_folder(root).faults] == [
        ("size", "Images have 26 sizes: 25 are not 2x3.")
    ]


def test_notes_of_decoding_are_one_warning_a_kind(tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    for stem, brightest in (("a", 4000), ("b", 3000), ("c", 65535)):
        cv2.imwrite(str(root / f"train_images/{stem}.png"), np.full((2, 3), brightest, np.uint16))
    (fault,) = check_data_folder(root).faults
    assert (fault.kind, fault.message) == ("image-note", "16-bit scaled by 1/257: 3 images, the first a.png.")


def test_groups_and_split_are_checked_against_each_other_and_the_images(tmp_path: Path) -> None:
    root = data_folder(
        tmp_path,
        groups_csv="ImageId,Group\na.png,coil 1\nb.png,coil 1\nc.png,coil 2\ngone.png,coil 2\n",
        split_csv="ImageId,fold\na.png,0\nb.png,1\nc.png,1\n",
    )
    assert [
        (fault.severity, fault.kind, fault.message.rpartition("split.csv: ")[2])
        for fault in check_data_folder(root).faults
    ] == [
        ("error", "split", "group 'coil 1' lies in folds 0, 1; scores would flatter."),
        ("error", "split", "has no fold for 1 images, the first d.png."),
        ("warning", "groups", "groups.csv names 1 images that are not there, the first 'gone.png'."),
    ]


def test_groups_and_split_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    root = data_folder(tmp_path, groups_csv="x\n", split_csv="ImageId,fold\na.png,one\n")
    assert found(check_data_folder(root)) == [("error", "groups", "", None), ("error", "split", "", None)]


def test_report_goes_into_json(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "a.png,1,1 0"))
    read = json.loads(json.dumps(report.to_dict()))
    assert read["errors"] == 1
    assert read["faults"][0]["row"] == 2
    assert Fault(**read["faults"][0]) == report.faults[0]


def test_progress_is_told(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    check_data_folder(data_folder(tmp_path, images="a b"), report=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)]


def test_what_is_no_data_folder_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no train_images/"):
        check_data_folder(tmp_path)
    root = data_folder(tmp_path)
    (root / "train.csv").write_text("a,b\n")
    with pytest.raises(LabelError, match="is not known"):
        check_data_folder(root)
