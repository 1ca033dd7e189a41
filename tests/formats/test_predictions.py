import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import open_data_folder
from defectseg.data.table import read_label_table
from defectseg.errors import DataError, LabelError, OutputExistsError
from defectseg.formats.data_import import import_labels
from defectseg.formats.labels import Choices
from defectseg.formats.predictions import predictions_to_coco
from defectseg.formats.submission import export_submission
from defectseg.image.find import find_images
from defectseg.predict.predict import predict
from defectseg.predict.tables import OutputChoice

Make = Callable[..., Path]

STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them


def sheet(*boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """Steel of 40 x 60 with boxes: left, top, right, bottom, grey level."""
    image = np.full((40, 60), STEEL, np.uint8)
    image[-1] = STEEL + 10
    for left, top, right, bottom, level in boxes:
        image[top:bottom, left:right] = level
    return image


TWO_PITS = ((2, 2, 12, 8, PIT), (2, 20, 8, 30, PIT))
RING = ((30, 5, 50, 25, CRACK), (38, 13, 42, 17, STEEL))


@pytest.fixture
def predicted(
    tmp_path: Path,
    write_image: Make,
    write_model: Make,
    grey_runtime: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Make:
    """Predicts sheets and gives the output folder; None makes a broken image."""

    def run(sheets: dict[str, NDArray[np.uint8] | None], **options: Any) -> Path:
        made = grey_runtime()
        monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *asked, workers: (made, made.info))
        for name, pixels in sheets.items():
            path = write_image(tmp_path / "images" / name, sheet() if pixels is None else pixels)
            if pixels is None:
                path.write_bytes(b"\x89PNG")
        images = find_images([tmp_path / "images"])
        predict(write_model(tmp_path / "model.safetensors"), images, tmp_path / "out", **options)
        return tmp_path / "out"

    return run


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_region_becomes_an_outline_with_its_score_and_clean_images_are_listed(
    tmp_path: Path, predicted: Make
) -> None:
    marks = (*TWO_PITS, *RING, (2, 35, 6, 38, BOTH))
    root = predicted(
        {"line 1/a.png": sheet(*marks), "b.png": sheet(), "broken.png": None}, choice=OutputChoice(mm_per_px=(0.5, 0.8))
    )
    steps: list[tuple[int, int]] = []
    report = predictions_to_coco(
        root, tmp_path / "fix.json", progress=lambda done, of, text="": steps.append((done, of))
    )
    assert steps == [(1, 0), (2, 0)]
    document = written(tmp_path / "fix.json")
    assert [one["file_name"] for one in document["images"]] == ["b.png", "line 1/a.png"]
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "pits"), (2, "cracks")]
    assert [
        (one["image_id"], one["category_id"], one["bbox"], one["area"], one["score"]) for one in document["annotations"]
    ] == [
        (2, 1, [2, 2, 10, 6], 60, 0.9),
        (2, 1, [2, 20, 6, 10], 60, 0.9),
        (2, 1, [2, 35, 4, 3], 12, 0.6),
        (2, 2, [30, 5, 20, 20], 384, 0.8),
        (2, 2, [2, 35, 4, 3], 12, 0.7),
    ]
    assert all(len(one["segmentation"]) == 1 for one in document["annotations"])
    assert (report.images, report.masks, report.class_names) == (2, 2, ("pits", "cracks"))
    lost = {loss.kind: loss.count for loss in report.lost}
    assert lost == {"unreadable_images": 1, "hole_px": 16, "simplified": 1}


@pytest.mark.parametrize("run_lengths", [False, True])
def test_file_can_be_imported_once_corrected(tmp_path: Path, predicted: Make, run_lengths: bool) -> None:
    y, x = np.mgrid[:40, :60]
    disc = (y - 20) ** 2 + (x - 30) ** 2 < 15**2
    image = sheet(*TWO_PITS)
    image[disc] = CRACK
    root = predicted({"line 1/a.png": image, "b.png": sheet()})
    told = predictions_to_coco(root, tmp_path / "fix.json", run_lengths=run_lengths)
    assert [loss.kind for loss in told.lost] == ([] if run_lengths else ["simplified"])
    with pytest.raises(DataError, match="1 of 2 images have no label"):  # has anybody looked at b.png?
        import_labels(tmp_path / "fix.json", tmp_path / "labels", Choices(tmp_path / "images"))
    choices = Choices(tmp_path / "images", unlabelled="clean")
    report = import_labels(tmp_path / "fix.json", tmp_path / "labels", choices)
    assert ([one.name for one in report.classes], report.sound_images) == (["pits", "cracks"], 1)
    assert {loss.kind: loss.count for loss in report.lost} == {"score": 3, "united": 1}
    masks, _ = open_data_folder(tmp_path / "labels").masks_of("line 1/a.png", (40, 60))
    np.testing.assert_array_equal(masks[0], image == PIT)
    if run_lengths:
        np.testing.assert_array_equal(masks[1], disc)
    assert (masks[1] & disc).sum() / (masks[1] | disc).sum() > 0.95


def test_a_list_chooses_the_images_and_may_name_no_stranger(tmp_path: Path, predicted: Make) -> None:
    root = predicted({name: sheet(*TWO_PITS) for name in ("a.png", "b.png", "c.png")})
    listed = tmp_path / "to_label.csv"
    listed.write_text("ImageId,change\nc.png,only A\na.png,only B\n")
    report = predictions_to_coco(root, tmp_path / "fix.json", only=listed)
    assert report.images == 2
    assert [one["file_name"] for one in written(tmp_path / "fix.json")["images"]] == ["a.png", "c.png"]
    listed.write_text("ImageId\nc.png\nz.png\n")
    with pytest.raises(DataError, match=r"has no z\.png, which .*to_label\.csv lists"):
        predictions_to_coco(root, tmp_path / "other.json", only=listed)
    assert not (tmp_path / "other.json").exists()


def test_edited_tables_do_not_matter_and_a_folder_without_regions_gives_no_scores(
    tmp_path: Path, predicted: Make
) -> None:
    root = predicted({"a.png": sheet(*TWO_PITS)}, choice=OutputChoice(("rle",)))
    for table in root.glob("*.csv"):
        table.write_text("edited;in;a;spreadsheet")
    predictions_to_coco(root, tmp_path / "coco.json")
    annotations = written(tmp_path / "coco.json")["annotations"]
    assert [one["bbox"] for one in annotations] == [[2, 2, 10, 6], [2, 20, 6, 10]]
    assert all("score" not in one for one in annotations)


def test_what_cannot_be_written_is_refused_with_what_to_do_and_leaves_nothing(tmp_path: Path, predicted: Make) -> None:
    root = predicted({"a.png": sheet(*TWO_PITS)}, choice=OutputChoice(("masks", "regions")))
    with pytest.raises(DataError, match=r"without predictions\.csv.*rle among the outputs"):
        predictions_to_coco(root, tmp_path / "fix.json")
    run = written(root / "run.json")
    (root / "run.json").write_text(json.dumps(run | {"status": "interrupted"}))
    with pytest.raises(DataError, match=r"interrupted.*again"):
        predictions_to_coco(root, tmp_path / "fix.json")
    (tmp_path / "fix.json").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"fix\.json: exists"):
        predictions_to_coco(root, tmp_path / "fix.json")
    assert (tmp_path / "fix.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (
            "ImageId,EncodedPixels,ClassId\nb.png,1 2400,0\na.png,1 2400,0\n",
            "ImageId,EncodedPixels,ClassId\nb.png,,1\nb.png,,2\na.png,PIT,1\na.png,,2\n",
        ),
        (
            "EncodedPixels,ImageId_ClassId\n,a.png_2\n,a.png_1\n,b.png_1\n,b.png_2\n",
            "EncodedPixels,ImageId_ClassId\n,a.png_2\nPIT,a.png_1\n,b.png_1\n,b.png_2\n",
        ),
    ],
)
def test_submission_has_the_rows_order_and_columns_of_the_sample(
    tmp_path: Path, predicted: Make, sample: str, expected: str
) -> None:
    root = predicted({"a.png": sheet((2, 2, 12, 8, PIT)), "b.png": sheet(), "c.png": sheet()})
    (tmp_path / "sample.csv").write_text(sample)
    report = export_submission(root, tmp_path / "sample.csv", tmp_path / "out.csv")
    (pit,) = read_label_table(root / "predictions.csv").rles["a.png"].values()
    assert (tmp_path / "out.csv").read_text() == expected.replace("PIT", pit)
    assert (report.images, report.rows, report.masks, report.unlisted) == (2, 4, 1, ("c.png",))


@pytest.mark.parametrize(
    ("sample", "error", "told"),
    [
        ("ImageId,ClassId,EncodedPixels\na.png,0,\nz.png,0,\n", DataError, r"1 of the 2 images .*z\.png"),
        ("ImageId,ClassId,EncodedPixels\na.png,0,\nbroken.png,0,\n", DataError, r"broken\.png"),
        ("ImageId,ClassId,EncodedPixels\na.png,2,\n", DataError, r"no row for a\.png with ClassId 1"),
        ("ImageId,ClassId,EncodedPixels\na.png,3,\n", LabelError, "line 2: ClassId '3'"),
        ("ImageId,ClassId,EncodedPixels\n", LabelError, "no row"),
        ("ImageId,ClassId,EncodedPixels\na.png,0,\na.png,1,\n", LabelError, "two of one image"),
        ("image,class,rle\na.png,1,\n", LabelError, "has the columns image, class, rle"),
    ],
)
def test_submission_that_would_lose_something_is_refused(
    tmp_path: Path, predicted: Make, sample: str, error: type[Exception], told: str
) -> None:
    root = predicted({"a.png": sheet((2, 2, 12, 8, PIT)), "broken.png": None})
    (tmp_path / "sample.csv").write_text(sample)
    with pytest.raises(error, match=told):
        export_submission(root, tmp_path / "sample.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
