"""Rules on records, and how they are written."""

from typing import Any

import pytest

from defectseg.errors import UsageError
from defectseg.predict.rules import Rules, Tolerance
from defectseg.predict.tables import IMAGE_COLUMNS, OutputChoice, Record

CLASSES = ("pits", "cracks")
IN_MM = OutputChoice(mm_per_px=(0.5, 0.8))


def _record(*regions: tuple[Any, ...], names: tuple[str, ...] = CLASSES, status: str = "defect") -> Record:
    """An image with regions of a ClassId, an area and a score, and perhaps cells in mm."""
    image: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "") | {"ImageId": "a.png", "status": status}
    image |= {"regions": "" if status == "unreadable" else len(regions)}
    rows = [
        ["a.png", number, names[number - 1], area_px, 3, 4, 5, 6, "7.5", "8.5", score, *in_mm]
        for number, area_px, score, *in_mm in regions
    ]
    return Record(image, [], rows, [])


TWO_PITS_AND_A_CRACK = _record((1, 500, "0.9000"), (1, 20, "0.6000"), (2, 60, "0.7000"))


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("any", True),
        ("pits", True),
        ("2", True),
        ("pits:area_px=500", True),  # from this number on
        ("pits:area_px=500.5", False),
        ("cracks:area_px=61", False),  # a pit is larger
        ("any:area_px=61", True),
        ("any:score=0.90", True),
        ("1:count=2", True),
        ("1:count=3", False),
        ("any:count=3", True),
        ("any:count=4", False),
        ("cracks:centroid_x=7.5", True),
        ("1:area_px=501, cracks:count=2", False),
        ("1:area_px=501,cracks : count = 1,", True),  # any of them
    ],
)
def test_an_image_meets_a_rule_from_its_number_on(text: str, is_met: bool) -> None:
    assert Rules.parse(text, CLASSES, OutputChoice()).met_by(TWO_PITS_AND_A_CRACK) is is_met


@pytest.mark.parametrize("text", ["any", "1", "any:count=1", "1:count=1", "any:area_px=0"])
@pytest.mark.parametrize("status", ["clean", "blank", "unreadable"])
def test_an_image_without_a_region_meets_no_rule(text: str, status: str) -> None:
    assert not Rules.parse(text, CLASSES, OutputChoice()).met_by(_record(status=status))


def test_rules_in_mm_read_the_columns_in_mm() -> None:
    record = _record((1, 500, "0.9000", "20.5", "3", "200", "45.0"))
    for text, is_met in {"1:length_mm=20.5": True, "any:width_mm=3.1": False, "pits:area_mm2=200": True}.items():
        assert Rules.parse(text, CLASSES, IN_MM).met_by(record) is is_met


def test_a_row_older_than_a_column_does_not_meet_a_rule_on_it() -> None:
    old = _record((1, 500, "0.9000"))
    del old.regions[0][-1]
    assert not Rules.parse("1:score=0.1", CLASSES, OutputChoice()).met_by(old)
    assert Rules.parse("1:area_px=500", CLASSES, OutputChoice()).met_by(old)


def test_classes_with_odd_names_have_their_number_and_any_is_each_class() -> None:
    names = ("any", "pit, deep", "roll:mark", "x:area_px=9")
    record = _record((2, 50, "0.9000"), names=names)
    for text, class_id, is_met in (
        ("any", None, True),
        ("1", 1, False),
        ("2:area_px=50", 2, True),
        ("roll:mark:area_px=5", 3, False),
        ("roll:mark", 3, False),
        ("x:area_px=9", 4, False),
        ("x:area_px=9:count=1", 4, False),
    ):
        rules = Rules.parse(text, names, OutputChoice())
        assert [rule.class_id for rule in rules.rules] == [class_id]
        assert rules.met_by(record) is is_met
    with pytest.raises(UsageError, match=r"pit: .*the number or name.*2 \(pit, deep\)"):
        Rules.parse("pit, deep", names, OutputChoice())


def test_rules_are_told_in_words() -> None:
    assert str(Rules.parse("2:area_px=2,1,any:count=3", CLASSES, OutputChoice())) == (
        "cracks:area_px>=2 or pits or any:count>=3"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no rule; expected CLASS or CLASS:FIELD=NUMBER"),
        (" ,", "names no rule"),
        ("scrach", r"scrach: expected CLASS or .*1 \(pits\), 2 \(cracks\)"),
        ("3", "3: expected CLASS"),
        ("0", "0: expected CLASS"),
        ("Pits", "Pits: expected CLASS"),
        ("pits:area_px", "pits:area_px: expected CLASS or CLASS:FIELD=NUMBER"),
        ("pits:area_px>5", "expected CLASS or CLASS:FIELD=NUMBER"),
        (":area_px=5", "expected CLASS or CLASS:FIELD=NUMBER"),
        ("area_px=5", "expected CLASS or CLASS:FIELD=NUMBER"),
        ("pits,cracks:lenght=5", "cracks:lenght=5: expected one of count, area_px, .*score; found lenght"),
        ("pits:=5", "found none"),
        ("pits:ClassId=1", "found ClassId"),
        ("pits:class_name=1", "found class_name"),
        ("pits:length_mm=5", "length_mm needs mm_per_px='X'"),
        ("pits:count=0", "pits:count=0: expected a plain number from 1; found 0"),
        ("pits:score=90", "expected a plain number from 0 to 1; found 90"),
        *((f"pits:area_px={number}", f"from 0; found {number}") for number in ("1e3", "-4", "nan", "inf", "0x5", "٣")),
        ("pits:area_px=", "from 0; found none"),
    ],
)
def test_rules_with_a_typing_error_are_refused_with_what_was_expected(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"fail_on: {told}" if told.startswith("names") else f"fail_on: .*{told}"):
        Rules.parse(text, CLASSES, OutputChoice())


def test_a_direction_of_more_than_half_a_turn_is_refused() -> None:
    with pytest.raises(UsageError, match="from 0 to 180; found 181"):
        Rules.parse("any:direction_deg=181", CLASSES, IN_MM)


def test_a_rule_on_a_class_that_is_not_reported_is_refused() -> None:
    with pytest.raises(UsageError, match=r"fail_on: cracks:count=2: this class is not reported, only 1 \(pits\)"):
        Rules.parse("cracks:count=2", CLASSES, OutputChoice(), only_classes=[1])
    assert Rules.parse("any,pits", CLASSES, OutputChoice(), only_classes=[1]).met_by(TWO_PITS_AND_A_CRACK)


@pytest.mark.parametrize("text", ["pits", "pits:count=2", "any:area_px=5"])
def test_without_regions_only_their_number_is_known(text: str) -> None:
    choice = OutputChoice(("masks",))
    with pytest.raises(UsageError, match=r"needs regions among the outputs\. Add it, or use any or any:count=N"):
        Rules.parse(text, CLASSES, choice)
    record = Record(TWO_PITS_AND_A_CRACK.image, [], [], [])
    assert Rules.parse("any", CLASSES, choice).met_by(record)
    assert Rules.parse("any:count=3", CLASSES, choice).met_by(record)
    assert not Rules.parse("any:count=4", CLASSES, choice).met_by(record)


@pytest.mark.parametrize(
    ("text", "unreadable", "images", "is_covered"),
    [
        ("0", 0, 9, True),
        ("0", 1, 9, False),
        ("3", 3, 3, True),
        ("3", 4, 1000, False),
        ("2%", 2, 100, True),
        ("2%", 3, 100, False),
        ("2%", 1, 10, False),
        ("0.57%", 57, 10_000, True),  # 0.57 * 10_000 is less than 5,700 in floating point
        ("0.57%", 58, 10_000, False),
        ("100%", 5, 5, True),
        ("0%", 0, 0, True),
    ],
)
def test_so_many_unreadable_images_are_accepted(text: str, unreadable: int, images: int, is_covered: bool) -> None:
    assert Tolerance.parse(text).covers(unreadable, images) is is_covered


@pytest.mark.parametrize("text", ["", "-1", "1.5", "two", "101%", "%", "1e2", "nan", "5 %%"])
def test_what_is_no_number_of_images_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"max_unreadable: expected a number such as 3, or 0% to 100%; found {text}"):
        Tolerance.parse(text)
