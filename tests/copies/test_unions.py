from hypothesis import given
from hypothesis import strategies as st

from defectseg.copies.find import DisjointSets


def test_things_are_grouped_as_they_were_joined() -> None:
    sets: DisjointSets[str] = DisjointSets()
    for one, other in ("ab", "cd", "db"):
        sets.join(one, other)
    assert sets.groups("edcba") == [["e"], ["d", "c", "b", "a"]]
    assert (sets.size("a"), sets.size("e")) == (4, 1)
    assert sets.joined("a", "c")
    assert not sets.joined("a", "e")


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_groups_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    sets: DisjointSets[int] = DisjointSets()
    colour = {thing: thing for thing in range(13)}
    for one, other in pairs:
        sets.join(one, other)
        old, new = colour[one], colour[other]
        colour = {thing: new if number == old else number for thing, number in colour.items()}
    expected = {frozenset(thing for thing in colour if colour[thing] == number) for number in colour.values()}
    groups = sets.groups(range(13))
    assert {frozenset(group) for group in groups} == expected
    assert all(sets.size(group[0]) == len(group) for group in groups)
