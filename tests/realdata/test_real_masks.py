"""Real and vendor-made masks come out as Pillow decodes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices


@pytest.fixture(scope="session")
def shared(realdata: Path) -> Path:
    """The folder that holds `cases` and `formats` beside the data."""
    for name in ("cases", "formats", "data/magtile"):
        if not (realdata.parent / name).is_dir():
            pytest.skip(f"no {realdata.parent / name}")
    return realdata.parent


def class_maps(root: Path) -> dict[str, NDArray[Any]]:
    """Stem of an image -> ClassId of each pixel, 255 where it is ignored."""
    folder, maps = open_data_folder(root), {}
    for image_id in folder.image_ids:
        with Image.open(folder.image_path(image_id)) as image:
            masks, ignore = folder.masks_of(image_id, (image.height, image.width))
        maps[Path(image_id).stem] = np.where(ignore, 255, (masks * np.arange(1, len(masks) + 1)[:, None, None]).max(0))
    return maps


def decoded(path: Path, mode: str = "") -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode) if mode else image).astype(int)


def summary(report: ImportReport) -> dict[str, int]:
    return {one.name: one.px for one in report.classes}


@pytest.mark.parametrize(("name", "classes", "sound"), [("magtile", 5, 477), ("neu900", 3, 0)])
def test_class_maps_of_real_data_equal_pillows_pixel_by_pixel(
    shared: Path, tmp_path: Path, name: str, classes: int, sound: int
) -> None:
    report = import_labels(shared / "data" / name, tmp_path / "out", link=True)
    assert (len(report.classes), report.sound_images, report.lost) == (classes, sound, ())
    for stem, found in class_maps(tmp_path / "out").items():
        np.testing.assert_array_equal(found, decoded(shared / "data" / name / "masks" / f"{stem}.png"))


def test_grey_masks_are_cut_at_127_and_the_grey_pixels_counted(shared: Path, tmp_path: Path) -> None:
    report = import_labels(shared / "formats/grey_masks", tmp_path / "out")
    maps = class_maps(tmp_path / "out")
    greys = {stem: decoded(shared / "formats/grey_masks" / f"{stem}.png") for stem in maps}
    assert len(maps) == 8
    for stem, found in maps.items():
        np.testing.assert_array_equal(found, greys[stem] > 127)
    assert [(loss.kind, loss.count) for loss in report.lost] == [
        ("odd_px", sum(np.count_nonzero((grey > 0) & (grey < 255)) for grey in greys.values()))
    ]


def test_samples_of_voc_and_mvtec(shared: Path, tmp_path: Path) -> None:
    voc = shared / "formats/voc_segmentation/voc_dataset/voc_dataset1"
    report = import_labels(voc, tmp_path / "voc", kind="masks")
    assert (summary(report), report.not_labelled) == ({"bicycle": 200}, 1)
    assert (decoded(voc / "SegmentationClass/2007_000001.png") == [0, 128, 0]).all(), "the third colour of the table"
    mvtec = shared / "formats/mvtec_layout/mvtec_dataset"
    with pytest.raises(DataError, match="label_0") as error:
        import_labels(mvtec, tmp_path / "mvtec")
    assert error.value.go_on == {"sound": "label_0"}
    report = import_labels(mvtec, tmp_path / "mvtec", Choices(sound="label_0"))
    assert (summary(report), report.sound_images) == ({"label_1": 16, "label_2": 16}, 1)
    with pytest.raises(DataError, match="neither masks nor images"):
        import_labels(shared / "formats/cvat_segmask_labelmap", tmp_path / "cvat")


@pytest.mark.parametrize(
    ("case", "choices", "expected"),
    [
        ("63", {}, {"class 1": 2850}),
        ("43b", {}, {"class 1": 400}),
        ("52", {"background": "255"}, {"class 1": 400, "class 2": 200}),
        ("58", {"unlabelled": "clean"}, {"class 1": 400}),
        ("45b", {}, {"class 1": 400}),
        ("53", {}, {"scratch": 400, "pit": 200}),
        ("40", {}, {"scratch": 400, "pit": 200}),
        ("41", {}, {"scratch": 400, "pit": 200}),
        ("41c", {}, {"scratch": 400, "pit": 200}),
        ("37", {}, {"class 1": 1600}),
    ],
)
def test_cases_come_out_as_they_should(
    shared: Path, tmp_path: Path, case: str, choices: dict[str, Any], expected: dict[str, int]
) -> None:
    report = import_labels(shared / "cases" / case, tmp_path / "out", Choices(**choices), kind="masks")
    assert (summary(report), report.ignored_px, report.not_labelled) == (expected, 0, 0)
    if case == "52":
        with pytest.raises(DataError, match="255") as error:
            import_labels(shared / "cases" / case, tmp_path / "again")
        assert error.value.go_on == {"background": "255|0"}
