from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError
from defectseg.formats.common import ImportReport
from defectseg.formats.masks import export_masks, import_masks
from defectseg.image.read import read_class_map

Make = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path, write_image: Make) -> Make:
    """Writes images of 2 x 3 and masks, and gives their folder."""

    def write(masks: dict[str, Any], images: tuple[str, ...] = ("a.png", "b.jpg")) -> Path:
        for name in images:
            write_image(tmp_path / "src/images" / name, (2, 3))
        for name, mask in masks.items():
            write_image(tmp_path / "src/masks" / name, mask)
        return tmp_path / "src"

    return write


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


CLEAN = [[0, 0, 0], [0, 0, 0]]


def test_class_maps_become_rows_and_images_keep_their_names_and_bytes(tmp_path: Path, source: Make) -> None:
    src = source({"a.png": [[0, 1, 2], [2, 1, 0]], "b.png": CLEAN})
    report = import_masks(src, tmp_path / "out", classes=["pits", "cracks", "scratches"])
    assert report == ImportReport(2, 1, ("pits", "cracks", "scratches"), (1, 1, 0), 0)
    assert tree(tmp_path / "out") == {"train.csv", "classes.txt", "train_images/a.png", "train_images/b.jpg"}
    # pixel numbers: 1 3 5 / 2 4 6
    assert (tmp_path / "out/train.csv").read_text() == "ImageId,ClassId,EncodedPixels\na.png,1,3 2\na.png,2,2 1 5 1\n"
    assert (tmp_path / "out/classes.txt").read_text() == "pits\ncracks\nscratches\n"
    assert (tmp_path / "out/train_images/b.jpg").read_bytes() == (src / "images/b.jpg").read_bytes()
    folder = open_data_folder(tmp_path / "out")
    assert folder.classes_of("a.png") == (1, 2)
    assert folder.classes_of("b.jpg") == ()


def test_255_alone_is_one_class_over_the_whole_folder(tmp_path: Path, source: Make) -> None:
    src = source({"a.png": [[0, 255, 0], [0, 255, 0]], "b.png": CLEAN})
    assert import_masks(src, tmp_path / "out") == ImportReport(2, 1, ("class 1",), (1,), 0)
    assert (tmp_path / "out/train.csv").read_text().endswith("\na.png,1,3 2\n")


def test_255_in_one_file_means_ignore_where_another_file_has_class_numbers(tmp_path: Path, source: Make) -> None:
    src = source({"a.png": [[0, 255, 0], [0, 255, 0]], "b.png": [[1, 0, 0], [0, 0, 0]]})
    assert import_masks(src, tmp_path / "out") == ImportReport(2, 0, ("class 1",), (1,), 2)
    folder = open_data_folder(tmp_path / "out")
    masks, ignore = folder.masks_of("a.png", (2, 3))
    assert not masks.any()
    np.testing.assert_array_equal(ignore, [[False, True, False], [False, True, False]])


def test_masks_in_class_folders_may_overlap_and_a_missing_file_means_clean(tmp_path: Path, source: Make) -> None:
    src = source({"rust/a.png": [[255, 255, 0], [0, 0, 0]], "dent/a.png": [[1, 0, 0], [0, 0, 0]]})
    report = import_masks(src, tmp_path / "out")
    assert report == ImportReport(2, 1, ("dent", "rust"), (1, 1), 0)
    assert import_masks(src, tmp_path / "other", classes=["rust", "crack", "dent"]).masks_per_class == (1, 0, 1)
    assert (tmp_path / "out/train.csv").read_text().splitlines()[1:] == ["a.png,1,1 1", "a.png,2,1 1 3 1"]


@pytest.mark.parametrize(
    ("masks", "class_names", "message"),
    [
        ({"a.png": CLEAN}, None, r"1 images have no mask: b\.jpg\. Add"),
        ({"a.png": CLEAN, "b.png": CLEAN, "c.png": CLEAN}, None, r"1 masks have no image: c\.png"),
        (
            {"a.png": CLEAN, "b.png": [[0, 3, 0], [0, 0, 0]]},
            ["x", "y"],
            r"masks/b\.png: holds 3, but the given list of classes names 2",
        ),
        ({"a.png": CLEAN, "b.png": [[0, 0], [0, 0]]}, None, r"masks/b\.png: 2x2 px, but its image b\.jpg has 3x2"),
        ({"a.png": CLEAN, "b.png": [[0, 255, 0], [0, 0, 0]]}, ["x", "y"], r"classes: 2 names, but .* one class"),
        ({"a.png": CLEAN, "b.png": CLEAN}, ["x", "x"], r"'x' names ClassId 1 and 2"),
        ({"a.png": CLEAN, "a.bmp": CLEAN, "b.png": CLEAN}, None, r"two masks of one name"),
        ({"a.jpg": CLEAN, "b.png": CLEAN}, None, r"masks/a\.jpg: a mask in a format that may smear"),
        ({"rust/a.png": [[0, 1, 2], [0, 0, 0]]}, None, r"rust/a\.png: holds 1, 2 beside 0"),
        ({"rust/c.png": CLEAN}, None, r"1 masks have no image: rust/c\.png"),
        ({"rust/a.png": CLEAN, "loose.png": CLEAN}, None, r"1 masks have no image: loose\.png"),
        ({"rust/a.png": CLEAN}, ["dent"], r"has rust, but the given list of classes has only dent"),
        ({"rust/a.png": [[0, 1], [0, 0]]}, None, r"rust/a\.png: 2x2 px"),
        ({}, None, "has no masks/"),
    ],
)
def test_masks_that_do_not_fit_are_refused_and_leave_nothing(
    tmp_path: Path, source: Make, masks: dict[str, Any], class_names: list[str] | None, message: str
) -> None:
    src = source(masks)
    with pytest.raises(DataError, match=message):
        import_masks(src, tmp_path / "out", classes=class_names)
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


def test_only_some_of_many_names_are_listed(tmp_path: Path, source: Make) -> None:
    src = source({"a.png": CLEAN}, images=("a.png", *(f"i{number}.png" for number in range(9))))
    with pytest.raises(
        DataError, match=r"9 images have no mask: i0\.png, i1\.png, i2\.png, i3\.png, i4\.png and 4 more"
    ):
        import_masks(src, tmp_path / "out")


LEFT, DOT, EDGE = "##../##../....", "..../.#../....", "...#/...#/...#"


def test_class_map_gives_shared_pixels_to_the_smaller_mask_and_counts_them(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {1: LEFT, 2: DOT, 255: EDGE}, "b.png": {1: EDGE, 255: EDGE}})
    report = export_masks(root, tmp_path / "masks")
    assert read_class_map(tmp_path / "masks/masks/a.png").tolist() == [[1, 1, 0, 255], [1, 2, 0, 255], [0, 0, 0, 255]]
    assert [(loss.kind, loss.count) for loss in report.lost] == [("overlap_px", 1), ("under_ignore_px", 3)]


def test_pictures_per_class_hold_0_and_255_and_absent_classes_have_none(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "data", {"a.png": {2: DOT, 255: EDGE}, "b.png": {}})
    export_masks(root, tmp_path / "masks", per_class=True)
    assert tree(tmp_path / "masks/masks") == {"dent/a.png", "ignore/a.png"}
    written = read_class_map(tmp_path / "masks/masks/dent/a.png")
    assert written.tolist() == [[0, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("labels", [{}, {255: EDGE}])
def test_folder_without_any_class_comes_back_as_it_was(
    tmp_path: Path, make_folder: Make, labels: dict[int, str], per_class: bool
) -> None:
    root = make_folder(tmp_path / "data", {"a.png": labels})
    export_masks(root, tmp_path / "masks", per_class=per_class)
    import_masks(tmp_path / "masks", tmp_path / "back")
    before, after = open_data_folder(root), open_data_folder(tmp_path / "back")
    assert (after.table.rles, after.class_names) == (before.table.rles, before.class_names)


def test_names_given_to_the_import_go_before_those_that_the_export_wrote(tmp_path: Path, make_folder: Make) -> None:
    export_masks(make_folder(tmp_path / "data", {"a.png": {1: LEFT}}), tmp_path / "masks")
    report = import_masks(tmp_path / "masks", tmp_path / "back", classes=["x", "y", "z"])
    assert report.class_names == ("x", "y", "z")


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
    with pytest.raises(DataError, match="has the name of a class"):
        export_masks(root, tmp_path / "out", per_class=True)
    export_masks(root, tmp_path / "out")
    assert import_masks(tmp_path / "out", tmp_path / "back").masks_per_class == (1, 0)
