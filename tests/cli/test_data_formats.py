import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from defectseg.cli.main import app
from defectseg.data.folder import open_data_folder
from defectseg.errors import CannotContinueError, UsageError


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def succeed(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize("export", [["coco"], ["coco", "--polygons"], ["masks"], ["masks", "--per-class"], ["yolo"]])
def test_every_export_can_be_imported_and_both_say_what_was_lost(
    tmp_path: Path, data_folder: Path, export: list[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    exported = json.loads(succeed("export", *export, data_folder, "--out", out, "--link", "--json"))
    source: list[Any] = [out / "annotations.json", "--images", out / "images"] if export[0] == "coco" else [out]
    imported = json.loads(succeed("import", export[0], *source, "--out", back, "--link", "--json"))
    before, after = open_data_folder(data_folder), open_data_folder(back)
    assert (after.image_ids, after.class_names) == (before.image_ids, before.class_names)
    assert exported["images"] == imported["images"] == len(before.image_ids)
    assert exported["class_names"] == list(before.class_names)
    assert imported["out"] == str(back)
    holes = any(loss["kind"] == "hole_px" and loss["count"] > 0 for loss in exported["lost"])
    assert holes or after.table.rles == before.table.rles


def test_text_names_classes_losses_and_folder(tmp_path: Path, data_folder: Path) -> None:
    out = tmp_path / "out"
    text = succeed("export", "yolo", data_folder, "--out", out)
    assert "note: There is no split.csv, so everything is in train" in text
    assert (
        f"24 images with {sum(map(len, open_data_folder(data_folder).table.rles.values()))} masks of 4 classes" in text
    )
    assert "Nothing was lost." in succeed("export", "coco", data_folder, "--out", tmp_path / "coco")
    text = succeed("import", "yolo", out, "--out", tmp_path / "back")
    assert text.splitlines()[0].split() == ["class", "images"]
    assert "24 images," in text


def test_fold_and_part_reach_the_library(tmp_path: Path, data_folder: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    succeed("export", "masks", data_folder, "--out", tmp_path / "masks", "--link")
    succeed("import", "masks", tmp_path / "masks", "--out", root, "--link")
    ids = open_data_folder(root).image_ids
    (root / "split.csv").write_text("ImageId,fold\n" + "".join(f"{one},{n % 3}\n" for n, one in enumerate(ids)))
    succeed("export", "yolo", root, "--out", out, "--fold", "2")
    both = json.loads(succeed("import", "yolo", out, "--out", tmp_path / "both", "--json"))
    assert both["images_per_fold"] == [8, 16]
    val = json.loads(succeed("import", "yolo", out, "--out", tmp_path / "val", "--part", "val", "--json"))
    assert val["images"] == 8
    assert isinstance(run("import", "yolo", out, "--out", tmp_path / "x", "--part", "validation").exception, UsageError)


def coco_with_a_missing_image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((4, 6), np.uint8))
    images = [{"id": number, "file_name": f"{name}.png", "height": 4, "width": 6} for number, name in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": []}
    document = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "crack"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    return tmp_path / "labels.json"


def test_missing_images_end_with_3_and_are_named(tmp_path: Path) -> None:
    file = coco_with_a_missing_image(tmp_path)
    result = run("import", "coco", file, "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "missing: 1 images that the labels name are not there: b.png" in result.stdout
    assert "note: 1 annotations have a box and no outline" in result.stdout
    assert "1 images, 0 of them clean, 4 px marked to be ignored" in result.stdout
    result = run("import", "coco", file, "--images", tmp_path / "images", "--out", tmp_path / "json", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["missing_images"], report["lost"][0]["kind"]) == (3, ["b.png"], "boxes")


def test_classes_are_given_in_order(tmp_path: Path) -> None:
    file = coco_with_a_missing_image(tmp_path)
    run("import", "coco", file, "--images", tmp_path / "images", "--out", tmp_path / "out", "--classes", "dent, crack")
    assert (tmp_path / "out/classes.txt").read_text() == "dent\ncrack\n"


def test_download_reports_a_complete_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectseg.data import download

    report = download.DownloadReport(12_568, 5_506, 6_666, (897, 247, 5_150, 801), was_there=True)
    monkeypatch.setattr(download, "download_severstal", lambda *_, **__: report)
    text = succeed("download", "severstal", "--out", tmp_path)
    assert "12568 images, 6666 with a defect; masks per class 897 / 247 / 5150 / 801" in text
    assert "Was complete already" in text
    assert json.loads(succeed("download", "severstal", "--out", tmp_path, "--json"))["test_images"] == 5_506


def test_predictions_need_a_finished_run(tmp_path: Path) -> None:
    result = run("export", "predictions", tmp_path, "--out", tmp_path / "fix.json")
    assert isinstance(result.exception, CannotContinueError)


PROOF = """
import sys
from defectseg.cli.main import main
sys.argv = ["defectseg", "data", *sys.argv[1:]]
try:
    main()
finally:
    heavy = sorted({"torch", "segmentation_models_pytorch", "kaggle"} & set(sys.modules))
    print("heavy:", *heavy, file=sys.stderr)
"""


def test_commands_end_with_their_exit_codes_and_never_load_torch(tmp_path: Path, data_folder: Path) -> None:
    def exit_of(*arguments: Any) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", PROOF, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr.splitlines()[-1] == "heavy:"
        return done.returncode, done.stderr

    coco = tmp_path / "coco"
    assert exit_of("export", "coco", data_folder, "--out", coco)[0] == 0
    again, message = exit_of("export", "coco", data_folder, "--out", coco)
    assert (again, "not empty" in message) == (2, True)
    file = coco / "annotations.json"
    arguments = ("import", "coco", file, "--images", coco / "images", "--out", tmp_path / "back")
    code, message = exit_of(*arguments, "--classes", "pits")
    assert (code, "error: --classes: " in message) == (4, True)
    file.write_text("[]")
    code, message = exit_of(*arguments)
    assert (code, "export as COCO" in message) == (4, True)
