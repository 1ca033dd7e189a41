"""Progress of long work, and counting words."""

from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]


EXAMPLES_SHOWN = 5


def some(names: Iterator[str] | list[str] | set[str]) -> str:
    """The first few of some names in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - EXAMPLES_SHOWN
    return ", ".join(ordered[:EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")
