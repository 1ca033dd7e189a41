from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from defectseg.data.split import read_split
from defectseg.errors import DataError, DefectsegError, LabelError, UsageError
from defectseg.formats.yolo import export_yolo, import_yolo, label_path

YAML = "train: images/train\nval: images/val\nnames: [crack, dent]\n"
# Border pixels (0, 0), (4, 0), (4, 1), (0, 1) of an image of 5 x 4 px, as tools write them that divide by the size.
UPPER_ROWS = "0 0.0 0.0 0.8 0.0 0.8 0.25 0.0 0.25"
UPPER_ROWS_RLE = "1 2 5 2 9 2 13 2 17 2"

Make = Callable[..., Path]


@pytest.fixture
def yolo(tmp_path: Path, write_image: Make) -> Make:
    """Writes a data set whose images are named "train/a.png" and so on; None for an image without a label file."""

    def write(labels: dict[str, str | None], yaml: str = YAML, *, between: str = "images") -> Path:
        src = tmp_path / "src"
        for name, text in labels.items():
            write_image(src / between / name, (4, 5))
            if text is not None:
                path = src / label_path(f"{between}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())
        (src / "data.yaml").write_text(yaml)
        return src

    return write


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def test_val_becomes_fold_0_and_train_fold_1(tmp_path: Path, yolo: Make) -> None:
    report = import_yolo(
        yolo({"train/a.png": UPPER_ROWS, "train/b.png": "", "val/c.png": UPPER_ROWS}), tmp_path / "out"
    )
    assert (report.images, report.clean_images, report.masks_per_class) == (3, 1, (2, 0))
    assert report.images_per_fold == (1, 2)
    assert read_split(tmp_path / "out/split.csv") == {"a.png": 1, "b.png": 1, "c.png": 0}
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS_RLE}", f"c.png,1,{UPPER_ROWS_RLE}"]
    assert (tmp_path / "out/classes.txt").read_text() == "crack\ndent\n"


def test_names_may_be_a_mapping_in_any_order_and_classes_may_be_put_in_another(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS}, "train: images/train\nnc: 2\nnames: {'1': dent, 0: crack}\n")
    assert import_yolo(src, tmp_path / "out").class_names == ("crack", "dent")
    assert not (tmp_path / "out/split.csv").exists()
    report = import_yolo(src, tmp_path / "other", classes=["rust", "dent", "crack"])
    assert report.masks_per_class == (0, 0, 1)
    (src / "data.yaml").write_text("train: images/train\nnames: [ignore, dent]\n")
    ignored = import_yolo(src, tmp_path / "fourth")
    assert (ignored.class_names, ignored.ignored_px, ignored.clean_images) == (("dent",), 10, 0)


def test_layout_of_roboflow_is_found(tmp_path: Path, yolo: Make) -> None:
    yaml = "train: ../train/images\nvalid: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['crack']\n"
    labels = {"train/images/a.png": UPPER_ROWS, "valid/images/b.png": UPPER_ROWS, "test/images/c.png": UPPER_ROWS}
    src = yolo(labels, yaml, between=".")
    report = import_yolo(src, tmp_path / "out")
    assert read_split(tmp_path / "out/split.csv") == {"a.png": 1, "b.png": 0}
    assert kinds(report) == {"test_images": 1}
    test = import_yolo(src, tmp_path / "test", part="test")
    assert (test.images, test.images_per_fold) == (1, ())


@pytest.mark.parametrize("root", [".", "", "../datasets/src", "/home/somebody/src", "C:\\sets\\src"])
def test_path_of_another_machine_does_not_matter(tmp_path: Path, yolo: Make, root: str) -> None:
    src = yolo({"train/a.png": UPPER_ROWS}, f"path: '{root}'\n" + YAML.replace("val: images/val\n", ""))
    assert import_yolo(src, tmp_path / "out").images == 1


def test_images_of_one_name_in_both_parts_stay_apart_and_one_folder_for_both_makes_no_split(
    tmp_path: Path, yolo: Make
) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/a.png": ""})
    import_yolo(src, tmp_path / "out")
    assert read_split(tmp_path / "out/split.csv") == {"train/a.png": 1, "val/a.png": 0}
    assert rows(tmp_path) == [f"train/a.png,1,{UPPER_ROWS_RLE}"]
    (src / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [crack]\n")
    assert import_yolo(src, tmp_path / "one").images_per_fold == ()


TWO_OF_ONE_CLASS = f"{UPPER_ROWS}\n0 0 0 0 .75 0 .75\n1 0 0 0 .75 0 .75\n"


@pytest.mark.parametrize(
    ("name", "text", "masks", "lost"),
    [
        ("a.png", TWO_OF_ONE_CLASS, {1: "1 6 9 2 13 2 17 2", 2: "1 4"}, {"united": 1}),
        # 1/5 written as 0.199999 is still column 1; 0.39 is column 1 too
        ("a.png", "0 0.199999 0 0.39 0 0.39 0.249999", {1: "5 2"}, {}),
        ("a.png", "1 0.2 0.25 0.4 0.5", {255: "1 2 5 2"}, {"boxes": 1}),  # columns 0 and 1, rows 0 and 1
        ("a b.PNG", f"\ufeff{UPPER_ROWS}\r\n\r\n", {1: UPPER_ROWS_RLE}, {}),
        ("a.png", "0 1.05 0 1.08 0 1.05 .5", {}, {"no_pixel": 1}),
        ("a.png", None, {}, {"no_label_file": 1}),
        ("lonely/a.png", "", {}, {"no_image": 1}),
    ],
)
def test_lines_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, yolo: Make, name: str, text: str | None, masks: dict[int, str], lost: dict[str, int]
) -> None:
    src = yolo({f"train/{name}": text, "val/b.png": ""})
    if "lonely" in name:
        (src / "labels/train/lonely/b.txt").write_text(UPPER_ROWS)
        (src / "labels/train/lonely/classes.txt").write_text("crack")
    report = import_yolo(src, tmp_path / "out")
    assert rows(tmp_path) == [f"{name},{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert (kinds(report), report.clean_images) == (lost, 1 + (not masks))
    assert report.ignored_px == (4 if 255 in masks else 0)


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
def test_faulty_lines_are_named_and_leave_nothing(tmp_path: Path, yolo: Make, line: str, message: str) -> None:
    src = yolo({"train/a.png": f"{UPPER_ROWS}\n{line}\n", "val/b.png": ""})
    with pytest.raises(LabelError, match=rf"labels/train/a\.txt, line 2: .*{message}"):
        import_yolo(src, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


TRAIN = "train: images/train\n"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("- x", "holds no mapping"),
        ("a: [", "not valid YAML"),
        (TRAIN, "'names' is None"),
        (TRAIN + "names: []\n", r"'names' is \[\]"),
        (TRAIN + "names: {0: a, 2: b}\n", "names has the keys 0, 2; expected 0 to 1"),
        (TRAIN + "nc: 3\nnames: [a, b]\n", "nc is 3, but names has 2"),
        (TRAIN + "names: [a, a]\n", "'a' names ClassId 1 and 2"),
        ("names: [a, b]\n", "has neither 'train', 'val' nor 'test'"),
        ("train: images/nowhere\nnames: [a, b]\n", "train is 'images/nowhere', which is no folder below"),
        ("train: ../secret\nnames: [a, b]\n", "train is '../secret', which is no folder below"),
        ("train: train.txt\nnames: [a, b]\n", "a list of files in a .txt is not read"),
        ("train: 3\nnames: [a, b]\n", "train is 3"),
        (TRAIN + "names: [a, b]\nkpt_shape: [4, 2]\n", "key points"),
    ],
)
def test_faulty_data_yaml_is_refused(tmp_path: Path, yolo: Make, write_image: Make, yaml: str, message: str) -> None:
    write_image(tmp_path / "secret/s.png")
    with pytest.raises(DataError, match=r"data\.yaml: .*" + message):
        import_yolo(yolo({"train/a.png": UPPER_ROWS}, yaml), tmp_path / "out")


def test_source_without_data_yaml_is_refused_and_the_file_itself_may_be_given(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/b.png": ""})
    (src / "data.yaml").rename(src / "mill.yaml")
    with pytest.raises(DataError, match=r"has no data\.yaml.*give the file itself"):
        import_yolo(src, tmp_path / "out")
    assert import_yolo(src / "mill.yaml", tmp_path / "out").images == 2
    with pytest.raises(DataError, match="no such folder"):
        import_yolo(tmp_path / "nowhere", tmp_path / "other")


def test_images_and_labels_that_do_not_pair_are_refused(tmp_path: Path, yolo: Make) -> None:
    none = r"none of the 2 images has labels; expected those of .*labels/(train/a|val/b)\.txt"
    with pytest.raises(DataError, match=none):
        import_yolo(yolo({"train/a.png": None, "val/b.png": None}), tmp_path / "out")
    with pytest.raises(DataError, match="two images of one name"):
        import_yolo(yolo({"train/a.png": "", "train/a.jpg": ""}), tmp_path / "out")


def test_missing_part_is_refused_and_a_test_part_alone_has_to_be_asked_for(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"test/a.png": UPPER_ROWS}, "test: images/test\nnames: [crack]\n")
    with pytest.raises(UsageError, match=r"part: .* has test, but no val"):
        import_yolo(src, tmp_path / "out", part="val")
    with pytest.raises(UsageError, match="a test part alone") as refused:
        import_yolo(src, tmp_path / "out")
    assert refused.value.go_on == {"part": "test"}
    assert import_yolo(src, tmp_path / "out", part="test").images == 1


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("train/images/x/a.b.PNG", "train/labels/x/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("pictures/a.jpg", "pictures/a.txt"),
    ],
)
def test_labels_lie_where_ultralytics_looks_for_them(image: str, labels: str) -> None:
    assert label_path(image) == labels


THREE = {"a.png": {1: "##../##.."}, "line 1/b.JPG": {2: ".#../...."}, "c.png": {}}


def test_split_becomes_train_and_val(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "data", THREE)
    (root / "split.csv").write_text("ImageId,fold\na.png,0\nline 1/b.JPG,1\nc.png,2\n")
    report = export_yolo(root, tmp_path / "yolo", fold=1)
    assert kinds(report) == {"folds": 1}
    files = {path.relative_to(tmp_path / "yolo").as_posix() for path in (tmp_path / "yolo").rglob("*.*")}
    names = ("train/a", "train/c", "val/line 1/b")
    assert files == {"data.yaml", *(f"labels/{name}.txt" for name in names)} | {
        *("images/train/a.png", "images/train/c.png", "images/val/line 1/b.JPG"),
    }
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "names": {0: "crack", 1: "dent"},
    }
    # pixel (1, 0) of 4 x 2 alone, as three points within it
    assert (tmp_path / "yolo/labels/val/line 1/b.txt").read_text() == (
        "1 0.312500 0.125000 0.437500 0.125000 0.375000 0.375000\n"
    )
    assert (tmp_path / "yolo/labels/train/c.txt").read_text() == ""
    assert import_yolo(tmp_path / "yolo", tmp_path / "back").images_per_fold == (1, 2)


@pytest.mark.parametrize(
    ("split", "fold", "kind", "message"),
    [
        ("a.png,0\n", 0, DataError, r"gives no fold for 2 images \(first: c\.png\)"),
        ("a.png,0\nc.png,1\nline 1/b.JPG,1\n", 2, UsageError, r"fold: there is no fold 2; .*split\.csv has 0, 1"),
        ("a.png,0\nc.png,0\nline 1/b.JPG,0\n", 0, DataError, "leaves nothing to train on"),
    ],
)
def test_split_that_does_not_fit_is_refused(
    tmp_path: Path, make_folder: Make, split: str, fold: int, kind: type[DefectsegError], message: str
) -> None:
    root = make_folder(tmp_path / "data", THREE)
    (root / "split.csv").write_text("ImageId,fold\n" + split)
    with pytest.raises(kind, match=message):
        export_yolo(root, tmp_path / "yolo", fold=fold)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
