import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.check.check import check_data_folder
from defectseg.check.report import CheckReport, write_check
from defectseg.errors import DataError, LabelError


def data_folder(tmp_path: Path, *rows: str, images: str | Mapping[str, Any] = "a b c d", **files: str) -> Path:
    """A data folder of small images, or of these; `files` are named like split_csv."""
    if isinstance(images, str):
        stems = enumerate(images.split())
        images = {stem: np.random.default_rng(number).integers(40, 200, (2, 3)) for number, stem in stems}
    (tmp_path / "train_images").mkdir(parents=True, exist_ok=True)
    for stem, pixels in images.items():
        depth = np.uint16 if pixels.dtype == np.uint16 else np.uint8
        cv2.imwrite(str(tmp_path / f"train_images/{stem}.png"), pixels.astype(depth))
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


def found(report: CheckReport) -> list[str]:
    """Severity, kind, ImageId and row of each fault, "-" for what it does not have."""
    return [f"{fault.severity} {fault.kind} {fault.image or '-'} {fault.row or '-'}" for fault in report.faults]


def test_sound_folder_has_no_faults_and_its_counts_are_right(tmp_path: Path) -> None:
    root = data_folder(tmp_path, "a.png,1,1 2", "b.png,1,1 4", "b.png,3,6 1", "b.png,255,5 1", "c.png,255,1 1")
    report = check_data_folder(root)
    assert (report.faults, report.has_problems, report.counts["errors"]) == ((), False, 0)
    assert [
        (one.name, one.images, one.smallest_px, one.median_px, one.largest_px, one.regions) for one in report.classes
    ] == [
        ("class 1", 2, 2, 3.0, 4, 2),
        ("class 2", 0, 0, 0.0, 0, 0),
        ("class 3", 1, 1, 1.0, 1, 1),
        ("class 4", 0, 0, 0.0, 0, 0),
    ]
    assert [one.image_share for one in report.classes] == [0.5, 0, 0.25, 0]
    assert [one.px_share for one in report.classes] == [6 / 24, 0, 1 / 24, 0]
    read = json.loads(json.dumps(report.to_dict()))
    counts = dict.fromkeys(("unreadable", "missing", "mostly_black", "sheet_end", "errors", "warnings"), 0)
    counts |= {
        "images": 4,
        "clean": 1,
        "without_rows": 1,
        "ignored_px": 2,
        "duplicates": 0,
        "leaks": 0,
        "not_labelled": 0,
    }
    assert read["counts"] == counts
    assert read["sizes"] == {"2x3": 4}
    assert read["class_balance"] == {"clean": 1, "class 1": 1, "class 1 + class 3": 1}
    keys = [*("counts", "sizes", "normalisation", "class_balance", "classes", "faults", "duplicates", "leaks")]
    assert list(read) == keys


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
        "error fields - 10",
        "error image-id ../c.png 11",
        *(f"error rle a.png {line}" for line in (2, 3, 4)),
        *(f"error rle b.png {line}" for line in (5, 6)),
        "error duplicate b.png 8",
        "error class c.png 9",
        "error missing-image gone.png 12",
    ]
    assert (report.counts["errors"], report.counts["missing"]) == (10, 1)
    assert report.counts["clean"] == 1, "an image with a faulty row may have a defect"
    assert report.to_dict()["faults"][2]["row"] == 2
    assert "line 3: a.png, ClassId 2: pair 1 ('6 2') ends beyond the last pixel 6" in report.faults[3].message
    assert all(fault.message and fault.remedy for fault in report.faults)


def test_unreadable_images_are_listed_and_their_rows_left_unchecked(tmp_path: Path) -> None:
    root = data_folder(tmp_path, "a.png,1,1 1")
    content = (root / "train_images/a.png").read_bytes()
    (root / "train_images/a.png").write_bytes(content[:-12])
    (root / "train_images/b.png").write_bytes(b"")
    report = check_data_folder(root)
    assert found(report) == ["error image a.png -", "error image b.png -"]
    assert "the end chunk of PNG is missing" in report.faults[0].message
    assert (report.sizes, report.counts["unreadable"], report.has_problems) == ({"2x3": 2}, 2, True)


def test_rows_of_missing_images_get_a_hint_where_a_name_is_nearly_right(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "A.jpg,1,1 1", "train/b,2,1 1", "x.png,1,1 1"))
    assert [(fault.image, fault.remedy) for fault in report.faults] == [
        ("A.jpg", "The folder has 'a.png': write it so."),
        ("train/b", "The folder has 'b.png': write it so."),
        ("x.png", "Add the image, or take its rows out."),
    ]


ODD = {f"odd{number}": np.full((5, 3 + number), 90) for number in range(25)}
EVEN = {f"i{number}": np.full((2, 3), 40 + number) for number in range(30)}
LARGE = dict.fromkeys("abcd", np.full((100, 100), 90))
SIZES = ("a.png,1,1 9500", "b.png,1,1 9499", "c.png,1,1 16", "d.png,1,1 15", "a.png,255,1 10000")
CLASSES = {"classes_txt": "pits\ncracks\n"}
ALIKE = {"classes_txt": "pits\npits\n"}
NO_TABLES = {"groups_csv": "x\n", "split_csv": "ImageId,fold\na.png,one\n"}
GROUPS = {
    "groups_csv": "ImageId,Group\na.png,coil 1\nb.png,coil 1\nc.png,coil 2\ngone.png,coil 2\n",
    "split_csv": "ImageId,fold\na.png,0\nb.png,1\nc.png,1\n",
}
ONE, ONE_DARK, SOUND = ("i0.png,1,1 2",), ("d0.png,1,1 2",), ("a.png,1,1 2", "b.png,255,1 1")
DARK = {f"d{number}": np.full((2, 3), 2) for number in range(21)}


@pytest.mark.parametrize(
    ("rows", "files", "faults", "told"),
    [
        (("a.png,2,1 1", "b.png,3,1 1"), CLASSES, ["error class b.png 3"], "there are 2 classes (pits, cracks)"),
        (("a.png,1,7 1",), ALIKE, ["error classes - -", "error rle a.png 2"], "'pits' names ClassId 1 and 2"),
        (("a.png,1,1 3", "a.png,2,2 4", "a.png,255,1 6"), {}, ["warning overlap a.png 3"], "2 px of 'class 2' belong"),
        (SIZES, {"images": LARGE}, ["warning mask-size a.png 2", "warning mask-size d.png 5"], "covers 95 % of the"),
        (SIZES[3:4], {"images": LARGE}, ["warning mask-size d.png 2"], "has only 15 px."),
        (
            ONE,
            {"images": {**EVEN, "x": np.full((5, 3), 90)}},
            ["warning size x.png -"],
            "5x3 px, where most hav",
        ),
        (ONE, {"images": EVEN | ODD}, ["warning size - -"], "Images have 26 sizes: 25 are not 2x3."),
        (ONE_DARK, {"images": DARK}, ["warning dark - -"], "21 images are mostly black, the first d0.png."),
        (SOUND, NO_TABLES, ["error groups - -", "error split - -"], "groups.csv"),
        ((), {}, ["warning labels - -"], "No image has a mask"),
        (
            SOUND[1:],
            {},
            ["warning labels - -"],
            "100 % of the labelled pixels are to be ignored (255), and no class has",
        ),
        (("a.png,1,1 2", "a.png,255,3 3"), {}, ["warning labels - -"], "60 % of the labelled pixels"),
        (("a.png,21,1 2",), {}, ["warning classes - -"], "21 classes, which nobody has named"),
        (
            SOUND,
            GROUPS,
            ["error split - -", "error split d.png -", "warning groups gone.png -"],
            "group 'coil 1' is in folds 0, 1; scores would flatter.",
        ),
    ],
)
def test_faults_beside_the_rows_are_listed_and_the_rest_is_checked(
    tmp_path: Path, rows: Sequence[str], files: dict[str, Any], faults: list[str], told: str
) -> None:
    report = check_data_folder(data_folder(tmp_path, *rows, **files))
    assert found(report) == faults
    assert told in report.faults[0].message


def test_no_remedy_would_make_a_defect_count_as_clean_or_lose_a_mask(tmp_path: Path) -> None:
    rows = ["a.png,1,1 1", "a.png,1,2 1", "a.png,2,7 1", "b.png,x,1 1", "b.png,1,1 x"]
    remedies = {fault.kind: fault.remedy for fault in check_data_folder(data_folder(tmp_path, *rows)).faults}
    assert set(remedies) == {"duplicate", "rle", "class"}
    assert all("take the image and all its rows out" in remedies[kind] for kind in ("rle", "class"))
    assert remedies["duplicate"].startswith("Unite the two masks")


def test_notes_of_decoding_give_one_warning_for_each_kind(tmp_path: Path) -> None:
    levels = {"a": 4000, "b": 3000, "c": 65535}
    root = data_folder(tmp_path, images={stem: np.full((2, 3), level, np.uint16) for stem, level in levels.items()})
    low, fault = (one for one in check_data_folder(root).faults if one.kind not in ("dark", "labels"))
    assert (fault.kind, fault.message) == ("image-note", "16-bit scaled by 1/257: 3 images, the first a.png.")
    assert (low.kind, low.message[:28]) == ("bit-depth", "2 of 3 16-bit images hold no")


def test_images_are_scaled_and_checked_by_the_bit_depth_given(tmp_path: Path) -> None:
    pictures = {stem: [[0, level, level], [level] * 3] for stem, level in (("a", 2000), ("b", 4095))}
    images = {stem: np.array(levels, np.uint16) for stem, levels in pictures.items()}
    root = data_folder(tmp_path, "a.png,1,1 2", images=images)
    report = check_data_folder(root, bit_depth=12)
    assert [fault.kind for fault in report.faults] == ["image-note"]
    levels = [0, *[125] * 5, 0, *[255] * 5]
    assert report.grey_mean == pytest.approx(np.mean(levels) / 255)
    assert report.grey_std == pytest.approx(np.std(levels) / 255)
    assert [fault.kind for fault in check_data_folder(root, bit_depth=11).faults] == ["image", "image-note"]


def test_folder_without_images_or_a_known_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no train_images/"):
        check_data_folder(tmp_path)
    root = data_folder(tmp_path)
    (root / "train.csv").write_text("a,b\n")
    with pytest.raises(LabelError, match="is not known"):
        check_data_folder(root)


def test_areas_and_regions_are_counted_in_bins(tmp_path: Path) -> None:
    rows = ("a.png,1,1 63", "b.png,1,1 32 202 32", "c.png,1,1 1 202 1 403 1 604 1 805 1")
    root = data_folder(tmp_path, *rows, images=dict.fromkeys("abc", np.full((200, 20), 90)))
    one = check_data_folder(root).classes[0]
    assert list(one.area_histogram_px.items()) == [
        *(("1-63", 2), ("64-255", 1), ("256-1023", 0), ("1024-4095", 0), ("4096-16383", 0)),
        *(("16384-65535", 0), ("65536+", 0)),
    ]
    # a: one run; b: rows 0-31 and 1-32 of two neighbouring columns touch; c: five pixels on a diagonal touch
    assert dict(one.region_histogram) == {"1": 3, "2": 0, "3-4": 0, "5-8": 0, "9-16": 0, "17+": 0}
    assert one.regions == 3


def test_dark_images_and_sheet_ends_are_counted(tmp_path: Path) -> None:
    lit = np.full((20, 100), 90, np.uint8)
    ended, mostly, black = lit.copy(), lit.copy(), np.full((20, 100), 11, np.uint8)
    ended[:, 98:] = 3
    mostly[:, :51] = 3
    pictures = {"lit": lit, "ended": ended, "mostly": mostly, "black": black}
    root = data_folder(tmp_path, "lit.png,1,1 99", images=pictures)
    report = check_data_folder(root)
    assert found(report) == ["warning dark black.png -", "warning dark mostly.png -"]
    assert "51 % of it is black" in report.faults[1].message
    assert (report.counts["mostly_black"], report.counts["sheet_end"]) == (2, 2)


@pytest.mark.skipif(os.name == "nt", reason="such files cannot exist there")
@pytest.mark.parametrize("sound", ["a b", ""])
def test_files_with_a_faulty_name_and_pipes_are_listed_in_either_folder(tmp_path: Path, sound: str) -> None:
    root = data_folder(tmp_path / "train", split_csv="ImageId,fold\na.png,0\nb.png,1\n", images="a b")
    other = data_folder(tmp_path / "test", images="c")
    for folder in (root, other):
        (folder / "train_images" / os.fsdecode(b"\xff.png")).write_bytes(b"")
        os.mkfifo(folder / "train_images" / "p.png")
        (folder / "train_images" / "z.png").symlink_to("p.png")
    if not sound:
        for name in ("a.png", "b.png"):
            (root / "train_images" / name).unlink()
    report = check_data_folder(root, against=other)
    listed = [(fault.kind, fault.image) for fault in report.faults if fault.kind in ("image", "against")]
    assert listed == [("image", "%FF.png"), ("image", "p.png"), ("image", "z.png"), *[("against", "")] * 3]
    assert (report.counts["images"], report.counts["unreadable"]) == (len(sound.split()) + 3, 3)
    write_check(tmp_path / "out", root, report, against=other)


def test_images_that_nobody_has_labelled_are_counted_and_not_clean(tmp_path: Path) -> None:
    lists = {"groups_csv": "ImageId,Group\nd.png,coil 1\n", "split_csv": "ImageId,fold\na.png,0\nb.png,val\nd.png,1\n"}
    root = data_folder(tmp_path, "a.png,1,1 2", "c.png,1,", **lists)
    (root / "not_labelled.csv").write_text("ImageId\nc.png\nd.png\n")
    report = check_data_folder(root)
    assert found(report) == ["error not-labelled c.png 3"]
    assert (report.counts["images"], report.counts["clean"], report.counts["without_rows"]) == (2, 1, 1)
    assert report.to_dict()["counts"]["not_labelled"] == 2
    copy = np.random.default_rng(2).integers(40, 200, (2, 3))  # of c.png
    other = data_folder(tmp_path / "other", "e.png,1,1 2", images={"e": copy, "f": np.full((2, 3), 9) + copy})
    against = check_data_folder(other, against=root)
    assert (against.faults, against.leaks) == ((), ())


def test_rows_in_another_unicode_form_are_those_of_their_image(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "u\u0308.png,1,1 2", images="\u00fc b"))
    assert (report.faults, report.counts["clean"]) == ((), 1)
