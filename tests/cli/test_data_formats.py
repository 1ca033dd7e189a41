"""`defectseg data import` and `data export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.folder import open_data_folder

Call = Callable[..., Any]


@pytest.fixture
def succeed(call: Call) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        done = call("data", *arguments)
        assert done.code == 0, done.err
        return str(done.out)

    return run


@pytest.mark.parametrize("export", [["coco"], ["coco", "--polygons"], ["masks"], ["masks", "--per-class"], ["yolo"]])
def test_every_export_can_be_imported_and_both_say_what_was_lost(
    succeed: Callable[..., str], data_folder: Path, tmp_path: Path, export: list[str]
) -> None:
    exported = json.loads(succeed("export", *export, data_folder, "--out", "out", "--link", "--json"))
    source = ["out/annotations.json", "--images", "out/images"] if export[0] == "coco" else ["out"]
    imported = json.loads(succeed("import", export[0], *source, "--out", "back", "--link", "--json"))
    before, after = open_data_folder(data_folder), open_data_folder(tmp_path / "back")
    assert (after.image_ids, after.class_names) == (before.image_ids, before.class_names)
    assert exported["images"] == imported["images"] == len(before.image_ids)
    assert exported["class_names"] == list(before.class_names)
    assert (exported["out"], imported["out"]) == ("out", "back")
    assert all(path.is_symlink() for path in (tmp_path / "back" / "train_images").iterdir())
    holes = any(loss["kind"] == "hole_px" and loss["count"] > 0 for loss in exported["lost"])
    assert holes or after.table.rles == before.table.rles


def test_text_names_classes_losses_and_folder(succeed: Callable[..., str], data_folder: Path, tmp_path: Path) -> None:
    rles = open_data_folder(data_folder).table.rles
    masks = sum(map(len, rles.values()))
    note, *_, last = succeed("export", "yolo", data_folder, "--out", "out").splitlines()
    assert note.startswith("note: There is no split.csv, so everything is in train")
    assert last == f"24 images with {masks} masks of 4 classes: out"
    assert succeed("export", "coco", data_folder, "--out", "coco").splitlines()[0] == "Nothing was lost."
    lines = succeed("import", "coco", "coco/annotations.json", "--images", "coco/images", "--out", "b").splitlines()
    counts = [sum(number in of for of in rles.values()) for number in (1, 2, 3, 4)]
    assert [line.split() for line in lines[:5]] == [
        ["class", "images"],
        *([name, str(count)] for name, count in zip(("pits", "cracks", "scratches", "patches"), counts, strict=True)),
    ]
    copied = [*(tmp_path / "out" / "images").rglob("*.jpg"), *(tmp_path / "b" / "train_images").iterdir()]
    assert [path.is_symlink() for path in copied] == [False] * 48
    assert lines[-1] == f"24 images, {24 - sum(map(bool, rles.values()))} of them clean: b"


def test_fold_and_part_reach_the_library(
    call: Call, succeed: Callable[..., str], tmp_path: Path, data_folder: Path
) -> None:
    root = tmp_path / "data"
    succeed("export", "masks", data_folder, "--out", "masks", "--link")
    succeed("import", "masks", "masks", "--out", root, "--link")
    ids = open_data_folder(root).image_ids
    (root / "split.csv").write_text("ImageId,fold\n" + "".join(f"{one},{n % 3}\n" for n, one in enumerate(ids)))
    succeed("export", "yolo", root, "--out", "out", "--fold", "2")
    assert "split.csv: 8 images in fold 0, 16 images in fold 1" in succeed("import", "yolo", "out", "--out", "both")
    val = json.loads(succeed("import", "yolo", "out", "--out", "val", "--part", "val", "--json"))
    assert val["images"] == 8
    assert call("data", "import", "yolo", "out", "--out", "x", "--part", "validation").code == 2


def test_missing_images_end_with_3_and_classes_are_given_in_order(call: Call, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((4, 6), np.uint8))
    images = [{"id": number, "file_name": f"{name}.png", "height": 4, "width": 6} for number, name in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": []}
    document = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "crack"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    arguments = ("data", "import", "coco", "labels.json", "--images", "images", "--classes", "dent, crack", "--out")

    done, told = call(*arguments, "out"), call(*arguments, "json", "--json")

    assert (done.code, told.code) == (3, 3)
    assert "missing: 1 images that the labels name are not there: b.png" in done.out
    assert "note: 1 annotations have a box and no outline" in done.out
    assert done.out.endswith("1 images, 0 of them clean, 4 px marked to be ignored: out\n")
    assert (tmp_path / "out/classes.txt").read_text() == "dent\ncrack\n"
    report = json.loads(told.out)
    assert (report["missing_images"], report["lost"][0]["kind"]) == (["b.png"], "boxes")


def test_what_cannot_be_imported_or_exported_is_refused(
    succeed: Callable[..., str], refused: Call, tmp_path: Path, data_folder: Path
) -> None:
    succeed("export", "coco", data_folder, "--out", "coco")
    refused("data", "export", "coco", data_folder, "--out", "coco", code=2, told="not empty")
    flags = ("coco/annotations.json", "--images", "coco/images", "--out", "back")
    refused("data", "import", "coco", *flags, "--classes", "pits", code=4, told="error: --classes: ")
    (tmp_path / "coco/annotations.json").write_text("[]")
    refused("data", "import", "coco", *flags, code=4, told="export as COCO")
    refused("data", "export", "predictions", tmp_path, "--out", "fix.json", code=4, told=str(tmp_path))


@pytest.mark.slow
def test_predictions_become_labels_to_correct(
    succeed: Callable[..., str], call: Call, trained_run: Path, data_folder: Path
) -> None:
    images = data_folder / "train_images"
    assert call("predict", trained_run, images / "sheet_00000.jpg", "--out", "results").code == 0
    summary, hint = succeed("export", "predictions", "results", "--out", "fix.json").splitlines()[-2:]
    assert summary.startswith("1 images with ")
    assert summary.endswith(" regions: fix.json")
    assert hint == "Once corrected: defectseg data import coco fix.json --images DIR --out DIR"
    told = json.loads(succeed("export", "predictions", "results", "--out", "rle.json", "--rle", "--json"))
    assert (told["images"], told["out"]) == (1, "rle.json")
    assert f"1 images with {told['annotations']} regions" in summary


def test_labels_go_to_labelme_and_back(succeed: Callable[..., str], data_folder: Path, tmp_path: Path) -> None:
    assert succeed("export", "labelme", data_folder, "--out", "out", "--link").startswith("Nothing was lost.")
    report = json.loads(succeed("import", "out", "--out", "back", "--link", "--json"))
    before, after = open_data_folder(data_folder), open_data_folder(tmp_path / "back")
    assert (after.image_ids, after.class_names) == (before.image_ids, before.class_names)
    assert (after.table.rles, report["kind"]) == (before.table.rles, "labelme")
