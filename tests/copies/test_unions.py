from hypothesis import given
from hypothesis import strategies as st

from defectseg.copies.find import Unions


def test_things_are_grouped_as_they_were_joined() -> None:
    unions: Unions[str] = Unions()
    for one, other in ("ab", "cd", "db"):
        unions.join(one, other)
    assert unions.groups("edcba") == [["e"], ["d", "c", "b", "a"]]
    assert (unions.size("a"), unions.size("e")) == (4, 1)
    assert unions.joined("a", "c")
    assert not unions.joined("a", "e")


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_groups_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    unions: Unions[int] = Unions()
    colour = {thing: thing for thing in range(13)}
    for one, other in pairs:
        unions.join(one, other)
        old, new = colour[one], colour[other]
        colour = {thing: new if number == old else number for thing, number in colour.items()}
    expected = {frozenset(thing for thing in colour if colour[thing] == number) for number in colour.values()}
    groups = unions.groups(range(13))
    assert {frozenset(group) for group in groups} == expected
    assert all(unions.size(group[0]) == len(group) for group in groups)
