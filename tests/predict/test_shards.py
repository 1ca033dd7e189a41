from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectseg.errors import UsageError
from defectseg.predict.shards import Shard, digest_of, parse_shard

IMAGE_IDS = st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1), unique=True, max_size=50)
ARRAY = {
    f"SLURM_ARRAY_TASK_{name}": value for name, value in {"ID": "3", "COUNT": "8", "MIN": "1", "STEP": "1"}.items()
}
RANKS = {"RANK": "2", "WORLD_SIZE": "4"}


def _shards(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(1, count + 1)]


@given(image_ids=IMAGE_IDS, more=IMAGE_IDS, count=st.integers(1, 20))
def test_each_image_is_in_one_shard_and_stays_there_when_others_come(
    image_ids: list[str], more: list[str], count: int
) -> None:
    def parts(listed: list[str]) -> list[set[str]]:
        return [{image_id for image_id in listed if image_id in shard} for shard in _shards(count)]

    before, after = parts(image_ids), parts([*more, *image_ids])
    assert Counter(image_id for part in before for image_id in part) == Counter(image_ids)
    assert [part & set(image_ids) for part in after] == before


def test_shards_are_about_equal_and_the_same_on_every_machine_and_in_every_version() -> None:
    sizes = Counter(next(s.index for s in _shards(4) if f"line 1/{number:05}.jpg" in s) for number in range(4000))
    assert sorted(sizes) == [1, 2, 3, 4]
    assert all(900 < size < 1100 for size in sizes.values())
    # Folders of shards that older versions began must stay what they are.
    names = ("a.jpg", "b.jpg", "line 1/ä.png", "日本.tif")
    assert [next(str(shard) for shard in _shards(8) if name in shard) for name in names] == ["2/8", "7/8", "1/8", "2/8"]


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("3/8", Shard(3, 8)), ("100/100", Shard(100, 100))])
def test_a_shard_is_named_by_two_numbers(text: str, shard: Shard) -> None:
    assert parse_shard(text, ARRAY) == shard
    assert str(shard) == text


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "-1/3", "1", "1/", "/3", "1/0", "a/b", "1/3/4", " 1/3", "1/3\n", "", "٣/٨"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"shard: found .*; expected i/n"):
        parse_shard(text, ARRAY)


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        (ARRAY, Shard(3, 8)),
        ({**ARRAY, **RANKS}, Shard(3, 8)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0"}, Shard(1, 8)),
        (
            {**ARRAY, "SLURM_ARRAY_TASK_ID": "25", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5"},
            Shard(4, 8),
        ),
        (RANKS, Shard(3, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Shard(1, 1)),
    ],
)
def test_auto_takes_the_shard_from_an_array_job_or_else_from_the_rank(variables: dict[str, str], shard: Shard) -> None:
    assert parse_shard("auto", variables) == shard


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "found neither"),
        ({"WORLD_SIZE": "4", "SLURM_JOB_ID": "7"}, "found neither"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "TASK_COUNT=,"),
        ({"SLURM_ARRAY_TASK_ID": "3", **RANKS}, "TASK_COUNT=,"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "9"}, "TASK_ID=9"),
        ({**ARRAY, "SLURM_ARRAY_TASK_MIN": "4"}, "TASK_MIN=4"),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "3"}, "TASK_STEP=3"),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "0"}, "TASK_STEP=0"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "many"}, "TASK_COUNT=many"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK=-1"),
        ({"RANK": "0"}, "WORLD_SIZE=."),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
)
def test_auto_without_variables_that_fit_is_refused_and_names_both_kinds(variables: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=r"SLURM_ARRAY_TASK_ID.*RANK and WORLD_SIZE; found") as refused:
        parse_shard("auto", variables)
    assert told in str(refused.value)


@given(image_ids=IMAGE_IDS, other=IMAGE_IDS)
def test_a_digest_tells_whether_two_lists_hold_the_same_images(image_ids: list[str], other: list[str]) -> None:
    assert digest_of(reversed(image_ids)) == digest_of(image_ids)
    assert (digest_of(image_ids) == digest_of(other)) == (sorted(image_ids) == sorted(other))
