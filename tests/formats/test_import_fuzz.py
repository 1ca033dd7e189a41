"""Damaged, odd and hostile sources: every import ends well, or in an error that names the file."""

import base64
import contextlib
import copy
import io
import json
import math
import os
import random
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from defectseg.errors import DefectsegError
from defectseg.formats.data_import import import_labels
from defectseg.formats.kinds import KINDS, recognise
from defectseg.formats.labels import Choices
from defectseg.formats.source import LabelSource

LONGEST_S = 10
GOING_ON = Choices(absent="skip", unlabelled="skip", boxes="ignore", exif="keep")


def png(pixels: object) -> bytes:
    return cv2.imencode(".png", np.asarray(pixels, np.uint8))[1].tobytes()


IMAGE = png(np.full((8, 10), 90))
MASK = png([[0] * 10] * 3 + [[0, 1, 1, 0, 0, 2, 2, 2, 0, 0]] * 5)
SMALL = png([[255, 0], [255, 255]])
BITMAP = base64.b64encode(zlib.compress(SMALL)).decode()
SQUARE = [[1, 1], [5, 1], [5, 4], [1, 4]]

SUPERVISELY = {
    "size": {"height": 8, "width": 10},
    "objects": [
        {"classTitle": "dent", "geometryType": "bitmap", "bitmap": {"data": BITMAP, "origin": [3, 2]}},
        {"classTitle": "pit", "geometryType": "polygon", "points": {"exterior": SQUARE, "interior": [SQUARE[:3]]}},
        {"classTitle": "pit", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [3, 3]], "interior": []}},
    ],
}
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<meta><task><subset>val</subset><labels><label><name>pit</name></label></labels></task></meta>
<image id="0" name="a.png" width="10" height="8">
<polygon label="pit" points="1.00,1.00;5.00,1.00;5.00,4.00" z_order="0"></polygon>
<mask label="dent" rle="1, 3, 2" left="4" top="4" width="3" height="2"></mask>
<ellipse label="pit" cx="5.0" cy="4.0" rx="3.0" ry="2.0" rotation="30.0"></ellipse>
<box label="pit" xtl="1.0" ytl="2.0" xbr="4.0" ybr="5.0" rotation="10.0"></box></image></annotations>"""
VOC = """<annotation><folder>images</folder><filename>a.png</filename>
<size><width>10</width><height>8</height><depth>1</depth></size>
<object><name>pit</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>6</xmax><ymax>5</ymax></bndbox></object>
</annotation>"""
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 10}],
    "categories": [{"id": 1, "name": "pit"}, {"id": 2, "name": "dent"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4]], "bbox": [1, 1, 4, 3]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": {"size": [8, 10], "counts": [10, 5, 65]}},
        {"id": 3, "image_id": 1, "category_id": 2, "segmentation": {"size": [8, 10], "counts": ":5Q2"}, "iscrowd": 1},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "area": 12.0},
    ],
}
LABELME = {
    "version": "5.4.1",
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": 8,
    "imageWidth": 10,
    "shapes": [
        {"label": "pit", "points": SQUARE, "shape_type": "polygon", "group_id": None, "flags": {}},
        {"label": "pit", "points": [[4, 4], [5, 6]], "shape_type": "circle"},
        {"label": "dent", "points": [[2, 2], [3, 3]], "shape_type": "mask", "mask": base64.b64encode(SMALL).decode()},
    ],
}
# Label Studio: the number of values, their bits, four lengths in bits; then runs of 160 times 0 and 160 times 255
BITS = f"{320:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}111{159:016b}{0:08b}111{159:016b}{255:08b}"
BRUSH = [int(BITS[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(BITS), 8)]
LABEL_STUDIO = [
    {
        "id": 7,
        "data": {"image": "/data/upload/1/0123abcd-a.png"},
        "annotations": [
            {
                "id": 3,
                "was_cancelled": False,
                "result": [
                    {
                        "type": "polygonlabels",
                        "original_width": 10,
                        "original_height": 8,
                        "value": {"points": [[10, 10], [50, 10], [50, 60]], "polygonlabels": ["pit"]},
                    },
                    {
                        "type": "brushlabels",
                        "original_width": 10,
                        "original_height": 8,
                        "value": {"format": "rle", "rle": BRUSH, "brushlabels": ["dent"]},
                    },
                ],
            }
        ],
    }
]
YOLO = "path: .\ntrain: images/train\nval: images/train\nnames:\n  0: pit\n  1: dent\n"

TABLE = "ImageId,ClassId,EncodedPixels\na.png,1,1 3 9 2\na.png,3,20 5\na.png,255,60 4\n"
SEEDS: dict[str, dict[str, bytes | str]] = {
    "supervisely": {"img/a.png": IMAGE, "ann/a.png.json": json.dumps(SUPERVISELY), "meta.json": '{"classes": []}'},
    "cvat": {"images/a.png": IMAGE, "annotations.xml": CVAT},
    "voc": {"images/a.png": IMAGE, "labels/a.xml": VOC, "ImageSets/Main/val.txt": "a\n"},
    "coco": {"images/a.png": IMAGE, "annotations.json": json.dumps(COCO)},
    "yolo": {
        "data.yaml": YOLO,
        "images/train/a.png": IMAGE,
        "labels/train/a.txt": "0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.5 0.5 0.2 0.2\n",
    },
    "labelme": {"a.png": IMAGE, "a.json": json.dumps(LABELME)},
    "label studio": {"images/a.png": IMAGE, "project.json": json.dumps(LABEL_STUDIO)},
    "masks": {"images/a.png": IMAGE, "masks/a.png": MASK, "classes.txt": "pit\ndent\n"},
    "severstal": {"train_images/a.png": IMAGE, "train.csv": TABLE, "split.csv": "ImageId,fold\na.png,0\n"},
}
"""A small source of each kind."""

ODD_TEXTS = (
    *(
        "",
        " ",
        "-1",
        "0",
        "30",
        "0.5",
        "1e7",
        "1e999",
        "nan",
        "-inf",
        "9" * 400,
        "1_0",
        "2\n\n3",
        "\x7f",
        "\ud7ff",
        "%00",
    ),
    *(
        "../../up",
        "/etc/passwd",
        "C:\\a.png",
        "a",
        "a.png",
        "&",
        "<x>",
        "[",
        ":",
        "- - -",
        "*a",
        "&a [*a]",
        "!!python/x",
    ),
    *("5,5;" * 5_000, "5,5;5,5;900,5", "0, " * 9_999 + "80", "80", "1, 2, 3", "1e5", "30.0"),
)
DEEP = "very deep"  # stands for 900 lists within each other
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, [[]], [{}], {"a": None}, [None], -1, 0, 1, 2.5, 1e7, math.nan, math.inf, 10**400, DEEP),
    *([1], [1, 2], [1, "2"], [[1, 2], [3]], [[1e9, 1e9]] * 3, [[1, 1], [1, 1], [1, 1]], [0] * 9_999, *ODD_TEXTS),
)


def mutated_json(content: bytes, luck: random.Random) -> bytes:
    """A value replaced by an odd one or by another value of the document, or taken out."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        one = waiting.pop()
        inside = list(one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ())
        places += [(one, key) for key, _ in inside]
        waiting += [value for _, value in inside]
    parent, key = luck.choice(places)
    if luck.random() < 0.15:
        del parent[key]
    else:
        other, there = luck.choice(places)
        other_value = json.loads(json.dumps(other[there]))
        parent[key] = other_value if luck.random() < 0.2 else luck.choice(ODD_VALUES)
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 900 + "]" * 900).encode()


def mutated_xml(content: bytes, luck: random.Random) -> bytes:
    """An attribute, text or tag replaced, or an element doubled or taken out."""
    root = ElementTree.fromstring(content)
    elements = list(root.iter())
    one, how = luck.choice(elements), luck.randrange(8)
    text = re.sub("[^\t\n -\ufffd]", "", luck.choice(ODD_TEXTS))
    if how == 0:
        one.tag = luck.choice(elements).tag
    elif how == 1 and len(one):
        one.remove(luck.choice(list(one)))
    elif how == 2:
        one.extend(copy.deepcopy([luck.choice(elements)]))
    elif one.attrib:
        one.set(luck.choice(list(one.attrib)), text)
    else:
        one.text = text
    return ElementTree.tostring(root)


def mutated_bytes(content: bytes, luck: random.Random) -> bytes:
    """A word or number replaced, bytes changed, or the end cut off."""
    place, how = luck.randrange(len(content)), luck.randrange(4)
    if how == 0:
        return content[:place]
    if how == 1:
        return content[:place] + luck.randbytes(luck.randrange(1, 9)) + content[place + luck.randrange(4) :]
    token = luck.choice(list(re.finditer(rb"[\w.]+|[^\w.]+", content)))
    return content[: token.start()] + luck.choice(ODD_TEXTS).encode() + content[token.end() :]


def mutated(files: dict[str, bytes], luck: random.Random) -> dict[str, bytes]:
    """One file changed, rarely two, and images more rarely than labels."""
    changed = dict(files)
    for _ in range(luck.choice((1, 1, 1, 2))):
        name = luck.choice([name for name in changed if not name.endswith(".png") or luck.random() < 0.1] or ["a.png"])
        suffix, content = Path(name).suffix, changed.get(name, IMAGE)
        mutate = {".json": mutated_json, ".xml": mutated_xml}.get(suffix, mutated_bytes)
        if luck.random() < 0.1:
            mutate = mutated_bytes
        with contextlib.suppress(ValueError, SyntaxError, IndexError, RecursionError):  # it was broken already
            changed[name] = mutate(content, luck)
    return changed


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def zipped(files: dict[str, bytes | str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Imports a source, and returns the error, or "". Afterwards there is no file but in the source and the output."""

    def run(src: Path, choices: Choices = GOING_ON, kind: str | None = None) -> str:
        before = {path for path in tmp_path.rglob("*") if src not in (path, *path.parents)}
        start, message = time.monotonic(), ""
        try:
            import_labels(src, tmp_path / "out", choices, kind=kind)
        except DefectsegError as error:
            message = str(error)
            assert str(src) in message
            assert not (tmp_path / "out").exists()
        assert time.monotonic() - start < LONGEST_S
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert {path for path in tmp_path.rglob("*") if src not in (path, *path.parents)} == before
        return message

    yield run
    assert not (tmp_path.parent / "up").exists()


def test_there_is_a_sound_source_of_each_kind(tmp_path: Path) -> None:
    found = set()
    for name, files in SEEDS.items():
        src = write(tmp_path / name, files)
        try:
            found.add(recognise(LabelSource(src, src))[0].name)
        except DefectsegError:
            continue
        assert import_labels(src, tmp_path / f"{name} out", GOING_ON).images == 1
    assert found == {kind.name for kind in KINDS}


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_are_imported_or_named(attempt: Callable[..., str], tmp_path: Path, name: str) -> None:
    luck = random.Random(name)
    files = {file: content.encode() if isinstance(content, str) else content for file, content in SEEDS[name].items()}
    for _ in range(40):
        src = write(tmp_path / "src", mutated(files, luck))
        attempt(src)
        shutil.rmtree(src)


def test_mutated_archives_are_imported_or_named(attempt: Callable[..., str], tmp_path: Path) -> None:
    luck = random.Random(17)
    src = tmp_path / "labels.zip"
    for number, name in enumerate(list(SEEDS) * 5):
        content = bytearray(zipped(SEEDS[name]))
        for _ in range(luck.randrange(1, 6)):
            content[luck.randrange(len(content))] = luck.randrange(256)
        src.write_bytes(content[: luck.randrange(len(content))] if number % 4 == 0 else content)
        attempt(src)


def hostile(how: str) -> bytes:
    """An archive of CVAT that is wrong in one way."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", CVAT)
        if how == "link":
            entry = zipfile.ZipInfo("images/a.png")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
        elif how == "file as a folder":
            archive.writestr("images", "")
            archive.writestr("images/a.png", IMAGE)
        elif how == "long name":
            archive.writestr("x" * 300, "")
        else:
            archive.writestr("images/a.png", IMAGE)
        if how == "beyond the disk":
            archive.filelist[1].file_size = 2**50
        elif how == "more than it says":
            archive.filelist[0].file_size = 10
        elif how == "unknown compression":
            archive.filelist[0].compress_type = 97
    content = stream.getvalue()
    if how == "encrypted":  # bit 0 of the flags of each entry
        content = re.sub(rb"(PK\x03\x04..|PK\x01\x02....).", lambda at: at[1] + b"\x01", content, flags=re.DOTALL)
    if how == "no name":
        content = content.replace(b"annotations.xml", b"\x00nnotations.xml")
    if how == "name that is not UTF-8":  # although the flags say so
        content = re.sub(rb"(PK\x03\x04...|PK\x01\x02.....).", lambda at: at[1] + b"\x08", content, flags=re.DOTALL)
        content = content.replace(b"images/a", b"images/\xff")
    return content[:-30] if how == "cut off" else content


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("link", "not a JPEG"),
        ("file as a folder", "images/a.png and another entry: a file where a folder is needed"),
        ("long name", "too long"),
        ("beyond the disk", "GiB needed"),
        ("more than it says", "damaged"),
        ("unknown compression", "damaged"),
        ("encrypted", "encrypted"),
        ("no name", "damaged"),
        ("name that is not UTF-8", "damaged"),
        ("cut off", "no whole ZIP archive"),
    ],
)
def test_hostile_archives_are_refused_by_name(
    attempt: Callable[..., str], tmp_path: Path, how: str, expected: str
) -> None:
    (tmp_path / "labels.zip").write_bytes(hostile(how))
    assert expected in attempt(tmp_path / "labels.zip", Choices(boxes="ignore"))


@pytest.mark.parametrize("prefix", ["", "my export/", "../../up/", "/up/", "C:/up/", "a/../../b/", "b\\c/"])
def test_archives_are_read_whatever_their_folders_are_called_and_stay_inside(
    attempt: Callable[..., str], tmp_path: Path, prefix: str
) -> None:
    (tmp_path / "labels.zip").write_bytes(
        zipped({f"{prefix}{name}": content for name, content in SEEDS["cvat"].items()})
    )
    assert attempt(tmp_path / "labels.zip") == ""


def test_names_of_an_old_code_page_are_read(attempt: Callable[..., str], tmp_path: Path) -> None:
    content = zipped(SEEDS["supervisely"]).replace(b"a.png", b"\x84.png")  # cp437, as Windows writes it
    (tmp_path / "labels.zip").write_bytes(content)
    assert attempt(tmp_path / "labels.zip") == ""


@pytest.mark.parametrize(
    ("files", "src", "expected"),
    [
        ({"inner.zip": zipped(SEEDS["cvat"])}, "outer.zip", "inner.zip: an archive within"),
        ({"inner.zip": zipped(SEEDS["cvat"])}, "folder", "inner.zip: an archive within"),
        ({"a.png": IMAGE}, "folder/a.png", "no labels of a known kind"),
        ({"a.rar": b"Rar!"}, "folder/a.rar", "no whole ZIP archive"),
        ({".hidden": ""}, "folder", "no labels of a known kind"),
        ({"a.png": IMAGE, "annotations.xml": CVAT[:-9]}, "folder", "annotations.xml: not valid XML"),
        ({"a.png": IMAGE, "a.json": "{"}, "folder", "a.json: not valid JSON"),
        ({"a.png": IMAGE, "a.xml": "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>"}, "folder", "document type"),
        ({"a.png": IMAGE, "a.xml": "<?xml version='1.0' encoding='nowhere'?><a/>"}, "folder", "no labels of a known"),
        ({"x/y.txt": ""}, "nowhere", "no such file or folder"),
        ({"x/y.txt": ""}, "x" * 300, "no such file or folder"),
        (SEEDS["cvat"] | {"ann/a.png.json": json.dumps(SUPERVISELY)}, "folder", "may be "),
        ({"a.xml": "<annotation><object><polygon><pt/></polygon></object></annotation>"}, "folder", "LabelMe"),
    ],
)
def test_sources_that_cannot_be_read_say_what_they_are(
    attempt: Callable[..., str], tmp_path: Path, files: dict[str, bytes | str], src: str, expected: str
) -> None:
    if src.endswith("outer.zip"):
        (tmp_path / src).write_bytes(zipped(files))
    else:
        write(tmp_path / "folder", files)
    assert expected in attempt(tmp_path / src)


@pytest.mark.parametrize(
    "name", ["with blanks in it", "Prüfstück é", "e\u0301 decomposed", "100% (1) [2] {x}", "-x", "'q\"q'"]
)
def test_folders_may_have_any_name(attempt: Callable[..., str], tmp_path: Path, name: str) -> None:
    assert attempt(write(tmp_path / name, SEEDS["cvat"])) == ""


def test_a_pipe_among_the_labels_is_not_waited_for(attempt: Callable[..., str], tmp_path: Path) -> None:
    src = write(tmp_path / "src", SEEDS["cvat"])
    os.mkfifo(src / "b.xml")
    assert "b.xml: cannot be read" in attempt(src)


def test_a_folder_that_cannot_be_listed_is_named(
    attempt: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = write(tmp_path / "src", SEEDS["cvat"])
    real = os.scandir

    def scandir(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name == "images":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "images: the folder cannot be listed" in attempt(src)


def test_names_of_images_that_cannot_be_ids_are_refused(attempt: Callable[..., str], tmp_path: Path) -> None:
    src = write(tmp_path / "src", {os.fsdecode(b"images/\xff.png"): IMAGE, "annotations.xml": CVAT})
    assert "%FF.png" in attempt(src)
