import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.errors import LabelError
from defectseg.evaluate.metrics import PairCounts
from defectseg.evaluate.score import Scored, score_images
from defectseg.image import rle

Call = Callable[..., Any]

SIZE_HW = (6, 10)
STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them


def _box(left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def _image(*parts: tuple[NDArray[np.bool_], int]) -> NDArray[np.uint8]:
    image = np.full(SIZE_HW, STEEL, np.uint8)
    for mask, level in parts:
        image[mask] = level
    return image


@pytest.fixture
def folder(tmp_path: Path, write_data: Call) -> DataFolder:
    """Three images: one whose pit is labelled a column aside, one with a false crack, one clean with subfolder."""
    images = {
        "a.png": _image((_box(2, 1, 3, 4), PIT)),
        "b.png": _image((_box(0, 0, 2, 2), CRACK), (_box(5, 0, 2, 2), BOTH)),
        "north/c.png": _image(),
    }
    rows = [f"a.png,1,{rle.encode(_box(3, 1, 3, 4))}", f"b.png,1,{rle.encode(_box(5, 0, 2, 2))}"]
    return open_data_folder(write_data(tmp_path / "data", images, rows, ["pits", "cracks"]))


def _score(runtime: Any, folder: DataFolder, image_ids: Any = None, **options: Any) -> Any:
    return score_images(runtime, folder, image_ids or folder.image_ids, runtime.settings, **options)


def test_thresholds_of_the_caller_count_on_the_images_asked_for(folder: DataFolder, grey_runtime: Call) -> None:
    runtime = grey_runtime()
    thresholds = runtime.settings.thresholds.model_copy(update={"min_area_px": (5, 5)})
    runtime.settings = replace(runtime.settings, thresholds=thresholds)

    score = _score(runtime, folder, ["b.png"])

    assert score.counts == {("b.png", 1): PairCounts(4, 0, 0), ("b.png", 2): PairCounts(0, 0, 0)}


def test_visitors_see_pixels_answer_result_and_truth_of_each_image(folder: DataFolder, grey_runtime: Call) -> None:
    seen: list[str] = []

    def look(scored: Scored) -> None:
        seen.append(scored.image_id)
        if scored.image_id == "a.png":
            np.testing.assert_array_equal(scored.pixels, _image((_box(2, 1, 3, 4), PIT)))
            np.testing.assert_array_equal(scored.masks[0], _box(2, 1, 3, 4))
            np.testing.assert_array_equal(scored.truth[0], _box(3, 1, 3, 4))
            assert scored.answer is not None
            np.testing.assert_allclose(scored.answer.gate, [0.9, 0.1])
            assert not scored.ignore.any()

    visitors = (look, lambda scored: seen.append(scored.image_id))
    _score(grey_runtime(), folder, visitors=visitors, keep_answers=True)

    assert sorted(seen) == [name for name in folder.image_ids for _ in range(2)]


def test_as_many_images_are_answered_at_once_as_the_runtime_takes(folder: DataFolder, grey_runtime: Call) -> None:
    runtime, together = grey_runtime(), threading.Barrier(3, timeout=20)
    runtime.parallel = 3
    runtime.before = lambda call: together.wait() and None  # passes only where three images wait at the same time

    assert len(_score(runtime, folder).counts) == 6


def test_a_label_beyond_its_image_stops_the_scoring(tmp_path: Path, write_data: Call, grey_runtime: Call) -> None:
    folder = open_data_folder(write_data(tmp_path, {"a.png": _image()}, ["a.png,1,1 66"], ["pits", "cracks"]))

    with pytest.raises(LabelError, match=r"a\.png, ClassId 1: pair 1 \('1 66'\) ends beyond the last pixel 60"):
        _score(grey_runtime(), folder)
