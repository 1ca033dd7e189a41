"""COCO and YOLO, there and back, and what all exports have in common."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, ImageError, LabelError, OutputExistsError
from defectseg.formats.coco import export_coco
from defectseg.formats.data_import import import_labels
from defectseg.formats.yolo.write import export_yolo

LEFT, DOT, EDGE = "##../##../....", "..../.#../....", "...#/...#/...#"
SIMPLE = {"a.png": {1: LEFT, 2: EDGE}, "line 1/b.JPG": {2: DOT}, "c.png": {}}

Folder = Callable[..., Path]

EXPORTS: dict[str, Callable[..., Any]] = {"coco": export_coco, "yolo": export_yolo}
WAYS = [("coco", {}), ("coco", {"polygons": True}), ("yolo", {})]


def labels_of(root: Path) -> dict[str, dict[int, str]]:
    return {image_id: dict(by_class) for image_id, by_class in open_data_folder(root).table.rles.items()}


def lost(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flood the sound pixels from outside, sideways and up and down; what stays dry is the mask and its holes."""
    flooded = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(flooded, None, (0, 0), 2)
    return np.asarray(flooded != 2, np.bool_)[1:-1, 1:-1]


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_masks_names_and_images_come_back_without_a_question_even_if_all_are_sound(
    tmp_path: Path, make_folder: Folder, kind: str, options: dict[str, Any]
) -> None:
    root = make_folder(tmp_path / "data", SIMPLE)
    report = EXPORTS[kind](root, tmp_path / kind, **options)
    imported = import_labels(tmp_path / kind, tmp_path / "back")
    back = open_data_folder(tmp_path / "back")
    assert (imported.kind, imported.sound_images, imported.not_labelled) == (kind, 1, 0)
    assert labels_of(tmp_path / "back") == labels_of(root)
    assert (back.class_names, back.image_ids) == (("crack", "dent"), ("a.png", "c.png", "line 1/b.JPG"))
    assert (report.images, report.masks, report.class_names) == (3, 3, ("crack", "dent"))
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    for image_id in back.image_ids:
        assert back.image_path(image_id).read_bytes() == (root / "train_images" / image_id).read_bytes()
    assert lost(report) == ({"folds": 1} if kind == "yolo" else {})
    EXPORTS[kind](make_folder(tmp_path / "sound", {"a.png": {}}), tmp_path / "sound export", **options)
    assert import_labels(tmp_path / "sound export", tmp_path / "sound back").sound_images == 1


@pytest.mark.parametrize(("kind", "options"), WAYS)
@pytest.mark.parametrize("seed", [7, 8])
def test_random_masks_come_back_except_for_the_losses_reported(
    tmp_path: Path, make_folder: Folder, kind: str, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = {}
    for number in range(60):
        size_hw, density = rng.integers(1, 13, 2) if number else (3, 1600), rng.choice([0.1, 0.5, 0.8])
        drawn[f"{number}.png"] = {class_id: rng.random(size_hw) < density for class_id in (1, 2, 255)}
    present = {one: {number: mask for number, mask in masks.items() if mask.any()} for one, masks in drawn.items()}
    report = EXPORTS[kind](make_folder(tmp_path / "data", present), tmp_path / kind, **options)
    import_labels(tmp_path / kind, tmp_path / "back")
    back = open_data_folder(tmp_path / "back")
    filled_px = ignored_px = 0
    for image_id, before in drawn.items():
        after, ignore = back.masks_of(image_id, before[1].shape)
        for class_id, came_back in ((1, after[0]), (2, after[1]), (255, ignore)):
            expected = before[class_id]
            if kind == "yolo" and class_id == 255:
                ignored_px += int(expected.sum())
                expected = np.zeros_like(expected)
            if kind == "yolo" or "polygons" in options:
                expected = without_holes(expected)
                filled_px += int((expected & ~before[class_id]).sum())
            np.testing.assert_array_equal(came_back, expected)
    told = lost(report)
    assert (told.get("hole_px", 0), told.get("ignore_px", 0)) == (filled_px, ignored_px)


def test_files_and_rows_that_cannot_be_exported_are_reported(tmp_path: Path, make_folder: Folder) -> None:
    root = make_folder(tmp_path / "data", SIMPLE)
    (root / "groups.csv").write_text("ImageId,Group\na.png,coil 7\n")
    (root / "train_images/c.png").unlink()
    with (root / "train.csv").open("a") as handle:
        handle.write("c.png,1,1 1\n")
    report = export_coco(root, tmp_path / "coco")
    assert lost(report) == {"missing_images": 1, "side_files": 1}
    assert report.images == 2
    assert any("groups.csv" in loss.message for loss in report.lost)


def test_images_that_share_a_stem_are_refused_where_labels_are_paired_by_stem(
    tmp_path: Path, make_folder: Folder
) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: DOT}, "a.jpg": {}})
    with pytest.raises(DataError, match=r"a\.jpg and a\.png: two images of one name"):
        export_yolo(root, tmp_path / "out")
    export_coco(root, tmp_path / "coco")  # COCO names the file


def test_class_called_ignore_is_refused(tmp_path: Path, make_folder: Folder) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: DOT}}, ("ignore", "dent"))
    with pytest.raises(DataError, match="a class is called 'ignore'"):
        export_coco(root, tmp_path / "out")


@pytest.mark.parametrize("export", EXPORTS.values())
def test_export_fills_an_empty_folder_links_on_request_and_reports_progress(
    tmp_path: Path, make_folder: Folder, export: Callable[..., Any]
) -> None:
    root, out = make_folder(tmp_path / "data", SIMPLE), tmp_path / "out"
    out.mkdir()
    steps: list[tuple[int, int]] = []
    export(root, out, link=True, progress=lambda done, of, text="": steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    (linked,) = out.rglob("c.png")
    assert linked.is_symlink()
    assert linked.read_bytes() == (root / "train_images/c.png").read_bytes()


@pytest.mark.parametrize("export", EXPORTS.values())
def test_export_that_fails_leaves_nothing_behind(
    tmp_path: Path, make_folder: Folder, export: Callable[..., Any]
) -> None:
    root = make_folder(tmp_path / "data", SIMPLE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    with pytest.raises(OutputExistsError, match="not empty"):
        export(root, tmp_path / "full")
    (root / "train_images/c.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"c\.png"):
        export(root, tmp_path / "out")
    (root / "train_images/c.png").unlink()
    with (root / "train.csv").open("a") as handle:
        handle.write("line 1/b.JPG,1,12 9\n")
    with pytest.raises(LabelError, match="line 1/b"):
        export(root, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["data", "full"]  # noqa: PTH208
    assert os.listdir(tmp_path / "full") == ["precious"]  # noqa: PTH208
