from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.split import read_split
from defectseg.errors import DataError, LabelError, UsageError
from defectseg.formats.yolo import import_yolo, label_path

GREY = np.full((4, 5), 90, np.uint8)
YAML = "train: images/train\nval: images/val\nnames: [crack, dent]\n"
# Border pixels (0, 0), (4, 0), (4, 1), (0, 1) of an image of 5 x 4 px, as tools write them that divide by the size.
UPPER_ROWS = "0 0.0 0.0 0.8 0.0 0.8 0.25 0.0 0.25"
UPPER_ROWS_RLE = "1 2 5 2 9 2 13 2 17 2"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), GREY)


def yolo(tmp_path: Path, labels: dict[str, str | None], yaml: str = YAML, *, between: str = "images") -> Path:
    """A data set whose images are named "train/a.png" and so on; None for an image without a label file."""
    src = tmp_path / "src"
    for name, text in labels.items():
        picture(src / between / name)
        if text is not None:
            path = src / label_path(f"{between}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    (src / "data.yaml").write_text(yaml)
    return src


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def test_val_becomes_fold_0_and_train_fold_1(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "train/b.png": "", "val/c.png": UPPER_ROWS})
    report = import_yolo(src, tmp_path / "out")
    assert (report.images, report.clean_images, report.masks_per_class) == (3, 1, (2, 0))
    assert report.images_per_fold == (1, 2)
    assert read_split(tmp_path / "out/split.csv") == {"a.png": 1, "b.png": 1, "c.png": 0}
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS_RLE}", f"c.png,1,{UPPER_ROWS_RLE}"]
    assert (tmp_path / "out/classes.txt").read_text() == "crack\ndent\n"


def test_names_may_be_a_mapping_in_any_order_and_classes_may_be_put_in_another(tmp_path: Path) -> None:
    yaml = "train: images/train\nnc: 2\nnames: {'1': dent, 0: crack}\n"
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS}, yaml)
    assert import_yolo(src, tmp_path / "out").class_names == ("crack", "dent")
    assert not (tmp_path / "out/split.csv").exists()
    report = import_yolo(src, tmp_path / "other", classes=["rust", "dent", "crack"])
    assert report.masks_per_class == (0, 0, 1)


def test_layout_of_roboflow_is_found(tmp_path: Path) -> None:
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['crack']\n"
    labels = {"train/images/a.png": UPPER_ROWS, "valid/images/b.png": UPPER_ROWS, "test/images/c.png": UPPER_ROWS}
    src = yolo(tmp_path, dict(labels), yaml, between=".")
    report = import_yolo(src, tmp_path / "out")
    assert read_split(tmp_path / "out/split.csv") == {"a.png": 1, "b.png": 0}
    assert kinds(report) == {"test_images": 1}
    test = import_yolo(src, tmp_path / "test", part="test")
    assert (test.images, test.images_per_fold) == (1, ())


@pytest.mark.parametrize("root", [".", "", "../datasets/src", "/home/somebody/src", "C:\\sets\\src"])
def test_path_of_another_machine_does_not_matter(tmp_path: Path, root: str) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS}, f"path: '{root}'\n" + YAML.replace("val: images/val\n", ""))
    assert import_yolo(src, tmp_path / "out").images == 1


def test_images_of_one_name_in_both_parts_stay_apart(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "val/a.png": ""})
    import_yolo(src, tmp_path / "out")
    assert read_split(tmp_path / "out/split.csv") == {"train/a.png": 1, "val/a.png": 0}
    assert rows(tmp_path) == [f"train/a.png,1,{UPPER_ROWS_RLE}"]


def test_one_folder_for_both_parts_makes_no_split(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS}, "train: images/train\nval: images/train\nnames: [crack]\n")
    assert import_yolo(src, tmp_path / "out").images_per_fold == ()


@pytest.mark.parametrize(
    ("name", "text", "masks", "lost"),
    [
        (
            "a.png",
            f"{UPPER_ROWS}\n0 0 0 0 .75 0 .75\n1 0 0 0 .75 0 .75\n",
            {1: "1 6 9 2 13 2 17 2", 2: "1 4"},
            {"united": 1},
        ),
        # 1/5 written as 0.199999 is still column 1; 0.39 is column 1 too
        ("a.png", "0 0.199999 0 0.39 0 0.39 0.249999", {1: "5 2"}, {}),
        ("a.png", "1 0.2 0.25 0.4 0.5", {255: "1 2 5 2"}, {"boxes": 1}),  # columns 0 and 1, rows 0 and 1
        ("a b.PNG", f"\ufeff{UPPER_ROWS}\r\n\r\n", {1: UPPER_ROWS_RLE}, {}),
        ("a.png", "0 1.05 0 1.08 0 1.05 .5", {}, {"no_pixel": 1}),
        ("a.png", None, {}, {"no_label_file": 1}),
    ],
)
def test_lines_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, name: str, text: str | None, masks: dict[int, str], lost: dict[str, int]
) -> None:
    report = import_yolo(yolo(tmp_path, {f"train/{name}": text, "val/b.png": ""}), tmp_path / "out")
    assert rows(tmp_path) == [f"{name},{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert (kinds(report), report.clean_images) == (lost, 1 + (not masks))
    assert report.ignored_px == (4 if 255 in masks else 0)


def test_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "val/b.png": ""})
    (src / "labels/train/lonely.txt").write_text(UPPER_ROWS)
    assert kinds(import_yolo(src, tmp_path / "out")) == {"no_image": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 a b c", "expected a class and x, y pairs, all numbers"),
        ("2 0 0 1 0 1 1", "class 2; data.yaml names 2, counted from 0"),
        ("-1 0 0 1 0 1 1", "class -1"),
        ("0.5 0 0 1 0 1 1", "class 0.5"),
        ("0 0 0 1 0 1", "has 5 numbers after the class"),
        ("0 0 0 1 0 1 1 0.97", "7 numbers after the class.*confidence"),
        ("0 0 0", "has 2 numbers"),
        ("0 0 0 3 0 3 1", "holds 3; expected fractions"),
        ("0 0 0 nan 0 1 1", "holds nan"),
        ("0 0 0 -0.5 0 1 1", "holds -0.5"),
    ],
)
def test_faulty_lines_are_named_and_leave_nothing(tmp_path: Path, line: str, message: str) -> None:
    src = yolo(tmp_path, {"train/a.png": f"{UPPER_ROWS}\n{line}\n", "val/b.png": ""})
    with pytest.raises(LabelError, match=rf"labels/train/a\.txt, line 2: .*{message}"):
        import_yolo(src, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", "holds no mapping"),
        ("- x", "holds no mapping"),
        ("a: [", "not valid YAML"),
        ("train: images/train\n", "'names' is None"),
        ("train: images/train\nnames: []\n", r"'names' is \[\]"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "names has the keys 0, 2; expected 0 to 1"),
        ("train: images/train\nnc: 3\nnames: [a, b]\n", "nc is 3, but names has 2"),
        ("train: images/train\nnames: [a, a]\n", "'a' names ClassId 1 and 2"),
        ("names: [a, b]\n", "has neither 'train', 'val' nor 'test'"),
        ("train: images/nowhere\nnames: [a, b]\n", "train is 'images/nowhere', which is no folder below"),
        ("train: train.txt\nnames: [a, b]\n", "a list of files in a .txt is not read"),
        ("train: 3\nnames: [a, b]\n", "train is 3"),
        ("train: images/train\nnames: [a, b]\nkpt_shape: [4, 2]\n", "key points"),
    ],
)
def test_faulty_data_yaml_is_told(tmp_path: Path, yaml: str, message: str) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS}, yaml)
    with pytest.raises(DataError, match=r"data\.yaml: .*" + message):
        import_yolo(src, tmp_path / "out")


def test_folders_outside_the_set_are_never_read(tmp_path: Path) -> None:
    picture(tmp_path / "secret/s.png")
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS}, "train: ../secret\nnames: [a]\n")
    with pytest.raises(DataError, match="which is no folder below"):
        import_yolo(src, tmp_path / "out")


def test_source_without_data_yaml_is_told_and_the_file_itself_may_be_given(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "val/b.png": ""})
    (src / "data.yaml").rename(src / "mill.yaml")
    with pytest.raises(DataError, match=r"has no data\.yaml.*give the file itself"):
        import_yolo(src, tmp_path / "out")
    assert import_yolo(src / "mill.yaml", tmp_path / "out").images == 2
    with pytest.raises(DataError, match="no such folder"):
        import_yolo(tmp_path / "nowhere", tmp_path / "other")


def test_set_without_any_labels_is_told(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": None, "val/b.png": None})
    with pytest.raises(
        DataError, match=r"none of the 2 images has labels; expected those of .*labels/(train/a|val/b)\.txt"
    ):
        import_yolo(src, tmp_path / "out")


def test_images_that_share_a_label_file_are_refused(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "train/a.jpg": UPPER_ROWS, "val/b.png": ""})
    with pytest.raises(DataError, match="two images of one name"):
        import_yolo(src, tmp_path / "out")


def test_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    src = yolo(tmp_path, {"train/a.png": UPPER_ROWS, "val/b.png": ""})
    with pytest.raises(UsageError, match=r"part: .* has train, val, but no test"):
        import_yolo(src, tmp_path / "out", part="test")


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/x/a.b.PNG", "train/labels/x/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("pictures/a.jpg", "pictures/a.txt"),
    ],
)
def test_labels_lie_where_ultralytics_looks_for_them(image: str, labels: str) -> None:
    assert label_path(image) == labels
