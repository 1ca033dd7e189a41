"""`defectseg data synthesize`, `check`, `split` and `download`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.split import Fold, read_split, read_split_groups, write_split

Call = Callable[..., Any]


@pytest.fixture
def sheets(tmp_path: Path, data_folder: Path) -> Path:
    return shutil.copytree(data_folder, tmp_path / "sheets")


def grey(folder: Path, name: str) -> Any:
    return cv2.imread(str(folder / "train_images" / name), cv2.IMREAD_GRAYSCALE)


def turn_into(folder: Path, source: str, target: str) -> None:
    """Put a copy of an image, turned by 180 degrees, in the place of another one."""
    turned = np.ascontiguousarray(grey(folder, source)[::-1, ::-1])
    cv2.imwrite(str(folder / "train_images" / target), turned)


def test_synthesize_and_split_write_exactly_their_files(call: Call, refused: Call, tmp_path: Path) -> None:
    made = call("data", "synthesize", "--out", "sheets", "--images", "6", "--size", "64x128", "--seed", "2")
    split = call("data", "split", "sheets", "--folds", "3")

    assert made == (0, "6 sheets: sheets\n", "")
    assert split.code == 0, split.err
    images = {f"sheet_{number:05}.jpg" for number in range(6)}
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {
        *("train.csv", "classes.txt", "split.csv", "train_images"),
    }
    assert {path.name for path in (tmp_path / "sheets" / "train_images").iterdir()} == images
    folds = read_split(tmp_path / "sheets" / "split.csv")
    assert (set(folds), set(folds.values())) == (images, {0, 1, 2})
    refused("data", "synthesize", "--out", "sheets", code=2, told=["sheets", "not empty"])
    refused("demo", "--out", "sheets", code=2, told="sheets: not empty. Choose another --out.")
    refused("data", "split", "sheets", code=2, told=["split.csv: exists", "--overwrite"])
    assert call("data", "split", "sheets", "--overwrite", "--folds", "2").code == 0


def test_check_shows_figures_of_sound_sheets(call: Call, sheets: Path) -> None:
    done = call("data", "check", sheets)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "24 images (24 of 64x128), 0 unreadable"
    assert lines[-1] == "0 errors, 0 warnings, 0 pairs of copies within the folder, 0 across the folds of split.csv"
    report = json.loads(call("data", "check", sheets, "--json").out)
    for line, one in zip(lines[5:9], report["classes"], strict=True):
        shares = [f"{100 * one['image_share']:.1f}", f"{100 * one['px_share']:.2f}"]
        areas = [str(round(one[key])) for key in ("smallest_px", "median_px", "largest_px", "regions")]
        assert line.split() == [one["name"], str(one["images"]), *shares, *areas]


def test_images_with_nothing_but_ignored_pixels_are_not_called_clean(call: Call, sheets: Path) -> None:
    named = {line.split(",")[0] for line in (sheets / "train.csv").read_text().splitlines()}
    clean = sorted({path.name for path in (sheets / "train_images").iterdir()} - named)
    with (sheets / "train.csv").open("a") as handle:
        handle.write("".join(f"{name},255,1 500\n" for name in clean[1:]))
    assert call("data", "check", sheets).out.splitlines()[1].startswith("1 taken as clean")
    lines = call("data", "split", sheets, "--folds", "2").out.splitlines()
    assert sum(int(line.split()[2]) for line in lines[1:3]) == 1
    assert lines[3].startswith(f"In {len(clean) - 1} images, ignored pixels may hide a defect")


def test_check_lists_turned_copies_and_what_leaked_from_another_folder_and_exits_with_3(
    call: Call, refused: Call, sheets: Path, data_folder: Path
) -> None:
    turn_into(sheets, "sheet_00003.jpg", "sheet_00010.jpg")
    arguments = ("data", "check", sheets, "--against", data_folder)
    done, shown = call(*arguments, "--json"), call(*arguments)
    assert (done.code, shown.code) == (3, 3)
    report = json.loads(done.out)
    (pair,) = report["duplicates"]
    assert (pair["image"], pair["other"], pair["turn"]) == ("sheet_00003.jpg", "sheet_00010.jpg", "180")
    agree = "" if pair["masks_agree"] is not False else "  masks differ"
    assert f"sheet_00003.jpg  sheet_00010.jpg  180   {pair['score']:.3f}{agree}\n" in shown.out
    turned = [(leak["image"], leak["other"]) for leak in report["leaks"] if leak["turn"] != "0"]
    assert (turned, len(report["leaks"])) == ([("sheet_00010.jpg", "sheet_00003.jpg")], 24)
    assert f"copies shared with {data_folder}:" in shown.out
    assert shown.out.endswith(f"1 pairs of copies within the folder, 24 shared with {data_folder}\n")
    refused("data", "check", sheets, "--against", "gone", code=4, told="gone")


def test_warnings_count_only_in_a_strict_check(call: Call, sheets: Path) -> None:
    cv2.imwrite(str(sheets / "train_images/odd.png"), np.full((50, 60), 90, np.uint8))
    assert call("data", "check", sheets).code == 0
    assert call("data", "check", sheets, "--strict").code == 3


def test_check_names_the_flag_that_says_how_many_bits_there_are(call: Call, sheets: Path, tmp_path: Path) -> None:
    for path in (sheets / "train_images").iterdir():
        wide = grey(sheets, path.name).astype(np.uint16) * 16
        path.write_bytes(cv2.imencode(".png", wide)[1].tobytes())
    (told,) = (line for line in call("data", "check", sheets).out.splitlines() if "16-bit images" in line)
    assert told.startswith("warning: 24 of 24 16-bit images")
    assert "--bit-depth 12" in told
    assert "16-bit images" not in call("data", "check", sheets, "--bit-depth", 12, "--out", "out").out
    sheet = cv2.imread(str(tmp_path / "out" / "contact_sheet.jpg"), cv2.IMREAD_GRAYSCALE)
    assert sheet is not None
    assert np.median(sheet) > 60  # the sheets are not black there


def test_the_limit_of_pixels_is_told_as_a_flag_and_holds_for_one_call(call: Call, sheets: Path) -> None:
    done = call("data", "check", sheets, "--max-pixels", 64 * 128 - 1)
    assert done.code == 3
    assert "24 images" in done.out
    assert "8,192; to save memory, up to 8,191" in done.out
    assert "--max-pixels 8192" in done.out
    assert call("data", "check", sheets).code == 0
    assert call("data", "check", sheets, "--max-pixels", 2**33 + 1).code == 2


@pytest.mark.parametrize("command", ["predict", "evaluate", "tune", "train"])
def test_other_commands_have_that_flag_too(command: str, refused: Call) -> None:
    refused(command, "--max-pixels", "0", code=2, told="--max-pixels")


def test_split_keeps_copies_together_and_tells_what_a_random_one_would_have_leaked(call: Call, sheets: Path) -> None:
    for number in range(4):
        turn_into(sheets, f"sheet_{number:05}.jpg", f"sheet_{number + 12:05}.jpg")
    done = call("data", "split", sheets, "--folds", 3)
    assert done.code == 0, done.err
    fold_of = read_split(sheets / "split.csv")
    for number in range(4):
        assert fold_of[f"sheet_{number:05}.jpg"] == fold_of[f"sheet_{number + 12:05}.jpg"]
    (copies,) = (line for line in done.out.splitlines() if line.startswith("copies"))
    assert copies.split()[:3] == ["copies", "4", "0"]
    assert int(copies.split()[3]) > 0
    counted = [line.split() for line in done.out.splitlines()[1:4]]
    assert [int(images) for _, images, *_ in counted] == [list(fold_of.values()).count(fold) for fold in range(3)]
    told = json.loads(call("data", "split", sheets, "--folds", 3, "--overwrite", "--json").out)
    assert [list(map(str, row.values())) for row in told["folds"]] == counted
    assert list(told["pairs"][0].values())[:3] == ["copies", 4, 0]
    checked = call("data", "check", sheets, "--json")
    assert checked.code == 3, "duplicates remain, but none of them leaks"
    assert json.loads(checked.out)["leaks"] == []


def test_split_keeps_groups_together_and_names_them(call: Call, refused: Call, sheets: Path) -> None:
    turn_into(sheets, "sheet_00001.jpg", "sheet_00013.jpg")
    write_split(sheets / "split.csv", {"sheet_00021.jpg": "test", "sheet_00022.jpg": "test"})
    done = call("data", "split", sheets, "--folds", 3, "--group", "sheet_000([02])", "--overwrite")
    assert done.code == 0, done.err
    assert "10 of 24 images belong to no group, because --group sheet_000([02]) does not match: sheet_" in done.err
    fold_of, groups = read_split(sheets / "split.csv"), read_split_groups(sheets / "split.csv")
    by_name = {f"sheet_{number:05}.jpg": str(number // 10) for number in (*range(10), *range(20, 24))}
    assert groups == by_name | {"sheet_00013.jpg": "0"}, "a copy belongs to the group of the other"
    zeros, twos = ({fold_of[image_id] for image_id, group in groups.items() if group == name} for name in "02")
    assert (len(zeros), twos) == (1, {"test", fold_of["sheet_00020.jpg"]})
    checked = call("data", "check", sheets)
    assert "group '2' is in folds" in checked.out
    for pattern, told in {"coil(": "'coil(' is no regular expression", "coil": "'coil' matches no ImageId"}.items():
        refused("data", "split", sheets, "--overwrite", "--group", pattern, code=2, told=f"--group: {told}")
    assert read_split_groups(sheets / "split.csv") == groups


def test_split_leaves_val_and_test_as_they_are_and_divides_the_rest(call: Call, sheets: Path) -> None:
    turn_into(sheets, "sheet_00000.jpg", "sheet_00001.jpg")
    parts: dict[str, Fold] = {}
    for number in range(24):
        parts[f"sheet_{number:05}.jpg"] = "val" if number < 4 else "test" if number < 7 else "train"
    write_split(sheets / "split.csv", {**parts, "later.jpg": "val"})  # not labelled as yet
    done = call("data", "split", sheets, "--folds", 3, "--overwrite")
    assert done.code == 0, done.err
    fold_of = read_split(sheets / "split.csv")
    kept = {image_id: part for image_id, part in parts.items() if part != "train"}
    assert kept | {"later.jpg": "val"} == {
        image_id: fold for image_id, fold in fold_of.items() if isinstance(fold, str)
    }
    assert {fold for fold in fold_of.values() if isinstance(fold, int)} == {0, 1, 2}
    rows = [line.split()[:2] for line in done.out.splitlines()[1:6]]
    assert [fold for fold, _ in rows] == ["0", "1", "2", "test", "val"]
    assert [int(images) for _, images in rows[3:]] == [3, 4]


def test_download_reports_a_complete_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectseg.data import download

    report = download.DownloadReport(**vars(download.SEVERSTAL), test_images=5_506, was_there=True)
    monkeypatch.setattr(download, "download_severstal", lambda *_, **__: report)
    assert call("data", "download", "severstal", "--out", "severstal").out.splitlines() == [
        "12568 images, 6666 with a defect; masks per class 897 / 247 / 5150 / 801",
        "5506 test images without labels",
        "Was complete already: severstal",
    ]
    told = json.loads(call("data", "download", "severstal", "--out", "severstal", "--json").out)
    assert (told["test_images"], told["out"]) == (5_506, "severstal")
