from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from defectseg.errors import DataError, DefectsegError, LabelError, UsageError
from defectseg.formats.data_import import import_labels
from defectseg.formats.kinds import recognise
from defectseg.formats.labels import Choices
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo.write import export_yolo, label_path

YAML = "train: images/train\nval: images/val\nnames: [crack, dent]\n"
# Border pixels (0, 0), (4, 0), (4, 1), (0, 1) of an image of 5 x 4 px, as tools write them that divide by the size.
UPPER_ROWS = "0 0.0 0.0 0.4 0.0 0.8 0.0 0.8 0.25 0.0 0.25"
UPPER_ROWS_RLE = "1 2 5 2 9 2 13 2 17 2"

Make = Callable[..., Path]


@pytest.fixture
def yolo(tmp_path: Path, write_image: Make) -> Make:
    """Writes a data set whose images are named "train/a.png" and so on; None for an image without a label file."""

    def write(
        labels: dict[str, str | None], yaml: str = YAML, *, between: str = "images", name: str = "data.yaml"
    ) -> Path:
        src = tmp_path / "src"
        for image, text in labels.items():
            write_image(src / between / image, (4, 5))
            if text is not None:
                path = src / label_path(f"{between}/{image}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())
        (src / name).write_text(yaml)
        return src

    return write


def run(src: Path, out: str = "out", **choices: Any) -> Any:
    root = src.parent if src.name == "src" else src.parent.parent
    return import_labels(src, root / out, Choices(**choices), kind=None)


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


def split(tmp_path: Path) -> dict[str, str]:
    """ImageId -> fold in the imported folder."""
    header, *lines = (tmp_path / "out/split.csv").read_text().splitlines()
    assert header == "ImageId,fold,group"
    return {image_id: fold for image_id, fold, _ in (line.rsplit(",", 2) for line in lines)}


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


THREE = {"train/a.png": UPPER_ROWS, "val/b.png": "", "test/c.png": UPPER_ROWS}
ROBOFLOW = {"train/images/a.png": UPPER_ROWS, "valid/images/b.png": "", "test/images/c.png": UPPER_ROWS}
ROBOFLOW_YAML = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['crack', 'dent']\n"
NAMES = "names: {0: crack, '1': dent}\n"


@pytest.mark.parametrize(
    ("labels", "between", "text", "lost"),
    [
        (THREE, "images", YAML + "test: images/test\n", {}),
        (ROBOFLOW, ".", ROBOFLOW_YAML, {}),
        ({f"mill/{name}": lines for name, lines in ROBOFLOW.items()}, ".", ROBOFLOW_YAML, {}),
        (THREE, "images", f"path: /home/me/src\n{YAML}test: [images/test]\n", {}),
        (THREE, "images", f"path: ../datasets/src\n{YAML}test: C:\\\\sets\\\\src\\\\images\\\\test\n", {}),
        (THREE, "images", "train: data path\nval: data path\ntest: ../secret\n" + NAMES, {"absent_folder": 3}),
        (THREE, "images", NAMES, {}),
        (THREE, "images", "train: a.txt\nval: b.txt\ntest: c.txt\n" + NAMES, {}),
        (THREE, "images", "val: images/val\ntest: images/test\nLine1: a.txt\n" + NAMES, {"other_part": 1}),
    ],
)
def test_train_val_and_test_come_along(
    tmp_path: Path, yolo: Make, write_image: Make, labels: Any, between: str, text: str, lost: dict[str, int]
) -> None:
    src = yolo(labels, text, between=between)
    write_image(tmp_path / "secret/s.png")
    if any(name.startswith("mill/") for name in labels):  # a folder around everything
        (src / "data.yaml").rename(src / "mill/data.yaml")
    for part, name in (("train", "a"), ("val", "b"), ("test", "c")):  # lists with paths from elsewhere, as CVAT's
        (src / f"{name}.txt").write_text(f"data\\images/{part}/{name}.png\n\n")
    report = run(src)
    assert (report.kind, report.images, report.sound_images, kinds(report)) == ("yolo", 3, 1, lost)
    assert split(tmp_path) == {"a.png": "train", "b.png": "val", "c.png": "test"}
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS_RLE}", f"c.png,1,{UPPER_ROWS_RLE}"]
    assert [one.name for one in report.classes] == ["crack", "dent"]


def test_class_folders_below_images_are_kept_in_the_names(tmp_path: Path, yolo: Make) -> None:
    labels = {"train/images/pit/a.png": UPPER_ROWS, "validation/images/pit/b.png": UPPER_ROWS}
    run(yolo(labels, "train: data path\nval: data path\nnames: [crack]\n", between="."))
    assert split(tmp_path) == {"pit/a.png": "train", "pit/b.png": "val"}


def test_images_of_one_name_in_two_parts_stay_apart_and_one_folder_for_both_makes_no_split(
    tmp_path: Path, yolo: Make
) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/a.png": ""})
    run(src)
    assert split(tmp_path) == {"train/a.png": "train", "val/a.png": "val"}
    assert rows(tmp_path) == [f"train/a.png,1,{UPPER_ROWS_RLE}"]
    (src / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [crack]\n")
    report = run(src, out="one")
    assert (report.parts, kinds(report)) == ({}, {"several_parts": 1, "unlisted_images": 1})


@pytest.mark.parametrize(("name", "text"), [("classes.txt", "crack\ndent\n"), ("obj.names", "crack\r\ndent\r\n")])
def test_set_without_data_yaml_takes_its_classes_from_a_list_and_without_one_they_are_numbered(
    tmp_path: Path, yolo: Make, name: str, text: str
) -> None:
    src = yolo({"a.png": UPPER_ROWS.replace("0 ", "1 ", 1), "b.png": ""}, text, name=name)
    (src / "notes.json").write_text('{"categories": [{"id": 0, "name": "crack"}], "info": {}}')  # Label Studio's
    assert [(one.name, one.images) for one in run(src).classes] == [("crack", 0), ("dent", 1)]
    (src / name).unlink()
    assert [(one.name, one.images) for one in run(src, out="two").classes] == [("class 1", 0), ("class 2", 1)]
    (src / "data.yaml").write_text("train: images\n")
    assert run(src, out="yaml").classes[1].name == "class 2"
    (src / "data.yaml").unlink()
    assert run(src, out="three", classes=["rust", "pit"]).classes[1].name == "pit"
    (src / "classes.txt").write_text("crack\ndent\n")
    (src / "labels/classes.txt").write_text("dent\ncrack\n")
    with pytest.raises(LabelError, match=r"classes\.txt and labels/classes\.txt name different classes"):
        run(src, out="four")


def test_boxes_beside_obj_names_are_known_for_what_they_are(tmp_path: Path, write_image: Make) -> None:
    src = tmp_path / "src"
    write_image(src / "obj_train_data/a.jpg", (4, 5))
    (src / "obj_train_data/a.txt").write_text("0 0.3 0.5 0.2 0.5\n")
    (src / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    (src / "obj.names").write_text("scratch\n")
    (src / "obj.data").write_text("classes = 1\nnames = data/obj.names\ntrain = data/train.txt\nbackup = backup/\n")
    with pytest.raises(DataError, match="boxes without an outline") as told:
        run(src)
    assert told.value.go_on == {"boxes": "ignore"}
    report = run(src, boxes="ignore")
    assert (report.classes[0].name, kinds(report)) == ("scratch", {"boxes": 1})
    assert rows(tmp_path) == ["a.jpg,255,6 2"]  # column 1, rows 1 and 2


def test_images_may_lie_elsewhere(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/b.png": ""})
    (src / "images").rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="images: No image"):
        run(src)
    run(src, images=tmp_path / "pictures")
    assert split(tmp_path) == {"train/a.png": "train", "val/b.png": "val"}
    assert rows(tmp_path) == [f"train/a.png,1,{UPPER_ROWS_RLE}"]


def test_image_without_label_file_is_asked_about(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "train/b.png": "", "train/c.png": None}, "train: images/train\n" + NAMES)
    with pytest.raises(DataError, match=r"1 of 3 images have no label of an area: c\.png") as told:
        run(src)
    assert told.value.go_on == {"unlabelled": "clean|skip"}
    report = run(src, unlabelled="skip")
    assert (report.images, report.sound_images, report.not_labelled) == (2, 1, 1)


def test_label_files_without_an_image_and_images_that_a_list_lacks_are_refused(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS}, "train: images/train\n" + NAMES)
    (src / "labels/train/gone.txt").write_text(UPPER_ROWS)
    (src / "labels/train/empty.txt").touch()
    (src / "labels/train/README.txt").write_text("These are labels.")
    with pytest.raises(DataError, match=r"1 of 2 labels have no image: labels/train/gone\.txt") as told:
        run(src)
    assert told.value.go_on == {"absent": "skip"}
    (src / "data.yaml").write_text("train: train.txt\ntest: ../test/images\n" + NAMES)
    (src / "train.txt").write_text("/x/images/train/a.png\n/x/images/train/b.png\n")
    report = run(src, absent="skip")
    assert report.missing_images == ("labels/train/gone.txt", "/x/images/train/b.png")
    assert kinds(report) == {"absent_folder": 1}


TWO_OF_ONE_CLASS = f"{UPPER_ROWS}\n0 0 0 0 .75 0 .75\n1 0 0 0 .75 0 .75\n"


@pytest.mark.parametrize(
    ("name", "text", "masks", "lost"),
    [
        ("a.png", TWO_OF_ONE_CLASS, {1: "1 6 9 2 13 2 17 2", 2: "1 4"}, {"united": 1}),
        # 1/5 written as 0.199999 is still column 1; 0.39 is column 1 too
        ("a.png", "0 0.199999 0 0.39 0 0.39 0.249999", {1: "5 2"}, {}),
        ("a.png", "1 0.2 0.25 0.4 0.5", {255: "1 2 5 2"}, {"boxes": 1}),  # columns 0 and 1, rows 0 and 1
        ("a b.PNG", f"\ufeff{UPPER_ROWS}\r\n\r\n", {1: UPPER_ROWS_RLE}, {}),
        ("a.png", "0 -0.5 -0.4 1.9 -0.4 1.9 .25 -0.5 .25", {1: UPPER_ROWS_RLE}, {"like_boxes": 1, "clipped": 1}),
        ("a.png", f"0 1.05 0 1.08 0 1.05 .5\n{UPPER_ROWS}", {1: UPPER_ROWS_RLE}, {"clipped": 1, "no_pixel": 1}),
    ],
)
def test_lines_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, yolo: Make, name: str, text: str, masks: dict[int, str], lost: dict[str, int]
) -> None:
    report = run(yolo({f"train/{name}": text, "val/b.png": ""}), boxes="ignore")
    assert rows(tmp_path) == [f"{name},{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert kinds(report) == lost
    assert report.ignored_px == (4 if 255 in masks else 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 a b c", "'0 a b c'; expected a class"),
        ("2 0 0 1 0 1 1", "class 2; expected 0 to 1"),
        ("-1 0 0 1 0 1 1", "class -1"),
        ("0.5 0 0 1 0 1 1", "class 0.5"),
        ("nan 0 0 1 0 1 1", "expected a class"),
        ("0 0 0 1 0 1 1 1.7", "0 1 1 1.7'; expected .* no confidence"),
        ("0 0 0 1 0 1 1 0.97", "no confidence"),
        ("0 0 0", "three or more points"),
        ("0 0 0 3 0 3 1", "0 3 0 3 1'; .*as fractions"),
        ("0 0 0 nan 0 1 1", "nan 0 1 1'; .*as fractions"),
        ("0 0.5 0.5 0 0.1", "or a box"),
    ],
)
def test_faulty_lines_are_named_and_leave_nothing(tmp_path: Path, yolo: Make, line: str, message: str) -> None:
    src = yolo({"train/a.png": f"{UPPER_ROWS}\n{line}\n", "val/b.png": ""})
    with pytest.raises(LabelError, match=rf"labels/train/a\.txt, line 2: .*{message}"):
        run(src)
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


TRAIN = "train: images/train\n"
BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopq")
)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("- x", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("names: " + "[" * 5000, "not valid YAML"),
        ("a: &a [*a]", r"alias \*a"),
        (BOMB + "names: [*q]", r"alias \*a"),
        (TRAIN + "names: crack\n", "'names' is 'crack'"),
        (TRAIN + "names: {0: a, 2: b}\n", "as a list or from 0 on"),
        (TRAIN + "names: [a, {b: c}]\n", "'names' is "),
        (TRAIN + "nc: 3\nnames: [a, b]\n", r"'names' is \['a', 'b'\]; expected '3' names"),
        (TRAIN + "names: [a, '']\n", "'names' is "),
        (TRAIN + "names: [a, b]\nkpt_shape: [4, 2]\n", "key points"),
    ],
)
def test_faulty_data_yaml_is_refused(yolo: Make, yaml: str, message: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml: .*" + message):
        run(yolo({"train/a.png": UPPER_ROWS}, yaml))


def test_part_that_is_nowhere_is_refused_if_images_are_left_over(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/b.png": ""}, TRAIN + "val: images/holdout\n" + NAMES)
    (src / "images/val").rename(src / "images/other")
    with pytest.raises(
        LabelError, match=r"data\.yaml: 'val: images/holdout' is not there, and may be the folder of b\.png"
    ):
        run(src)
    (src / "images/other/b.png").unlink()
    (src / "labels/val/b.txt").unlink()
    assert kinds(run(src)) == {"absent_folder": 1}  # as in sets of Roboflow without a test part


def test_upper_case_folders_are_paired(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/b.png": ""})
    for name in ("images", "labels"):
        (src / name).rename(src / name.upper())
    run(src)
    assert split(tmp_path) == {"a.png": "train", "b.png": "val"}
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS_RLE}"]


def test_accents_may_be_spelled_in_two_ways_and_subsets_may_have_any_name(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"Line1/\u00e4.png": UPPER_ROWS}, "path: .\nLine1: Line1.txt\nnames: [crack]\n")
    (src / "labels/Line1/\u00e4.txt").rename(src / "labels/Line1/a\u0308.txt")
    (src / "Line1.txt").write_text("data/images/Line1/a\u0308.png\n")
    report = run(src)
    assert (report.parts, kinds(report)) == ({}, {"other_part": 1})
    assert rows(tmp_path) == [f"Line1/\u00e4.png,1,{UPPER_ROWS_RLE}"]


def test_one_of_several_descriptions_may_be_given_itself(tmp_path: Path, yolo: Make) -> None:
    src = yolo({"train/a.png": UPPER_ROWS, "val/b.png": ""}, name="mill.yaml")
    (src / "old.yaml").write_text(YAML.replace("crack", "rust"))
    (src / "train.yaml").write_text("epochs: 100\n")
    with pytest.raises(LabelError, match=r"mill\.yaml and old\.yaml both describe a data set"):
        run(src)
    assert run(src / "mill.yaml").classes[0].name == "crack"


def test_sets_without_label_files_are_refused_and_masks_are_known(
    tmp_path: Path, yolo: Make, write_image: Make
) -> None:
    src = yolo({"train/a.png": None, "val/b.png": None})
    with pytest.raises(DataError, match=r"nothing is labelled in 2 images.*labels/train/a\.txt"):
        run(src)
    write_image(src / "masks/train/a.png")
    assert recognise(LabelSource(src, src))[0].name == "masks"
    with pytest.raises(DataError, match="two images of one name"):
        import_labels(yolo({"train/a.png": "", "train/a.jpg": ""}), tmp_path / "out", kind="yolo")


def test_any_content_gives_an_import_or_an_error_that_names_the_source(tmp_path: Path, yolo: Make) -> None:
    rng = np.random.default_rng(0)
    odd = [
        "\x00",
        "\ud7ff",
        "&a",
        "*a",
        "!!int x",
        "[",
        "{",
        "%",
        "1e999",
        "-1",
        "\n",
        " ",
        "9" * 5000,
        "../",
        "nan",
        "🎉",
        "_",
    ]
    told: list[str] = []
    for number in range(60):
        texts = [YAML, UPPER_ROWS]
        which = number % 2
        place = int(rng.integers(len(texts[which])))
        cut = int(rng.integers(0, 8))
        texts[which] = texts[which][:place] + odd[rng.integers(len(odd))] + texts[which][place + cut :]
        src = yolo({"train/a.png": texts[1], "val/b.png": ""}, texts[0])
        try:
            run(src, out=f"out{number}", unlabelled="clean", absent="skip")
        except DataError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all("src" in text for text in told)


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


FOLDER = {"a.png": {1: "##../##.."}, "line 1/b.JPG": {2: ".#../...."}, "c.png": {}}


@pytest.mark.parametrize(("fold", "names"), [(1, ("0", "1", "2")), (None, ("train", "val", "test"))])
def test_split_becomes_train_val_and_test(
    tmp_path: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch, fold: int | None, names: tuple[str, ...]
) -> None:
    root = make_folder(tmp_path / "data", FOLDER)
    (root / "split.csv").touch()
    folds = dict(zip(("a.png", "line 1/b.JPG", "c.png"), names, strict=True))
    monkeypatch.setattr("defectseg.formats.yolo.write.read_split", lambda path, image_ids: folds)
    report = export_yolo(root, tmp_path / "yolo", fold=fold)
    last = "train" if fold else "test"
    assert kinds(report) == ({"folds": 1} if fold else {})
    files = {path.relative_to(tmp_path / "yolo").as_posix() for path in (tmp_path / "yolo").rglob("*.*")}
    parts = ("train/a", "val/line 1/b", f"{last}/c")
    assert files == {"data.yaml", *(f"labels/{name}.txt" for name in parts)} | {
        *("images/train/a.png", "images/val/line 1/b.JPG", f"images/{last}/c.png"),
    }
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        **({} if fold else {"test": "images/test"}),
        "names": {0: "crack", 1: "dent"},
    }
    # pixel (1, 0) of 4 x 2 alone, as three points within it
    assert (tmp_path / "yolo/labels/val/line 1/b.txt").read_text() == (
        "1 0.312500 0.125000 0.437500 0.125000 0.375000 0.375000\n"
    )
    assert (tmp_path / f"yolo/labels/{last}/c.txt").read_text() == ""
    import_labels(tmp_path / "yolo", tmp_path / "out")
    assert split(tmp_path) == {"a.png": "train", "line 1/b.JPG": "val", "c.png": last}
    if fold is None:
        with pytest.raises(UsageError, match=r"fold: .*split\.csv has test, train, val; 0 cannot become val"):
            export_yolo(root, tmp_path / "other", fold=0)


@pytest.mark.parametrize(
    ("split", "fold", "kind", "message"),
    [
        ("a.png,0\n", 0, DataError, r"gives no fold for c\.png, line 1/b\.JPG\."),
        ("a.png,0\nc.png,1\nline 1/b.JPG,1\n", 2, UsageError, r"fold: .*split\.csv has 0, 1; 2 cannot become val"),
        ("a.png,0\nc.png,0\nline 1/b.JPG,0\n", None, UsageError, r"fold: .*split\.csv has 0; 0 cannot become val"),
    ],
)
def test_split_that_does_not_fit_is_refused(
    tmp_path: Path, make_folder: Make, split: str, fold: int, kind: type[DefectsegError], message: str
) -> None:
    root = make_folder(tmp_path / "data", FOLDER)
    (root / "split.csv").write_text("ImageId,fold\n" + split)
    with pytest.raises(kind, match=message):
        export_yolo(root, tmp_path / "yolo", fold=fold)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
