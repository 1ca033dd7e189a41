from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectseg.copies.descriptors import turned
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.split import (
    RelatedImages,
    count_apart,
    divide,
    find_related,
    leave_out_test,
    make_folds,
    name_groups,
    read_split,
    read_split_groups,
    write_split,
)
from defectseg.data.synthetic import make_sheet
from defectseg.data.table import LabelTable
from defectseg.errors import DataError, LabelError, UsageError


def folder(classes_of: Mapping[str, tuple[int, ...]], groups: Mapping[str, str] | None = None) -> DataFolder:
    rles = {image_id: dict.fromkeys(classes, "1 1") for image_id, classes in classes_of.items() if classes}
    table = LabelTable(rles, frozenset(rles))
    return DataFolder(Path("none"), tuple(sorted(classes_of)), table, ("p", "c", "s", "a"), groups or {})


def severstal_like() -> dict[str, tuple[int, ...]]:
    sets: Sequence[tuple[int, ...]] = (
        [()] * 100 + [(3,)] * 80 + [(1,)] * 15 + [(4,)] * 12 + [(2,)] * 6 + [(3, 4)] * 3 + [(1, 2)]
    )
    return {f"{number:04d}.jpg": classes for number, classes in enumerate(sets)}


def test_every_fold_gets_its_share_of_every_class_set() -> None:
    sets = severstal_like()
    folds = divide(folder(sets), RelatedImages(), folds=5, seed=0)
    assert list(folds) == sorted(sets)
    counts = Counter((sets[image_id], fold) for image_id, fold in folds.items())
    assert {counts[(), fold] for fold in range(5)} == {20}
    assert {counts[(3,), fold] for fold in range(5)} == {16}
    assert {counts[(1,), fold] for fold in range(5)} == {3}
    # (3, 4) is too rare for five folds and counts with its rarer class, 4: 15 images, three a fold
    assert {counts[(4,), fold] + counts[(3, 4), fold] for fold in range(5)} == {3}
    # (1, 2) counts with 2: seven images, one or two a fold
    assert {counts[(2,), fold] + counts[(1, 2), fold] for fold in range(5)} == {1, 2}
    assert sorted(Counter(folds.values()).values()) == [43, 43, 43, 44, 44]


def test_images_in_which_ignored_pixels_may_hide_a_defect_are_not_spread_as_clean_ones(
    tmp_path: Path, write_data: Callable[..., Path]
) -> None:
    images = {f"{number:02}.png": np.full((4, 4), number, np.uint8) for number in range(16)}
    data = open_data_folder(write_data(tmp_path, images, [f"{number:02}.png,255,1 4" for number in range(8)]))
    folds = divide(data, RelatedImages(), folds=4, seed=0)
    assert Counter((fold, image_id < "08") for image_id, fold in folds.items()) == dict.fromkeys(
        [(fold, hidden) for fold in range(4) for hidden in (True, False)], 2
    )


def test_seed_decides_and_is_all_that_decides() -> None:
    sets = severstal_like()
    first = divide(folder(sets), RelatedImages(), folds=5, seed=3)
    assert divide(folder(dict(reversed(sets.items()))), RelatedImages(), folds=5, seed=3) == first
    assert divide(folder(sets), RelatedImages(), folds=5, seed=4) != first


def test_images_of_a_group_stay_together_and_folds_stay_even() -> None:
    sets = severstal_like()
    groups = {image_id: f"coil {index % 60}" for index, image_id in enumerate(sets) if index % 4}
    folds = divide(folder(sets, groups), RelatedImages(), folds=4, seed=0)
    assert len({(group, folds[image_id]) for image_id, group in groups.items()}) == len(set(groups.values()))
    sizes = Counter(folds.values())
    assert max(sizes.values()) - min(sizes.values()) <= 6
    class_3 = Counter(fold for image_id, fold in folds.items() if 3 in sets[image_id])
    assert max(class_3.values()) - min(class_3.values()) <= 4


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sets(st.integers(1, 4)), st.one_of(st.none(), st.integers(0, 5))), min_size=8, max_size=40),
    st.integers(2, 4),
    st.integers(0, 9),
)
def test_folds_cover_everything_and_none_is_empty(
    images: list[tuple[set[int], int | None]], count: int, seed: int
) -> None:
    sets = {f"{index}.png": tuple(sorted(classes)) for index, (classes, _) in enumerate(images)}
    groups = {f"{index}.png": str(group) for index, (_, group) in enumerate(images) if group is not None}
    units = len(set(groups.values())) + len(sets) - len(groups)
    data = folder(sets, groups)
    if units < count:
        with pytest.raises(UsageError):
            divide(data, RelatedImages(), folds=count, seed=seed)
        return
    folds = divide(data, RelatedImages(), folds=count, seed=seed)
    assert set(folds) == set(sets)
    assert set(folds.values()) == set(range(count))
    assert len({(groups[image_id], fold) for image_id, fold in folds.items() if image_id in groups}) == len(
        set(groups.values())
    )


@pytest.mark.parametrize(("count", "message"), [(1, "expected at least 2"), (4, "4 folds of 3 images or groups")])
def test_senseless_numbers_of_folds_are_refused(count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        divide(folder(dict.fromkeys("abc", ())), RelatedImages(), folds=count, seed=0)


def test_split_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folds = {"b,c.jpg": 1, "a.jpg": 0}
    path = tmp_path / "split.csv"
    write_split(path, folds, {"b,c.jpg": "coil 7"})
    assert path.read_bytes() == b'ImageId,fold,group\na.jpg,0,\n"b,c.jpg",1,coil 7\n'
    assert (read_split(path), read_split_groups(path)) == (folds, {"b,c.jpg": "coil 7"})


def test_groups_of_a_split_file_are_read_by_any_spelling_and_older_files_have_none(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    assert read_split_groups(path) == {}
    path.write_text("ImageId,fold\na.jpg,0\n")
    assert read_split_groups(path) == {}
    path.write_text("Group,ImageId,fold\n coil 7 ,u\u0308.jpg,0\n,b.jpg,0\n", encoding="utf-8")
    assert read_split_groups(path, ["\u00fc.jpg"]) == {"\u00fc.jpg": "coil 7"}


def test_groups_are_named_by_groups_csv_or_else_by_their_first_image() -> None:
    data = folder(dict.fromkeys("abcdefghi", ()), {"a": "x", "b": "x", "c": "y", "d": "y", "i": "z"})
    related = RelatedImages(frozenset({("b", "c"), ("f", "g")}), {("g", "h"): 0.9})
    assert name_groups(data, related, folds=2) == {**dict.fromkeys("abcd", "x"), "f": "f", "g": "f", "i": "z"}
    assert name_groups(data, related, folds=1) == {**dict.fromkeys("abcd", "x"), **dict.fromkeys("fgh", "f"), "i": "z"}


def test_parts_are_read_in_any_case_and_numbers_as_pandas_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text(",ImageId,fold\n0,a.jpg,0.0\n1,b.jpg,1.\n2,c.jpg,VAL\n3,d.jpg,Test\n")
    folds = read_split(path)
    assert folds == {"a.jpg": 0, "b.jpg": 1, "c.jpg": "val", "d.jpg": "test"}
    write_split(path, folds)
    assert read_split(path) == folds
    path.write_text("ImageId,fold\na.jpg,Train\nb.jpg,val\n")
    assert read_split(path) == {"a.jpg": "train", "b.jpg": "val"}


def test_images_of_test_are_left_out_with_their_rows() -> None:
    data = leave_out_test(folder({"a": (1,), "b": (2,), "c": ()}), {"a": "test", "b": "val"}, {"c": "test", "d": 0})
    assert (data.image_ids, data.missing_images) == (("b",), ())
    with pytest.raises(DataError, match="all images are in test"):
        leave_out_test(data, {"b": "test"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageId,Fold\na.jpg,x\n", "line 2: fold 'x' of a.jpg; expected a whole number from 0"),
        ("ImageId,fold\na.jpg,-1\n", "line 2: fold '-1'"),
        ("ImageId,fold\na.jpg,0.5\n", "line 2: fold '0.5'"),
        ("ImageId,fold\na.jpg,0\nb.jpg,train\n", "has train and numbered folds"),
        ("ImageId,fold\na.jpg,0\na.jpg,0\n", "line 3: a.jpg stands there a second time"),
        ("ImageId,fold\n/a.jpg,0\n", "line 2: ImageId"),
        ("image,part\na.jpg,0\n", "expected ImageId,fold"),
    ],
)
def test_faulty_split_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(LabelError, match="split") as caught:
        read_split(tmp_path / "split.csv")
    assert message in str(caught.value)


# copies and strips


def sheet(number: int, size_hw: tuple[int, int] = (128, 128)) -> NDArray[np.uint8]:
    return make_sheet(41, number, size_hw).image


def test_turned_and_changed_copies_get_one_fold(tmp_path: Path, write_data: Callable[..., Path]) -> None:
    pictures = {f"{number}.png": sheet(number) for number in range(12)}
    pictures["a.png"] = turned(sheet(3), "90")
    pictures["b.jpg"] = turned(sheet(3), "mirror")
    pictures["c.jpg"] = (sheet(7) * 0.9).astype(np.uint8)
    data = open_data_folder(write_data(tmp_path, pictures))
    related = find_related(data)
    assert related.copies == {
        ("3.png", "a.png"), ("3.png", "b.jpg"), ("a.png", "b.jpg"), ("7.png", "c.jpg"),
    }  # fmt: skip
    for seed in range(6):
        folds = divide(data, related, folds=5, seed=seed)
        assert folds["3.png"] == folds["a.png"] == folds["b.jpg"]
        assert folds["7.png"] == folds["c.jpg"]
        assert sorted(Counter(folds.values()).values()) == [3, 3, 3, 3, 3]


def test_frames_of_one_strip_get_one_fold(tmp_path: Path, write_data: Callable[..., Path]) -> None:
    strip = sheet(0, (376, 800))
    pictures = {f"{number}.png": sheet(number, (128, 800)) for number in range(1, 13)}
    pictures |= {"a.png": strip[:128], "b.png": strip[124:252], "c.png": strip[248:]}
    data = open_data_folder(write_data(tmp_path, pictures))
    related = find_related(data)
    assert set(related.neighbours) == {("a.png", "b.png"), ("b.png", "c.png")}
    for seed in range(6):
        folds = divide(data, related, folds=2, seed=seed)
        assert folds["a.png"] == folds["b.png"] == folds["c.png"]


def test_images_that_cannot_be_read_are_divided_all_the_same(tmp_path: Path, write_data: Callable[..., Path]) -> None:
    data = open_data_folder(write_data(tmp_path, {f"{number}.png": sheet(number) for number in range(4)}))
    data.image_path("2.png").write_bytes(b"?")
    assert set(make_folds(data, folds=2)[0]) == set(data.image_ids)


def test_strips_that_would_outgrow_half_a_fold_are_parted_where_they_are_least_alike() -> None:
    ids = [f"{number:02d}" for number in range(40)]
    chain = {(one, other): 0.5 + 0.01 * number for number, (one, other) in enumerate(pairwise(ids))}
    data = folder(dict.fromkeys(ids, ()))
    folds = divide(data, RelatedImages(neighbours=chain), folds=4, seed=0)
    assert sorted(Counter(folds.values()).values()) == [10, 10, 10, 10]
    assert 0 < count_apart(chain, folds) < 12
    assert folds["35"] == folds["36"] == folds["37"] == folds["38"] == folds["39"], "the most alike"


def test_copies_join_groups_and_stay_together_whatever_their_number() -> None:
    data = folder(dict.fromkeys("abcdefghijklm", ()), {"a": "x", "b": "x", "c": "y", "d": "y"})
    related = RelatedImages(frozenset({("b", "c"), *pairwise("defghij")}))
    folds = divide(data, related, folds=3, seed=1)
    assert len({folds[image_id] for image_id in "abcdefghij"}) == 1
    assert set(folds.values()) == {0, 1, 2}
