"""What is trained on: folds, images that can be read, and those that are kept in memory."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.data.split import Fold, read_split, write_split
from defectseg.errors import DataError, LabelError
from defectseg.files import is_empty_folder
from defectseg.image.read import decode
from defectseg.machine import allow_gb
from defectseg.model.info import read_model_info
from defectseg.model.locate import model_identity
from defectseg.train.images import Images, divide_train, find_folds, read_images
from defectseg.train.train import TrainResult

Start = Callable[..., TrainResult]
QUICK = ("training.epochs=1", "data.samples_per_epoch=4")
FREE_BYTES = 24 * 64 * 128  # what the images of the data folder take


def _rows(folder: Path) -> list[str]:
    return (folder / "train.csv").read_text().splitlines()


# Which images


def test_the_split_of_the_data_folder_is_used(start: Start, out: Path, data: Path) -> None:
    image_ids = open_data_folder(data).image_ids
    folds = {image_id: 7 if index % 5 == 0 else 1 for index, image_id in enumerate(image_ids)}
    write_split(data / "split.csv", {**folds, "gone.jpg": 7})
    info = read_model_info(start("data.fold=7", *QUICK, data=data).model)
    assert read_split(out / "split.csv") == folds
    assert (info.fold, len(info.trained_on)) == (7, 24 - 5)


def test_groups_come_along_from_the_split_or_else_from_the_pixels(data: Path, tmp_path: Path) -> None:
    images = data / "train_images"
    (images / "sheet_00005.jpg").write_bytes((images / "sheet_00003.jpg").read_bytes())
    (data / "groups.csv").write_text("ImageId,Group\nsheet_00000.jpg,coil\nsheet_00003.jpg,coil\n")
    folder = open_data_folder(data)
    chosen: dict[str, Any] = {"folds": 4, "seed": 3}
    coil = dict.fromkeys(("sheet_00000.jpg", "sheet_00003.jpg"), "coil")

    folds, groups = find_folds(folder, tmp_path / "split.csv", **chosen)
    assert groups == {**coil, "sheet_00005.jpg": "coil"}
    write_split(tmp_path / "split.csv", folds, groups)
    assert find_folds(folder, tmp_path / "split.csv", **chosen) == (folds, groups)

    parts: dict[str, Fold] = {
        image_id: "val" if image_id == "sheet_00009.jpg" else "train" for image_id in folder.image_ids
    }
    write_split(data / "split.csv", parts, {"sheet_00007.jpg": "mine", "sheet_00008.jpg": "mine"})
    found = find_folds(folder, tmp_path / "none.csv", **chosen)
    mine = dict.fromkeys(("sheet_00007.jpg", "sheet_00008.jpg"), "mine")
    assert found == (parts, coil | mine)
    folds, groups = divide_train(folder, *found, **chosen)
    assert groups == {**coil, **mine, "sheet_00005.jpg": "coil"}
    assert folds["sheet_00007.jpg"] == folds["sheet_00008.jpg"] != "train"


def test_the_run_folder_gets_the_groups(start: Start, out: Path, data: Path) -> None:
    folds = {image_id: number % 4 for number, image_id in enumerate(open_data_folder(data).image_ids)}
    write_split(data / "split.csv", folds, {"sheet_00000.jpg": "coil", "sheet_00004.jpg": "coil"})
    start(*QUICK, data=data)
    assert (out / "split.csv").read_bytes() == (data / "split.csv").read_bytes()


def test_labels_of_missing_images_are_logged(start: Start, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = _rows(data)[1].split(",")[0]
    (data / "train_images" / first).unlink()
    start(*QUICK, data=data)
    assert f"1 images of the label table are not in the folder (first: {first})" in caplog.text


def _split_names_too_few(data: Path) -> None:
    write_split(data / "split.csv", dict.fromkeys(open_data_folder(data).image_ids[2:], 0))


def _run_beyond_its_image(data: Path) -> None:
    header, first, *others = _rows(data)
    beyond = f"{first.rpartition(',')[0]},{64 * 128} 5"
    (data / "train.csv").write_text("\n".join([header, beyond, *others]))


def _nothing_labelled(data: Path) -> None:
    (data / "train.csv").write_text(_rows(data)[0])


def _torn_fold(data: Path) -> None:
    first, *others = open_data_folder(data).image_ids
    (data / "train_images" / first).write_bytes(b"torn")
    write_split(data / "split.csv", {**dict.fromkeys(others, 1), first: 0})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_split_names_too_few, DataError, r"split.csv: gives no fold for sheet_00000.jpg, "),
        (_run_beyond_its_image, LabelError, r"sheet_0000\d.jpg, ClassId"),
        (_nothing_labelled, DataError, r"none of the 18 images to train on has a mask"),
        (_torn_fold, DataError, "0 to validate on"),
    ],
)
def test_unusable_data_are_an_error_before_training(
    start: Start, out: Path, data: Path, change: Callable[[Path], None], error: type[DataError], message: str
) -> None:
    change(data)
    with pytest.raises(error, match=message):
        start(data=data)
    assert is_empty_folder(out)


# Bits


def _in_12_bits(data: Path, tmp_path: Path, suffix: str, scale: int) -> Path:
    """The sheets without loss, in 8 or 12 bits; the names stay, since files are known by their content."""
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    for path in folder.glob("train_images/*"):
        grey = decode(path).pixels.astype(np.float64)
        wide: NDArray[Any] = np.rint(grey / 255 * scale).astype(np.uint8 if scale == 255 else np.uint16)
        content = cv2.imencode(suffix, wide)[1].tobytes()
        if suffix == ".tif":
            buffer = io.BytesIO()
            Image.fromarray(wide).save(buffer, "TIFF", tiffinfo={281: scale})
            content = buffer.getvalue()
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize(("suffix", "bit_depth"), [(".png", 12), (".tif", None)], ids=["said", "tag"])
def test_images_of_12_bits_train_as_those_of_8_and_the_bundle_knows_it(
    start: Start, data_folder: Path, tmp_path: Path, suffix: str, bit_depth: int | None
) -> None:
    narrow_data, wide_data = (
        _in_12_bits(data_folder, tmp_path / str(scale), kind, scale) for kind, scale in ((".png", 255), (suffix, 4095))
    )
    narrow = start(*QUICK, data=narrow_data, out=tmp_path / "narrow").model
    wide = start(*QUICK, f"data.bit_depth={bit_depth or 'null'}", data=wide_data).model
    narrow_info, info = read_model_info(narrow), read_model_info(wide)

    assert model_identity(wide) == model_identity(narrow)
    assert (narrow_info.recipe.data.bit_depth, info.recipe.data.bit_depth) == (None, 12)
    assert info.metrics == narrow_info.metrics
    assert read_split(wide.with_name("split.csv")) == read_split(narrow.with_name("split.csv"))


def test_images_that_look_like_12_bits_are_logged(
    start: Start, data_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = start(*QUICK, data=_in_12_bits(data_folder, tmp_path, ".png", 4095))
    (told,) = (line for line in caplog.messages if "16-bit" in line)
    assert "24 of 24" in told
    assert "bit_depth=12" in told
    assert read_model_info(result.model).recipe.data.bit_depth is None


# Images in memory


def _read(folder: Path, keep: Any, **options: Any) -> Images:
    data = open_data_folder(folder)
    return read_images(
        data, {image_id: index % 4 for index, image_id in enumerate(data.image_ids)}, keep=keep, **options
    )


def test_cached_images_are_as_decoded_and_read_only(data_folder: Path) -> None:
    images = _read(data_folder, True)
    assert set(images.cache) == set(images.data.image_ids)
    assert set(images.sizes.values()) == {(64, 128)}
    for image_id, pixels in images.cache.items():
        np.testing.assert_array_equal(pixels, decode(images.data.image_path(image_id)).pixels)
        assert not pixels.flags.writeable


def test_an_image_whose_validation_would_take_too_much_memory_is_refused_at_the_start(data_folder: Path) -> None:
    folder = open_data_folder(data_folder)
    allow_gb(0.0001)
    try:
        with pytest.raises(DataError, match=r"train_images.*would take more than .*--max-gb"):
            read_images(folder, dict.fromkeys(folder.image_ids, 0), keep=False)
    finally:
        allow_gb(1.5)


def test_images_of_a_fold_that_no_run_trains_on_are_not_cached(data_folder: Path) -> None:
    images = _read(data_folder, True, left_out=(1,))
    assert set(images.cache) == set(images.part(1).train)
    assert len(images.part(1).val) == 6


@pytest.mark.parametrize(
    ("keep", "free_bytes", "processes", "kept"),
    [
        (True, 0, None, True),
        (False, 10**12, None, False),
        # in a quarter of the free memory
        ("auto", 4 * FREE_BYTES, None, True),
        ("auto", 4 * FREE_BYTES - 1, None, False),
        ("auto", 8 * FREE_BYTES, "2", True),
        ("auto", 8 * FREE_BYTES - 1, "2", False),
        ("auto", -1, None, False),
        # where only Linux tells it, none
        ("auto", None, None, False),
    ],
)
def test_images_are_cached_as_set_or_if_they_fit_in_memory(
    data_folder: Path, keep: Any, free_bytes: Any, processes: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if free_bytes is None:
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.delattr("os.sysconf")
    else:
        monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": free_bytes, "SC_PAGE_SIZE": 1}.__getitem__)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    images = _read(data_folder, keep)
    assert len(images.cache) == (24 if kept else 0)
    assert len(images.sizes) == 24


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(4 * FREE_BYTES + 400, True), (4 * FREE_BYTES + 399, False), (300, False), ("max", True)],
)
def test_the_memory_limit_of_a_container_counts(
    data_folder: Path, limit: int | str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 4 * FREE_BYTES, "SC_PAGE_SIZE": 1}.__getitem__)
    monkeypatch.setattr("defectseg.train.images._CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert bool(_read(data_folder, "auto").cache) is kept
