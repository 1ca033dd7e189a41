import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError
from defectseg.formats.coco import export_coco, import_coco

CRACK, DENT = {"id": 7, "name": "crack"}, {"id": 3, "name": "dent"}
ROWS_0_1 = [0, 0, 6, 0, 6, 2, 0, 2]  # the upper two of four rows
COLUMN_0 = [0, 0, 1, 0, 1, 4, 0, 4]
UPPER_ROWS = "1 2 5 2 9 2 13 2 17 2 21 2"

Make = Callable[..., Path]


def image(number: int = 1, file_name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": 4, "width": 6, **more}


def annotation(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, "segmentation": [ROWS_0_1], "bbox": [0, 0, 6, 2]} | more


@pytest.fixture
def coco(tmp_path: Path, write_image: Make) -> Make:
    """Writes a COCO file beside the folder `images`, which holds a.png of 4 x 6."""

    def write(*, encoding: str = "utf-8", **lists: Any) -> Path:
        write_image(tmp_path / "images/a.png")
        document = {"images": [image()], "annotations": [annotation()], "categories": [CRACK, DENT]} | lists
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(document), encoding=encoding)
        return path

    return write


def run(file: Path, **options: Any) -> Any:
    return import_coco(file, file.parent / "images", file.parent / "out", **options)


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


def annotated(**more: Any) -> dict[str, Any]:
    return {"annotations": [annotation(4, **more)]}


def categories(project: str) -> list[dict[str, Any]]:
    """Roboflow's: id 0 is the whole project."""
    return [{"id": 0, "name": project, "supercategory": "none"}, CRACK | {"supercategory": project}]


RUN_LENGTHS = {"size": [4, 6], "counts": [0, 4, 20]}
BOXED = annotation(2, segmentation=[], bbox=[0.5, 1.5, 1.0, 10.0])  # columns 0 and 1, rows 1 and below
SLIVER = [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]
OF_BOTH = [annotation(), annotation(2, segmentation=[COLUMN_0]), annotation(3, segmentation=[COLUMN_0], category_id=3)]
WITH_0 = [annotation(), annotation(2, category_id=0)]
NO_SHAPE = [{"id": 5, "image_id": 1, "category_id": 7}, annotation(6, segmentation=SLIVER)]


@pytest.mark.parametrize(
    ("lists", "names", "masks", "lost"),
    [
        ({}, "dent crack", {2: UPPER_ROWS}, {}),  # in the order of the categories' ids
        ({"categories": [{"id": 7, "name": "ignore"}, DENT]}, "dent", {255: UPPER_ROWS}, {}),
        ({"categories": [{"id": 7, "name": " edge\n crack "}]}, "edge_crack", {1: UPPER_ROWS}, {}),
        ({"categories": categories("all")}, "crack", {1: UPPER_ROWS}, {}),
        ({"categories": categories("all"), "annotations": WITH_0}, "all crack", {1: UPPER_ROWS, 2: UPPER_ROWS}, {}),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "dent crack", {2: UPPER_ROWS}, {}),  # no size
        ({"annotations": []}, "dent crack", {}, {}),
        (annotated(segmentation=ROWS_0_1), "dent crack", {2: UPPER_ROWS}, {}),  # no list around it
        (annotated(segmentation=RUN_LENGTHS), "dent crack", {2: "1 4"}, {}),
        (annotated(segmentation=RUN_LENGTHS | {"counts": "04d0"}, iscrowd=1), "dent crack", {2: "1 4"}, {}),
        ({"annotations": OF_BOTH}, "dent crack", {1: "1 4", 2: "1 6 9 2 13 2 17 2 21 2"}, {"united": 1}),
        # a box without an outline counts where no mask explains it
        ({"annotations": [annotation(), BOXED]}, "dent crack", {2: UPPER_ROWS, 255: "3 2 7 2"}, {"boxes": 1}),
        (annotated(segmentation=[[]], bbox=[1, 0, 1, 1]), "dent crack", {255: "5 1"}, {"boxes": 1}),
        (annotated(segmentation=None, bbox=[1, 0, 1, 1]), "dent crack", {255: "5 1"}, {"boxes": 1}),
        ({"annotations": NO_SHAPE}, "dent crack", {}, {"no_shape": 1, "no_pixel": 1}),
    ],
)
def test_annotations_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, coco: Make, lists: dict[str, Any], names: str, masks: dict[int, str], lost: dict[str, int]
) -> None:
    report = run(coco(**lists))
    assert [name.replace(" ", "_") for name in report.class_names] == names.split()
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == list(report.class_names)
    assert rows(tmp_path) == [f"a.png,{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert {loss.kind: loss.count for loss in report.lost} == lost
    assert report.clean_images == (not masks)
    assert report.ignored_px == sum(map(int, masks.get(255, "").split()[1::2]))


def test_given_names_set_the_order_and_must_include_the_annotated_ones(tmp_path: Path, coco: Make) -> None:
    run(coco(), classes=["crack", "rust"])
    assert rows(tmp_path) == [f"a.png,1,{UPPER_ROWS}"]
    with pytest.raises(DataError, match=r"classes: .*crack, but the given list of classes has only dent"):
        import_coco(coco(), tmp_path / "images", tmp_path / "other", classes=["dent"])


def test_unlisted_and_missing_images_are_reported(tmp_path: Path, coco: Make, write_image: Make) -> None:
    write_image(tmp_path / "images/b.png")
    write_image(tmp_path / "secret.png")  # nothing outside the folder of images is ever taken
    gone = ("gone.png", "../secret.png", "..\\secret.png", str(tmp_path / "secret.png"))
    report = run(coco(images=[image(), *(image(number, name) for number, name in enumerate(gone, start=2))]))
    assert (report.images, report.missing_images) == (1, gone)
    assert [(loss.kind, loss.count) for loss in report.lost] == [("unlisted_images", 1)]
    assert "b.png" in report.lost[0].message
    assert open_data_folder(tmp_path / "out").image_ids == ("a.png",)


@pytest.mark.parametrize(
    "file_name",
    [
        "line 1/a.PNG",
        "./line 1/a.PNG",
        "images\\line 1\\a.PNG",
        "..\\..\\label-studio\\media\\upload\\4\\line 1\\a.PNG",  # Label Studio 1.16
        "../../images/line 1/a.PNG",
        "/home/somebody/images/line 1/a.PNG",
        "C:\\images\\line 1\\a.PNG",
        "http://localhost:8080/data/upload/line%201/a.PNG?token=x",
        "/data/local-files/?d=images/line%201/a.PNG",
        "s3://bucket/images/line 1/a.PNG",
    ],
)
def test_file_names_of_labelling_tools_find_their_image(
    tmp_path: Path, coco: Make, write_image: Make, file_name: str
) -> None:
    write_image(tmp_path / "images/line 1/a.PNG")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    report = run(coco(images=[image(1, file_name)], encoding="utf-8-sig"))
    assert report.missing_images == ()
    assert rows(tmp_path) == [f"line 1/a.PNG,2,{UPPER_ROWS}"]


def test_error_explains_an_image_that_the_tool_turned_by_its_exif_orientation(tmp_path: Path, coco: Make) -> None:
    file = coco(images=[image(1, "t.jpg", width=4, height=6)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4)).save(tmp_path / "images/t.jpg", exif=exif)
    with pytest.raises(DataError, match=r"obeyed the picture's EXIF orientation\. Clear that tag"):
        run(file)


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
        ({"images": [image(width=3)]}, r"image 1 \(a\.png\): the labels are for 3x4 px, but .* 6x4\. Use the images"),
        (
            {"images": [image(), image(2, "north/a.png")]},
            r"image 2 \(north/a\.png\) and a\.png both stand for .*a\.png",
        ),
        ({"annotations": [{"image_id": 9}]}, "annotation number 1: belongs to image 9"),
        ({"categories": [{}]}, "category number 1: expected an id"),
        (annotated(image_id=9), "annotation 4: belongs to image 9, which the list"),
        (annotated(category_id=9), r"annotation 4: has category 9; .* has 3 \(dent\), 7 \(crack\)"),
        (annotated(category_id=[7]), r"annotation 4: 'category_id' is \[7\]"),
        (annotated(segmentation="x"), "annotation 4: 'segmentation' is str"),
        (annotated(segmentation=[[0, 0, 1]]), "annotation 4: a polygon that is not a list"),
        (annotated(segmentation={"size": [4, 6], "counts": [5]}), "annotation 4: .* add up to 5"),
        (annotated(bbox=[1, 2]), r"annotation 4: 'bbox' is \[1, 2\]"),
        (annotated(bbox=[0, 0, float("nan"), 1]), "annotation 4: 'bbox' is"),
        (annotated(bbox=[0, 0, 1e9, 1]), "annotation 4: 'bbox' is"),
        ({"categories": [CRACK, CRACK]}, "category 7: stands in the list 'categories' twice"),
        ({"categories": [{"id": "7", "name": "crack"}]}, "category 7: expected an id that is a whole number"),
        ({"categories": [CRACK, {"id": 8, "name": "crack"}]}, "'crack' names ClassId 1 and 2"),
        ({"categories": []}, "has category 7; the list 'categories' has none"),
    ],
)
def test_faulty_files_name_the_entry_and_leave_nothing(
    tmp_path: Path, coco: Make, lists: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=r"labels\.json: .*" + message):
        run(coco(**lists))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "labels.json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "Label Studio's own JSON is such a list: export as COCO"),
        (b"3", "holds a JSON int"),
        (b"PK\x03\x04\xff", "not UTF-8 text.*Unpack it first"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_files_that_are_not_coco_are_refused(coco: Make, content: bytes, message: str) -> None:
    file = coco()
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.json: .*" + message):
        run(file)


def test_error_shows_names_where_the_folder_of_images_is_wrong(tmp_path: Path, coco: Make, write_image: Make) -> None:
    write_image(tmp_path / "other/x.png")
    with pytest.raises(DataError, match=r"none of its 1 images is in .*other: it names 'a\.png', .* holds 'x\.png'"):
        import_coco(coco(), tmp_path / "other", tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        import_coco(coco(), tmp_path / "nowhere", tmp_path / "out")


def test_export_writes_one_annotation_for_each_region(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: "#..#/.#.#/...#", 255: "##../#.../...."}})
    export_coco(root, tmp_path / "coco")
    document = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "crack"), (2, "dent"), (255, "ignore")]
    assert document["images"] == [{"id": 1, "file_name": "a.png", "height": 3, "width": 4, "license": 0}]
    assert [(one["category_id"], one["bbox"], one["area"]) for one in document["annotations"]] == [
        (1, [0, 0, 2, 2], 2),
        (1, [3, 0, 1, 3], 3),
        (255, [0, 0, 2, 2], 3),
    ]
    assert document["annotations"][1]["segmentation"] == {"size": [3, 4], "counts": "93"}  # 9 sound, 3 of the class


def test_pycocotools_reads_the_exported_file(
    tmp_path: Path, make_folder: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    root = make_folder(tmp_path / "data", {"a.png": {1: "###/#.#/###", 2: "..#/..#/..."}, "b.png": {}})
    assert export_coco(root, tmp_path / "exact").lost == ()
    (loss,) = export_coco(root, tmp_path / "coco", polygons=True).lost
    assert (loss.kind, loss.count) == ("hole_px", 1)
    assert "a.png" in loss.message
    theirs = COCO(str(tmp_path / "coco/annotations.json"))
    assert (len(theirs.imgs), len(theirs.anns), len(theirs.cats)) == (2, 2, 2)
    assert theirs.loadImgs(theirs.getImgIds(catIds=[1]))[0]["file_name"] == "a.png"
