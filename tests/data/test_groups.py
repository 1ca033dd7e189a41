import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.groups import groups_of
from defectseg.data.names import group_in, match_groups
from defectseg.errors import LabelError, UsageError

NAMES = ("c1_a.png", "c1_b.png", "c2_a.png", "odd.png")


@pytest.fixture
def data(tmp_path: Path, write_data: Callable[..., Path]) -> Path:
    return write_data(tmp_path / "data", {name: np.zeros((4, 4), np.uint8) for name in NAMES})


def _groups(data: Path | DataFolder, pattern: str | None = None, *splits: Path) -> tuple[Mapping[str, str], str]:
    folder = open_data_folder(data) if isinstance(data, Path) else data
    groups = groups_of(folder, folder.image_ids, pattern, splits=splits)
    assert set(groups) == set(folder.image_ids)
    return {image_id: group for image_id, group in groups.items() if group != image_id}, groups.source


def test_the_pattern_goes_before_the_column_of_the_split_and_that_before_groups_csv(data: Path, tmp_path: Path) -> None:
    beside_model = tmp_path / "split.csv"
    assert _groups(data, None, beside_model) == ({}, "each image is its own group")

    beside_model.write_text("ImageId,fold,group\nc1_a.png,0,m\nc1_b.png,0,m\n")
    assert _groups(data, None, beside_model) == ({"c1_a.png": "m", "c1_b.png": "m"}, str(beside_model))

    (data / "groups.csv").write_text("ImageId,Group\nc2_a.png,g\nodd.png,g\n")
    assert _groups(data) == ({"c2_a.png": "g", "odd.png": "g"}, str(data / "groups.csv"))

    (data / "split.csv").write_text("ImageId,fold,group\nc1_a.png,0,\nc1_b.png,0,s\nc2_a.png,0,s\n")
    named = {"c1_b.png": "s", "c2_a.png": "s", "odd.png": "g"}
    assert _groups(data, None, beside_model) == (named, str(data / "split.csv"))

    assert _groups(data, "^c.", beside_model) == (
        {"c1_a.png": "c1", "c1_b.png": "c1", "c2_a.png": "c2"}, "'^c.' in the ImageId",
    )  # fmt: skip


def test_groups_of_one_image_each_are_told_to_be_single(data: Path) -> None:
    (data / "groups.csv").write_text("ImageId,Group\nc2_a.png,g\nodd.png,h\n")
    assert _groups(data)[1] == "each image is its own group"


@pytest.mark.parametrize(
    ("pattern", "group"),
    [("c[0-9]", "c7"), ("(c[0-9])_(.)", "c7"), ("_(x)?b", ""), ("line (1)/", "1"), ("z", ""), ("z*", ""), ("e ?", "e")],
)
def test_parentheses_choose_a_part_of_the_match(pattern: str, group: str) -> None:
    assert group_in(pattern, "line 1/c7_b.png") == group


def test_images_that_do_not_match_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert match_groups("c.", NAMES[2:]) == {"c2_a.png": "c2"}
    assert caplog.messages == ["1 of 2 images belong to no group, because group='c.' does not match: odd.png"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("coil(", r"group: 'coil\(' is no regular expression \(missing \), unterminated"),
        ("coil", "group: 'coil' matches no ImageId; one of them is c1_a.png"),
        ("", "group: '' matches no ImageId"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(data: Path, pattern: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        _groups(data, pattern)


def test_a_faulty_split_is_refused_with_the_line(data: Path) -> None:
    (data / "split.csv").write_text("ImageId,fold,group\n/a.png,0,x\n")
    with pytest.raises(LabelError, match=r"split\.csv, line 2: "):
        _groups(data)
