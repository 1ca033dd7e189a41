import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.check.check import check_data_folder
from defectseg.check.report import output_folder, write_check
from defectseg.copies.descriptors import turned
from defectseg.data.synthetic import make_sheet
from defectseg.image import rle
from defectseg.pages.contact_sheet import choose_evenly, make_contact_sheet


def folder(root: Path) -> Path:
    """Sheets 0 to 2, a copy of sheet 0 turned by 90 degrees, and a broken image; a mask of 30 x 40 px in each."""
    (root / "train_images").mkdir(parents=True)
    mask = np.zeros((96, 128), np.bool_)
    mask[20:50, 30:70] = True
    rows = ["ImageId,ClassId,EncodedPixels"]
    for name, number, turn in (("a", 0, "0"), ("b", 1, "0"), ("<c>", 2, "0"), ("d", 0, "90")):
        cv2.imwrite(str(root / f"train_images/{name}.png"), turned(make_sheet(31, number, (96, 128)).image, turn))
        rows.append(f"{name}.png,{number + 1},{rle.encode(turned(mask, turn))}")
    (root / "train_images/broken.png").write_bytes(b"?")
    (root / "train.csv").write_text("\n".join([*rows, ""]))
    return root


def test_check_leaves_json_sheet_and_page(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "steel"), tmp_path / "out"
    report = check_data_folder(root)
    with output_folder(out):
        write_check(out, root, report)
    assert {path.name for path in out.iterdir()} == {"check.json", "contact_sheet.jpg", "report.html"}
    assert json.loads((out / "check.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2, "both images of the one pair"
    assert "a.png" in page
    assert "turn 270, score 1.000" in page
    assert "&lt;c&gt;" not in page.partition("<h2>Faults")[0], "images that are in no pair are not named"
    assert "broken.png" in page
    assert "http" not in page.replace("http-equiv", "")


def test_page_compares_with_the_other_folder(tmp_path: Path) -> None:
    root, other, out = folder(tmp_path / "steel"), folder(tmp_path / "other"), tmp_path / "out"
    report = check_data_folder(root, against=other)
    with output_folder(out):
        write_check(out, root, report, against=other)
    page = (out / "report.html").read_text()
    # a-a, a-d, d-a, d-d, b-b, c-c are leaks; a-d within the folder is a pair too
    assert page.count("<figure>") == 6
    assert page.count(": leak,") == 6
    assert "&lt;c&gt;.png" in page
    assert "<c>" not in page


def test_contact_sheet_shows_labelled_pixels_blue(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "steel"), tmp_path / "out"
    with output_folder(out):
        write_check(out, root, check_data_folder(root))
    sheet = cv2.imread(str(out / "contact_sheet.jpg"))
    assert sheet is not None
    blue, green, red = (sheet[..., channel].astype(int) for channel in range(3))
    share = float(((blue - red > 60) & (blue - green > 60)).mean())
    tiles = 4 * 30 * 40 * (261 / 128) ** 2  # four masks, each image as wide (or high) as its tile of 261 px
    assert share == pytest.approx(tiles / sheet[..., 0].size, rel=0.1)
    assert sheet.shape[1] == 1640


def test_wide_images_take_half_of_the_width_each() -> None:
    image = np.full((256, 1600, 3), 90, np.uint8)
    sheet = make_contact_sheet([(image, name) for name in "abc"])
    assert sheet.shape == (2 * (10 + 129 + 18) + 10, 1640, 3)
    assert (sheet[15, 10:815] == 90).all()
    assert (sheet[15, 825:1630] == 90).all()
    assert not (sheet[172, 825:1630] == 90).any()


def test_an_empty_contact_sheet_can_be_made() -> None:
    assert make_contact_sheet([]).shape == (10, 1640, 3)


def test_strata_are_shown_in_turn() -> None:
    many, few = [f"m{number}" for number in range(100)], ["f0", "f1"]
    assert choose_evenly([many, few], 6) == ["m0", "f0", "m16", "f1", "m32", "m48"]
    assert choose_evenly([["a"], [], ["b"]], 6) == ["a", "b"]
    assert choose_evenly([], 6) == []
