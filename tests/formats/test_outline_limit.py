"""Outlines that zigzag without end, and shapes without end, are refused by name, whatever the kind of the labels."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.errors import DataError, LabelError
from defectseg.formats.data_import import import_labels
from defectseg.image import limits

HW = (64, 96)
POINTS = [[number % 96, 63 * (number % 2)] for number in range(80_000)]  # more than 5 million px
FLAT = [value for point in POINTS for value in point]


def write_coco(src: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": HW[0], "width": HW[1]}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [FLAT], "bbox": [0, 0, 9, 9]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "pit"}]}
    (src / "a.json").write_text(json.dumps(content))


def write_yolo(src: Path) -> None:
    fractions = " ".join(f"{x / HW[1]:.5f} {y / HW[0]:.5f}" for x, y in POINTS)
    (src / "data.yaml").write_text("train: .\nnames: [pit]\n")
    (src / "a.txt").write_text(f"0 {fractions}\n")


def write_labelme(src: Path) -> None:
    shapes = [{"label": "pit", "shape_type": "polygon", "points": POINTS}]
    content = {"imagePath": "a.png", "imageHeight": HW[0], "imageWidth": HW[1], "shapes": shapes}
    (src / "a.json").write_text(json.dumps(content))


def write_supervisely(src: Path) -> None:
    shape = {"classTitle": "pit", "geometryType": "polygon", "points": {"exterior": POINTS, "interior": []}}
    content = {"size": {"height": HW[0], "width": HW[1]}, "objects": [shape]}
    (src / "a.png.json").write_text(json.dumps(content))


def write_cvat(src: Path) -> None:
    points = ";".join(f"{x},{y}" for x, y in POINTS)
    polygon = f'<polygon label="pit" points="{points}"/>'
    image = f'<image id="0" name="a.png" width="{HW[1]}" height="{HW[0]}">{polygon}</image>'
    (src / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_labelme, write_supervisely, write_cvat])
def test_an_outline_that_zigzags_without_end_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    cv2.imwrite(str(src / "a.png"), np.zeros(HW, np.uint8))
    write(src)
    with pytest.raises(LabelError, match=r"its outline is 5,0\d\d,\d+ px long"):
        import_labels(src, tmp_path / "out")


@pytest.fixture
def few_pixels() -> Iterator[None]:
    limits.allow_pixels(2 * HW[0] * HW[1])
    yield
    limits.allow_pixels(limits.MAX_PIXELS)


@pytest.mark.usefixtures("few_pixels")
@pytest.mark.parametrize(
    ("shapes", "classes", "way_on"), [(128, 1, None), (130, 1, 65 * 96), (20, 10, None), (20, 12, 18 * 768)]
)
def test_more_shapes_or_classes_in_one_image_than_memory_and_time_allow_are_refused(
    shapes: int, classes: int, way_on: int | None, tmp_path: Path
) -> None:
    src = tmp_path / "src"
    src.mkdir()
    cv2.imwrite(str(src / "a.png"), np.zeros(HW, np.uint8))
    boxes = [{"points": [[one % 40, 0], [one % 40 + 2, 2]], "label": str(one % classes)} for one in range(shapes)]
    content = {"imagePath": "a.png", "shapes": [{"shape_type": "rectangle", **box} for box in boxes]}
    (src / "a.json").write_text(json.dumps(content))
    if way_on is None:
        assert import_labels(src, tmp_path / "out").images == 1
        return
    with pytest.raises(DataError, match=rf"a\.json: {shapes} shapes of {classes} classes in one image of 96 x 64 px"):
        import_labels(src, tmp_path / "out")
