"""Losses of an import or export, counted."""

from defectseg.formats.losses import Tally


def test_examples_are_of_images_that_lost_something() -> None:
    tally = Tally()
    tally.add("hole_px", 0, example="a.jpg")
    tally.add("hole_px", 7, example="z.jpg")
    (loss,) = tally.losses()
    assert loss.count == 7
    assert "z.jpg" in loss.message
    assert "a.jpg" not in loss.message
