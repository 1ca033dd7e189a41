"""Exports and imports on real labels; skipped where they are not at hand."""

from pathlib import Path

import numpy as np

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.formats.coco import export_coco, import_coco
from defectseg.formats.masks import export_masks, import_masks
from defectseg.formats.yolo import export_yolo, import_yolo


def added_px(before: DataFolder, after: DataFolder, size_hw: tuple[int, int]) -> int:
    """Pixels that masks have gained on the way; asserts that none was lost."""
    total = 0
    for image_id in before.image_ids:
        masks, came_back = before.masks_of(image_id, size_hw)[0], after.masks_of(image_id, size_hw)[0]
        assert not (masks & ~came_back).any()
        total += int(np.count_nonzero(came_back & ~masks))
    return total


def test_severstal_masks_survive_coco_class_maps_and_yolo_exactly(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "severstal"
    before = open_data_folder(root)
    assert export_coco(root, tmp_path / "coco", link=True).lost == ()
    import_coco(tmp_path / "coco/annotations.json", tmp_path / "coco/images", tmp_path / "1", link=True)
    assert export_masks(root, tmp_path / "masks", link=True).lost == ()
    import_masks(tmp_path / "masks", tmp_path / "2", link=True)
    export_yolo(root, tmp_path / "yolo", link=True)
    import_yolo(tmp_path / "yolo", tmp_path / "3", link=True)
    for number in "123":
        assert open_data_folder(tmp_path / number).table.rles == before.table.rles


def test_outlines_of_neu_masks_gain_the_holes_that_are_told(realdata: Path, tmp_path: Path) -> None:
    import_masks(realdata / "neu900", tmp_path / "neu", link=True)
    before = open_data_folder(tmp_path / "neu")
    report = export_coco(tmp_path / "neu", tmp_path / "coco", polygons=True, link=True)
    import_coco(tmp_path / "coco/annotations.json", tmp_path / "coco/images", tmp_path / "back", link=True)
    told = {loss.kind: loss.count for loss in report.lost}
    assert told == {"hole_px": added_px(before, open_data_folder(tmp_path / "back"), (200, 200))}
