import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from defectseg.cli.main import app
from defectseg.data.split import read_split
from defectseg.errors import DataError, OutputExistsError, UsageError


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def sheets(tmp_path: Path, data_folder: Path) -> Path:
    return shutil.copytree(data_folder, tmp_path / "sheets")


def turn_into(folder: Path, source: str, target: str) -> None:
    """Put a copy of an image, turned by 180 degrees, in the place of another one."""
    image = cv2.imread(str(folder / "train_images" / source), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    cv2.imwrite(str(folder / "train_images" / target), np.ascontiguousarray(image[::-1, ::-1]))


def test_check_of_sound_sheets_finds_nothing(sheets: Path) -> None:
    done = run("check", sheets)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "24 images (24 of 64x128), 0 unreadable"
    assert lines[-1] == "0 errors, 0 warnings, 0 pairs of copies within the folder, 0 across the folds of split.csv"


def test_images_with_nothing_but_ignored_pixels_are_not_called_clean(sheets: Path) -> None:
    named = {line.split(",")[0] for line in (sheets / "train.csv").read_text().splitlines()}
    clean = sorted({path.name for path in (sheets / "train_images").iterdir()} - named)
    with (sheets / "train.csv").open("a") as handle:
        handle.write("".join(f"{name},255,1 500\n" for name in clean[1:]))
    assert run("check", sheets).stdout.splitlines()[1].startswith("1 taken as clean")
    lines = run("split", sheets, "--folds", "2").stdout.splitlines()
    assert sum(int(line.split()[2]) for line in lines[1:3]) == 1
    assert lines[3].startswith(f"In {len(clean) - 1} images, ignored pixels may hide a defect")


def test_check_lists_turned_copies_and_exits_with_3(sheets: Path) -> None:
    turn_into(sheets, "sheet_00003.jpg", "sheet_00010.jpg")
    done = run("check", sheets, "--json")
    assert done.exit_code == 3
    report = json.loads(done.stdout)
    (pair,) = report["duplicates"]
    assert (pair["image"], pair["other"], pair["turn"]) == ("sheet_00003.jpg", "sheet_00010.jpg", "180")
    assert report["leaks"] == []
    assert report["counts"]["duplicates"] == 1
    text = run("check", sheets).stdout
    assert "sheet_00003.jpg  sheet_00010.jpg  180" in text


def test_check_against_another_folder_names_what_leaked(sheets: Path, tmp_path: Path, data_folder: Path) -> None:
    test = tmp_path / "test"
    shutil.copytree(sheets, test)
    for number in range(2, 24):
        (test / f"train_images/sheet_{number:05}.jpg").unlink()
    rows = (test / "train.csv").read_text().splitlines()
    kept = [row for row in rows if row.startswith(("ImageId", "sheet_00000", "sheet_00001"))]
    (test / "train.csv").write_text("\n".join([*kept, ""]))
    turn_into(test, "sheet_00000.jpg", "sheet_00000.jpg")
    done = run("check", test, "--against", data_folder, "--json")
    assert done.exit_code == 3
    leaks = json.loads(done.stdout)["leaks"]
    assert [(leak["image"], leak["other"], leak["turn"]) for leak in leaks] == [
        ("sheet_00000.jpg", "sheet_00000.jpg", "180"),
        ("sheet_00001.jpg", "sheet_00001.jpg", "0"),
    ]
    assert all(set(leak) == {"image", "other", "turn", "score"} for leak in leaks)


def test_warnings_count_only_in_a_strict_check(sheets: Path) -> None:
    cv2.imwrite(str(sheets / "train_images/odd.png"), np.full((50, 60), 90, np.uint8))
    assert run("check", sheets).exit_code == 0
    assert run("check", sheets, "--strict").exit_code == 3


def test_check_names_the_flag_that_says_how_many_bits_there_are(sheets: Path, tmp_path: Path) -> None:
    for path in (sheets / "train_images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        path.write_bytes(cv2.imencode(".png", grey.astype(np.uint16) * 16)[1].tobytes())
    (told,) = (line for line in run("check", sheets).stdout.splitlines() if "16-bit images" in line)
    assert told.startswith("warning: 24 of 24 16-bit images")
    assert "--bit-depth 12" in told
    flags = ("--bit-depth", 12, "--out", tmp_path / "out")
    assert "16-bit images" not in run("check", sheets, *flags).stdout
    sheet = cv2.imread(str(tmp_path / "out" / "contact_sheet.jpg"), cv2.IMREAD_GRAYSCALE)
    assert sheet is not None
    assert np.median(sheet) > 60  # the sheets are not black there


def test_check_writes_its_report_and_refuses_a_folder_that_is_not_empty(sheets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("check", sheets, "--out", out)
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"check.json", "contact_sheet.jpg", "report.html"}
    again = run("check", sheets, "--out", out)
    assert isinstance(again.exception, OutputExistsError)
    assert run("check", sheets, "--out", out, "--overwrite").exit_code == 0


def test_images_of_more_pixels_than_the_flag_says_are_not_decoded(sheets: Path) -> None:
    done = run("check", sheets, "--max-pixels", 64 * 128 - 1)
    assert done.exit_code == 3
    assert "24 images" in done.stdout
    assert "8,192; to save memory, up to 8,191" in done.stdout
    assert run("check", sheets).exit_code == 0, "the limit of one call is not that of the next"
    assert run("check", sheets, "--max-pixels", 2**30 + 1).exit_code == 2, "OpenCV decodes no more"


@pytest.mark.parametrize("command", ["predict", "evaluate", "tune", "train"])
def test_other_commands_that_the_error_names_have_the_flag_too(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--max-pixels", "0"])
    assert done.exit_code == 2
    assert "No such option" not in done.output


def test_what_cannot_be_checked_is_refused(sheets: Path, tmp_path: Path) -> None:
    assert isinstance(run("check", tmp_path / "gone").exception, DataError)
    assert isinstance(run("check", sheets, "--against", tmp_path / "gone").exception, DataError)
    assert isinstance(run("check", sheets, "--against", sheets).exception, UsageError)


def test_split_keeps_copies_together_and_tells_what_a_random_one_would_have_leaked(sheets: Path) -> None:
    for number in range(4):
        turn_into(sheets, f"sheet_{number:05}.jpg", f"sheet_{number + 12:05}.jpg")
    done = run("split", sheets, "--folds", 3)
    assert done.exit_code == 0, done.output
    fold_of = read_split(sheets / "split.csv")
    for number in range(4):
        assert fold_of[f"sheet_{number:05}.jpg"] == fold_of[f"sheet_{number + 12:05}.jpg"]
    (copies,) = (line for line in done.stdout.splitlines() if line.startswith("copies"))
    assert copies.split()[:3] == ["copies", "4", "0"]
    assert int(copies.split()[3]) > 0
    assert "; this one into 0." in done.stdout
    assert run("check", sheets, "--json").exit_code == 3, "duplicates remain, but none of them leaks"
    assert json.loads(run("check", sheets, "--json").stdout)["leaks"] == []
    with (sheets / "split.csv").open(newline="") as handle:
        assert next(csv.reader(handle)) == ["ImageId", "fold"]
