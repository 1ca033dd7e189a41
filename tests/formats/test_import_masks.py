from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, DefectsegError, ImageError
from defectseg.formats.common import ImportReport
from defectseg.formats.masks import import_masks
from defectseg.image.read import read_class_map

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def write(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(pixels, np.uint8))


def source(tmp_path: Path, masks: dict[str, Any], images: tuple[str, ...] = ("a.png", "b.jpg")) -> Path:
    for name in images:
        write(tmp_path / "src/images" / name, GREY)
    for name, mask in masks.items():
        write(tmp_path / "src/masks" / name, mask)
    return tmp_path / "src"


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


CLEAN = [[0, 0, 0], [0, 0, 0]]


def test_class_maps_become_rows_and_images_keep_their_names_and_bytes(tmp_path: Path) -> None:
    src = source(tmp_path, {"a.png": [[0, 1, 2], [2, 1, 0]], "b.png": CLEAN})
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


def test_255_alone_is_one_class_over_the_whole_folder(tmp_path: Path) -> None:
    src = source(tmp_path, {"a.png": [[0, 255, 0], [0, 255, 0]], "b.png": CLEAN})
    assert import_masks(src, tmp_path / "out") == ImportReport(2, 1, ("class 1",), (1,), 0)
    assert (tmp_path / "out/train.csv").read_text().endswith("\na.png,1,3 2\n")


def test_255_in_one_file_means_ignore_where_another_file_has_class_numbers(tmp_path: Path) -> None:
    src = source(tmp_path, {"a.png": [[0, 255, 0], [0, 255, 0]], "b.png": [[1, 0, 0], [0, 0, 0]]})
    assert import_masks(src, tmp_path / "out") == ImportReport(2, 0, ("class 1",), (1,), 2)
    folder = open_data_folder(tmp_path / "out")
    masks, ignore = folder.masks_of("a.png", (2, 3))
    assert not masks.any()
    np.testing.assert_array_equal(ignore, [[False, True, False], [False, True, False]])


def test_masks_in_class_folders_may_overlap_and_a_missing_file_means_clean(tmp_path: Path) -> None:
    src = source(tmp_path, {"rust/a.png": [[255, 255, 0], [0, 0, 0]], "dent/a.png": [[1, 0, 0], [0, 0, 0]]})
    report = import_masks(src, tmp_path / "out")
    assert report == ImportReport(2, 1, ("dent", "rust"), (1, 1), 0)
    assert import_masks(src, tmp_path / "other", classes=["rust", "crack", "dent"]).masks_per_class == (1, 0, 1)
    assert (tmp_path / "out/train.csv").read_text().splitlines()[1:] == ["a.png,1,1 1", "a.png,2,1 1 3 1"]


def test_subfolders_of_images_are_paired_and_kept(tmp_path: Path) -> None:
    src = source(tmp_path, {"n/a.png": [[1, 0, 0], [0, 0, 0]], "s/a.png": CLEAN}, images=("n/a.png", "s/a.png"))
    import_masks(src, tmp_path / "out")
    assert open_data_folder(tmp_path / "out").image_ids == ("n/a.png", "s/a.png")


def test_empty_folder_is_filled_and_progress_told(tmp_path: Path) -> None:
    src = source(tmp_path, {"a.png": CLEAN, "b.png": [[1, 0, 0], [0, 0, 0]]})
    (tmp_path / "out").mkdir()
    steps: list[tuple[int, int]] = []
    import_masks(src, tmp_path / "out", progress=lambda done, of, text="": steps.append((done, of)))
    assert tree(tmp_path / "out") == {"train.csv", "classes.txt", "train_images/a.png", "train_images/b.jpg"}
    assert steps == [(1, 2), (2, 2)]


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
    tmp_path: Path, masks: dict[str, Any], class_names: list[str] | None, message: str
) -> None:
    src = source(tmp_path, masks)
    with pytest.raises(DataError, match=message):
        import_masks(src, tmp_path / "out", classes=class_names)
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


def test_only_some_of_many_names_are_listed(tmp_path: Path) -> None:
    src = source(tmp_path, {"a.png": CLEAN}, images=("a.png", *(f"i{number}.png" for number in range(9))))
    with pytest.raises(
        DataError, match=r"9 images have no mask: i0\.png, i1\.png, i2\.png, i3\.png, i4\.png and 4 more"
    ):
        import_masks(src, tmp_path / "out")


def test_failure_while_copying_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    src = source(tmp_path, {"a.png": CLEAN, "b.png": CLEAN})
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(DefectsegError, match="no space left"):
        import_masks(src, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


NUMBERS = np.array([[0, 1, 2, 3], [3, 2, 1, 255]], np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_class_map_holds_the_same_numbers_in_every_format(tmp_path: Path, suffix: str, channels: int) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, NUMBERS if channels == 1 else cv2.merge([NUMBERS] * channels))
    np.testing.assert_array_equal(read_class_map(path), NUMBERS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_coloured_palette_gives_its_indices(tmp_path: Path, bits: int) -> None:
    picture = Image.fromarray(NUMBERS % 4).convert("L")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_class_map(tmp_path / "a.png"), NUMBERS % 4)


def test_grey_palette_gives_its_greys_since_savers_reorder_them(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    picture.putpalette([2, 2, 2, 0, 0, 0, 1, 1, 1])
    picture.save(tmp_path / "a.png")
    assert read_class_map(tmp_path / "a.png").tolist() == [[2, 0, 1]]


def test_sixteen_bit_class_map_is_read_while_its_numbers_fit(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), NUMBERS.astype(np.uint16))
    np.testing.assert_array_equal(read_class_map(tmp_path / "a.png"), NUMBERS)
    cv2.imwrite(str(tmp_path / "b.png"), NUMBERS.astype(np.uint16) + 1)
    with pytest.raises(ImageError, match="values up to 256; expected class numbers, 0 to 255"):
        read_class_map(tmp_path / "b.png")


def test_coloured_mask_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.array([[[0, 0, 255], [0, 0, 0]]]))
    with pytest.raises(ImageError, match="a coloured mask"):
        read_class_map(tmp_path / "a.png")


def test_jpeg_under_the_name_of_png_is_refused_as_a_mask(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", NUMBERS)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a mask in JPEG"):
        read_class_map(tmp_path / "a.png")
