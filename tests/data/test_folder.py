import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder, unknown_classes, write_not_labelled
from defectseg.data.split import read_split
from defectseg.errors import DataError, LabelError

ROWS = "a.jpg,1,1 2\na.jpg,3,5 1\nb.jpg,2,3 1\nb.jpg,255,4 2\n"


def data_folder(
    tmp_path: Path,
    rows: str = ROWS,
    images: tuple[str, ...] = ("a.jpg", "b.jpg", "sub/clean.jpg"),
    size_hw: tuple[int, int] = (2, 3),
    **files: str,
) -> Path:
    for name in images:
        path = tmp_path / "train_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros(size_hw, np.uint8))
    (tmp_path / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\n{rows}")
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


def test_clean_and_missing_images_are_known_from_the_folder(tmp_path: Path) -> None:
    folder = open_data_folder(data_folder(tmp_path, images=("a.jpg", "sub/clean.jpg")))
    assert folder.image_ids == ("a.jpg", "sub/clean.jpg")
    assert [folder.classes_of(image_id) for image_id in folder.image_ids] == [(1, 3), ()]
    assert folder.image_path("sub/clean.jpg") == tmp_path / "train_images/sub/clean.jpg"
    assert (folder.missing_images, folder.classes_of("b.jpg")) == (("b.jpg",), (2,))


def test_masks_have_a_plane_for_each_class_and_ignored_pixels_are_separate(tmp_path: Path) -> None:
    folder = open_data_folder(data_folder(tmp_path))
    masks, ignore = folder.masks_of("a.jpg", (2, 3))
    assert masks.astype(int).tolist() == [
        [[1, 0, 0], [1, 0, 0]], [[0] * 3] * 2, [[0, 0, 1], [0, 0, 0]], [[0] * 3] * 2,
    ]  # fmt: skip
    assert not ignore.any()
    masks, ignore = folder.masks_of("b.jpg", (2, 3))
    assert ignore.astype(int).tolist() == [[0, 0, 1], [0, 1, 0]]
    assert masks.sum() == 1
    masks, ignore = folder.masks_of("sub/clean.jpg", (2, 3))
    assert not masks.any()
    assert ignore.shape == (2, 3)


def _boxes(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Bool (60, 80), True in boxes of top, left, height and width."""
    mask = np.zeros((60, 80), np.bool_)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("ignored", "unknown"),
    [
        (_boxes(), []),
        (_boxes((0, 50, 5, 5)), [2]),
        (_boxes((12, 12, 26, 26)) & ~_boxes((20, 20, 10, 10)), []),
        (_boxes((12, 11, 26, 26)) & ~_boxes((20, 20, 10, 10)), [2]),
        (_boxes((22, 30, 4, 12)), [2]),
        (_boxes((22, 30, 4, 4), (0, 50, 5, 5)), [2]),
        (_boxes((18, 28, 14, 4)), []),
        (_boxes((20, 20, 10, 10)), [1, 2]),
        (_boxes((0, 0, 60, 80)), [1, 2]),
    ],
    ids=["nothing", "far", "border", "9 px", "streak", "border and far", "over the edge", "the defect", "everything"],
)
def test_a_class_is_unknown_where_more_than_a_border_of_8_px_is_ignored_and_it_is_not_seen(
    ignored: NDArray[np.bool_], unknown: list[int]
) -> None:
    masks = np.stack([_boxes((20, 20, 10, 10)), _boxes()])
    assert (np.flatnonzero(unknown_classes(masks, ignored)) + 1).tolist() == unknown


def test_a_class_that_is_labelled_under_the_border_of_another_alone_is_unknown() -> None:
    masks = np.stack([_boxes((20, 20, 10, 10)), _boxes(), _boxes((22, 31, 2, 2))])
    assert unknown_classes(masks, _boxes((20, 30, 10, 4))).tolist() == [False, False, True]


def test_classes_of_an_image_are_the_visible_ones_and_others_may_be_unknown(tmp_path: Path) -> None:
    # 20 rows: pixels 1 to 20 are the first column, 401 to 600 the last ten of thirty.
    rows = {
        "a.png": {1: "1 5", 255: "401 200"},  # far from the defect
        "b.jpg": {2: "1 5", 255: "1 600"},  # everything
        "c.bmp": {1: "1 5", 255: "6 5"},  # a border
        "d.png": {},
        "e.png": {1: "1 5", 255: "401 200"},  # no image: as its rows have it
    }
    text = "".join(f"{name},{c},{pairs}\n" for name, by_class in rows.items() for c, pairs in by_class.items())
    root = data_folder(tmp_path, text, tuple(rows), size_hw=(20, 30))
    (root / "train_images/e.png").write_bytes(b"no image")
    folder = open_data_folder(root)
    assert folder.unknown == {"a.png": {2, 3, 4}, "b.jpg": {1, 2, 3, 4}}
    assert [folder.classes_of(image_id) for image_id in folder.image_ids] == [(1,), (), (1,), (), (1,)]


def test_classes_come_from_classes_txt_else_there_are_four_or_more(tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    assert open_data_folder(root).class_names == ("class 1", "class 2", "class 3", "class 4")
    with pytest.raises(DataError, match="ClassId 3, but there are 2 classes"):
        open_data_folder(root, class_names=["x", "y"])
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfpits\r\n cracks \r\nscratches\r\n\r\n")
    assert open_data_folder(root).class_names == ("pits", "cracks", "scratches")
    (root / "classes.txt").unlink()
    assert open_data_folder(data_folder(tmp_path, rows="a.jpg,6,1 2\na.jpg,255,3 1\n")).num_classes == 6
    assert open_data_folder(data_folder(tmp_path, rows="")).classes_of("a.jpg") == ()


@pytest.mark.parametrize(
    ("lines", "model", "names", "of_a", "of_b", "said"),
    [
        ("q r p", "p,q,r", "p,q,r", (1, 2), (3,), ""),
        ("q r p", "p,x,q,r,y", "p,q,r", (1, 2), (3,), "does not name x, y; .*only p, q, r count"),
        ("q r p s", "s,p,q,r", "s,p,q,r", (2, 3), (4,), ""),
        ("1 2 3", "p,q,r", "p,q,r", (1, 3), (2,), "by number"),
        ("1 2 3", "p,q,r,s", "p,q,r", (1, 3), (2,), "by number.*\\n.*does not name s"),
        ("3 1 2", "p,q,r", "p,q,r", (2, 3), (1,), "by number"),
        ("p q r", "1,2,3,4", "1,2,3", (1, 3), (2,), "by number: the model.*\\n.*does not name class 4"),
        ("2 3 4", "1,2,3,4", "2,3,4", (1, 3), (2,), "by number.*\\n.*does not name class 1"),
        (None, "p,q,r", "p,q,r", (1, 3), (2,), "without classes.txt"),
        (None, "1,2,3,4", "1,2,3,4", (1, 3), (2,), "without classes.txt"),
    ],
)
def test_classes_are_matched_with_a_model_by_name_else_by_number_with_a_message(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lines: str | None,
    model: str,
    names: str,
    of_a: tuple[int, ...],
    of_b: tuple[int, ...],
    said: str,
) -> None:
    caplog.set_level("INFO", "defectseg")
    root = data_folder(tmp_path)
    if lines is not None:
        (root / "classes.txt").write_text("\n".join(_names(lines.split())))

    folder = open_data_folder(root, class_names=_names(model.split(",")))

    assert folder.class_names == _names(names.split(","))
    assert (folder.classes_of("a.jpg"), folder.classes_of("b.jpg")) == (of_a, of_b)
    assert folder.masks_of("b.jpg", (2, 3))[1].sum() == 2
    assert re.fullmatch(f".*{said}.*", "\n".join(caplog.messages)) if said else not caplog.messages
    assert len(caplog.messages) == (said.count("\\n") + 1 if said else 0)


@pytest.mark.parametrize(
    ("lines", "model", "unknown"),
    [
        ("p q rust", "p,q,r", "rust"),
        ("1 2 3 4 5", "p,q,r,s", "class 5"),
        ("p q r s t", "1,2,3,4", "t"),
    ],
)
def test_a_class_that_the_model_does_not_know_is_refused_with_both_lists(
    tmp_path: Path, lines: str, model: str, unknown: str
) -> None:
    own, known = _names(lines.split()), _names(model.split(","))
    with pytest.raises(DataError, match=rf"classes\.txt: names {unknown}, .*{', '.join(own)}; .*{', '.join(known)}\."):
        open_data_folder(data_folder(tmp_path, classes_txt="\n".join(own)), class_names=known)


def _names(words: Sequence[str]) -> tuple[str, ...]:
    """Numbers stand for placeholders."""
    return tuple(f"class {word}" if word.isdecimal() else word for word in words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pits\ncracks\n", r"a\.jpg has a mask of ClassId 3, but there are 2 classes \(pits, cracks\)"),
        ("pits\n\ncracks\n", r"classes\.txt: the name of ClassId 2 is blank"),
        ("pits\ncracks\npits\n", r"classes\.txt: 'pits' names ClassId 1 and 3"),
        ("", r"classes\.txt: 0 class names"),
        ("".join(f"{n}\n" for n in range(255)), r"classes\.txt: 255 class names; expected 1 to 254"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data_folder(data_folder(tmp_path, classes_txt=text))


def test_folder_of_which_no_row_has_its_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it names 'a\.jpg', train_images/ holds 'a\.png'"):
        open_data_folder(data_folder(tmp_path, images=("a.png", "b.png")))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_data_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no train_images/"):
        open_data_folder(tmp_path)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(DataError, match=r"has neither train\.csv nor train\.csv\.gz; .*data import"):
        open_data_folder(tmp_path)
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    with pytest.raises(DataError, match=r"No image in .*train_images"):
        open_data_folder(tmp_path)
    (tmp_path / "train.csv.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"has train\.csv and train\.csv\.gz"):
        open_data_folder(tmp_path)


def test_labels_of_other_tools_are_to_be_imported(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="data import SRC"):
        open_data_folder(tmp_path)


def test_groups_are_read_for_the_images_that_have_one(tmp_path: Path) -> None:
    folder = open_data_folder(data_folder(tmp_path, groups_csv="ImageId,Group\na.jpg,coil 7\nb.jpg,coil 7\n"))
    assert folder.groups == {"a.jpg": "coil 7", "b.jpg": "coil 7"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Image,Group\na.jpg,1\n", r"groups\.csv: has the columns Image, Group; expected ImageId,Group"),
        ("ImageId,Group\na.jpg,\n", r"groups\.csv, line 2: a\.jpg has a blank group"),
        ("ImageId,Group\na.jpg,1\na.jpg,2\n", r"groups\.csv, line 3: a\.jpg is in group '1' already"),
        ("ImageId,Group\n../a.jpg,1\n", r"groups\.csv, line 2: ImageId '\.\./a\.jpg'"),
        ("ImageId,Group\na.jpg\n", r"groups\.csv, line 2: has another number of fields"),
    ],
)
def test_faulty_groups_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        open_data_folder(data_folder(tmp_path, groups_csv=text))


def test_fingerprint_changes_with_labels_and_images_and_with_nothing_else(tmp_path: Path) -> None:
    def fingerprint(rows: str = ROWS, **files: Any) -> str:
        return open_data_folder(data_folder(tmp_path, rows, **files)).fingerprint()

    first = fingerprint()
    assert fingerprint("\n".join(reversed(ROWS.splitlines())), classes_txt="p\nq\nr\n") == first
    assert fingerprint(ROWS.replace("5 1", "5 2")) != first
    (tmp_path / "train_images" / "c.jpg").symlink_to("gone.jpg")  # whose size is 0
    linked = fingerprint()
    assert linked != first
    with (tmp_path / "train_images/a.jpg").open("ab") as handle:
        handle.write(b"\0")
    folder = open_data_folder(tmp_path)
    assert pickle.loads(pickle.dumps(folder)).fingerprint() == folder.fingerprint() not in (first, linked)


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
def test_files_with_a_faulty_name_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = data_folder(tmp_path)
    for name in (b"\xff.jpg", b"a\\b.jpg"):
        (root / "train_images" / os.fsdecode(name)).touch()
    folder = open_data_folder(root)
    assert folder.image_ids == ("a.jpg", "b.jpg", "sub/clean.jpg")
    assert [image.image_id for image in folder.faulty] == ["%FF.jpg", "a%5Cb.jpg"]
    (message,) = caplog.messages
    assert message.startswith("2 files or folders are left out")
    for image_id in folder.image_ids:
        (root / "train_images" / image_id).unlink()
    with pytest.raises(DataError, match="holds no image that can be read"):
        open_data_folder(root)


def test_images_that_nobody_has_labelled_are_known_and_left_out(tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    write_not_labelled(root, ["sub/clean.jpg", "gone.jpg"])
    assert (root / "not_labelled.csv").read_text() == "ImageId\ngone.jpg\nsub/clean.jpg\n"
    folder = open_data_folder(root)
    assert folder.image_ids == ("a.jpg", "b.jpg")
    assert folder.not_labelled == {"gone.jpg", "sub/clean.jpg"}
    with (root / "train.csv").open("a") as handle:
        handle.write("sub/clean.jpg,,\n")  # that is, it were clean
    with pytest.raises(LabelError, match=r"train\.csv: has rows for sub/clean\.jpg, which not_labelled\.csv lists"):
        open_data_folder(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Image\na.jpg\n", r"not_labelled\.csv: has the columns Image; expected ImageId\."),
        ("ImageId\n../a.jpg\n", r"not_labelled\.csv, line 2: ImageId"),
        ("ImageId\na.jpg\nb.jpg\nsub/clean.jpg\n", r"not_labelled\.csv: lists every image"),
    ],
)
def test_a_faulty_list_of_images_without_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = data_folder(tmp_path, "")
    (root / "not_labelled.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        open_data_folder(root)


ONE, TWO = "\u00fc.jpg", "u\u0308.jpg"  # ü as one character, and as u with an accent


@pytest.mark.parametrize(("stored", "written"), [(ONE, TWO), (TWO, ONE)])
def test_names_in_another_unicode_form_are_matched_in_every_table(tmp_path: Path, stored: str, written: str) -> None:
    root = data_folder(tmp_path, f"{written},1,1 2\n", (stored, "a.jpg", f"b/{stored}"))
    (root / "groups.csv").write_text(f"ImageId,Group\n{written},coil 1\n")
    (root / "split.csv").write_text(f"ImageId,fold\n{written},1\n")
    write_not_labelled(root, [f"b/{written}"])
    folder = open_data_folder(root)
    assert (folder.missing_images, folder.classes_of(stored), folder.groups) == ((), (1,), {stored: "coil 1"})
    assert folder.not_labelled == {f"b/{stored}"}
    assert read_split(root / "split.csv", folder.image_ids) == {stored: 1}


THREE, FOUR, FIVE = "s\u0323\u0307.jpg", "s\u0307\u0323.jpg", "\u1e69.jpg"  # three spellings of one letter


@pytest.mark.parametrize(
    ("images", "names"), [((ONE,), (ONE, TWO)), ((THREE,), (FOUR, FIVE)), ((THREE, FOUR), (FIVE,))]
)
def test_names_that_cannot_be_matched_for_certain_are_refused(
    tmp_path: Path, images: tuple[str, ...], names: tuple[str, ...]
) -> None:
    root = data_folder(tmp_path, "".join(f"{name},1,1 2\n" for name in names), images)
    with pytest.raises(LabelError, match=r"train\.csv: .*are the same letters"):
        open_data_folder(root)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\0b", "x" * 90_000], ids=["escape", "zero", "long"])
def test_a_class_name_that_no_message_could_show_is_refused(name: str, tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    (root / "classes.txt").write_text(f"pits\n{name}\nscratches\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt: the name of ClassId 2 is too long or"):
        open_data_folder(root)
