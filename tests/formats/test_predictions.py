import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, OutputExistsError
from defectseg.formats.coco.importing import import_coco
from defectseg.formats.predictions import predictions_to_coco
from defectseg.image import rle
from defectseg.image.find import FoundImage
from defectseg.image.regions import find_regions
from defectseg.predict.output import output_folder
from defectseg.predict.tables import OutputChoice, Record

SIZE_HW = (40, 60)
NAMES = ("pits", "cracks")


def box(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


RING = box(30, 5, 50, 25) & ~box(38, 13, 42, 17)
TWO_PITS = box(2, 2, 12, 8) | box(2, 20, 8, 30)


def output_of_predict(
    tmp_path: Path,
    masks: dict[str, dict[int, NDArray[np.bool_]] | None],
    outputs: OutputChoice | None = None,
    **run: Any,
) -> Path:
    """A finished output folder; None for an unreadable image. Scores are 0.9, 0.8 and so on, largest region first."""
    root = tmp_path / "out"
    with output_folder(root, {}, outputs) as output:
        found = []
        for image_id in masks:
            path = tmp_path / "images" / image_id
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.zeros(SIZE_HW, np.uint8))
            found.append(FoundImage(image_id, path))
        output.pending(found)
        for image_id, by_class in masks.items():
            one = record(image_id, by_class)
            one = one if outputs is None or "regions" in outputs.names else replace(one, regions=[])
            output.write(one, {"overlays": b"jpeg", "masks": b"png"})
        output.finish({"class_names": list(NAMES), "status": "finished", **run})
    return root


def record(image_id: str, by_class: dict[int, NDArray[np.bool_]] | None) -> Record:
    image: dict[str, Any] = dict.fromkeys(
        ("classes", "regions", "defect_area_px", "defect_area_percent", "top_score", "notes"), ""
    )
    image |= {"ImageId": image_id, "size_bytes": 1, "modified_ns": 1}
    if by_class is None:
        failed = image | {"status": "unreadable", "height": "", "width": ""}
        return Record(failed, [], [], [[image_id, image_id, "it is broken"]])
    rows = []
    for class_id, mask in by_class.items():
        for number, region in enumerate(find_regions(mask, class_id=class_id)[1]):
            score = f"{0.9 - number / 10:.4f}"
            rows.append([image_id, class_id, NAMES[class_id - 1], region.area_px, *region.box_xywh, "0", "0", score])
    empty = np.zeros(SIZE_HW, np.bool_)
    predictions = [[image_id, number, rle.encode(by_class.get(number, empty))] for number in (1, 2)]
    whole = image | {"status": "defect" if by_class else "blank", "height": SIZE_HW[0], "width": SIZE_HW[1]}
    return Record(whole, predictions, rows, [])


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_region_becomes_an_outline_with_its_score_and_clean_images_are_listed(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"line 1/a.png": {1: TWO_PITS, 2: RING}, "b.png": {}})
    report = predictions_to_coco(root, tmp_path / "fix.json")
    document = written(tmp_path / "fix.json")
    assert [one["file_name"] for one in document["images"]] == ["b.png", "line 1/a.png"]
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "pits"), (2, "cracks")]
    assert [
        (one["image_id"], one["category_id"], one["bbox"], one["area"], one["score"]) for one in document["annotations"]
    ] == [
        (2, 1, [2, 2, 10, 6], 60, 0.9),
        (2, 1, [2, 20, 6, 10], 60, 0.8),
        (2, 2, [30, 5, 20, 20], 384, 0.9),
    ]
    assert (report.images, report.annotations, report.class_names) == (2, 3, NAMES)
    assert all(len(one["segmentation"]) == 1 for one in document["annotations"])


def test_filled_holes_and_simplified_outlines_are_told(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {2: RING}})
    report = predictions_to_coco(root, tmp_path / "fix.json")
    assert {loss.kind: loss.count for loss in report.lost} == {"hole_px": 16, "simplified": 1}


@pytest.mark.parametrize("run_lengths", [False, True])
def test_file_can_be_imported_once_corrected(tmp_path: Path, run_lengths: bool) -> None:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    disc = (y - 20) ** 2 + (x - 30) ** 2 < 15**2
    root = output_of_predict(tmp_path, {"line 1/a.png": {1: TWO_PITS, 2: disc}, "b.png": {}})
    predictions_to_coco(root, tmp_path / "fix.json", run_lengths=run_lengths)
    report = import_coco(tmp_path / "fix.json", tmp_path / "images", tmp_path / "labels")
    assert (report.class_names, report.clean_images) == (NAMES, 1)
    masks, _ = open_data_folder(tmp_path / "labels").masks_of("line 1/a.png", SIZE_HW)
    np.testing.assert_array_equal(masks[0], TWO_PITS)
    if run_lengths:
        np.testing.assert_array_equal(masks[1], disc)
    assert (masks[1] & disc).sum() / (masks[1] | disc).sum() > 0.95


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {}, "broken.png": None})
    report = predictions_to_coco(root, tmp_path / "fix.json")
    assert (report.images, report.annotations) == (1, 0)
    assert [(loss.kind, loss.count) for loss in report.lost] == [("unreadable_images", 1)]


def test_progress_is_told(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {}, "b.png": {}})
    steps: list[tuple[int, int]] = []
    predictions_to_coco(root, tmp_path / "fix.json", progress=lambda done, total, text="": steps.append((done, total)))
    assert steps == [(1, 0), (2, 0)]


def test_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {}})
    (tmp_path / "fix.json").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"fix\.json: exists"):
        predictions_to_coco(root, tmp_path / "fix.json")
    assert (tmp_path / "fix.json").read_text() == "precious"


def test_run_that_has_not_ended_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {}}, status="interrupted")
    with pytest.raises(DataError, match=r"interrupted.*again"):
        predictions_to_coco(root, tmp_path / "fix.json")
    assert not (tmp_path / "fix.json").exists()


def test_tables_that_somebody_edited_do_not_matter(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {1: TWO_PITS}})
    predictions_to_coco(root, tmp_path / "before.json")
    for table in root.glob("*.csv"):
        table.write_text("edited;in;a;spreadsheet")
    predictions_to_coco(root, tmp_path / "after.json")
    assert written(tmp_path / "after.json") == written(tmp_path / "before.json")


def test_a_folder_without_regions_gives_regions_without_scores(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {1: TWO_PITS}}, outputs=OutputChoice(("rle",)))

    predictions_to_coco(root, tmp_path / "coco.json")

    annotations = written(tmp_path / "coco.json")["annotations"]
    assert len(annotations) == 2
    assert all(annotation.get("score") is None for annotation in annotations)


def test_a_folder_without_run_lengths_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = output_of_predict(tmp_path, {"a.png": {1: TWO_PITS}}, outputs=OutputChoice(("masks", "regions")))

    with pytest.raises(DataError, match=r"without predictions\.csv.*rle among the outputs"):
        predictions_to_coco(root, tmp_path / "coco.json")
