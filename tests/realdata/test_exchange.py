"""Exports and imports on real labels."""

from pathlib import Path

import numpy as np

from defectseg.data.folder import open_data_folder
from defectseg.formats.coco import export_coco, import_coco
from defectseg.formats.masks import export_masks, import_masks
from defectseg.formats.yolo import export_yolo, import_yolo


def test_severstal_masks_survive_coco_class_maps_and_yolo_exactly(few: dict[str, Path], tmp_path: Path) -> None:
    before = open_data_folder(few["severstal"])
    assert export_coco(before.root, tmp_path / "coco", link=True).lost == ()
    import_coco(tmp_path / "coco/annotations.json", tmp_path / "coco/images", tmp_path / "1", link=True)
    assert export_masks(before.root, tmp_path / "masks", link=True).lost == ()
    import_masks(tmp_path / "masks", tmp_path / "2", link=True)
    export_yolo(before.root, tmp_path / "yolo", link=True)
    import_yolo(tmp_path / "yolo", tmp_path / "3", link=True)
    for number in "123":
        assert open_data_folder(tmp_path / number).table.rles == before.table.rles


def test_outlines_of_neu_masks_gain_the_holes_that_are_told(few: dict[str, Path], tmp_path: Path) -> None:
    report = export_coco(few["neu"], tmp_path / "coco", polygons=True, link=True)
    import_coco(tmp_path / "coco/annotations.json", tmp_path / "coco/images", tmp_path / "back", link=True)
    before, after = open_data_folder(few["neu"]), open_data_folder(tmp_path / "back")
    added_px = 0
    for image_id in before.image_ids:
        masks, came_back = before.masks_of(image_id, (200, 200))[0], after.masks_of(image_id, (200, 200))[0]
        assert not (masks[: len(came_back)] & ~came_back).any()
        added_px += int(np.count_nonzero(came_back)) - int(np.count_nonzero(masks))
    assert {loss.kind: loss.count for loss in report.lost} == {"hole_px": added_px}
    assert added_px > 0
