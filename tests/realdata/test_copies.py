"""The search for copies and strips on real steel. The benchmark measures more."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.check.check import check_data_folder
from defectseg.copies.descriptors import Descriptors, describe, describe_all, turned
from defectseg.copies.find import find_copies
from defectseg.copies.strips import find_neighbours
from defectseg.data.folder import open_data_folder
from defectseg.data.split import divide, find_related
from defectseg.formats.data_import import ImportReport
from defectseg.image import read

Image = NDArray[np.uint8]

# Looked at, one by one: the same patch of steel each time, in another light, moved by a few pixels, or turned.
TRUE_COPIES = {
    ("In_188.png", "In_210.png"),
    ("In_235.png", "In_245.png"),
    ("Pa_101.png", "Pa_105.png"),
    ("Sc_232.png", "Sc_247.png"),
}


@pytest.fixture(scope="module")
def steel(realdata: Path) -> tuple[list[Image], Descriptors]:
    """Every sixth picture of neu900, and their descriptors."""
    paths = sorted((realdata / "neu900/images").iterdir())[::6]
    return [read.decode(path).pixels for path in paths], describe_all(paths)[0]


def jpeg(image: Image, quality: int) -> Image:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def test_only_true_copies_and_no_faults_are_found_in_neu900(neu: tuple[Path, ImportReport]) -> None:
    report = check_data_folder(neu[0])
    assert {(pair.image, pair.other) for pair in report.duplicates} == TRUE_COPIES
    assert {pair.turn for pair in report.duplicates if pair.image != "Sc_232.png"} == {"0"}
    assert report.faults == ()


@pytest.mark.parametrize(
    ("change", "turn"),
    [
        (lambda image: turned(image, "180"), "180"),
        (lambda image: turned(image, "mirror+90"), "mirror+90"),
        (lambda image: jpeg(image, 50), "0"),
        (lambda image: cv2.convertScaleAbs(image, alpha=1.2), "0"),
        (lambda image: cv2.resize(image, (184, 184), interpolation=cv2.INTER_AREA), "0"),
        (lambda image: jpeg(turned(image, "270"), 75), "270"),
    ],
    ids=["180", "mirror+90", "JPEG 50", "brighter", "smaller", "270 and JPEG 75"],
)
def test_changed_copies_of_real_steel_are_found(
    steel: tuple[list[Image], Descriptors], change: Callable[[Image], Image], turn: str
) -> None:
    pictures, descriptors = steel
    changed = Descriptors(len(pictures))
    for index, picture in enumerate(pictures):
        changed[index] = describe(change(picture))
    copies = find_copies(changed, descriptors)
    own = {copy.first: copy.turn for copy in copies if copy.first == copy.second}
    assert len(own) >= 0.99 * len(pictures)
    assert set(own.values()) == {turn}
    assert len(copies) - len(own) <= 0.01 * len(pictures)


def test_severstal_frames_that_follow_one_another_share_a_fold_and_classes_are_shared_out(realdata: Path) -> None:
    """Some twenty rows at the foot of the one are at the head of the other; they are the only such pair here."""
    folder = open_data_folder(realdata / "severstal")
    related = find_related(folder)
    assert set(related.neighbours) == {("00031f466.jpg", "69e5aff01.jpg")}
    assert related.copies == frozenset()
    fold_of = divide(folder, related, folds=3, seed=0)
    assert fold_of["00031f466.jpg"] == fold_of["69e5aff01.jpg"]
    for class_id, images_of_class in ((1, 15), (2, 9), (3, 25), (4, 13)):
        counts = np.bincount([fold_of[i] for i in folder.image_ids if class_id in folder.classes_of(i)], minlength=3)
        assert counts.sum() == images_of_class
        assert np.ptp(counts) <= 3


def test_halves_of_severstal_frames_are_found_to_be_of_one_strip(realdata: Path) -> None:
    """Halves of a frame are like frames that follow one another without a common row."""
    paths = sorted((realdata / "severstal" / "train_images").iterdir())
    pictures = [read.decode(path).pixels for path in paths]
    lit = [picture for picture in pictures if float((picture.mean(axis=0) >= 12).mean()) > 0.7]
    descriptors = Descriptors(2 * len(lit))
    for index, picture in enumerate(lit):
        descriptors[2 * index], descriptors[2 * index + 1] = describe(picture[:128]), describe(picture[128:])
    found = find_neighbours(descriptors).keys()
    own = {pair for pair in found if pair[0] // 2 == pair[1] // 2}
    assert len(own) > 0.7 * len(lit)
    assert len(found - own) <= 3
