import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.data.folder import NOT_LABELLED_NAME, open_data_folder
from defectseg.errors import DataError, LabelError
from defectseg.formats.data_import import import_labels
from defectseg.formats.label_studio import paint_brush
from defectseg.formats.labels import Choices

Make = Callable[..., Path]
HW = (4, 10)
LEFT_HALF = [[0, 0], [50, 0], [50, 100], [0, 100]]
LEFT_HALF_RLE = "1 20"
# Eight pixels of one row: 32 values of 8 bits, whose lengths have 3, 4, 8 or 16 bits. The first two pixels are 0 (one
# run of 8 equal values), the next is 10, 20, 30, 40 (four values that follow one another), the others are 255.
BRUSH_BITS = (
    f"{32:032b}" + f"{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16)),
    "1" + "00" + f"{7:03b}" + f"{0:08b}",
    "0" + "00" + f"{3:03b}" + "".join(f"{value:08b}" for value in (10, 20, 30, 40)),
    "1" + "01" + f"{15:04b}" + f"{255:08b}",
    "1" + "10" + f"{3:08b}" + f"{255:08b}",
)


def as_bytes(*bits: str) -> list[int]:
    text = "".join(bits)
    return [int(text[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(text), 8)]


def result(kind: str = "polygonlabels", label: str | None = "crack", **value: Any) -> dict[str, Any]:
    value = {**(value or {"points": LEFT_HALF}), **({} if label is None else {kind: [label]})}
    size = {"original_width": HW[1], "original_height": HW[0], "image_rotation": 0}
    return {"id": "r1", "type": kind, "from_name": "label", "to_name": "image", "value": value, **size}


def annotation(*results: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "result": list(results), "was_cancelled": False, "created_at": "2024-01-01T10:00:00Z", **more}


def task(number: int, *annotations: Any, image: str = "/data/upload/1/{}.png", **more: Any) -> dict[str, Any]:
    name = image.format("abcdefg"[number])
    return {"id": number, "annotations": list(annotations), "data": {"image": name}, "drafts": [], **more}


@pytest.fixture
def export(tmp_path: Path, write_image: Make) -> Make:
    """Writes an export, beside images of 4 x 10 px."""

    def write(tasks: Any, *images: str) -> Path:
        for image in images or ("b.png",):
            write_image(tmp_path / "src" / image, HW)
        (tmp_path / "src/project-1.json").write_text(json.dumps(tasks))
        return tmp_path / "src"

    return write


def rles(root: Path) -> dict[str, dict[int, str]]:
    return {image_id: dict(of) for image_id, of in open_data_folder(root).table.rles.items()}


def kinds(report: Any) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


def brush(*, alpha: int = 255) -> list[int]:
    """The left half, in Label Studio's run-lengths: in each row 20 values that are `alpha` and 20 that are 0."""
    header = f"{4 * HW[0] * HW[1]:032b}" + f"{7:05b}" + f"{7:04b}" * 4
    return as_bytes(header, *(f"100{19:08b}{alpha:08b}100{19:08b}{0:08b}" for _ in range(HW[0])))


@pytest.mark.parametrize(
    ("results", "expected", "lost"),
    [
        ([result()], LEFT_HALF_RLE, {}),
        ([result(points=[[-30, 0], [50, 0], [50, 100], [-30, 100]])], LEFT_HALF_RLE, {"clipped": 1}),
        ([result("brushlabels", format="rle", rle=brush())], LEFT_HALF_RLE, {}),
        ([result("brushlabels", format="rle", rle=brush(alpha=1))], LEFT_HALF_RLE, {}),  # a soft edge is drawn, too
        ([result(), result("keypointlabels", x=9, y=9, width=1)], LEFT_HALF_RLE, {"other_shape": 1}),
        ([result(), {"type": "choices", "value": {"choices": ["bad"]}}], LEFT_HALF_RLE, {"other_shape": 1}),
    ],
)
def test_regions_are_painted(
    tmp_path: Path, export: Make, results: list[Any], expected: str, lost: dict[str, int]
) -> None:
    report = import_labels(export([task(1, annotation(*results))]), tmp_path / "out")
    assert report.kind == "label-studio"
    assert rles(tmp_path / "out") == {"b.png": {1: expected}}
    assert kinds(report) == lost


def test_brush_run_lengths_are_bits_of_repeated_and_of_single_values() -> None:
    assert paint_brush(as_bytes(*BRUSH_BITS), "x", (2, 4)).tolist() == [[False, False, True, True], [True] * 4]
    for damaged in (as_bytes(*BRUSH_BITS)[:-3], [], None, 7, "no", [256] * 30, [1.5] * 30, [-1] * 30):
        with pytest.raises(LabelError, match=r"x: .*damaged"):
            paint_brush(damaged, "x", (2, 4))
    with pytest.raises(LabelError, match="another image size"):
        paint_brush(as_bytes(*BRUSH_BITS), "x", (4, 4))


def test_one_task_alone_is_read_and_one_with_predictions_alone_is_told(tmp_path: Path, export: Make) -> None:
    assert import_labels(export(task(1, annotation(result()))), tmp_path / "out").images == 1
    with pytest.raises(DataError, match="Predictions and drafts do not count: submit"):
        import_labels(export([task(1, predictions=[{"result": [result()]}])]), tmp_path / "more")


def test_task_without_annotation_is_not_labelled_and_one_with_an_empty_result_is_sound(
    tmp_path: Path, export: Make
) -> None:
    tasks = [
        task(1, annotation(result())),
        task(2, annotation()),
        task(3, drafts=[{"result": [result()]}], predictions=[{"result": [result()]}]),
        task(4, annotation(result(), was_cancelled=True)),
        task(5),
    ]
    report = import_labels(export(tasks, *(f"{letter}.png" for letter in "bcdefg")), tmp_path / "out")
    assert (report.defect_images, report.sound_images, kinds(report)) == (1, 1, {"not_counted": 3})
    assert (tmp_path / "out" / NOT_LABELLED_NAME).read_text().split() == ["ImageId", "d.png", "e.png", "f.png", "g.png"]


def test_of_several_annotations_the_ground_truth_counts_else_the_newest(tmp_path: Path, export: Make) -> None:
    old = annotation(result(label="old"), updated_at="2024-01-05T10:00:00Z")
    new = annotation(result(label="new"), updated_at="2024-03-05T10:00:00Z")
    empty = annotation(updated_at="2024-04-05T10:00:00Z")
    true = {**old, "ground_truth": True}
    for number, (given, expected) in enumerate([([new, old], "new"), ([new, true], "old"), ([true, empty], "old")]):
        report = import_labels(export([task(1, *given)]), tmp_path / f"{number}")
        assert [one.name for one in report.classes] == [expected]
        assert kinds(report) == {"not_counted": 1}
    with pytest.raises(LabelError, match="task 1: the newest annotation is empty"):
        import_labels(export([task(1, new, empty)]), tmp_path / "out")
    sound = export([task(1, new, {**empty, "ground_truth": True})])
    with pytest.raises(DataError, match=r"classes: .*no label is of a class"):
        import_labels(sound, tmp_path / "out", Choices(unlabelled="clean"))
    report = import_labels(sound, tmp_path / "out", Choices(unlabelled="clean", classes=["crack"]))
    assert ([one.name for one in report.classes], report.sound_images) == (["crack"], 1)


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("/data/upload/1/23082be9-b.png", "23082be9-b.png"),
        ("/data/upload/1/23082be9-b.png", "b.png"),
        ("/data/local-files/?d=pictures/line%201/b.png", "line 1/b.png"),
        ("s3://bucket/pictures/b.png", "b.png"),
        ("https://host/pictures/b.png?token=x.y", "b.png"),
        ("/b", "b.png"),
    ],
)
def test_image_is_found_by_any_name(tmp_path: Path, export: Make, named: str, file: str) -> None:
    src = export([task(1, annotation(result()), image=named)], f"images/{file}")
    import_labels(src, tmp_path / "out")
    assert list(rles(tmp_path / "out").values()) == [{1: LEFT_HALF_RLE}]


def test_image_is_found_by_the_name_of_the_upload(tmp_path: Path, export: Make) -> None:
    src = export([task(1, annotation(result()), image="/image2", file_upload="e97d4735-0025.png")], "0025.png")
    import_labels(src, tmp_path / "out")
    assert list(rles(tmp_path / "out").values()) == [{1: LEFT_HALF_RLE}]


def test_boxes_stop_and_are_ignored_on_request(tmp_path: Path, export: Make) -> None:
    box = result("rectanglelabels", x=10, y=25, width=30, height=50, rotation=0)
    turned = result("rectanglelabels", x=80, y=0, width=50, height=10, rotation=90)  # 5 px down from 8, 0
    src = export([task(1, annotation(box, turned))])
    with pytest.raises(DataError, match=r"2 rectanglelabels.*polygonlabels.*boxes='ignore'"):
        import_labels(src, tmp_path / "out")
    report = import_labels(src, tmp_path / "out", Choices(boxes="ignore"))
    assert rles(tmp_path / "out") == {"b.png": {255: "6 2 10 2 14 2 29 4"}}
    assert kinds(report) == {"boxes": 2, "rotated": 1}
    ellipse = result("ellipselabels", x=50, y=50, radiusX=20, radiusY=25, rotation=90)  # 1 px and 2 px around 5, 2
    import_labels(export([task(1, annotation(ellipse))]), tmp_path / "ellipse", Choices(boxes="ignore"))
    assert rles(tmp_path / "ellipse") == {"b.png": {255: "17 8"}}
    mixed = export([task(1, annotation(result(), turned))])
    with pytest.raises(DataError, match="1 of 2 labels are boxes"):
        import_labels(mixed, tmp_path / "out2")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([task(1, annotation({"type": "choices", "value": {"choices": ["bad"]}}))], "holds 1 choices.*polygonlabels"),
        ([task(1, annotation(result("hypertextlabels", text="no")))], "holds 1 hypertextlabels"),
        ([task(1, annotation({**result(), "image_rotation": 90}))], "task 1, result 1.*image_rotation"),
        ([task(1, annotation(result(label=None)))], "task 1, result 1: has no label"),
        ([task(1, annotation(result("polygon", None, points=LEFT_HALF), result("labels")))], "result 1: has no label"),
        ([task(1, annotation(result(points=[["1", 2], [3, 4], [5, 6]])))], "task 1, result 1.*pairs of numbers"),
        ([task(1, annotation(result(points=[[9e5, 2], [3, 4], [5, 6]])))], "task 1, result 1.*far outside"),
        ([task(1, annotation(result("ellipselabels", x=1, y=None, radiusX=1, radiusY=1)))], "result 1.*numbers"),
        ([task(1, annotation(result("brushlabels", rle=[0, 0, 1])))], "task 1, result 1.*damaged"),
        ([{"id": 1, "annotation_id": 1, "image": "b.png", "label": []}], "entry 1 is .*not JSON-MIN"),
        ([{"id": 1, "data": {"image": "b.png"}, "completions": []}], "entry 1 is .*Label Studio 1.0 or later"),
        ([task(1, 17)], "task 1: its annotations"),
        ([{**task(1, annotation(result())), "data": {"image": ["a.png"]}}], "no image in .*task 1"),
        ([{**task(1, annotation(result())), "data": {"left": "a.png", "right": "b.png"}}], "task 1.*several images"),
        ([task(1, annotation(result())), 5], "entry 2 is 5"),
        ([task(1, annotation(result())), task(1)], "task 1 and .*task 1 both stand for"),
        ([task(1, annotation(result())), task(2, annotation({**result("keypointlabels", x=1)}))], "1 of 2 images"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, export: Make, given: Any, told: str) -> None:
    with pytest.raises(DataError, match=rf"src.*{told}"):
        import_labels(export(given, "b.png", "c.png"), tmp_path / "out")
