"""What every format has in common, there and back."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, ImageError, LabelError, OutputExistsError
from defectseg.formats.coco import export_coco, import_coco
from defectseg.formats.masks import export_masks, import_masks
from defectseg.formats.yolo import export_yolo, import_yolo

LEFT, DOT, EDGE = "##../##../....", "..../.#../....", "...#/...#/...#"
SIMPLE = {"a.png": {1: LEFT, 2: EDGE}, "line 1/b.JPG": {2: DOT}, "c.png": {}}

Folder = Callable[..., Path]


def labels_of(root: Path) -> dict[str, dict[int, str]]:
    return {image_id: dict(by_class) for image_id, by_class in open_data_folder(root).table.rles.items()}


def lost(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def back_from(kind: str, root: Path) -> Callable[..., Any]:
    """The import of what an export wrote into `root`."""
    if kind == "coco":
        return partial(import_coco, root / "annotations.json", root / "images")
    return partial({"masks": import_masks, "yolo": import_yolo}[kind], root)


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flood the sound pixels from outside, sideways and up and down; what stays dry is the mask and its holes."""
    flooded = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(flooded, None, (0, 0), 2)
    return np.asarray(flooded != 2, np.bool_)[1:-1, 1:-1]


EXPORTS: dict[str, Callable[..., Any]] = {"coco": export_coco, "masks": export_masks, "yolo": export_yolo}
WAYS = [("coco", {}), ("coco", {"polygons": True}), ("masks", {}), ("masks", {"per_class": True}), ("yolo", {})]


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_simple_masks_names_and_images_survive_every_format(
    tmp_path: Path, make_folder: Folder, kind: str, options: dict[str, Any]
) -> None:
    root = make_folder(tmp_path / "data", SIMPLE)
    report = EXPORTS[kind](root, tmp_path / kind, **options)
    back_from(kind, tmp_path / kind)(tmp_path / "back")
    back = open_data_folder(tmp_path / "back")
    assert labels_of(tmp_path / "back") == labels_of(root)
    assert (back.class_names, back.image_ids) == (("crack", "dent"), ("a.png", "c.png", "line 1/b.JPG"))
    assert (report.images, report.masks, report.class_names) == (3, 3, ("crack", "dent"))
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    for image_id in back.image_ids:
        assert back.image_path(image_id).read_bytes() == (root / "train_images" / image_id).read_bytes()
    assert lost(report) == ({"folds": 1} if kind == "yolo" else {})


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_random_masks_come_back_except_for_the_losses_reported(
    tmp_path: Path, make_folder: Folder, kind: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(7)
    drawn = {}
    for number in range(60):
        size_hw, density = rng.integers(1, 13, 2) if number else (3, 1600), rng.choice([0.1, 0.5, 0.8])
        drawn[f"{number}.png"] = {class_id: rng.random(size_hw) < density for class_id in (1, 2, 255)}
        if (kind, options) == ("masks", {}):  # a class map holds one class for each pixel
            class_map = rng.choice([0, 1, 2, 255], size_hw)
            drawn[f"{number}.png"] = {class_id: class_map == class_id for class_id in (1, 2, 255)}
    present = {one: {number: mask for number, mask in masks.items() if mask.any()} for one, masks in drawn.items()}
    report = EXPORTS[kind](make_folder(tmp_path / "data", present), tmp_path / kind, **options)
    back_from(kind, tmp_path / kind)(tmp_path / "back")
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
    assert "overlap_px" not in told


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
    tmp_path: Path, make_folder: Folder, write_image: Folder
) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: DOT}, "a.jpg": {}})
    for export in (export_masks, export_yolo):
        with pytest.raises(DataError, match=r"a\.jpg and a\.png: two images of one name"):
            export(root, tmp_path / "out")
    export_coco(root, tmp_path / "coco")  # COCO names the file
    write_image(tmp_path / "src/masks/a.png")
    (root / "train_images").rename(tmp_path / "src/images")
    with pytest.raises(DataError, match="two images of one name"):
        import_masks(tmp_path / "src", tmp_path / "out")


def test_class_called_ignore_is_refused(tmp_path: Path, make_folder: Folder) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: DOT}}, ("ignore", "dent"))
    with pytest.raises(DataError, match="a class is called 'ignore'"):
        export_coco(root, tmp_path / "out")


def conversions(root: Path) -> list[tuple[Path, Callable[..., Any]]]:
    """Every export of a data folder, and every import of what they wrote, with the folder that it reads."""
    for kind, export in EXPORTS.items():
        export(root, root.parent / kind)
    imports = [(root.parent / kind, back_from(kind, root.parent / kind)) for kind in EXPORTS]
    return [(root, partial(export, root)) for export in EXPORTS.values()] + imports


def test_every_conversion_fills_an_empty_folder_links_on_request_and_reports_progress(
    tmp_path: Path, make_folder: Folder
) -> None:
    for number, (_, convert) in enumerate(conversions(make_folder(tmp_path / "data", SIMPLE))):
        out = tmp_path / f"out{number}"
        out.mkdir()
        steps: list[tuple[int, int]] = []
        convert(out, link=True, progress=lambda done, of, text="", told=steps: told.append((done, of)))
        assert steps == [(1, 3), (2, 3), (3, 3)]
        (linked,) = (path for path in out.rglob("c.png") if path.parent.name != "masks")
        assert linked.is_symlink()
        assert linked.read_bytes() == (tmp_path / "data/train_images/c.png").read_bytes()


def test_failures_of_every_conversion_leave_nothing_behind(tmp_path: Path, make_folder: Folder) -> None:
    all_ways = conversions(make_folder(tmp_path / "data", SIMPLE))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    for _, convert in all_ways:
        with pytest.raises(OutputExistsError, match="not empty"):
            convert(tmp_path / "full")
    for source, convert in all_ways:
        for image in source.rglob("c.png"):
            if image.parent.name != "masks":
                image.write_bytes(b"\x89PNG")
        with pytest.raises(ImageError, match=r"c\.png"):
            convert(tmp_path / "out")
    (tmp_path / "data/train_images/c.png").unlink()
    with (tmp_path / "data/train.csv").open("a") as handle:
        handle.write("line 1/b.JPG,1,12 9\n")
    for source, convert in all_ways:
        if source.name == "data":
            with pytest.raises(LabelError, match="line 1/b"):
                convert(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["coco", "data", "full", "masks", "yolo"]  # noqa: PTH208
    assert os.listdir(tmp_path / "full") == ["precious"]  # noqa: PTH208
