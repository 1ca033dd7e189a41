import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, LabelError
from defectseg.formats.coco import import_coco

GREY = np.full((4, 6), 90, np.uint8)
CRACK, DENT = {"id": 7, "name": "crack"}, {"id": 3, "name": "dent"}
ROWS_0_1 = [0, 0, 6, 0, 6, 2, 0, 2]  # the upper two of four rows
COLUMN_0 = [0, 0, 1, 0, 1, 4, 0, 4]


def picture(path: Path, pixels: Any = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def image(number: int = 1, file_name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": 4, "width": 6, **more}


def annotation(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, "segmentation": [ROWS_0_1], "bbox": [0, 0, 6, 2]} | more


def coco(tmp_path: Path, *, encoding: str = "utf-8", **lists: Any) -> Path:
    """A COCO file beside the folder `images`, which holds a.png."""
    picture(tmp_path / "images/a.png")
    document = {"images": [image()], "annotations": [annotation()], "categories": [CRACK, DENT]} | lists
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document), encoding=encoding)
    return path


def run(tmp_path: Path, file: Path, **options: Any) -> Any:
    return import_coco(file, tmp_path / "images", tmp_path / "out", **options)


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


UPPER_ROWS = "1 2 5 2 9 2 13 2 17 2 21 2"


def part(name: str, of: str) -> dict[str, str]:
    return {"name": name, "supercategory": of}


BOXED = annotation(2, bbox=[0.5, 1.5, 1.0, 10.0])  # columns 0 and 1, rows 1 and below
NO_OUTLINES: tuple[Any, ...] = ([], [[]], None)
SLIVER = [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]


@pytest.mark.parametrize(
    ("lists", "names", "masks", "lost"),
    [
        ({}, "dent crack", {2: UPPER_ROWS}, {}),  # in the order of the categories' ids
        ({"categories": [{"id": 7, "name": "ignore"}, DENT]}, "dent", {255: UPPER_ROWS}, {}),
        ({"categories": [{"id": 7, "name": " edge\n crack "}]}, "edge_crack", {1: UPPER_ROWS}, {}),
        # Roboflow's id 0 is the whole project, unless annotations have it
        (
            {"categories": [{"id": 0} | part("all", "none"), {"id": 7} | part("crack", "all")]},
            "crack",
            {1: UPPER_ROWS},
            {},
        ),
        (
            {
                "categories": [{"id": 0} | part("scale", "none"), {"id": 7} | part("crack", "scale")],
                "annotations": [annotation(), annotation(2, category_id=0)],
            },
            "scale crack",
            {1: UPPER_ROWS, 2: UPPER_ROWS},
            {},
        ),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "dent crack", {2: UPPER_ROWS}, {}),  # no size
        ({"annotations": []}, "dent crack", {}, {}),
        ({"annotations": [annotation(segmentation=ROWS_0_1)]}, "dent crack", {2: UPPER_ROWS}, {}),  # no list around it
        *(
            (
                {"annotations": [annotation(segmentation={"size": [4, 6], "counts": counts}, iscrowd=crowd)]},
                "dent crack",
                {2: "1 4"},
                {},
            )
            for counts in ([0, 4, 20], "04d0")
            for crowd in (0, 1)
        ),
        (
            {
                "annotations": [
                    annotation(),
                    annotation(2, segmentation=[COLUMN_0]),
                    annotation(3, segmentation=[COLUMN_0], category_id=3),
                ]
            },
            "dent crack",
            {1: "1 4", 2: "1 6 9 2 13 2 17 2 21 2"},
            {"united": 1},
        ),
        *(
            (
                {"annotations": [annotation(1), BOXED | {"segmentation": nothing}]},
                "dent crack",
                {2: UPPER_ROWS, 255: "3 2 7 2"},  # where no mask explains the box
                {"boxes": 1},
            )
            for nothing in NO_OUTLINES
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 7}, annotation(6, segmentation=SLIVER)]},
            "dent crack",
            {},
            {"no_shape": 1, "no_pixel": 1},
        ),
    ],
)
def test_annotations_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, lists: dict[str, Any], names: str, masks: dict[int, str], lost: dict[str, int]
) -> None:
    report = run(tmp_path, coco(tmp_path, **lists))
    assert [name.replace(" ", "_") for name in report.class_names] == names.split()
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == list(report.class_names)
    assert rows(tmp_path) == [f"a.png,{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert {loss.kind: loss.count for loss in report.lost} == lost
    assert report.clean_images == (not masks)
    assert report.ignored_px == {"3 2 7 2": 4, UPPER_ROWS: 12}.get(masks.get(255, ""), 0)


def test_given_names_set_the_order_and_must_include_the_annotated_ones(tmp_path: Path) -> None:
    run(tmp_path, coco(tmp_path), classes=["crack", "rust"])
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS}"]
    with pytest.raises(DataError, match=r"classes: .*crack, but the given list of classes has only dent"):
        import_coco(coco(tmp_path), tmp_path / "images", tmp_path / "other", classes=["dent"])


def test_images_that_only_one_side_has_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "images/b.png")
    report = run(tmp_path, coco(tmp_path, images=[image(), image(2, "gone.png")]))
    assert (report.images, report.missing_images) == (1, ("gone.png",))
    assert [(loss.kind, loss.count) for loss in report.lost] == [("unlisted_images", 1)]
    assert open_data_folder(tmp_path / "out").image_ids == ("a.png",)


@pytest.mark.parametrize(
    "file_name",
    [
        "line 1/a.png",
        "./line 1/a.png",
        "images/line 1/a.png",
        "images\\line 1\\a.png",
        "..\\..\\label-studio\\media\\upload\\4\\line 1\\a.png",  # Label Studio 1.16
        "../../images/line 1/a.png",
        "/home/somebody/images/line 1/a.png",
        "C:\\images\\line 1\\a.png",
        "http://localhost:8080/data/upload/line%201/a.png?token=x",
        "/data/local-files/?d=images/line%201/a.png",
        "s3://bucket/images/line 1/a.png",
    ],
)
def test_file_names_of_labelling_tools_find_their_image(tmp_path: Path, file_name: str) -> None:
    picture(tmp_path / "images/line 1/a.png")
    report = run(tmp_path, coco(tmp_path, images=[image(1, file_name)]))
    assert report.missing_images == ()
    assert rows(tmp_path) == [f"line 1/a.png,2,{UPPER_ROWS}"]


@pytest.mark.parametrize("file_name", ["../secret.png", "..\\secret.png", "{tmp}/secret.png"])
def test_nothing_outside_the_folder_of_images_is_ever_taken(tmp_path: Path, file_name: str) -> None:
    picture(tmp_path / "secret.png")
    listed = [image(), image(2, file_name.format(tmp=tmp_path))]
    report = run(tmp_path, coco(tmp_path, images=listed))
    assert report.missing_images == (file_name.format(tmp=tmp_path),)
    assert open_data_folder(tmp_path / "out").image_ids == ("a.png",)


def test_entries_of_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image 2 \(north/a\.png\) and a\.png both stand for .*images/a\.png"):
        run(tmp_path, coco(tmp_path, images=[image(), image(2, "north/a.png")]))


def test_byte_order_mark_and_upper_case_suffixes_are_fine(tmp_path: Path) -> None:
    picture(tmp_path / "images/b.PNG")
    report = run(tmp_path, coco(tmp_path, encoding="utf-8-sig", images=[image(1, "b.PNG")]))
    assert report.images == 1


def test_image_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image 1 \(a\.png\): the labels are for 3x4 px, but .*a\.png has 6x4"):
        run(tmp_path, coco(tmp_path, images=[image(width=3)]))


def test_image_that_the_tool_turned_by_its_exif_orientation_is_explained(tmp_path: Path) -> None:
    from PIL import Image

    file = coco(tmp_path, images=[image(1, "t.jpg", width=4, height=6)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "images/t.jpg", exif=exif)
    with pytest.raises(DataError, match=r"obeyed the picture's EXIF orientation\. Clear that tag"):
        run(tmp_path, file)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"images": []}, "the list 'images' is empty"),
        ({"images": None}, r"no list 'images' of objects \(it has 'images', 'annotations', 'categories'\)"),
        ({"annotations": {"1": {}}}, "no list 'annotations' of objects"),
        ({"annotations": ["x"]}, "no list 'annotations' of objects"),
        ({"images": [image(), image()]}, "image 1: stands in the list 'images' twice"),
        ({"images": [{"id": 1}]}, "image 1: 'file_name' is None"),
        ({"images": [{"file_name": "a.png"}]}, "image 1: 'id' is None"),
        ({"annotations": [annotation(4, image_id=9)]}, "annotation 4: belongs to image 9, which the list"),
        (
            {"annotations": [annotation(4, category_id=9)]},
            r"annotation 4: has category 9; .* has 3 \(dent\), 7 \(crack\)",
        ),
        ({"annotations": [annotation(4, category_id=[7])]}, r"annotation 4: 'category_id' is \[7\]"),
        ({"annotations": [annotation(4, segmentation="x")]}, "annotation 4: 'segmentation' is str"),
        ({"annotations": [annotation(4, segmentation=[[0, 0, 1]])]}, "annotation 4: a polygon that is not a list"),
        (
            {"annotations": [annotation(4, segmentation=[[0, 0, 99, 0, 9, 9]])]},
            "annotation 4: a polygon with a point at 99",
        ),
        (
            {"annotations": [annotation(4, segmentation={"size": [4, 6], "counts": [5]})]},
            "annotation 4: .* add up to 5",
        ),
        ({"annotations": [annotation(4, bbox=[1, 2])]}, r"annotation 4: 'bbox' is \[1, 2\]"),
        ({"annotations": [annotation(4, bbox=[0, 0, float("nan"), 1])]}, "annotation 4: 'bbox' is"),
        ({"categories": [CRACK, CRACK]}, "category 7: stands in the list 'categories' twice"),
        ({"categories": [{"id": "7", "name": "crack"}]}, "category 7: expected an id that is a whole number"),
        ({"categories": [CRACK, {"id": 8, "name": "crack"}]}, "'crack' names ClassId 1 and 2"),
        ({"categories": []}, "has category 7; the list 'categories' has none"),
    ],
)
def test_faulty_files_name_the_entry_and_leave_nothing(tmp_path: Path, lists: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"labels\.json: .*" + message):
        run(tmp_path, coco(tmp_path, **lists))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "labels.json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "Label Studio's own JSON is such a list: export as COCO"),
        (b"3", "holds a JSON int"),
        (b"PK\x03\x04\xff", "not UTF-8 text.*Unpack it first"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_not_coco_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(LabelError, match=r"labels\.json: .*" + message):
        run(tmp_path, tmp_path / "labels.json")


def test_wrong_folder_of_images_is_told_by_example(tmp_path: Path) -> None:
    file = coco(tmp_path)
    picture(tmp_path / "other/x.png")
    with pytest.raises(DataError, match=r"none of its 1 images is in .*other: it names 'a\.png', .* holds 'x\.png'"):
        import_coco(file, tmp_path / "other", tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        import_coco(file, tmp_path / "nowhere", tmp_path / "out")


def test_loop_of_links_among_the_images_does_not_hang(tmp_path: Path) -> None:
    file = coco(tmp_path)
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    assert run(tmp_path, file).images == 1
