"""Masks as pictures: which layouts are read, what values mean, and what comes back from an export."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, ImageError, LabelError, UsageError
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices
from defectseg.formats.masks.layouts import Picture
from defectseg.formats.masks.read import recognise
from defectseg.formats.masks.values import read_values
from defectseg.formats.masks.write import export_masks
from defectseg.formats.source import LabelSource

Make = Callable[..., Path]
Files = Mapping[str, Any]

CLEAN = [[0, 0, 0], [0, 0, 0]]
LEFT = [[1, 0, 0], [1, 0, 0]]  # "1 2" as run-lengths
RIGHT = [[0, 0, 1], [0, 0, 1]]  # "5 2"
BOTH = [[1, 0, 2], [1, 0, 2]]
GREY = (2, 3)  # size of an image
RED, GREEN = (128, 0, 0), (0, 128, 0)


@pytest.fixture
def source(tmp_path: Path, write_image: Make) -> Make:
    """Writes a folder of images (a size), masks (rows of values) and other files (texts)."""

    def write(files: Files) -> Path:
        for name, content in files.items():
            path = tmp_path / "src" / name
            if isinstance(content, str):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
            elif not isinstance(content, tuple) and np.max(content) > 255:
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.array(content, np.uint16))
            else:
                write_image(path, content)
        return tmp_path / "src"

    return write


def labels_of(root: Path) -> dict[str, dict[str, str]]:
    """ImageId -> class -> run-lengths, for all labelled images; "ignore" for pixels to ignore."""
    folder = open_data_folder(root)
    skipped = (root / "not_labelled.csv").read_text().splitlines() if (root / "not_labelled.csv").exists() else []
    names = {**dict(enumerate(folder.class_names, start=1)), 255: "ignore"}
    return {
        image_id: {names[class_id]: text for class_id, text in folder.table.rles.get(image_id, {}).items()}
        for image_id in folder.image_ids
        if image_id not in skipped
    }


def losses(report: ImportReport) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def times(values: Any, factor: float) -> Any:
    return (np.array(values) * factor).tolist()


LAYOUTS: dict[str, tuple[Files, Mapping[str, Mapping[str, str]]]] = {
    "class maps": (
        {"images/a.png": GREY, "images/line 1/b.jpg": GREY, "masks/a.png": BOTH, "masks/line 1/b.png": CLEAN},
        {"a.png": {"class 1": "1 2", "class 2": "5 2"}, "line 1/b.jpg": {}},
    ),
    "other names of folders, in any case": (
        {"IMGS/a.JPG": GREY, "Ground_Truth/a.png": LEFT},
        {"a.JPG": {"class 1": "1 2"}},
    ),
    "a suffix, and the image's whole name": (
        {"images/a.jpg": GREY, "images/b.jpg": GREY, "masks/a_mask.png": LEFT, "masks/b.jpg.png": RIGHT},
        {"a.jpg": {"class 1": "1 2"}, "b.jpg": {"class 1": "5 2"}},
    ),
    "accents as macOS spells them": (
        {"images/e\u0301.png": GREY, "masks/\u00e9.png": LEFT},
        {"e\u0301.png": {"class 1": "1 2"}},
    ),
    "one folder for both": ({"a.jpg": GREY, "a.png": LEFT}, {"a.jpg": {"class 1": "1 2"}}),
    "KolektorSDD": (
        {
            "kos01/Part0.jpg": GREY,
            "kos01/Part0_label.bmp": LEFT,
            "kos02/Part0.jpg": GREY,
            "kos02/Part0_label.bmp": CLEAN,
        },
        {"kos01/Part0.jpg": {"class 1": "1 2"}, "kos02/Part0.jpg": {}},
    ),
    "KolektorSDD2": (
        {"train/1.png": GREY, "train/1_GT.png": LEFT, "test/1.png": GREY, "test/1_GT.png": CLEAN},
        {"train/1.png": {"class 1": "1 2"}, "test/1.png": {}},
    ),
    "magnetic tiles": (
        {
            "MT_Pit/Imgs/a.jpg": GREY,
            "MT_Pit/Imgs/a.png": LEFT,
            "MT_Crack/Imgs/b.jpg": GREY,
            "MT_Crack/Imgs/b.png": times(RIGHT, 255),
            "MT_Free/Imgs/c.jpg": GREY,
            "MT_Free/Imgs/c.png": CLEAN,
        },
        {"MT_Crack/Imgs/b.jpg": {"MT_Crack": "5 2"}, "MT_Free/Imgs/c.jpg": {}, "MT_Pit/Imgs/a.jpg": {"MT_Pit": "1 2"}},
    ),
    "MVTec AD": (
        {
            "tile/test/crack/000.png": GREY,
            "tile/test/good/000.png": GREY,
            "tile/train/good/000.png": GREY,
            "tile/ground_truth/crack/000_mask.png": times(LEFT, 255),
        },
        {"test/crack/000.png": {"crack": "1 2"}, "test/good/000.png": {}, "train/good/000.png": {}},
    ),
    "nnU-Net": (
        {
            "imagesTr/s_001_0000.png": GREY,
            "labelsTr/s_001.png": BOTH,
            "imagesTs/s_002_0000.png": GREY,
            "dataset.json": json.dumps(
                {"labels": {"background": 0, "pit": 2, "crack": 1}, "channel_names": {"0": "x"}}
            ),
        },
        {"imagesTr/s_001_0000.png": {"crack": "1 2", "pit": "5 2"}},
    ),
    "MMSegmentation": (
        {
            "img_dir/train/a.jpg": GREY,
            "ann_dir/train/a.png": LEFT,
            "img_dir/val/a.jpg": GREY,
            "ann_dir/val/a.png": RIGHT,
        },
        {"train/a.jpg": {"class 1": "1 2"}, "val/a.jpg": {"class 1": "5 2"}},
    ),
    "Pascal VOC": (
        {
            "JPEGImages/a.jpg": GREY,
            "JPEGImages/b.jpg": GREY,
            "JPEGImages/c.jpg": GREY,
            "SegmentationClass/a.png": LEFT,
            "SegmentationClass/b.png": RIGHT,
            "SegmentationObject/a.png": BOTH,
            "ImageSets/Segmentation/train.txt": "a\n",
            "ImageSets/Segmentation/trainval.txt": "a\nb\n",
            "ImageSets/Segmentation/val.txt": "b\n",
            "class_names.txt": "_background_\nbolt\n",
        },
        {"a.jpg": {"bolt": "1 2"}, "b.jpg": {"bolt": "5 2"}},
    ),
    "Roboflow": (
        {
            "train/a.jpg": GREY,
            "train/a_mask.png": BOTH,
            "train/_classes.csv": "Pixel Value, Class\n0, background\n1, pit\n2, dent\n",
        },
        {"a.jpg": {"pit": "1 2", "dent": "5 2"}},
    ),
    "a folder for each part": (
        {"train/images/a.png": GREY, "train/masks/a.png": LEFT, "val/images/a.png": GREY, "val/masks/a.png": CLEAN},
        {"train/images/a.png": {"class 1": "1 2"}, "val/images/a.png": {}},
    ),
    "train_images and train_masks": (
        {"train_images/a.png": GREY, "train_masks/a.png": LEFT},
        {"a.png": {"class 1": "1 2"}},
    ),
    "a folder for each class, which may overlap": (
        {
            "images/a.png": GREY,
            "images/b.png": GREY,
            "masks/rust/a.png": times(LEFT, 255),
            "masks/rust/b.png": RIGHT,
            "masks/dent/a.png": [[7, 7, 0], [0, 0, 0]],
            "masks/dent/b.png": CLEAN,
        },
        {"a.png": {"dent": "1 1 3 1", "rust": "1 2"}, "b.png": {"rust": "5 2"}},
    ),
    "a class behind the name": (
        {"images/a_1.png": GREY, "masks/a_1_rust.png": LEFT, "masks/a_1_deep_dent.png": times(RIGHT, 200)},
        {"a_1.png": {"deep_dent": "5 2", "rust": "1 2"}},
    ),
    "a mask for each region": (
        {
            "images/a.png": GREY,
            "images/b.png": GREY,
            "masks/a_0.png": LEFT,
            "masks/a_1.png": RIGHT,
            "masks/b_0.png": CLEAN,
        },
        {"a.png": {"class 1": "1 2 5 2"}, "b.png": {}},
    ),
    "a mask for each region, by class": (
        {"images/a.png": GREY, "masks/rust/a_1.png": LEFT, "masks/rust/a_2.png": RIGHT},
        {"a.png": {"rust": "1 2 5 2"}},
    ),
    "numbers that are classes, since they leave gaps": (
        {
            "images/a.png": GREY,
            "images/b.png": GREY,
            "masks/a_1.png": LEFT,
            "masks/a_3.png": RIGHT,
            "masks/b_2.png": LEFT,
        },
        {"a.png": {"1": "1 2", "3": "5 2"}, "b.png": {"2": "1 2"}},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_images_and_classes(tmp_path: Path, source: Make, layout: str) -> None:
    files, expected = LAYOUTS[layout]
    report = import_labels(source(files), tmp_path / "out")
    assert report.kind == "masks"
    assert labels_of(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("MMSegmentation", {"train/a.jpg": "train", "val/a.jpg": "val"}),
        ("KolektorSDD2", {"train/1.png": "train", "test/1.png": "test"}),
        ("Pascal VOC", {"a.jpg": "train", "b.jpg": "val"}),
        ("MVTec AD", {}),
    ],
)
def test_parts_come_along_but_not_those_of_mvtec(
    tmp_path: Path, source: Make, layout: str, expected: dict[str, str]
) -> None:
    report = import_labels(source(LAYOUTS[layout][0]), tmp_path / "out")
    path = tmp_path / "out/split.csv"
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    assert {row.split(",")[0]: row.split(",")[1] for row in rows} == expected
    assert losses(report).get("mvtec_parts", 0) == (3 if layout == "MVTec AD" else 0)


@pytest.mark.parametrize("name", ["masks/pit/a.png", "masks/a.png", "masks/a.jpg"])
def test_grey_edges_are_cut_at_127_and_counted(tmp_path: Path, source: Make, name: str) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:30, 10:40] = 255
    noise = np.random.default_rng(3).integers(-3, 4, mask.shape)
    src = source({"images/a.png": mask.shape, name: np.clip(cv2.GaussianBlur(mask, (0, 0), 1) + noise, 0, 255)})
    stored = np.asarray(cv2.imread(str(src / name), cv2.IMREAD_GRAYSCALE))
    report = import_labels(src, tmp_path / "out")
    masks, _ = open_data_folder(tmp_path / "out").masks_of("a.png", mask.shape)
    np.testing.assert_array_equal(masks[0], stored > 127)
    assert losses(report) == {"odd_px": np.count_nonzero((stored > 0) & (stored < 255))}


A_BIT_ODD = np.zeros((40, 60), np.uint8)
A_BIT_ODD[5:30, 10:40] = 255
A_BIT_ODD[0, 0], A_BIT_ODD[6, 11] = 1, 254


def test_few_odd_pixels_in_binary_masks_are_read_by_half_of_the_range_and_told(tmp_path: Path, source: Make) -> None:
    report = import_labels(source({"images/a.png": (40, 60), "masks/a.png": A_BIT_ODD}), tmp_path / "out")
    assert (report.classes[0].px, report.ignored_px, losses(report)) == (750, 0, {"odd_px": 2})


TWO = {"images/a.png": GREY, "images/b.png": GREY}
MIXED = [[1, 1, 255], [2, 1, 0]]
ZERO_IS_A_CLASS = [[0, 1, 255], [255, 255, 255]]
WHITE = times([[1, 1, 1]] * 2, 255)
MANY = [[85, 170, 255], [85, 0, 0]]


@pytest.mark.parametrize(
    ("masks", "choices", "expected", "lost"),
    [
        ((LEFT, CLEAN), {}, ({"class 1": "1 2"}, {}), {}),
        ((times(LEFT, 255), CLEAN), {}, ({"class 1": "1 2"}, {}), {}),
        ((times(LEFT, 100), times(RIGHT, 100)), {}, ({"class 1": "1 2"}, {"class 1": "5 2"}), {}),
        ((times(LEFT, 65535), CLEAN), {}, ({"class 1": "1 2"}, {}), {}),
        ((times(LEFT, 2), CLEAN), {}, ({"class 2": "1 2"}, {}), {}),
        ((MIXED, CLEAN), {}, ({"class 1": "1 1 3 2", "class 2": "2 1", "ignore": "5 1"}, {}), {}),
        ((BOTH, CLEAN), {"classes": ["pit", "dent"]}, ({"pit": "1 2", "dent": "5 2"}, {}), {}),
        ((BOTH, CLEAN), {"ignore": "2"}, ({"class 1": "1 2", "ignore": "5 2"}, {}), {}),
        ((times(LEFT, 255), RIGHT), {"ignore": "1"}, ({"class 1": "1 2"}, {"ignore": "5 2"}), {}),
        ((times(LEFT, 255), RIGHT), {"ignore": "255"}, ({"ignore": "1 2"}, {"class 1": "5 2"}), {}),
        ((ZERO_IS_A_CLASS, WHITE), {"background": "255"}, ({"class 1": "1 1", "class 2": "3 1"}, {}), {"from_zero": 1}),
        (
            (ZERO_IS_A_CLASS, WHITE),
            {"background": "255", "classes": ["1=pit", "0=dent"]},
            ({"dent": "1 1", "pit": "3 1"}, {}),
            {},
        ),
        (
            (MANY, CLEAN),
            {"classes": ["170=pit", "85=dent", "255="]},
            ({"dent": "1 2", "pit": "3 1", "ignore": "5 1"}, {}),
            {"dropped": 1},
        ),
        ((times(1 - np.array(LEFT), 255), WHITE), {"background": "255"}, ({"class 1": "1 2"}, {}), {}),
        ((WHITE, WHITE), {"background": "0"}, ({"class 1": "1 6"}, {"class 1": "1 6"}), {}),
    ],
)
def test_values_mean_what_the_whole_set_says(
    tmp_path: Path, source: Make, masks: Any, choices: dict[str, Any], expected: Any, lost: dict[str, int]
) -> None:
    src = source({**TWO, "masks/a.png": masks[0], "masks/b.png": masks[1]})
    report = import_labels(src, tmp_path / "out", Choices(**choices))
    assert labels_of(tmp_path / "out") == {"a.png": expected[0], "b.png": expected[1]}
    assert losses(report) == lost


@pytest.mark.parametrize(
    ("masks", "choices", "message", "go_on"),
    [
        ({"a": times(LEFT, 255), "b": RIGHT}, {}, r"b\.png|a\.png: holds 255.*No mask holds both", ""),
        ({"a": ZERO_IS_A_CLASS, "b": WHITE}, {}, r"a\.png: holds 255.* 255 covers 83%.*255\|0", "background"),
        ({"a": MANY, "b": CLEAN}, {}, r"a\.png: holds 170\. .* 85 \(2 px\).*85=NAME,170=NAME,255=NAME", "classes"),
        (
            {"a": MANY, "b": CLEAN},
            {"classes": ["85=pit"]},
            r"255 is no class: the given list names 85|170 is",
            "ignore",
        ),
        ({"a": times(BOTH, 10), "b": CLEAN}, {}, r"a\.png: holds 20\. .* 20 is no class", "classes"),
        ({"a": WHITE, "b": times(1 - np.array(LEFT), 255)}, {}, r"a\.png: holds 255.* 255 covers 83%", "background"),
        ({"a": times(WHITE, 4 / 255), "b": [[4, 4, 4], [1, 4, 4]]}, {}, r"4 covers 92%\. Which", "background"),
        ({"a": times(LEFT, 300), "b": RIGHT}, {}, r"a\.png: holds 300", "classes"),
        (
            {"a": times(LEFT, 255), "b": CLEAN},
            {"classes": ["x", "y"]},
            "That is one class, but the given list names 2",
            "",
        ),
        ({"a": BOTH, "b": CLEAN}, {"classes": ["x"]}, "1 names, but the labels hold the values 1, 2", ""),
        ({"a": BOTH, "b": [[0, 0], [0, 0]]}, {}, r"masks/b\.png: the labels are for 2x2 px, but .*b\.png has 3x2", ""),
        ({"rust/a": BOTH}, {}, r"rust/a\.png: holds 2\. .*one other value, .* rust", "ignore"),
        ({"a": BOTH, "b": CLEAN, "c": CLEAN}, {}, r"1 of 3 labels have no image: masks/c\.png", "absent"),
        ({"rust/a": MIXED}, {}, r"rust/a\.png: holds 2\. .*one other value, .* rust", "ignore"),
        ({"rust/a": LEFT, "loose": CLEAN}, {}, r"no image: masks/loose\.png", "absent"),
        ({"rust/a": LEFT, "rust/b": [[1, 0], [0, 0]]}, {}, r"rust/b\.png: the labels are for 2x2 px", ""),
        ({"a": CLEAN, "b": CLEAN}, {}, "nothing is labelled in 2 images", "unlabelled"),
        ({"a": LEFT, "b": CLEAN}, {"sound": "ok"}, "no image lies in a folder called 'ok'", ""),
    ],
)
def test_masks_that_cannot_be_meant_are_refused_with_a_way_on_and_leave_nothing(
    tmp_path: Path, source: Make, masks: Files, choices: dict[str, Any], message: str, go_on: str
) -> None:
    src = source({**TWO, **{f"masks/{name}.png": mask for name, mask in masks.items()}})
    with pytest.raises((DataError, UsageError), match=message) as error:
        import_labels(src, tmp_path / "out", Choices(**choices))
    assert list(error.value.go_on) == ([go_on] if go_on else [])
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"masks/a.png": np.arange(24).reshape(4, 6), "images/a.png": (4, 6)}, "23 different values"),
        ({"masks/a.png": CLEAN, "masks/a.bmp": CLEAN, "images/a.png": GREY}, "two masks of one name"),
        ({"masks/a.png": CLEAN, "images/a.png": GREY, "images/a.jpg": GREY}, "two images of one name"),
        (
            {"masks/a.png": BOTH, "images/a.png": GREY, "classes.txt": "pit\n"},
            r"2 is no class: .*classes\.txt names pit",
        ),
        (
            {"masks/a.png": times(LEFT, 255), "images/a.png": GREY, "classes.txt": "pit\ndent\n"},
            r"one class, but .*classes\.txt names 2",
        ),
        ({"masks/a.png": LEFT, "images/a.png": GREY, "classes.txt": "pit\n\nx\n"}, "':2'; expected"),
        (
            {"masks/a.png": LEFT, "images/a.png": GREY, "labelmap.txt": "pit:1,2\n"},
            r"labelmap\.txt: 'pit:1,2'; expected",
        ),
        ({"masks/a.png": LEFT, "images/a.png": GREY, "labelmap.txt": "a:256,0,0::\n"}, r"labelmap\.txt: 'a:256"),
        (
            {"masks/a.png": LEFT, "images/a.png": GREY, "labelmap.txt": "a:1,1,1::\nb:1,1,1::"},
            "'b:1,1,1'; expected .* of its own",
        ),
        (
            {"labelsTr/a.png": LEFT, "imagesTr/a_0000.png": GREY, "dataset.json": '{"labels": {"x": [1, 2]}}'},
            r"x:\[1, 2",
        ),
        ({"labelmap.txt": "background:0,0,0::\npit:1,1,1::\n"}, "neither masks nor images; expected masks in"),
        ({"masks/a.png": LEFT}, "1 of 1 labels have no image.*Give the folder that holds the images"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path, source: Make, files: Files, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_labels(source(files), tmp_path / "out")


def test_images_without_a_mask_are_not_labelled_unless_they_are_said_to_be_sound(tmp_path: Path, source: Make) -> None:
    src = source({"images/a.png": GREY, "images/ok/b.png": GREY, "images/c.png": GREY, "masks/a.png": LEFT})
    assert import_labels(src, tmp_path / "1").not_labelled == 2
    assert import_labels(src, tmp_path / "2", Choices(sound="ok")).not_labelled == 1
    assert labels_of(tmp_path / "2") == {"a.png": {"class 1": "1 2"}, "ok/b.png": {}}
    assert import_labels(src, tmp_path / "3", Choices(unlabelled="clean")).sound_images == 2


def test_folder_of_mvtec_without_masks_is_asked_about(tmp_path: Path, source: Make) -> None:
    src = source({**LAYOUTS["MVTec AD"][0], "tile/test/fine/000.png": GREY, "tile/test/crack/001.png": GREY})
    with pytest.raises(DataError, match="fine: its images have no masks") as error:
        import_labels(src, tmp_path / "out")
    assert error.value.go_on == {"sound": "fine"}
    report = import_labels(src, tmp_path / "out", Choices(sound="fine"))
    assert (report.sound_images, report.not_labelled) == (3, 1), "a picture of a crack without its mask is not sound"


def test_pictures_of_one_stem_are_no_masks_where_other_labels_lie_beside_them(source: Make) -> None:
    files = {"a.jpg": GREY, "a.png": GREY}
    assert recognise(LabelSource(src := source(files), src))
    assert not recognise(LabelSource(src := source({**files, "labels.json": "{}"}), src))


def test_images_may_lie_elsewhere(tmp_path: Path, source: Make, write_image: Make) -> None:
    write_image(tmp_path / "pictures/a.jpg", GREY)
    src = source({"a.png": LEFT})
    import_labels(src, tmp_path / "out", Choices(images=tmp_path / "pictures"), kind="masks")
    assert labels_of(tmp_path / "out") == {"a.jpg": {"class 1": "1 2"}}
    write_image(tmp_path / "pictures/masks/a.png", LEFT)
    import_labels(tmp_path / "pictures", tmp_path / "2", Choices(images=tmp_path / "pictures"))
    assert labels_of(tmp_path / "2") == {"a.jpg": {"class 1": "1 2"}}


BLACK = (0, 0, 0)
COLOURS = [[RED, BLACK, GREEN], [RED, BLACK, GREEN]]
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\npit:0,128,0::\na: b:128,0,0::\n"


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize(
    ("folder", "texts", "expected"),
    [
        ("SegmentationClass", {"labelmap.txt": LABELMAP}, {"a: b": "1 2", "pit": "5 2"}),
        ("SegmentationClass", {}, {"aeroplane": "1 2", "bicycle": "5 2"}),
        ("masks", {}, {"class 1": "1 2", "class 2": "5 2"}),
        ("masks", {"labelmap.txt": "x:0,0,0::\nbackground:128,0,0::\ny:0,128,0::"}, {"x": "3 2", "y": "5 2"}),
        (
            "SegmentationClassPNG",
            {"labels.txt": "__ignore__\n_background_\npit\ndent\n"},
            {"pit": "1 2", "dent": "5 2"},
        ),
    ],
)
def test_colours_are_read_by_labelmap_or_the_table_of_voc(
    tmp_path: Path, source: Make, folder: str, texts: dict[str, str], expected: dict[str, str], palette: bool
) -> None:
    src = source({"JPEGImages/a.jpg": GREY, **texts})
    (src / folder).mkdir()
    if palette:  # indices in VOC's own order
        picture = Image.fromarray(np.array(BOTH, np.uint8), "P")
        picture.putpalette([*BLACK, *RED, *GREEN])
    else:
        picture = Image.fromarray(np.array(COLOURS, np.uint8))
    picture.save(src / folder / "a.png")
    import_labels(src, tmp_path / "out")
    assert labels_of(tmp_path / "out") == {"a.jpg": expected}
    names = open_data_folder(tmp_path / "out").class_names
    assert names == (("pit", "a: b") if folder == "SegmentationClass" and texts else tuple(expected))


@pytest.mark.parametrize("labelmap", ["", "background:0,0,0::\npit:0,255,0::\n"])
def test_colours_that_nothing_explains_are_refused(tmp_path: Path, source: Make, labelmap: str) -> None:
    src = source({"images/a.png": GREY, "masks/a.png": CLEAN, **({"labelmap.txt": labelmap} if labelmap else {})})
    colours = [[(255, 0, 0), BLACK, (0, 0, 255)]] * 2
    Image.fromarray(np.array(colours, np.uint8)).save(src / "masks/a.png")
    with pytest.raises(LabelError, match=r"masks/a\.png: holds .*,0,.* All masks together hold 0,0,255 \(2 px\)"):
        import_labels(src, tmp_path / "out")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (0, 128, 0)])
def test_a_single_colour_is_one_class(tmp_path: Path, source: Make, colour: tuple[int, int, int]) -> None:
    src = source({"images/a.png": GREY, "masks/a.png": CLEAN})
    Image.fromarray(np.array([[colour, BLACK, BLACK]] * 2, np.uint8)).save(src / "masks/a.png")
    import_labels(src, tmp_path / "out")
    name = "class 2" if colour == GREEN else "class 1"  # the second colour of VOC's table
    assert labels_of(tmp_path / "out") == {"a.png": {name: "1 2"}}


def mask_at(path: Path) -> Picture:
    return Picture(path, "mask", (), path.stem)


NUMBERS = np.array([[0, 1, 2, 3], [3, 2, 1, 255]], np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_mask_holds_the_same_numbers_in_every_format(tmp_path: Path, suffix: str, channels: int, bits: int) -> None:
    if bits == 16 and suffix == ".bmp":
        return
    numbers = NUMBERS.astype(f"uint{bits}")
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), cv2.merge([numbers] * channels))
    (mask,) = read_values([mask_at(tmp_path / f"a{suffix}")])
    assert (mask.px, mask.size_hw, mask.lossy) == ({0: 1, 1: 2, 2: 2, 3: 2, 255: 1}, (2, 4), False)


@pytest.mark.parametrize(
    ("palette", "bits", "px", "colours"),
    [
        ([0, 0, 0, 255, 0, 0, 0, 255, 0], 2, {0: 1, 1: 1, 2: 1}, {0: 1, 0x1FF0000: 1, 0x100FF00: 1}),
        ([0, 0, 0, 255, 0, 0, 0, 255, 0], 8, {0: 1, 1: 1, 2: 1}, {0: 1, 0x1FF0000: 1, 0x100FF00: 1}),
        ([2, 2, 2, 0, 0, 0, 1, 1, 1], 8, {0: 1, 1: 1, 2: 1}, {0: 1, 0x1010101: 1, 0x1020202: 1}),
        ([0, 0, 0, 9, 9, 9, 255, 255, 255], 8, {0: 1, 9: 1, 255: 1}, {0: 1, 0x1090909: 1, 0x1FFFFFF: 1}),
        ([255, 0, 0, 0, 0, 0, 255, 0, 0], 8, {0: 1, 0x1FF0000: 2}, {0: 1, 0x1FF0000: 2}),
    ],
)
def test_coloured_palette_gives_indices_unless_its_first_entry_cannot_be_the_background(
    tmp_path: Path, palette: list[int], bits: int, px: dict[int, int], colours: dict[int, int]
) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    picture.putpalette(palette)
    picture.save(tmp_path / "a.png", bits=bits)
    assert read_values([mask_at(tmp_path / "a.png")])[0].px == px
    assert read_values([mask_at(tmp_path / "a.png")], by_colour=True)[0].px == colours


def test_masks_of_fractions_and_damaged_masks_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), NUMBERS.astype(np.float32))
    with pytest.raises(ImageError, match=r"a\.tif: holds float32 values"):
        read_values([mask_at(tmp_path / "a.tif")])
    cv2.imwrite(str(tmp_path / "b.png"), NUMBERS)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"b\.png"):
        read_values([mask_at(tmp_path / "b.png")])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["labelmap.txt", "dataset.json", "_classes.csv", "classes.txt", "class_names.txt"]),
    text=st.text(max_size=60)
    | st.sampled_from(['{"labels": 3}', '{"labels": {"a": null}}', "[" * 99999, "{}", "a:1,1,1\n"]),
)
def test_whatever_a_file_of_names_holds_it_is_read_or_refused(
    tmp_path: Path, source: Make, tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    out = tmp_path_factory.mktemp("fuzz") / "out"
    src = source({"images/a.png": GREY, "masks/a.png": LEFT})
    (src / name).write_text(text, encoding="utf-8", errors="replace")
    with suppress(DataError, UsageError):
        import_labels(src, out)
    (src / name).unlink()


LEFT_TEXT, DOT, EDGE = "##../##../....", "..../.#../....", "...#/...#/...#"


def stored(path: Path) -> Any:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).tolist()


def test_class_map_gives_shared_pixels_to_the_smaller_mask_and_counts_them(tmp_path: Path, make_folder: Make) -> None:
    labels = {"a.png": {1: LEFT_TEXT, 2: DOT, 255: EDGE}, "b.png": {1: EDGE, 255: EDGE}}
    report = export_masks(make_folder(tmp_path / "data", labels), tmp_path / "masks")
    assert stored(tmp_path / "masks/masks/a.png") == [[1, 1, 0, 255], [1, 2, 0, 255], [0, 0, 0, 255]]
    assert [(loss.kind, loss.count) for loss in report.lost] == [("overlap_px", 1), ("under_ignore_px", 3)]


def test_pictures_per_class_hold_0_and_255_and_sound_images_have_an_empty_one(
    tmp_path: Path, make_folder: Make
) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {2: DOT, 255: EDGE}, "b.png": {}})
    export_masks(root, tmp_path / "masks", per_class=True)
    found = {
        path.relative_to(tmp_path / "masks/masks").as_posix() for path in (tmp_path / "masks/masks").rglob("*.png")
    }
    assert found == {"dent/a.png", "ignore/a.png", "crack/b.png"}
    assert stored(tmp_path / "masks/masks/dent/a.png") == [[0, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0]]
    assert not np.any(stored(tmp_path / "masks/masks/crack/b.png"))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("labels", [{}, {255: EDGE}, {255: "####/####/####", 2: DOT}])
@pytest.mark.parametrize("names", [("crack", "dent"), ("_background_x", "#2"), ("crack", "label")])
def test_sound_and_ignored_images_come_back_as_they_were(
    tmp_path: Path, make_folder: Make, labels: dict[int, str], per_class: bool, names: tuple[str, ...]
) -> None:
    kept = {255: labels[255]} if len(labels) == 2 and not per_class else labels  # a class map holds one of both
    root = make_folder(tmp_path / "data", {"masks/a.png": kept, "masks/a_mask.png": {}}, names)
    export_masks(root, tmp_path / "masks", per_class=per_class)
    import_labels(tmp_path / "masks", tmp_path / "back")
    assert labels_of(tmp_path / "back") == labels_of(root)
    assert open_data_folder(tmp_path / "back").class_names == names


def test_an_export_that_was_painted_over_is_no_longer_taken_for_complete(tmp_path: Path, make_folder: Make) -> None:
    export_masks(make_folder(tmp_path / "data", {"a.png": {1: DOT, 255: EDGE}}), tmp_path / "masks")
    painted = np.asarray(cv2.imread(str(tmp_path / "masks/masks/a.png"), cv2.IMREAD_UNCHANGED))
    cv2.imwrite(str(tmp_path / "masks/masks/a.png"), painted)
    with pytest.raises(DataError, match="3 px are marked to be ignored"):
        import_labels(tmp_path / "masks", tmp_path / "back")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32 - 1), per_class=st.booleans())
def test_random_label_sets_come_back_from_both_exports_as_they_were(
    make_folder: Make, tmp_path_factory: pytest.TempPathFactory, seed: int, per_class: bool
) -> None:
    rng, tmp_path = np.random.default_rng(seed), tmp_path_factory.mktemp("random")
    drawn: dict[str, dict[int, Any]] = {}
    for number in range(rng.integers(1, 5)):
        name = (
            f"{rng.choice(['', 'images/', 'train/', 'label/'])}{rng.choice(['a', 'a_1', 'b_mask', 'c.x'])}{number}.png"
        )
        size_hw, density = rng.integers(1, 13, 2), rng.choice([0.0, 0.1, 0.5, 0.9])
        drawn[name] = {class_id: rng.random(size_hw) < density for class_id in (1, 2, 255)}
        if not per_class:  # a class map holds one class for each pixel
            class_map = rng.choice(rng.choice([0, 1, 2, 255], 2), size_hw)
            drawn[name] = {class_id: class_map == class_id for class_id in (1, 2, 255)}
    present = {one: {number: mask for number, mask in masks.items() if mask.any()} for one, masks in drawn.items()}
    root = make_folder(tmp_path / "data", present)
    report = export_masks(root, tmp_path / "masks", per_class=per_class)
    assert report.lost == ()
    assert not import_labels(tmp_path / "masks", tmp_path / "back").lost
    before, after = open_data_folder(root), open_data_folder(tmp_path / "back")
    assert (after.table.rles, after.class_names) == (before.table.rles, before.class_names)
    assert after.image_ids == before.image_ids


@pytest.mark.parametrize("name", ["a/b", "..", ".x", "x.", "a:b", "Crack", "Ignore"])
def test_class_that_cannot_name_a_folder_is_refused(tmp_path: Path, make_folder: Make, name: str) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: DOT}}, ("crack", name))
    with pytest.raises(DataError, match=r"the class .* the name of a folder on every system"):
        export_masks(root, tmp_path / "out", per_class=True)
    export_masks(root, tmp_path / "out")


def test_folder_of_images_named_like_a_class_is_refused_where_it_would_be_ambiguous(
    tmp_path: Path, make_folder: Make
) -> None:
    root = make_folder(tmp_path / "data", {"crack/a.png": {1: DOT}, "a.png": {}})
    with pytest.raises(DataError, match="has the name of a folder of images"):
        export_masks(root, tmp_path / "out", per_class=True)
    export_masks(root, tmp_path / "out")
    import_labels(tmp_path / "out", tmp_path / "back")
    assert labels_of(tmp_path / "back") == {"a.png": {}, "crack/a.png": {"crack": "5 1"}}


RGBA_WHITE = np.dstack([np.full((2, 3), 255)] * 3 + [times(LEFT, 255)])
RGBA_BLACK = np.dstack([np.zeros((2, 3), int)] * 3 + [times(LEFT, 255)])
PREVIEWS: Files = {"images/a.png": GREY, "masks/a.png": LEFT, "overlay/a.png": GREY, "overlay/b.png": GREY}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(PREVIEWS, {"a.png": {"class 1": "1 2"}}, id="previews"),
        pytest.param(
            {"images/a.png": GREY, "masks/a.png": RGBA_WHITE}, {"a.png": {"class 1": "1 2"}}, id="white and alpha"
        ),
        pytest.param(
            {"images/a.png": GREY, "masks/a.png": RGBA_BLACK}, {"a.png": {"class 1": "1 2"}}, id="black and alpha"
        ),
        pytest.param(
            {"images/a.png": GREY, "masks/a.png": BOTH, "classes.txt": "No defect\npit\ncrack\n"},
            {"a.png": {"pit": "1 2", "crack": "5 2"}},
            id="sound steel first in a list",
        ),
        pytest.param(
            {"images/a.png": GREY, "masks/a.png": BOTH, "classes.txt": "0 steel\n1 pit\n2: crack\n"},
            {"a.png": {"pit": "1 2", "crack": "5 2"}},
            id="numbers in a list",
        ),
        pytest.param(
            {
                **{f"images/{name}.png": GREY for name in "ab"},
                "masks/a_1.png": LEFT,
                "masks/a_2.png": CLEAN,
                "masks/b_1.png": CLEAN,
                "masks/b_2.png": RIGHT,
            },
            {"a.png": {"1": "1 2"}, "b.png": {"2": "5 2"}},
            id="numbers of classes",
        ),
        pytest.param(
            {"Source Images/a.png": GREY, "Ground truth/a.png": LEFT}, {"a.png": {"class 1": "1 2"}}, id="blanks"
        ),
        pytest.param(
            {"Class1/a.png": GREY, "Class1/Label/a_label.png": LEFT, "Class1/Label/Labels.txt": "1\t0\ta.png\n"},
            {"a.png": {"class 1": "1 2"}},
            id="a list that names no classes",
        ),
    ],
)
def test_what_people_have_beside_or_in_their_masks(
    source: Make, tmp_path: Path, files: Files, expected: Mapping[str, Mapping[str, str]]
) -> None:
    import_labels(source(files), tmp_path / "out")
    assert labels_of(tmp_path / "out") == expected


def test_lists_of_paddleseg_give_parts_and_names_match_in_any_case(source: Make, tmp_path: Path) -> None:
    files: dict[str, Any] = {"images/A.JPG": GREY, "images/b.jpg": GREY, "labels/a.png": LEFT, "labels/b.png": LEFT}
    lists = {"train.txt": "images/A.JPG labels/a.png\nimages/x.jpg labels/x.png\n", "splits/val.txt": "b\n.\n"}
    report = import_labels(source(files | lists), tmp_path / "out")
    assert report.parts == {"train": 1, "val": 1}
    assert losses(report) == {"listed": 2}


def test_parts_come_from_lists_in_a_folder_and_from_the_folders_of_masks(source: Make, tmp_path: Path) -> None:
    voc: dict[str, Any] = {f"VOC2012/JPEGImages/{name}.jpg": GREY for name in "ab"}
    voc |= {f"VOC2012/SegmentationClass/{name}.png": LEFT for name in "ab"}
    lists = {f"VOC2012/ImageSets/Segmentation/{part}.txt": f"{name}\n" for part, name in (("train", "a"), ("val", "b"))}
    report = import_labels(source(voc | lists), tmp_path / "voc")
    assert report.parts == {"train": 1, "val": 1}
    (tmp_path / "src").rename(tmp_path / "first")
    flat = {"images/a.png": GREY, "images/b.png": GREY, "masks/train/a.png": LEFT, "masks/test/b.png": LEFT}
    assert import_labels(source(flat), tmp_path / "flat").parts == {"train": 1, "test": 1}


def test_background_that_no_mask_holds_is_refused(source: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no mask holds 9"):
        import_labels(source({"images/a.png": GREY, "masks/a.png": LEFT}), tmp_path / "out", Choices(background="9"))


@pytest.mark.parametrize("swapped", [[1, 2], [2, 1]])
def test_palettes_that_disagree_are_read_by_colour_and_refused(
    source: Make, tmp_path: Path, swapped: list[int]
) -> None:
    src = source({"images/a.png": GREY, "images/b.png": GREY})
    (src / "masks").mkdir()
    for name, order in (("a", [1, 2]), ("b", swapped)):
        picture = Image.fromarray(np.array(BOTH, np.uint8), "P")
        picture.putpalette([*BLACK, *(level for index in order for level in ((255, 0, 0), (0, 255, 0))[index - 1])])
        picture.save(src / "masks" / f"{name}.png")
    if swapped == [1, 2]:
        import_labels(src, tmp_path / "out")
        assert labels_of(tmp_path / "out")["b.png"] == {"class 1": "1 2", "class 2": "5 2"}
    else:
        with pytest.raises(LabelError, match=r"255,0,0 is no class: .*labelmap\.txt"):
            import_labels(src, tmp_path / "out")
