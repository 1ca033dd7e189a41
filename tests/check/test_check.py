import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.check.check import check_data_folder
from defectseg.check.report import CheckReport, write_check
from defectseg.copies.descriptors import turned
from defectseg.data.synthetic import make_sheet
from defectseg.data.table import Fault
from defectseg.errors import DataError, LabelError, UsageError
from defectseg.image import rle


def data_folder(tmp_path: Path, *rows: str, images: str | Mapping[str, Any] = "a b c d", **files: str) -> Path:
    """A data folder of small images, or of these; `files` are named like split_csv."""
    if isinstance(images, str):
        stems = enumerate(images.split())
        images = {stem: np.random.default_rng(number).integers(40, 200, (2, 3)) for number, stem in stems}
    (tmp_path / "train_images").mkdir(parents=True, exist_ok=True)
    for stem, pixels in images.items():
        cv2.imwrite(
            str(tmp_path / f"train_images/{stem}.png"), pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint8)
        )
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path


def found(report: CheckReport) -> list[tuple[str, str, str, int | None]]:
    return [(fault.severity, fault.kind, fault.image, fault.row) for fault in report.faults]


def test_sound_folder_has_no_faults_and_its_counts_are_right(tmp_path: Path) -> None:
    root = data_folder(tmp_path, "a.png,1,1 2", "b.png,1,1 4", "b.png,3,6 1", "b.png,255,5 1", "c.png,255,1 1")
    report = check_data_folder(root)
    assert report.faults == ()
    assert report.errors == 0
    assert (report.images, report.clean_images, report.missing_images, report.ignored_px) == (4, 1, 0, 2)
    assert report.sizes == {"2x3": 4}
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
    assert report.class_sets == {"clean": 1, "class 1": 1, "class 1 + class 3": 1}
    assert (report.images_without_rows, report.unreadable_images, report.dark_images) == (1, 0, 0)
    assert not report.has_problems


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
    assert report.faults[0].remedy == "Replace the file, or take it out, and its rows too."
    assert report.sizes == {"2x3": 2}
    assert report.unreadable_images == 2
    assert report.has_problems


def test_rows_of_missing_images_get_a_hint_where_a_name_is_nearly_right(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "A.jpg,1,1 1", "train/b,2,1 1", "x.png,1,1 1"))
    assert [(fault.image, fault.remedy) for fault in report.faults] == [
        ("A.jpg", "The folder has 'a.png': write it so."),
        ("train/b", "The folder has 'b.png': write it so."),
        ("x.png", "Add the image, or take its rows out."),
    ]


ODD = {f"odd{number}": np.full((5, 3 + number), 90) for number in range(25)}
EVEN = {f"i{number}": np.full((2, 3), 40 + number) for number in range(30)}


@pytest.mark.parametrize(
    ("rows", "files", "faults", "told"),
    [
        (
            ["a.png,2,1 1", "b.png,3,1 1"],
            {"classes_txt": "pits\ncracks\n"},
            [("error", "class", "b.png", 3)],
            "there are 2 classes (pits, cracks)",
        ),
        (
            ["a.png,1,7 1"],
            {"classes_txt": "pits\npits\n"},
            [("error", "classes", "", None), ("error", "rle", "a.png", 2)],
            "'pits' names ClassId 1 and 2",
        ),
        (
            ["a.png,1,1 3", "a.png,2,2 4", "a.png,255,1 6"],
            {},
            [("warning", "overlap", "a.png", 3)],
            "2 px of 'class 2' belong to another class too",
        ),
        (
            [],
            {"images": {**EVEN, "odd": np.full((5, 3), 90)}},
            [("warning", "size", "odd.png", None)],
            "most images have 2x3",
        ),
        ([], {"images": EVEN | ODD}, [("warning", "size", "", None)], "Images have 26 sizes: 25 are not 2x3."),
        (
            [],
            {"groups_csv": "x\n", "split_csv": "ImageId,fold\na.png,one\n"},
            [("error", "groups", "", None), ("error", "split", "", None)],
            "groups.csv",
        ),
    ],
)
def test_faults_beside_the_rows_are_listed_and_the_rest_is_checked(
    tmp_path: Path, rows: list[str], files: dict[str, Any], faults: list[Any], told: str
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


def test_notes_of_decoding_are_one_warning_a_kind(tmp_path: Path) -> None:
    levels = {"a": 4000, "b": 3000, "c": 65535}
    root = data_folder(tmp_path, images={stem: np.full((2, 3), level, np.uint16) for stem, level in levels.items()})
    low, fault = (one for one in check_data_folder(root).faults if one.kind != "dark")
    assert (fault.kind, fault.message) == ("image-note", "16-bit scaled by 1/257: 3 images, the first a.png.")
    assert (low.kind, low.message[:28]) == ("bit-depth", "2 of 3 16-bit images hold no")


def test_a_bit_depth_is_what_the_images_are_measured_with_and_what_they_are_held_to(tmp_path: Path) -> None:
    pictures = {
        stem: np.array([[0, level, level], [level] * 3], np.uint16) for stem, level in (("a", 2000), ("b", 4095))
    }
    root = data_folder(tmp_path, images=pictures)
    report = check_data_folder(root, bit_depth=12)
    assert [fault.kind for fault in report.faults] == ["image-note"]
    assert report.grey_mean == pytest.approx((125 + 255) / 2 / 255 * 5 / 6)
    assert [fault.kind for fault in check_data_folder(root, bit_depth=11).faults] == ["image", "image-note"]


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


def test_report_goes_into_json(tmp_path: Path) -> None:
    report = check_data_folder(data_folder(tmp_path, "a.png,1,1 0"))
    read = json.loads(json.dumps(report.to_dict()))
    assert list(read) == [
        *("counts", "sizes", "normalisation", "class_balance", "classes", "faults", "duplicates", "leaks")
    ]
    assert read["counts"] == {
        "images": 4,
        "clean": 3,
        "without_rows": 3,
        "unreadable": 0,
        "missing": 0,
        "mostly_black": 0,
        "sheet_end": 0,
        "ignored_px": 0,
        "errors": 1,
        "warnings": 0,
        "duplicates": 0,
        "leaks": 0,
    }
    assert read["faults"][0]["row"] == 2
    assert Fault(**read["faults"][0]) == report.faults[0]


def test_what_is_no_data_folder_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no train_images/"):
        check_data_folder(tmp_path)
    root = data_folder(tmp_path)
    (root / "train.csv").write_text("a,b\n")
    with pytest.raises(LabelError, match="is not known"):
        check_data_folder(root)


def test_masks_that_cover_nearly_all_or_nearly_nothing_are_warned_about(tmp_path: Path) -> None:
    rows = ("a.png,1,1 9500", "b.png,1,1 9499", "c.png,1,1 16", "d.png,1,1 15", "a.png,255,1 10000")
    root = data_folder(tmp_path, *rows, images=dict.fromkeys("abcd", np.full((100, 100), 90)))
    report = check_data_folder(root)
    assert [(fault.severity, fault.image, fault.row, fault.message.partition("' ")[2]) for fault in report.faults] == [
        ("warning", "a.png", 2, "covers 95 % of the image."),
        ("warning", "d.png", 5, "has only 15 px."),
    ]
    assert not report.has_problems


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
    root = data_folder(tmp_path, images={"lit": lit, "ended": ended, "mostly": mostly, "black": black})
    report = check_data_folder(root)
    assert found(report) == [("warning", "dark", "black.png", None), ("warning", "dark", "mostly.png", None)]
    assert "51 % of it is black" in report.faults[1].message
    assert (report.dark_images, report.sheet_end_images) == (2, 2)


def test_grey_levels_are_summed_up_over_all_pixels(tmp_path: Path) -> None:
    root = data_folder(tmp_path, images={"a": np.full((2, 3), 51), "b": np.full((1, 2), 255)})
    report = check_data_folder(root)
    assert report.grey_mean == pytest.approx((6 * 0.2 + 2 * 1.0) / 8)
    assert report.grey_std == pytest.approx(0.8 * (0.75 * 0.25) ** 0.5)


# copies


def sheets_folder(root: Path, pictures: dict[str, tuple[int, str]], *, masked: bool = True, columns: int = 40) -> Path:
    """A folder of sheets: name -> (number of the sheet, its turn); the mask is the first columns, turned with it."""
    (root / "train_images").mkdir(parents=True)
    rows = ["ImageId,ClassId,EncodedPixels"]
    for name, (number, turn) in pictures.items():
        cv2.imwrite(str(root / "train_images" / name), turned(make_sheet(21, number, (128, 128)).image, turn))
        mask = np.zeros((128, 128), np.bool_)
        mask[10:90, :columns] = True
        if masked:
            rows.append(f"{name},1,{rle.encode(turned(mask, turn))}")
    (root / "train.csv").write_text("\n".join([*rows, ""]))
    return root


def test_copies_within_the_folder_are_problems(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, {"a.png": (0, "0"), "b.png": (1, "0"), "c.png": (0, "90"), "d.png": (2, "0")})
    report = check_data_folder(root)
    (pair,) = report.duplicates
    assert (pair.image, pair.other, pair.turn, pair.masks_agree) == ("a.png", "c.png", "270", True)
    assert pair.score > 0.99
    assert report.leaks == ()
    assert report.faults == ()
    assert report.has_problems
    assert report.to_dict()["duplicates"] == [
        {"image": "a.png", "other": "c.png", "turn": "270", "score": pair.score, "masks_agree": True}
    ]


def test_copies_whose_masks_differ_once_turned_back_are_errors(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, {"a.png": (0, "0"), "b.png": (0, "180"), "c.png": (1, "0"), "d.png": (1, "90")})
    lines = (root / "train.csv").read_text().splitlines()
    # b's mask is left unturned, d's row is of another class
    lines[2] = lines[1].replace("a.png", "b.png")
    lines[4] = lines[4].replace("d.png,1", "d.png,2")
    (root / "train.csv").write_text("\n".join(lines))
    report = check_data_folder(root)
    assert [(pair.image, pair.other, pair.masks_agree) for pair in report.duplicates] == [
        ("a.png", "b.png", False),
        ("c.png", "d.png", False),
    ]
    assert found(report) == [
        ("error", "mask-disagreement", "a.png", None),
        ("error", "mask-disagreement", "c.png", None),
    ]
    assert "a.png and b.png show the same steel (turn 180, score 1.00), but their masks differ." in (
        report.faults[0].message
    )


def test_copies_across_folds_are_leaks(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, {"a.png": (0, "0"), "b.png": (0, "90"), "c.png": (1, "0"), "d.png": (1, "0")})
    (root / "split.csv").write_text("ImageId,fold\na.png,0\nb.png,1\nc.png,1\nd.png,1\n")
    report = check_data_folder(root)
    assert [(pair.image, pair.other) for pair in report.duplicates] == [("a.png", "b.png"), ("c.png", "d.png")]
    assert [(pair.image, pair.other, pair.turn) for pair in report.leaks] == [("a.png", "b.png", "270")]
    (fault,) = report.faults
    assert "1 pairs of copies lie in different folds, the first a.png and b.png" in fault.message


def test_copies_shared_with_another_data_folder_are_leaks(tmp_path: Path) -> None:
    train = sheets_folder(tmp_path / "train", {"a.png": (0, "0"), "b.png": (1, "0"), "c.png": (2, "0")})
    test = sheets_folder(
        tmp_path / "test", {"a.png": (1, "mirror+90"), "x.png": (5, "0"), "y.png": (0, "90")}, columns=9
    )
    report = check_data_folder(test, against=train)
    assert [(pair.image, pair.other, pair.turn, pair.masks_agree) for pair in report.leaks] == [
        ("a.png", "b.png", "mirror+90", False),
        ("y.png", "a.png", "90", False),
    ]
    assert [set(leak) for leak in report.to_dict()["leaks"]] == [{"image", "other", "turn", "score"}] * 2
    assert [(fault.kind, fault.image) for fault in report.faults] == [
        ("mask-disagreement", "a.png"),
        ("mask-disagreement", "y.png"),
    ]
    assert f"a.png and {train}: b.png show the same steel" in report.faults[0].message
    back = check_data_folder(train, against=test)
    assert [(pair.image, pair.other, pair.turn) for pair in back.leaks] == [
        ("a.png", "y.png", "270"),
        ("b.png", "a.png", "mirror+90"),
    ]


def test_folder_of_images_without_labels_can_be_compared_with(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "train", {"a.png": (0, "0"), "b.png": (1, "0")})
    plain = tmp_path / "photos" / "new"
    plain.mkdir(parents=True)
    cv2.imwrite(str(plain / "p.jpg"), make_sheet(21, 1, (128, 128)).image)
    (plain / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    report = check_data_folder(root, against=tmp_path / "photos")
    assert [(pair.image, pair.other, pair.masks_agree) for pair in report.leaks] == [("b.png", "new/p.jpg", None)]
    (fault,) = report.faults
    assert (fault.severity, fault.kind) == ("warning", "against")
    assert "broken.jpg" in fault.message


def test_folder_cannot_be_compared_with_itself_or_with_nothing(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "train", {"a.png": (0, "0")})
    for same in (root, root / "train_images", tmp_path / "train" / ".." / "train"):
        with pytest.raises(UsageError, match="is the folder itself"):
            check_data_folder(root, against=same)
    with pytest.raises(DataError, match="no such folder"):
        check_data_folder(root, against=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No image in"):
        check_data_folder(root, against=tmp_path / "empty")


def test_folder_around_both_is_compared_without_the_own_images(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "all" / "train", {"a.png": (0, "0"), "b.png": (1, "0")})
    sheets_folder(tmp_path / "all" / "test", {"x.png": (1, "180")})
    (pair,) = check_data_folder(root, against=tmp_path / "all").leaks
    assert (pair.image, pair.other) == ("b.png", "test/train_images/x.png")


def test_linked_images_in_another_folder_are_leaks(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "train", {"a.png": (0, "0"), "b.png": (1, "0")})
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.png").symlink_to(root / "train_images" / "b.png")
    (pair,) = check_data_folder(root, against=tmp_path / "test").leaks
    assert (pair.image, pair.other, pair.turn, pair.score) == ("b.png", "c.png", "0", 1.0)


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
    assert (report.images, report.unreadable_images) == (len(sound.split()) + 3, 3)
    write_check(tmp_path / "out", root, report, against=other)


def test_progress_counts_the_images_of_both_folders(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "train", {"a.png": (0, "0"), "b.png": (1, "0")})
    other = sheets_folder(tmp_path / "test", {"a.png": (2, "0")})
    steps: list[tuple[int, int]] = []
    check_data_folder(root, against=other, progress=lambda done, of, text="": steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
