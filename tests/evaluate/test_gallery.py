from collections import Counter

import numpy as np

from defectseg.evaluate.gallery import KINDS, Fault, choose_pictures, filters, find_faults
from defectseg.evaluate.metrics import Counts, PairCounts, count_pairs
from defectseg.evaluate.sheets import Sheet, sheet_of

# For each class: columns that are labelled, and that are predicted, of an image of 200 x 100 px.
IMAGES = {
    "missed": [(slice(0, 60), slice(0)), (slice(0), slice(0))],
    "swapped": [(slice(0, 10), slice(0)), (slice(0), slice(0, 10))],
    "barely swapped": [(slice(0, 20), slice(0)), (slice(0), slice(19, 50))],
    "displaced": [(slice(0, 10), slice(10, 30)), (slice(0), slice(0))],
    "alarm": [(slice(0), slice(0)), (slice(0), slice(0, 1))],
    "perfect": [(slice(0, 10), slice(0, 10)), (slice(0), slice(0))],
}


def _scored() -> tuple[Counts, dict[str, Sheet]]:
    counts: Counts = {}
    sheets = {}
    for image_id, classes in IMAGES.items():
        truth, predicted = np.zeros((2, 2, 200, 100), np.bool_)
        for index, (labelled, found) in enumerate(classes):
            truth[index, :, labelled] = True
            predicted[index, :, found] = True
        counts |= count_pairs(image_id, predicted, truth)
        sheets[image_id] = sheet_of(predicted, truth, np.zeros((200, 100), np.bool_))
    return counts, sheets


def _fault(image_id: str, class_id: int, kind: str, px: int, size: str = "below 100 px") -> Fault:
    pixels = PairCounts(px, 0, 0) if kind == "missed" else PairCounts(0, px, 0)
    return Fault(image_id, class_id, size, kind, pixels)


def test_faults_have_a_kind_and_a_size_and_the_worst_come_first() -> None:
    found = [(one.image_id, one.class_id, one.kind, one.size) for one in find_faults(*_scored(), [1, 2])]
    assert found == [
        ("missed", 1, "missed", "10,000 px and more"),
        ("barely swapped", 2, "false alarm", "1,000 to 9,999 px"),  # 1 of its 31 columns is a defect of another class
        ("displaced", 1, "inexact", "1,000 to 9,999 px"),
        ("barely swapped", 1, "missed", "1,000 to 9,999 px"),
        ("swapped", 1, "wrong class", "1,000 to 9,999 px"),
        ("swapped", 2, "wrong class", "1,000 to 9,999 px"),
        ("alarm", 2, "false alarm", "100 to 999 px"),
    ]


def test_faults_tell_the_class_ids_of_the_model() -> None:
    kinds = {(one.image_id, one.class_id): one.kind for one in find_faults(*_scored(), [2, 4])}
    assert (kinds["swapped", 2], kinds["swapped", 4], kinds["alarm", 4]) == (
        "wrong class",
        "wrong class",
        "false alarm",
    )


def test_an_unknown_pair_is_no_fault() -> None:
    sheet = Sheet(None, (), ((1, 5, False),), np.zeros((2, 2), np.int64))
    assert find_faults({("a", 1): PairCounts(0, 5, 0, unknown=True)}, {"a": sheet}, [1]) == []


def test_at_most_150_pictures_are_chosen_and_each_kind_class_and_size_occurs() -> None:
    faults = [_fault(f"m{number}", 1, "missed", 9_000 - number) for number in range(400)]
    faults += [_fault(f"s{number}", 1, "missed", 50, "100 to 999 px") for number in range(3)]
    faults += [_fault(f"f{number}", 2, "false alarm", 40 - number) for number in range(5)]
    faults += [_fault("m0", 2, "inexact", 7), _fault("nowhere", 3, "missed", 8)]

    chosen = choose_pictures(faults, {one.image_id for one in faults} - {"nowhere"})

    assert list(chosen)[:3] == ["m0", "m1", "m2"], "the kind that matters most, the largest first"
    assert list(chosen)[-5:] == [f"f{number}" for number in range(5)]
    assert Counter(image_id[0] for image_id in chosen) == {"m": 142, "s": 3, "f": 5}
    assert [fault.kind for fault in chosen["m0"]] == ["missed", "inexact"], "a picture has all faults of its image"


def test_all_classes_are_shown_even_if_there_are_too_many_for_all_kinds_of_each() -> None:
    faults = [
        _fault(f"{kind} {number} {turn}", number, kind, 99)
        for kind in KINDS
        for number in range(140)
        for turn in (1, 2)
    ]
    chosen = choose_pictures(faults, {one.image_id for one in faults})
    assert len(chosen) == 150
    shown = [fault for own in chosen.values() for fault in own]
    assert ({fault.class_id for fault in shown}, {fault.kind for fault in shown}) == (set(range(140)), set(KINDS))


def test_filters_offer_what_occurs_and_a_fault_is_marked_with_each_choice() -> None:
    faults = [_fault("a", 3, "missed", 9), _fault("b", 1, "false alarm", 9, "10,000 px and more")]
    choices = filters([faults[:1], faults[1:]], {1: "pits", 2: "cracks", 3: "scale"})
    assert choices == {
        "class": {"any": "any", 1: "1. pits", 3: "3. scale"},
        "size": {"any": "any", 0: "below 100 px", 3: "10,000 px and more"},
        "fault": {"any": "any", 0: "missed", 2: "false alarm"},
    }
    assert list(choices["class"]) == ["any", 1, 3]
    assert sorted(faults[0].marks) == sorted(
        f"{class_id}-{size}-{kind}" for class_id in (3, "any") for size in (0, "any") for kind in (0, "any")
    )
    assert filters([], {1: "pits"}) == {}
