"""What every import does, whatever kind the labels are of; the sources here are CVAT's and Supervisely's."""

import csv
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from defectseg.data.folder import open_data_folder
from defectseg.errors import DataError, OutputExistsError, UsageError
from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices

HEIGHT, WIDTH = 6, 10


def box(label: str, left: int, top: int, right: int, bottom: int) -> str:
    """A polygon that covers whole pixels."""
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return f'<polygon label="{label}" points="{";".join(f"{x},{y}" for x, y in corners)}"/>'


def image(name: str, *shapes: str, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    return f'<image name="{name}" height="{size_hw[0]}" width="{size_hw[1]}">{"".join(shapes)}</image>'


PIT, DENT = box("pit", 0, 0, 2, 2), box("dent", 5, 1, 7, 4)


@pytest.fixture
def cvat(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes the labels, and a grey image for each unless it is there."""

    def write(*images: str, folder: str = "src", labels: tuple[str, ...] = ("pit", "dent")) -> Path:
        root = tmp_path / folder
        for text in images:
            path = root / "images" / text.split('"')[1]
            if not path.exists():
                write_image(path, (HEIGHT, WIDTH))
        named = "".join(f"<label><name>{label}</name></label>" for label in labels)
        meta = f"<meta><task><labels>{named}</labels></task></meta>"
        (root / "annotations.xml").write_text(f"<annotations>{meta}{''.join(images)}</annotations>")
        return root

    return write


def masks(out: Path, image_id: str, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> list[NDArray[np.bool_]]:
    """The mask of each class, then that of the ignored pixels."""
    found, ignored = open_data_folder(out).masks_of(image_id, size_hw)
    return [*found, ignored]


def pixels(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


PIT_PX, DENT_PX, NONE = pixels((0, 0, 2, 2)), pixels((5, 1, 7, 4)), pixels()


def losses(report: ImportReport) -> dict[str, int]:
    return {loss.kind: loss.count for loss in report.lost}


@pytest.mark.parametrize(
    ("choices", "names", "expected", "lost"),
    [
        ({}, ["pit", "dent"], [PIT_PX, DENT_PX, NONE], {}),
        ({"classes": ["dent", "pit"]}, ["dent", "pit"], [DENT_PX, PIT_PX, NONE], {}),
        ({"classes": ["pit=hole", "dent"]}, ["hole", "dent"], [PIT_PX, DENT_PX, NONE], {}),
        ({"classes": ["pit=dent", "dent"]}, ["dent"], [PIT_PX | DENT_PX, NONE], {"united": 1}),
        ({"classes": ["pit", "dent="]}, ["pit"], [PIT_PX, DENT_PX], {"dropped": 1}),
        ({"classes": ["pit", "dent="], "dropped": "sound"}, ["pit"], [PIT_PX, NONE], {"as_sound": 1}),
        ({"background": "dent"}, ["pit"], [PIT_PX, NONE], {"as_sound": 1}),
        ({"ignore": "dent"}, ["pit"], [PIT_PX, DENT_PX], {}),
    ],
)
def test_classes_are_ordered_renamed_united_and_dropped(
    cvat: Callable[..., Path],
    tmp_path: Path,
    choices: dict[str, Any],
    names: list[str],
    expected: list[NDArray[np.bool_]],
    lost: dict[str, int],
) -> None:
    report = import_labels(cvat(image("a.png", PIT, DENT)), tmp_path / "out", Choices(**choices))
    assert [one.name for one in report.classes] == names
    assert (tmp_path / "out/classes.txt").read_text().split() == names
    for mask, wanted in zip(masks(tmp_path / "out", "a.png"), expected, strict=True):
        assert (mask == wanted).all()
    assert losses(report) == lost
    assert report.classes[0].px == expected[0].sum()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["pit"], "leaves out dent"),
        (["pit", "dent", "crack"], "'crack' is no class"),
        (["pit", "dent", "pit"], "'pit' stands there twice"),
    ],
)
def test_classes_that_are_not_all_of_the_labels_are_refused(
    cvat: Callable[..., Path], tmp_path: Path, classes: list[str], expected: str
) -> None:
    with pytest.raises(UsageError, match=f"^classes: .*{expected}"):
        import_labels(cvat(image("a.png", PIT, DENT)), tmp_path / "out", Choices(classes=classes))


def test_marks_to_ignore_and_background_are_known_by_name_and_in_any_case(
    cvat: Callable[..., Path], tmp_path: Path
) -> None:
    shapes = (PIT, box("Ignore", 5, 1, 6, 4), box("_background_", 0, 5, 9, 6))
    report = import_labels(cvat(image("a.png", *shapes), labels=("pit", "Ignore", "_background_")), tmp_path / "out")
    assert [one.name for one in report.classes] == ["pit"]
    assert (masks(tmp_path / "out", "a.png")[1] == pixels((5, 1, 6, 4))).all()
    assert (report.ignored_px, losses(report)) == (3, {"as_sound": 1})


@pytest.mark.parametrize(
    ("shapes", "expected", "choices"),
    [
        (
            [PIT, box("ignore", 5, 1, 7, 4)],
            "6 px are marked to be ignored, but only 4 px.*ignore='ignore'",
            {"ignore": "ignore"},
        ),
        ([], "nothing is labelled in 1 images.*unlabelled='clean'", {"unlabelled": "clean"}),
        ([box("pit", 3, 3, 3, 3)], "covers no pixel of .*unlabelled='clean'", {"unlabelled": "clean"}),
        ([box("background", 0, 0, 9, 6)], "cover no pixel of any image.*unlabelled='clean'", {"unlabelled": "clean"}),
    ],
)
def test_what_can_hardly_be_meant_stops_and_names_the_way_on(
    cvat: Callable[..., Path], tmp_path: Path, shapes: list[str], expected: str, choices: dict[str, Any]
) -> None:
    src = cvat(image("a.png", *shapes))
    with pytest.raises(DataError, match=expected) as caught:
        import_labels(src, tmp_path / "out", Choices(boxes="ignore"))
    assert str(src) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    import_labels(src, tmp_path / "out", Choices(**choices))
    assert open_data_folder(tmp_path / "out").image_ids == ("a.png",)


def test_labels_without_an_image_and_unreadable_images_are_refused_or_skipped(
    cvat: Callable[..., Path], tmp_path: Path
) -> None:
    src = cvat(image("a.png", PIT), image("b.png", PIT), image("c.png", PIT))
    (src / "images/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 labels have no image: .*b\.png.*absent='skip'"):
        import_labels(src, tmp_path / "out")
    (src / "images/c.png").write_bytes((src / "images/c.png").read_bytes()[:-20])
    report = import_labels(src, tmp_path / "out", Choices(absent="skip"))
    assert (report.images, losses(report)) == (1, {"unreadable_images": 1})
    assert report.missing_images == ("b.png",)
    assert open_data_folder(tmp_path / "out").image_ids == ("a.png",)
    cvat(image("a.png", PIT), image("c.png", PIT))
    with pytest.raises(DataError, match=r"c\.png.*absent='skip'"):
        import_labels(src, tmp_path / "second")
    cvat(image("c.png", PIT))
    with pytest.raises(DataError, match=r"c\.png and all other labelled images are unreadable") as caught:
        import_labels(src, tmp_path / "second", Choices(absent="skip"))
    assert not caught.value.go_on  # nothing would be left


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_images_are_turned_as_pillow_displays_them_or_kept(
    cvat: Callable[..., Path], tmp_path: Path, orientation: int, suffix: str
) -> None:
    picture = Image.fromarray(np.arange(16 * 24, dtype=np.uint8).reshape(16, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "src/images").mkdir(parents=True)
    path = tmp_path / f"src/images/a.{suffix}"
    picture.save(path, exif=exif, quality=100)
    if suffix == "jpg":
        with Image.open(path) as opened:
            picture = Image.fromarray(np.asarray(opened))
    picture.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(picture))
    stored_hw, shown_hw = (16, 24), (shown.shape[0], shown.shape[1])
    for exif_choice, size_hw, image_id in (("keep", stored_hw, path.name), ("turn", shown_hw, "a.png")):
        src = cvat(image(path.name, box("pit", 1, 2, 4, 8), size_hw=size_hw))
        if orientation == 1:
            import_labels(src, tmp_path / exif_choice)
            continue
        with pytest.raises(DataError, match=rf"a\.{suffix}: has the EXIF orientation {orientation}.*exif='keep\|turn'"):
            import_labels(src, tmp_path / exif_choice)
        report = import_labels(src, tmp_path / exif_choice, Choices(exif=exif_choice))  # type: ignore[arg-type]
        assert losses(report) == ({"turned": 1} if exif_choice == "turn" else {})
        mask = masks(tmp_path / exif_choice, image_id, size_hw)[0]
        assert np.argwhere(mask).tolist() == [[y, x] for y in range(2, 8) for x in range(1, 4)]
    if orientation > 1:
        assert (tmp_path / "keep/train_images" / path.name).read_bytes() == path.read_bytes()
        turned = cv2.imread(str(tmp_path / "turn/train_images/a.png"), cv2.IMREAD_UNCHANGED)
        assert turned is not None
        assert np.abs(turned.astype(int) - shown).max() <= (1 if suffix == "jpg" else 0)  # two decoders of JPEG


def test_turned_images_never_overwrite_others(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.jpg", PIT), image("a.png", PIT))
    picture = Image.new("L", (WIDTH, HEIGHT))
    picture.getexif()[0x0112] = 3
    picture.save(src / "images/a.jpg", exif=picture.getexif())
    before = (src / "images/a.png").read_bytes()
    with pytest.raises(DataError, match="Rename one"):
        import_labels(src, tmp_path / "out", Choices(exif="turn"), kind="cvat", link=True)
    assert (src / "images/a.png").read_bytes() == before
    assert import_labels(src, tmp_path / "out", Choices(exif="keep"), kind="cvat").images == 2


def test_links_lead_to_the_images_and_not_into_an_archive(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT))
    import_labels(src, tmp_path / "linked", link=True)
    assert (tmp_path / "linked/train_images/a.png").resolve() == src / "images/a.png"
    with zipfile.ZipFile(tmp_path / "src.zip", "w") as archive:
        archive.write(src / "annotations.xml", "annotations.xml")
        archive.write(src / "images/a.png", "images/a.png")
    with pytest.raises(UsageError, match=r"^link: "):
        import_labels(tmp_path / "src.zip", tmp_path / "out", link=True)
    import_labels(tmp_path / "src.zip", tmp_path / "out", Choices(images=src / "images"), link=True)
    assert (tmp_path / "out/train_images/a.png").resolve() == src / "images/a.png"


def test_a_folder_that_holds_something_is_not_written_to(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT))
    with pytest.raises(OutputExistsError, match="not empty"):
        import_labels(src, src)
    (tmp_path / "out").mkdir()
    import_labels(src, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="not empty"):
        import_labels(src, tmp_path / "out")
    assert sorted(path.name for path in src.iterdir()) == ["annotations.xml", "images"]


def test_two_kinds_in_one_folder_are_asked_about(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT))
    shape = {"classTitle": "rust", "geometryType": "polygon", "points": {"exterior": [[1, 1], [3, 1], [3, 3]]}}
    document = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": [shape]}
    (src / "a.png.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"may be .*\(a\.png\.json has .*as='(supervisely\|cvat|cvat\|supervisely)'"):
        import_labels(src, tmp_path / "out")
    assert [one.name for one in import_labels(src, tmp_path / "1", kind="cvat").classes] == ["pit", "dent"]
    assert [one.name for one in import_labels(src, tmp_path / "2", kind="supervisely").classes] == ["rust"]
    with pytest.raises(UsageError, match=r"^as: 'crvat' is no kind"):
        import_labels(src, tmp_path / "3", kind="crvat")
    with pytest.raises(DataError, match="holds no labels of this kind"):
        import_labels(src / "annotations.xml", tmp_path / "3", kind="supervisely")


def test_images_may_lie_elsewhere_and_others_there_are_told(
    cvat: Callable[..., Path], tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    src = cvat(image("line%201/A.png", PIT))
    (src / "images/line%201/A.png").unlink()
    with pytest.raises(DataError, match=r"^images: "):
        import_labels(src, tmp_path / "out")
    write_image(tmp_path / "pool/line 1/a.PNG", (HEIGHT, WIDTH))
    write_image(tmp_path / "pool/line 2/a.PNG", (HEIGHT, WIDTH))
    report = import_labels(src, tmp_path / "out", Choices(images=tmp_path / "pool"))
    assert open_data_folder(tmp_path / "out").image_ids == ("a.PNG",)
    assert losses(report) == {"unlisted_images": 1}


def test_a_report_counts_images_regions_and_pixels(cvat: Callable[..., Path], tmp_path: Path) -> None:
    texts = [image("a.png", PIT, box("pit", 8, 4, 10, 6), DENT), image("b.png", PIT), image("c.png")]
    report = import_labels(cvat(*texts), tmp_path / "out", Choices(unlabelled="clean"))
    assert (report.images, report.defect_images, report.sound_images, report.not_labelled) == (3, 2, 1, 0)
    pit, dent = report.classes
    assert (pit.class_id, pit.images, pit.regions, pit.px) == (1, 2, 3, 12)
    assert (dent.class_id, dent.images, dent.regions, dent.px) == (2, 1, 1, 6)
    with (tmp_path / "out/train.csv").open() as handle:
        assert [(row["ImageId"], row["ClassId"]) for row in csv.DictReader(handle)] == [
            ("a.png", "1"),
            ("a.png", "2"),
            ("b.png", "1"),
        ]


def test_labels_of_another_size_are_refused(cvat: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\.xml: a\.png: the labels are for 20x12 px, but .* has 10x6"):
        import_labels(cvat(image("a.png", PIT, size_hw=(12, 20))), tmp_path / "out")


@pytest.mark.parametrize("tag", ["polygon", "box"])
def test_a_label_beside_its_image_does_not_make_the_image_sound(
    cvat: Callable[..., Path], tmp_path: Path, tag: str
) -> None:
    outside = {
        "polygon": box("pit", WIDTH + 2, 1, WIDTH + 5, 4),
        "box": f'<box label="pit" xtl="{WIDTH + 2}" ytl="1" xbr="{WIDTH + 5}" ybr="4"/>',
    }
    src = cvat(image("a.png", PIT), image("b.png", outside[tag]))
    expected = rf"annotations\.xml: b\.png: {tag} 1 covers no pixel of .*as sound"
    with pytest.raises(DataError, match=expected) as caught:
        import_labels(src, tmp_path / "out", Choices(boxes="ignore"))
    assert caught.value.go_on == {"unlabelled": "clean"}
    assert import_labels(src, tmp_path / "out", Choices(boxes="ignore", unlabelled="clean")).sound_images == 1


def test_labels_that_fit_no_image_do_not_make_all_images_sound(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT), image("b.png"))
    (src / "images/a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 labels have no image: a\.png") as caught:
        import_labels(src, tmp_path / "out", Choices(absent="skip", unlabelled="clean", classes=["pit", "dent"]))
    assert not caught.value.go_on  # all images would become sound


@pytest.mark.parametrize("choices", [{"background": "nix"}, {"ignore": "nix"}, {"sound": "good"}, {"unite": True}])
def test_options_that_fit_nothing_are_refused(
    cvat: Callable[..., Path], tmp_path: Path, choices: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(choices))}: "):
        import_labels(cvat(image("a.png", PIT)), tmp_path / "out", Choices(**choices))


def test_linked_folders_are_read_once(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT))
    (src / "images").rename(tmp_path / "elsewhere")
    (src / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(src)
    (src / "annotations.xml").rename(tmp_path / "elsewhere" / "annotations.xml")
    report = import_labels(src, tmp_path / "out", Choices(follow_links=True))
    assert (report.images, report.defect_images) == (1, 1)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the source", "in --images"])
@pytest.mark.parametrize("entry", ["images", "images/b.png"])
def test_links_that_lead_out_of_the_folder_are_left_out_and_told(
    cvat: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: str, elsewhere: bool
) -> None:
    src = cvat(image("a.png", PIT), image("b.png", PIT))
    folder = (src / "images").rename(tmp_path / "pictures").parent / "pictures" if elsewhere else src
    link = folder / entry.removeprefix("images/") if elsewhere else src / entry
    if elsewhere and entry == "images":
        folder, link = (tmp_path / "all"), tmp_path / "all" / "pictures"
        folder.mkdir()
        (tmp_path / "pictures").rename(link)
    link.rename(tmp_path / "secret")
    link.symlink_to(tmp_path / "secret")
    images = folder if elsewhere else None
    if entry == "images":
        with pytest.raises(DataError, match=r"No image|behind links"):
            import_labels(src, tmp_path / "out", Choices(images=images))
    else:
        report = import_labels(src, tmp_path / "out", Choices(images=images, absent="skip"))
        assert report.images == 1
        told = caplog.text + "".join(loss.message for loss in report.lost)
        assert "--follow-links" in told
        assert "secret" not in "".join(path.name for path in (tmp_path / "out").rglob("*"))
    assert import_labels(src, tmp_path / "all out", Choices(images=images, follow_links=True)).images == 2


def test_links_within_the_folder_are_followed(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT))
    (src / "images").rename(src / "store")
    (src / "images").symlink_to(src / "store")
    assert import_labels(src, tmp_path / "out").images == 1


def test_many_thousands_of_classes_are_refused_at_once(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(
        image("a.png", PIT), labels=[f"class {number}" for number in range(50_000)]
    )  # minutes if compared in pairs
    begin = time.monotonic()
    with pytest.raises(DataError, match="class names; expected 1 to 254"):
        import_labels(src, tmp_path / "out")
    assert time.monotonic() - begin < 30


def test_names_that_differ_by_case_alone_are_asked_about(cvat: Callable[..., Path], tmp_path: Path) -> None:
    src = cvat(image("a.png", PIT, box("Pit", 5, 1, 7, 4)), labels=("pit", "Pit"))
    with pytest.raises(DataError, match="differ by case alone: Pit, pit"):
        import_labels(src, tmp_path / "out")
    report = import_labels(src, tmp_path / "out", Choices(classes=["pit", "Pit=pit"]))
    assert [(one.name, one.px) for one in report.classes] == [("pit", 10)]


DYING_IMPORT = """
import os, pathlib, sys
from defectseg.formats import data_import
setattr(data_import, sys.argv[1], lambda *arguments, **options: os._exit(9))
data_import.import_labels(*map(pathlib.Path, sys.argv[2:]))
"""


@pytest.mark.parametrize("killed_at", ["recognise", "_write_tables"])
@pytest.mark.parametrize("exists", [False, True])
def test_the_import_after_a_killed_one_leaves_what_an_undisturbed_one_does(
    cvat: Callable[..., Path], tmp_path: Path, killed_at: str, exists: bool
) -> None:
    src = tmp_path / "src.zip"
    with zipfile.ZipFile(src, "w") as archive:
        for path in cvat(image("a.png", PIT)).rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "src"))
    out = tmp_path / "parent" / "out"
    if exists:
        out.mkdir(parents=True)
    command = [sys.executable, "-c", DYING_IMPORT, killed_at, str(src), str(out)]
    assert subprocess.run(command, check=False).returncode == 9
    assert list((tmp_path / "parent").rglob(".tmp-*"))
    import_labels(src, out)
    names = sorted(path.relative_to(out).as_posix() for path in (tmp_path / "parent").rglob("*") if path != out)
    assert names == ["classes.txt", "train.csv", "train_images", "train_images/a.png"]
