import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.data.split import read_split
from defectseg.errors import DataError, LabelError
from defectseg.formats.cvat import _mask
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices

HEIGHT, WIDTH = 8, 10
LABELS = "<labels><label><name>pit</name></label><label><name>dent</name></label></labels>"
SQUARE = '<polygon label="pit" source="manual" occluded="1" points="1.00,1.00;4.00,1.00;4.00,3.00;1.00,3.00"/>'
BOX = '<box label="pit" xtl="2.0" ytl="3.0" xbr="6.0" ybr="5.0"/>'
LINE = '<polyline label="pit" points="1.0,1.0;5.0,5.0"/>'
SKELETON = '<skeleton label="pit"><points label="1" outside="1" points="1.0,1.0"/></skeleton>'


def image(shapes: str, name: str = "a.png", **more: str) -> str:
    attributes = {"name": name, "width": str(WIDTH), "height": str(HEIGHT)} | more
    return f"<image {' '.join(f'{key}={value!r}' for key, value in attributes.items())}>{shapes}</image>"


def document(*images: str, meta: str = f"<task>{LABELS}</task>") -> str:
    return f"<?xml version='1.0' encoding='utf-8'?><annotations><meta>{meta}</meta>{''.join(images)}</annotations>"


@pytest.fixture
def run(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., ImportReport]:
    """Imports a document, with images of 8 x 10 px below images/."""

    def import_document(text: str, images: tuple[str, ...] = ("a.png",), **choices: Any) -> ImportReport:
        for name in images:
            write_image(tmp_path / "src/images" / name, (HEIGHT, WIDTH))
        (tmp_path / "src/annotations.xml").write_text(text)
        return import_labels(tmp_path / "src", tmp_path / "out", Choices(**choices))

    return import_document


def masks(root: Path, image_id: str = "a.png") -> dict[int, NDArray[np.bool_]]:
    """ClassId -> mask."""
    folder = open_data_folder(root / "out")
    found, ignored = folder.masks_of(image_id, (HEIGHT, WIDTH))
    return {number: mask for number, mask in enumerate([*found, ignored], start=1) if mask.any()}


def rows(text: str) -> NDArray[np.bool_]:
    """A mask of 8 x 10 px from its first rows."""
    lines = [list(line.ljust(WIDTH, ".")) for line in text.split("/")]
    return np.asarray(np.array(lines + [["."] * WIDTH] * (HEIGHT - len(lines))) == "#", np.bool_)


def losses(report: ImportReport) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def mask_tag(rle: str, left: int, top: int, width: int, height: int, label: str = "dent") -> str:
    return f'<mask label="{label}" rle="{rle}" left="{left}" top="{top}" width="{width}" height="{height}"/>'


@pytest.mark.parametrize(
    ("shapes", "expected", "lost"),
    [
        (SQUARE, {1: ".../.###/.###"}, {}),
        ('<polygon label="pit" points="-3,-3;2,-3;2,2;-3,2"/>', {1: "##/##"}, {"clipped": 1}),
        (mask_tag("1, 3, 1, 1", 4, 1, 3, 2), {2: "/.....##/....#.#"}, {}),  # row by row, beginning outside
        (SQUARE + mask_tag("0, 2", 1, 1, 2, 1), {1: ".../.###/.###", 2: ".../.##"}, {}),  # classes may overlap
        (SQUARE + mask_tag("0, 2", 0, 0, 2, 1, "pit"), {1: "##/.###/.###"}, {"united": 1}),
        (SQUARE + LINE + SKELETON, {1: ".../.###/.###"}, {"other_shape": 2}),
        (
            SQUARE + mask_tag("0, 1", 3, 3, 1, 1).replace("<mask", '<mask outside="1"'),
            {1: "/.###/.###"},
            {"no_pixel": 1},
        ),
    ],
)
def test_areas_are_painted_and_everything_else_is_told(
    run: Callable[..., ImportReport], tmp_path: Path, shapes: str, expected: dict[int, str], lost: dict[str, int]
) -> None:
    report = run(document(image(shapes)))
    found = masks(tmp_path)
    assert found.keys() == expected.keys()
    for class_id, text in expected.items():
        assert (found[class_id] == rows(text)).all()
    assert losses(report) == lost
    assert [one.name for one in report.classes] == ["pit", "dent"]  # as the task lists them


@pytest.mark.parametrize(
    ("box", "expected", "lost"),
    [
        (BOX, "///..####/..####", {"boxes": 1}),
        (BOX.replace("/>", ' rotation="90.0"/>'), "//...##/...##/...##/...##", {"boxes": 1, "rotated": 1}),
        (
            '<ellipse label="pit" cx="5" cy="3" rx="1" ry="2" rotation="90.0"/>',
            "//...####/...####",
            {"boxes": 1, "rotated": 1},
        ),
        (BOX.replace("6.0", "60"), "///..########/..########", {"boxes": 1, "clipped": 1}),
        (SQUARE.replace('"pit"', '""'), "/.###/.###", {"no_class": 1}),
    ],
)
def test_boxes_and_shapes_without_a_class_stop_or_are_ignored(
    run: Callable[..., ImportReport], tmp_path: Path, box: str, expected: str, lost: dict[str, int]
) -> None:
    with pytest.raises(DataError, match=r"1 of 1 labels.*a\.png: (box|ellipse|polygon) 1.*boxes='ignore'"):
        run(document(image(box)))
    assert losses(run(document(image(box)), boxes="ignore")) == lost
    found = masks(tmp_path)
    assert list(found) == [3]  # the mask of ignored pixels comes last
    assert (found[3] == rows(expected)).all()


@pytest.mark.parametrize("shapes", ["", LINE, '<tag label="pit"/>'])
def test_an_image_without_an_area_may_be_sound_or_not_looked_at(
    run: Callable[..., ImportReport], tmp_path: Path, shapes: str
) -> None:
    text, names = document(image(SQUARE), image(shapes, "b.png")), ("a.png", "b.png")
    with pytest.raises(DataError, match=r"1 of 2 images.*b\.png.*unlabelled='clean\|skip'"):
        run(text, names)
    assert run(text, names, unlabelled="skip").not_labelled == 1
    assert (tmp_path / "out/not_labelled.csv").read_text().split() == ["ImageId", "b.png"]


def test_subsets_of_a_project_are_folders_and_parts(run: Callable[..., ImportReport], tmp_path: Path) -> None:
    subsets = ("Train", "Validation", "TEST", "Line 3", "default")
    text = document(
        *(image(SQUARE, subset=subset) for subset in subsets),
        meta="<project><labels><label><name>dent</name></label><label><name>pit</name></label>"
        "<label><name>1</name><parent>knee</parent></label></labels></project>",
    )
    report = run(text, tuple(f"{subset}/a.png" for subset in subsets))
    assert report.parts == {"train": 3, "val": 1, "test": 1}
    assert losses(report) == {}
    assert [one.name for one in report.classes] == ["dent", "pit"]
    fold = read_split(tmp_path / "out/split.csv")
    assert (fold["Validation/a.png"], fold["TEST/a.png"], fold["Line 3/a.png"]) == ("val", "test", "train")


def test_the_subset_of_a_task_is_its_part_and_archives_are_read_as_cvat_writes_them(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    picture = write_image(tmp_path / "a.png", (HEIGHT, WIDTH))
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", document(image(SQUARE), meta=f"<task><subset>Test</subset>{LABELS}</task>"))
        archive.write(picture, "images/a.png")
    report = import_labels(tmp_path / "task.zip", tmp_path / "out")
    assert (report.kind, report.parts) == ("cvat", {"test": 1})
    assert report.evidence.startswith("annotations.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out", "task.zip"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ('<polygon label="pit" points="1.0,1.0;2.0;3.0,3.0"/>', "points"),
        ('<polygon label="pit"/>', "points"),
        ('<polygon label="pit" points="1.0,nan;2.0,2.0;3.0,3.0"/>', "numbers in px"),
        ('<polygon label="pit" points="1.0,1.0;400.0,2.0;3.0,3.0"/>', "far outside"),
        (mask_tag("0, 5", 0, 0, 3, 2), "3x2"),
        (mask_tag("0, 6", -1, 0, 3, 2), "reaches beyond"),
        (mask_tag("0, -1, 7", 0, 0, 3, 2), "3x2"),
        (mask_tag("", 0, 0, 3, 2), "3x2"),
        (mask_tag("0, 999998000001", 0, 0, 999_999, 999_999), "999999x999999"),
        ('<ellipse label="pit" cx="1" cy="1" rx="x" ry="1"/>', "cx, cy, rx, ry"),
        ('<box label="pit" xtl="1" ytl="1" xbr="2"/>', "xtl, ytl, xbr, ybr"),
    ],
)
def test_a_damaged_shape_is_named(run: Callable[..., ImportReport], shape: str, expected: str) -> None:
    with pytest.raises(LabelError, match=rf"annotations\.xml: a\.png: \w+ 2: .*{expected}"):
        run(document(image(SQUARE + shape)), boxes="ignore")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (document("<track label='pit'><polygon frame='0' points='1,1;2,2;3,3'/></track>"), "CVAT for images 1.1"),
        (document(image(SQUARE, width="ten")), "height, width are '8 ten'"),
        (document(image(SQUARE, width="20")), "20x8"),
        (document(image(SQUARE), image(SQUARE)), "both stand for"),
        (document(image(SQUARE), image(SQUARE, "../b.png")), r"absent='skip'"),
        (document(image(LINE)), "nothing is labelled.*Polylines"),
    ],
)
def test_a_document_that_cannot_be_meant_is_refused(run: Callable[..., ImportReport], text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        run(text)


@pytest.mark.parametrize(
    ("declared", "encoding"), [("ISO-8859-1", "latin-1"), ("gb2312", "gb2312"), ("utf-16", "utf-8"), ("utf-8", "utf-8")]
)
def test_the_declared_encoding_counts_where_the_text_is_not_utf_8(
    tmp_path: Path, write_image: Callable[..., Path], declared: str, encoding: str
) -> None:
    write_image(tmp_path / "src/a.png", (HEIGHT, WIDTH))
    name = "度" if declared == "gb2312" else "Riß"
    text = document(image(SQUARE)).replace("'utf-8'", f'"{declared}"').replace("pit", name)
    (tmp_path / "src/annotations.xml").write_bytes(text.encode(encoding))
    assert import_labels(tmp_path / "src", tmp_path / "out").classes[0].name == name


@given(data=st.data())
def test_masks_are_the_same_as_pixel_by_pixel(data: st.DataObject) -> None:
    """Against CVAT's own way: one step for each pixel of each run."""
    width, height = data.draw(st.integers(1, WIDTH)), data.draw(st.integers(1, HEIGHT))
    left, top = data.draw(st.integers(0, WIDTH - width)), data.draw(st.integers(0, HEIGHT - height))
    pixels = data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
    runs, expected = [0], np.zeros((HEIGHT, WIDTH), bool)
    for index, pixel in enumerate(pixels):
        if pixel != (len(runs) % 2 == 0):
            runs.append(0)
        runs[-1] += 1
        x, y = left + index % width, top + index // width
        expected[y, x] = pixel
    element = ElementTree.fromstring(mask_tag(", ".join(map(str, runs)), left, top, width, height))
    assert (_mask(element, "here")((HEIGHT, WIDTH)) == expected).all()
