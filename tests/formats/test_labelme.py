import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectseg.data.folder import NOT_LABELLED_NAME, open_data_folder
from defectseg.data.split import SPLIT_NAME
from defectseg.errors import DataError, LabelError
from defectseg.formats.data_import import import_labels
from defectseg.formats.labelme import draw, export_labelme
from defectseg.formats.labels import Choices

Make = Callable[..., Path]
UPPER_LEFT = [[0, 0], [2, 0], [2, 1], [0, 1]]  # 3 x 2 px: the pixels on the outline belong to the shape
HW = (4, 6)


def entry(points: Any = UPPER_LEFT, label: Any = "crack", form: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": form, "flags": {}, **more}


def png(rows: str) -> str:
    pixels = np.array([list(row) for row in rows.split("/")]) == "#"
    return base64.b64encode(cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes()).decode()


@pytest.fixture
def labelme(tmp_path: Path, write_image: Make) -> Make:
    """Writes a JSON file, by default of an image of 4 x 6 px beside it."""

    def write(name: str, shapes: list[Any], *, image: str | None = None, **more: Any) -> Path:
        document: dict[str, Any] = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{Path(name).name}.png",
        }
        document |= {"imageData": None, "imageHeight": HW[0], "imageWidth": HW[1], **more}
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / f"{name}.json").write_text(json.dumps(document))
        write_image(tmp_path / "src" / (image or f"{name}.png"), HW)
        return tmp_path / "src"

    return write


def masks(root: Path, image_id: str) -> tuple[list[str], str]:
    """The masks of an image by class, and the ignored pixels, as rows of "#" and "."."""
    found, ignore = open_data_folder(root).masks_of(image_id, HW)
    text = ["/".join("".join(".#"[value] for value in row) for row in mask.astype(int)) for mask in (*found, ignore)]
    return text[:-1], text[-1]


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


NOTHING, TOP = "....../....../....../......", "###.../###.../....../......"


@pytest.mark.parametrize(
    ("shapes", "expected", "lost"),
    [
        ([entry()], TOP, {}),
        ([{"label": "crack", "points": UPPER_LEFT, "line_color": None}], TOP, {}),  # version 3 knew polygons alone
        ([entry([[2, 1], [0, 0]], form="rectangle")], TOP, {"rectangles": 1}),
        ([entry(UPPER_LEFT, form="rectangle")], TOP, {"rectangles": 1}),  # as X-AnyLabeling writes it
        ([entry([[1, 1], [2, 1]], form="circle")], ".#..../###.../.#..../......", {}),
        ([entry([[0, 0], [5, 0]], form="line")], "/".join(["######"] * 4), {"wide_lines": 1}),
        ([entry([[1, 1], [2, 2]], form="mask", mask=png("#./##"))], "....../.#..../.##.../......", {}),
        ([entry(), entry([[4, 3]], form="point")], TOP, {"other_shape": 1}),
        ([entry(), entry([[4, 3], [5, 3]])], TOP, {"other_shape": 1}),
        ([entry([[-3, 0], [2, 0], [2, 1], [-3, 1]])], TOP, {"clipped": 1}),
        # a shape of the background makes a hole in what was drawn before it, not in what comes later
        (
            [entry(), entry([[1, 0], [5, 0], [5, 3]], "_background_"), entry([[4, 3], [5, 3], [4, 3]])],
            "#...../##..../....../....##",
            {"as_sound": 1, "united": 1},
        ),
    ],
)
def test_shapes_are_filled_as_labelme_fills_them(
    tmp_path: Path, labelme: Make, shapes: list[Any], expected: str, lost: dict[str, int]
) -> None:
    report = import_labels(labelme("a", shapes), tmp_path / "out")
    assert report.kind == "labelme"
    assert masks(tmp_path / "out", "a.png") == ([expected], NOTHING)
    assert kinds(report) == lost


def test_rectangles_are_ignored_if_they_are_boxes(tmp_path: Path, labelme: Make) -> None:
    src = labelme("a", [entry([[3, 2], [6, 4]], form="rectangle"), entry()])
    report = import_labels(src, tmp_path / "out", Choices(boxes="ignore"))
    assert masks(tmp_path / "out", "a.png") == ([TOP], "....../....../...###/...###")
    assert kinds(report) == {"boxes": 1}


def test_class_to_ignore_classes_in_the_order_of_labels_txt_and_sound_images(tmp_path: Path, labelme: Make) -> None:
    src = labelme("a", [entry(label="__ignore__"), entry([[4, 3], [5, 3], [4, 3]], "crack")])
    labelme("b", [])
    (src / "labels.txt").write_text("__ignore__\n_background_\ndent\ncrack\n")
    report = import_labels(src, tmp_path / "out", Choices(ignore="__ignore__"))
    assert [one.name for one in report.classes] == ["dent", "crack"]
    assert masks(tmp_path / "out", "a.png") == ([NOTHING, "....../....../....../....##"], TOP)
    assert (report.defect_images, report.sound_images, report.not_labelled) == (1, 1, 0)


@pytest.mark.parametrize(
    ("name", "path", "image"),
    [
        ("a", "a.png", "a.png"),
        ("ann/a", "a.png", "images/inclusion/a.png"),
        ("ann/a", "..\\images\\a.png", "images/a.png"),
        ("ann/a", "C:\\Users\\me\\pictures\\a.png", "images/a.png"),
        ("ann/a", "/home/me/pictures/a.png", "a.png"),
        ("ann/a", "old name.png", "images/a.png"),  # image and JSON were renamed
        ("ann/a", None, "images/a.png"),
    ],
)
def test_image_is_found_wherever_the_path_points(
    tmp_path: Path, labelme: Make, name: str, path: Any, image: str
) -> None:
    src = labelme(name, [entry()], image=image, imagePath=path)
    assert import_labels(src, tmp_path / "out").defect_images == 1


def test_of_two_images_of_one_name_the_one_beside_the_json_is_meant(
    tmp_path: Path, labelme: Make, write_image: Make
) -> None:
    src = labelme("line 2/a", [entry()])
    labelme("line 1/a", [])
    import_labels(src, tmp_path / "out")
    assert open_data_folder(tmp_path / "out").table.rles.keys() == {"line 2/a.png"}


def test_a_path_to_another_image_is_refused(tmp_path: Path, labelme: Make, write_image: Make) -> None:
    src = labelme("b", [entry()], imagePath="a.png")
    write_image(src / "a.png", HW)
    with pytest.raises(DataError, match=r"b\.json: its 'imagePath', a\.png, is another image"):
        import_labels(src, tmp_path / "out")


def test_image_without_json_is_not_labelled_and_masks_of_labelled_ones_are_left_out(
    tmp_path: Path, labelme: Make, write_image: Make
) -> None:
    src = labelme("a", [entry()], imagePath="images\\a.png", image="images/a.png")
    write_image(src / "images/b.png")
    write_image(src / "SegmentationClassPNG/a.png")
    report = import_labels(src, tmp_path / "out", kind="labelme")
    assert (report.images, report.not_labelled, kinds(report)) == (1, 1, {"unlisted_images": 1})
    assert (tmp_path / "out" / NOT_LABELLED_NAME).read_text().splitlines() == ["ImageId", "b.png"]
    clean = import_labels(src, tmp_path / "clean", Choices(unlabelled="clean"), kind="labelme")
    assert (clean.images, clean.sound_images) == (2, 1)
    alone = import_labels(src / "a.json", tmp_path / "alone")  # a single file says nothing of the images beside it
    assert (alone.images, alone.not_labelled) == (1, 0)


def test_image_whose_shapes_were_all_left_out_is_not_simply_sound(tmp_path: Path, labelme: Make) -> None:
    src = labelme("a", [entry([[1, 1]], form="point")])
    labelme("b", [entry()])
    with pytest.raises(DataError, match=r"1 of 2 images have no label of an area: a\.png"):
        import_labels(src, tmp_path / "out")
    assert import_labels(src, tmp_path / "out", Choices(unlabelled="skip")).not_labelled == 1


def test_parts_come_from_the_folders(tmp_path: Path, labelme: Make) -> None:
    src = labelme("train/a", [entry()])
    labelme("val/b", [entry()])
    assert import_labels(src, tmp_path / "out").parts == {"train": 1, "val": 1}
    assert (tmp_path / "out" / SPLIT_NAME).read_text().splitlines()[1:] == ["train/a.png,train,", "val/b.png,val,"]


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (3, "no 'label'"),
        (entry(label=None), "no 'label'"),
        (entry([["0", "0"], ["1", "0"], ["1", "1"]]), "pairs of numbers"),
        (entry([[float("nan"), 0], [1, 0], [1, 1]]), "pairs of numbers"),
        (entry([[10**400, 0], [1, 0], [1, 1]]), "pairs of numbers"),
        (entry(None), "pairs of numbers"),
        (entry([[0, 0], [1, 1]], form="mask", mask="no base64!"), "base64"),
        (entry([[0, 0], [1, 1]], form="mask", mask=None), "base64"),
        (entry([[0, 0], [1, 1]], form="mask", mask="aGVsbG8="), "no picture"),
        (entry([[5, 3], [6, 4]], form="mask", mask=png("##/##")), "beyond its image"),
    ],
)
def test_damaged_shape_is_named(tmp_path: Path, labelme: Make, shape: Any, told: str) -> None:
    src = labelme("sub/a", [entry(), shape])
    with pytest.raises(LabelError, match=rf"src: sub/a\.json, shape 2.*{told}"):
        import_labels(src, tmp_path / "out")


def test_labels_for_another_image_size_are_refused(tmp_path: Path, labelme: Make) -> None:
    with pytest.raises(DataError, match=r"a\.json.*12x4"):
        import_labels(labelme("a", [entry()], imageWidth=12), tmp_path / "out")


@settings(max_examples=25)
@given(data=st.data())
def test_any_labels_come_back_pixel_by_pixel_and_without_a_choice(
    data: st.DataObject, make_folder: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("labelme")
    seed, density = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    rng = np.random.default_rng(seed)
    labels: dict[str, dict[int, Any]] = {}
    for name in ("a.png", "line 1/b.png", "c.png"):
        drawn = {class_id: rng.random(rng.integers(1, 30, 2)) < density for class_id in (1, 2, 255)}
        drawn = {
            class_id: cv2.resize(mask.astype(np.uint8), (40, 30), interpolation=0) == 1
            for class_id, mask in drawn.items()
        }
        labels[name] = {class_id: mask for class_id, mask in drawn.items() if mask.any()}
    root = make_folder(tmp_path / "data", labels, ("dent", "crack"))
    exported = export_labelme(root, tmp_path / "labelme")
    import_labels(tmp_path / "labelme", tmp_path / "back")
    before, after = open_data_folder(root), open_data_folder(tmp_path / "back")
    assert (after.image_ids, after.class_names, after.table.rles) == (
        before.image_ids,
        before.class_names,
        before.table.rles,
    )
    assert exported.lost == ()


def test_export_writes_polygons_where_they_are_exact_and_what_labelme_reads(tmp_path: Path, make_folder: Make) -> None:
    ring, block = "###./#.#./###.", "..../.##./.##."
    root = make_folder(tmp_path / "data", {"x/a.png": {1: ring, 2: block}, "b.png": {}})
    (root / "split.csv").write_text("ImageId,fold\nb.png,0\nx/a.png,1\n")
    report = export_labelme(root, tmp_path / "out")
    document = json.loads((tmp_path / "out/x/a.json").read_text())
    assert [(one["label"], one["shape_type"]) for one in document["shapes"]] == [("crack", "mask"), ("dent", "polygon")]
    assert document["shapes"][0]["points"] == [[0, 0], [2, 2]]
    assert np.array_equal(draw("polygon", np.array(document["shapes"][1]["points"]), (3, 4)), _mask(block))
    keys = {key: document[key] for key in ("imagePath", "imageData", "imageHeight", "imageWidth", "flags")}
    assert keys == {"imagePath": "a.png", "imageData": None, "imageHeight": 3, "imageWidth": 4, "flags": {}}
    assert json.loads((tmp_path / "out/b.json").read_text())["shapes"] == []
    assert (tmp_path / "out/labels.txt").read_text().split() == ["__ignore__", "_background_", "crack", "dent"]
    assert kinds(report) == {"side_files": 1}


def test_our_export_stays_complete_while_people_add_images(
    tmp_path: Path, make_folder: Make, write_image: Make
) -> None:
    export_labelme(make_folder(tmp_path / "data", {"a.png": {}, "b.png": {}}), tmp_path / "out")
    assert import_labels(tmp_path / "out", tmp_path / "back").sound_images == 2
    write_image(tmp_path / "out/new.png")
    report = import_labels(tmp_path / "out", tmp_path / "more")
    assert (report.sound_images, report.not_labelled) == (2, 1)


def _mask(rows: str) -> Any:
    return np.array([list(row) for row in rows.split("/")]) == "#"
