"""Things joined into groups, pair by pair."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Unions(Generic[Thing]):
    """Disjoint groups of things. Whatever has not been joined is a group of its own."""

    def __init__(self) -> None:
        self._parent: dict[Thing, Thing] = {}
        self._size: dict[Thing, int] = {}

    def join(self, one: Thing, other: Thing) -> None:
        """Make one group of the groups of both."""
        large, small = self.root(one), self.root(other)
        if large == small:
            return
        if self.size(large) < self.size(small):
            large, small = small, large
        self._size[large] = self.size(large) + self.size(small)
        self._parent[small] = large

    def joined(self, one: Thing, other: Thing) -> bool:
        """Whether both are in one group."""
        return self.root(one) == self.root(other)

    def size(self, thing: Thing) -> int:
        """How many things its group has."""
        return self._size.get(self.root(thing), 1)

    def root(self, thing: Thing) -> Thing:
        """The member that stands for the group; which one it is depends on the order of joining."""
        path = []
        while (parent := self._parent.get(thing, thing)) != thing:
            path.append(thing)
            thing = parent
        for passed in path:
            self._parent[passed] = thing
        return thing

    def groups(self, things: Iterable[Thing]) -> list[list[Thing]]:
        """The things sorted into their groups, both in the order of `things`."""
        groups: dict[Thing, list[Thing]] = {}
        for thing in things:
            groups.setdefault(self.root(thing), []).append(thing)
        return list(groups.values())
