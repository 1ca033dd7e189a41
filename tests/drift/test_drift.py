import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.drift.drift import CAMERA, CANNOT_TELL, DEFECTS, NO_CHANGE, NOT_JUDGED, UNCALIBRATED, drift
from defectseg.errors import DataError, OutputExistsError, UsageError
from defectseg.model.appearance import Appearance

Write = Callable[..., Path]


def test_each_image_is_judged_once_and_few_groups_wait_for_more(tmp_path: Path, write_results: Write) -> None:
    out, folders, said = tmp_path / "out", list[Path](), []
    nights: list[dict[str, Any]] = [
        {"groups": range(15)},
        {"groups": range(15, 21), "brighter": -0.4},
        {"groups": range(21, 27), "brighter": -0.4},
        {"groups": ()},
        {"groups": range(30, 42), "defective": 1.0},
    ]
    for day, night in enumerate(nights):
        folders.append(write_results(tmp_path / f"{day}", **night, day=day))
        content = drift(folders, out=out).content
        said.append((content["verdict"], content["new_groups"], content["new_images"]))
        if day == 2:
            assert content["camera"]["groups"] == 12
            assert content["camera"]["began"]["group"] == "coil15"
            assert content["sentences"][0].startswith("The camera or the light changed. The last 12 groups: darker by ")
        if day == 3:
            assert "0 new groups" in content["sentences"][0]
            assert "The last verdict" in content["sentences"][1]
            assert "changed. The last 12 groups: darker by " in content["sentences"][1]

    assert said == [
        (NO_CHANGE, 15, 60), (CANNOT_TELL, 6, 24), (CAMERA, 12, 48), (CANNOT_TELL, 0, 0), (DEFECTS, 12, 48)
    ]  # fmt: skip
    assert content["usual_defective"] == 0.5, "of the 15 groups that raised no alarm"
    assert content["groups"] == len(content["table"]) == 39
    assert content["warnings"] == ["left out: 1 folders without images"]
    assert drift(folders[:1], out=tmp_path / "out").content["new_images"] == 0, "whatever else is given"
    assert drift(folders, out=out, overwrite=True).content["new_images"] == 39 * 4
    assert drift(folders).content["new_images"] == 39 * 4, "without a folder, nothing is remembered"


def test_images_with_a_time_from_before_the_verdict_are_told_if_they_come_late(
    tmp_path: Path, write_results: Write
) -> None:
    night, out = write_results(tmp_path / "a", range(12), day=1), tmp_path / "out"
    drift([night], out=out)
    late = write_results(tmp_path / "b", [3, 40, 41], day=0)

    content = drift([night, late], out=out).content

    assert content["new_images"] == 8, "groups that nobody has judged are new, whatever their times"
    assert content["warnings"][0].startswith("4 images came after the last verdict on their group")
    later = write_results(tmp_path / "c", range(50, 62), day=2)
    assert drift([night, late, later], out=out).content["warnings"]
    assert drift([night, late, later], out=out).content["warnings"] == [], "once there is a verdict, they were told"


def test_more_images_of_a_judged_group_are_new(tmp_path: Path, write_results: Write) -> None:
    night, out = write_results(tmp_path / "a", range(12), day=1), tmp_path / "out"
    drift([night], out=out)
    content = drift([night, write_results(tmp_path / "b", range(12), day=2)], out=out).content
    assert (content["new_groups"], content["new_images"], content["warnings"]) == (12, 48, [])
    assert [row["images"] for row in content["table"]] == [8] * 12


@pytest.mark.parametrize(
    ("changes", "verdict", "told"),
    [
        ({"trained": None}, NOT_JUDGED, "does not tell how its training images look"),
        ({"status": "blank", "described": False}, CANNOT_TELL, "0 new groups (0 images)"),
        ({"described": False, "defective": 0.0}, CANNOT_TELL, "0 new groups (0 images)"),
    ],
)
def test_what_cannot_be_judged_is_said_and_stays_new(
    tmp_path: Path, write_results: Write, changes: dict[str, Any], verdict: str, told: str
) -> None:
    night = write_results(tmp_path / "a", range(12), brighter=-0.5, **changes)
    for _ in range(2):
        result = drift([night], out=tmp_path / "out")
        assert (result.content["verdict"], result.is_alarm) == (verdict, False)
        assert told in result.content["sentences"][0]
        assert len(result.content["warnings"]) == ("described" in changes)


def test_a_model_of_few_training_groups_raises_no_alarm(
    tmp_path: Path, write_results: Write, trained: Appearance
) -> None:
    few = trained.model_copy(update={"groups": 29, "threshold": None})
    content = drift([write_results(tmp_path / "a", range(12), brighter=-0.5, trained=few)]).content
    assert content["verdict"] == UNCALIBRATED
    assert "trained on 29 groups. At least 30 are needed" in content["sentences"][0]


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"key": {"model_sha256": "b" * 64}}, DataError, "has another model than"),
        ({"key": {"bit_depth": 12}}, DataError, "were read as 12 bits, and the model was trained on 10 bits"),
        ({"pattern": None}, UsageError, "group"),
        ({"run_status": "interrupted"}, DataError, "the run is interrupted"),
    ],
)
def test_results_that_are_no_history_are_refused(
    tmp_path: Path, write_results: Write, changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    night = write_results(tmp_path / "a", range(12))
    other = write_results(tmp_path / "b", range(12, 24), **changes)
    with pytest.raises(error, match=told) as refused:
        drift([night, other], out=tmp_path / "out")
    assert str(other) in str(refused.value)
    assert not (tmp_path / "out" / "drift.json").exists()


def test_a_folder_given_twice_and_a_pattern_without_a_match_are_refused(tmp_path: Path, write_results: Write) -> None:
    night = write_results(tmp_path / "a", range(12))
    with pytest.raises(UsageError, match="given twice"):
        drift([night, tmp_path / "b" / ".." / "a"])
    with pytest.raises(UsageError, match=r"matches no ImageId; one of them is coil\d+_a\d.png"):
        drift([night], group="roll[0-9]+")
    other = write_results(tmp_path / "c", range(12), pattern=None)
    assert drift([other], group="coil[0-9]").content["groups"] == 10


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"remembered": {"shares": {"a": 2}}}', '{"remembered": 3'])
def test_a_damaged_memory_is_refused_until_it_is_told_to_forget(
    tmp_path: Path, write_results: Write, damage: str
) -> None:
    night, out = write_results(tmp_path / "a", range(12)), tmp_path / "out"
    drift([night], out=out)
    (out / "drift.json").write_text(damage)
    with pytest.raises(OutputExistsError, match="not as drift writes it"):
        drift([night], out=out)
    assert (out / "drift.json").read_text() == damage
    assert drift([night], out=out, overwrite=True).content["new_groups"] == 12


def test_verdicts_on_another_model_or_other_groups_are_not_continued(tmp_path: Path, write_results: Write) -> None:
    night, out = write_results(tmp_path / "a", range(12)), tmp_path / "out"
    drift([night], out=out)
    other = write_results(tmp_path / "b", range(12), key={"model_sha256": "b" * 64})
    with pytest.raises(OutputExistsError, match="another model or other groups"):
        drift([other], out=out)
    with pytest.raises(OutputExistsError, match="another model or other groups"):
        drift([night], group="coil[0-9]", out=out)


def test_the_page_begins_with_the_verdict_has_a_chart_of_each_figure_and_runs_no_name(
    tmp_path: Path, write_results: Write
) -> None:
    night = write_results(tmp_path / "<b>x", range(12), brighter=-0.4)
    content = drift([night], group=r"coil[0-9]+_<b>x", out=tmp_path / "out").content
    page = (tmp_path / "out" / "drift.html").read_text()
    assert page.index("The camera or the light changed") < page.index("<svg")
    assert page.count("<svg") == 6
    assert "&lt;b&gt;x" in page
    assert "<b>" not in page
    stored = json.loads((tmp_path / "out" / "drift.json").read_text())
    stored.pop("remembered")
    assert stored == content
