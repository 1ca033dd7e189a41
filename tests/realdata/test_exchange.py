"""Exports and imports on real labels."""

from pathlib import Path

import numpy as np

from defectseg.data.folder import open_data_folder
from defectseg.formats.coco import export_coco, import_coco
from defectseg.formats.masks import export_masks, import_masks
from defectseg.formats.yolo import export_yolo, import_yolo


def test_severstal_masks_survive_every_format_exactly_and_neu_masks_except_for_holes(
    few: dict[str, Path], tmp_path: Path
) -> None:
    export_masks(few["severstal"], tmp_path / "masks", link=True)
    import_masks(tmp_path / "masks", tmp_path / "severstal1", link=True)
    export_yolo(few["severstal"], tmp_path / "yolo", link=True)
    import_yolo(tmp_path / "yolo", tmp_path / "severstal2", link=True)
    lost = {}
    for name, root in few.items():
        coco = tmp_path / f"{name} coco"
        lost[name] = {loss.kind: loss.count for loss in export_coco(root, coco, polygons=True, link=True).lost}
        import_coco(coco / "annotations.json", coco / "images", tmp_path / name, link=True)
    for back in ("severstal", "severstal1", "severstal2"):
        assert open_data_folder(tmp_path / back).table.rles == open_data_folder(few["severstal"]).table.rles
    before, after = open_data_folder(few["neu"]), open_data_folder(tmp_path / "neu")
    added_px = 0
    for image_id in before.image_ids:
        masks, came_back = before.masks_of(image_id, (200, 200))[0], after.masks_of(image_id, (200, 200))[0]
        assert not (masks[: len(came_back)] & ~came_back).any()
        added_px += int(np.count_nonzero(came_back)) - int(np.count_nonzero(masks))
    assert lost == {"severstal": {}, "neu": {"hole_px": added_px}}
    assert added_px > 0
