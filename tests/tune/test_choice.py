"""The figures, warnings and cross-validation of a choice of thresholds."""

import json

import numpy as np
import pytest

from defectseg.evaluate.metrics import PairCounts
from defectseg.evaluate.score import Scored
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.tune.choice import ThresholdSearch
from defectseg.tune.goals import MaxFalseAlarms, TargetRecall
from defectseg.tune.grid import GRID, Grid

HW = (40, 50)


class _Sheets:
    """Collects images of one class that show a defect of 20 x 20 px, predicted or not, with a gate."""

    def __init__(self, names: tuple[str, ...] = ("pits",)) -> None:
        self.search = ThresholdSearch(names, Grid(GRID.pixel, (0, 50, 100), GRID.gate))

    def add(self, count: int, *, gate: float, labelled: bool, predicted_px: int = 400, hidden: bool = False) -> None:
        for _ in range(count):
            probabilities = np.zeros((len(self.search.class_names), *HW), np.float32)
            truth = np.zeros(probabilities.shape, np.bool_)
            truth[0, :20, :20] = labelled
            probabilities[0, : predicted_px // 20, :20] = 0.9
            ignore = np.zeros(HW, np.bool_)
            ignore[30:, 30:] = hidden
            answer = ImageAnswer(probabilities, np.full(len(probabilities), gate, np.float32))
            image_id = f"{len(self.search.images):03d}.jpg"
            self.search.visit(Scored(image_id, np.zeros(HW, np.uint8), answer, truth, truth, ignore))


def _separable() -> _Sheets:
    """False alarms at a gate of 0.55, defects at 0.93: any gate from 0.65 to 0.9 parts them."""
    sheets = _Sheets()
    sheets.add(12, gate=0.93, labelled=True)
    sheets.add(12, gate=0.55, labelled=False)
    return sheets


def test_a_clear_gain_is_chosen_with_its_figures() -> None:
    choice = _separable().search.best()

    (one,) = choice.classes
    assert 0.65 <= one.gate <= 0.9
    assert one.images_with == 12
    assert one.default.objective == pytest.approx(1.5)  # all defects found, a false alarm in each clean image
    assert one.validated is not None
    assert one.validated.objective == pytest.approx(2.0)
    assert (one.validated.recall, one.validated.false_alarms) == (1.0, 0.0)
    assert choice.gain == pytest.approx(0.5)
    assert choice.gain_interval is not None
    assert 0 < choice.gain_interval.low <= 0.5 <= choice.gain_interval.high < 1
    assert choice.warnings == ()
    content = json.loads(json.dumps(choice.to_json(), allow_nan=False))
    assert content["classes"][0]["validated"]["recall"] == 1.0
    assert content["thresholds"]["gate"] == [one.gate]


def test_few_images_of_a_class_give_a_warning() -> None:
    sheets = _Sheets(("pits", "cracks"))
    sheets.add(4, gate=0.93, labelled=True)
    sheets.add(12, gate=0.55, labelled=False)

    few, none = sheets.search.best().warnings

    assert few.startswith("only 4 of the images show pits")
    assert none.startswith("none of the images shows cracks")


def test_images_that_may_hide_the_class_only_give_a_warning() -> None:
    sheets = _separable()
    sheets.add(6, gate=0.93, labelled=False, hidden=True)  # they would be false alarms that no gate stops

    choice = sheets.search.best()

    assert choice.classes == _separable().search.best().classes
    assert choice.warnings == (
        "6 of 30 pairs of image and class are left out: ignored pixels may hide the class there",
    )
    quiet = sheets.search.best(MaxFalseAlarms(0)).classes[0].chosen
    assert (quiet.recall, quiet.false_alarms) == (1, 0)


def test_a_loss_in_cross_validation_gives_a_warning_for_best_dice() -> None:
    # The one defect speaks for a gate of 0.5, the alarms for a higher one: each choice misses what it has not seen.
    sheets = _Sheets()
    sheets.add(1, gate=0.6, labelled=True)
    sheets.add(1, gate=0.93, labelled=True)
    sheets.add(4, gate=0.7, labelled=False)

    choice, other = sheets.search.best(), sheets.search.best(TargetRecall(1))

    assert choice.gain is not None
    assert choice.gain < 0
    assert any("less than the defaults" in warning for warning in choice.warnings)
    assert not any("less than the defaults" in warning for warning in other.warnings)


def test_an_unreachable_recall_gives_a_warning() -> None:
    sheets = _Sheets()
    sheets.add(9, gate=0.9, labelled=True)
    sheets.add(3, gate=0.9, labelled=True, predicted_px=0)

    assert any("pits: no setting finds it" in warning for warning in sheets.search.best(TargetRecall(0.9)).warnings)


def test_a_minimum_area_that_removes_true_regions_gives_a_warning() -> None:
    # Predicted regions of 80 px are false alarms in 12 images, and in 2 all that is found of the defect of 400 px.
    sheets = _Sheets()
    sheets.add(12, gate=1.0, labelled=True)
    sheets.add(2, gate=1.0, labelled=True, predicted_px=80)
    sheets.add(12, gate=1.0, labelled=False, predicted_px=80)

    choice = sheets.search.best()

    assert choice.thresholds.min_area_px == (100,)
    assert "minimum area 100 px of pits drops 2 of 14 true regions, the largest of 400 px" in choice.warnings


def test_a_single_image_is_not_cross_validated() -> None:
    sheets = _Sheets()
    sheets.add(1, gate=0.9, labelled=True)

    choice = sheets.search.best()

    assert (choice.validated, choice.gain, choice.folds, choice.classes[0].validated) == (None, None, 0, None)
    at_the_gate = Thresholds(gate=(0.9,), pixel=(0.5,), min_area_px=(100,))
    assert sheets.search.counts(at_the_gate) == {("000.jpg", 1): PairCounts(400, 400, 400)}
    assert any("too few images to cross-validate" in warning for warning in choice.warnings)


def test_images_of_one_group_are_left_out_together() -> None:
    search = _separable().search
    halves = {image_id: str(number // 12) for number, image_id in enumerate(sorted(search.images))}

    choice = search.best(groups=halves)

    # Without the clean half nothing speaks for a higher gate, so that all its images raise an alarm when left out.
    assert choice.folds == 2
    assert choice.classes[0].validated is not None
    assert choice.classes[0].validated.false_alarms == 1.0
