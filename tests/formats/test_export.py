import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, DefectsegError, ImageError, LabelError, OutputExistsError, UsageError
from defectseg.formats.coco import export_coco, import_coco
from defectseg.formats.masks import export_masks, import_masks
from defectseg.formats.yolo import export_yolo, import_yolo
from defectseg.image import rle
from defectseg.image.read import read_class_map

NAMES = ("crack", "dent")
Labels = dict[str, dict[int, NDArray[np.bool_]]]


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


RING = mask_of("###.", "#.#.", "###.")
LEFT = mask_of("##..", "##..", "....")
DOT = mask_of("....", ".#..", "....")
EDGE = mask_of("...#", "...#", "...#")


def data_folder(root: Path, labels: Labels, names: tuple[str, ...] = NAMES) -> Path:
    """A data folder whose images have the size of their masks, 3 x 4 where they have none."""
    (root / "train_images").mkdir(parents=True)
    rows: list[Any] = [("ImageId", "ClassId", "EncodedPixels")]
    for image_id, by_class in labels.items():
        size_hw = next(iter(by_class.values())).shape if by_class else (3, 4)
        path = root / "train_images" / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full(size_hw, 90, np.uint8))
        rows += [(image_id, class_id, rle.encode(mask)) for class_id, mask in by_class.items()]
    with (root / "train.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def labels_of(root: Path) -> dict[str, dict[int, str]]:
    return {image_id: dict(by_class) for image_id, by_class in open_data_folder(root).table.rles.items()}


def lost(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


SIMPLE: Labels = {"a.png": {1: LEFT, 2: EDGE}, "line 1/b.JPG": {2: DOT}, "c.png": {}}


def through_coco(root: Path, back: Path, **options: Any) -> Any:
    coco = back.with_name("coco")
    report = export_coco(root, coco, **options)
    import_coco(coco / "annotations.json", coco / "images", back)
    return report


def through_masks(root: Path, back: Path, **options: Any) -> Any:
    report = export_masks(root, back.with_name("masks"), **options)
    import_masks(back.with_name("masks"), back)
    return report


def through_yolo(root: Path, back: Path, **options: Any) -> Any:
    report = export_yolo(root, back.with_name("yolo"), **options)
    import_yolo(back.with_name("yolo"), back)
    return report


ROUND_TRIPS = [
    (through_coco, {}),
    (through_coco, {"polygons": True}),
    (through_masks, {}),
    (through_masks, {"per_class": True}),
    (through_yolo, {}),
]


@pytest.mark.parametrize(("through", "options"), ROUND_TRIPS)
def test_simple_masks_names_and_images_survive_every_format(
    tmp_path: Path, through: Any, options: dict[str, Any]
) -> None:
    root = data_folder(tmp_path / "data", SIMPLE)
    report = through(root, tmp_path / "back", **options)
    back = open_data_folder(tmp_path / "back")
    assert labels_of(tmp_path / "back") == labels_of(root)
    assert (back.class_names, back.image_ids) == (NAMES, ("a.png", "c.png", "line 1/b.JPG"))
    assert (report.images, report.masks, report.class_names) == (3, 3, NAMES)
    for image_id in back.image_ids:
        assert back.image_path(image_id).read_bytes() == (root / "train_images" / image_id).read_bytes()
    assert lost(report) == ({"folds": 1} if through is through_yolo else {})


def disjoint(class_map: NDArray[np.uint8]) -> dict[int, NDArray[np.bool_]]:
    return {number: class_map == number for number in (1, 2, 255) if (class_map == number).any()}


CLASS_MAPS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size_hw: arrays(np.uint8, size_hw, elements=st.sampled_from([0, 1, 2, 255]))
)
SIZED_PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size_hw: st.fixed_dictionaries({number: arrays(np.bool_, size_hw) for number in (1, 2, 255)})
)


@settings(max_examples=40, deadline=None)
@given(SIZED_PAIRS)
def test_run_lengths_of_coco_keep_any_masks_exact(masks: dict[int, NDArray[np.bool_]]) -> None:
    with TemporaryDirectory() as folder:
        root = data_folder(
            Path(folder) / "data", {"a.png": {number: mask for number, mask in masks.items() if mask.any()}}
        )
        assert lost(through_coco(root, Path(folder) / "back")) == {}
        assert labels_of(Path(folder) / "back") == labels_of(root)


@settings(max_examples=40, deadline=None)
@given(CLASS_MAPS)
def test_class_maps_keep_disjoint_masks_exact(class_map: NDArray[np.uint8]) -> None:
    with TemporaryDirectory() as folder:
        root = data_folder(Path(folder) / "data", {"a.png": disjoint(class_map)})
        assert lost(through_masks(root, Path(folder) / "back")) == {}
        assert labels_of(Path(folder) / "back") == labels_of(root)


@settings(max_examples=40, deadline=None)
@given(SIZED_PAIRS)
def test_pictures_per_class_keep_any_masks_exact(masks: dict[int, NDArray[np.bool_]]) -> None:
    with TemporaryDirectory() as folder:
        root = data_folder(
            Path(folder) / "data", {"a.png": {number: mask for number, mask in masks.items() if mask.any()}}
        )
        assert lost(through_masks(root, Path(folder) / "back", per_class=True)) == {}
        assert labels_of(Path(folder) / "back") == labels_of(root)


@settings(max_examples=40, deadline=None)
@given(SIZED_PAIRS, st.booleans())
def test_outlines_lose_what_is_told_and_nothing_else(masks: dict[int, NDArray[np.bool_]], in_coco: bool) -> None:
    with TemporaryDirectory() as folder:
        root = data_folder(
            Path(folder) / "data", {"a.png": {number: mask for number, mask in masks.items() if mask.any()}}
        )
        back = Path(folder) / "back"
        told = lost(through_coco(root, back, polygons=True) if in_coco else through_yolo(root, back))
        size_hw = masks[1].shape
        before, ignored_before = open_data_folder(root).masks_of("a.png", size_hw)
        after, ignored_after = open_data_folder(back).masks_of("a.png", size_hw)
        added_px = np.count_nonzero(after & ~before)
        if in_coco:
            added_px += np.count_nonzero(ignored_after & ~ignored_before)
        else:
            assert told.get("ignore_px", 0) == np.count_nonzero(ignored_before)
            assert not ignored_after.any()
        assert not (before & ~after).any()
        assert told.get("hole_px", 0) == added_px


def test_coco_holds_one_annotation_for_each_region(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: DOT | EDGE, 255: LEFT & ~DOT}})
    export_coco(root, tmp_path / "coco")
    document = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "crack"), (2, "dent"), (255, "ignore")]
    assert document["images"] == [{"id": 1, "file_name": "a.png", "height": 3, "width": 4, "license": 0}]
    assert [(one["category_id"], one["bbox"], one["area"]) for one in document["annotations"]] == [
        (1, [3, 0, 1, 3], 3),
        (1, [1, 1, 1, 1], 1),
        (255, [0, 0, 2, 2], 3),
    ]
    assert document["annotations"][0]["segmentation"] == {"size": [3, 4], "counts": "93"}  # 9 sound, 3 of the class


def test_pycocotools_reads_the_coco_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    export_coco(data_folder(tmp_path / "data", SIMPLE), tmp_path / "coco", polygons=True)
    theirs = COCO(str(tmp_path / "coco/annotations.json"))
    assert (len(theirs.imgs), len(theirs.anns), len(theirs.cats)) == (3, 3, 2)
    assert theirs.loadImgs(theirs.getImgIds(catIds=[1]))[0]["file_name"] == "a.png"


def test_filled_holes_are_counted_with_an_example(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: RING}})
    for number, report in enumerate(
        (export_coco(root, tmp_path / "c", polygons=True), export_yolo(root, tmp_path / "y"))
    ):
        assert lost(report) == {"hole_px": 1} | ({"folds": 1} if number else {})
        assert "1 px of holes were filled" in report.lost[-1].message
        assert "a.png" in report.lost[-1].message


def test_class_map_gives_shared_pixels_to_the_smaller_mask_and_counts_them(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: LEFT, 2: DOT, 255: EDGE}, "b.png": {1: EDGE, 255: EDGE}})
    report = export_masks(root, tmp_path / "masks")
    assert read_class_map(tmp_path / "masks/masks/a.png").tolist() == [[1, 1, 0, 255], [1, 2, 0, 255], [0, 0, 0, 255]]
    assert lost(report) == {"overlap_px": 1, "under_ignore_px": 3}


def test_pictures_per_class_hold_0_and_255_and_absent_classes_have_none(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {2: DOT, 255: EDGE}, "b.png": {}})
    export_masks(root, tmp_path / "masks", per_class=True)
    assert {name for name in tree(tmp_path / "masks") if name.startswith("masks")} == {
        "masks/dent/a.png",
        "masks/ignore/a.png",
    }
    written = cv2.imread(str(tmp_path / "masks/masks/dent/a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(np.asarray(written), DOT * 255)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("labels", [{"a.png": {}}, {"a.png": {255: EDGE}}])
def test_folder_without_any_class_comes_back_as_it_was(tmp_path: Path, labels: Labels, per_class: bool) -> None:
    root = data_folder(tmp_path / "data", labels)
    through_masks(root, tmp_path / "back", per_class=per_class)
    assert labels_of(tmp_path / "back") == labels_of(root)
    assert open_data_folder(tmp_path / "back").class_names == NAMES


def test_names_given_to_the_import_go_before_those_that_the_export_wrote(tmp_path: Path) -> None:
    export_masks(data_folder(tmp_path / "data", SIMPLE), tmp_path / "masks")
    report = import_masks(tmp_path / "masks", tmp_path / "back", classes=["x", "y", "z"])
    assert report.class_names == ("x", "y", "z")


def test_split_becomes_train_and_val(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", SIMPLE)
    (root / "split.csv").write_text("ImageId,fold\na.png,0\nline 1/b.JPG,1\nc.png,2\n")
    report = export_yolo(root, tmp_path / "yolo", fold=1)
    assert lost(report) == {"folds": 1}
    assert {name for name in tree(tmp_path / "yolo") if not name.startswith("labels")} == {
        *("data.yaml", "images/train/a.png", "images/train/c.png", "images/val/line 1/b.JPG"),
    }
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "names": {0: "crack", 1: "dent"},
    }
    assert (tmp_path / "yolo/labels/train/c.txt").read_text() == ""
    back = import_yolo(tmp_path / "yolo", tmp_path / "back")
    assert (back.images_per_fold, labels_of(tmp_path / "back")) == ((1, 2), labels_of(root))


@pytest.mark.parametrize(
    ("split", "fold", "kind", "message"),
    [
        ("a.png,0\n", 0, DataError, r"gives no fold for 2 images \(first: c\.png\)"),
        ("a.png,0\nc.png,1\nline 1/b.JPG,1\n", 2, UsageError, r"fold: there is no fold 2; .*split\.csv has 0, 1"),
        ("a.png,0\nc.png,0\nline 1/b.JPG,0\n", 0, DataError, "leaves nothing to train on"),
    ],
)
def test_split_that_does_not_fit_is_told(
    tmp_path: Path, split: str, fold: int, kind: type[DefectsegError], message: str
) -> None:
    root = data_folder(tmp_path / "data", SIMPLE)
    (root / "split.csv").write_text("ImageId,fold\n" + split)
    with pytest.raises(kind, match=message):
        export_yolo(root, tmp_path / "yolo", fold=fold)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_what_the_format_has_no_place_for_is_told(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", SIMPLE)
    (root / "groups.csv").write_text("ImageId,Group\na.png,coil 7\n")
    (root / "train_images/c.png").unlink()
    with (root / "train.csv").open("a") as handle:
        handle.write("c.png,1,1 1\n")
    report = export_coco(root, tmp_path / "coco")
    assert lost(report) == {"missing_images": 1, "side_files": 1}
    assert report.images == 2
    assert any("groups.csv" in loss.message for loss in report.lost)


def test_images_of_one_stem_are_refused_where_labels_could_not_tell_them_apart(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: DOT}, "a.jpg": {}})
    for export in (export_masks, export_yolo):
        with pytest.raises(DataError, match=r"a\.jpg and a\.png: two images of one name"):
            export(root, tmp_path / "out")
    through_coco(root, tmp_path / "back")  # COCO names the file
    (tmp_path / "src/masks").mkdir(parents=True)
    assert cv2.imwrite(str(tmp_path / "src/masks/a.png"), DOT.astype(np.uint8))
    (root / "train_images").rename(tmp_path / "src/images")
    with pytest.raises(DataError, match="two images of one name"):
        import_masks(tmp_path / "src", tmp_path / "out")


def test_class_called_ignore_is_refused(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: DOT}}, ("ignore", "dent"))
    with pytest.raises(DataError, match="a class is called 'ignore'"):
        export_coco(root, tmp_path / "out")


@pytest.mark.parametrize("name", ["a/b", "..", ".x", "x.", "a:b", "Crack", "Ignore"])
def test_class_that_cannot_name_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = data_folder(tmp_path / "data", {"a.png": {1: DOT}}, ("crack", name))
    with pytest.raises(DataError, match=r"the class .* the name of a folder on every system"):
        export_masks(root, tmp_path / "out", per_class=True)
    export_masks(root, tmp_path / "out")


def test_folder_of_images_named_like_a_class_is_refused_where_it_would_be_ambiguous(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"crack/a.png": {1: DOT}, "a.png": {}})
    with pytest.raises(DataError, match="has the name of a class"):
        export_masks(root, tmp_path / "out", per_class=True)
    through_masks(root, tmp_path / "back")


def converters(root: Path) -> dict[str, Callable[..., Any]]:
    """Every export of a data folder, and every import of what they wrote."""
    export_coco(root, root.parent / "coco")
    export_masks(root, root.parent / "masks")
    export_yolo(root, root.parent / "yolo")
    return {
        "data": partial(export_coco, root),
        "data/": partial(export_masks, root),
        "data//": partial(export_yolo, root),
        "coco": partial(import_coco, root.parent / "coco/annotations.json", root.parent / "coco/images"),
        "masks": partial(import_masks, root.parent / "masks"),
        "yolo": partial(import_yolo, root.parent / "yolo"),
    }


def test_every_conversion_fills_an_empty_folder_links_on_request_and_tells_its_progress(tmp_path: Path) -> None:
    for number, convert in enumerate(converters(data_folder(tmp_path / "data", SIMPLE)).values()):
        out = tmp_path / f"out{number}"
        out.mkdir()
        steps: list[tuple[int, int]] = []
        convert(out, link=True, progress=lambda done, of, text="", told=steps: told.append((done, of)))
        assert steps == [(1, 3), (2, 3), (3, 3)]
        (linked,) = (path for path in out.rglob("c.png") if path.parent.name != "masks")
        assert linked.is_symlink()
        assert linked.read_bytes() == (tmp_path / "data/train_images/c.png").read_bytes()


def test_failures_of_every_conversion_leave_nothing_behind(tmp_path: Path) -> None:
    conversions = converters(data_folder(tmp_path / "data", SIMPLE))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    for convert in conversions.values():
        with pytest.raises(OutputExistsError, match="not empty"):
            convert(tmp_path / "full")
    for source, convert in conversions.items():
        for image in (tmp_path / source).rglob("c.png"):
            if "masks/masks" not in str(image):
                image.write_bytes(b"\x89PNG")
        with pytest.raises(ImageError, match=r"c\.png"):
            convert(tmp_path / "out")
    with (tmp_path / "data/train.csv").open("a") as handle:
        handle.write("line 1/b.JPG,1,12 9\n")
    (tmp_path / "data/train_images/c.png").unlink()
    for source, convert in conversions.items():
        if source.startswith("data"):
            with pytest.raises(LabelError, match="line 1/b"):
                convert(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "coco", "masks", "yolo", "full"}
    assert tree(tmp_path / "full") == {"precious"}
