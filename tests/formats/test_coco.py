import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.data.split import SPLIT_NAME
from defectseg.errors import DataError, LabelError
from defectseg.formats.coco import export_coco
from defectseg.formats.data_import import import_labels
from defectseg.formats.labels import Choices

CRACK, DENT = {"id": 7, "name": "crack"}, {"id": 3, "name": "dent"}
ROWS_0_1 = [0, 0, 3, 0, 6, 0, 6, 2, 0, 2]  # the upper two of four rows
COLUMN_0 = [0, 0, 1, 0, 1, 4, 0, 4]
UPPER_ROWS = "1 2 5 2 9 2 13 2 17 2 21 2"
NAN = float("nan")

Make = Callable[..., Path]


def image(number: int = 1, file_name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": 4, "width": 6, **more}


def annotation(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, "segmentation": [ROWS_0_1], "bbox": [0, 0, 6, 2]} | more


@pytest.fixture
def coco(tmp_path: Path, write_image: Make) -> Make:
    """Writes a COCO file into `src`, beside the folder `images`, which holds a.png of 4 x 6."""

    def write(*, name: str = "labels.json", encoding: str = "utf-8", **lists: Any) -> Path:
        write_image(tmp_path / "src/images/a.png")
        document = {"images": [image()], "annotations": [annotation()], "categories": [CRACK, DENT]} | lists
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding=encoding)
        return path

    return write


def run(src: Path, out: str = "out", **choices: Any) -> Any:
    root = src.parent if src.name == "src" else src.parent.parent
    return import_labels(src, root / out, Choices(**choices))


def rows(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/train.csv").read_text().splitlines()[1:]


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def annotated(**more: Any) -> dict[str, Any]:
    return {"annotations": [annotation(4, **more)]}


def categories(project: str, **root: Any) -> list[dict[str, Any]]:
    """Roboflow's: id 0 is the whole project."""
    return [{"id": 0, "name": project, "supercategory": "none"} | root, CRACK | {"supercategory": project}]


RUN_LENGTHS = {"size": [4, 6], "counts": [0, 4, 20]}
BOXED = annotation(2, segmentation=[], bbox=[0.5, 1.5, 1.0, 10.0])  # columns 0 and 1, rows 1 and below
SLIVER = [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]
OF_BOTH = [annotation(), annotation(2, segmentation=[COLUMN_0]), annotation(3, segmentation=[COLUMN_0], category_id=3)]
WITH_0 = [annotation(), annotation(2, category_id=0)]
BEYOND = [[-3, -1, 0, -1, 6, -1, 9, 2, -3, 2]]
TEXTS = [list(map(str, ROWS_0_1))]
NOTHING = {"segmentation": None, "bbox": None}


@pytest.mark.parametrize(
    ("lists", "names", "masks", "lost"),
    [
        ({}, "dent crack", {2: UPPER_ROWS}, {}),  # in the order of the categories' ids
        ({"categories": [{"id": 7, "name": "ignore"}, DENT], "info": None}, "dent", {255: UPPER_ROWS}, {}),
        ({"categories": [{"id": 7, "name": " edge\n crack "}]}, "edge_crack", {1: UPPER_ROWS}, {}),
        ({"categories": [CRACK, CRACK | {"id": 8}]}, "crack", {1: UPPER_ROWS}, {}),
        ({"categories": categories("all")}, "crack", {1: UPPER_ROWS}, {}),
        ({"categories": categories("crack")}, "crack", {1: UPPER_ROWS}, {}),  # a project called like its class
        ({"categories": categories("all"), "annotations": WITH_0}, "all crack", {1: UPPER_ROWS, 2: UPPER_ROWS}, {}),
        ({"categories": [DENT | {"id": 0}, CRACK]}, "dent crack", {2: UPPER_ROWS}, {}),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "dent crack", {2: UPPER_ROWS}, {}),  # no size
        (annotated(segmentation=ROWS_0_1), "dent crack", {2: UPPER_ROWS}, {}),  # no list around it
        (annotated(segmentation=RUN_LENGTHS), "dent crack", {2: "1 4"}, {}),
        (annotated(segmentation=RUN_LENGTHS | {"counts": "04d0"}, iscrowd=1), "dent crack", {2: "1 4"}, {}),
        ({"annotations": OF_BOTH}, "dent crack", {1: "1 4", 2: "1 6 9 2 13 2 17 2 21 2"}, {"united": 1}),
        # a box without an outline counts where no mask explains it
        ({"annotations": [annotation(), BOXED]}, "dent crack", {2: UPPER_ROWS, 255: "3 2 7 2"}, {"boxes": 1}),
        (annotated(segmentation=[[]], bbox=[1, 0, 1, 1]), "dent crack", {255: "5 1"}, {"boxes": 1}),
        (annotated(segmentation=None, bbox=[1, 0, 1, 1]), "dent crack", {255: "5 1"}, {"boxes": 1}),
        (annotated(segmentation=BEYOND), "dent crack", {2: UPPER_ROWS}, {"clipped": 1}),
        (annotated(segmentation=[COLUMN_0]), "dent crack", {2: "1 4"}, {"like_boxes": 1}),
        (annotated(segmentation=BEYOND, score=0.9), "dent crack", {2: UPPER_ROWS}, {"score": 1, "clipped": 1}),
        # what is good is used, the rest is told
        (annotated(segmentation=[ROWS_0_1, [1, 2, 3], [0, 0, NAN, 1, 1, 1]]), "dent crack", {2: UPPER_ROWS},
         {"faulty_part": 1}),
        (annotated(bbox=[NAN] * 4), "dent crack", {2: UPPER_ROWS}, {"faulty_part": 1}),
        (annotated(segmentation=TEXTS), "dent crack", {2: UPPER_ROWS}, {"text_numbers": 1}),
        (annotated(segmentation=[["x"] * 6], bbox=["1", "0", 1, 1]), "dent crack", {255: "5 1"},
         {"faulty_part": 1, "boxes": 1, "text_numbers": 1}),
        ({"annotations": [annotation(), annotation(5, **NOTHING)]}, "dent crack", {2: UPPER_ROWS}, {"no_shape": 1}),
        ({"annotations": [annotation(), annotation(6, segmentation=SLIVER)]}, "dent crack", {2: UPPER_ROWS},
         {"no_pixel": 1}),
    ],
)  # fmt: skip
def test_annotations_become_masks_and_what_is_lost_is_counted(
    tmp_path: Path, coco: Make, lists: dict[str, Any], names: str, masks: dict[int, str], lost: dict[str, int]
) -> None:
    report = run(coco(**lists).parent, boxes="ignore", ignore="ignore")
    assert [one.name.replace(" ", "_") for one in report.classes] == names.split()
    assert rows(tmp_path) == [f"a.png,{class_id},{encoded}" for class_id, encoded in masks.items()]
    assert kinds(report) == lost
    assert report.ignored_px == sum(map(int, masks.get(255, "").split()[1::2]))


@pytest.mark.parametrize(
    "more", [NOTHING, {"segmentation": [["x"] * 6], "bbox": None}, {"segmentation": "x", "bbox": [1, 1, 0, 0]}]
)
def test_image_does_not_become_sound_because_its_only_annotation_is_faulty(
    tmp_path: Path, coco: Make, write_image: Make, more: dict[str, Any]
) -> None:
    write_image(tmp_path / "src/images/b.png")
    only = annotation(9, image_id=2, **more)
    file = coco(images=[image(), image(2, "b.png")], annotations=[annotation(), only])
    for unlabelled in (None, "clean"):
        with pytest.raises(
            LabelError, match=r"labels\.json: images\[1\] with id 2 \(b\.png\): .*would become sound"
        ) as told:
            run(file, unlabelled=unlabelled)
        assert told.value.go_on == {"unlabelled": "skip"}
    report = run(file, unlabelled="skip")
    assert (report.images, report.not_labelled) == (1, 1)


def test_image_without_annotation_is_asked_about_unless_the_file_says_that_it_is_complete(
    tmp_path: Path, coco: Make, write_image: Make, make_folder: Make
) -> None:
    write_image(tmp_path / "src/images/b.png")
    file = coco(images=[image(), image(2, "b.png")])
    with pytest.raises(DataError, match=r"1 of 2 images have no label of an area: b\.png") as told:
        run(file)
    assert told.value.go_on == {"unlabelled": "clean|skip"}
    assert run(file, unlabelled="clean").sound_images == 1
    file = coco(annotations=[], info={"contributor": "Label Studio"})
    with pytest.raises(DataError, match=r"nothing is labelled in 1 images.*brush"):
        run(file, out="other")


def test_parts_in_one_file_each_become_one_folder_with_a_split(tmp_path: Path, coco: Make, write_image: Make) -> None:
    for part, numbers in (("train", (7, 3)), ("valid", (1, 2)), ("test", (7, 9))):
        root = {"id": 0, "name": "all", "supercategory": "none"}
        named = [
            {"id": number, "name": name, "supercategory": "all"}
            for number, name in zip(numbers, ("crack", part), strict=True)
        ]
        write_image(tmp_path / f"src/{part}/a.png")  # the same name in each
        coco(
            name=f"{part}/_annotations.coco.json",
            categories=[root, *named],
            annotations=[annotation(category_id=numbers[0])],
        )
    (tmp_path / "src/images/a.png").unlink()
    (tmp_path / "src/train/._annotations.coco.json").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "src/results.json").write_text(
        '[{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [0, 0, 1, 1]}]'
    )
    report = run(tmp_path / "src")
    assert kinds(report) == {"predictions_file": 1}
    assert [(one.name, one.images) for one in report.classes] == [("crack", 3), ("test", 0), ("train", 0), ("valid", 0)]
    assert (tmp_path / "out" / SPLIT_NAME).read_text().split() == [
        "ImageId,fold,group", "test/a.png,test,", "train/a.png,train,", "valid/a.png,val,"
    ]  # fmt: skip


def test_part_may_stand_in_the_name_of_the_file_and_images_in_a_folder_for_each(
    tmp_path: Path, coco: Make, write_image: Make
) -> None:
    for part in ("train2017", "val2017"):
        write_image(tmp_path / f"src/images/{part}/b.png")
        coco(name=f"annotations/instances_{part}.json", images=[image(1, "b.png")])
    captions: dict[str, list[str]] = {"images": [], "annotations": []}
    (tmp_path / "src/annotations/captions_train2017.json").write_text(json.dumps(captions))
    report = run(tmp_path / "src")
    assert (report.parts, kinds(report)) == ({"train": 1, "val": 1}, {"other_file": 1, "unlisted_images": 1})
    with pytest.raises(DataError, match=r"may be .*train2017/b\.png or .*val2017/b\.png"):
        import_labels(tmp_path / "src/annotations/instances_val2017.json", tmp_path / "x", Choices(tmp_path / "src"))


def test_outlines_come_before_boxes_of_the_same_images(tmp_path: Path, coco: Make) -> None:
    src = coco(annotations=[annotation(segmentation=[])]).parent
    (src / "labels").mkdir()
    (src / "labels/a.txt").write_text("0 0 0 1 0 1 0.4")
    assert run(src).kind == "yolo"
    coco()
    with pytest.raises(DataError, match=r"may be coco .* or yolo"):
        run(src, out="other")


def test_list_of_results_is_taken_for_predictions_and_says_what_can_be_done(tmp_path: Path, coco: Make) -> None:
    file = coco()
    file.write_text('[{"image_id": 1, "category_id": 7, "segmentation": {}, "score": 0.5}]')
    with pytest.raises(DataError, match=r"expected COCO.*not labels\.json\. Predictions .* its 'annotations'"):
        run(file)


@pytest.mark.parametrize(
    "file_name",
    [
        "line 1/ä.PNG",
        "line 1/a\u0308.PNG",  # macOS
        "./line 1/ä.PNG",
        "images\\line 1\\ä.PNG",
        "..\\..\\label-studio\\media\\upload\\4\\line 1\\ä.PNG",  # Label Studio 1.16
        "/home/somebody/images/line 1/ä.PNG",
        "http://localhost:8080/data/upload/line%201/%C3%A4.PNG?token=x",
        "/data/local-files/?d=images/line%201/%C3%A4.PNG",
        "ä.PNG",
    ],
)
def test_file_names_of_labelling_tools_find_their_image(
    tmp_path: Path, coco: Make, write_image: Make, file_name: str
) -> None:
    write_image(tmp_path / "src/images/line 1/ä.PNG")
    (tmp_path / "src/images/loop").symlink_to(tmp_path / "src/images")
    assert run(coco(images=[image(1, file_name)], encoding="utf-8-sig")).missing_images == ()
    assert rows(tmp_path)[0].endswith(f"ä.PNG,2,{UPPER_ROWS}")


def test_missing_images_stop_the_import_and_nothing_outside_is_ever_taken(tmp_path: Path, coco: Make) -> None:
    gone = ("gone.png", "../secret.png", "..\\secret.png", str(tmp_path / "secret.png"))
    file = coco(images=[image(), *(image(number, name) for number, name in enumerate(gone, start=2))])
    (tmp_path / "src/images/a.png").rename(tmp_path / "secret.png")
    with pytest.raises(DataError, match="No image"):
        run(file)
    (tmp_path / "secret.png").rename(tmp_path / "src/images/a.png")
    with pytest.raises(DataError, match="4 of 5 labels have no image") as told:
        run(file)
    assert told.value.go_on == {"absent": "skip"}
    report = run(file, absent="skip")
    assert (report.images, set(report.missing_images)) == (1, set(gone))


@pytest.mark.parametrize(("orientation", "size"), [(3, (6, 4)), (6, (4, 6))])
def test_picture_with_an_exif_orientation_is_asked_about_and_turned_with_its_sound_neighbour(
    tmp_path: Path, coco: Make, orientation: int, size: tuple[int, int]
) -> None:
    """The right lower pixel of what is displayed is labelled; in the file, it is the left upper or the right upper."""
    right_lower = [size[0] - 1, size[1] - 1, size[0], size[1] - 1, *size, size[0] - 1, size[1]]
    file = coco(
        images=[image(1, "t.png", width=size[0], height=size[1]), image(2, "u.png", width=size[0], height=size[1])],
        annotations=[annotation(segmentation=[right_lower])],
        info={"description": "written by defectseg", "complete": True},
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in "tu":
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 9).save(
            tmp_path / f"src/images/{name}.png", exif=exif
        )
    with pytest.raises(DataError, match=f"EXIF orientation {orientation}") as told:
        run(file)
    assert told.value.go_on == {"exif": "keep|turn"}
    run(file, exif="turn")
    masks, _ = open_data_folder(tmp_path / "out").masks_of("t.png", (size[1], size[0]))
    assert (masks[1].sum(), masks[1][-1, -1]) == (1, True)
    shown = np.asarray(Image.open(tmp_path / "out/train_images/t.png"))
    assert shown[-1, -1] == {3: 0, 6: 5}[orientation] * 9


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"images": []}, "id 1: has 'image_id' 1 and 'category_id' 7, which are not both"),
        ({"images": [], "annotations": []}, "holds no labels"),
        ({"images": None}, "no list 'images' of objects; expected COCO"),
        ({"annotations": {"1": {}}}, "no list 'annotations' of objects"),
        ({"annotations": ["x"]}, "no list 'annotations' of objects"),
        ({"images": [image(), image()]}, "id 1: expected an 'id' that no other entry of 'images' has"),
        ({"images": [{"id": 1}]}, "id 1: has 'file_name' None"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\] with id None: expected an 'id'"),
        ({"images": [image(width="6")]}, r"id 1: has .*'height' and 'width' \(4, '6'\)"),
        ({"images": [image(width=3)]}, r"id 1 \(a\.png\): the labels are for 3x4 px, but .* 6x4\. Use the images"),
        ({"images": [image(), image(2, "north/a.png")]}, r"id 2 \(north/a\.png\) and .* both stand for .*a\.png"),
        ({"annotations": [{"image_id": 9}]}, r"annotations\[0\] with id None: has 'image_id' 9 and 'category_id' None"),
        ({"categories": [{}]}, r"categories\[0\] with id None: expected an 'id'"),
        (annotated(image_id=9), "id 4: has 'image_id' 9 and 'category_id' 7"),
        (annotated(category_id=9), "id 4: has 'image_id' 1 and 'category_id' 9"),
        (annotated(category_id=[7]), r"id 4: .*'category_id' \[7\]"),
        (annotated(segmentation=[[0, 0, 999, 0, 1, 1]]), "id 4: .*999, far outside its image"),
        (annotated(segmentation={"size": [4, 6], "counts": [5]}), r"id 4: .*\[5\].* add up to 24 px"),
        ({"categories": [CRACK, CRACK]}, "id 7: expected an 'id' that no other"),
        ({"categories": [{"id": "7", "name": "crack"}]}, "id '7': expected an 'id' that is a whole number"),
        ({"categories": [{"id": 7, "name": " "}]}, "id 7: expected .* a 'name'"),
        ({"categories": []}, "'category_id' 7, which are not both"),
    ],
)
def test_faulty_files_name_the_entry_and_leave_nothing(
    tmp_path: Path, coco: Make, lists: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=r"labels\.json: .*" + message):
        run(coco(**lists))
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


def test_any_content_gives_an_import_or_an_error_that_names_the_file(tmp_path: Path, coco: Make) -> None:
    rng = np.random.default_rng(0)
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    odd = [
        None,
        True,
        -1,
        10**400,
        1e308,
        NAN,
        "",
        "x",
        "\ud800",
        [],
        [[]],
        [[[]]],
        {},
        {"counts": "x"},
        {"a": []},
        deep,
    ]
    told: list[str] = []
    for _ in range(100):
        document: Any = json.loads(coco().read_text())
        node = document
        while True:
            key = rng.choice(list(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
            if not (isinstance(node[key], dict | list) and node[key]) or rng.random() < 0.2:
                node[key] = odd[rng.integers(len(odd))]
                break
            node = node[key]
        file = coco(**document)
        try:
            run(file, out=f"out{rng.random()}", unlabelled="skip", boxes="ignore")
        except DataError as error:
            told.append(str(error))
    assert len(told) > 20
    assert all("src" in text for text in told)


def test_export_writes_one_annotation_for_each_region(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: "#..#/.#.#/...#", 255: "##../#.../...."}})
    export_coco(root, tmp_path / "coco")
    document = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "crack"), (2, "dent"), (255, "ignore")]
    assert document["images"] == [{"id": 1, "file_name": "a.png", "height": 3, "width": 4}]
    assert [(one["category_id"], one["bbox"], one["area"]) for one in document["annotations"]] == [
        (1, [0, 0, 2, 2], 2),
        (1, [3, 0, 1, 3], 3),
        (255, [0, 0, 2, 2], 3),
    ]
    assert document["annotations"][1]["segmentation"] == {"size": [3, 4], "counts": "93"}  # 9 sound, 3 of the class


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
def test_pycocotools_reads_the_exported_masks(
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
    exact = COCO(str(tmp_path / "exact/annotations.json"))
    assert exact.annToMask(exact.anns[1]).tolist() == [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert theirs.annToMask(theirs.anns[2]).tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
