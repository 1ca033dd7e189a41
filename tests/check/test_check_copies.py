"""Copies that `check` finds, and what it leaves on disk."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.check.check import check_data_folder
from defectseg.check.report import CheckReport, output_folder, write_check
from defectseg.copies.descriptors import turned
from defectseg.data.synthetic import make_sheet
from defectseg.errors import DataError, UsageError
from defectseg.image import rle
from defectseg.pages.contact_sheet import make_contact_sheet


def sheets_folder(root: Path, sheets: str, *, columns: int = 40) -> Path:
    """A folder of sheets, "name=number/turn name=number" and so on; the mask is the first columns, turned with it."""
    (root / "train_images").mkdir(parents=True)
    rows = ["ImageId,ClassId,EncodedPixels"]
    for name, _, picture in (sheet.partition("=") for sheet in sheets.split()):
        number, _, turn = picture.partition("/")
        image = turned(make_sheet(21, int(number), (128, 128)).image, turn or "0")
        cv2.imwrite(str(root / f"train_images/{name}.png"), image)
        mask = np.zeros((128, 128), np.bool_)
        mask[10:90, :columns] = True
        rows.append(f"{name}.png,1,{rle.encode(turned(mask, turn or '0'))}")
    (root / "train.csv").write_text("\n".join([*rows, ""]))
    return root


def duplicates(report: CheckReport) -> list[tuple[str, str, str, bool | None]]:
    return [(pair.image, pair.other, pair.turn, pair.masks_agree) for pair in report.duplicates]


def leaks(report: CheckReport) -> list[tuple[str, str, str, bool | None]]:
    return [(pair.image, pair.other, pair.turn, pair.masks_agree) for pair in report.leaks]


def test_copies_within_the_folder_are_problems_and_leaks_where_folds_part_them(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, "a=0 b=1 c=0/90 d=2 e=1")
    report = check_data_folder(root)
    assert duplicates(report) == [("a.png", "c.png", "270", True), ("b.png", "e.png", "0", True)]
    assert report.duplicates[0].score > 0.99
    assert (report.leaks, report.faults, report.has_problems) == ((), (), True)
    assert report.to_dict()["duplicates"][1] == {
        "image": "b.png", "other": "e.png", "turn": "0", "score": 1.0, "masks_agree": True,
    }  # fmt: skip
    (root / "split.csv").write_text("ImageId,fold\na.png,0\nb.png,1\nc.png,1\nd.png,1\ne.png,1\n")
    report = check_data_folder(root)
    assert len(report.duplicates) == 2
    assert leaks(report) == [("a.png", "c.png", "270", True)]
    assert list(report.to_dict()["leaks"][0]) == ["image", "other", "turn", "score", "masks_agree"]
    (fault,) = report.faults
    assert (fault.severity, fault.kind) == ("error", "split")
    assert "1 pairs of copies lie in different folds, the first a.png and c.png" in fault.message
    (root / "split.csv").write_text("ImageId,fold\na.png,0\nb.png,val\nc.png,0\nd.png,1\ne.png,test\n")
    report = check_data_folder(root)
    assert leaks(report) == [("b.png", "e.png", "0", True)]
    assert "val and test stay as they are" in report.faults[0].remedy


def test_copies_whose_masks_differ_once_turned_back_are_errors(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, "a=0 b=0/180 c=1 d=1/90 e=2 f=2")
    lines = (root / "train.csv").read_text().splitlines()
    lines[2] = lines[1].replace("a.png", "b.png")  # left unturned
    lines[4] = lines[4].replace("d.png,1", "d.png,2")  # of another class
    lines[6] = "f.png,1,1 99999"  # faulty: nothing can be said
    (root / "train.csv").write_text("\n".join(lines))
    report = check_data_folder(root)
    assert [pair[3] for pair in duplicates(report)] == [False, False, None]
    assert [(fault.kind, fault.image) for fault in report.faults] == [
        ("mask-disagreement", "a.png"),
        ("mask-disagreement", "c.png"),
        ("rle", "f.png"),
    ]
    assert "a.png and b.png show the same steel (turn 180, score 1.00), but their masks differ." in (
        report.faults[0].message
    )


def test_masks_of_shifted_copies_are_compared_after_undoing_the_shift(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path, "a=0 b=1")
    large = make_sheet(22, 0, (200, 200)).image
    masks = np.zeros((2, 200, 200), np.bool_)
    masks[0, 60:80, 60:63] = True  # 3 px wide, and the second cut lies 2 px to the left
    masks[1, 60:80, 64:67] = True
    rows = ["ImageId,ClassId,EncodedPixels"]
    for name, left, mask in (("a", 30, masks[0]), ("b", 28, masks[0]), ("c", 28, masks[1])):
        cv2.imwrite(str(root / f"train_images/{name}.png"), large[30:158, left : left + 128])
        rows.append(f"{name}.png,1,{rle.encode(mask[30:158, left : left + 128])}")
    (root / "train.csv").write_text("\n".join([*rows, ""]))
    agree = {(pair.image, pair.other): pair.masks_agree for pair in check_data_folder(root).duplicates}
    assert agree == {("a.png", "b.png"): True, ("a.png", "c.png"): False, ("b.png", "c.png"): False}


def test_copies_shared_with_another_data_folder_are_leaks(tmp_path: Path) -> None:
    train = sheets_folder(tmp_path / "train", "a=0 b=1 c=2")
    test = sheets_folder(tmp_path / "test", "a=1/mirror+90 x=5 y=0/90", columns=9)
    steps: list[tuple[int, int]] = []
    report = check_data_folder(test, against=train, progress=lambda done, of, text="": steps.append((done, of)))
    assert leaks(report) == [("a.png", "b.png", "mirror+90", False), ("y.png", "a.png", "90", False)]
    assert [(fault.kind, fault.image) for fault in report.faults] == [
        ("mask-disagreement", "a.png"),
        ("mask-disagreement", "y.png"),
    ]
    assert f"a.png and {train}: b.png show the same steel" in report.faults[0].message
    assert steps == [(done, 6) for done in range(1, 7)]
    back = check_data_folder(train, against=test)
    assert leaks(back) == [("a.png", "y.png", "270", False), ("b.png", "a.png", "mirror+90", False)]


def test_a_folder_of_images_without_labels_and_a_folder_around_both_can_be_compared_with(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "all/train", "a=0 b=1")
    (tmp_path / "all/new").mkdir()
    cv2.imwrite(str(tmp_path / "all/new/p.jpg"), make_sheet(21, 1, (128, 128)).image)
    (tmp_path / "all/new/q.png").symlink_to(root / "train_images/a.png")
    (tmp_path / "all/new/broken.jpg").write_bytes(b"\xff\xd8\xff")
    report = check_data_folder(root, against=tmp_path / "all")
    assert leaks(report) == [("a.png", "new/q.png", "0", None), ("b.png", "new/p.jpg", "0", None)]
    assert report.leaks[0].score == 1.0
    (fault,) = report.faults
    assert (fault.severity, fault.kind) == ("warning", "against")
    assert "broken.jpg" in fault.message


def test_folder_cannot_be_compared_with_itself_or_with_nothing(tmp_path: Path) -> None:
    root = sheets_folder(tmp_path / "train", "a=0")
    for same in (root, root / "train_images", tmp_path / "train" / ".." / "train"):
        with pytest.raises(UsageError, match="is the folder itself"):
            check_data_folder(root, against=same)
    with pytest.raises(DataError, match="no such folder"):
        check_data_folder(root, against=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No image in"):
        check_data_folder(root, against=tmp_path / "empty")


def test_check_leaves_json_a_contact_sheet_with_blue_labels_and_a_page_of_pairs(tmp_path: Path) -> None:
    root, out = sheets_folder(tmp_path / "steel", "a=0 b=1 <c>=2 d=0/90"), tmp_path / "out"
    (root / "train_images/broken.png").write_bytes(b"?")
    report = check_data_folder(root)
    with output_folder(out):
        write_check(out, root, report)
    assert {path.name for path in out.iterdir()} == {"check.json", "contact_sheet.jpg", "report.html"}
    assert json.loads((out / "check.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2, "both images of the one pair"
    assert "turn 270, score 1.000" in page
    assert "&lt;c&gt;" not in page.partition("<h2>Faults")[0], "images that are in no pair are not named"
    assert "broken.png" in page
    assert "http" not in page.replace("http-equiv", "")
    sheet = cv2.imread(str(out / "contact_sheet.jpg"))
    assert sheet is not None
    blue, green, red = (sheet[..., channel].astype(int) for channel in range(3))
    share = float(((blue - red > 60) & (blue - green > 60)).mean())
    tiles = 4 * 80 * 40 * (261 / 128) ** 2  # four masks, each image as wide as its tile of 261 px
    assert share == pytest.approx(tiles / sheet[..., 0].size, rel=0.1)


def test_the_contact_sheet_names_classes_as_the_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, texts = sheets_folder(tmp_path / "steel", "a=0 b=1"), list[str]()
    (root / "classes.txt").write_text("pit\n")
    cv2.imwrite(str(root / "train_images/sound.png"), make_sheet(21, 2, (128, 128)).image)

    def lay_out(shown: Sequence[tuple[NDArray[np.uint8], str]]) -> NDArray[np.uint8]:
        texts.extend(text for _, text in shown)
        return make_contact_sheet(shown)

    monkeypatch.setattr("defectseg.check.report.make_contact_sheet", lay_out)
    with output_folder(tmp_path / "out"):
        write_check(tmp_path / "out", root, check_data_folder(root))
    assert sorted(texts) == ["a.png  pit", "b.png  pit", "sound.png  clean"]


def test_page_shows_leaks_before_copies_and_those_whose_masks_differ_first(tmp_path: Path) -> None:
    root, other = sheets_folder(tmp_path / "steel", "a=0 b=1 <c>=2 d=0/90"), tmp_path / "other"
    sheets_folder(other, "a=0 b=1 <c>=2", columns=9)
    report = check_data_folder(root, against=other)
    with output_folder(tmp_path / "out"):
        write_check(tmp_path / "out", root, report, against=other)
    page = (tmp_path / "out/report.html").read_text()
    # a-a, b-b, c-c and d-a are leaks; a-d within the folder is a pair too
    assert (page.count("<figure>"), page.count(": leak,"), page.count("the masks differ")) == (5, 4, 4)
    assert page.rindex(": leak,") < page.index(": copies,")
    assert "&lt;c&gt;.png" in page
    assert "<c>" not in page
