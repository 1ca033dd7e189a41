"""`defectseg data import` and `data export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.folder import open_data_folder
from defectseg.data.split import read_split
from defectseg.formats.kinds import KINDS

Call = Callable[..., Any]


@pytest.fixture
def succeed(call: Call) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        done = call("data", *arguments)
        assert done.code == 0, done.err
        return str(done.out)

    return run


@pytest.mark.parametrize(
    "export", [["coco"], ["coco", "--polygons"], ["masks"], ["masks", "--per-class"], ["yolo"], ["labelme"]]
)
def test_every_export_is_recognised_comes_back_without_a_flag_and_says_what_was_lost(
    succeed: Callable[..., str], data_folder: Path, tmp_path: Path, export: list[str]
) -> None:
    exported = json.loads(succeed("export", *export, data_folder, "--out", "out", "--link", "--json"))
    imported = json.loads(succeed("import", "out", "--out", "back", "--link", "--follow-links", "--json"))
    before, after = open_data_folder(data_folder), open_data_folder(tmp_path / "back")
    assert (after.image_ids, after.class_names) == (before.image_ids, before.class_names)
    assert exported["images"] == imported["images"] == len(before.image_ids)
    assert exported["class_names"] == [one["name"] for one in imported["classes"]] == list(before.class_names)
    assert (exported["out"], imported["out"], imported["kind"]) == ("out", "back", export[0])
    assert all(path.is_symlink() for path in (tmp_path / "back" / "train_images").iterdir())
    holes = any(loss["kind"] == "hole_px" and loss["count"] > 0 for loss in exported["lost"])
    assert holes or after.table.rles == before.table.rles


def test_text_names_kind_classes_losses_and_folder(
    call: Call, succeed: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    rles = open_data_folder(data_folder).table.rles
    masks = sum(map(len, rles.values()))
    note, *_, last = succeed("export", "yolo", data_folder, "--out", "out").splitlines()
    assert note.startswith("note: There is no split.csv, so everything is in train")
    assert last == f"24 images with {masks} masks of 4 classes: out"
    assert succeed("export", "coco", data_folder, "--out", "coco").splitlines()[0] == "Nothing was lost."
    done = call("data", "import", "coco/annotations.json", "--images", "coco/images", "--out", "b")
    assert "recognised as coco: annotations.json has" in done.err
    lines = done.out.splitlines()
    counts = [sum(number in of for of in rles.values()) for number in (1, 2, 3, 4)]
    names = ("pits", "cracks", "scratches", "patches")
    assert [line.split()[:4] for line in lines[1:5]] == [
        [str(number), name, name, str(count)] for number, (name, count) in enumerate(zip(names, counts, strict=True), 1)
    ]
    copied = [*(tmp_path / "out" / "images").rglob("*.jpg"), *(tmp_path / "b" / "train_images").iterdir()]
    assert [path.is_symlink() for path in copied] == [False] * 48
    defective = sum(map(bool, rles.values()))
    assert lines[-1] == (
        f"24 images, {defective} with a defect, {24 - defective} sound, 0 not labelled; 0 px to ignore: b"
    )


def test_parts_come_along(succeed: Callable[..., str], tmp_path: Path, data_folder: Path) -> None:
    root = tmp_path / "data"
    succeed("export", "masks", data_folder, "--out", "masks", "--link")
    succeed("import", "masks", "--out", root, "--link", "--follow-links")
    ids = open_data_folder(root).image_ids
    (root / "split.csv").write_text("ImageId,fold\n" + "".join(f"{one},{n % 3}\n" for n, one in enumerate(ids)))
    succeed("export", "yolo", root, "--out", "out", "--fold", "2")
    told = succeed("import", "out", "--out", "both")
    assert "split.csv: 16 train, 8 val" in told or "split.csv: 8 val, 16 train" in told
    assert set(read_split(tmp_path / "both" / "split.csv").values()) == {"train", "val"}


def test_what_is_missing_or_may_mean_two_things_stops_and_the_named_flag_goes_on(call: Call, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((4, 6), np.uint8))
    images = [{"id": number, "file_name": f"{name}.png", "height": 4, "width": 6} for number, name in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": []}
    document = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "crack"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    arguments: list[object] = ["data", "import", "labels.json", "--images", "images", "--out", "out"]
    for flags in (["--absent", "skip"], ["--boxes", "ignore"]):
        done = call(*arguments)
        assert done.code == 4
        assert f"Or go on with {' '.join(flags)}." in done.err
        arguments += flags
    done = call(*arguments, "--classes", "crack=dent")
    assert done.code == 0
    assert "note: labels without an image, left out: b.png" in done.out
    assert "note: Boxes without an outline: 1." in done.out
    assert done.out.endswith("1 images, 0 with a defect, 0 sound, 0 not labelled; 4 px to ignore: out\n")
    assert (tmp_path / "out/classes.txt").read_text() == "dent\n"


def test_kinds_are_listed(succeed: Callable[..., str]) -> None:
    listed = succeed("import", "--list")
    assert [line.split()[0] for line in listed.splitlines()] == ["kind", *(kind.name for kind in KINDS)]


def test_what_cannot_be_imported_or_exported_is_refused(
    call: Call, succeed: Callable[..., str], refused: Call, tmp_path: Path, data_folder: Path
) -> None:
    succeed("export", "coco", data_folder, "--out", "coco")
    refused("data", "export", "coco", data_folder, "--out", "coco", code=2, told="not empty")
    misnamed = call("data", "import", "coco", "--out", "back", "--classes", "pits")
    assert (misnamed.code, "error: --classes: " in misnamed.err) == (2, True)
    refused("data", "import", "coco", "--out", "back", "--as", "cocoa", code=2, told="error: --as: ")
    (tmp_path / "coco/annotations.json").write_text("[]")
    refused("data", "import", "coco", "--out", "back", code=4, told="no labels of a known kind")
    refused("data", "export", "predictions", tmp_path, "--out", "fix.json", code=4, told=str(tmp_path))


@pytest.mark.slow
def test_predictions_become_labels_to_correct(
    succeed: Callable[..., str], call: Call, trained_run: Path, data_folder: Path
) -> None:
    images = data_folder / "train_images"
    assert call("predict", trained_run, images / "sheet_00000.jpg", "--out", "results").code == 0
    summary, hint = succeed("export", "predictions", "results", "--out", "fix.json").splitlines()[-2:]
    assert summary.startswith("1 images with ")
    assert summary.endswith("classes: fix.json")
    assert hint.startswith("Once corrected: defectseg data import fix.json --images DIR --out DIR --unlabelled clean")
    told = json.loads(succeed("export", "predictions", "results", "--out", "rle.json", "--rle", "--json"))
    assert (told["images"], told["out"]) == (1, "rle.json")
    assert f"1 images with {told['masks']} masks" in summary
