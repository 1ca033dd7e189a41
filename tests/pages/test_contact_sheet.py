import numpy as np

from defectseg.pages.contact_sheet import choose_evenly, make_contact_sheet


def test_wide_pictures_take_half_of_the_width_each_and_others_a_sixth() -> None:
    wide, high = np.full((256, 1600, 3), 90, np.uint8), np.full((200, 100, 3), 90, np.uint8)
    sheet = make_contact_sheet([(wide, "a"), (wide, "x" * 200), (wide, "c")])
    assert sheet.shape == (2 * (10 + 129 + 18) + 10, 1640, 3)
    assert (sheet[15, 10:815] == 90).all()
    assert (sheet[15, 825:1630] == 90).all()
    assert not (sheet[172, 825:1630] == 90).any()
    texts = sheet[139:157].max(axis=(0, 2)) > 200
    assert texts[10:30].any()
    assert texts[700:815].sum() == 0
    assert texts[825:1630].any()
    assert not texts[1630:].any(), "a text that is too long is cut"
    assert make_contact_sheet([(high, "a")]).shape == (10 + 261 + 18 + 10, 1640, 3)
    assert make_contact_sheet([]).shape == (10, 1640, 3)
    headed = make_contact_sheet([(high, "a")], "heading")
    assert headed.shape == (30 + 10 + 261 + 18 + 10, 1640, 3)
    assert (headed[:30, 10:110].max(axis=(0, 2)) > 200).any()
    assert (headed[30:] == make_contact_sheet([(high, "a")])).all()


def test_strata_are_shown_in_turn() -> None:
    many, few = [f"m{number}" for number in range(100)], ["f0", "f1"]
    assert choose_evenly([many, few], 6) == ["m0", "f0", "m16", "f1", "m32", "m48"]
    assert choose_evenly([["a"], [], ["b"]], 6) == ["a", "b"]
    assert choose_evenly([], 6) == []
