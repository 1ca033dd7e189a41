from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, LabelError
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.kinds import recognise
from defectseg.formats.labels import Choices
from defectseg.formats.source import LabelSource

SIZE = "<size><width>10</width><height>8</height><depth>1</depth></size>"


def boxed(name: str, *edges: object) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    inside = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(tags, edges, strict=True))
    return f"<object><name>{name}</name><bndbox>{inside}</bndbox></object>"


PIT = boxed("pit", 2, 2, 4, 4)


def annotation(*objects: str, filename: str = "<filename>a.png</filename>", size: str = SIZE) -> str:
    return f"<annotation><folder>x</folder>{filename}{size}{''.join(objects)}</annotation>"


@pytest.fixture
def run(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., ImportReport]:
    """Imports files by name; an empty one is an image of 8 x 10 px."""

    def import_files(files: dict[str, str], **choices: Any) -> ImportReport:
        for name, content in files.items():
            path = write_image(tmp_path / "src" / name, (8, 10)) if not content else tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                path.write_text(content)
        return import_labels(tmp_path / "src", tmp_path / "out", Choices(**choices))

    return import_files


def losses(report: ImportReport) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


@pytest.mark.parametrize(
    ("edges", "left_top", "right_bottom", "lost"),
    [
        ((2, 3, 4, 6), (1, 2), (4, 6), {"boxes": 1}),  # counted from 1, the last pixel belongs to the box
        ((4, 6, 2, 3), (1, 2), (4, 6), {"boxes": 1}),
        (("1.5", "2.5", "3.5", "4.5"), (0, 1), (4, 5), {"boxes": 1}),
        ((0, 0, 99, 8), (0, 0), (10, 8), {"boxes": 1, "clipped": 1}),
    ],
)
def test_boxes_stop_the_import_or_are_ignored(
    run: Callable[..., ImportReport],
    tmp_path: Path,
    edges: tuple[Any, ...],
    left_top: tuple[int, int],
    right_bottom: tuple[int, int],
    lost: dict[str, int],
) -> None:
    files = {"IMAGES/a.png": "", "ANNOTATIONS/a.xml": annotation(boxed("dent", *edges))}
    with pytest.raises(DataError, match=r"1 of 1 labels are boxes.*a\.xml: object 1.*boxes='ignore'"):
        run(files)
    report = run(files, boxes="ignore")
    expected = np.zeros((8, 10), bool)
    expected[left_top[1] : right_bottom[1], left_top[0] : right_bottom[0]] = True
    (mask,), ignored = open_data_folder(tmp_path / "out").masks_of("a.png", (8, 10))
    assert not mask.any()
    assert (ignored == expected).all()
    assert losses(report) == lost
    assert [one.name for one in report.classes] == ["dent"]


@pytest.mark.parametrize(
    ("filename", "label_file"),
    [
        ("<filename>a.png</filename>", "labels/other.xml"),
        ("<filename>a</filename>", "labels/other.xml"),  # without a suffix
        (r"<filename>C:\pictures\a.png</filename>", "labels/other.xml"),
        ("<filename>renamed.png</filename>", "labels/a.xml"),
        ("<filename/>", "labels/a.xml"),
        ("", "labels/a.xml"),
    ],
)
def test_the_image_is_found_by_either_name(
    run: Callable[..., ImportReport], tmp_path: Path, filename: str, label_file: str
) -> None:
    assert run({"pictures/a.png": "", label_file: annotation(PIT, filename=filename)}, boxes="ignore").images == 1


def test_a_file_without_objects_is_sound_and_an_image_without_a_file_is_not_labelled(
    run: Callable[..., ImportReport], tmp_path: Path
) -> None:
    files = {f"images/{name}.png": "" for name in "abc"} | {"other/d.png": ""}
    empty = annotation(filename="<filename>b.png</filename>", size="<size><width>0</width><height>0</height></size>")
    report = run(files | {"labels/a.xml": annotation(PIT), "labels/b.xml": empty}, boxes="ignore")
    assert (report.images, report.sound_images, report.not_labelled) == (2, 1, 1)
    assert (tmp_path / "out/not_labelled.csv").read_text().split() == ["ImageId", "c.png"]
    assert losses(report) == {"boxes": 1, "unlisted_images": 1}  # in a folder where nothing is labelled


@pytest.mark.parametrize(
    "names",
    [
        {"a": "JPEGImages/a.png", "b": "JPEGImages/b.png"},
        {"a": "Train/a.png", "b": "valid/b.png"},
    ],
)
def test_parts_come_from_image_sets_or_folders(
    run: Callable[..., ImportReport], tmp_path: Path, names: dict[str, str]
) -> None:
    files = dict.fromkeys(names.values(), "")
    if "JPEGImages" in names["a"]:
        files |= {
            "ImageSets/Main/train.txt": "a\n\n",
            "ImageSets/Main/val.txt": "b",
            "ImageSets/Main/pit_test.txt": "a 1",
        }
    for stem, image in names.items():
        folder = "Annotations" if "JPEGImages" in image else str(Path(image).parent)
        files[f"{folder}/{stem}.xml"] = annotation(PIT, filename=f"<filename>{stem}.png</filename>")
    assert run(files, boxes="ignore").parts == {"train": 1, "val": 1}


def test_masks_come_before_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(annotation(PIT))
    source = LabelSource(tmp_path, tmp_path)
    kind, evidence = recognise(source)
    assert (kind.name, kind.boxes_only(source)) == ("voc", True)
    assert evidence.startswith("a.xml")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.xml": annotation(boxed("pit", 1, 1, "x", 2))}, r"a\.xml: object 1: xmin, ymin, xmax, ymax"),
        ({"a.xml": annotation("<object><name>pit</name></object>")}, r"a\.xml: object 1: xmin, ymin, xmax, ymax"),
        ({"a.xml": annotation(PIT.replace("</o", "<polygon><x1>1</x1></polygon></o"))}, r"a\.xml: has polygons.*COCO"),
        ({"a.xml": annotation(PIT, size=SIZE.replace("10", "11"))}, "11x8"),
        ({"a.xml": annotation(PIT, size=SIZE.replace("10", "1e9"))}, "height, width"),
        ({"a.xml": annotation(PIT), "b.xml": annotation(PIT)}, "both stand for"),
        ({"b.xml": annotation(PIT), "b.png": ""}, r"b\.xml: its 'filename', a\.png, is another image"),
    ],
)
def test_what_cannot_be_meant_is_named(run: Callable[..., ImportReport], files: dict[str, str], expected: str) -> None:
    with pytest.raises((LabelError, DataError), match=expected):
        run({"a.png": ""} | files, boxes="ignore")
