import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.folder import NOT_LABELLED_NAME, open_data_folder
from defectseg.errors import DataError, LabelError
from defectseg.formats.data_import import import_labels
from defectseg.formats.labels import Choices

Make = Callable[..., Path]
HW = (4, 6)
UPPER_LEFT = [[0, 0], [2, 0], [2, 1], [0, 1]]  # 3 x 2 px: the pixels on the outline belong to the shape
UPPER_LEFT_RLE = "1 2 5 2 9 2"


def bitmap(rows: str = "##/.#", origin: Any = (1, 2), *, deflated: bool = True, channels: int = 1) -> dict[str, Any]:
    pixels = (np.array([list(row) for row in rows.split("/")]) == "#").astype(np.uint8)
    if channels == 4:
        pixels = np.dstack([pixels * 0, pixels * 0, pixels * 0, pixels * 255])
    content = cv2.imencode(".png", pixels)[1].tobytes()
    data = base64.b64encode(zlib.compress(content) if deflated else content).decode()
    return {"classTitle": "crack", "geometryType": "bitmap", "bitmap": {"data": data, "origin": list(origin)}}


def polygon(exterior: Any = UPPER_LEFT, *holes: Any, **more: Any) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": list(holes)}
    return {"classTitle": "crack", "geometryType": "polygon", "points": points, **more}


@pytest.fixture
def project(tmp_path: Path, write_image: Make) -> Make:
    """Writes a project with the objects of each image; None for an image without a file."""

    def write(images: dict[str, Any], meta: Any = None) -> Path:
        for name, objects in images.items():
            folder, _, base = name.rpartition("/")
            write_image(tmp_path / "src" / folder / "img" / base, HW)
            if objects is not None:
                document = {
                    "description": "",
                    "tags": [],
                    "size": {"height": HW[0], "width": HW[1]},
                    "objects": objects,
                }
                file = tmp_path / "src" / folder / "ann" / f"{base}.json"
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(document))
        (tmp_path / "src/meta.json").write_text(json.dumps(meta))
        return tmp_path / "src"

    return write


def rles(root: Path) -> dict[str, dict[int, str]]:
    return {image_id: dict(of) for image_id, of in open_data_folder(root).table.rles.items()}


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([bitmap()], "7 1 11 2"),
        ([bitmap(channels=4)], "7 1 11 2"),
        ([bitmap(deflated=False, channels=4)], "7 1 11 2"),
        ([polygon()], UPPER_LEFT_RLE),
        ([polygon([[0.9, 0.2], [2.9, 0], [2.9, 1.9], [0, 1]])], UPPER_LEFT_RLE),  # rounded down, as by the SDK
        ([polygon([[0, 0], [4, 0], [4, 3], [0, 3]], [[1, 1], [2, 1], [2, 2], [1, 2]])], "1 5 8 2 12 9"),
        ([polygon(), polygon([[5, 3]], geometryType="point")], UPPER_LEFT_RLE),
    ],
)
def test_objects_are_painted_as_supervisely_paints_them(
    tmp_path: Path, project: Make, objects: list[Any], expected: str
) -> None:
    meta = {"classes": [{"title": "dent", "shape": "bitmap"}, {"title": "crack", "shape": "polygon"}]}
    report = import_labels(project({"ds/a.png": objects}, meta), tmp_path / "out")
    assert [one.name for one in report.classes] == ["dent", "crack"]
    assert rles(tmp_path / "out") == {"a.png": {2: expected}}
    assert [loss.kind for loss in report.lost] == ["other_shape"] * (len(objects) - 1)


def test_image_without_objects_may_be_sound_or_nobody_has_looked_at_it(tmp_path: Path, project: Make) -> None:
    src = project({"ds/a.jpg": [polygon()], "ds/b.jpg": [], "ds/c.jpg": None})
    with pytest.raises(DataError, match=r"1 of 3 images have no label of an area: b\.jpg.*unlabelled="):
        import_labels(src, tmp_path / "out")
    report = import_labels(src, tmp_path / "out", Choices(unlabelled="skip"))
    assert (report.images, report.not_labelled) == (1, 2)
    assert (tmp_path / "out" / NOT_LABELLED_NAME).read_text().split() == ["ImageId", "b.jpg", "c.jpg"]


def test_datasets_become_parts_and_masks_beside_the_images_are_no_images(
    tmp_path: Path, project: Make, write_image: Make
) -> None:
    src = project({"train/a.png": [polygon()], "val/a.png": [bitmap()]})
    write_image(src / "train/masks_machine/a.png", HW)
    report = import_labels(src, tmp_path / "out")
    assert (report.parts, report.not_labelled) == ({"train": 1, "val": 1}, 0)
    assert rles(tmp_path / "out") == {"train/img/a.png": {1: UPPER_LEFT_RLE}, "val/img/a.png": {1: "7 1 11 2"}}


def test_rectangles_are_boxes(tmp_path: Path, project: Make) -> None:
    src = project({"ds/a.png": [polygon([[2, 1], [0, 0]], geometryType="rectangle")]})
    with pytest.raises(DataError, match=r"a\.png\.json, object 1"):
        import_labels(src, tmp_path / "out")
    import_labels(src, tmp_path / "out", Choices(boxes="ignore", classes=["crack"]))
    assert rles(tmp_path / "out") == {"a.png": {255: UPPER_LEFT_RLE}}


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (7, "no 'classTitle'"),
        (polygon(classTitle=3), "no 'classTitle'"),
        (polygon([]), "pairs of numbers"),
        (polygon([[0, "1"]]), "pairs of numbers"),
        (polygon(UPPER_LEFT, [[1, None]]), "pairs of numbers"),
        (polygon(points=5), "pairs of numbers"),
        (polygon(5, geometryType="rectangle"), "pairs of numbers"),
        (bitmap(origin=(1, "2")), "pairs of numbers"),
        (bitmap(origin=(5, 3)), "beyond its image"),
        ({**bitmap(), "bitmap": {"data": "eJwB", "origin": [0, 0]}}, "no picture"),
        ({**bitmap(), "bitmap": {"data": "/x", "origin": [0, 0]}}, "base64"),
        ({**bitmap(), "bitmap": None}, "pairs of numbers"),
    ],
)
def test_damaged_object_is_named(tmp_path: Path, project: Make, one: Any, told: str) -> None:
    src = project({"ds/a.png": [polygon(), one]}, {"classes": 5})
    with pytest.raises(LabelError, match=rf"src: ds/ann/a\.png\.json, object 2.*{told}"):
        import_labels(src, tmp_path / "out", Choices(boxes="ignore"))
